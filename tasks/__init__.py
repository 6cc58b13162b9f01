"""How often, how long, from cache: one Prefect task a step."""

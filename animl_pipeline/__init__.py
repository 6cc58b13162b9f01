"""The street: from an Animl export to a released classifier. Nothing here knows of Prefect, and importing does nothing."""

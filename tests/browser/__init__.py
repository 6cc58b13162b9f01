"""A person at Prefect's pages, in a real browser."""

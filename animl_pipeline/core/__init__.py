"""Records, errors, table schemas, category names, the model input: used by every other package."""

"""Tools for development: SageMaker's API on this machine, and a synthetic data set."""

"""animl-pipeline: from labels validated in Animl to a released species classifier. It does not use Prefect, and importing it does nothing."""

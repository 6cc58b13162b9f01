"""Other systems: Animl's API, MLflow, SageMaker training jobs, pretrained weights."""

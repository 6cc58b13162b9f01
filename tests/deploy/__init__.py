"""The last door against a real local SageMaker."""

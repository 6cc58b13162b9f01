"""Deployment, against a real local SageMaker."""

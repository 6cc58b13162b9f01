"""SageMaker's API on this machine: the same boto3 calls as on AWS; only the address differs.

::

    python -m animl_pipeline.dev.sagemaker_local --state FOLDER [--port N] [--s3] [--faults JSON]

A request is checked against botocore's own description of the service (``api_validation``) and carried out (``control_api``).
Models, configs and endpoints are kept in a folder (``state_file``). An endpoint is the real endpoint program with the real
unpacked package, in its own process (``endpoint_processes``). A training job is the real program of the pipeline's image in a
folder that stands for /opt/ml (``training_jobs``, ``training_process``). Faults that happen on AWS now and then happen here on
request (``fault_injection``). Ignored here: the container's image and an endpoint's environment (the program is this
installation's), VPCs, keys, several variants, the size of instances, input channels, and IAM's permissions. moto has no
UpdateEndpoint; that is why this package exists.
"""

from __future__ import annotations

from animl_pipeline.dev.sagemaker_local.api_validation import IMAGE, ROLE
from animl_pipeline.dev.sagemaker_local.fault_injection import Faults
from animl_pipeline.dev.sagemaker_local.launch import Addresses, local_sagemaker

__all__ = ["IMAGE", "ROLE", "Addresses", "Faults", "local_sagemaker"]

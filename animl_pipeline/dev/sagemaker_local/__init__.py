"""SageMaker's own API, on this machine: the same boto3 calls as on AWS, the address being the only difference.

::

    python -m animl_pipeline.dev.sagemaker_local --state FOLDER [--port N] [--s3] [--faults JSON]

A request is checked with botocore's own description of the service (``contract``), carried out (``control``) on what is
kept in a folder (``ledger``), and an endpoint is the real endpoint program over the real unpacked package, in a process of
its own (``programs``); a training job is the pipeline image's own program in a folder that stands for /opt/ml (``jobs``,
``job_program``, ``container``). What goes wrong on AWS now and then goes wrong here on demand (``faults``). Not honoured here:
the container's image and, of endpoints, its environment (the program is this installation's), VPCs, keys, several variants, the
size of instances, input channels, and IAM's permissions. moto has no UpdateEndpoint: that is why this exists.
"""

from __future__ import annotations

from animl_pipeline.dev.sagemaker_local.api_validation import IMAGE, ROLE
from animl_pipeline.dev.sagemaker_local.fault_injection import Faults
from animl_pipeline.dev.sagemaker_local.launch import Addresses, local_sagemaker

__all__ = ["IMAGE", "ROLE", "Addresses", "Faults", "local_sagemaker"]

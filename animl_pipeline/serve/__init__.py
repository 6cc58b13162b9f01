"""The endpoint program: /ping and /invocations over a packaged classifier, as SageMaker starts it and Animl asks it.

::

    python -m animl_pipeline.serve serve --model FOLDER --port 8080

A request becomes a picture and a box (``question``), the classifier answers in a worker thread (``app``), every fault becomes
one status with one reason (``refusal``), every request one JSON line (``journal``). starlette, uvicorn, onnxruntime, pillow,
numpy, pydantic and python-multipart only: no torch, no Prefect, no boto3, no pandas.
"""

from __future__ import annotations

from animl_pipeline.serve.app import create_app

__all__ = ["create_app"]

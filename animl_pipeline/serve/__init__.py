"""The endpoint program: /ping and /invocations for a packaged classifier, as SageMaker starts it and Animl calls it.

::

    python -m animl_pipeline.serve serve --model FOLDER --port 8080

``app`` has the routes. A request is admitted or refused (``limits``) and parsed (``request_parsing``), a worker thread
classifies (``model_worker``), and every error becomes one status with one reason (``errors``). Only starlette, uvicorn,
onnxruntime, pillow, numpy, pydantic and python-multipart are imported: no torch, Prefect, boto3, pandas or pyarrow.

This package imports nothing by itself, because ``__main__`` changes a setting before the other imports to start faster.
"""

"""The endpoint program: /ping and /invocations over a packaged classifier, as SageMaker starts it and Animl asks it.

::

    python -m animl_pipeline.serve serve --model FOLDER --port 8080

A request is let in or refused (``admission``), becomes a picture and its boxes (``question``, ``multipart``), the classifier
answers in a worker thread (``program``), every fault becomes one status with one reason (``refusal``), every request one JSON
line (``journal``). ``app`` has the routes, ``contract`` the same as an OpenAPI document, ``machine`` what this machine has to
give. starlette, uvicorn, onnxruntime, pillow, numpy, pydantic and python-multipart only: no torch, no Prefect, no boto3.

The package itself imports nothing: a program that starts in half a second says first how it wants to import (``__main__``).
"""

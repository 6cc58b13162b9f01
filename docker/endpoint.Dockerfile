# The endpoint program, which SageMaker starts as `<image> serve`: the packages core, inference and serve, and the seven libraries
# that they import. The model is not in the image: SageMaker unpacks model.tar.gz into /opt/ml/model.
#
#   make images          builds it (and the pipeline's) with Docker, or with buildah where there is no Docker
#   docker run --read-only -p 8080:8080 -v /path/to/unpacked/package:/opt/ml/model:ro animl-endpoint
#
# Your own package index: docker build --secret id=pip,src=/path/to/pip.conf … (the image does not contain it).
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
RUN python3 -m venv /opt/endpoint
COPY constraints.txt /tmp/
# numpy's and onnxruntime's tests and tools are removed. The rest is compiled here, so that the program starts faster.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/endpoint/bin/pip install --no-cache-dir --no-compile --constraint /tmp/constraints.txt \
      onnxruntime pillow numpy pydantic starlette uvicorn python-multipart \
 && /opt/endpoint/bin/pip uninstall --yes pip setuptools \
 && cd /opt/endpoint/lib/python3*/site-packages \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && rm -rf onnxruntime/tools onnxruntime/transformers onnxruntime/quantization numpy/_core/include numpy/f2py numpy/_core/lib
COPY animl_pipeline/__init__.py /opt/program/animl_pipeline/
COPY animl_pipeline/core/ /opt/program/animl_pipeline/core/
COPY animl_pipeline/inference/ /opt/program/animl_pipeline/inference/
COPY animl_pipeline/serve/ /opt/program/animl_pipeline/serve/
RUN /opt/endpoint/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/endpoint/lib /opt/program

FROM ${BASE}
# Tells SageMaker that the program reads SAGEMAKER_BIND_TO_PORT.
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
COPY --from=build /opt/endpoint /opt/endpoint
COPY --from=build /opt/program /opt/program
# Nothing is written at run time, so the root file system may be read-only. Each request uses one thread. The malloc settings keep
# the process small: memory that one thread has freed serves the others, too, and most of it goes back to the system. Without them,
# 20,000 malformed requests leave the process 400 MB larger.
ENV PYTHONPATH=/opt/program PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 SM_MODEL_DIR=/opt/ml/model
ENV MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=134217728
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["/opt/endpoint/bin/python", "-m", "animl_pipeline.serve"]
CMD ["serve"]

# The endpoint program: what SageMaker starts as `<image> serve`. Only the modules that it imports, and the packages that these
# import. The model is not in the image: SageMaker unpacks model.tar.gz into /opt/ml/model.
#
#   make images          builds it (and the pipeline's) with Docker, or with buildah where there is no Docker
#   docker run --read-only -p 8080:8080 -v /path/to/unpacked/package:/opt/ml/model:ro animl-endpoint
#
# A package index of your own: docker build --secret id=pip,src=/path/to/pip.conf … (it is lent, and not part of the image).
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
RUN python3 -m venv /opt/endpoint
COPY constraints.txt /tmp/
# numpy's and onnxruntime's tests and tools are not needed to answer; what is left is compiled, so that no start has to do it.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/endpoint/bin/pip install --no-cache-dir --no-compile --constraint /tmp/constraints.txt \
      onnxruntime pillow numpy pydantic starlette uvicorn python-multipart \
 && /opt/endpoint/bin/pip uninstall --yes pip setuptools \
 && cd /opt/endpoint/lib/python3*/site-packages \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && rm -rf onnxruntime/tools onnxruntime/transformers onnxruntime/quantization numpy/_core/include numpy/f2py numpy/_core/lib
COPY animl_pipeline/__init__.py animl_pipeline/core/errors.py animl_pipeline/core/artifacts.py animl_pipeline/core/boxes.py animl_pipeline/core/model_card.py animl_pipeline/core/imaging.py animl_pipeline/inference/classifier.py /opt/program/animl_pipeline/
COPY animl_pipeline/serve/ /opt/program/animl_pipeline/serve/
RUN /opt/endpoint/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/endpoint/lib /opt/program

FROM ${BASE}
# SageMaker reads this label: the program honours SAGEMAKER_BIND_TO_PORT.
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
COPY --from=build /opt/endpoint /opt/endpoint
COPY --from=build /opt/program /opt/program
# Nothing is written at run time, so a read-only root file system works; one request needs one thread.
ENV PYTHONPATH=/opt/program PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 SM_MODEL_DIR=/opt/ml/model
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["/opt/endpoint/bin/python", "-m", "animl_pipeline.serve"]
CMD ["serve"]

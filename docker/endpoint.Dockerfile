# The endpoint program: what SageMaker starts as `<image> serve`. Only the modules that it imports, and the packages that these
# import. The model is not in the image: SageMaker unpacks model.tar.gz into /opt/ml/model.
#
#   docker build -f docker/endpoint.Dockerfile -t animl-endpoint .
#   docker run --read-only -p 8080:8080 -v /path/to/unpacked/package:/opt/ml/model:ro animl-endpoint serve
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
RUN python3 -m venv /opt/endpoint
RUN /opt/endpoint/bin/pip install --no-cache-dir --no-compile \
      "starlette>=0.46" "uvicorn>=0.34" "onnxruntime>=1.22" "pillow>=11" "numpy>=2" "pydantic>=2.11" "python-multipart>=0.0.20" \
 && /opt/endpoint/bin/pip uninstall --yes pip setuptools

FROM ${BASE}
# SageMaker reads this label: the program honours SAGEMAKER_BIND_TO_PORT.
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
COPY --from=build /opt/endpoint /opt/endpoint
COPY animl_pipeline/__init__.py animl_pipeline/errors.py animl_pipeline/records.py animl_pipeline/pixels.py animl_pipeline/classifier.py /opt/program/animl_pipeline/
COPY animl_pipeline/serve/ /opt/program/animl_pipeline/serve/
# Nothing is written at run time, so a read-only root file system works; one request needs one thread.
ENV PYTHONPATH=/opt/program PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 SM_MODEL_DIR=/opt/ml/model
RUN useradd --system --no-create-home --shell /usr/sbin/nologin endpoint
USER endpoint
EXPOSE 8080
ENTRYPOINT ["/opt/endpoint/bin/python", "-m", "animl_pipeline.serve"]
CMD ["serve"]

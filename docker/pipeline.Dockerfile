# The pipeline: what a Prefect worker runs. Large, since torch is in it; the endpoint has a small image of its own.
#
#   docker build -f docker/pipeline.Dockerfile -t animl-pipeline .
#   docker run -v animl:/data -e ANIML_STORE=/data/store -e ANIML_DATA=/data animl-pipeline retrain deployments/plans/sample.yaml
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
RUN python3 -m venv /opt/pipeline
WORKDIR /opt/program
# The packages first: a changed module does not install torch again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir animl_pipeline tasks flows && touch animl_pipeline/__init__.py tasks/__init__.py flows/__init__.py \
 && /opt/pipeline/bin/pip install --no-cache-dir --constraint constraints.txt .
COPY animl_pipeline/ animl_pipeline/
COPY tasks/ tasks/
COPY flows/ flows/
RUN /opt/pipeline/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM ${BASE}
# What OpenCV, which the detectors bring, loads at import.
RUN apt-get update && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/pipeline /opt/pipeline
RUN useradd --create-home pipeline && mkdir /data && chown pipeline /data
USER pipeline
WORKDIR /home/pipeline
COPY deployments/ deployments/
ENV PATH=/opt/pipeline/bin:$PATH PYTHONUNBUFFERED=1 ANIML_STORE=/data/store ANIML_DATA=/data ANIML_CACHE=/data/cache \
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=120
VOLUME /data
ENTRYPOINT ["animl-pipeline"]
CMD ["--help"]

# The pipeline: what a Prefect worker runs. It is large, because torch is in it; the endpoint has a small image of its own.
#
#   make images          builds it (and the endpoint's) with Docker, or with buildah where there is no Docker
#   docker run -v animl:/data animl-pipeline retrain sample
#
# A package index of your own: docker build --secret id=pip,src=/path/to/pip.conf … (it does not become part of the image).
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
RUN python3 -m venv /opt/pipeline
WORKDIR /opt/program
# The dependencies first, so that a changed module does not install torch again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    mkdir animl_pipeline tasks flows deployments && touch animl_pipeline/__init__.py tasks/__init__.py flows/__init__.py \
 && /opt/pipeline/bin/pip install --no-cache-dir --constraint constraints.txt ".[cognito]"
COPY animl_pipeline/ animl_pipeline/
COPY tasks/ tasks/
COPY flows/ flows/
COPY deployments/ deployments/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pipeline/bin/pip install --no-cache-dir --no-deps --force-reinstall .

FROM ${BASE}
# Libraries that OpenCV loads at import; the detectors need OpenCV.
RUN apt-get update && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
# The mount points belong to the user, so that a new volume does, too.
RUN useradd --create-home pipeline && mkdir /data /cache && chown pipeline /data /cache
COPY --from=build /opt/pipeline /opt/pipeline
# If a service mounts folders that only root may write: docker build --build-arg RUN_AS=root …
ARG RUN_AS=pipeline
USER ${RUN_AS}
WORKDIR /home/pipeline
ENV PATH=/opt/pipeline/bin:$PATH PYTHONUNBUFFERED=1 ANIML_STORE=/data/store ANIML_DATA=/data ANIML_CACHE=/data/cache \
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=120 DO_NOT_TRACK=1
VOLUME /data
ENTRYPOINT ["animl-pipeline"]
CMD ["--help"]

"""The program of a SageMaker training job: read the job's spec, train, and write the result or the reason of the failure.

SageMaker starts ``python -m animl_pipeline.steps.training`` in the pipeline's image; ``integrations.sagemaker_training`` asks for it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PipelineError, TrainingError
from animl_pipeline.integrations.sagemaker_training.job import TEMPORARY_FAILURE
from animl_pipeline.integrations.sagemaker_training.job_spec import JobSpec, key_prefix
from animl_pipeline.steps.training.step import CHECKPOINT_FILE, train_classifier
from animl_pipeline.storage.store import StepOutput, Store, Workspace, open_store

log = logging.getLogger(__name__)

MAX_REASON = 1024
"""SageMaker shows this many characters of a failure reason."""


def run_job(base: Path) -> int:
    """Train as the job's spec says. Returns the exit status.

    Args:
        base: SageMaker's folder, /opt/ml: input/config/hyperparameters.json, checkpoints/, output/failure.
    """
    try:
        parameters = json.loads((base / "input/config/hyperparameters.json").read_bytes())
        settings = load_settings().model_copy(update={"store": parameters["store"], "cache": base / "work", "data": base / "work"})
        artifact = _train(parameters["spec"], settings, base / "checkpoints")
        folder = parameters["spec"].rpartition("/")[0]
        open_store(settings).object_store.put(f"{folder}/result.json", artifact.model_dump_json().encode())
    except PipelineError as e:
        _write_failure(base, f"{TEMPORARY_FAILURE if e.retryable else ''}{e}")
        return e.exit_code
    except Exception as e:
        log.exception("training failed")
        _write_failure(base, f"unexpected {type(e).__name__}: {e}")
        return 70
    return 0


def main() -> int:
    """Run the job in SageMaker's folder."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    # The first process of a container ignores SIGTERM without a handler. Checkpoints are complete at any moment.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    return run_job(Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")))


def _train(spec_name: str, settings: Settings, checkpoints: Path) -> Artifact:
    store = open_store(settings)
    spec = _read_spec(spec_name, store)

    def build_with(space: Workspace, build: Callable[[Workspace], StepOutput]) -> StepOutput:
        if key_prefix(space) != spec.key:
            message = (
                f"the flow expects the model {spec.key}, this image makes {key_prefix(space)}: it has another version than the flow (or a model"
                " was released in the meantime); build the pipeline's image from the flow's checkout, push it, and run again"
            )
            raise TrainingError(message, code="other_version")
        checkpoints.mkdir(parents=True, exist_ok=True)
        link = space.scratch / CHECKPOINT_FILE  # SageMaker copies this folder to S3; decoded crops stay on the instance
        link.unlink(missing_ok=True)
        link.symlink_to(checkpoints / CHECKPOINT_FILE)
        return build(space)

    return train_classifier(spec.crops, spec.splits, spec.plan, store, settings, embeddings=spec.embeddings, build_with=build_with)


def _read_spec(name: str, store: Store) -> JobSpec:
    data = store.object_store.read(name)
    if data is None:
        message = f"the store at {store.object_store} has no {name}; start jobs with `animl-pipeline retrain`, not by hand"
        raise TrainingError(message, code="no_job_spec")
    try:
        return JobSpec.model_validate_json(data)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        message = f"this image cannot read the job's spec ({problem}); build the pipeline's image from the flow's checkout and push it"
        raise TrainingError(message, code="other_version") from e


def _write_failure(base: Path, reason: str) -> None:
    log.error("%s", reason)
    (base / "output").mkdir(parents=True, exist_ok=True)
    (base / "output/failure").write_text(reason[:MAX_REASON], encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

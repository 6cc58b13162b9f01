"""What runs in the job's container: read the order, train, leave the model in the store and the reason of a failure for SageMaker."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.errors import PipelineError, TrainingError
from animl_pipeline.core.records import Artifact
from animl_pipeline.integrations.sagemaker_training.job_spec import Order, key_of
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace, open_store

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.ckpt"
LONGEST_REASON = 1024


def run_job(base: Path) -> int:
    """Train what the order says; the exit status comes back.

    Args:
        base: SageMaker's folder, /opt/ml: input/config/hyperparameters.json, checkpoints/, output/failure.
    """
    try:
        given = json.loads((base / "input/config/hyperparameters.json").read_bytes())
        settings = load_settings().model_copy(update={"store": given["store"], "cache": base / "work", "data": base / "work"})
        made = _trained(given["order"], settings, base / "checkpoints")
        open_store(settings).object_store.put(f"{given['order'].rpartition('/')[0]}/made.json", made.model_dump_json().encode())
    except PipelineError as e:
        _leave_reason(base, str(e))
        return e.exit_code
    except Exception as e:
        log.exception("training failed")
        _leave_reason(base, f"unexpected {type(e).__name__}: {e}")
        return 70
    return 0


def _trained(location: str, settings: Settings, checkpoints: Path) -> Artifact:
    from animl_pipeline.steps.training import train_classifier

    store = open_store(settings)
    order = _read_order(location, store)

    def by(space: Workspace, train: Callable[[Workspace], StepOutput]) -> StepOutput:
        if key_of(space) != order.key:
            raise TrainingError(
                f"the flow asked for the model {order.key}, this image would make {key_of(space)}: its code is another version than the flow's"
                " (or a model was released meanwhile); build the pipeline's image from the flow's checkout, push it, and run again"
            )
        _link_checkpoint(space.scratch, checkpoints)
        return train(space)

    return train_classifier(order.crops, order.splits, order.plan, store, settings, by=by)


def _read_order(location: str, store: Store) -> Order:
    data = store.object_store.read(location)
    if data is None:
        raise TrainingError(f"the store at {store.object_store} holds no order {location}; a job is started by `animl-pipeline retrain`, not by hand")
    try:
        return Order.model_validate_json(data)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise TrainingError(f"this image does not understand the order ({said}); build and push it from the flow's checkout") from e


def _link_checkpoint(scratch: Path, checkpoints: Path) -> None:
    """Let the training write its checkpoint where SageMaker keeps it beyond the machine's end; decoded crops stay on the machine."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    link = scratch / CHECKPOINT
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoints / CHECKPOINT)


def _leave_reason(base: Path, reason: str) -> None:
    log.error("%s", reason)
    (base / "output").mkdir(parents=True, exist_ok=True)
    (base / "output/failure").write_text(reason[:LONGEST_REASON], encoding="utf-8")

"""The champion: the package released last for a model, with which a new model is compared, and the training that made it."""

from __future__ import annotations

import logging
from typing import NamedTuple

from pydantic import ValidationError

from animl_pipeline.config import Plan
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PipelineError
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.deploy.release_history import ReleaseRecord, records_of_model
from animl_pipeline.inference.classifier import CARD_FILE, MODEL_FILE, read_card
from animl_pipeline.storage.store import Manifest, Store

log = logging.getLogger(__name__)


class Champion(NamedTuple):
    """The released model with which a new one is compared.

    Attributes:
        package: its package; None if there is none, or if it is not known.
        problem: why it is not certain which model is released, in words; "" if it is certain.
    """

    package: Artifact | None
    problem: str = ""


def find_champion(plan: Plan, challenger: ModelCard, store: Store) -> Champion:
    """The package of the plan's model that was released last, whatever its endpoint is called, or that the plan's endpoint serves.

    If the challenger itself was released last, the champion is the package released before the challenger's first release, with
    which it was compared then. That nothing was released yet counts only if all release records can be read, or if
    ``gate.first_model`` of the plan names the model.
    """
    served, problem = _read_served(plan, store)
    own = [i for i, s in enumerate(served) if _is_model(s, challenger, store)]
    if own and own[-1] == len(served) - 1:
        served = served[: own[0]]
    package = served[-1].package if served else None
    if served and package is None and not problem:
        problem = f"{served[-1].endpoint} serves {served[-1].version}, which was not released from this store"
    if package is None and plan.gate.first_model == plan.model:
        problem = ""
    if problem:
        log.warning("it is not certain which model of %s is released: %s", plan.model, problem)
    return Champion(package, problem)


def find_champion_for_step(plan: Plan, model: Artifact, store: Store) -> Champion:
    """As :func:`find_champion`, for the artifact of the new model's training or calibration."""
    return find_champion(plan, read_card(store.path(model, CARD_FILE)), store)


def released_training(plan: Plan, store: Store) -> Manifest | None:
    """The manifest of the training whose model was released last for the plan; None if it is not in this store."""
    served, _ = _read_served(plan, store)
    if not served or served[-1].package is None:
        return None
    card = _read_card(served[-1], store)
    return None if card is None else find_training(MODEL_FILE, card.onnx_sha256, store)


def find_training(file: str, sha256: str, store: Store) -> Manifest | None:
    """The manifest of the training in the store that made a file with this name and sha256, or None."""
    for name in store.object_store.names("steps/training/"):
        if name.endswith("/manifest.json"):
            try:
                manifest = Manifest.model_validate_json(store.object_store.read(name) or b"")
            except ValidationError:
                continue  # written by another version
            if file in manifest.files and manifest.files[file].sha256 == sha256:
                return manifest
    return None


def _read_served(plan: Plan, store: Store) -> tuple[list[ReleaseRecord], str]:
    """The successful releases and rollbacks of a plan's model and endpoints, the oldest first; and why there may be others."""
    found = records_of_model(plan.model, store, [e.base_name for e in plan.release.endpoints(plan.model)])
    return [record for record in found.records if record.state == "done"], found.problem


def _is_model(served: ReleaseRecord, challenger: ModelCard, store: Store) -> bool:
    """Whether the released package gives the challenger's labels: the same network with the same calibration, thresholds and parents.

    One with other thresholds only is another model to the gate: Animl would show other labels.
    """
    if served.package is None or served.version != challenger.version:
        return False
    card = _read_card(served, store)
    return card is not None and _what_answers(card) == _what_answers(challenger)


def _what_answers(card: ModelCard) -> tuple[object, ...]:
    """What decides which labels Animl shows."""
    return card.onnx_sha256, card.temperature, card.thresholds, card.parents


def _read_card(served: ReleaseRecord, store: Store) -> ModelCard | None:
    if served.package is None:
        return None
    try:
        return read_card(store.path(served.package, CARD_FILE))
    except PipelineError as e:
        log.warning("the package of the released version %s cannot be read: %s", served.version, e)
        return None

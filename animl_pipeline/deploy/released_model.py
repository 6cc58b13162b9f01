"""The champion: the package released last, with which a new model is compared, and the training that made it."""

from __future__ import annotations

import logging

from pydantic import ValidationError

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PipelineError
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.deploy.release_history import ReleaseRecord, read_records
from animl_pipeline.inference.classifier import CARD_FILE, MODEL_FILE, read_card
from animl_pipeline.storage.store import Manifest, Store

log = logging.getLogger(__name__)


def find_champion(endpoint: str, challenger: ModelCard, store: Store) -> Artifact | None:
    """The package that the endpoint serves according to its records; None if there is none in this store.

    If the challenger itself is served, the champion is the package served before the challenger's first release, with
    which it was compared then.

    Args:
        endpoint: the endpoint's base name.
        challenger: the model card of the new model.
        store: holds the records and the packages.
    """
    served = _read_served(endpoint, store)
    own = [i for i, s in enumerate(served) if _is_model(s, challenger, store)]
    if own and own[-1] == len(served) - 1:
        served = served[: own[0]]
    if not served:
        return None
    if served[-1].package is None:
        log.warning("%s serves %s, which was not released from this store, so there is no champion to compare with", endpoint, served[-1].version)
    return served[-1].package


def find_champion_for_step(endpoint: str, model: Artifact, store: Store) -> Artifact | None:
    """As :func:`find_champion`, for the artifact of the new model's training or calibration."""
    return find_champion(endpoint, read_card(store.path(model, CARD_FILE)), store)


def released_training(endpoint: str, store: Store) -> Manifest | None:
    """The manifest of the training whose model the endpoint serves according to its records; None if it is not in this store."""
    served = _read_served(endpoint, store)
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


def _read_served(endpoint: str, store: Store) -> list[ReleaseRecord]:
    """The successful releases and rollbacks of an endpoint, the oldest first."""
    return [record for record in read_records(endpoint, store) if record.state == "done"]


def _is_model(served: ReleaseRecord, challenger: ModelCard, store: Store) -> bool:
    """Whether the released package contains the challenger's network."""
    if served.package is None or served.version != challenger.version:
        return False
    card = _read_card(served, store)
    return card is not None and card.onnx_sha256 == challenger.onnx_sha256


def _read_card(served: ReleaseRecord, store: Store) -> ModelCard | None:
    if served.package is None:
        return None
    try:
        return read_card(store.path(served.package, CARD_FILE))
    except PipelineError as e:
        log.warning("the package of the released version %s cannot be read: %s", served.version, e)
        return None

"""The champion: the package that was released last, which a new model is compared with.

Releases leave a record each in the store, ``releases/<endpoint>/<time>.json``; only what says which package they put in service
is read here, so that records of other versions still count.
"""

from __future__ import annotations

import json
import logging
from typing import NamedTuple

from pydantic import ValidationError

from animl_pipeline.core.errors import PipelineError
from animl_pipeline.core.records import Artifact, ModelCard
from animl_pipeline.inference.classifier import CARD_FILE, MODEL_FILE, read_card
from animl_pipeline.storage.step_cache import Manifest, Store

log = logging.getLogger(__name__)


class _Served(NamedTuple):
    """A release or rollback that held: its package, None where it was not released from this store."""

    version: str
    package: Artifact | None


def champion_of(endpoint: str, challenger: ModelCard, store: Store) -> Artifact | None:
    """The package that the endpoint serves by its records, or None where nothing was released, or nothing that this store holds.

    Where that is the challenger itself, the one before its first release comes back: what it was compared with then.

    Args:
        endpoint: the endpoint's name for good.
        challenger: the card of the model that is to be judged.
        store: holds the records and the packages.
    """
    served = [s for s in _history(endpoint, store) if s is not None]
    own = [i for i, s in enumerate(served) if _is(s, challenger, store)]
    if own and own[-1] == len(served) - 1:
        served = served[: own[0]]
    if not served:
        return None
    if served[-1].package is None:
        log.warning("%s serves %s, which was not released from this store; there is no champion to compare with", endpoint, served[-1].version)
    return served[-1].package


def released_model(endpoint: str, store: Store) -> Manifest | None:
    """The step 'model' that trained what the endpoint serves by its records; None where nothing was released, or nothing that this store holds."""
    served = [s for s in _history(endpoint, store) if s is not None]
    if not served or served[-1].package is None:
        return None
    try:
        card = read_card(store.path(served[-1].package, CARD_FILE))
    except PipelineError as e:
        log.warning("the package of the released version %s cannot be read: %s", served[-1].version, e)
        return None
    return model_with(MODEL_FILE, card.onnx_sha256, store)


def model_with(file: str, sha256: str, store: Store) -> Manifest | None:
    """The step 'model' in the store whose file of this name has this content, or None."""
    for name in store.object_store.names("steps/training/"):
        if name.endswith("/manifest.json"):
            try:
                manifest = Manifest.model_validate_json(store.object_store.read(name) or b"")
            except ValidationError:
                continue  # of another version: nothing to go on from
            if file in manifest.files and manifest.files[file].sha256 == sha256:
                return manifest
    return None


def _history(endpoint: str, store: Store) -> list[_Served | None]:
    return [_read(name, store) for name in sorted(store.object_store.names(f"releases/{endpoint}/"))]


def _read(name: str, store: Store) -> _Served | None:
    """A record; None where it is not of a change that held."""
    try:
        record = json.loads(store.object_store.read(name) or b"")
        if record["state"] != "done":
            return None
        package = record.get("package")
        return _Served(str(record["version"]), Artifact.model_validate(package) if package else None)
    except (ValueError, KeyError, TypeError, ValidationError):
        log.warning("%s in the store is not a release record that can be read; left out", name)
        return None


def _is(served: _Served, challenger: ModelCard, store: Store) -> bool:
    """Whether a release was of this very network, which gives a version its name."""
    if served.package is None or served.version != challenger.version:
        return False
    try:
        return read_card(store.path(served.package, CARD_FILE)).onnx_sha256 == challenger.onnx_sha256
    except PipelineError as e:
        log.warning("the package of the released version %s cannot be read: %s", served.version, e)
        return False

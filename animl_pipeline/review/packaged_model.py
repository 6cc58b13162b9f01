"""A packaged model: its classifier, and the animals that it learnt from."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from animl_pipeline.config import Plan
from animl_pipeline.deploy.trained_versions import read_report
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.inference.embedding_reference import EmbeddingReference
from animl_pipeline.storage.store import Store


class PackagedModel(NamedTuple):
    """``reference`` is None if the package was made by an earlier version, or has no embeddings."""

    classifier: Classifier
    reference: EmbeddingReference | None


def load_packaged_model(plan: Plan, version: str, store: Store) -> PackagedModel:
    """A version of the plan's model; the latest that is no trial if ``version`` is empty.

    Raises:
        EvaluationError: the plan has no package yet, or not of this version.
    """
    package = read_report(plan.model, version, store).package
    with tempfile.TemporaryDirectory() as folder, tarfile.open(store.path(package, "model.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
        classifier = Classifier.load(Path(folder))
        return PackagedModel(classifier, EmbeddingReference.load(Path(folder), classifier.card))

"""The packaged classifier: model.onnx and card.json in a folder, run by ONNX Runtime.

Evaluation, reference predictions and the endpoint all use this class, so what is scored is what ships. It needs onnxruntime, numpy and
Pillow only.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from animl_pipeline.core.box_type import Box
from animl_pipeline.core.errors import PackageError
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.model_input import extract_crop, normalise

if TYPE_CHECKING:
    import onnxruntime as ort

MODEL_FILE = "model.onnx"
CARD_FILE = "card.json"
LOGITS, EMBEDDING = "logits", "embedding"
"""The model's outputs. The endpoint asks for the first one only."""


class Classifier:
    """An ONNX model and its card.

    The model takes float32 [n, 3, size, size] as ``input`` and gives logits float32 [n, classes] as ``logits``. Most models also
    give the features before the last layer, float32 [n, width], as ``embedding``; those of earlier versions do not.
    """

    def __init__(self, card: ModelCard, session: ort.InferenceSession) -> None:
        self.card = card
        self._session = session

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Classifier:
        """Load the classifier from a folder.

        ``folder``: contains model.onnx and card.json.

        Raises:
            PackageError: a file is missing, the card does not fit, or the sha256 of the model is not the one on the card.
        """
        card = read_card(folder / CARD_FILE)
        model = folder / MODEL_FILE
        try:
            with model.open("rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
        except OSError as e:
            raise PackageError(f"expected {MODEL_FILE} in {folder}, found none; unpack a model.tar.gz there", code="file_missing") from e
        if found != card.onnx_sha256:
            raise PackageError(f"{model} has another sha256 than {CARD_FILE} says; unpack the package again", code="wrong_model")
        return cls(card, _open_session(model, threads))

    def probabilities(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Softmax probabilities [n, classes] of normalised crops [n, 3, size, size], at the card's temperature."""
        (logits,) = self._session.run([LOGITS], {"input": inputs})
        return self._softmax(logits)

    def has_embeddings(self) -> bool:
        """Whether the model gives embeddings."""
        return any(output.name == EMBEDDING for output in self._session.get_outputs())

    def probabilities_and_embeddings(self, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As :meth:`probabilities`, and the features before the last layer, float32 [n, width].

        Raises:
            PackageError: ``no_embeddings``: the package was made by an earlier version.
        """
        if not self.has_embeddings():
            message = "the package has no embedding output; it was made by an earlier version: run `animl-pipeline retrain PLAN` once"
            raise PackageError(message, code="no_embeddings")
        logits, embeddings = self._session.run([LOGITS, EMBEDDING], {"input": inputs})
        return self._softmax(logits), np.asarray(embeddings, np.float32)

    def _softmax(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return softmax(np.asarray(logits, np.float32) / np.float32(self.card.temperature))

    def classify(self, image: Image.Image, box: Box) -> dict[str, float]:
        """Class id → probability, for one box of one image; then parent → sum of its children where none reaches its threshold, else 0.

        A class for false boxes or a hidden one for other animals is not among them; the others then sum to less than 1.

        Boxes are classified one at a time, because in a batch the last bits of a result depend on the other crops.
        """
        return self.classify_crop(extract_crop(image, box, self.card.model_input))

    def classify_crop(self, crop: Image.Image) -> dict[str, float]:
        """The same for one crop as :func:`extract_crop` returns it."""
        row, hidden = self.probabilities(normalise([crop], self.card.model_input))[0], self.card.hidden_ids()
        found = {c: float(p) for c, p in zip(self.card.class_ids(), row, strict=True) if c not in hidden}
        return found | answer_parents(found, self.card) if self.card.parents else found


def load_package(path: Path) -> Classifier:
    """The classifier of a package: a model.tar.gz, or the folder that it was unpacked to. No file leaves the folder that it is unpacked to.

    Raises:
        PackageError: there is no package, or as :meth:`Classifier.load`.
    """
    if path.is_dir():
        return Classifier.load(path)
    try:
        with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
            return Classifier.load(Path(folder))
    except (OSError, tarfile.TarError) as e:
        raise PackageError(f"expected a model.tar.gz or a folder at {path}, found none ({e})", code="file_missing") from e


def read_card(path: Path) -> ModelCard:
    """Read a model card.

    Raises:
        PackageError: the file is missing or is not a model card of this version.
    """
    try:
        return ModelCard.model_validate_json(path.read_bytes())
    except OSError as e:
        raise PackageError(f"expected a model card at {path}, found none; unpack a model.tar.gz there", code="file_missing") from e
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise PackageError(f"{path} is not a model card of this version: {field}: {first['msg']}", code="wrong_card", field=field) from e


def answer_parents(probabilities: Mapping[str, float], card: ModelCard) -> dict[str, float]:
    """Parent → what it answers beside these probabilities of the classes."""
    row = np.array([[probabilities[c] for c in card.animal_ids()]])
    found = parent_probabilities(row, card.animal_ids(), card.thresholds, card.parents)[0]
    return dict(zip(card.parents, found.tolist(), strict=True))


def parent_probabilities(
    probabilities: NDArray[np.float64], ids: Sequence[str], thresholds: Mapping[str, float], parents: Mapping[str, Sequence[str]]
) -> NDArray[np.float64]:
    """What each parent answers: the sum of its children's probabilities, but 0 where one of them reaches its own threshold.

    Args:
        probabilities: float64 [n, classes].
        ids: the classes.
        thresholds: class → lowest probability at which it is predicted; a class without one is never predicted.
        parents: parent → its children.

    Returns:
        float64 [n, parents], from 0 to 1.
    """
    answers = np.zeros((len(probabilities), len(parents)))
    for column, children in enumerate(parents.values()):
        own = probabilities[:, [list(ids).index(c) for c in children]]
        predicted = (own >= np.array([thresholds.get(c, np.inf) for c in children])).any(axis=1)
        answers[:, column] = np.where(predicted, 0.0, np.minimum(own.sum(axis=1), 1.0))
    return answers


def labelled_classes(
    probabilities: NDArray[np.float64], ids: Sequence[str], thresholds: Mapping[str, float], parents: Mapping[str, Sequence[str]]
) -> NDArray[np.bool_]:
    """Which labels Animl shows: bool [n, classes + parents]. Arguments as for :func:`parent_probabilities`; parents have thresholds, too."""
    answers = np.concatenate([probabilities, parent_probabilities(probabilities, ids, thresholds, parents)], axis=1)
    limits = np.array([thresholds.get(c, np.inf) for c in (*ids, *parents)])
    limits[len(ids) :] = np.maximum(limits[len(ids) :], np.nextafter(0, 1))  # a parent that answers 0 is no label
    return np.asarray(answers >= limits)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax of each row, without overflow on large logits."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)


def _open_session(model: Path, threads: int) -> ort.InferenceSession:
    # Since version 1.29 onnxruntime sends telemetry from the moment of its import, unless this variable is set.
    os.putenv("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's errors have no common base class below Exception
        raise PackageError(f"onnxruntime cannot load {MODEL_FILE}: {str(e).splitlines()[0]}", code="wrong_model") from e

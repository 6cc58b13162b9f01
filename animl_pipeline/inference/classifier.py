"""A packaged model that answers: model.onnx and card.json in a folder. What is scored is what ships.

The evaluation, the package's golden answers and the endpoint all ask this class. onnxruntime, numpy and pillow only.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from animl_pipeline.core.errors import PackageError
from animl_pipeline.core.imaging import extract_crop, normalise
from animl_pipeline.core.records import Box, ModelCard

if TYPE_CHECKING:
    import onnxruntime as ort

MODEL_FILE = "model.onnx"
CARD_FILE = "card.json"


class Classifier:
    """An ONNX model and its card.

    The model takes float32 [n, 3, size, size] as ``input`` and gives logits float32 [n, classes] as ``logits``.
    """

    def __init__(self, card: ModelCard, session: ort.InferenceSession) -> None:
        self.card = card
        self._session = session

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Classifier:
        """The classifier in a folder.

        Args:
            folder: holds model.onnx and card.json.
            threads: of one forward pass.

        Raises:
            PackageError: a file is missing, the card does not fit, or the model is not the one that the card names.
        """
        card = read_card(folder / CARD_FILE)
        model = folder / MODEL_FILE
        try:
            with model.open("rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
        except OSError as e:
            raise PackageError(f"expected {MODEL_FILE} in {folder}, found none; unpack a model.tar.gz there") from e
        if found != card.onnx_sha256:
            raise PackageError(f"{model} is not the model that {CARD_FILE} names (sha256 differs); unpack the package again")
        return cls(card, _session(model, threads))

    def probabilities(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Softmax probabilities [n, classes] of normalised views [n, 3, size, size], by the card's temperature."""
        (logits,) = self._session.run(["logits"], {"input": inputs})
        return softmax(np.asarray(logits, np.float32) / np.float32(self.card.temperature))

    def classify(self, image: Image.Image, box: Box) -> dict[str, float]:
        """Each class id's probability for one box of one picture.

        Boxes of one picture are asked about one by one: in a batch the last bits of an answer depend on its neighbours.
        """
        model_input = extract_crop(image, box, self.card.model_input)
        row = self.probabilities(normalise([model_input], self.card.model_input))[0]
        return {c: float(p) for c, p in zip(self.card.class_ids(), row, strict=True)}


def read_card(path: Path) -> ModelCard:
    """A model card.

    Raises:
        PackageError: it is not there or does not fit.
    """
    try:
        return ModelCard.model_validate_json(path.read_bytes())
    except OSError as e:
        raise PackageError(f"expected a model card at {path}, found none; unpack a model.tar.gz there") from e
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        raise PackageError(f"{path} is not a model card of this version: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row-wise softmax, safe for large values."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)


def _session(model: Path, threads: int) -> ort.InferenceSession:
    # From 1.29 on onnxruntime tells its makers what it runs, from its import on, over a thread and a file of its own, unless told not to.
    os.putenv("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's own errors share no base below Exception
        raise PackageError(f"onnxruntime cannot load {MODEL_FILE}: {str(e).splitlines()[0]}") from e

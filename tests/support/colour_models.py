"""Small synthetic data for calibration and evaluation: crops of one colour each, and real ONNX models that classify by mean colour."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import Plan, check_plan
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.model_card import Agreement, ClassInfo, ModelCard, ModelInput
from animl_pipeline.core.model_input import extract_crop
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.calibration import calibrate_classifier
from animl_pipeline.steps.evaluation import evaluate_classifier
from animl_pipeline.steps.package import package_model
from animl_pipeline.storage.store import BlobColumn, StepOutput, Store, Workspace
from tests.conftest import colour_model, jpeg
from tests.support.table_rows import fill_rows

BOX = Box(ymin=0.25, xmin=0.25, ymax=0.75, xmax=0.75)
CLASSES = ("red", "green", "blue")
Colour = tuple[int, int, int]
RED, GREEN, REDDISH_GREEN, GREENISH_BLUE, REDDISH_BLUE = (250, 5, 5), (5, 250, 5), (150, 200, 5), (5, 100, 250), (130, 5, 250)


class CropSpec(NamedTuple):
    """A crop to make: its class, the colour (which decides what the model predicts), its location and its split."""

    class_id: str
    colour: Colour
    location: str = "island/a"
    split: str = "test"
    padding: int = 0


NINE = (
    [CropSpec("red", RED)] * 3
    + [CropSpec("red", REDDISH_GREEN)]
    + [CropSpec("green", GREEN, "island/b")] * 2
    + [CropSpec("green", GREENISH_BLUE, "island/b")]
    + [CropSpec("blue", REDDISH_BLUE, "island/c")] * 2
)
"""Nine test crops. The model predicts green for one red crop, and blue for one green crop."""


class DataSteps(NamedTuple):
    """The artifacts of the steps before the evaluation."""

    model: Artifact
    crops: Artifact
    splits: Artifact


def plan_of(classes: Sequence[str] = CLASSES, reference: int = 4, size: int = 32) -> Plan:
    return check_plan({
        "model": "colours",
        "sources": [{"name": "island", "export": "e.json", "images": "images"}],
        "labels": {"classes": {c: [c] for c in classes}},
        "model_input": {"size": size, "mean": [0.5] * 3, "std": [0.5] * 3},
        "package": {"reference_predictions": reference},
    })  # fmt: skip


def crop_rows(specs: Sequence[CropSpec], store: Store, plan: Plan, image_id: str = "image-{}") -> pd.DataFrame:
    """Rows of the crops table with their split. Images and crops are put into the store. ``image_id`` gets the number of the crop."""
    rows = []
    for i, d in enumerate(specs):
        image = jpeg(64, 64, d.colour, seed=i) + bytes(d.padding)
        buffer = io.BytesIO()
        extract_crop(open_image(image), BOX, plan.model_input).save(buffer, "PNG")
        png = buffer.getvalue()
        rows.append({
            "crop_id": hashlib.sha256(f"crop {i}".encode()).hexdigest()[:32], "source": "island", "image_id": image_id.format(i),
            "annotation_id": f"annotation-{i}",
            "class_id": d.class_id, "location": d.location, **BOX.model_dump(), "origin": "annotation", "confidence": 1.0,
            "image": store.put_blob(image), "image_bytes": len(image), "blob": store.put_blob(png), "bytes": len(png), "split": d.split,
        })  # fmt: skip
    return pd.DataFrame(rows)


def make_data_steps(
    store: Store, specs: Sequence[CropSpec], plan: Plan, classes: Sequence[str] = CLASSES, *, blob: bytes | None = None, image_id: str = "image-{}"
) -> DataSteps:
    """The artifacts of the steps training, crops and splits. ``blob`` replaces the bytes of the first crop."""
    rows = crop_rows(specs, store, plan, image_id)
    if blob is not None:
        rows.loc[0, ["blob", "bytes"]] = [store.put_blob(blob), len(blob)]

    def model(space: Workspace) -> StepOutput:
        colour_model(space.out, tuple(classes))
        return StepOutput(Counts(kept=1))

    def crops(space: Workspace) -> StepOutput:
        write_table(space.out, CROPS, fill_rows(CROPS, rows.to_dict("records")))
        return StepOutput(Counts(kept=len(rows)), blobs=(BlobColumn(file=CROPS.file),))

    def splits(space: Workspace) -> StepOutput:
        write_table(space.out, SPLITS, rows[SPLITS.names()])
        return StepOutput(Counts(kept=len(rows)))

    def digest(table: pd.DataFrame) -> dict[str, str]:
        return {"rows": hashlib.sha256(table.to_json().encode()).hexdigest()}

    return DataSteps(
        store.make(Step("training", version=1), config={"classes": list(classes)}, build=model),
        store.make(Step("crops", version=1), digests=digest(rows), build=crops),
        store.make(Step("splits", version=1), digests=digest(rows), build=splits),
    )


def evaluate(store: Store, specs: Sequence[CropSpec] = NINE, plan: Plan | None = None, step_counts: Sequence[tuple[str, Counts]] = ()) -> Artifact:
    """The artifact of the step evaluation for these crops and a model that classifies by colour."""
    plan = plan or plan_of()
    return evaluate_classifier(*make_data_steps(store, specs, plan, tuple(plan.labels.classes)), plan, store, step_counts=step_counts)


def read_report(evaluation: Artifact, store: Store) -> str:
    """The report's HTML."""
    return store.path(evaluation, "report.html").read_text(encoding="utf-8")


class ReportPage(HTMLParser):
    """The visible text of a page without its contents list, its tags and ids, and every URL in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self._hidden = 0
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self._hidden += tag in {"style", "nav"}
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data", "action"}]

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in {"style", "nav"}

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


# -- an island with an invasive species, and linear models that fit it well or badly ---------------------------------------------

ISLAND = {"rat": (200, 60, 60), "fox": (60, 200, 60), "bird": (60, 60, 200)}
"""Three classes and their colours. The rat is invasive."""


def island_plan(**changes: Any) -> Plan:
    """A plan whose gate is passed by a good model of the island."""
    return check_plan({
        "model": "isle", "description": "An island of colours.",
        "sources": [{"name": "isle", "export": "e.json", "images": "images"}],
        "labels": {"classes": {c: [c] for c in ISLAND}},
        "model_input": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
        "thresholds": {"invasive": ["rat"]},
        "gate": {"min_examples": 6, "min_locations": 2},
        "package": {"reference_predictions": 3},
        **changes,
    })  # fmt: skip


def island_crops(seed: int = 0, each: int = 4, noise: float = 45.0) -> list[CropSpec]:
    """Crops of all classes at six train, four val and four test locations. Colours vary, so a few crops are difficult."""
    rng = np.random.default_rng(seed)
    splits = ["train"] * 6 + ["val"] * 4 + ["test"] * 4
    specs = []
    for number, split in enumerate(splits):
        light = rng.normal(0, noise / 3, 3)
        for class_id, colour in ISLAND.items():
            for _ in range(each):
                varied = (np.asarray(colour) + light + rng.normal(0, noise, 3)).clip(0, 255).astype(int)
                specs.append(CropSpec(class_id, (int(varied[0]), int(varied[1]), int(varied[2])), f"isle/p{number}", split))
    return specs


def fit_linear(specs: Sequence[CropSpec], *, shuffled: str | None = None, seed: int = 1) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [3, classes] and bias [classes] of a softmax on mean colours, fitted to the train crops.

    ``shuffled`` names a class whose labels are shuffled first, for a bad model.
    """
    from sklearn.linear_model import LogisticRegression

    train = [d for d in specs if d.split == "train"]
    labels = np.array([d.class_id for d in train])
    if shuffled:
        rng = np.random.default_rng(seed)
        labels = np.where(labels == shuffled, rng.choice([c for c in ISLAND if c != shuffled] * 4 + [shuffled], len(labels)), labels)
    colours = np.array([d.colour for d in train], np.float64) / 127.5 - 1
    fitted = LogisticRegression(C=10.0, max_iter=1000).fit(colours, labels)
    order = [list(fitted.classes_).index(c) for c in ISLAND]
    return fitted.coef_.T[:, order].astype(np.float32), fitted.intercept_[order].astype(np.float32)


def write_linear_model(
    folder: Path, classes: Sequence[str], weights: NDArray[np.float32], bias: NDArray[np.float32], model_input: ModelInput
) -> None:
    """Write model.onnx, whose embedding is the mean colour and whose logits are mean colours x weights + bias, and its card."""
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["embedding"]),
        onnx.helper.make_node("Gemm", ["embedding", "weights", "bias"], ["logits"]),
    ]
    ends = {"input": ["n", 3, model_input.size, model_input.size], "logits": ["n", len(classes)], "embedding": ["n", 3]}
    first, *others = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in ends.items())
    known = [onnx.numpy_helper.from_array(v, n) for n, v in (("weights", weights), ("bias", bias))]
    graph = onnx.helper.make_graph(nodes, "linear", [first], others, known)
    data = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    card = ModelCard(
        model="isle", version=sha256[:12], architecture="linear", classes=tuple(ClassInfo(id=c, name=c) for c in classes),
        model_input=model_input, onnx_sha256=sha256, agreement=Agreement(max_abs=0, crops=1),
        data_digest="0" * 64, weights="none", plan={},
    )  # fmt: skip
    (folder / "card.json").write_text(card.model_dump_json(), encoding="utf-8")


def make_linear_model(
    store: Store,
    parameters: tuple[NDArray[np.float32], NDArray[np.float32]],
    classes: Sequence[str] = tuple(ISLAND),
    model_input: ModelInput | None = None,
) -> Artifact:
    """The artifact of the step training with a linear model; ``parameters`` are weights and bias."""
    weights, bias = parameters
    model_input = model_input or island_plan().model_input

    def build(space: Workspace) -> StepOutput:
        write_linear_model(space.out, classes, weights, bias, model_input)
        return StepOutput(Counts(kept=1, unit="models"))

    config = {"weights": weights.tolist(), "bias": bias.tolist(), "classes": list(classes), "model_input": model_input.model_dump(mode="json")}
    return store.make(Step("training", version=1), config=config, build=build)


class EvaluatedModel(NamedTuple):
    """The artifacts of calibration, evaluation and package for one model."""

    calibrated: Artifact
    evaluation: Artifact
    package: Artifact


def run_evaluation_steps(store: Store, model: Artifact, steps: DataSteps, plan: Plan, champion: Artifact | None = None) -> EvaluatedModel:
    """Run calibration, evaluation and package for a model."""
    calibrated = calibrate_classifier(model, steps.crops, steps.splits, plan.thresholds, store, plan.labels.parents)
    evaluation = evaluate_classifier(calibrated, steps.crops, steps.splits, plan, store, champion=champion)
    return EvaluatedModel(calibrated, evaluation, package_model(calibrated, evaluation, plan.package, store, description=plan.description))

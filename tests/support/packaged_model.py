"""Small but real packages for release tests, made from a tiny ONNX model that recognises colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from animl_pipeline.config import Plan, check_plan
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.evaluation_results import ClassScores, Comparison, Metrics, Report
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.inference.embedding_reference import EmbeddingReference
from animl_pipeline.steps.package import package_model
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.conftest import colour_model, jpeg

CLASSES = ("red", "green", "blue")


def colour_plan(**release: Any) -> Plan:
    """A plan for the colour model."""
    return check_plan(colour_plan_data(**release))


def colour_plan_data(**release: Any) -> dict[str, Any]:
    """The same plan as data of a plan file."""
    classes = {c: [c] for c in CLASSES}
    sources = [{"name": "island", "export": "cct.json", "images": "images"}]
    return {"model": "colours", "sources": sources, "labels": {"classes": classes}, "release": {"timeout_s": 60} | release}


def with_card(folder: Path, **values: Any) -> Path:
    """The folder of a model, after some values of its card were changed."""
    card = json.loads((folder / "card.json").read_bytes())
    (folder / "card.json").write_text(json.dumps(card | values))
    return folder


def make_training(store: Store, folder: Path, version: str = "1", reference: EmbeddingReference | None = None, **card: Any) -> Artifact:
    """An artifact like that of the step 'training': an ONNX model, its card with the given values, and a reference if there is one."""
    made = colour_model(folder / f"model-{version}", CLASSES, version=version)
    changed = ModelCard.model_validate_json((made / "card.json").read_bytes()).model_copy(update={"metrics": {}, **card})

    def build(space: Workspace) -> StepOutput:
        (space.out / "model.onnx").write_bytes((made / "model.onnx").read_bytes())
        known = reference.save(space.out) if reference else None
        (space.out / "card.json").write_text(changed.model_copy(update={"embedding_reference": known}).model_dump_json())
        return StepOutput(Counts(kept=1, unit="models"))

    return store.make(Step("training", version=1), config=changed, build=build)


def make_evaluation(
    store: Store, model: Artifact, folder: Path, images: list[bytes] | None = None, shift: float = 0.0, classes: tuple[str, ...] = CLASSES
) -> Artifact:
    """An artifact like that of the step 'evaluation': metrics, and the model's predictions for a few images, changed by ``shift``."""
    copy = folder / f"copy-{model.key[:8]}"
    copy.mkdir(exist_ok=True)
    for name in ("model.onnx", "card.json"):
        (copy / name).write_bytes(store.path(model, name).read_bytes())
    classifier = Classifier.load(copy)
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]
    images = images if images is not None else [jpeg(colour=c, seed=i) for i, c in enumerate(colours)]
    boxes = [[0.1, 0.2, 0.8, 0.9], [0.0, 0.0, 1.0, 1.0], [0.25, 0.25, 0.5, 0.75]]
    reference = []
    for i, data in enumerate(images):
        box = boxes[i % 3]
        prediction = classifier.classify(open_image(data), Box.of(box))
        reference.append({"image": store.put_blob(data), "box": box, "probabilities": {c: p + shift for c, p in prediction.items()}})
    scores = tuple(ClassScores(id=c, examples=1, locations=1, precision=1, recall=1, f1=1, average_precision=1) for c in classes)
    one = dict.fromkeys(("accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_average_precision"), 1.0)
    metrics = Metrics(examples=3, locations=3, classes=scores, confusion=((1, 0, 0), (0, 1, 0), (0, 0, 1)), **one)

    def build(space: Workspace) -> StepOutput:
        (space.out / "metrics.json").write_text(metrics.model_dump_json())
        (space.out / "reference_predictions.json").write_text(json.dumps(reference))
        return StepOutput(Counts(kept=3, unit="crops"))

    return store.make(Step("evaluation", version=1), inputs={"model": model}, config={"reference": reference, "classes": classes}, build=build)


def make_package(store: Store, folder: Path, version: str = "1", reference: EmbeddingReference | None = None, **card: Any) -> Artifact:
    """A complete package."""
    model = make_training(store, folder, version, reference, **card)
    return package_model(model, make_evaluation(store, model, folder), colour_plan().package, store)


def make_report(package: Artifact, store: Store, **values: Any) -> Report:
    """The report of a training that made the package."""
    card = ModelCard.model_validate_json(store.path(package, "card.json").read_bytes())
    metrics = Metrics.model_validate(card.metrics)
    fields = {"headline": "The model names all colours correctly.", "model_artifact": package, "evaluation": package} | values
    return Report(model=card.model, version=card.version, metrics=metrics, package=package, **fields)


def compared_with(report: Report, champion: Artifact) -> Report:
    """The report as it would be if it had compared the model with a package, and both were the same."""
    same: dict[str, Any] = {"macro_f1": (1, 1), "macro_average_precision": (1, 1)}
    same |= {f"{name}_{what}": value for name in tuple(same) for what, value in (("change", 0), ("interval", None))}
    comparison = Comparison(
        champion="1", package=champion.digest, examples=20, locations=3, left_out=0, added_classes=(), removed_classes=(), own_model_input=False,
        classes=(), **same,
    )  # fmt: skip
    return report.model_copy(update={"metrics": report.metrics.model_copy(update={"comparison": comparison})})

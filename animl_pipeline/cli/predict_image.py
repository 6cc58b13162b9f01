"""`animl-pipeline predict`: name the animals in one image with a plan's latest model, on this machine."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from animl_pipeline.cli import console
from animl_pipeline.cli.options import Debug, StoreOption, open_plan, settings_with
from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import ImageError
from animl_pipeline.deploy.latest_report_and_training_start import read_latest_report
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.storage.store import open_store


def predict(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="a camera-trap image")],
    plan: Annotated[str, typer.Option("--plan", help="the plan whose latest model answers: its YAML file, or its name")] = "sample",
    box: Annotated[str | None, typer.Option(help="ymin,xmin,ymax,xmax, each 0-1; without it, MegaDetector looks for animals")] = None,
    store: StoreOption = None,
) -> None:
    """Name the animals in IMAGE with the latest model of a plan, on this machine."""
    settings = settings_with(store)
    with console.show_progress(debug=Debug.on):
        animals = classify_animals(image, open_plan(plan, settings), parse_box(box), settings)
    if not animals:
        console.out.print("no animal found; give --box to ask about a part of the image")
    for found, probabilities in animals:
        console.out.print(f"box [{', '.join(f'{v:.3f}' for v in found.as_list())}]")
        console.show_probabilities(probabilities)


def parse_box(text: str | None) -> Box | None:
    """A box from ``ymin,xmin,ymax,xmax``.

    Raises:
        ImageError: it is not a valid box.
    """
    if text is None:
        return None
    try:
        return Box.of([float(part) for part in text.strip("[] ").split(",")])
    except (ValueError, ValidationError) as e:
        raise ImageError(f"--box: expected ymin,xmin,ymax,xmax with 0 <= min < max <= 1, found {text!r}", code="invalid_box") from e


def classify_animals(image: Path, plan: Plan, box: Box | None, settings: Settings) -> list[tuple[Box, dict[str, float]]]:
    """Each animal's box, with the model's probability for each class id.

    Args:
        image: the image's file.
        plan: its latest package answers, and its detector finds the boxes if ``box`` is None.
        box: the box to ask about.
        settings: the store, and the cache of weights.

    Raises:
        ImageError: the image does not exist or does not decode.
        EvaluationError: the plan has no package yet.
    """
    try:
        img = open_image(image.read_bytes())
    except OSError as e:
        raise ImageError(f"no image at {image} ({e.strerror}); check the path", code="no_image") from e
    except ImageError as e:
        raise ImageError(f"{image}: {e}", code=e.code or "broken_image") from e
    classifier = _latest_classifier(plan, settings)
    boxes = [box] if box is not None else _detect(image, plan, settings)
    return [(b, classifier.classify(img, b)) for b in boxes]


def _latest_classifier(plan: Plan, settings: Settings) -> Classifier:
    store = open_store(settings)
    package = read_latest_report(plan.model, store).package
    with tempfile.TemporaryDirectory() as folder, tarfile.open(store.path(package, "model.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
        return Classifier.load(Path(folder))


def _detect(image: Path, plan: Plan, settings: Settings) -> list[Box]:
    from animl_pipeline.steps.detections import find_animals

    return find_animals(image.read_bytes(), plan.detections, settings)

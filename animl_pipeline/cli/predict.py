"""One picture, named by the newest model on this machine: what ``animl-pipeline predict`` shows."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from pydantic import ValidationError

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.core.records import Box
from animl_pipeline.deploy.latest_report import newest_report
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.storage.step_cache import open_store


def parsed_box(text: str | None) -> Box | None:
    """A box from ``ymin,xmin,ymax,xmax``.

    Raises:
        PictureError: it is no box.
    """
    if text is None:
        return None
    try:
        return Box.of([float(part) for part in text.strip("[] ").split(",")])
    except (ValueError, ValidationError) as e:
        raise ImageError(f"--box: expected ymin,xmin,ymax,xmax with 0 <= min < max <= 1, found {text!r}") from e


def named_animals(image: Path, plan: Plan, box: Box | None) -> list[tuple[Box, dict[str, float]]]:
    """Each animal's box and the model's probabilities by class id.

    Args:
        image: a picture.
        plan: whose newest package answers, and whose detector looks where ``box`` is None.
        box: the place to ask about.

    Raises:
        PictureError: the picture is not there or does not decode.
        EvaluationError: the plan has no package yet.
    """
    try:
        img = open_image(image.read_bytes())
    except OSError as e:
        raise ImageError(f"expected a picture at {image}, found none ({e.strerror})") from e
    except ImageError as e:
        raise ImageError(f"{image}: {e}") from e
    classifier = _newest_classifier(plan)
    boxes = [box] if box is not None else _animals(image, plan)
    return [(b, classifier.classify(img, b)) for b in boxes]


def _newest_classifier(plan: Plan) -> Classifier:
    store = open_store(load_settings())
    package = newest_report(plan.model, store).package
    with tempfile.TemporaryDirectory() as folder, tarfile.open(store.path(package, "model.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
        return Classifier.load(Path(folder))


def _animals(image: Path, plan: Plan) -> list[Box]:
    from animl_pipeline.steps.detections import find_animals

    return find_animals(image.read_bytes(), plan.detections, load_settings())

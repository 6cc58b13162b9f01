"""`animl-pipeline predict`: name the animals in an image or in a folder of images with a plan's model, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from animl_pipeline.cli import console
from animl_pipeline.cli.options import Debug, JsonOption, StoreOption, VersionOption, open_plan, plan_names, settings_with
from animl_pipeline.cli.tables import print_table
from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import ImageError, SettingsError
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store


def predict(
    image: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER", help="a camera-trap image, or a folder of them")],
    plan: Annotated[str, typer.Option("--plan", autocompletion=plan_names, help="the plan whose model answers: its YAML file, or its name")],
    box: Annotated[str | None, typer.Option(help="ymin,xmin,ymax,xmax, each 0-1; without it, MegaDetector looks for animals")] = None,
    version: VersionOption = "",
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="of a FOLDER: where the files are written; without it, predictions", show_default=False)] = None,
    results: Annotated[
        Path | None, typer.Option(help="of a FOLDER: a MegaDetector results file with its boxes; without it, MegaDetector looks", show_default=False)
    ] = None,
    smooth: Annotated[bool, typer.Option("--smooth", help="of a FOLDER: one answer for all animals of a sequence")] = False,
    store: StoreOption = None,
) -> None:
    """Name the animals in IMAGE with a model of a plan, the latest unless a version is given, on this machine.

    An animal is called what reaches the threshold of its class. If no class does, it is unknown: in Animl it then has no label.

    Of a FOLDER it writes predictions.json (MegaDetector's format), timelapse.csv and observations.csv (Camtrap DP).
    """
    settings = settings_with(store)
    if image.is_dir():
        _refuse_unused(image, "one image", {"--box": box is not None})
        _predict_folder(image, open_plan(plan, settings), settings, (version, results, smooth, out or Path("predictions")), as_json=as_json)
        return
    _refuse_unused(image, "a folder of images", {"--out": out is not None, "--results": results is not None, "--smooth": smooth})
    with console.show_progress(debug=Debug.on):
        card, animals = classify_animals(image, open_plan(plan, settings), parse_box(box), settings, version)
    if as_json:
        console.print_json({"model": card.model, "version": card.version, "animals": [_as_json(card, *animal) for animal in animals]})
        return
    console.out.print(f"{card.model} {card.version}")
    if not animals:
        console.out.print("no animal found; give --box to ask about a part of the image")
    for found, probabilities in animals:
        console.out.print(f"box [{', '.join(f'{v:.3f}' for v in found.as_list())}]: {_called(card, probabilities)}")
        console.show_probabilities(probabilities, card.thresholds)


def _refuse_unused(image: Path, use: str, options: dict[str, bool]) -> None:
    """Refuse options that were given, but would change nothing.

    Raises:
        SettingsError: there is one.
    """
    for option, is_given in options.items():
        if is_given:
            raise SettingsError(f"{option}: expected {use}, found {image}; leave the option out", code="invalid_option")


def _predict_folder(folder: Path, plan: Plan, settings: Settings, options: tuple[str, Path | None, bool, Path], *, as_json: bool) -> None:
    from animl_pipeline.review.predict_folder import predict_folder
    from animl_pipeline.review.write_predictions import write_predictions

    version, results, smooth, out = options
    with console.show_progress(debug=Debug.on):
        found = predict_folder(folder, plan, open_existing_store(settings), settings, version=version, results=results, smooth=smooth)
        files = write_predictions(found, out)
    card, boxes = found.scored.card, found.boxes()
    counts = {str(what): int(n) for what, n in boxes["what"].value_counts().items()}
    images, failed = len(found.scored.images), len(found.scored.failed)
    if as_json:
        shown = {"model": card.model, "version": card.version, "thresholds": card.thresholds, "images": images, "failed": failed, "boxes": counts}
        console.print_json(shown | {"files": [str(file) for file in files]})
        return
    console.out.print(f"{card.model} {card.version}: {images:,} images, {failed:,} of them unreadable, {len(boxes):,} boxes")
    print_table("boxes by label", ("label", "boxes", "threshold"), [(w, f"{n:,}", _threshold(card, w)) for w, n in counts.items()], right=("boxes",))
    console.out.print("an animal of which no class reaches its threshold is unknown: in Animl it has no label")
    console.out.print(f"written: {', '.join(map(str, files))}")


def _threshold(card: ModelCard, label: str) -> str:
    return f"{card.thresholds[label]:.2f}" if label in card.thresholds else "-"


def named_classes(card: ModelCard, probabilities: dict[str, float]) -> list[str]:
    """The classes whose thresholds their probabilities reach, the likeliest first; none: the animal is unknown."""
    reached = [c for c, p in probabilities.items() if c in card.thresholds and p >= card.thresholds[c]]
    return sorted(reached, key=lambda c: -probabilities[c])


def _called(card: ModelCard, probabilities: dict[str, float]) -> str:
    if not card.thresholds:
        return f"{max(probabilities, key=lambda c: probabilities[c])} (the model has no thresholds)"
    return " or ".join(named_classes(card, probabilities)) or "unknown: no class reaches its threshold"


def _as_json(card: ModelCard, box: Box, probabilities: dict[str, float]) -> dict[str, object]:
    named = named_classes(card, probabilities)
    return {"box": box.as_list(), "labels": named, "unknown": not named, "probabilities": probabilities, "thresholds": card.thresholds}


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


def classify_animals(
    image: Path, plan: Plan, box: Box | None, settings: Settings, version: str = ""
) -> tuple[ModelCard, list[tuple[Box, dict[str, float]]]]:
    """The model's card, and each animal's box with the model's probability for each class id.

    ``box``: the box to ask about. ``version``: the version that answers; empty: the latest that is no trial.

    Raises:
        ImageError: the image does not exist or does not decode.
        EvaluationError: the plan has no package yet, or not of this version.
    """
    try:
        img = open_image(image.read_bytes())
    except OSError as e:
        raise ImageError(f"no image at {image} ({e.strerror}); check the path", code="no_image") from e
    except ImageError as e:
        raise ImageError(f"{image}: {e}", code=e.code or "broken_image") from e
    from animl_pipeline.review.packaged_model import load_packaged_model

    classifier = load_packaged_model(plan, version, open_existing_store(settings)).classifier
    boxes = [box] if box is not None else _detect(image, plan, settings)
    return classifier.card, [(b, classifier.classify(img, b)) for b in boxes]


def _detect(image: Path, plan: Plan, settings: Settings) -> list[Box]:
    from animl_pipeline.steps.detections import find_animals

    return find_animals(image.read_bytes(), plan.detections, settings)

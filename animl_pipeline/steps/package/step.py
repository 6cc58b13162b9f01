"""The package step: make model.tar.gz, its model card and the reference predictions, and refuse a model that must not ship.

The archive has no times and no machine names, so the same model gives the same bytes. MODEL_CARD.md has the usual form of model cards
(Mitchell et al. 2019, arXiv 1810.03993).
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from animl_pipeline.config import PackageConfig
from animl_pipeline.core.animl_and_sagemaker_limits import MAX_IMAGE_BYTES
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import PackageError
from animl_pipeline.core.evaluation_results import Interval, Metrics
from animl_pipeline.core.frozen_record import Digest, Record
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.release_and_reference_types import ReferencePrediction
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.untrusted_text import escape_markdown
from animl_pipeline.inference.classifier import CARD_FILE, MODEL_FILE, Classifier, read_card
from animl_pipeline.inference.embedding_reference import REFERENCE_FILE as REFERENCE_ANIMALS_FILE
from animl_pipeline.storage.store import StepOutput, Store, Workspace, sha256_of

STEP = Step("package", version=2, sections=("package", "description"), libraries=("onnxruntime",))
PACKAGE_FILE = "model.tar.gz"
REFERENCE_FILE = "reference_predictions.json"
REFERENCE_FOLDER = "reference_predictions"
MODEL_CARD_FILE = "MODEL_CARD.md"
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
FEW_EXAMPLES, FEW_LOCATIONS = 30, 3
"""The model card warns about classes with fewer test examples or locations."""
OFFLINE_TOLERANCE = 1e-5
"""Largest difference of a probability: the same onnxruntime on the same machine differs only in the order of sums."""


class _StoredPrediction(Record):
    """A reference prediction of the evaluation step, whose image is a blob."""

    image: Digest
    box: tuple[float, float, float, float] = Field(description="[ymin, xmin, ymax, xmax]")
    probabilities: dict[str, float]


def package_model(model: Artifact, evaluation: Artifact, config: PackageConfig, store: Store, *, description: str = "") -> Artifact:
    """Make the package: model.tar.gz (model.onnx, card.json, and the embedding reference if there is one), card.json with the metrics,
    MODEL_CARD.md, and the reference predictions.

    Raises:
        PackageError: torch and ONNX differ or were not compared; the model is not the one in its card; the metrics are of other classes; or the
            unpacked package does not give its reference predictions again.
    """

    def build(space: Workspace) -> StepOutput:
        card, metrics = _checked_card(model, evaluation, config, store)
        card_json = card.model_dump_json(indent=1).encode()
        files = {MODEL_FILE: store.path(model, MODEL_FILE).read_bytes(), CARD_FILE: card_json}
        if card.embedding_reference is not None:  # the endpoint does not read it
            files[REFERENCE_ANIMALS_FILE] = store.path(model, REFERENCE_ANIMALS_FILE).read_bytes()
        _write_archive(space.out / PACKAGE_FILE, files)
        (space.out / CARD_FILE).write_bytes(card_json)
        (space.out / MODEL_CARD_FILE).write_text(render_model_card(card, metrics, description), encoding="utf-8")
        stored = _read_predictions(evaluation, store)[: config.reference_predictions]
        reference = _write_reference_predictions(space.out, stored, store)
        _check_package(space.out, reference)
        too_large = len(stored) - len(reference)
        dropped = {"image_too_large_for_a_request": too_large} if too_large else {}
        return StepOutput(Counts(kept=len(reference), dropped=dropped, unit="reference predictions"))

    inputs = {"model": model, "evaluation": evaluation}
    return store.make(STEP, inputs=inputs, config=config.model_dump() | {"description": description}, build=build)


def render_model_card(card: ModelCard, metrics: Metrics, description: str) -> str:
    """MODEL_CARD.md: intended use, data, scores and limits, as Markdown."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown
    environment.filters.update(score="{:.2f}".format, interval=_format_interval, cell=escape_markdown)
    few = [c for c in metrics.classes if c.examples < FEW_EXAMPLES or c.locations < FEW_LOCATIONS]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        card=card,
        metrics=metrics,
        description=description,
        few=few,
        sources=card.plan.get("sources", []),
        chosen_on="at the folds' locations" if card.out_of_fold else "on val",
    )


def _format_interval(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval[0]:.2f}–{interval[1]:.2f})"


def _checked_card(model: Artifact, evaluation: Artifact, config: PackageConfig, store: Store) -> tuple[ModelCard, Metrics]:
    """The model's card with the metrics in it, and the metrics, if the model may ship."""
    card = read_card(store.path(model, CARD_FILE))
    found = sha256_of(store.path(model, MODEL_FILE))
    if found != card.onnx_sha256:
        raise PackageError(
            f"{MODEL_FILE} has sha256 {found[:12]}…, its card says {card.onnx_sha256[:12]}…; run the step 'training' again", code="other_model"
        )
    if card.agreement.crops == 0:
        raise PackageError("torch and ONNX were compared on 0 crops; run the step 'training' again", code="not_compared")
    if card.agreement.max_abs > config.torch_onnx_tolerance:
        raise PackageError(
            f"torch and ONNX differ by {card.agreement.max_abs:.2g} in a probability; package.torch_onnx_tolerance allows "
            f"{config.torch_onnx_tolerance:.2g}, so the model must not ship",
            code="torch_and_onnx_differ",
        )
    metrics = _read_metrics(evaluation, store)
    scored, known = {c.id for c in metrics.classes}, set(card.animal_ids())
    if scored != known:
        raise PackageError(
            f"the metrics are of the classes {sorted(scored)}, the card's are {sorted(known)}; run 'evaluation' again", code="other_classes"
        )
    return card.model_copy(update={"metrics": metrics.model_dump(mode="json")}), metrics


def _read_metrics(evaluation: Artifact, store: Store) -> Metrics:
    try:
        return Metrics.model_validate_json(store.path(evaluation, "metrics.json").read_bytes())
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise PackageError(f"metrics.json is not valid: {where}: {first['msg']}; run the step 'evaluation' again", code="invalid_metrics") from e


def _read_predictions(evaluation: Artifact, store: Store) -> list[_StoredPrediction]:
    try:
        rows: list[Any] = json.loads(store.path(evaluation, REFERENCE_FILE).read_bytes())
        return [_StoredPrediction.model_validate(row) for row in rows]
    except (ValueError, TypeError) as e:
        raise PackageError(f"{REFERENCE_FILE} is not valid; run the step 'evaluation' again", code="invalid_reference_predictions") from e


def _write_reference_predictions(out: Path, stored: list[_StoredPrediction], store: Store) -> list[ReferencePrediction]:
    """Write the images as reference_predictions/NN.<suffix> and the predictions as JSON. Images too large for a request are left out."""
    (out / REFERENCE_FOLDER).mkdir()
    written: list[ReferencePrediction] = []
    for prediction in stored:
        image = store.blob(prediction.image)
        if len(image) > MAX_IMAGE_BYTES:
            continue
        name = f"{len(written):02d}.{_image_suffix(image)}"
        (out / REFERENCE_FOLDER / name).write_bytes(image)
        written.append(ReferencePrediction(image=name, box=Box.of(prediction.box), probabilities=prediction.probabilities))
    if not written:
        raise PackageError(
            f"none of the {len(stored)} images with reference predictions has at most {MAX_IMAGE_BYTES:,} bytes, so a release could not be checked",
            code="no_reference_predictions",
        )
    (out / REFERENCE_FILE).write_text(json.dumps([p.model_dump(mode="json") for p in written], indent=1), encoding="utf-8")
    return written


def _image_suffix(image: bytes) -> str:
    """The file name suffix by content: JPEG from cameras, or PNG."""
    if image.startswith(b"\x89PNG"):
        return "png"
    return "jpg" if image.startswith(b"\xff\xd8") else "img"


def _write_archive(path: Path, files: dict[str, bytes]) -> None:
    """A tar.gz with the same bytes for the same files: no times, owners or file name in it."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(files[name]), 0o644, 0
            archive.addfile(entry, io.BytesIO(files[name]))


def _check_package(out: Path, reference: list[ReferencePrediction]) -> None:
    """Unpack the archive and see that it gives the reference predictions, so that what ships is what was scored."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(out / PACKAGE_FILE) as archive:
            archive.extractall(folder, filter="data")
        classifier = Classifier.load(Path(folder))
        for expected in reference:
            found = classifier.classify(open_image((out / REFERENCE_FOLDER / expected.image).read_bytes()), expected.box)
            if found.keys() != expected.probabilities.keys():
                raise PackageError(
                    f"the package has the classes {sorted(found)}, the reference predictions {sorted(expected.probabilities)}; "
                    "run the step 'evaluation' again",
                    code="other_classes",
                )
            # A parent follows from its children, and may change as a whole where one of them is as good as at its threshold.
            difference = max(abs(found[c] - p) for c, p in expected.probabilities.items() if c not in classifier.card.parents)
            if difference > OFFLINE_TOLERANCE:
                raise PackageError(
                    f"the unpacked package differs by {difference:.2g} from the reference prediction for {expected.image}, more than "
                    f"{OFFLINE_TOLERANCE:.0e}; run the step 'evaluation' again",
                    code="reference_differs",
                )

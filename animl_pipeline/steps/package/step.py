"""model.onnx + card.json + metrics → model.tar.gz that ships, or one line that says why it does not.

The package is the same, byte for byte, for the same model: no times, names or ids in the archive. Beside it lie the golden
answers: what the offline classifier said of a few test crops, which a release compares the live endpoint with.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from animl_pipeline.config import Plan
from animl_pipeline.core.errors import PackageError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.core.records import Answer, Artifact, Box, Counts, Digest, Metrics, ModelCard, Record
from animl_pipeline.core.step import Step
from animl_pipeline.inference.classifier import CARD_FILE, MODEL_FILE, Classifier, read_card
from animl_pipeline.steps.package.model_card import model_card
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace, sha256_of

log = logging.getLogger(__name__)

STEP = Step("package", version=1, sections=("package",), reads=(), writes=(), libraries=("onnxruntime",))


PACKAGE_FILE = "model.tar.gz"
REFERENCE_FILE = "reference.json"
MODEL_CARD_FILE = "MODEL_CARD.md"
MAX_IMAGE = 2_800_000
"""Larger pictures do not fit into a serverless request (4 MB) as base64."""
OFFLINE_TOLERANCE = 1e-5
"""The same onnxruntime on the same machine: only the order of sums may differ."""


class _Scored(Record):
    """One golden answer as the evaluation hands it on: the picture is a blob."""

    image: Digest
    box: tuple[float, float, float, float] = Field(description="[ymin, xmin, ymax, xmax]")
    probabilities: dict[str, float]


def package_model(model: Artifact, evaluation: Artifact, plan: Plan, store: Store) -> Artifact:
    """The package: model.tar.gz (model.onnx, card.json), card.json with its metrics, MODEL_CARD.md, golden.json and the golden pictures.

    Raises:
        PackageError: torch and ONNX did not agree or were not compared, the model is not the card's, the metrics are of
            other classes, or the unpacked package does not give its golden answers again.
    """

    def build(space: Workspace) -> StepOutput:
        card, metrics = _fit_card(model, evaluation, plan, store)
        _write_archive(space.out / PACKAGE_FILE, {MODEL_FILE: store.path(model, MODEL_FILE).read_bytes(), CARD_FILE: _card_bytes(card)})
        (space.out / CARD_FILE).write_bytes(_card_bytes(card))
        (space.out / MODEL_CARD_FILE).write_text(model_card(card, metrics, plan), encoding="utf-8")
        answers, too_large = _copy_reference(space.out, _read_scored(evaluation, store)[: plan.package.reference_predictions], store)
        _prove(space.out, answers)
        dropped = {"image_too_large_for_a_request": too_large} if too_large else {}
        return StepOutput(Counts(kept=len(answers), dropped=dropped, unit="golden answers"))

    inputs = {"model": model, "evaluation": evaluation}
    config = plan.package.model_dump() | {"classes": [c.id for c in plan.classes()], "description": plan.description}
    return store.make(STEP, inputs=inputs, config=config, build=build)


def _fit_card(model: Artifact, evaluation: Artifact, plan: Plan, store: Store) -> tuple[ModelCard, Metrics]:
    """The model's card with its metrics, and these, after every reason to refuse it was looked for."""
    card = read_card(store.path(model, CARD_FILE))
    found = sha256_of(store.path(model, MODEL_FILE))
    if found != card.onnx_sha256:
        raise PackageError(f"expected {MODEL_FILE} with sha256 {card.onnx_sha256[:12]}… as its card says, found {found[:12]}…; train again")
    if card.agreement.crops == 0:
        raise PackageError("the card says that torch and ONNX were compared on 0 crops; expected at least one, so run the step 'training' again")
    if card.agreement.max_abs > plan.package.torch_onnx_tolerance:
        raise PackageError(
            f"torch and ONNX differ by {card.agreement.max_abs:.2g} in a probability, at most {plan.package.torch_onnx_tolerance:.2g} is allowed "
            "(package.torch_onnx_tolerance); the package is refused"
        )
    metrics = _read_metrics(evaluation, store)
    scored, told = {c.id for c in metrics.classes}, set(card.class_ids())
    if scored != told:
        raise PackageError(f"the metrics are of the classes {sorted(scored)}, the card's are {sorted(told)}; run the step 'evaluation' again")
    return card.model_copy(update={"metrics": metrics.model_dump(mode="json")}), metrics


def _read_metrics(evaluation: Artifact, store: Store) -> Metrics:
    try:
        return Metrics.model_validate_json(store.path(evaluation, "metrics.json").read_bytes())
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        raise PackageError(f"metrics.json does not fit: {'.'.join(map(str, first['loc']))}: {first['msg']}; run the step 'evaluation' again") from e


def _read_scored(evaluation: Artifact, store: Store) -> list[_Scored]:
    try:
        rows: list[Any] = json.loads(store.path(evaluation, REFERENCE_FILE).read_bytes())
        return [_Scored.model_validate(row) for row in rows]
    except (ValueError, TypeError) as e:
        raise PackageError(f"{REFERENCE_FILE} is not a list of picture, box and probabilities; run the step 'evaluation' again") from e


def _copy_reference(out: Path, scored: list[_Scored], store: Store) -> tuple[list[Answer], int]:
    """Golden pictures as reference/NN.<ext> and their answers; how many were too large for a request comes back as well."""
    (out / "reference").mkdir()
    answers: list[Answer] = []
    too_large = 0
    for one in scored:
        data = store.blob(one.image)
        if len(data) > MAX_IMAGE:
            too_large += 1
            continue
        name = f"{len(answers):02d}.{_extension(data)}"
        (out / "reference" / name).write_bytes(data)
        answers.append(Answer(image=name, box=Box.of(one.box), probabilities=one.probabilities))
    if not answers:
        raise PackageError(
            f"expected golden crops of pictures of at most {MAX_IMAGE:,} bytes, found 0 of {len(scored)}; a release could not be checked"
        )
    (out / REFERENCE_FILE).write_text(json.dumps([a.model_dump(mode="json") for a in answers], indent=1), encoding="utf-8")
    return answers, too_large


def _extension(image: bytes) -> str:
    """By content: what cameras write is JPEG, what people add may be PNG."""
    if image.startswith(b"\x89PNG"):
        return "png"
    return "jpg" if image.startswith(b"\xff\xd8") else "img"


def _write_archive(path: Path, files: dict[str, bytes]) -> None:
    """A tar.gz of ``files`` with nothing in it that differs between two runs."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(files[name]), 0o644, 0
            archive.addfile(entry, io.BytesIO(files[name]))


def _card_bytes(card: ModelCard) -> bytes:
    return card.model_dump_json(indent=1).encode()


def _prove(out: Path, answers: list[Answer]) -> None:
    """Unpack what was packed and ask it again: what ships is what was scored."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(out / PACKAGE_FILE) as archive:
            archive.extractall(folder, filter="data")
        classifier = Classifier.load(Path(folder))
        for expected in answers:
            said = classifier.classify(open_image((out / "reference" / expected.image).read_bytes()), expected.box)
            if said.keys() != expected.probabilities.keys():
                raise PackageError(
                    f"the package answers the classes {sorted(said)}, the evaluation saw {sorted(expected.probabilities)}; evaluate again"
                )
            worst = max(abs(said[c] - p) for c, p in expected.probabilities.items())
            if worst > OFFLINE_TOLERANCE:
                raise PackageError(
                    f"the unpacked package differs by {worst:.2g} from the golden answer for {expected.image}, at most {OFFLINE_TOLERANCE:.0e} is "
                    "allowed; run the step 'evaluation' again"
                )
    log.info("the unpacked package gave %d golden answers again", len(answers))

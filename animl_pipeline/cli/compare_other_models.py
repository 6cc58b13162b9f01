"""`animl-pipeline compare`: other models' answers to the test images, scored as in production beside the plan's own model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import DataOption, Debug, JsonOption, PlanArgument, StoreOption, VersionOption, open_plan, settings_with
from animl_pipeline.cli.tables import print_table
from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import DetectionsError, EvaluationError
from animl_pipeline.core.evaluation_results import ProductionScore, Report, SequenceScores
from animl_pipeline.deploy.trained_versions import read_report
from animl_pipeline.steps.detections.read_classified_results import ClassifiedResults, TestSet, read_classified_results
from animl_pipeline.steps.evaluation.compare_champion import load_champion
from animl_pipeline.steps.evaluation.compare_other_models import OtherAnswers, TestSteps, score_beside_others
from animl_pipeline.steps.labels.class_mapping import NO_ANIMAL, map_names
from animl_pipeline.storage.manifest import find_artifact
from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store
from animl_pipeline.storage.store import Store

SHOWN = 6
"""Names without a class that are shown for each file; the JSON has all."""
MODEL_WIDTH = 22

Results = Annotated[list[Path], typer.Argument(metavar="RESULTS.json…", help="MegaDetector results files with classifications", show_default=False)]
Confidence = Annotated[
    float, typer.Option("--confidence", min=0.01, max=1.0, help="a class of a results file counts as a label from this confidence on")
]


class ComparedFile(NamedTuple):
    """What came of one results file. ``unmapped``: its names without a class in the plan → number of boxes."""

    file: str
    results: ClassifiedResults
    answers: OtherAnswers
    unmapped: dict[str, int]


class ModelsCompared(NamedTuple):
    """The names of the models, the plan's own first, and their scores."""

    names: tuple[str, ...]
    scores: list[ProductionScore]
    files: list[ComparedFile]


def compare(
    plan: PlanArgument,
    results: Results,
    confidence: Confidence = 0.5,
    version: VersionOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    data: DataOption = None,
) -> None:
    """Score other models' answers to the test images of PLAN as in production, beside the plan's latest model.

    Each RESULTS.json is a MegaDetector results file with classifications, such as of SpeciesNet or DeepFaune. Names of classes are mapped by
    the plan's labels and taxonomy. All models are scored on the images that all files answer; ours with its own thresholds.
    """
    settings = settings_with(store, data)
    checked, opened = open_plan(plan, settings), open_existing_store(settings)
    report = read_report(checked.model, version, opened)
    with console.show_progress(debug=Debug.on):
        compared = compare_models(checked, report, results, confidence, opened, settings)
    if as_json:
        console.print_json(_as_json(compared, report, confidence))
        return
    _show(compared, confidence)


def compare_models(plan: Plan, report: Report, results: Sequence[Path], confidence: float, store: Store, settings: Settings) -> ModelsCompared:
    """The scores of the report's model and of the models whose answers these files hold.

    Raises:
        EvaluationError: the report has no score of production ("no_production"), its test images are gone ("no_test_images"), or no image is answered
            by all files ("no_common_image").
        DetectionsError: a file cannot be read, or does not answer the test images.
    """
    if plan.production is None:
        raise EvaluationError(f"the plan of {plan.model} has no section production, which says how models are scored; add it", code="no_production")
    steps, test = _find_test_steps(report, store)
    classifier = load_champion(report.package, store)
    ids = classifier.card.animal_ids()
    files = [_read_file(path, name, plan, test, ids, store, settings) for path, name in zip(results, _names(results), strict=True)]
    scores = score_beside_others(
        steps,
        classifier,
        [f.answers for f in files],
        confidence,
        plan.labels.equivalents,
        plan.production.detector_confidence,
        store,
        plan.model_input,
    )
    return ModelsCompared((report.model, *(f.answers.name for f in files)), scores, files)


def _find_test_steps(report: Report, store: Store) -> tuple[TestSteps, TestSet]:
    """The steps whose images the report's model was scored on."""
    inputs = store.manifest(report.evaluation).inputs
    if "test_images" not in inputs:
        raise EvaluationError(
            f"the report of {report.model} {report.version} has no score of production; run `animl-pipeline retrain PLAN` with a section production",
            code="no_production",
        )
    images, detections = (_find(store, step, inputs[step]) for step in ("test_images", "test_detections"))
    sources = {name: digest for name, digest in store.manifest(detections).inputs.items() if name not in {"test_images", "results"}}
    return TestSteps(images, detections), TestSet(images, {name: _find(store, "test_downloads", digest) for name, digest in sources.items()})


def _find(store: Store, step: str, digest: str) -> Artifact:
    found = find_artifact(store.object_store, step, digest)
    if found is None:
        raise EvaluationError(
            f"the step {step} of the latest report is no longer in the store; run `animl-pipeline retrain PLAN`", code="no_test_images"
        )
    return found


def _names(results: Sequence[Path]) -> list[str]:
    """A short name for each file: its name without the ending, numbered where two are the same."""
    seen: Counter[str] = Counter()
    names = []
    for path in results:
        seen[path.stem] += 1
        names.append(path.stem if seen[path.stem] == 1 else f"{path.stem} ({seen[path.stem]})")
    return names


def _read_file(path: Path, name: str, plan: Plan, test: TestSet, ids: tuple[str, ...], store: Store, settings: Settings) -> ComparedFile:
    if plan.production is None:
        raise EvaluationError("the plan has no section production", code="no_production")
    try:
        content = path.read_bytes()
    except OSError as e:
        raise DetectionsError(f"expected a MegaDetector results file at {path}, found none ({e.strerror})", code="file_missing") from e
    folders = {s.name: s.images for s in plan.sources}
    results = read_classified_results(content, str(path), plan.production.detector_confidence, test, plan.detections, folders, store)
    answers = results.boxes["answer"].tolist()
    meaning = map_names({names for answer in answers for names, _ in answer}, plan.labels, settings)
    number = {class_id: i for i, class_id in enumerate(ids)}
    confidence, likeliest = np.zeros((len(answers), len(ids))), np.full(len(answers), -1, np.int64)
    unmapped: Counter[str] = Counter()
    for row, answer in enumerate(answers):
        for names, value in answer:
            column = number.get(meaning[names] or NO_ANIMAL, -1)
            if column >= 0:
                confidence[row, column] = max(confidence[row, column], value)
        if answer:
            best = max(answer, key=lambda pair: pair[1])[0]
            likeliest[row] = number.get(meaning[best] or NO_ANIMAL, -1)
            unmapped.update([best[0]] if meaning[best] is None else [])
    boxes = results.boxes.drop(columns="answer")
    return ComparedFile(str(path), results, OtherAnswers(name, results.images, boxes, confidence, likeliest), dict(unmapped.most_common()))


def _as_json(compared: ModelsCompared, report: Report, confidence: float) -> dict[str, object]:
    return {
        "model": report.model,
        "version": report.version,
        "confidence": confidence,
        "images": compared.scores[0].images,
        "files": [
            {
                "file": f.file,
                "images_answered": len(f.results.images),
                "images_not_answered": f.results.dropped,
                "files_not_in_test_set": f.results.not_in_test_set,
                "names_without_a_class": f.unmapped,
            }
            for f in compared.files
        ],
        "models": [{"name": name, "score": score.model_dump(mode="json")} for name, score in zip(compared.names, compared.scores, strict=True)],
    }


def _show(compared: ModelsCompared, confidence: float) -> None:
    first = compared.scores[0]
    title = f"{first.sequences:,.0f} sequences of {first.locations} test locations, scored as in production"
    numbers = ("sequences", "found", "recall", "precision", "F1", "false alarms")
    rows = [
        (c.id if model == 0 else "", name[:MODEL_WIDTH], *_cells(score.classes[i]))
        for i, c in enumerate(first.classes)
        if c.sequences or any(score.classes[i].false_alarms() for score in compared.scores)
        for model, (name, score) in enumerate(zip(compared.names, compared.scores, strict=True))
    ]
    print_table(title, ("class", "model", *numbers), rows, right=numbers, less_important=("F1", "sequences"))
    for name, score in zip(compared.names, compared.scores, strict=True):
        alarms = score.false_alarms_per_1000_empty
        shown = "no empty sequence" if alarms is None else f"{alarms:,.0f} of 1,000 empty sequences get a label"
        console.out.print(f"{name}: {shown}")
    for f in compared.files:
        missing = sum(f.results.dropped.values())
        others = f"{f.results.not_in_test_set:,} of its files are no test images"
        console.out.print(f"{f.file}: answers {len(f.results.images):,} test images, lacks {missing:,}; {others}")
        if f.unmapped:
            names = [f"{console.one_line(name)} {n:,}" for name, n in list(f.unmapped.items())[:SHOWN]]
            more = f" and {len(f.unmapped) - SHOWN} more" if len(f.unmapped) > SHOWN else ""
            console.out.print(f"  boxes whose name is no class of the plan: {', '.join(names)}{more}")
    console.out.print(f"a class of a results file counts from confidence {confidence:g} on (--confidence); ours from its own threshold on")


def _cells(c: SequenceScores) -> tuple[str, ...]:
    rates = ("-" if value is None else f"{value:.2f}" for value in (c.recall, c.precision, c.f1))
    return (f"{c.sequences:,.0f}", f"{c.hits:,.0f}", *rates, f"{c.false_alarms():,.0f}")

"""The verb: score the model that ships on the test split, and write what it did as figures, pictures and words."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from animl_pipeline.errors import DamagedError, EvaluationError
from animl_pipeline.evaluation import charts, golden, page, predictions, scores
from animl_pipeline.records import Artifact, Counts, Metrics
from animl_pipeline.store import Made, Store, Workspace, sha256_of, write_table

if TYPE_CHECKING:
    from animl_pipeline.classifier import Classifier
    from animl_pipeline.plan import Plan

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


def evaluate_classifier(
    model: Artifact, crops: Artifact, splits: Artifact, plan: Plan, store: Store, *, story: Sequence[tuple[str, Counts]] = ()
) -> Artifact:
    """The packaged model's judgement on the test split and on nothing else.

    It holds metrics.json (``records.Metrics``), predictions.parquet (one row a test crop), golden.json (offline answers that
    a release checks), confusion.png and report.html (one self-contained page).

    Args:
        model: the model step, with model.onnx and card.json.
        crops: the crops step.
        splits: the splits step.
        plan: gives the classes, the view and the number of golden crops.
        store: where the steps are.
        story: name and counts of each earlier step, shown in the report as what was kept and dropped.

    Raises:
        EvaluationError: nothing to score; crops, splits, plan and model do not fit together; a place is in the test split
            and in another; the model's answers are no probabilities, or differ between stored crop and whole picture.
    """
    config = {
        "classes": list(plan.labels.classes),
        "view": plan.view.model_dump(mode="json"),
        "golden": plan.package.golden,
        "story": [[name, counts.model_dump(mode="json")] for name, counts in story],
    }

    def build(space: Workspace) -> Made:
        return _judge(space, _load_classifier(model, plan, store), {"model": model, "crops": crops, "splits": splits}, plan, store, story)

    return store.make(
        "evaluation", room="evaluation", inputs={"model": model, "crops": crops, "splits": splits},
        digests={"template": sha256_of(page.TEMPLATE)}, config=config, build=build,
    )  # fmt: skip


def read_metrics(evaluation: Artifact, store: Store) -> Metrics:
    """The scores of an evaluation.

    Raises:
        DamagedError: they are not there or not of this version.
    """
    try:
        return Metrics.model_validate_json(store.path(evaluation, METRICS_FILE).read_bytes())
    except ValidationError as e:
        raise DamagedError(f"{METRICS_FILE} of the step evaluation does not fit this version; run the step 'evaluation' again") from e


def _judge(
    space: Workspace, classifier: Classifier, inputs: dict[str, Artifact], plan: Plan, store: Store, story: Sequence[tuple[str, Counts]]
) -> Made:
    card = classifier.card
    split = predictions.join_splits(store.table(inputs["crops"], "crops.parquet"), store.table(inputs["splits"], "splits.parquet"))
    scored = predictions.score_test_crops(split, classifier, store)
    metrics = scores.metrics_of(scored, card.class_ids())
    log.info("evaluation: %s", scores.headline(metrics))

    write_table(space.out / "predictions.parquet", predictions.public_columns(scored, card.class_ids()))
    (space.out / METRICS_FILE).write_text(metrics.model_dump_json(indent=1), encoding="utf-8")
    answers = golden.golden_answers(scored, classifier, store, plan.package.golden)
    (space.out / "golden.json").write_text(json.dumps(answers, indent=1), encoding="utf-8")
    (space.out / "confusion.png").write_bytes(charts.confusion_png(metrics))
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    (space.out / "report.html").write_text(page.render(card, metrics, scored, split, digests, store, story), encoding="utf-8")
    return Made(_counts(metrics))


def _counts(metrics: Metrics) -> Counts:
    right = sum(metrics.confusion[i][i] for i in range(len(metrics.classes)))
    noted = {
        "named_wrongly": metrics.examples - right,
        "classes_without_test_crops": sum(c.examples == 0 for c in metrics.classes),
        "classes_with_few_test_crops_or_places": len(scores.thin_classes(metrics)),
    }
    return Counts(kept=metrics.examples, noted={k: n for k, n in noted.items() if n}, unit="test crops")


def _load_classifier(model: Artifact, plan: Plan, store: Store) -> Classifier:
    """The model step's classifier, which must be one of this plan's classes and view."""
    from animl_pipeline.classifier import CARD_FILE, MODEL_FILE, Classifier

    store.path(model, CARD_FILE)
    classifier = Classifier.load(store.path(model, MODEL_FILE).parent)
    card = classifier.card
    if card.class_ids() != tuple(plan.labels.classes):
        wanted, found = ", ".join(plan.labels.classes), ", ".join(card.class_ids())
        raise EvaluationError(f"expected a model of the plan's classes {wanted}, found one of {found}; run the step 'model' again")
    if card.view != plan.view:
        raise EvaluationError(
            f"expected a model that sees what the plan's view says ({plan.view}), found one that sees {card.view}; run the step 'model' again"
        )
    return classifier

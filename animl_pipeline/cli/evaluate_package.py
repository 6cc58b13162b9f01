"""`animl-pipeline evaluate`: score any package on the labelled boxes of any plan."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import DataOption, Debug, JsonOption, StoreOption, open_plan, settings_with
from animl_pipeline.cli.tables import print_table
from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import EvaluationError

if TYPE_CHECKING:
    import pandas as pd

    from animl_pipeline.core.evaluation_results import Metrics, OperatingPoint
    from animl_pipeline.inference.classifier import Classifier
    from animl_pipeline.storage.store import Store

LEARNT = "if the package learnt from these locations, its scores here are too good"


class CropSet(StrEnum):
    """Which crops are scored."""

    ALL = "all"
    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Evaluated(NamedTuple):
    """The scores of a package, those at its thresholds by class, and how many crops are of classes that it does not know."""

    metrics: Metrics
    at_thresholds: dict[str, OperatingPoint]
    left_out: dict[str, int]


def evaluate(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="a model.tar.gz, or the folder that it was unpacked to")],
    plan: Annotated[str, typer.Option("--plan", help="the plan whose labelled images are scored: its YAML file, or its name")],
    crop_set: Annotated[
        CropSet, typer.Option("--set", help="all crops of the plan, or those of a split: by splits.table, else of the plan's latest training")
    ] = CropSet.ALL,
    as_json: JsonOption = False,
    store: StoreOption = None,
    data: DataOption = None,
) -> None:
    """Score PACKAGE on the labelled boxes of a plan, also of a model that another plan trained.

    Images are downloaded and cropped as for a training, and no location is frozen. Crops of classes that the package does not know are left out.
    """
    from animl_pipeline.inference.classifier import load_package
    from animl_pipeline.storage.store import open_store

    settings = settings_with(store, data)
    checked, classifier = open_plan(plan, settings), load_package(package)
    with console.show_progress(debug=Debug.on):
        found = evaluate_package(classifier, checked, crop_set, open_store(settings), settings)
    card, metrics = classifier.card, found.metrics
    if as_json:
        points = {c: p.model_dump(mode="json") for c, p in found.at_thresholds.items()}
        shown = {"model": card.model, "version": card.version, "plan": checked.model, "set": crop_set.value, "left_out": found.left_out}
        console.print_json(shown | {"metrics": metrics.model_dump(mode="json"), "at_thresholds": points})
        return
    title = f"{card.model} {card.version} on {metrics.examples:,} crops at {metrics.locations:,} locations of {checked.model} ({crop_set.value})"
    numbers = ("examples", "locations", "precision", "recall", "F1", "AP", "recall at threshold", "precision at threshold")
    rows = [
        (
            c.id, f"{c.examples:,}", f"{c.locations:,}", *map(_cell, (c.precision, c.recall, c.f1, c.average_precision)),
            *map(_cell, (point.recall, point.precision) if (point := found.at_thresholds.get(c.id)) else (None, None)),
        )
        for c in metrics.classes
    ]  # fmt: skip
    total = ("total", f"{metrics.examples:,}", f"{metrics.locations:,}", *map(_cell, (metrics.macro_precision, metrics.macro_recall)))
    rows.append((*total, *map(_cell, (metrics.macro_f1, metrics.macro_average_precision)), "", ""))
    print_table(title, ("class", *numbers), rows, right=numbers, less_important=("AP", "locations", "precision at threshold"))
    if metrics.calibration:
        error, chance = metrics.calibration.ece_after, metrics.calibration.ece_limit_by_chance
        console.out.print(f"calibration error {error:.3f}; a perfectly calibrated model may have {chance:.3f} by chance")
    if found.left_out:
        console.out.print(f"left out, not known to the package: {', '.join(f'{c} {n:,}' for c, n in found.left_out.items())}")
    console.out.print(f"total is the mean over the classes; {LEARNT}")


def evaluate_package(classifier: Classifier, plan: Plan, crop_set: CropSet, store: Store, settings: Settings) -> Evaluated:
    """Score a package on a plan's crops.

    Raises:
        EvaluationError: ``no_split``: the set is a split, and the plan has neither a table of splits nor a training in the store; ``no_crops``: there
            is no crop of a class that the package knows.
    """
    from animl_pipeline.inference.calibration_and_threshold_metrics import operating_point
    from animl_pipeline.inference.score_crops import score_crops
    from animl_pipeline.steps.evaluation.metrics import compute_metrics, measure_calibration

    rows, card = _read_crops(plan, crop_set, store, settings), classifier.card
    known = rows["class_id"].isin(card.animal_ids())
    left_out = {str(c): int(n) for c, n in rows.loc[~known, "class_id"].value_counts().items()}
    if not known.any():
        raise EvaluationError(
            f"expected crops of {', '.join(card.animal_ids())} in the plan ({crop_set.value}), found {', '.join(left_out) or 'none'}; name another "
            "plan, set or package",
            code="no_crops",
        )
    scored = score_crops(rows[known], classifier, store, plan.model_input, "crops")
    metrics = compute_metrics(scored, card.animal_ids(), card.unscored_ids())
    points = {c: operating_point(scored, c, t) for c, t in card.thresholds.items() if c in card.animal_ids()}
    return Evaluated(metrics.model_copy(update={"calibration": measure_calibration(scored, card)}), points, left_out)


def _read_crops(plan: Plan, crop_set: CropSet, store: Store, settings: Settings) -> pd.DataFrame:
    """The crops of the set, by crop_id."""
    from animl_pipeline.cli.run_steps_to_crops import make_crops
    from animl_pipeline.core.table_schemas import CROPS, SPLITS
    from animl_pipeline.deploy.trained_versions import read_latest_report
    from animl_pipeline.steps.splits import read_split_table
    from animl_pipeline.storage.manifest import find_artifact

    table = read_split_table(plan.splits, settings)
    if crop_set is CropSet.ALL or table is not None:
        rows = store.table(make_crops(plan, store, settings), CROPS).sort_values("crop_id", ignore_index=True)
        return rows if crop_set is CropSet.ALL else rows[rows["location"].map(table or {}) == crop_set.value]
    inputs = store.manifest(read_latest_report(plan.model, store).evaluation).inputs
    crops, splits = (find_artifact(store.object_store, step, inputs[step]) for step in ("crops", "splits"))
    if crops is None or splits is None:
        message = f"expected the crops and splits of the latest training of {plan.model} in the store, found them deleted; use --set all, or retrain"
        raise EvaluationError(message, code="no_split")
    split = store.table(splits, SPLITS)
    rows = store.table(crops, CROPS).sort_values("crop_id", ignore_index=True)
    return rows[rows["crop_id"].isin(split.loc[split["split"] == crop_set.value, "crop_id"])]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

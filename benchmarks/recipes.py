"""Scores of this product's recipes and of a usual recipe, at camera locations that they never learnt from.

All known locations of the plan's data are divided into five folds. Each fold is the test set once, and each way learns from the other
four; so every crop has one answer of each way for each draw of folds. The crops of all draws are pooled; intervals are by bootstrap over locations.

The ways:

- ``usual``: what camera-trap recipes such as animl-ml's do: resize only, no normalisation, no augmentation, no weighted sampling, SGD with a
  learning rate of 1e-3, all layers from the first step, ``--usual-epochs`` epochs; it learns from train and val, because it chooses nothing
- ``fine_tuned``: the plan's own section train (fine-tuning; val chooses the epoch), the product before there were heads
- ``lite0_val``: a head on EfficientNet-Lite0; val chooses, and it learns from train
- ``lite0``: the same, chosen by folds, learnt from train and val: logistic regression on one network's embeddings
- ``fused``: the default, a head on the two networks of ``train.networks``
- ``lite0_lite2_detector``: a head on these and the body of MegaDetector Lite

The images come from the plan, whose relative paths start at --data or ANIML_DATA. Results are kept in --store, so a second run
only computes what is new.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import SPLITS
from animl_pipeline.core.tables import write_table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the path first
import pandas as pd  # noqa: E402
from measure import conclude, show  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from animl_pipeline.inference.bootstrap_intervals import BootstrapDraws, mean_over_present_classes, percentile_interval, precision_recall_f1  # noqa: E402
from animl_pipeline.inference.calibration_and_threshold_metrics import (  # noqa: E402
    expected_calibration_error,
    probability_column,
    probability_matrix,
)
from animl_pipeline.inference.score_crops import score_crops  # noqa: E402
from animl_pipeline.steps.evaluation.metrics import class_indices  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

    from animl_pipeline.config import Plan
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.core.artifacts import Artifact
    from animl_pipeline.storage.store import Store

AIM = 0.08
LR = 1e-3
FOLDS, VAL_PARTS = 5, 6
"""Folds of a draw; val is one of so many parts of the locations that are left."""
USUAL, BEFORE, ONE_NETWORK, AFTER = "usual", "fine_tuned", "lite0", "fused"
WAYS: dict[str, dict[str, Any]] = {
    USUAL: {},
    BEFORE: {},
    "lite0_val": {"recipe": "head", "select": "validation", "networks": ["efficientnet-lite0-imagenet"]},
    ONE_NETWORK: {"recipe": "head", "networks": ["efficientnet-lite0-imagenet"]},
    AFTER: {"recipe": "head"},
    "lite0_lite2_detector": {"recipe": "head", "networks": ["efficientnet-lite0-imagenet", "efficientnet-lite2-imagenet", "megadetector-lite"]},
}
"""Name of a way → its section train; empty for the plan's own."""
COMPARED = (
    (AFTER, BEFORE),
    (AFTER, ONE_NETWORK),
    (AFTER, "lite0_lite2_detector"),
    (ONE_NETWORK, "lite0_val"),
    (ONE_NETWORK, BEFORE),
    (BEFORE, USUAL),
)
Floats = NDArray[np.float64]


class Figures(NamedTuple):
    """Scores of a table of predictions; the first axis is the crops themselves, then the bootstrap draws."""

    f1: Floats  # [draws, classes]
    average_precision: Floats  # [draws, classes]


# -- the data ----------------------------------------------------------------------------------------------------------


def split_by_fold(crops: Artifact, draw: int, fold: int, store: Store) -> Artifact:
    """Splits of one fold of one draw: its crops are test, a part of the other locations is val."""
    from animl_pipeline.core.artifacts import Counts
    from animl_pipeline.steps.training.location_folds import assign_folds
    from animl_pipeline.storage.store import StepOutput, Workspace

    def build(space: Workspace) -> StepOutput:
        rows = store.table(crops, "crops.parquet").sort_values("crop_id")
        rows = rows[rows["location"] != ""].reset_index(drop=True)
        test = assign_folds(rows, (), FOLDS, draw) == fold
        rest = rows[~test]
        val = rest.index[assign_folds(rest, (), VAL_PARTS, draw) == 0]
        split = pd.Series("train", rows.index).mask(test, "test")
        split[val] = "val"
        write_table(space.out, SPLITS, pd.DataFrame({"crop_id": rows["crop_id"], "split": split}))
        return StepOutput(Counts(kept=len(rows)))

    return store.make(Step("splits", version=1), inputs={"crops": crops}, config={"benchmark": [draw, fold, FOLDS, VAL_PARTS]}, build=build)


def read_split(crops: Artifact, splits: Artifact, names: tuple[str, ...], store: Store) -> pd.DataFrame:
    """The crops of some splits."""
    table = store.table(crops, "crops.parquet").merge(store.table(splits, "splits.parquet"), on="crop_id")
    return table[table["split"].isin(names)].sort_values("crop_id", ignore_index=True)


# -- the ways to train -------------------------------------------------------------------------------------------------


def product(plan: Plan, crops: Artifact, splits: Artifact, store: Store, settings: Settings) -> pd.DataFrame:
    """The test crops with the calibrated predictions of a model of this product."""
    from animl_pipeline.inference.classifier import MODEL_FILE, Classifier
    from animl_pipeline.steps.calibration import calibrate_classifier
    from animl_pipeline.steps.embeddings import embed_crops
    from animl_pipeline.steps.training import train_classifier

    train = plan.train
    embeddings = embed_crops(crops, splits, train.networks, plan.model_input.size, store, settings) if train.needs_embeddings() else None
    trained = train_classifier(crops, splits, plan, store, settings, embeddings=embeddings)
    model = calibrate_classifier(trained, crops, splits, plan.thresholds, store)
    store.path(model, "card.json")
    classifier = Classifier.load(store.path(model, MODEL_FILE).parent)
    return score_crops(read_split(crops, splits, ("test",), store), classifier, store, plan.model_input, "test crops")


def usual(plan: Plan, crops: Artifact, splits: Artifact, epochs: int, store: Store, settings: Settings) -> pd.DataFrame:
    """The test crops with the usual recipe's predictions."""
    from animl_pipeline.core.artifacts import Counts
    from animl_pipeline.core.tables import write_parquet
    from animl_pipeline.storage.store import StepOutput, Workspace

    def build(space: Workspace) -> StepOutput:
        train, test = (read_split(crops, splits, names, store) for names in (("train", "val"), ("test",)))
        ids = tuple(plan.labels.classes)
        network = train_usual(_pixels(train, store), class_indices(train["class_id"], ids), plan, epochs, settings)
        p = predict(network, _pixels(test, store))
        columns = {probability_column(c): p[:, i] for i, c in enumerate(ids)}
        table = test.assign(predicted=np.asarray(ids, object)[p.argmax(1)], probability=p.max(1), **columns)
        write_parquet(space.out / "predictions.parquet", table)
        return StepOutput(Counts(kept=len(table)))

    config = {"epochs": epochs, "batch": plan.train.batch_size, "lr": LR, "seed": plan.train.seed, "weights": plan.train.weights}
    made = store.make(Step("recipe", version=2), inputs={"crops": crops, "splits": splits}, config=config, build=build)
    return store.table(made, "predictions.parquet")


def train_usual(pixels: NDArray[np.uint8], targets: NDArray[np.int64], plan: Plan, epochs: int, settings: Settings) -> nn.Module:
    """A network trained by the usual recipe: shuffled batches of pixels from 0 to 1, cross entropy, plain SGD."""
    import torch

    from animl_pipeline.steps.training.network_and_weights import build_network
    from animl_pipeline.steps.training.trainer import lightning_precision

    half = lightning_precision(plan.train, plan.model_input.size) == "bf16-mixed"
    network = build_network(plan.train, tuple(plan.labels.classes), plan.model_input, settings).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=LR)
    loss_of = torch.nn.CrossEntropyLoss()
    rng = np.random.default_rng(plan.train.seed)
    network.train()
    for _ in range(epochs):
        order = rng.permutation(len(targets))
        for start in range(0, len(order) - 1, plan.train.batch_size):  # batch normalisation cannot work on one crop
            some = order[start : start + plan.train.batch_size]
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = loss_of(network(_tensor(pixels[some])), torch.from_numpy(targets[some]))
            loss.backward()
            optimiser.step()
    return network


def predict(network: nn.Module, pixels: NDArray[np.uint8]) -> Floats:
    """Probabilities [n, classes]."""
    import torch

    with torch.no_grad():
        parts = [network.eval()(_tensor(pixels[i : i + 32])).softmax(1).double().numpy() for i in range(0, len(pixels), 32)]
    return np.concatenate(parts)


def _pixels(table: pd.DataFrame, store: Store) -> NDArray[np.uint8]:
    from animl_pipeline.core.decode_image import open_image

    return np.stack([np.asarray(open_image(store.blob(blob)), np.uint8) for blob in table["blob"]])


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    import torch

    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)


# -- figures -----------------------------------------------------------------------------------------------------------


def answers(
    plan: Plan, crops: Artifact, names: list[str], draws: list[int], epochs: int, store: Store, settings: Settings
) -> dict[str, pd.DataFrame]:
    """Name of each way → the test crops of all folds and draws with its predictions, in the same order for all."""
    from animl_pipeline.config import TrainingConfig

    found: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    for draw in draws:
        for fold in range(FOLDS):
            splits = split_by_fold(crops, draw, fold, store)
            for name in names:
                train = TrainingConfig.model_validate(WAYS[name] | {"seed": draw}) if WAYS[name] else plan.train.model_copy(update={"seed": draw})
                of_way = plan.model_copy(update={"train": train})
                scored = usual(of_way, crops, splits, epochs, store, settings) if name == USUAL else product(of_way, crops, splits, store, settings)
                found[name].append(scored.assign(draw=draw, fold=fold))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


def figures(table: pd.DataFrame, ids: tuple[str, ...], draws: BootstrapDraws) -> Figures:
    """F1 and average precision of every class in each draw; NaN where a draw holds none of it."""
    truth = class_indices(table["class_id"], ids)
    f1 = precision_recall_f1(draws.confusion_matrices(truth, class_indices(table["predicted"], ids), len(ids)))[2]
    aps = [draws.average_precisions(table[probability_column(c)].to_numpy(np.float64), truth == i) for i, c in enumerate(ids)]
    return Figures(f1, np.stack(aps, axis=1))


def ranged(ends: tuple[float, float] | None) -> str:
    """``+0.05 to +0.20``."""
    return "–" if ends is None else f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def report(tables: dict[str, pd.DataFrame], ids: tuple[str, ...]) -> dict[tuple[str, str], tuple[float, tuple[float, float] | None]]:
    """Print all tables. Returns the change of macro F1 between two ways, and its interval."""
    first = next(iter(tables.values()))
    draws = BootstrapDraws(first)
    found = {name: figures(table, ids, draws) for name, table in tables.items()}
    rows: list[list[object]] = []
    for name, table in tables.items():
        f1, ap = (mean_over_present_classes(values) for values in found[name])
        by_draw = [mean_over_present_classes(figures(part, ids, BootstrapDraws(part)).f1)[0] for _, part in table.groupby("draw")]
        right = (table["class_id"] == table["predicted"]).to_numpy()
        error = expected_calibration_error(probability_matrix(table, ids).max(axis=1), right)
        rows.append([name, f1[0], ranged(percentile_interval(f1, draws.locations)), ap[0], error, " ".join(f"{v:.2f}" for v in by_draw)])
    title = f"{len(first)} test crops of {first['draw'].nunique()} draws of {FOLDS} folds, {draws.locations} locations"
    show(title, ("way", "macro F1", "95 %", "macro AP", "ECE", "macro F1 by draw"), rows)
    truth, locations = first["class_id"], first["location"]
    by_class = [[c, int((truth == c).sum()), locations[truth == c].nunique(), *(f.f1[0, i] for f in found.values())] for i, c in enumerate(ids)]
    show("F1 by class", ("class", "examples", "locations", *tables), by_class)
    changes = {}
    for better, worse in (pair for pair in COMPARED if set(pair) <= tables.keys()):
        change = mean_over_present_classes(found[better].f1) - mean_over_present_classes(found[worse].f1)
        changes[better, worse] = (float(change[0]), percentile_interval(change, draws.locations))
    show("Change of macro F1", ("", "change", "95 % over locations"), [[f"{a} - {b}", c, ranged(e)] for (a, b), (c, e) in changes.items()])
    return changes


def main() -> None:
    """Train every way on every fold and compare them."""
    from animl_pipeline.config import load_plan
    from animl_pipeline.config.settings import load_settings
    from animl_pipeline.storage.store import open_store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plan", type=Path, default=ROOT / "tests" / "flows" / "real-data.yaml", help="the plan (default: tests/flows/real-data.yaml)"
    )
    parser.add_argument("--data", type=Path, help="folder where the plan's relative paths start (default: ANIML_DATA)")
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "recipes", help="store for all results (default: runs/recipes)")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2], help="seeds of the folds (default: 0 1 2)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="ways to train (default: all)")
    parser.add_argument("--usual-epochs", type=int, default=20, help="epochs of the usual recipe (default: 20)")
    spec = parser.parse_args()
    settings = load_settings()
    settings = settings.model_copy(update={"store": str(spec.store), "data": spec.data or settings.data})
    plan, store = load_plan(spec.plan), open_store(settings)
    from animl_pipeline.cli.run_steps_to_crops import make_crops

    tables = answers(plan, make_crops(plan, store, settings), spec.ways, spec.draws, spec.usual_epochs, store, settings)
    changes = report(tables, tuple(plan.labels.classes))
    change, ends = changes.get((AFTER, BEFORE), (float("nan"), None))
    figure = f"macro F1 {change:+.3f} of a head on two networks against fine-tuning, 95 % interval over locations {ranged(ends)}"
    conclude("recipes", figure=figure, aim=f"at least +{AIM}, the interval above 0", met=change >= AIM and ends is not None and ends[0] > 0)


if __name__ == "__main__":
    main()

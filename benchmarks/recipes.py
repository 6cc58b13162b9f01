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

Heads are trained and calibrated as the steps do it, without an ONNX file, which gives the same answers (a test keeps this).
The images come from the plan, whose relative paths start at --data or ANIML_DATA. Results are kept in --store, so a second run
only computes what is new. ``--finished`` computes nothing: it reports each way on the draws of which the store has all folds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from measure import conclude, show
from numpy.typing import NDArray

from animl_pipeline.cli.run_steps_to_crops import make_crops
from animl_pipeline.config import Plan, TrainingConfig, load_plan
from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.config.training import FrozenNetworkConfig
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.core.tables import write_parquet, write_table
from animl_pipeline.inference.bootstrap_intervals import BootstrapDraws, mean_over_present_classes, percentile_interval, precision_recall_f1
from animl_pipeline.inference.calibration_and_threshold_metrics import (
    expected_calibration_error,
    probability_column,
    probability_matrix,
    rescale_temperature,
)
from animl_pipeline.inference.classifier import MODEL_FILE, Classifier
from animl_pipeline.inference.score_crops import score_crops
from animl_pipeline.integrations.weights import weights_digest
from animl_pipeline.steps.calibration import calibrate_classifier
from animl_pipeline.steps.calibration.step import fit_temperature
from animl_pipeline.steps.embeddings.run_networks import run_network
from animl_pipeline.steps.evaluation.metrics import class_indices
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.steps.training.choose_recipe import Candidate, choose
from animl_pipeline.steps.training.linear_head import REGULARISATIONS, fit_heads, out_of_fold_logits
from animl_pipeline.steps.training.location_folds import NEVER_HELD_OUT, assign_folds
from animl_pipeline.storage.store import StepOutput, Store, Workspace, open_store

if TYPE_CHECKING:
    from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
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
    (AFTER, USUAL),
)
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class NotFinishedError(Exception):
    """The store does not have this result, and nothing may be computed."""


class Data(NamedTuple):
    """What all ways learn from.

    Attributes:
        crops: the step crops.
        rows: its crops at known locations, by crop_id.
        finished: compute nothing.
    """

    plan: Plan
    crops: Artifact
    rows: pd.DataFrame
    finished: bool
    store: Store
    settings: Settings

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.plan.labels.classes)

    def remember(self, splits: Artifact, config: dict[str, Any], compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The answers for a fold's test crops, from the store if it has them.

        Raises:
            NotFinishedError: it does not, and ``finished``.
        """

        def build(space: Workspace) -> StepOutput:
            if self.finished:
                raise NotFinishedError
            write_parquet(space.out / "predictions.parquet", compute())
            return StepOutput(Counts(kept=1))

        made = self.store.make(Step("recipe", version=3), inputs={"crops": self.crops, "splits": splits}, config=config, build=build)
        return self.store.table(made, "predictions.parquet")

    def answer(self, chosen: Bools, probabilities: Floats) -> pd.DataFrame:
        """Some of the rows with probabilities [n, classes], in the columns of ``score_crops``."""
        columns = {probability_column(c): probabilities[:, i] for i, c in enumerate(self.classes)}
        predicted = np.asarray(self.classes, object)[probabilities.argmax(axis=1)]
        known = self.rows.loc[chosen, ["crop_id", "class_id", "location", "source", "image_id"]]
        return known.assign(predicted=predicted, probability=probabilities.max(axis=1), **columns)

    def split(self, splits: Artifact) -> pd.Series:
        """The split of each row."""
        return self.store.table(splits, SPLITS).set_index("crop_id")["split"].loc[self.rows["crop_id"]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of all benchmarks that use :func:`read_data`."""
    plan = ROOT / "tests" / "flows" / "real-data.yaml"
    parser.add_argument("--plan", type=Path, default=plan, help="the plan (default: tests/flows/real-data.yaml)")
    parser.add_argument("--data", type=Path, help="folder where the plan's relative paths start (default: ANIML_DATA)")
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "recipes", help="store for all results (default: runs/recipes)")


def read_data(spec: argparse.Namespace, *, finished: bool = False) -> Data:
    """The crops of the plan, made now if the store does not have them."""
    settings = load_settings()
    settings = settings.model_copy(update={"store": str(spec.store), "data": spec.data or settings.data})
    plan, store = load_plan(spec.plan), open_store(settings)
    crops = make_crops(plan, store, settings)
    rows = store.table(crops, CROPS).sort_values("crop_id")
    return Data(plan, crops, rows[rows["location"] != ""].reset_index(drop=True), finished, store, settings)


def split_by_fold(data: Data, draw: int, fold: int) -> Artifact:
    """Splits of one fold of one draw: its crops are test, a part of the other locations is val."""

    def build(space: Workspace) -> StepOutput:
        rows = data.rows
        test = assign_folds(rows, (), FOLDS, draw) == fold
        rest = rows[~test]
        val = rest.index[assign_folds(rest, (), VAL_PARTS, draw) == 0]
        split = pd.Series("train", rows.index).mask(test, "test")
        split[val] = "val"
        write_table(space.out, SPLITS, pd.DataFrame({"crop_id": rows["crop_id"], "split": split}))
        return StepOutput(Counts(kept=len(rows)))

    config = {"benchmark": [draw, fold, FOLDS, VAL_PARTS]}
    return data.store.make(Step("splits", version=1), inputs={"crops": data.crops}, config=config, build=build)


# -- the ways to train -------------------------------------------------------------------------------------------------


def embed(data: Data, networks: tuple[FrozenNetworkConfig, ...]) -> list[NDArray[np.float32]]:
    """The embeddings of the crops by each network, float32 [n, width]."""
    blobs, size, settings = data.rows["blob"].tolist(), data.plan.model_input.size, data.settings
    digests = [weights_digest(n.network, n.weights, settings, n.weights_sha256) for n in networks]
    return [run_network(n, digest, blobs, size, data.store, settings)[0] for n, digest in zip(networks, digests, strict=True)]


def head_probabilities(
    rows: pd.DataFrame, blocks: list[NDArray[np.float32]], classes: tuple[str, ...], learnt: Bools, seed: int, val: Bools | None = None
) -> Floats:
    """Calibrated probabilities [n, classes] by a head that learns from some crops, as the steps training and calibration make it.

    Those of crops that it learnt from are out-of-fold answers; NaN where no fold asked.

    Args:
        rows: the crops.
        blocks: their embeddings by each network.
        classes: the classes.
        learnt: which crops are learnt from.
        seed: of the folds.
        val: which of them choose; None: folds choose.
    """
    known = np.flatnonzero(learnt)
    own, targets = [block[known] for block in blocks], class_indices(rows["class_id"].iloc[known], classes)
    if val is None:
        fold = assign_folds(rows.iloc[known].reset_index(drop=True), (), TrainingConfig().folds, seed)
        final = np.full(len(known), True)
    else:
        fold = np.where(val[known], 0, NEVER_HELD_OUT).astype(np.int64)
        final = fold == NEVER_HELD_OUT
    logits = out_of_fold_logits(own, targets, len(classes), fold)
    best, _ = choose([Candidate("head", c, answers) for c, answers in zip(REGULARISATIONS, logits, strict=True)], targets)
    (head,) = fit_heads(own, targets, len(classes), final, [best.regularisation])
    held_out = fold != NEVER_HELD_OUT
    temperature = fit_temperature(best.probabilities()[held_out], targets[held_out])
    found = Candidate("head", best.regularisation, head.logits(np.concatenate(blocks, axis=1).astype(np.float64))).probabilities()
    found[known] = best.probabilities()
    return rescale_temperature(found, temperature)


def by_head(data: Data, plan: Plan, splits: Artifact) -> pd.DataFrame:
    """The test crops with the answers of a head."""
    train, split = plan.train, data.split(splits).to_numpy()
    blocks = embed(data, train.networks)
    test, val = split == "test", split == "val" if train.select == "validation" else None
    return data.answer(test, head_probabilities(data.rows, blocks, data.classes, ~test, train.seed, val)[test])


def by_product(data: Data, plan: Plan, splits: Artifact) -> pd.DataFrame:
    """The test crops with the calibrated predictions of a model of this product."""
    store = data.store
    model = calibrate_classifier(train_classifier(data.crops, splits, plan, store, data.settings), data.crops, splits, plan.thresholds, store)
    store.path(model, "card.json")
    classifier = Classifier.load(store.path(model, MODEL_FILE).parent)
    test = (data.split(splits) == "test").to_numpy()
    scored = score_crops(data.rows[test].reset_index(drop=True), classifier, store, plan.model_input, "test crops")
    return data.answer(test, probability_matrix(scored, data.classes))


def by_usual_recipe(data: Data, plan: Plan, splits: Artifact, epochs: int) -> pd.DataFrame:
    """The test crops with the usual recipe's predictions."""
    test = (data.split(splits) == "test").to_numpy()
    train = data.rows[~test]
    targets = class_indices(train["class_id"], data.classes)
    network = train_usual(_pixels(train, data.store), targets, plan, epochs, data.settings)
    return data.answer(test, predict(network, _pixels(data.rows[test], data.store)))


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

    return np.stack([np.asarray(open_image(store.blob(blob)), np.uint8) for blob in table["blob"]])


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    import torch

    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)


def answers(data: Data, name: str, draw: int, fold: int, usual_epochs: int) -> pd.DataFrame:
    """A way's answers for the test crops of one fold of one draw."""
    plan, splits = data.plan, split_by_fold(data, draw, fold)
    train = TrainingConfig.model_validate(WAYS[name] | {"seed": draw}) if WAYS[name] else plan.train.model_copy(update={"seed": draw})
    of_way = plan.model_copy(update={"train": train})
    config = {"train": train.model_dump(mode="json")} | ({"usual_epochs": usual_epochs} if name == USUAL else {})

    def compute() -> pd.DataFrame:
        if name == USUAL:
            return by_usual_recipe(data, of_way, splits, usual_epochs)
        return (by_head if train.needs_embeddings() else by_product)(data, of_way, splits)

    return data.remember(splits, config, compute).assign(draw=draw, fold=fold)


def answers_of_draws(data: Data, names: list[str], draws: list[int], usual_epochs: int) -> dict[str, pd.DataFrame]:
    """Name of each way → its answers for the test crops of all folds and draws; with ``finished``, of the draws that the store has."""
    found: dict[str, list[pd.DataFrame]] = {}
    for draw in draws:
        for name in names:
            try:
                found[name] = found.get(name, []) + [answers(data, name, draw, fold, usual_epochs) for fold in range(FOLDS)]
            except NotFinishedError:
                continue
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


# -- figures -----------------------------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """Scores of a table of predictions; the first axis is the crops themselves, then the bootstrap draws over its locations."""

    f1: Floats  # [draws, classes]
    average_precision: Floats  # [draws, classes]
    locations: int

    def interval(self, values: Floats) -> str:
        """The 95 % interval over locations: ``+0.05 to +0.20``."""
        return ranged(percentile_interval(values, self.locations))


def figures(table: pd.DataFrame, ids: tuple[str, ...]) -> Figures:
    """F1 and average precision of every class in each draw; NaN where a draw holds none of it."""
    draws = BootstrapDraws(table)
    truth = class_indices(table["class_id"], ids)
    f1 = precision_recall_f1(draws.confusion_matrices(truth, class_indices(table["predicted"], ids), len(ids)))[2]
    aps = [draws.average_precisions(table[probability_column(c)].to_numpy(np.float64), truth == i) for i, c in enumerate(ids)]
    return Figures(f1, np.stack(aps, axis=1), draws.locations)


def ranged(ends: tuple[float, float] | None) -> str:
    """``+0.05 to +0.20``."""
    return "–" if ends is None else f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def report(tables: dict[str, pd.DataFrame], ids: tuple[str, ...]) -> dict[tuple[str, str], tuple[float, tuple[float, float] | None]]:
    """Print all tables. Returns the change of macro F1 between two ways on the draws that both have, and its interval."""
    found = {name: figures(table, ids) for name, table in tables.items()}
    rows: list[list[object]] = []
    for name, table in tables.items():
        f1, ap = (mean_over_present_classes(values) for values in found[name][:2])
        by_draw = {int(d): mean_over_present_classes(figures(table[table["draw"] == d], ids).f1)[0] for d in table["draw"].unique()}
        right = (table["class_id"] == table["predicted"]).to_numpy()
        error = expected_calibration_error(probability_matrix(table, ids).max(axis=1), right)
        rows.append([name, f1[0], found[name].interval(f1), ap[0], right.mean(), error, ", ".join(f"{d}: {f:.2f}" for d, f in by_draw.items())])
    first = next(iter(tables.values())).drop_duplicates("crop_id")
    title = f"{len(first)} crops at {first['location'].nunique()} locations, {FOLDS} folds"
    show(title, ("way", "macro F1", "95 %", "macro AP", "accuracy", "ECE", "macro F1 by draw"), rows)
    truth, locations = first["class_id"], first["location"]
    by_class = [[c, int((truth == c).sum()), locations[truth == c].nunique(), *(f.f1[0, i] for f in found.values())] for i, c in enumerate(ids)]
    show("F1 by class", ("class", "examples", "locations", *tables), by_class)
    changes = {}
    lines: list[list[object]] = []
    for better, worse in (pair for pair in COMPARED if set(pair) <= tables.keys()):
        common = set(tables[better]["draw"]) & set(tables[worse]["draw"])
        if not common:
            continue
        one, other = (figures(tables[name][tables[name]["draw"].isin(common)], ids) for name in (better, worse))
        change = mean_over_present_classes(one.f1) - mean_over_present_classes(other.f1)
        changes[better, worse] = (float(change[0]), percentile_interval(change, one.locations))
        by_id = [f"{c} {one.f1[0, i] - other.f1[0, i]:+.2f}" for i, c in enumerate(ids)]
        lines.append([f"{better} - {worse}", len(common), f"{change[0]:+.3f}", one.interval(change), ", ".join(by_id)])
    show("Change of macro F1", ("", "draws", "change", "95 % over locations", "by class"), lines)
    return changes


def main() -> None:
    """Train every way on every fold and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2], help="seeds of the folds (default: 0 1 2)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="ways to train (default: all)")
    parser.add_argument("--usual-epochs", type=int, default=20, help="epochs of the usual recipe (default: %(default)s)")
    parser.add_argument("--finished", action="store_true", help="report what the store has, and compute nothing")
    spec = parser.parse_args()
    data = read_data(spec, finished=spec.finished)
    changes = report(answers_of_draws(data, spec.ways, spec.draws, spec.usual_epochs), data.classes)
    change, ends = changes.get((AFTER, BEFORE), (float("nan"), None))
    figure = f"macro F1 {change:+.3f} of a head on two networks against fine-tuning, 95 % interval over locations {ranged(ends)}"
    conclude("recipes", figure=figure, aim=f"at least +{AIM}, the interval above 0", met=change >= AIM and ends is not None and ends[0] > 0)


if __name__ == "__main__":
    main()

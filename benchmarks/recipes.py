"""Scores of our classifier and of a usual recipe on the same real crops, splits and number of epochs, at locations never trained on.

The recipe does what camera-trap recipes such as animl-ml's do: resize only, no normalisation, no augmentation, no weighted sampling,
SGD with a learning rate of 1e-3, all layers from the first step, the last epoch is kept. It has the same pretrained weights and the
same precision as ours. Ours is the product: the plan's training, calibration and ONNX model. Each seed has a split by location of its
own. The test crops of all seeds are pooled; intervals are by bootstrap over locations.

The images come from the plan, whose relative paths start at --data or ANIML_DATA. Results are kept in --store, so a second run
only computes the figures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.tables import write_parquet

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the path first
import pandas as pd  # noqa: E402
from measure import conclude, show  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from animl_pipeline.inference.calibration_and_threshold_metrics import (  # noqa: E402
    expected_calibration_error,
    probability_column,
    probability_matrix,
    rescale_temperature,
)
from animl_pipeline.inference.score_crops import score_crops  # noqa: E402
from animl_pipeline.steps.evaluation.bootstrap_intervals import BootstrapDraws, mean_over_present_classes, percentile_interval, precision_recall_f1  # noqa: E402
from animl_pipeline.steps.evaluation.metrics import class_indices  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

    from animl_pipeline.config import Plan
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.core.artifacts import Artifact
    from animl_pipeline.storage.store import Store

AIM = 0.08
LR = 1e-3
TEMPERATURES = np.geomspace(0.25, 10, 400)
RECIPE, OURS = "recipe", "ours"
NAMES = {"f1": "F1", "average_precision": "AP"}
Floats = NDArray[np.float64]


class Figures(NamedTuple):
    """Scores of a table of predictions; the first axis is the bootstrap draws."""

    f1: Floats  # [draws, classes]
    average_precision: Floats  # [draws, classes]


class Seed(NamedTuple):
    """The test crops of one seed's split with the predictions of both, row by row."""

    predictions: dict[str, pd.DataFrame]
    uncalibrated: float  # the expected calibration error of ours, without and with its temperature
    calibrated: float
    best: float  # with the temperature that is best on the test crops: no temperature scaling can be better


# -- the data ----------------------------------------------------------------------------------------------------------


def make_crops(plan: Plan, store: Store, settings: Settings) -> Artifact:
    """The plan's crops."""
    from animl_pipeline.steps.crops import extract_crops
    from animl_pipeline.steps.detections import detect_animals
    from animl_pipeline.steps.export import export_annotations
    from animl_pipeline.steps.images import download_images
    from animl_pipeline.steps.labels import SourceArtifacts, resolve_labels, wanted_labels

    sources = []
    for source in plan.sources:
        export = export_annotations(source, store, settings)
        imgs = download_images(source, export, wanted_labels(plan.labels, source.name, settings), store, settings)
        sources.append(SourceArtifacts(source, export, imgs))
    labels = resolve_labels(sources, plan.labels, store, settings)
    return extract_crops(labels, detect_animals(labels, plan.detections, store, settings), plan.crops, plan.model_input, store, settings)


def plan_with_seed(plan: Plan, seed: int) -> Plan:
    """The plan with another seed, and a model name of its own, so that every seed has a test set of its own."""
    parts = {"model": f"{plan.model}-{seed}"} | {p: getattr(plan, p).model_copy(update={"seed": seed}) for p in ("splits", "train")}
    return plan.model_copy(update=parts)


def read_split(crops: Artifact, splits: Artifact, name: str, store: Store) -> pd.DataFrame:
    """The crops of one split."""
    table = store.table(crops, "crops.parquet").merge(store.table(splits, "splits.parquet"), on="crop_id")
    return table[table["split"] == name].sort_values("crop_id", ignore_index=True)


# -- both ways to train ------------------------------------------------------------------------------------------------


def ours(plan: Plan, crops: Artifact, splits: Artifact, store: Store, settings: Settings) -> tuple[pd.DataFrame, float]:
    """The test crops with the product's predictions, and its temperature."""
    from animl_pipeline.inference.classifier import MODEL_FILE, Classifier
    from animl_pipeline.steps.calibration import calibrate_classifier
    from animl_pipeline.steps.training import train_classifier

    model = calibrate_classifier(train_classifier(crops, splits, plan, store, settings), crops, splits, plan.thresholds, store)
    store.path(model, "card.json")
    classifier = Classifier.load(store.path(model, MODEL_FILE).parent)
    return score_crops(read_split(crops, splits, "test", store), classifier, store, plan.model_input, "test crops"), classifier.card.temperature


def recipe(plan: Plan, crops: Artifact, splits: Artifact, store: Store, settings: Settings) -> pd.DataFrame:
    """The test crops with the recipe's predictions."""
    from animl_pipeline.core.artifacts import Counts
    from animl_pipeline.storage.store import StepOutput, Workspace

    def build(space: Workspace) -> StepOutput:
        train, test = (read_split(crops, splits, name, store) for name in ("train", "test"))
        ids = tuple(plan.labels.classes)
        network = train_recipe(_pixels(train, store), class_indices(train["class_id"], ids), plan, settings)
        p = predict(network, _pixels(test, store))
        table = test.assign(predicted=np.asarray(ids, object)[p.argmax(1)], **{probability_column(c): p[:, i] for i, c in enumerate(ids)})
        write_parquet(space.out / "predictions.parquet", table)
        return StepOutput(Counts(kept=len(table)))

    config = {"epochs": plan.train.epochs, "batch": plan.train.batch_size, "lr": LR, "seed": plan.train.seed, "weights": plan.train.weights}
    made = store.make(Step("recipe", version=1), inputs={"crops": crops, "splits": splits}, config=config, build=build)
    return store.table(made, "predictions.parquet")


def train_recipe(pixels: NDArray[np.uint8], targets: NDArray[np.int64], plan: Plan, settings: Settings) -> nn.Module:
    """A network trained by the recipe: shuffled batches of pixels from 0 to 1, cross entropy, plain SGD."""
    import torch

    from animl_pipeline.steps.training.network_and_weights import build_network
    from animl_pipeline.steps.training.trainer import lightning_precision

    half = lightning_precision(plan.train, plan.model_input.size) == "bf16-mixed"
    network = build_network(plan.train, tuple(plan.labels.classes), plan.model_input, settings).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=LR)
    loss_of = torch.nn.CrossEntropyLoss()
    rng = np.random.default_rng(plan.train.seed)
    network.train()
    for _ in range(plan.train.epochs):
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


def compared(plan: Plan, crops: Artifact, seed: int, store: Store, settings: Settings) -> Seed:
    """Train and score both on one seed's split."""
    from animl_pipeline.steps.splits import split_by_location

    plan = plan_with_seed(plan, seed)
    ids = tuple(plan.labels.classes)
    splits = split_by_location(crops, plan.splits, ids, store, plan.model)
    scored, temperature = ours(plan, crops, splits, store, settings)
    right = (scored["class_id"] == scored["predicted"]).to_numpy()
    sure = probability_matrix(scored, ids)
    plain = rescale_temperature(sure, 1 / temperature)
    errors = [expected_calibration_error(p.max(axis=1), right) for p in (plain, sure, *(rescale_temperature(plain, t) for t in TEMPERATURES))]
    return Seed({RECIPE: recipe(plan, crops, splits, store, settings), OURS: scored}, errors[0], errors[1], min(errors))


def figures(table: pd.DataFrame, ids: tuple[str, ...], draws: BootstrapDraws) -> Figures:
    """F1 and average precision of every class in each draw; NaN where a draw holds none of it."""
    truth = class_indices(table["class_id"], ids)
    f1 = precision_recall_f1(draws.confusion_matrices(truth, class_indices(table["predicted"], ids), len(ids)))[2]
    aps = [draws.average_precisions(table[probability_column(c)].to_numpy(np.float64), truth == i) for i, c in enumerate(ids)]
    return Figures(f1, np.stack(aps, axis=1))


class Once(BootstrapDraws):
    """Every location once, for the scores themselves."""

    def __init__(self, rows: pd.DataFrame) -> None:
        super().__init__(rows)
        self.weights = self.weights[:1]


def ranged(ends: tuple[float, float] | None) -> str:
    """``+0.05 to +0.20``."""
    return "–" if ends is None else f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def report(seeds: dict[int, Seed], ids: tuple[str, ...]) -> tuple[float, tuple[float, float] | None]:
    """Print all tables. Returns the change of macro F1 and its interval."""
    pooled = {who: pd.concat([s.predictions[who] for s in seeds.values()], ignore_index=True) for who in (RECIPE, OURS)}
    draws = BootstrapDraws(pooled[OURS])
    whole = {who: figures(table, ids, Once(table)) for who, table in pooled.items()}
    drawn = {who: figures(table, ids, draws) for who, table in pooled.items()}
    truth, locations = pooled[OURS]["class_id"], pooled[OURS]["location"]
    columns = ("class", "examples", "locations", *(f"{what}, {who}" for what in ("F1", "AP") for who in (RECIPE, OURS)), "AP change", "95 %")
    rows: list[list[object]] = []
    for i, c in enumerate(ids):
        f1, ap = ([float(getattr(whole[who], what)[0, i]) for who in (RECIPE, OURS)] for what in Figures._fields)
        ends = percentile_interval(
            drawn[OURS].average_precision[:, i] - drawn[RECIPE].average_precision[:, i], draws.count_locations((truth == c).to_numpy())
        )
        rows.append([c, int((truth == c).sum()), locations[truth == c].nunique(), *f1, *ap, ap[1] - ap[0], ranged(ends)])
    show("Test crops of all seeds, class by class", columns, rows)
    macros = []
    for what in Figures._fields:
        recipes, own = (float(np.nanmean(getattr(whole[who], what)[0])) for who in (RECIPE, OURS))
        change = mean_over_present_classes(getattr(drawn[OURS], what)) - mean_over_present_classes(getattr(drawn[RECIPE], what))
        macros.append((what, recipes, own, own - recipes, percentile_interval(change, draws.locations)))
    show(
        f"Means over the classes, {draws.locations} locations",
        ("", RECIPE, OURS, "change", "95 % over locations"),
        [[f"macro {NAMES[what]}", *values, ranged(ends)] for what, *values, ends in macros],
    )
    show("Seed by seed", ("seed", "test crops", "locations", *_SEED_COLUMNS), [_row(seed, found, ids) for seed, found in seeds.items()])
    return macros[0][3], macros[0][4]


_SEED_COLUMNS = (*(f"macro {what}, {who}" for what in ("F1", "AP") for who in (RECIPE, OURS)), "ECE, ours", "calibrated", "best possible")


def _row(seed: int, found: Seed, ids: tuple[str, ...]) -> list[object]:
    each = [figures(found.predictions[who], ids, Once(found.predictions[who])) for who in (RECIPE, OURS)]
    means = [float(np.nanmean(getattr(f, what)[0])) for what in Figures._fields for f in each]
    table = found.predictions[OURS]
    return [seed, len(table), table["location"].nunique(), *means, found.uncalibrated, found.calibrated, found.best]


def main() -> None:
    """Train both on every seed's split and compare them."""
    from animl_pipeline.config import load_plan
    from animl_pipeline.config.settings import load_settings
    from animl_pipeline.storage.store import open_store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plan", type=Path, default=ROOT / "tests" / "flows" / "real-data.yaml", help="the plan (default: tests/flows/real-data.yaml)"
    )
    parser.add_argument("--data", type=Path, help="folder where the plan's relative paths start (default: ANIML_DATA)")
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "recipes", help="store for all results (default: runs/recipes)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    spec = parser.parse_args()
    settings = load_settings()
    settings = settings.model_copy(update={"store": str(spec.store), "data": spec.data or settings.data})
    plan, store = load_plan(spec.plan), open_store(settings)
    crops = make_crops(plan, store, settings)
    seeds = {seed: compared(plan, crops, seed, store, settings) for seed in spec.seeds}
    change, ends = report(seeds, tuple(plan.labels.classes))
    figure = f"macro F1 {change:+.3f} against the recipe in use, 95 % interval over locations {ranged(ends)}"
    conclude("recipes", figure=figure, aim=f"at least +{AIM}, the interval above 0", met=change >= AIM and ends is not None and ends[0] > 0)


if __name__ == "__main__":
    main()

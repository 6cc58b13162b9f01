"""`animl-pipeline detectors compare`: detectors on a plan's reviewed boxes and empty images, to choose one by."""

from __future__ import annotations

from typing import Annotated

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import DataOption, Debug, JsonOption, PlanArgument, StoreOption, open_plan, settings_with
from animl_pipeline.cli.tables import print_table
from animl_pipeline.config import DetectionsConfig, Plan

detectors = typer.Typer(help="Compare detectors on a plan's own images.", no_args_is_help=True, rich_markup_mode=None)


@detectors.callback()
def group() -> None:
    """Compare detectors on a plan's own images."""


@detectors.command("compare")
def compare(
    plan: PlanArgument,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            "--detector",
            help="a name of `animl-pipeline weights list` or a checkpoint, perhaps with views: megadetector-lite+mirror+gamma+half_size; repeatable. "
            "Without it: the plan's, and MegaDetector Lite without and with views",
            show_default=False,
        ),
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="images with reviewed boxes, at most")] = 1000,
    empty: Annotated[int, typer.Option(min=0, help="reviewed empty images of each source, at most")] = 500,
    as_json: JsonOption = False,
    store: StoreOption = None,
    data: DataOption = None,
) -> None:
    """Compare detectors on the boxes that people reviewed and on the images that they called empty, at the confidence of PLAN.

    Recall by size of the box, light and location, empty images with a detection of 1,000, and CPU seconds for an image.
    """
    from animl_pipeline.cli.run_steps_to_crops import label_images
    from animl_pipeline.config.labels import NothingConfig
    from animl_pipeline.steps.detections.compare_detectors import read_reviewed_images, score_detector
    from animl_pipeline.storage.store import open_store

    settings = settings_with(store, data)
    checked, opened = open_plan(plan, settings), open_store(settings)
    nothing = NothingConfig(id="empty image", max_images=empty, max_per_location=empty) if empty else None
    labels = checked.labels.model_copy(update={"nothing": nothing})
    with console.show_progress(debug=Debug.on):
        labelled = label_images(checked.model_copy(update={"labels": labels}), opened, settings)
        images = read_reviewed_images(labelled, nothing.id if nothing else "", max_images, opened, settings)
        scores = [score_detector(images, config, opened, settings) for config in _configs(checked, detector or [])]
    if as_json:
        console.print_json([s.model_dump(mode="json") for s in scores])
        return
    rows = []
    for s in scores:
        alarms = s.false_alarms_per_1000()
        slices = [of for key in ("size", "light") for of in s.by[key].values()]
        mean = s.mean_recall_of_locations
        cells = (_cell(s.all.recall()), _cell(mean), *(_cell(of.recall()) for of in slices), "-" if alarms is None else f"{alarms:,.0f}")
        rows.append((s.name, f"{s.confidence:g}", *cells, f"{s.cpu_s_per_image:.2f}"))
    names = [name.partition(" (")[0] for key in ("size", "light") for name in scores[0].by[key]]
    numbers = ("confidence", "recall", "mean of locations", *names, "false alarms of 1,000", "CPU s")
    title = f"{scores[0].all.boxes:,} reviewed boxes, {scores[0].empty_images:,} empty images of {checked.model}"
    print_table(title, ("detector", *numbers), rows, right=numbers, less_important=("confidence", "mean of locations"))
    counts = [f"{name} {of.boxes:,}" for key in ("size", "light") for name, of in scores[0].by[key].items()]
    console.out.print(f"boxes: {', '.join(counts)}")
    console.out.print("--json has the recall at each location. Boxes and labels that people missed count against a detector")


def _configs(plan: Plan, names: list[str]) -> list[DetectionsConfig]:
    """The detectors to compare as sections of a plan. Each has the confidence of the plan, or else its own."""
    own = plan.detections.model_copy(update={"source": "auto", "results": None, "repeat_min_occasions": None})
    if not names:
        lite = own.model_copy(update={"detector": "megadetector-lite", "sha256": None, "image_size": None, "views": ()})
        choices = [
            own,
            lite,
            lite.model_copy(update={"views": ("mirror", "gamma")}),
            lite.model_copy(update={"views": ("mirror", "gamma", "half_size")}),
        ]
        return [c for i, c in enumerate(choices) if c not in choices[:i]]
    return [_config(own, *name.split("+")) for name in names]


def _config(own: DetectionsConfig, detector: str, *views: str) -> DetectionsConfig:
    same = detector == own.detector
    values = own.model_dump() | {"detector": detector, "views": views} | ({} if same else {"sha256": None, "image_size": None})
    return DetectionsConfig.model_validate(values)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

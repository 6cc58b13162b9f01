"""From an export to labels and splits: CPU seconds and memory beside a script with quadratic look-ups and one with dictionaries.

python benchmarks/labels.py [--large] [--export FILE]

Ours does all that the pipeline does: the export kept untouched and checked, every problem listed, labels, MegaDetector's
format, splits with their register, everything in the store. The two scripts write one CSV. Pictures are not looked at:
what the steps for pictures and crops would leave behind is written by a few lines, whose CPU is left out. What the script
with scans would take at larger sizes is reckoned from two that were measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import tempfile
from pathlib import Path
from typing import Any

from exports import write_export
from measure import Measured, conclude, measured, show

from animl_pipeline.core.step import Step
from animl_pipeline.core.tables import write_parquet

HERE = Path(__file__)
CLASSES = ("rodent", "bird", "fox", "cat", "lizard", "skunk", "rat", "pig")
SMALL, MIDDLE, LARGE = 20_000, 200_000, 1_000_000
QUADRATIC = (2_000, 8_000)
"""Sizes at which the quadratic script is run; a·n + b·n² through them says what larger ones take."""
PARTS = ("export", "labels", "splits")
CPU_S, PEAK_GB, GROWTH, LARGE_GB = 12.0, 1.2, 1.3, 4.0
"""What is aimed at: at 200,000 images; growth of CPU an image from 20,000 to 1,000,000; memory there."""


def ours(export: Path, folder: Path) -> dict[str, Any]:
    """The pipeline's steps in a new store; CPU seconds of each, and of what stands in for pictures and crops."""
    from animl_pipeline.config import LabelsConfig, SourceConfig, SplitsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.export import export_annotations
    from animl_pipeline.steps.labels import SourceSteps, resolve_labels
    from animl_pipeline.steps.splits import split_by_location
    from animl_pipeline.storage.step_cache import open_store

    clock = _Clock()
    settings = Settings(store=str(folder / "store"), cache=folder / "cache")
    store = open_store(settings)
    source = SourceConfig.model_validate({"name": "island", "export": str(export), "images": str(folder)})
    spec = LabelsConfig.model_validate({"classes": {c: [c] for c in CLASSES}})
    clock.stop("imports")
    exported = export_annotations(source, store, settings)
    clock.stop("export")
    imgs = _stand_in_images(store, exported)
    clock.stop("(pictures)")
    labels = resolve_labels([SourceSteps(source, exported, imgs)], spec, store, settings)
    clock.stop("labels")
    crops = _stand_in_crops(store, labels)
    clock.stop("(crops)")
    splits = split_by_location(crops, SplitsConfig(val=0.2, test=0.1), CLASSES, store, "bench")
    clock.stop("splits")
    return {"steps": clock.seconds, "labels": labels.counts.kept, "splits": splits.counts.noted}


class _Clock:
    """CPU seconds of this process since it began, by what they were for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def stop(self, what: str) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.seconds[what] = used.ru_utime + used.ru_stime - sum(self.seconds.values())


def _stand_in_images(store: Any, export: Any) -> Any:
    """The images step as if every picture had arrived."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from animl_pipeline.core.records import Counts
    from animl_pipeline.storage.step_cache import StepOutput

    def build(space: Any) -> Any:
        table = pq.read_table(store.path(export, "images.parquet"), columns=["image_id", "path", "width", "height"])
        digests = pa.array([f"{i:064x}" for i in range(len(table))])
        table = table.append_column("blob", digests).append_column("bytes", pa.repeat(680_000, len(table)))
        write_parquet(space.out / "images.parquet", table)
        nothing = {c: pa.array([], pa.string()) for c in ("image_id", "path", "reason", "detail")}
        write_parquet(space.out / "missing.parquet", pa.table(nothing))
        return StepOutput(Counts(kept=len(table), unit="images"))

    return store.make(Step("images", version=1), inputs={"export": export}, build=build)


def _stand_in_crops(store: Any, labels: Any) -> Any:
    """The crops step as if every labelled box had been cut out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from animl_pipeline.core.records import Counts
    from animl_pipeline.storage.step_cache import StepOutput

    def build(space: Any) -> Any:
        columns = "source image_id object_id label place taken sequence ymin xmin ymax xmax blob bytes".split()
        table = pq.read_table(store.path(labels, "labels.parquet"), columns=columns).rename_columns(
            [{"blob": "image", "bytes": "image_bytes"}.get(c, c) for c in columns]
        )
        n = len(table)
        made = {"crop_id": table["annotation_id"], "blob": table["image"], "bytes": pa.repeat(50_000, n), "origin": pa.repeat("annotation", n)}
        for name, column in (made | {"confidence": pa.repeat(1.0, n)}).items():
            table = table.append_column(name, column)
        write_parquet(space.out / "crops.parquet", table)
        return StepOutput(Counts(kept=n, unit="crops"))

    return store.make(Step("crops", version=1), inputs={"labels": labels}, build=build)


def with_dictionaries(export: Path, folder: Path) -> dict[str, Any]:
    """A plain script: everything parsed at once, look-ups in dictionaries, places shuffled into three sides, a CSV."""
    with export.open() as f:
        cct = json.load(f)
    images = {image["id"]: image for image in cct["images"]}
    names = {category["id"]: category["name"] for category in cct["categories"]}
    rows = []
    for annotation in cct["annotations"]:
        name, image = names[annotation["category_id"]], images[annotation["image_id"]]
        if name in CLASSES and annotation["validated"]:
            x, y, w, h = annotation["bbox"]
            box = (y / image["height"], x / image["width"], (y + h) / image["height"], (x + w) / image["width"])
            rows.append([image["file_name"], image["location"], name, *box])
    return _written(rows, folder)


def with_scans(export: Path, folder: Path) -> dict[str, Any]:
    """The script in use, restated: for every annotation its image and its category are searched for in whole lists."""
    with export.open() as f:
        cct = json.load(f)
    rows = []
    for annotation in cct["annotations"]:
        name = [category for category in cct["categories"] if category["id"] == annotation["category_id"]][0]["name"]  # noqa: RUF015 - as it does
        image = [image for image in cct["images"] if image["id"] == annotation["image_id"]][0]  # noqa: RUF015 - as it does
        if name in CLASSES and annotation["validated"]:
            x, y, w, h = annotation["bbox"]
            box = (y / image["height"], x / image["width"], (y + h) / image["height"], (x + w) / image["width"])
            rows.append([image["file_name"], image["location"], name, *box])
    return _written(rows, folder)


def _written(rows: list[list[Any]], folder: Path) -> dict[str, Any]:
    locations = sorted({row[1] for row in rows})
    random.Random(0).shuffle(locations)  # noqa: S311 - no secret
    sides = {p: "test" if i < 0.1 * len(locations) else "val" if i < 0.3 * len(locations) else "train" for i, p in enumerate(locations)}
    with (folder / "crops.csv").open("w", newline="") as f:
        csv.writer(f).writerows([*row, sides[row[1]]] for row in rows)
    return {"labels": len(rows)}


RUNS = {"ours": ours, "dictionaries": with_dictionaries, "scans": with_scans}


def main() -> None:
    """Measure each in processes of its own, show the table, say whether the aims are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="ours at 1,000,000 images too, for growth and memory (a minute or two, 5 GB of disk)")
    parser.add_argument("--export", type=Path, help="an export of about 200,000 images to take instead of a synthetic one")
    parser.add_argument("--run", nargs=3, metavar=("WHAT", "EXPORT", "FOLDER"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.run:
        print(json.dumps(RUNS[a.run[0]](Path(a.run[1]), Path(a.run[2]))))
    else:
        compare(a.export, large=a.large)


def compare(export: Path | None, *, large: bool) -> None:
    """The table and the last line."""
    with tempfile.TemporaryDirectory(prefix="labels-") as name:
        folder = Path(name)
        made = {n: _export(folder, n) for n in (*QUADRATIC, SMALL, MIDDLE, *([LARGE] if large else []))} | ({MIDDLE: export} if export else {})
        scans = {n: _measured("scans", made[n], folder) for n in QUADRATIC}
        plain = {n: _measured("dictionaries", made[n], folder) for n in (SMALL, MIDDLE)}
        own = {n: _measured("ours", made[n], folder) for n in (SMALL, MIDDLE, *([LARGE] if large else []))}
    said = {n: m.said["steps"] for n, m in own.items()}
    apart = {n: sum(s for step, s in steps.items() if step.startswith("(")) for n, steps in said.items()}
    cpu = {n: m.cpu_s - apart[n] for n, m in own.items()}
    imports = {n: steps["imports"] for n, steps in said.items()}
    blank = ("",) * len(PARTS)
    rows: list[tuple[object, ...]] = [("scans", n, m.cpu_s, m.peak_mb / 1000, *blank) for n, m in scans.items()]
    rows += [("scans, reckoned", n, f"{_extrapolated(scans, n):,.0f}", "", *blank) for n in (SMALL, MIDDLE)]
    rows += [("dictionaries", n, m.cpu_s, m.peak_mb / 1000, *blank) for n, m in plain.items()]
    rows += [("ours", n, cpu[n], m.peak_mb / 1000, *(said[n][p] for p in PARTS)) for n, m in own.items()]
    show("From an export to labels and splits: CPU s", ("what", "images", "CPU s", "peak GB", *PARTS), rows)
    figure = f"{cpu[MIDDLE]:.1f} CPU s, {own[MIDDLE].peak_mb / 1000:.2f} GB at {MIDDLE:,} images"
    aim = f"at most {CPU_S:g} s, {PEAK_GB:g} GB"
    met = cpu[MIDDLE] <= CPU_S and own[MIDDLE].peak_mb <= PEAK_GB * 1000
    if large:
        growth, alone = ((cpu[LARGE] - out[LARGE]) / LARGE / ((cpu[SMALL] - out[SMALL]) / SMALL) for out in (imports, dict.fromkeys(own, 0.0)))
        figure += (
            f"; CPU an image at {LARGE:,} is {growth:.2f} times that at {SMALL:,} ({alone:.2f} with imports), {own[LARGE].peak_mb / 1000:.2f} GB"
        )
        aim += f"; at most {GROWTH:g}, {LARGE_GB:g} GB"
        met = met and growth <= GROWTH and own[LARGE].peak_mb <= LARGE_GB * 1000
    conclude("labels", figure=figure, aim=aim, met=met)


def _export(folder: Path, images: int) -> Path:
    path = folder / f"{images}.json"
    write_export(path, images)
    return path


def _measured(what: str, export: Path, folder: Path) -> Measured:
    with tempfile.TemporaryDirectory(dir=folder) as own:
        return measured(HERE, "--run", what, str(export), own)


def _extrapolated(known: dict[int, Measured], n: int) -> float:
    """a·n + b·n² through the two sizes that were measured."""
    (n1, m1), (n2, m2) = known.items()
    b = (m2.cpu_s / n2 - m1.cpu_s / n1) / (n2 - n1)
    return (m1.cpu_s / n1 - b * n1) * n + b * n * n


if __name__ == "__main__":
    main()

"""From an export to labels and splits: CPU seconds and memory beside a script with quadratic look-ups and one with dictionaries.

python benchmarks/labels.py [--large] [--export FILE]

Ours does all that the pipeline does: keeps and checks the export, lists every problem, makes labels, MegaDetector's format and
splits with their registry, and puts everything into the store. The two scripts write one CSV. Images are not used: stand-ins
write what the steps images and crops would write, and their CPU seconds do not count. The seconds of the script with scans at
larger sizes are extrapolated from two measured sizes.
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

from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, DOWNLOADED_IMAGES, EXPORT_IMAGES, LABELS, MISSING_IMAGES
from animl_pipeline.core.tables import Table, write_table

HERE = Path(__file__)
CLASSES = ("rodent", "bird", "fox", "cat", "lizard", "skunk", "rat", "pig")
SMALL, MIDDLE, LARGE = 20_000, 200_000, 1_000_000
QUADRATIC = (2_000, 8_000)
"""Sizes at which the quadratic script runs; a·n + b·n² through them gives the seconds at larger sizes."""
PARTS = ("export", "labels", "splits")
CPU_S, PEAK_GB, GROWTH, LARGE_GB = 12.0, 1.2, 1.3, 4.0
"""Aims at 200,000 images; growth of CPU seconds for each image from 20,000 to 1,000,000 images, and the memory there."""


def ours(export: Path, folder: Path) -> dict[str, Any]:
    """The pipeline's steps in a new store; CPU seconds of each, and of the stand-ins for images and crops."""
    from animl_pipeline.config import LabelsConfig, SourceConfig, SplitsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.export import export_annotations
    from animl_pipeline.steps.labels import SourceArtifacts, resolve_labels
    from animl_pipeline.steps.splits import split_by_location
    from animl_pipeline.storage.store import open_store

    clock = _Clock()
    settings = Settings(store=str(folder / "store"), cache=folder / "cache")
    store = open_store(settings)
    source = SourceConfig.model_validate({"name": "island", "export": str(export), "images": str(folder)})
    config = LabelsConfig.model_validate({"classes": {c: [c] for c in CLASSES}})
    clock.stop("imports")
    exported = export_annotations(source, store, settings)
    clock.stop("export")
    imgs = _stand_in_images(store, exported)
    clock.stop("(images)")
    labels = resolve_labels([SourceArtifacts(source, exported, imgs)], config, store, settings)
    clock.stop("labels")
    crops = _stand_in_crops(store, labels)
    clock.stop("(crops)")
    splits = split_by_location(crops, SplitsConfig(val=0.2, test=0.1), CLASSES, store, "bench")
    clock.stop("splits")
    return {"steps": clock.seconds, "labels": labels.counts.kept, "splits": splits.counts.notes}


class _Clock:
    """CPU seconds of this process, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def stop(self, what: str) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.seconds[what] = used.ru_utime + used.ru_stime - sum(self.seconds.values())


def _stand_in_images(store: Any, export: Any) -> Any:
    """The step images as if every image had been downloaded."""
    import pyarrow as pa

    from animl_pipeline.core.artifacts import Counts
    from animl_pipeline.storage.store import StepOutput

    def build(space: Any) -> Any:
        table = store.arrow_table(export, EXPORT_IMAGES, ["image_id", "path", "width", "height"])
        digests = pa.array([f"{i:064x}" for i in range(len(table))])
        table = table.append_column("blob", digests).append_column("bytes", pa.repeat(680_000, len(table)))
        write_table(space.out, DOWNLOADED_IMAGES, _with_all_columns(table, DOWNLOADED_IMAGES))
        write_table(space.out, MISSING_IMAGES, MISSING_IMAGES.schema().empty_table())
        return StepOutput(Counts(kept=len(table), unit="images"))

    return store.make(Step("images", version=1), inputs={"export": export}, build=build)


def _with_all_columns(table: Any, declared: Table) -> Any:
    """The declared columns; those that the table lacks are 0, false or empty."""
    import pyarrow as pa

    empty = {"string": "", "int64": 0, "double": 0.0, "bool": False}
    return pa.table({c.name: table[c.name] if c.name in table.column_names else pa.repeat(empty[c.type], len(table)) for c in declared.columns})


def _stand_in_crops(store: Any, labels: Any) -> Any:
    """The step crops as if every labelled box had been cropped."""
    import pyarrow as pa

    from animl_pipeline.core.artifacts import Counts
    from animl_pipeline.storage.store import StepOutput

    def build(space: Any) -> Any:
        table = store.arrow_table(labels, LABELS)
        n = len(table)
        made = {"crop_id": table["annotation_id"], "image": table["blob"], "image_bytes": table["bytes"], "confidence": pa.repeat(1.0, n)}
        columns = {name: table[name] for name in table.column_names} | made | {"origin": pa.repeat("annotation", n)}
        write_table(space.out, CROPS, _with_all_columns(pa.table(columns), CROPS))
        return StepOutput(Counts(kept=n, unit="crops"))

    return store.make(Step("crops", version=1), inputs={"labels": labels}, build=build)


def with_dictionaries(export: Path, folder: Path) -> dict[str, Any]:
    """A plain script: everything parsed at once, look-ups in dictionaries, locations shuffled into three splits, a CSV."""
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
    """The script in use, restated: for each annotation, its image and its category are searched in whole lists."""
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
    splits = {p: "test" if i < 0.1 * len(locations) else "val" if i < 0.3 * len(locations) else "train" for i, p in enumerate(locations)}
    with (folder / "crops.csv").open("w", newline="") as f:
        csv.writer(f).writerows([*row, splits[row[1]]] for row in rows)
    return {"labels": len(rows)}


RUNS = {"ours": ours, "dictionaries": with_dictionaries, "scans": with_scans}


def main() -> None:
    """Measure each in its own process, show the table, and say whether the aims are met."""
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
    """Print the table and the last line."""
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
    rows += [("scans, extrapolated", n, f"{_extrapolated(scans, n):,.0f}", "", *blank) for n in (SMALL, MIDDLE)]
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
    """a·n + b·n² through the two measured sizes."""
    (n1, m1), (n2, m2) = known.items()
    b = (m2.cpu_s / n2 - m1.cpu_s / n1) / (n2 - n1)
    return (m1.cpu_s / n1 - b * n1) * n + b * n * n


if __name__ == "__main__":
    main()

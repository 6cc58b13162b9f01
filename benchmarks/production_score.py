"""Score 200,000 test sequences as in production: CPU seconds and memory beside detector and classifier.

python benchmarks/production_score.py

Tables of test images, people's labels and detector boxes are written first, and answers for the boxes are drawn at random; none of that
counts. Measured are joining the tables, the outcomes of two models, all scores with their intervals, the comparison and the list.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measure import conclude, measured, show

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import SEARCHED_TEST_IMAGES, TEST_DETECTIONS, TEST_IMAGES, TEST_OBJECTS
from animl_pipeline.core.tables import Table, write_table
from animl_pipeline.inference.sequence_outcomes import ModelLabels
from animl_pipeline.steps.evaluation import production_score
from animl_pipeline.steps.evaluation.csv_tables_beside_report import sequence_table
from animl_pipeline.storage.store import StepOutput, Store, Workspace, open_store

SEQUENCES, IMAGES_EACH, LOCATIONS, BOXES = 200_000, 2, 200, 250_000
CLASSES = ("rodent", "bird", "fox", "cat", "lizard", "skunk", "rat", "pig")
CPU_S, PEAK_GB = 60.0, 1.0


def write_tables(store: Store) -> tuple[Artifact, Artifact]:
    """The steps test_images and test_detections with synthetic tables."""
    rng = np.random.default_rng(0)
    n = SEQUENCES * IMAGES_EACH
    ids = pd.Series(np.char.add("image-", np.char.zfill(np.arange(n).astype(str), 7)))
    sequence = np.arange(n) // IMAGES_EACH
    location = np.char.add("island/", (sequence % LOCATIONS).astype(str))
    times = pd.Timestamp("2025-01-01") + pd.to_timedelta(sequence * 60 + np.arange(n) % IMAGES_EACH, unit="s")
    taken = times.strftime("%Y-%m-%dT%H:%M:%S")
    images = _rows(TEST_IMAGES, n, source="island", image_id=ids, location=location, taken=taken, sequence=sequence, weight=1.0)
    with_animal = np.sort(rng.choice(n, BOXES // 2, replace=False))
    truth = np.array(CLASSES)[rng.integers(0, len(CLASSES), len(with_animal))]
    numbers = np.char.add("object-", np.arange(len(with_animal)).astype(str))
    box = {"ymin": 0.2, "xmin": 0.2, "ymax": 0.6, "xmax": 0.6}
    objects = _rows(TEST_OBJECTS, len(with_animal), source="island", image_id=ids[with_animal].to_numpy(), annotation_id=numbers, truth=truth, **box)
    found = np.concatenate([with_animal, rng.integers(0, n, BOXES - len(with_animal))])
    matched = np.concatenate([numbers, np.full(BOXES - len(with_animal), "")])
    found_in = {"image_id": ids[found].to_numpy(), "annotation_id": matched}
    boxes = _rows(TEST_DETECTIONS, BOXES, source="island", blob="0" * 64, confidence=0.5, **found_in, **box)
    searched = images[["source", "image_id"]].assign(blob="0" * 64, bytes=1)

    def build(tables: dict[Table, pd.DataFrame]) -> Artifact:
        def write(space: Workspace) -> StepOutput:
            for table, rows in tables.items():
                write_table(space.out, table, rows)
            return StepOutput(Counts(kept=n))

        name = "test_images" if TEST_IMAGES in tables else "test_detections"
        return store.make(Step(name, version=1), build=write)

    return build({TEST_IMAGES: images, TEST_OBJECTS: objects}), build({TEST_DETECTIONS: boxes, SEARCHED_TEST_IMAGES: searched})


def score(store: Store, steps: tuple[Artifact, Artifact]) -> dict[str, float]:
    """CPU seconds of the score of one model and its comparison with another."""
    begun = resource.getrusage(resource.RUSAGE_SELF)
    data = production_score.read_sequences(*steps, store)
    outcomes = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        labelled = rng.random((len(data.boxes), len(CLASSES))) < 0.1
        boxes = len(data.boxes)
        labels = ModelLabels(data.box_image, labelled, rng.integers(0, len(CLASSES), boxes), np.ones(boxes), data.truth_box, data.truth)
        outcomes.append(production_score.find_outcomes_of(data, labels, CLASSES, {}))
    found = production_score.score_production(data, outcomes[1], CLASSES, 0.1)
    production_score.compare_production(data, (outcomes[0], outcomes[1]), (CLASSES, CLASSES))
    sequence_table(data, outcomes[1], CLASSES)
    production_score.list_sequences(data, outcomes[1], CLASSES)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    cpu = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    return {"cpu_s": cpu, "sequences": found.sequences}


def _rows(table: Table, n: int, **columns: object) -> pd.DataFrame:
    empty = {"string": "", "int64": 0, "double": 0.0, "bool": False}
    return pd.DataFrame({c.name: columns.get(c.name, empty[c.type]) for c in table.columns}, index=range(n))


def main() -> None:
    """Measure in a process of its own."""
    if len(sys.argv) > 1:
        store = open_store(Settings(store=sys.argv[1]))
        print(json.dumps(score(store, write_tables(store))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_tables(open_store(Settings(store=folder)))
        run = measured(Path(__file__), folder)
    cpu, peak = float(run.said["cpu_s"]), run.peak_mb / 1024
    rows = [("sequences", int(run.said["sequences"]), ""), ("CPU s", cpu, CPU_S), ("peak GB", peak, PEAK_GB)]
    show("production score", ("what", "measured", "aim"), rows)
    figure = f"{cpu:.1f} CPU s, {peak:.2f} GB for {SEQUENCES:,} sequences"
    conclude("production_score", figure=figure, aim=f"at most {CPU_S:.0f} s, {PEAK_GB:.0f} GB", met=cpu <= CPU_S and peak <= PEAK_GB)


if __name__ == "__main__":
    main()

"""The pages about a model in service, from synthetic data: the monitor with strangers and an alarm, its review list, and a replay."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.config.monitor import MonitorConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.crop_for_page import crop_data_uri
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.dev.synthetic_images import HEIGHT, SPECIES, WIDTH, draw_animal, draw_scenes, encode_image, place_animal
from animl_pipeline.review.candidates import Pool
from animl_pipeline.review.review_next import COLUMNS
from animl_pipeline.review.review_page import render_page
from animl_pipeline.steps.monitor import ServiceLabels, UnreviewedLook, monitor_service
from animl_pipeline.steps.monitor.label_rows import merge_rows, rows_of_images, to_parquet
from animl_pipeline.steps.monitor.unreviewed_look import EmbeddingDrift, Stranger
from animl_pipeline.steps.replay import InService, replay_model
from animl_pipeline.storage.store import Store
from tests.support.packaged_model import CLASSES, make_package
from tests.support.service_history import BEGIN, History, draw_history, project_names, served_model

DAYS = 548
SPECIES_NAMES = tuple(SPECIES)


class DrawnAnimal(NamedTuple):
    """An animal in a synthetic image in the store."""

    species: str
    blob: str
    box: Box
    taken: datetime


def draw_animals(count: int, store: Store) -> list[DrawnAnimal]:
    """Images of one animal each at several locations, every third by night."""
    found: list[DrawnAnimal] = []
    number = 0
    while len(found) < count:
        rng, number = np.random.default_rng((7, number)), number + 1
        night = number % 3 == 0
        canvas = draw_scenes(np.random.default_rng(number % 6))[night].pixels.copy()
        species, taken = SPECIES_NAMES[number % len(SPECIES_NAMES)], BEGIN + timedelta(days=DAYS, hours=-number)
        drawn = draw_animal(canvas, place_animal(species, rng), night)
        if drawn is not None:
            x, y, w, h = drawn
            box = Box.of([y / HEIGHT, x / WIDTH, (y + h) / HEIGHT, (x + w) / WIDTH])
            found.append(DrawnAnimal(species, store.put_blob(encode_image(canvas, night, 1.0, "Cove", taken, rng)), box, taken))
    return found


def fill_with_service_pages(store: Store, folder: Path) -> dict[str, str]:
    """Make the pages; name → path on the report server."""
    animals = draw_animals(24, store)
    package = make_package(store, folder, thresholds=dict.fromkeys(CLASSES, 0.5))
    monitor, replay = _monitor(animals, store, package), _replay(animals, store, package)
    path = {name: f"/steps/{made.step}/{made.key}" for name, made in (("monitor", monitor), ("replay", replay))}
    return {"monitor": f"{path['monitor']}/monitor.html", "review": f"{path['monitor']}/review.html", "replay": f"{path['replay']}/replay.html"}


def _monitor(animals: list[DrawnAnimal], store: Store, package: Artifact) -> Artifact:
    history = History(days=DAYS, drop_from=DAYS - 40, rate=1.5)
    rows = merge_rows([rows_of_images(draw_history(history), "isle", project_names(history), None)])
    labels = ServiceLabels(source="isle", blob=store.put_blob(to_parquet(rows)), asked=BEGIN + timedelta(days=DAYS), missing_images=0)
    strangers = tuple(
        Stranger(
            image_id=f"isle:{i:032x}", location=f"Site {i}", taken=a.taken.isoformat(), likeliest="rat", link="https://animl.example/app",
            crop=crop_data_uri(store, a.blob, a.box),
        )
        for i, a in enumerate(a for a in animals if a.species == "lizard")
    )  # fmt: skip
    table = _review_table(animals)
    card = ModelCard.model_validate_json(store.path(package, "card.json").read_bytes()).model_copy(update={"model": "isle-classifier"})
    pool = Pool(pd.DataFrame(index=range(200)), np.zeros(200, bool), 41_200, 15_800)
    page = render_page(table, pd.Series([a.blob for a in animals]), (), store, card, pool)
    look = UnreviewedLook(
        said="", strangers=strangers, drift=EmbeddingDrift(animals=160, mean=1.31, low=1.12, high=1.52, usual=1.24), listed=len(table),
        list_csv=table.to_csv(index=False), list_page=page,
    )  # fmt: skip
    day = (BEGIN + timedelta(days=DAYS)).date()
    return monitor_service([labels], served_model(), "isle-classifier", ("rat",), (), MonitorConfig(), day, store, look)


def _review_table(animals: list[DrawnAnimal]) -> pd.DataFrame:
    reasons = ["random"] * 4 + ["stranger"] * 4 + ["thin_class"] * 4 + ["informative"] * (len(animals) - 12)
    rows: list[dict[str, Any]] = [
        {
            "rank": i + 1, "reason": reason, "random": reason == "random", "source": "isle", "image_id": f"isle:{i:032x}",
            "location": f"Site {i % 9}",
            "taken": f"{a.taken:%Y-%m-%d %H:%M}", "label": a.species if i % 3 else "unknown", "probability": 0.4 + 0.02 * i, "likeliest": a.species,
            "margin": 0.1, "stranger_score": 1.0, "suspected_stranger": reason == "stranger", **a.box.model_dump(), "link": "https://animl.example/app",
        }
        for i, (a, reason) in enumerate(zip(animals, reasons, strict=True))
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def _replay(animals: list[DrawnAnimal], store: Store, package: Artifact) -> Artifact:
    """Of the colour model: what it calls the animals does not matter."""
    objects = pd.DataFrame(
        [
            {
                "source": "isle", "image_id": f"isle:{i:032x}", "image": a.blob, "location": f"Site {i % 9}", **a.box.model_dump(),
                "old": [CLASSES[i % 3]] if i % 4 else [], "truth": CLASSES[i % 2] if i % 5 else "", "decided": i % 5 > 0, "people": False,
            }
            for i, a in enumerate(animals)
        ]
    )  # fmt: skip
    before = InService("v3", objects, len(animals), 0, CLASSES, {}, {})
    return replay_model(package, before, ("red",), {}, "https://animl.example/{image}", store)

"""The monitor's look at unreviewed images: the next review list in the store, suspected strangers with links, and the embedding."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.review.look_for_monitor import look_at_unreviewed
from animl_pipeline.steps.detections.choose_detector import choose_detector
from animl_pipeline.steps.monitor import read_random_sample
from animl_pipeline.storage.store import Store, sha256_of
from tests.review.conftest import BLUE, GREEN, RED, STRANGE, animl_settings, put_image, unreview, with_project
from tests.support.animl_images import DAY, make_images
from tests.support.animl_server import serve_animl

TODAY = DAY.date() + timedelta(days=2)


def watched(plan: Plan, folder: Path) -> Plan:
    monitor = plan.monitor.model_copy(update={"review_images": 10, "reference_sequences": 20})
    return with_project(plan, folder / "images", monitor=monitor)


def remember_boxes(plan: Plan, store: Store, settings: Settings, folder: Path) -> None:
    """Let the store know a box in each image, as if the detector had looked before."""
    confidence = plan.production.detector_confidence if plan.production else None
    detector = choose_detector(plan.detections.model_copy(update={"confidence": confidence}), settings)
    boxes = {sha256_of(path): {"boxes": [["1", 0.9, 0.1, 0.1, 0.6, 0.6]]} for path in (folder / "images" / "isle").rglob("*.jpg")}
    store.add_to_index(detector.index_name(), boxes)


def test_strangers_are_listed_a_drift_is_an_alarm_until_it_ends_and_the_list_is_kept(
    tmp_path: Path, plan: Plan, store: Store, settings: Settings
) -> None:
    plan = watched(plan, tmp_path)
    images = unreview(make_images(48))
    for i, image in enumerate(images):
        put_image(image, tmp_path / "images", STRANGE if i == 7 else (RED, GREEN, BLUE)[i % 3])
    with serve_animl(images) as site:
        settings = animl_settings(site, settings)
        remember_boxes(plan, store, settings, tmp_path)
        look = look_at_unreviewed(plan, "1", TODAY, store, settings)
        assert [s.image_id for s in look.strangers][:1] == [images[7].id]
        assert look.strangers[0].link.startswith("https://animl.test/")
        assert look.strangers[0].crop.startswith("data:image/jpeg")
        assert (look.said, look.listed, look.list_csv.count("\n"), "<script" in look.list_page) == ("", 10, 11, False)
        assert len(read_random_sample("colours", store)) == 1
        assert look.drift is not None
        assert (look.drift.animals, look.drift.usual, look.drift.raised_at) == (48, None, "")
        assert look_at_unreviewed(plan, "1", TODAY, store, settings) == look
    for image in images:
        put_image(image, tmp_path / "images", STRANGE)
    with serve_animl(images) as site:
        settings = animl_settings(site, settings)
        remember_boxes(plan, store, settings, tmp_path)
        for day in (1, 2):
            changed = look_at_unreviewed(plan, "1", TODAY + timedelta(days=day), store, settings)
            assert changed.drift is not None
            assert (changed.drift.usual, changed.drift.raised_at) == (look.drift.mean, str(TODAY + timedelta(days=1)))


def test_a_second_look_on_the_same_day_keeps_the_first_random_sample(tmp_path: Path, plan: Plan, store: Store, settings: Settings) -> None:
    plan, images = watched(plan, tmp_path), unreview(make_images(48))
    for i, image in enumerate(images):
        put_image(image, tmp_path / "images", (RED, GREEN, BLUE)[i % 3])
    with serve_animl(images) as site:
        settings = animl_settings(site, settings)
        remember_boxes(plan, store, settings, tmp_path)
        look_at_unreviewed(plan, "1", TODAY, store, settings)
        (drawn,) = read_random_sample("colours", store)
        (thing,) = next(image for image in images if image.id == drawn).objects
        thing.validated, thing.date = True, datetime.now(UTC)  # a person reviews it
        for label in thing.labels:
            label.validated, label.date = True, datetime.now(UTC)
        look_at_unreviewed(plan, "1", TODAY, store, settings)
    assert drawn in read_random_sample("colours", store)


@pytest.mark.parametrize("wanted", [0, 10])
def test_without_images_a_sentence_says_that_nothing_was_looked_at(wanted: int, plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    plan = plan.model_copy(update={"monitor": plan.monitor.model_copy(update={"review_images": wanted})})
    with serve_animl(make_images(3)) as site:  # all reviewed
        plan = with_project(plan, tmp_path)
        look = look_at_unreviewed(plan, "1", date(2026, 3, 3), store, animl_settings(site, settings))
    assert (bool(look.said), look.drift, look.list_page) == (True, None, "")

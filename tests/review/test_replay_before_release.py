"""The replay before a release: labels gained and lost on the last images in service, judged by what people validated; kept until approved."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from animl_pipeline.config import Plan, ThresholdsConfig
from animl_pipeline.config.package_and_release import RegisterConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.table_schemas import REPLAYED_LABELS
from animl_pipeline.deploy.trained_versions import read_report
from animl_pipeline.review.replay_before_release import replay_before_release
from animl_pipeline.steps.replay import PAGE_FILE, read_replay
from animl_pipeline.storage.store import Store
from tests.review.conftest import BLUE, GREEN, GREY, RED, animl_settings, put_image, release_record, with_project
from tests.support.animl_images import AnimlImage, AnimlLabel, AnimlObject
from tests.support.animl_server import AnimlServer, serve_animl

RELEASED = datetime(2026, 3, 1, tzinfo=UTC)
FOUND = AnimlLabel("animal", "megadetector_v5a", "5a", 0.9)


def answered(name: str, right: bool | None = None) -> AnimlLabel:
    """A label by the model in service, and what people decided about it."""
    return AnimlLabel(name, "colours", "0.9", 0.9, validated=right, date=None if right is None else RELEASED + timedelta(days=9))


def seen(name: str) -> AnimlLabel:
    """A label that a person gave."""
    return AnimlLabel(name, validated=True, date=RELEASED + timedelta(days=9))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[AnimlServer]:
    """Images with the colour that they show, and their labels; the last one was added before the release."""
    kinds = [
        (RED, [answered("green", right=False), FOUND, seen("red")]),
        (GREEN, [FOUND]),
        (RED, [answered("red"), FOUND]),
        (BLUE, [FOUND]),
        (GREY, [answered("red", right=True), FOUND]),
        (GREEN, [answered("red"), FOUND]),
    ]
    images = []
    for i, (colour, labels) in enumerate(kinds):
        image = AnimlImage("", taken=RELEASED + timedelta(hours=i), added=RELEASED + timedelta(hours=i + 1), deployment="<b>Cove")
        locked = any(label.validated is not None for label in labels)
        image.objects = [AnimlObject(f"{i:024x}", labels=labels, locked=locked)]
        put_image(image, tmp_path / "images", colour)
        images.append(image)
    images[3].objects.append(AnimlObject("f" * 24, bbox=(30, 4, 20, 20), labels=[AnimlLabel("person", "megadetector_v5a", "5a", 0.9)], locked=False))
    images[0].objects.append(AnimlObject("e" * 24, bbox=(30, 4, 20, 20), labels=[seen("blue")]))  # drawn by hand: no model answered it
    images[5].added = RELEASED - timedelta(days=1)
    with serve_animl(images) as site:
        yield site


@pytest.fixture
def replayed(plan: Plan, tmp_path: Path, site: AnimlServer) -> Plan:
    release = plan.release.model_copy(update={"replay": plan.release.replay.model_copy(update={"images": 5})})
    return with_project(plan, tmp_path / "images", thresholds=ThresholdsConfig(invasive=("red",)), release=release)


@pytest.fixture
def report(replayed: Plan, store: Store) -> Report:
    return read_report(replayed.model, "", store)


def test_labels_gained_and_lost_on_the_last_images_are_judged_by_reviews_and_shown_without_people(
    replayed: Plan, report: Report, site: AnimlServer, store: Store, settings: Settings
) -> None:
    release_record(replayed, "0.9", RELEASED, store)
    settings = animl_settings(site, settings)
    note = replay_before_release(report, replayed, store, settings)
    assert note.artifact is not None
    result = read_replay(note.artifact, store)
    assert (result.champion, result.challenger, result.images, result.animals, result.decided, result.not_readable) == ("0.9", "1", 5, 5, 2, 0)
    found = {
        c.id: (c.invasive, c.before, c.after, tuple(c.gained.model_dump().values()), tuple(c.lost.model_dump().values())) for c in result.classes
    }
    assert found == {
        "red": (True, 2, 2, (1, 0, 0), (1, 0, 0)),
        "green": (False, 1, 1, (0, 0, 1), (0, 1, 0)),
        "blue": (False, 0, 1, (0, 0, 1), (0, 0, 0)),
    }
    page = store.path(note.artifact, PAGE_FILE).read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') == 4  # five changes, one beside a person
    assert ("<b>" in page, page.count("https://animl.test/")) == (False, 4)
    assert store.table(note.artifact, REPLAYED_LABELS)["people"].sum() == 1
    asked = site.request_counts["POST"]
    assert (replay_before_release(report, replayed, store, settings), site.request_counts["POST"]) == (note, asked)


def test_labels_that_animl_would_not_keep_are_not_counted(
    replayed: Plan, report: Report, site: AnimlServer, store: Store, settings: Settings
) -> None:
    register = RegisterConfig(disabled=("blue",), thresholds={"red": 0.9999999})
    plan = replayed.model_copy(update={"release": replayed.release.model_copy(update={"register_": register})})
    release_record(plan, "0.9", RELEASED, store)
    settings = animl_settings(site, settings)
    note = replay_before_release(report, plan, store, settings)
    assert note.artifact is not None
    assert {c.id: c.after for c in read_replay(note.artifact, store).classes} == {"red": 0, "green": 1}
    other = replay_before_release(report, replayed, store, settings)
    assert other.artifact is not None
    assert {c.id: c.after for c in read_replay(other.artifact, store).classes} == {"red": 2, "green": 1, "blue": 1}


def test_without_a_model_in_service_or_its_answers_a_sentence_says_so(
    replayed: Plan, plan: Plan, report: Report, site: AnimlServer, store: Store, settings: Settings
) -> None:
    settings = animl_settings(site, settings)
    none = [replay_before_release(report, replayed, store, settings)]
    release_record(replayed, "0.9", RELEASED + timedelta(days=30), store)
    none += [replay_before_release(report, wanted, store, settings) for wanted in (plan, replayed)]
    assert [note.artifact for note in none] == [None] * 3
    assert len({note.text for note in none}) == 3


def test_images_that_cannot_be_read_are_counted(
    replayed: Plan, report: Report, site: AnimlServer, store: Store, settings: Settings, tmp_path: Path
) -> None:
    release_record(replayed, "0.9", RELEASED, store)
    for file in list((tmp_path / "images").rglob(f"*{site.images[1].id.rpartition(':')[2]}*")):
        file.unlink()
    note = replay_before_release(report, replayed, store, animl_settings(site, settings))
    assert note.artifact is not None
    result = read_replay(note.artifact, store)
    assert (result.images, result.animals, result.not_readable) == (4, 4, 1)

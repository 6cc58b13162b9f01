"""The step monitor: figures against plain loops, alarms, and labels from Animl's test server: new ones only, after a kill, in small pages."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import SecretStr

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.monitor import MonitorConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, ExportUnreachableError
from animl_pipeline.core.table_schemas import SEQUENTIAL_TESTS, SERVICE_METRICS
from animl_pipeline.steps.monitor import ServiceLabels, ServiceStatus, monitor_service, read_random_sample, read_service_labels, read_status
from animl_pipeline.steps.monitor.camera_activity import camera_activity, night_share
from animl_pipeline.steps.monitor.label_rows import from_parquet, merge_rows, rows_of_images, to_parquet
from animl_pipeline.steps.monitor.sequential_test import CusumDesign, choose_threshold, mean_run_length, run_cusum
from animl_pipeline.steps.monitor.unreviewed_look import EmbeddingDrift, Stranger, UnreviewedLook
from animl_pipeline.storage.gc import GcRules, collect_garbage
from animl_pipeline.storage.store import Store, blob_name, open_store
from tests.support.animl_images import AnimlImage, AnimlLabel, AnimlObject
from tests.support.animl_server import AnimlServer, serve_animl
from tests.support.sequence_score_rules import AnimlImage as ScoredImage
from tests.support.sequence_score_rules import AnimlObject as ScoredObject
from tests.support.sequence_score_rules import Label, tally
from tests.support.service_history import BEGIN, CLASSES, MODEL, VERSIONS, History, draw_history, label_name, project_names, served_model

END = BEGIN + timedelta(days=548)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(Settings(store=str(tmp_path_factory.mktemp("store"))))


def stored(images: list[dict[str, Any]], history: History, store: Store) -> ServiceLabels:
    data = to_parquet(merge_rows([rows_of_images(images, "isle", project_names(history), None)]))
    return ServiceLabels(source="isle", blob=store.put_blob(data), asked=END, missing_images=0)


def figures(table: pd.DataFrame, metric: str, by: str = "all", sample: str = "reviewed") -> dict[tuple[str, str], tuple[float, float]]:
    """(group, class) → (numerator, denominator)."""
    rows = table[(table["metric"] == metric) & (table["by"] == by) & (table["sample"] == sample)]
    return {(r["group"], r["class_id"]): (round(r["value"] * r["count"], 6), r["count"]) for r in rows.to_dict("records")}


def counted(images: list[dict[str, Any]], metric: str, by: str) -> dict[tuple[str, str], tuple[float, float]]:
    """The same of plain loops over Animl's documents."""
    parts: Counter[tuple[str, str]] = Counter()
    wholes: Counter[tuple[str, str]] = Counter()

    def add(image: dict[str, Any], class_id: str, right: bool) -> None:
        taken = datetime.fromisoformat(image["dateTimeAdjusted"])
        version = [name for start, name in VERSIONS if start <= taken][-1]
        group = {"all": "", "month": f"{taken:%Y-%m}", "version": version, "light": "day" if 6 <= taken.hour < 18 else "night"}[by]
        for key in {(group, class_id), (group, "")}:
            parts[key] += right
            wholes[key] += 1

    for image in images:
        if metric == "share_reviewed":
            add(image, "", image["reviewed"])
        for o in image["objects"]:
            truth = next((label_name(x) for x in o["labels"] if x["validation"] and x["validation"]["validated"]), "")
            ours = {label_name(x) for x in o["labels"] if x.get("mlModel") == MODEL}
            if metric == "unknown_rate":
                add(image, "", not ours)
            for c in ours if metric == "precision" and o["locked"] else ():
                add(image, c, c == truth)
            if metric == "recall" and o["locked"] and truth in CLASSES:
                add(image, truth, truth in ours)
    return {key: (parts[key], n) for key, n in wholes.items()}


def scored(image: dict[str, Any]) -> ScoredImage:
    """A document in the form of TNC's rules."""
    objects = [
        ScoredObject(
            o["locked"],
            tuple(Label(label_name(x), x.get("mlModel") == MODEL, x["validation"] and x["validation"]["validated"]) for x in o["labels"]),
        )
        for o in image["objects"]
    ]
    return ScoredImage(image["deploymentId"], datetime.fromisoformat(image["dateTimeAdjusted"]).timestamp(), tuple(objects))


@pytest.fixture(scope="module")
def history() -> History:
    return History(rate=0.25)


@pytest.fixture(scope="module")
def images(history: History) -> list[dict[str, Any]]:
    return list(draw_history(history))


def test_the_figures_of_18_months_are_those_of_plain_loops(images: list[dict[str, Any]], history: History, store: Store) -> None:
    chosen = {image["_id"] for image in images if image["_id"].endswith(("0-0", "5-0", "7-0"))}
    made = monitor_service([stored(images, history, store)], served_model(), "isle", ("rat",), chosen, MonitorConfig(), END.date(), store)
    table = store.table(made, SERVICE_METRICS)
    for metric in ("precision", "recall", "unknown_rate", "share_reviewed"):
        for by in ("all", "month", "version", "light"):
            assert figures(table, metric, by) == counted(images, metric, by), (metric, by)
    fair = [image for image in images if image["_id"] in chosen]
    assert figures(table, "precision", sample="random") == counted(fair, "precision", "all")
    of_sequences = figures(table, "sequence_recall"), figures(table, "sequence_precision")
    for c in CLASSES:
        found = tally([scored(image) for image in images if image["reviewed"]], c, set())
        assert of_sequences[0]["", c] == (found.hits, found.actual)
        assert of_sequences[1]["", c] == (found.hits, found.hits + found.false_alarms)
    assert (table["low"] <= table["value"]).all() or table["low"].isna().any()
    status = read_status(made, store)
    cows = sum(label_name(x) == "cow" for i in images for o in i["objects"] for x in o["labels"])
    assert f"Not in the plan: {cows} × cow." in status.warnings
    again = monitor_service([stored(images, history, store)], served_model(), "isle", ("rat",), chosen, MonitorConfig(), END.date(), store)
    assert again.cached
    assert again.digest == made.digest


def test_labels_that_name_another_version_than_the_one_that_served_are_counted_and_the_history_decides(history: History, store: Store) -> None:
    images = list(draw_history(History(days=30)))
    for label in (label for image in images for o in image["objects"] for label in o["labels"] if label.get("mlModel") == MODEL):
        label["mlModelVersion"] = "v0"
    made = monitor_service([stored(images, history, store)], served_model(), "isle", (), set(), MonitorConfig(), END.date(), store)
    assert {group for group, _ in figures(store.table(made, SERVICE_METRICS), "precision", "version")} == {"v1"}
    assert any("another version than the one that served" in line for line in read_status(made, store).warnings)


def test_a_drop_of_15_points_is_found_within_two_weeks_of_reviews(store: Store) -> None:
    history = History(rate=20, reviewed=1.0, days=60, images=1, drop_from=35)
    images = [i for i in draw_history(history) if label_kinds(i) & {"rat", ""}]
    made = monitor_service([stored(images, history, store)], served_model(), "isle", ("rat",), set(), MonitorConfig(), END.date(), store)
    status = read_status(made, store)
    assert [a.class_id for a in status.alarms] == ["rat"]
    first_reviews = BEGIN + timedelta(days=35 + 7)
    assert first_reviews <= datetime.fromisoformat(status.alarms[0].raised_at) <= first_reviews + timedelta(days=14)
    table = store.table(made, SEQUENTIAL_TESTS)
    assert table["alarm"].sum() == 1
    assert table["statistic"].isna().sum() >= 200


def label_kinds(image: dict[str, Any]) -> set[str]:
    """What people or the model called a rat, or nothing."""
    names = {label_name(x) for o in image["objects"] for x in o["labels"]} - {"animal"}
    return names or {""}


def test_the_threshold_gives_the_run_length_that_was_asked_for() -> None:
    design = CusumDesign(0.9, 0.75, 1.0, 0.0, 1000.0)
    threshold = choose_threshold(design, 2000)
    assert mean_run_length(design, threshold) == pytest.approx(2000, rel=0.01)
    rng, (wrong, right) = np.random.default_rng(0), design.steps()
    lengths = []
    for _ in range(60):
        total, n = 0.0, 0
        while total < threshold:
            total, n = max(0.0, total + (right if rng.random() < 0.9 else wrong)), n + 1
        lengths.append(n)
    assert 1300 < np.mean(lengths) < 3000  # 60 runs: the mean's standard error is 13 %


def outcomes(rng: np.random.Generator, rate: float, per_day: float, days: int) -> pd.DataFrame:
    n = rng.poisson(per_day * days)
    taken = np.sort(rng.random(n)) * days * 86_400
    return pd.DataFrame({"right": rng.random(n) < rate, "location": rng.integers(0, 30, n).astype(str), "taken_s": taken, "validated_s": taken})


@pytest.mark.slow
def test_without_a_drop_at_most_one_false_alarm_in_five_years() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        runs = [run_cusum(outcomes(rng, rate, 15, 5 * 365), 0.15, 6, MonitorConfig()) for rate in (0.85, 0.9, 0.92, 0.94, 0.95, 0.97)]
        assert sum(int(run.rows["alarm"].sum()) for run in runs) <= 1


def test_too_few_reviews_are_no_alarm_and_said_so(store: Store) -> None:
    history = History(days=40)
    images = list(draw_history(history))
    for image in images[:50]:
        image["deploymentId"] = f"unknown-{len(images)}"
        image["cameraId"] = "<script>alert(1)</script>"
    made = monitor_service([stored(images, history, store)], served_model(), "isle", ("rat",), set(), MonitorConfig(), END.date(), store)
    status = read_status(made, store)
    assert (status.state, status.alarms) == ("NotEnoughReviewed", ())
    page = Path(status.page).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "http" not in page


@pytest.mark.parametrize(
    "change",
    [
        {"objects": None, "tags": None, "reviewed": None, "deploymentId": None},
        {"dateTimeAdjusted": None, "timezone": "Mars/Base"},
        {"objects": [{"_id": "o", "locked": True, "labels": []}]},
    ],
)
def test_images_with_missing_and_odd_values_are_counted_and_never_stop_the_run(change: dict[str, Any], store: Store) -> None:
    history = History(days=10)
    images = [image | change for image in draw_history(history)]
    made = monitor_service([stored(images, history, store)], served_model(), "isle", ("rat",), set(), MonitorConfig(), END.date(), store)
    assert made.counts.kept == len(images)
    assert read_status(made, store).state == "NotEnoughReviewed"


def test_a_project_without_images_has_a_page_too(store: Store) -> None:
    made = monitor_service([stored([], History(), store)], served_model(), "isle", ("rat",), set(), MonitorConfig(), END.date(), store)
    assert (made.counts.kept, read_status(made, store).state) == (0, "NotEnoughReviewed")


def test_a_drift_of_the_embedding_is_an_alarm_with_one_key_and_strangers_and_the_review_list_are_on_the_page(store: Store) -> None:
    labels = stored(list(draw_history(History(days=60, rate=0.5), seed=4)), History(), store)

    def judged(look: UnreviewedLook, day: date) -> ServiceStatus:
        made = monitor_service([labels], served_model(), "isle", ("rat",), (), MonitorConfig(), day, store, look)
        return read_status(made, store)

    strangers = tuple(Stranger(image_id=f"isle:{i:032x}", location="<b>", taken="", likeliest="rat", link="https://x.test/1") for i in range(3))
    drift = EmbeddingDrift(animals=90, mean=2.0, low=1.8, high=2.2, usual=1.0, raised_at="2026-06-01")
    look = UnreviewedLook(said="", strangers=strangers, drift=drift, listed=2, list_csv="rank\n1\n2\n", list_page="<p>list</p>")
    first, second = (judged(look, END.date() + timedelta(days=i)) for i in range(2))
    assert (first.state, first.lasting, first.strangers) == ("Degraded", second.lasting, strangers)
    page = Path(first.page).read_text(encoding="utf-8")
    assert (page.count("https://x.test/1"), page.count("&lt;b&gt;"), 'href="review.html"' in page) == (3, 3, True)
    assert Path(first.review_page).read_text(encoding="utf-8") == "<p>list</p>"
    without = judged(UnreviewedLook(), END.date())
    assert (without.state, without.review_page, without.sentences[-1]) == ("NotEnoughReviewed", "", UnreviewedLook().said)


def test_a_camera_that_went_dark_and_one_that_fires_without_end_are_named() -> None:
    day, until = 86_400.0, 400 * 86_400.0
    taken = {"steady": np.arange(0, 400, 0.5), "dark": np.arange(0, 370, 0.5), "gone": np.arange(0, 100, 0.5)}
    taken |= {"flood": np.concatenate([np.arange(0, 395, 1.0), np.linspace(396, 400, 3000)]), "seldom": np.arange(0, 400, 40.0)}
    rows = pd.concat([pd.DataFrame({"location": name, "taken_s": t * day, "night": (t % 1) > 0.4}) for name, t in taken.items()])
    found = camera_activity(rows, 30, until).set_index("location")["problem"].to_dict()
    assert found == {"steady": "", "dark": "dark", "gone": "", "flood": "flood", "seldom": ""}
    share = night_share(rows, 30, until)
    assert share is not None
    assert share.recent > share.before


# -- labels from Animl ------------------------------------------------------------------------------------------------


@pytest.fixture
def site() -> Iterator[AnimlServer]:
    with serve_animl([animl_image(i) for i in range(120)]) as site:
        yield site


def animl_image(i: int, name: str = "rat") -> AnimlImage:
    taken = BEGIN + timedelta(hours=i)
    made = AnimlLabel(name, MODEL, "v1", 0.9, validated=True, date=taken, labelled=taken)
    box = AnimlLabel("animal", "megadetector_v5a", "5a", 0.5, labelled=taken)
    return AnimlImage(f"isle:{i:032x}", taken=taken, added=taken, objects=[AnimlObject(f"{i:024x}", labels=[made, box])])


def ask(site: AnimlServer, store: Store, tag: str | None = None) -> ServiceLabels:
    token = SecretStr("token-of-a-service-user")
    settings = Settings(store=str(store.local), api_url=site.url, id_token=token, poll_s=0.01)
    source = SourceConfig(name="isle", export="animl://isle", images="images")
    return read_service_labels(source, BEGIN - timedelta(days=1), tag, store, settings)


def rows_of(found: ServiceLabels, store: Store) -> pd.DataFrame:
    rows: pd.DataFrame = from_parquet(store.blob(found.blob)).to_pandas()
    return rows


@pytest.fixture
def own_store(tmp_path: Path) -> Store:
    return open_store(Settings(store=str(tmp_path / "store")))


def test_all_labels_come_in_pages_and_later_only_what_is_new(site: AnimlServer, own_store: Store) -> None:
    site.tags = [{"_id": "tag-0", "name": "random", "color": "#fff"}]
    site.images[3].tags = ["tag-0"]
    first = ask(site, own_store, "random")
    rows = rows_of(first, own_store)
    assert len(rows) == 240
    assert rows["image_id"].nunique() == 120
    assert set(rows.loc[rows["tagged_random"], "image_id"]) == {site.images[3].id}
    ours = rows[rows["model"] == MODEL]
    assert (set(ours["label"]), set(ours["version"]), set(ours["validated"])) == ({"rat"}, {"v1"}, {"yes"})
    pages = site.request_counts["images"]
    assert ask(site, own_store, "random").blob == first.blob
    assert site.request_counts["images"] - pages <= 2  # nothing was added or validated since
    now = datetime.now(UTC)
    site.images[5].objects[0].labels[0].validated, site.images[5].objects[0].labels[0].date = False, now
    site.images[5].objects[0].labels.append(AnimlLabel("cow", validated=True, date=now))
    site.images.append(animl_image(500))
    site.images[-1].added = now
    later = rows_of(ask(site, own_store, "random"), own_store)
    assert len(later) == 240 + 1 + 2
    assert list(later.loc[later["image_id"] == site.images[5].id, "label"]) == ["rat", "animal", "cow"]


def test_garbage_collection_keeps_the_last_labels_only(site: AnimlServer, own_store: Store) -> None:
    first = ask(site, own_store)
    site.images.append(animl_image(500))
    site.images[-1].added = datetime.now(UTC)
    last = ask(site, own_store)
    collect_garbage(own_store, GcRules(older_than=1), dry_run=False, now=time.time() + 60 * 86_400)
    assert own_store.object_store.size(blob_name(first.blob)) is None
    assert len(rows_of(last, own_store)) == 242
    assert ask(site, own_store).blob == last.blob


def test_a_page_that_takes_animl_too_long_is_asked_for_in_smaller_ones(site: AnimlServer, own_store: Store) -> None:
    site.page_seconds_per_image = 2.0  # 50 images take 100 s, 12 take 24 s
    assert len(rows_of(ask(site, own_store), own_store)) == 240
    site.page_seconds_per_image = 40.0
    site.images = [animl_image(i, "fox") for i in range(1000, 1003)]
    for image in site.images:
        image.added = datetime.now(UTC)
    assert ask(site, own_store).missing_images == 3  # asked for again by the next run
    site.page_seconds_per_image = 0.0
    again = ask(site, own_store)
    assert again.missing_images == 0
    assert rows_of(again, own_store)["image_id"].nunique() == 123


def test_an_animl_that_is_away_is_retryable_and_one_that_refuses_is_not(site: AnimlServer, own_store: Store) -> None:
    site.errors_503 = 10_000
    with pytest.raises(ExportUnreachableError):
        ask(site, own_store)
    site.errors_503, site.page_seconds_per_image = 0, 40.0
    with pytest.raises(ExportError) as refused:
        ask(site, own_store)
    assert refused.value.code == "all_windows_failed"


def test_images_that_lists_drew_at_random_are_known(own_store: Store) -> None:
    own_store.object_store.put("reviews/isle/1.csv", b"rank,image_id,random\n1,a,True\n2,b,False\n3,c,yes\n")
    own_store.object_store.put("reviews/other/1.csv", b"rank,image_id,random\n1,d,True\n")
    assert read_random_sample("isle", own_store) == {"a", "c"}

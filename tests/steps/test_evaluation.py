"""The evaluation: figures as computed by hand, honest about small samples, the same bytes every time, and a page that stands alone."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import EvaluationError, PackageError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.core.records import Box, Counts
from animl_pipeline.core.step import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.steps.evaluation import evaluate_classifier, headline, read_metrics
from animl_pipeline.steps.evaluation.metrics import how_good, metrics_of, percent
from animl_pipeline.steps.evaluation.report_images import thumbnail
from animl_pipeline.storage.step_cache import BlobColumn, StepOutput, Store, Workspace, open_store
from tests.conftest import colour_model
from tests.support.colour_models import BOX, CLASSES, GREEN, NINE, RED, REDDISH_BLUE, Drawn, Page, evaluate, plan_of, report, street

# -- figures -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_computed_by_hand(store: Store) -> None:
    metrics = read_metrics(evaluate(store), store)
    red, green, blue = metrics.classes
    assert metrics.confusion == ((3, 1, 0), (0, 2, 1), (0, 0, 2))
    assert (metrics.examples, metrics.locations) == (9, 3)
    assert metrics.accuracy == pytest.approx(7 / 9)
    assert (red.precision, red.recall, red.f1) == pytest.approx((1, 3 / 4, 6 / 7))
    assert (green.precision, green.recall, green.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (blue.precision, blue.recall, blue.f1) == pytest.approx((2 / 3, 1, 4 / 5))
    assert metrics.macro_f1 == pytest.approx((6 / 7 + 2 / 3 + 4 / 5) / 3)
    assert metrics.macro_recall == pytest.approx((3 / 4 + 2 / 3 + 1) / 3)
    assert metrics.macro_precision == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    # ranks of the true ones by probability: red 1 2 3 4; green 1 2 4; blue 2 3
    expected = (1, (1 + 1 + 3 / 4) / 3, (1 / 2 + 2 / 3) / 2)
    assert [c.average_precision for c in metrics.classes] == pytest.approx(expected)
    assert metrics.macro_average_precision == pytest.approx(sum(expected) / 3)


def test_only_the_test_split_is_scored(store: Store) -> None:
    others = [Drawn("blue", RED, "island/t", "train"), Drawn("blue", RED, "island/v", "val")] * 5
    evaluation = evaluate(store, [*NINE, *others])
    assert read_metrics(evaluation, store).confusion == ((3, 1, 0), (0, 2, 1), (0, 0, 2))
    predictions = store.table(evaluation, "predictions.parquet")
    assert len(predictions) == 9
    assert evaluation.counts.kept == 9
    assert evaluation.counts.noted["named_wrongly"] == 2


def test_predictions_are_those_of_the_packaged_model(store: Store) -> None:
    plan = plan_of()
    steps = street(store, NINE, plan)
    predictions = store.table(evaluate_classifier(*steps, plan, store), "predictions.parquet")
    known = ["crop_id", "source", "image_id", "location", "class_id", "predicted", "probability", "infrared"]
    assert list(predictions.columns) == [*known, "p_red", "p_green", "p_blue"]
    classifier = Classifier.load(store.path(steps.model, "model.onnx").parent)
    crops = store.table(steps.crops, "crops.parquet").set_index("crop_id")
    for _, row in predictions.iterrows():
        answer = classifier.classify(open_image(store.blob(crops.loc[row["crop_id"], "image"])), BOX)
        assert [row[f"p_{c}"] for c in CLASSES] == pytest.approx([answer[c] for c in CLASSES], abs=1e-6)
        assert row["predicted"] == max(answer, key=lambda c: answer[c])
        assert row["probability"] == pytest.approx(max(answer.values()), abs=1e-6)


def test_a_class_without_test_examples_is_named_and_not_averaged(store: Store) -> None:
    evaluation = evaluate(store, [d for d in NINE if d.class_id != "blue"])
    metrics = read_metrics(evaluation, store)
    blue = metrics.classes[2]
    assert (blue.examples, blue.average_precision) == (0, None)
    assert metrics.macro_f1 == pytest.approx((6 / 7 + 2 / 3) / 2)
    assert "blue has no test example at all" in headline(metrics)
    assert "no test example, not scored" in Page(report(evaluation, store)).text
    assert evaluation.counts.noted["classes_without_test_crops"] == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=40))
def test_any_predictions_have_scores_within_bounds_and_a_headline_of_three_sentences(rows: list[tuple[int, int, int]]) -> None:
    scored = pd.DataFrame({
        "class_id": [CLASSES[t] for t, _, _ in rows], "predicted": [CLASSES[p] for _, p, _ in rows],
        "location": ["" if w == 0 else f"island/{w}" for _, _, w in rows],
        **{f"p_{c}": [0.8 if p == i else 0.1 for _, p, _ in rows] for i, c in enumerate(CLASSES)},
    })  # fmt: skip
    metrics = metrics_of(scored, CLASSES)
    assert sum(map(sum, metrics.confusion)) == len(rows) == sum(c.examples for c in metrics.classes)
    assert 0 <= metrics.macro_f1 <= 1
    assert 0 <= metrics.macro_average_precision <= 1
    assert metrics.accuracy == pytest.approx(np.mean([t == p for t, p, _ in rows]))
    assert headline(metrics).count(". ") == 2


def test_unknown_locations_are_no_location(store: Store) -> None:
    evaluation = evaluate(store, [d._replace(location="") if d.class_id == "blue" else d for d in NINE])
    assert read_metrics(evaluation, store).locations == 2
    assert "2 test examples from unknown places" in Page(report(evaluation, store)).text


# -- words -------------------------------------------------------------------------------------------------------------


def test_the_headline_says_how_good_what_is_weakest_and_on_how_much_it_rests(store: Store) -> None:
    metrics = read_metrics(evaluate(store), store)
    words = " ".join(how_good(metrics))
    assert headline(metrics.model_copy(update={"verdict": None})) == words
    assert "At 3 camera places that it never saw in training, the model names 7 of 9 examples correctly (78 %)" in words
    assert (
        "Its weakest class is green (F1 0.67): 1 of its 3 examples is missed, called blue; and 1 example of other classes is wrongly called green"
        in words
    )
    assert (
        "This rests on 9 test examples from 3 camera places, which is few for blue (2 examples from 1 place), green (3 examples from 1 place)"
        in words
    )


def test_the_headline_takes_no_side_where_two_mistakes_are_equally_frequent(store: Store) -> None:
    drawn = [Drawn("red", RED), Drawn("green", RED), Drawn("blue", RED)] + [Drawn("green", GREEN)] * 2 + [Drawn("blue", REDDISH_BLUE)] * 2
    words = " ".join(how_good(read_metrics(evaluate(store, drawn), store)))
    assert "Its weakest class is red (F1 0.50): 2 examples of other classes are wrongly called red, most often blue or green (1 each)." in words


def test_enough_examples_of_every_class_are_said_to_be_enough(store: Store) -> None:
    colours = {"red": RED, "green": GREEN, "blue": REDDISH_BLUE}
    drawn = [Drawn(c, colour, f"island/{i % 3}") for c, colour in colours.items() for i in range(30)]
    evaluation = evaluate(store, drawn)
    words = " ".join(how_good(read_metrics(evaluation, store)))
    assert "with at least 30 examples and 3 places of every class" in words
    assert "makes no mistake" in words
    page = Page(report(evaluation, store))
    assert "Read with care" not in page.text
    assert "There are none on this test set" in page.text


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    assert [percent(v) for v in (0.0, 0.001, 0.5, 0.999, 1.0)] == ["0 %", "under 1 %", "50 %", "over 99 %", "100 %"]


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_report_stands_alone(store: Store) -> None:
    html = report(evaluate(store), store)
    page = Page(html)
    assert page.addresses
    assert all(a.startswith("data:image/jpeg;base64,") for a in page.addresses)
    assert "http" not in html
    assert "url(" not in html
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_the_report_shows_figures_locations_mistakes_splits_story_and_provenance(store: Store) -> None:
    story = [("labels", Counts(kept=40, dropped={"no_such_class": 3}, noted={"odd": 1}))]
    train = [Drawn("red", RED, "island/t", "train")] * 4
    evaluation = evaluate(store, [*NINE, *train], story=story)
    page = Page(report(evaluation, store))
    metrics = read_metrics(evaluation, store)
    assert page.text.startswith("colours 1 – how well it knows the animals")
    assert headline(metrics) in page.text
    assert "macro F1 0.77" in page.text
    assert "red 4 1 1.00 0.75 0.86 1.00" in page.text
    assert "green 3 1 0.67 0.67 0.67 0.92" in page.text
    assert "island/a 4 1 75 % –" in page.text
    assert "red – 1 mistake" in page.text
    assert "called green" in page.text
    assert "red 4 1 0 0 4 1" in page.text  # crops and places of train, val and test
    assert "labels 40 objects 3 3 no such class noted: 1 odd" in page.text
    manifest = store.manifest(evaluation)
    assert all(digest in page.text for name, digest in manifest.inputs.items() if name in {"model", "crops", "splits"})
    assert page.tags.count("svg") == 3 + 2  # a precision-recall curve a class, and reliability before and after
    assert page.tags.count("img") == 2 + 2 + 6  # both mistakes, which are suspect labels, too, and two right answers a class


def test_at_most_six_mistakes_a_class_are_shown_surest_first(store: Store) -> None:
    drawn = [Drawn("red", (5, 130 + 12 * i, 5), f"island/{i}") for i in range(9)] + [Drawn("green", GREEN)]
    page = Page(report(evaluate(store, drawn), store))
    assert "red – 9 mistakes, the 6 surest shown" in page.text
    shown = page.text.split("The worst mistakes")[1].split("Labels to look at again")[0]
    locations = [word for word in shown.split() if word.startswith("island/")]
    assert locations == [f"island/{i}" for i in (8, 7, 6, 5, 4, 3)]


def test_names_from_outside_cannot_break_the_page(store: Store) -> None:
    location = "island/<script>alert('x')</script>"
    html = report(evaluate(store, [d._replace(location=location) for d in NINE]), store)
    assert "<script>" not in html
    assert location in Page(html).text


def test_the_confusion_image_is_a_readable_png(store: Store) -> None:
    classes = ("re_d$x$", "green", "blue")
    drawn = [d._replace(class_id="re_d$x$") if d.class_id == "red" else d for d in NINE]
    evaluation = evaluate(store, drawn, plan_of(classes))
    with Image.open(store.path(evaluation, "confusion.png")) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
        assert set(image.info) <= {"dpi"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on the path")
def test_a_real_browser_shows_the_page_and_a_phone_needs_no_sideways_scrolling(store: Store, tmp_path: Path) -> None:
    page = store.path(evaluate(store), "report.html")
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<iframe src="{page.as_uri()}" width="390" height="800" onload="const d = this.contentDocument, e = d.documentElement; '
        "document.title = (e.scrollWidth - e.clientWidth) + ' ' + d.querySelectorAll('svg, img').length\"></iframe>"
    )
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env={**os.environ, "HOME": str(tmp_path)}).stdout
    title = dom.split("<title>")[1].split("</title>")[0]
    assert title == "0 15"  # pixels too wide; five plots and ten crops


# -- the same every time, and answers to hold a release to ------------------------------------------------------------------


def test_two_stores_hold_the_same_digest(store: Store, tmp_path: Path) -> None:
    other = open_store(Settings(store=str(tmp_path / "elsewhere"), cache=tmp_path / "cache"))
    one, two = evaluate(store), evaluate(other)
    assert (one.cached, two.cached) == (False, False)
    assert (one.key, one.digest) == (two.key, two.digest)
    assert evaluate(store).cached


def test_another_story_is_another_report(store: Store) -> None:
    one = evaluate(store, story=[("labels", Counts(kept=3))])
    two = evaluate(store, story=[("labels", Counts(kept=4))])
    assert one.key != two.key
    assert not two.cached


def test_reference_answers_are_the_offline_ones_and_take_turns_by_class(store: Store) -> None:
    plan = plan_of(reference=4)
    steps = street(store, NINE, plan)
    evaluation = evaluate_classifier(*steps, plan, store)
    reference: list[dict[str, Any]] = json.loads(store.path(evaluation, "reference.json").read_text())
    crops = store.table(steps.crops, "crops.parquet").set_index("image")
    assert sorted(crops.loc[g["image"], "class_id"] for g in reference) == ["blue", "green", "red", "red"]
    classifier = Classifier.load(store.path(steps.model, "model.onnx").parent)
    for g in reference:
        assert g["probabilities"] == classifier.classify(open_image(store.blob(g["image"])), Box.of(g["box"]))
        assert g["box"] == BOX.as_list()


def test_images_that_animl_would_shrink_are_reference_only_where_there_is_no_other(store: Store) -> None:
    drawn = [Drawn("red", RED, padding=2_800_000)] * 2 + [Drawn("red", RED), Drawn("green", GREEN), Drawn("blue", REDDISH_BLUE)]
    plan = plan_of(reference=3)
    steps = street(store, drawn, plan)
    crops = store.table(steps.crops, "crops.parquet").set_index("image")
    assert (crops["image_bytes"] > 2_800_000).sum() == 2
    reference = json.loads(store.path(evaluate_classifier(*steps, plan, store), "reference.json").read_text())
    assert max(crops.loc[g["image"], "image_bytes"] for g in reference) <= 2_800_000
    all_of_them = evaluate_classifier(*steps, plan_of(reference=9), store)
    assert len(json.loads(store.path(all_of_them, "reference.json").read_text())) == 5


def test_crops_of_images_that_show_people_count_but_are_neither_shown_nor_reference_where_there_are_others(store: Store) -> None:
    plan = plan_of(reference=4)
    steps = street(store, NINE, plan)
    rows = store.table(steps.crops, "crops.parquet").assign(with_people=[False, True] * 4 + [True])
    made = StepOutput(Counts(kept=len(rows)), blobs=(BlobColumn(file="crops.parquet"),))

    def build(space: Workspace) -> StepOutput:
        write_parquet(space.out / "crops.parquet", rows)
        return made

    crops = store.make(Step("crops", version=1), config={"with": "people"}, build=build)
    done = evaluate_classifier(steps.model, crops, steps.splits, plan, store)
    assert read_metrics(done, store).examples == 9
    shy, open_to_all = ({thumbnail(store.blob(b)) for b in rows.loc[rows["with_people"] == flag, "blob"]} for flag in (True, False))
    html = report(done, store)
    assert [t for t in shy if t in html] == []
    assert [t for t in open_to_all if t in html] != []
    reference = {g["image"] for g in json.loads(store.path(done, "reference.json").read_text())}
    assert reference == set(rows.loc[~rows["with_people"], "image"])


def test_more_reference_crops_than_there_are_means_all_of_them(store: Store) -> None:
    evaluation = evaluate(store, plan=plan_of(reference=50))
    assert len(json.loads(store.path(evaluation, "reference.json").read_text())) == 9


def test_an_s3_store_serves_as_well_as_a_folder(bucket: str, tmp_path: Path) -> None:
    far = open_store(Settings(store=f"s3://{bucket}/store", cache=tmp_path / "cache"))
    assert read_metrics(evaluate(far), far).examples == 9


def test_importing_the_room_loads_no_heavy_package() -> None:
    code = "import sys, animl_pipeline.steps.evaluation; print([m for m in ('sklearn', 'matplotlib', 'jinja2', 'onnxruntime', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "[]"


# -- bad input ---------------------------------------------------------------------------------------------------------------


def test_an_empty_test_split_is_one_clear_line(store: Store) -> None:
    with pytest.raises(EvaluationError, match=r"expected crops in the test split, found none; raise splits\.test"):
        evaluate(store, [d._replace(split="train") for d in NINE])


def test_a_location_on_two_sides_is_refused(store: Store) -> None:
    with pytest.raises(EvaluationError, match="found 1 also in train or val, such as 'island/a'"):
        evaluate(store, [*NINE, Drawn("red", RED, "island/a", "train")])


def test_a_test_crop_of_a_class_that_the_model_lacks_is_refused(store: Store) -> None:
    with pytest.raises(EvaluationError, match="found the class 'yellow'"):
        evaluate(store, [*NINE, Drawn("yellow", RED)])


def test_a_model_of_other_classes_or_another_view_is_refused(store: Store) -> None:
    steps = street(store, NINE, plan_of())
    with pytest.raises(EvaluationError, match="expected a model of the plan's classes red, blue, found one of red, green, blue"):
        evaluate_classifier(*steps, plan_of(("red", "blue")), store)
    with pytest.raises(EvaluationError, match="what the plan's view says"):
        evaluate_classifier(*steps, plan_of(size=64), store)


def test_a_crop_of_another_size_is_refused(store: Store) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    plan = plan_of()
    with pytest.raises(EvaluationError, match="expected crops of 32 x 32 pixels, found 16 x 16"):
        evaluate_classifier(*street(store, NINE, plan, blob=buffer.getvalue()), plan, store)


def test_a_stored_crop_that_is_not_what_the_endpoint_would_see_is_refused(store: Store) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(buffer, "PNG")
    plan = plan_of(reference=9)
    with pytest.raises(EvaluationError, match=r"expected the same answer for crop .* and for its box of the whole picture"):
        evaluate_classifier(*street(store, NINE, plan, blob=buffer.getvalue()), plan, store)


def test_splits_of_other_crops_are_refused(store: Store) -> None:
    plan = plan_of()
    steps = street(store, NINE, plan)
    fewer = street(store, NINE[:4], plan)
    with pytest.raises(EvaluationError, match="5 of 9 are not; run the step 'splits' again"):
        evaluate_classifier(steps.model, fewer.crops, steps.splits, plan, store)


def test_a_model_step_without_a_loadable_model_is_one_clear_line(store: Store) -> None:
    def broken(space: Workspace) -> StepOutput:
        colour_model(space.out, CLASSES)
        (space.out / "model.onnx").write_bytes(b"no model")
        return StepOutput(Counts(kept=1))

    plan = plan_of()
    steps = street(store, NINE, plan)
    with pytest.raises(PackageError, match=r"is not the model that card\.json names"):
        evaluate_classifier(store.make(Step("training", version=1), config={"broken": 1}, build=broken), steps.crops, steps.splits, plan, store)

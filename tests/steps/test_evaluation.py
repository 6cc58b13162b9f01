"""The evaluation step: scores as computed by hand, warnings about small test sets, a reproducible artifact, a self-contained report."""

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
from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import EvaluationError, PackageError
from animl_pipeline.core.report_formats import format_percent
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.steps.evaluation import evaluate_classifier, read_metrics, write_headline
from animl_pipeline.steps.evaluation.metrics import compute_metrics
from animl_pipeline.steps.evaluation.report_images import THUMBNAIL_SIZE, data_uri
from animl_pipeline.steps.evaluation.report_wording import describe_performance
from animl_pipeline.storage.store import BlobColumn, StepOutput, Store, Workspace, open_store
from tests.conftest import colour_model
from tests.support.colour_models import (
    BOX,
    CLASSES,
    GREEN,
    NINE,
    RED,
    REDDISH_BLUE,
    CropSpec,
    ReportPage,
    evaluate,
    make_data_steps,
    plan_of,
    read_report,
)

# -- scores -----------------------------------------------------------------------------------------------------------


def test_scores_equal_those_computed_by_hand(store: Store) -> None:
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
    # ranks of the examples by probability: red 1 2 3 4; green 1 2 4; blue 2 3
    expected = (1, (1 + 1 + 3 / 4) / 3, (1 / 2 + 2 / 3) / 2)
    assert [c.average_precision for c in metrics.classes] == pytest.approx(expected)
    assert metrics.macro_average_precision == pytest.approx(sum(expected) / 3)


def test_only_the_test_split_is_scored(store: Store) -> None:
    others = [CropSpec("blue", RED, "island/t", "train"), CropSpec("blue", RED, "island/v", "val")] * 5
    evaluation = evaluate(store, [*NINE, *others])
    assert read_metrics(evaluation, store).confusion == ((3, 1, 0), (0, 2, 1), (0, 0, 2))
    predictions = store.table(evaluation, "predictions.parquet")
    assert len(predictions) == 9
    assert evaluation.counts.kept == 9
    assert evaluation.counts.notes["named_wrongly"] == 2


def test_later_images_of_known_cameras_are_scored_apart(store: Store) -> None:
    later = [CropSpec("red", RED, "island/t", "test_later"), CropSpec("red", GREEN, "island/t", "test_later")]
    evaluation = evaluate(store, [*NINE, CropSpec("red", RED, "island/t", "train"), *later])
    metrics = read_metrics(evaluation, store)
    assert metrics.confusion == ((3, 1, 0), (0, 2, 1), (0, 0, 2))
    assert metrics.later is not None
    assert (metrics.later.examples, metrics.later.locations, metrics.later.classes[0].recall) == (2, 1, 0.5)
    assert metrics.later.production is None
    assert "Known cameras, later images" in ReportPage(read_report(evaluation, store)).text
    assert read_metrics(evaluate(store), store).later is None


def test_predictions_are_those_of_the_packaged_model(store: Store) -> None:
    plan = plan_of()
    steps = make_data_steps(store, NINE, plan)
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


def test_a_class_without_test_examples_is_reported_and_in_no_mean(store: Store) -> None:
    evaluation = evaluate(store, [d for d in NINE if d.class_id != "blue"])
    metrics = read_metrics(evaluation, store)
    blue = metrics.classes[2]
    assert (blue.examples, blue.average_precision) == (0, None)
    assert metrics.macro_f1 == pytest.approx((6 / 7 + 2 / 3) / 2)
    assert "no example of blue" in write_headline(metrics)
    assert "blue: no test example" in ReportPage(read_report(evaluation, store)).text
    assert evaluation.counts.notes["classes_without_test_crops"] == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=40))
def test_any_predictions_give_valid_scores_and_a_headline_of_three_sentences(rows: list[tuple[int, int, int]]) -> None:
    scored = pd.DataFrame({
        "class_id": [CLASSES[t] for t, _, _ in rows], "predicted": [CLASSES[p] for _, p, _ in rows],
        "location": ["" if w == 0 else f"island/{w}" for _, _, w in rows],
        **{f"p_{c}": [0.8 if p == i else 0.1 for _, p, _ in rows] for i, c in enumerate(CLASSES)},
    })  # fmt: skip
    metrics = compute_metrics(scored, CLASSES)
    assert sum(map(sum, metrics.confusion)) == len(rows) == sum(c.examples for c in metrics.classes)
    assert 0 <= metrics.macro_f1 <= 1
    assert 0 <= metrics.macro_average_precision <= 1
    assert metrics.accuracy == pytest.approx(np.mean([t == p for t, p, _ in rows]))
    assert write_headline(metrics).count(". ") == 2


def test_unknown_locations_do_not_count_as_a_location(store: Store) -> None:
    evaluation = evaluate(store, [d._replace(location="") if d.class_id == "blue" else d for d in NINE])
    assert read_metrics(evaluation, store).locations == 2
    assert "2 test examples from unknown locations" in ReportPage(read_report(evaluation, store)).text


# -- words -------------------------------------------------------------------------------------------------------------


def test_the_headline_has_accuracy_weakest_class_and_size_of_the_test_set(store: Store) -> None:
    metrics = read_metrics(evaluate(store), store)
    accuracy, weakest, test_set = describe_performance(metrics)
    assert write_headline(metrics.model_copy(update={"verdict": None})) == f"{accuracy} {weakest} {test_set}"
    assert "7 of 9 test crops correctly (78 %)" in accuracy
    assert weakest.startswith("Its weakest class is green (F1 0.67): 1 of 3 examples is missed and called blue")
    assert "blue (2 examples from 1 location), green (3 examples from 1 location)" in test_set


def test_the_headline_lists_equally_frequent_mistakes_together(store: Store) -> None:
    specs = (
        [CropSpec("red", RED), CropSpec("green", RED), CropSpec("blue", RED)] + [CropSpec("green", GREEN)] * 2 + [CropSpec("blue", REDDISH_BLUE)] * 2
    )
    assert describe_performance(read_metrics(evaluate(store, specs), store))[1].endswith("called red: blue (1) and green (1).")


def test_a_large_test_set_gets_no_warning(store: Store) -> None:
    colours = {"red": RED, "green": GREEN, "blue": REDDISH_BLUE}
    specs = [CropSpec(c, colour, f"island/{i % 3}") for c, colour in colours.items() for i in range(30)]
    evaluation = evaluate(store, specs)
    _, weakest, test_set = describe_performance(read_metrics(evaluation, store))
    assert "no mistake" in weakest
    assert "uncertain" not in test_set
    page = ReportPage(read_report(evaluation, store))
    assert "Read with care" not in page.text


def test_a_percentage_is_never_rounded_to_0_or_100() -> None:
    assert [format_percent(v) for v in (0.0, 0.001, 0.5, 0.999, 1.0)] == ["0 %", "under 1 %", "50 %", "over 99 %", "100 %"]


# -- the report ----------------------------------------------------------------------------------------------------------


def test_the_report_is_self_contained(store: Store) -> None:
    evaluation = evaluate(store)
    html = read_report(evaluation, store)
    page = ReportPage(html)
    beside = {name for name in store.files(evaluation) if name.endswith(".csv")}
    outside = [a for a in page.addresses if not a.startswith(("data:image/jpeg;base64,", "#"))]
    assert set(outside) == beside
    assert set(page.addresses) >= {f"#{i}" for i in page.ids if not i.startswith("image-")}
    assert "http" not in html
    assert "url(" not in html
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_the_report_shows_scores_locations_mistakes_splits_step_counts_and_digests(store: Store) -> None:
    counts = [("labels", Counts(kept=40, dropped={"no_such_class": 3}, notes={"odd": 1}))]
    train = [CropSpec("red", RED, "island/t", "train")] * 4
    evaluation = evaluate(store, [*NINE, *train], step_counts=counts)
    page = ReportPage(read_report(evaluation, store))
    metrics = read_metrics(evaluation, store)
    assert write_headline(metrics) in page.text
    assert "mean F1 on crops 0.77" in page.text
    assert "red 4 1 1.00 0.75 0.86 1.00" in page.text
    assert "green 3 1 0.67 0.67 0.67 0.92" in page.text
    assert "island/a 4 1 75 % –" in page.text
    assert "red – 1 mistake" in page.text
    assert "model: green" in page.text
    assert "red 4 1 0 0 4 1" in page.text  # crops and locations of train, val and test
    assert "labels 40 objects 3 3 no such class also: 1 odd" in page.text
    manifest = store.manifest(evaluation)
    assert all(digest in page.text for name, digest in manifest.inputs.items() if name in {"model", "crops", "splits"})
    assert page.tags.count("svg") == 3 + 2  # a precision-recall curve a class, and reliability before and after
    assert page.tags.count("img") == 2 + 2 + 6 + 2  # both mistakes, which are suspect labels, too, two right answers a class; two whole images


def test_the_six_mistakes_with_the_highest_probability_are_shown_per_class(store: Store) -> None:
    specs = [CropSpec("red", (5, 130 + 12 * i, 5), f"island/{i}") for i in range(9)] + [CropSpec("green", GREEN)]
    page = ReportPage(read_report(evaluate(store, specs), store))
    assert "red – 9 mistakes, 6 shown" in page.text
    shown = page.text.split("The worst mistakes")[1].split("Labels to check")[0]
    locations = [word for word in shown.split() if word.startswith("island/")]
    assert locations == [f"island/{i}" for i in (8, 7, 6, 5, 4, 3)]


def test_names_in_the_data_are_escaped(store: Store) -> None:
    location = "island/<script>alert('x')</script>"
    html = read_report(evaluate(store, [d._replace(location=location) for d in NINE]), store)
    assert "<script>" not in html
    assert location in ReportPage(html).text


def test_the_confusion_image_is_a_readable_png(store: Store) -> None:
    classes = ("re_d$x$", "green", "blue")
    specs = [d._replace(class_id="re_d$x$") if d.class_id == "red" else d for d in NINE]
    evaluation = evaluate(store, specs, plan_of(classes))
    with Image.open(store.path(evaluation, "confusion.png")) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
        assert set(image.info) <= {"dpi"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on the path")
def test_a_browser_shows_all_plots_and_crops_without_sideways_scrolling_on_a_phone(store: Store, tmp_path: Path) -> None:
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
    assert title == "0 17"  # pixels too wide; five plots, ten crops and two whole images


# -- reproducibility and reference predictions ------------------------------------------------------------------


def test_the_digest_is_the_same_in_two_stores(store: Store, tmp_path: Path) -> None:
    other = open_store(Settings(store=str(tmp_path / "elsewhere"), cache=tmp_path / "cache"))
    one, two = evaluate(store), evaluate(other)
    assert (one.cached, two.cached) == (False, False)
    assert (one.key, one.digest) == (two.key, two.digest)
    assert evaluate(store).cached


def test_other_step_counts_make_another_report(store: Store) -> None:
    one = evaluate(store, step_counts=[("labels", Counts(kept=3))])
    two = evaluate(store, step_counts=[("labels", Counts(kept=4))])
    assert one.key != two.key
    assert not two.cached


def test_reference_predictions_are_the_offline_answers_and_cover_all_classes(store: Store) -> None:
    plan = plan_of(reference=4)
    steps = make_data_steps(store, NINE, plan)
    evaluation = evaluate_classifier(*steps, plan, store)
    reference: list[dict[str, Any]] = json.loads(store.path(evaluation, "reference_predictions.json").read_text())
    crops = store.table(steps.crops, "crops.parquet").set_index("image")
    assert sorted(crops.loc[g["image"], "class_id"] for g in reference) == ["blue", "green", "red", "red"]
    classifier = Classifier.load(store.path(steps.model, "model.onnx").parent)
    for g in reference:
        assert g["probabilities"] == classifier.classify(open_image(store.blob(g["image"])), Box.of(g["box"]))
        assert g["box"] == BOX.as_list()


def test_images_that_animl_would_resize_are_chosen_last_as_reference_predictions(store: Store) -> None:
    specs = [CropSpec("red", RED, padding=2_800_000)] * 2 + [CropSpec("red", RED), CropSpec("green", GREEN), CropSpec("blue", REDDISH_BLUE)]
    plan = plan_of(reference=3)
    steps = make_data_steps(store, specs, plan)
    crops = store.table(steps.crops, "crops.parquet").set_index("image")
    assert (crops["image_bytes"] > 2_800_000).sum() == 2
    reference = json.loads(store.path(evaluate_classifier(*steps, plan, store), "reference_predictions.json").read_text())
    assert max(crops.loc[g["image"], "image_bytes"] for g in reference) <= 2_800_000
    all_of_them = evaluate_classifier(*steps, plan_of(reference=9), store)
    assert len(json.loads(store.path(all_of_them, "reference_predictions.json").read_text())) == 5


def test_crops_of_images_with_people_are_scored_but_not_shown_and_chosen_last_as_reference_predictions(store: Store) -> None:
    plan = plan_of(reference=4)
    steps = make_data_steps(store, NINE, plan)
    rows = store.table(steps.crops, "crops.parquet").assign(with_people=[False, True] * 4 + [True])
    made = StepOutput(Counts(kept=len(rows)), blobs=(BlobColumn(file="crops.parquet"),))

    def build(space: Workspace) -> StepOutput:
        write_parquet(space.out / "crops.parquet", rows)
        return made

    crops = store.make(Step("crops", version=1), config={"with": "people"}, build=build)
    done = evaluate_classifier(steps.model, crops, steps.splits, plan, store)
    assert read_metrics(done, store).examples == 9
    thumbnails = {row.crop_id: data_uri(open_image(store.blob(row.blob)), THUMBNAIL_SIZE) for row in rows.itertuples()}
    with_people, without_people = ({thumbnails[c] for c in rows.loc[rows["with_people"] == flag, "crop_id"]} for flag in (True, False))
    html = read_report(done, store)
    assert not any(t in html for t in with_people)
    assert any(t in html for t in without_people)
    reference = {g["image"] for g in json.loads(store.path(done, "reference_predictions.json").read_text())}
    assert reference == set(rows.loc[~rows["with_people"], "image"])


def test_fewer_test_crops_than_reference_predictions_wanted_gives_all_of_them(store: Store) -> None:
    evaluation = evaluate(store, plan=plan_of(reference=50))
    assert len(json.loads(store.path(evaluation, "reference_predictions.json").read_text())) == 9


def test_an_s3_store_works_as_well(bucket: str, tmp_path: Path) -> None:
    remote = open_store(Settings(store=f"s3://{bucket}/store", cache=tmp_path / "cache"))
    assert read_metrics(evaluate(remote), remote).examples == 9


def test_importing_the_step_loads_no_heavy_package() -> None:
    heavy = ("sklearn", "matplotlib", "jinja2", "onnxruntime", "torch")
    code = f"import sys, animl_pipeline.steps.evaluation; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "[]"


# -- errors ---------------------------------------------------------------------------------------------------------------


def error_code(*args: Any, **options: Any) -> str:
    with pytest.raises(EvaluationError) as caught:
        evaluate_classifier(*args, **options)
    return caught.value.code


@pytest.mark.parametrize(
    ("crops", "code"),
    [
        ([d._replace(split="train") for d in NINE], "no_test_crops"),
        ([*NINE, CropSpec("red", RED, "island/a", "train")], "location_in_two_splits"),
        ([*NINE, CropSpec("yellow", RED)], "unknown_class"),
    ],
)
def test_crops_that_cannot_be_scored_are_an_error(store: Store, crops: list[CropSpec], code: str) -> None:
    plan = plan_of()
    assert error_code(*make_data_steps(store, crops, plan), plan, store) == code


def test_a_model_with_other_classes_or_another_model_input_is_an_error(store: Store) -> None:
    steps = make_data_steps(store, NINE, plan_of())
    assert error_code(*steps, plan_of(("red", "blue")), store) == "other_classes"
    assert error_code(*steps, plan_of(size=64), store) == "other_model_input"


def test_a_crop_of_another_size_is_an_error(store: Store) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    plan = plan_of()
    assert error_code(*make_data_steps(store, NINE, plan, blob=buffer.getvalue()), plan, store) == "wrong_crop_size"


def test_a_stored_crop_that_differs_from_its_image_is_an_error(store: Store) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(buffer, "PNG")
    plan = plan_of(reference=9)
    assert error_code(*make_data_steps(store, NINE, plan, blob=buffer.getvalue()), plan, store) == "crop_differs_from_image"


def test_splits_of_other_crops_are_an_error(store: Store) -> None:
    plan = plan_of()
    steps = make_data_steps(store, NINE, plan)
    fewer = make_data_steps(store, NINE[:4], plan)
    assert error_code(steps.model, fewer.crops, steps.splits, plan, store) == "missing_crops"


def test_a_model_that_is_not_the_one_of_its_card_is_an_error(store: Store) -> None:
    def broken(space: Workspace) -> StepOutput:
        colour_model(space.out, CLASSES)
        (space.out / "model.onnx").write_bytes(b"no model")
        return StepOutput(Counts(kept=1))

    plan = plan_of()
    steps = make_data_steps(store, NINE, plan)
    with pytest.raises(PackageError):
        evaluate_classifier(store.make(Step("training", version=1), config={"broken": 1}, build=broken), steps.crops, steps.splits, plan, store)

"""What the report says of errors (missed invaders, false alarms, links to Animl, doubtful labels, other names), and its page in a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.steps.calibration import calibrate_classifier
from animl_pipeline.steps.evaluation import evaluate_classifier, read_metrics, write_headline
from animl_pipeline.storage.store import Store
from tests.support.colour_models import (
    ISLAND,
    NINE,
    ReportPage,
    evaluate,
    fit_linear,
    island_crops,
    island_plan,
    make_data_steps,
    make_linear_model,
    read_report,
    run_evaluation_steps,
)

ANIMAL_ID = "isle:{:032x}"
LINK = "https://animl.example/app/{project}/all?img={image}"


def evaluated(store: Store, noise: float = 45.0, **bad: str) -> Artifact:
    """The evaluation of a model of the island, fitted well or badly, on easy or difficult crops."""
    plan, crops = island_plan(), island_crops(noise=noise)
    steps = make_data_steps(store, crops, plan, tuple(ISLAND), image_id=ANIMAL_ID)
    model = make_linear_model(store, fit_linear(crops, **bad))
    calibrated = calibrate_classifier(model, steps.crops, steps.splits, plan.thresholds, store)
    return evaluate_classifier(calibrated, steps.crops, steps.splits, plan, store, image_url=LINK)


@pytest.fixture
def bad(store: Store) -> Artifact:
    """The evaluation of a model that was trained on shuffled labels of the invasive class."""
    return evaluated(store, shuffled="rat")


def test_every_mistake_has_a_link_to_animl_in_the_report_and_in_the_tables(store: Store, bad: Artifact) -> None:
    for name in ("false_alarms.csv", "missed_invaders.csv", "suspect_labels.csv"):
        table = pd.read_csv(store.path(bad, name))
        assert len(table), name
        assert table["link"].str.startswith("https://animl.example/app/isle/all?img=isle%3A").all(), name
    page = read_report(bad, store)
    worst = page[page.index('<section id="mistakes"') : page.index('<section id="labels-to-check"')]
    assert worst.count('<a href="https://animl.example/') >= worst.count("<figure") > 0


def test_invasive_thresholds_with_many_false_alarms_are_marked_and_in_the_verdicts_words(store: Store) -> None:
    noisy = evaluated(store, noise=120.0)
    metrics = read_metrics(noisy, store)
    (rat,) = [t for t in metrics.thresholds if t.id == "rat"]
    assert rat.test is not None
    assert rat.test.false_alarms_per_1000 > 100
    assert f"rat {rat.test.false_alarms_per_1000:.0f} of 1,000" in metrics.reasons[-1]
    assert len(metrics.reasons) > 1
    assert ReportPage(read_report(noisy, store)).text.count("many false alarms") == 1


def test_a_good_model_is_promoted_without_such_words(store: Store) -> None:
    good = evaluated(store)
    metrics = read_metrics(good, store)
    assert metrics.verdict == "promote"
    assert not any("false alarms" in reason for reason in metrics.reasons)
    assert metrics.reasons[0] in write_headline(metrics)
    page = ReportPage(read_report(good, store)).text
    assert "many false alarms" not in page
    assert "Careful" not in page


def test_missed_invaders_are_those_below_their_threshold_first(store: Store, bad: Artifact) -> None:
    missed = pd.read_csv(store.path(bad, "missed_invaders.csv"))
    below, wrong = int((~missed["reaches_threshold"]).sum()), int(missed["reaches_threshold"].sum())
    (rat,) = [c for c in read_metrics(bad, store).classes if c.id == "rat"]
    text = ReportPage(read_report(bad, store)).text
    section = text[text.index("Missed invaders") : text.index("The worst mistakes")]
    assert f"The test set has {rat.examples} examples of rat" in section
    assert (f"{below} of them stay" in section or f"{below} of them stays" in section) == (below > 0)
    assert ("another class is more probable" in section) == (wrong > 0)
    assert section.count("below the threshold ") >= min(below, 1)


def test_labels_to_check_have_ranks_and_a_model_that_is_often_wrong_a_caution(store: Store, bad: Artifact) -> None:
    metrics = read_metrics(bad, store)
    text = ReportPage(read_report(bad, store)).text
    section = text[text.index("Labels to check") :]
    assert [f"no. {rank}" in section for rank in (1, 2)] == [True, True]
    assert ("Careful" in section) == (metrics.macro_f1 < 0.6)


def test_a_model_with_a_low_f1_is_said_to_be_often_wrong_itself(store: Store) -> None:
    swapped = {"red": "green", "green": "blue", "blue": "red"}
    done = evaluate(store, [crop._replace(class_id=swapped[crop.class_id]) for crop in NINE])
    assert read_metrics(done, store).macro_f1 < 0.6
    assert "Careful" in ReportPage(read_report(done, store)).text


def test_the_report_names_the_labels_outside_the_plan(store: Store) -> None:
    counts = Counts(kept=9, dropped={"unlisted_label": 3}, notes={"unlisted_label: <b>goat</b>": 2, "unlisted_label: heron": 1})
    page = read_report(evaluate(store, step_counts=[("labels", counts)]), store)
    assert "&lt;b&gt;goat&lt;/b&gt;" in page
    text = ReportPage(page).text
    section = text[text.index("Names that the plan does not have") :]
    assert section.index("<b>goat</b> 2") < section.index("heron 1") < section.index("What each step")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on the path")
def test_a_browser_shows_the_verdict_first_and_tables_fit_a_phone(store: Store, tmp_path: Path) -> None:
    plan = island_plan()
    steps = make_data_steps(store, island_crops(), plan, tuple(ISLAND))
    champion = run_evaluation_steps(store, make_linear_model(store, fit_linear(island_crops())), steps, plan)
    done = run_evaluation_steps(store, make_linear_model(store, fit_linear(island_crops(), shuffled="rat")), steps, plan, champion.package)
    page = store.path(done.evaluation, "report.html")
    probe = tmp_path / "probe.html"
    script = (
        "const d = this.contentDocument, e = d.documentElement, v = d.querySelector('.verdict'); document.title = [e.scrollWidth - e.clientWidth, "
        "v.className, v.getBoundingClientRect().top < 200, v.querySelector('span').innerText, d.querySelectorAll('.crop').length].join('|')"
    )
    probe.write_text(f'<iframe src="{page.as_uri()}" width="390" height="800" onload="{script}"></iframe>')
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "HOME": str(tmp_path)}).stdout
    too_wide, css_class, at_top, first, crops = dom.split("<title>")[1].split("</title>")[0].split("|")
    assert (too_wide, css_class, at_top) == ("0", "verdict hold", "true")
    assert first.startswith("Hold: ")
    assert int(crops) > 10

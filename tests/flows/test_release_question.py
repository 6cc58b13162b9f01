"""The question before a release: what a person reads of the classes, of what is replaced, and until when to answer."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.evaluation_results import (
    ClassComparison,
    ClassScores,
    Comparison,
    Metrics,
    OperatingPoint,
    ProductionChange,
    ProductionComparison,
    ProductionScore,
    Report,
    SequenceScores,
    Threshold,
)
from animl_pipeline.core.release_and_reference_types import Approval
from animl_pipeline.deploy import ReleaseRecord
from flows.release_question import release_question
from tests.support.packaged_model import colour_plan

ASKED = datetime(2026, 12, 30, 12, tzinfo=UTC)
PACKAGE = Artifact(step="package", key="a" * 64, digest="b" * 64, counts=Counts(kept=1))
ONE = dict.fromkeys(("accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_average_precision"), 0.9)


def scores(class_id: str, **changes: Any) -> ClassScores:
    made = ClassScores(id=class_id, examples=40, locations=4, precision=0.8, recall=0.9, f1=0.85, average_precision=0.9)
    return made.model_copy(update=changes)


def report(*, compared: bool, production: bool) -> Report:
    """A report of the classes rat (invasive) and fox; only rat is known to the released model."""
    point = OperatingPoint(examples=40, locations=4, recall=0.9, precision=0.8, false_alarms_per_1000=7.0)
    thresholds = [Threshold(id="rat", group="invasive", aim="recall 0.95", value=0.5, aim_met=True, val=point, test=point)]
    thresholds += [Threshold(id="fox", group="native", aim="precision 0.95", value=0.5, aim_met=True, val=point, test=point)]
    rat = SequenceScores(
        id="rat", sequences=9, locations=3, hits=8, missed_by_detector=1, missed_by_threshold=0, missed_by_classifier=0, false_alarms_on_empty=2,
        false_alarms_on_others=0, precision=0.8, recall=0.9, f1=0.85, false_alarms_per_1000_empty=12.0, false_alarms_interval=(3.0, 20.0),
    )  # fmt: skip
    change = ProductionChange(id="rat", sequences=9, locations=3, recall=(0.8, 0.9), false_alarms_per_1000_empty=(31.0, 12.0))
    searched = ProductionScore(
        images=90, sequences=30, empty_sequences=20, locations=3, detector_confidence=0.1, classes=(rat,), false_alarms_per_1000_empty=12.0,
        comparison=ProductionComparison(macro_f1=(0.8, 0.9), false_alarms_per_1000_empty=None, classes=(change,)) if compared else None,
    )  # fmt: skip
    of_rat = ClassComparison(
        id="rat", examples=40, locations=4, recall=(0.86, 0.9), f1=(0.8, 0.85), recall_change=0.04, recall_interval=(-0.01, 0.09), f1_change=0.05,
        f1_interval=None, average_precision_change=0.0, average_precision_interval=None,
    )  # fmt: skip
    comparison = Comparison(
        champion="v0", package="c" * 64, examples=40, locations=4, left_out=0, added_classes=("fox",), removed_classes=("owl",),
        own_model_input=False, macro_f1=(0.8, 0.9), macro_f1_change=0.1, macro_f1_interval=None, macro_average_precision=(0.8, 0.9),
        macro_average_precision_change=0.1, macro_average_precision_interval=None, classes=(of_rat,),
    )  # fmt: skip
    metrics = Metrics(
        examples=80, locations=4, classes=(scores("rat"), scores("fox")), confusion=((36, 4), (4, 36)),
        thresholds=tuple(thresholds), comparison=comparison if compared else None, production=searched if production else None, **ONE,
    )  # fmt: skip
    labels = Counts(kept=80, dropped={"unlisted_label": 9}, notes={"unlisted_label: goat | <b>": 8, "unlisted_label: heron": 1})
    return Report(
        model="isle", version="v1", headline="Promote: it is better.", metrics=metrics, model_artifact=PACKAGE, evaluation=PACKAGE, package=PACKAGE,
        step_counts=(("labels", labels),), reasons=("no class is worse",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("compared", "production", "numbers", "alarms"),
    [
        (True, True, ["40", "0.90", "+0.04", "-0.01", "+0.09", "0.80"], "rat 12 (3 to 20), before 31"),
        (False, True, ["40", "0.90", "0.80"], "rat 12 (3 to 20)"),
        (True, False, ["40", "0.90", "+0.04", "-0.01", "+0.09", "0.80"], "rat 7"),
    ],
)
def test_each_class_has_its_change_and_an_invasive_one_its_false_alarms(compared: bool, production: bool, numbers: list[str], alarms: str) -> None:
    asked = release_question(report(compared=compared, production=production), colour_plan(), "", None, ASKED, "")
    rat, fox = (line for line in asked.splitlines() if line.startswith("- **"))
    assert re.findall(r"[-+]?\d+(?:\.\d+)?", rat) == numbers
    assert re.findall(r"[-+]?\d+(?:\.\d+)?", fox) == ["40", "0.90", "0.80"]
    assert ("new class" in fox) == compared
    assert [line.endswith(f": {alarms}") for line in asked.splitlines() if "of 1,000" in line] == [True]
    assert ("owl" in asked) == compared
    assert "|" not in asked.replace("\\|", "")  # a table is too wide for the form on a phone


def test_the_question_says_what_is_replaced_until_when_to_answer_and_where_the_report_is() -> None:
    approved = Approval(by="Ana *", at="2026-10-01T00:00:00+00:00", given_in="prefect")
    last = ReleaseRecord(
        id="1", kind="release", state="done", base_name="colours", endpoint="colours", endpoint_config="c", previous_config=None, sagemaker_model="m",
        version="v0", package=PACKAGE, approval=approved, begun_at="2026-10-01T11:00:00+00:00", ended_at="2026-10-01T11:05:00+00:00",
    )  # fmt: skip
    asked = release_question(report(compared=True, production=True), colour_plan(), "", last, ASKED, "https://reports.team.org", "rat 2 → 3")
    for said in (
        "**Replay:** rat 2 → 3",
        "v0",
        "2026-10-01",
        "2027-01-06 12:00 UTC",
        "goat \\| &lt;b&gt; 8, heron 1",
        f"https://reports.team.org/steps/package/{'a' * 64}/report.html",
    ):
        assert said in asked
    assert "Ana \\*" in asked

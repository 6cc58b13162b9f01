"""The result of monitoring in words: the state, new alarms, and what else people should know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from animl_pipeline.config.monitor import MonitorConfig
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.steps.monitor.camera_activity import NightShare
from animl_pipeline.steps.monitor.sequential_test import ClassTest
from animl_pipeline.steps.monitor.unreviewed_look import Stranger, UnreviewedLook

State = Literal["Healthy", "Degraded", "NotEnoughReviewed"]
NIGHT_CHANGE = 0.15
"""A change of the share of night images is named if its 95 % interval lies beyond this."""
FEW_REVIEWED = 0.1


EMBEDDING = "embedding"
"""The ``metric`` of an alarm about new images that are unlike those of the training."""


class Alarm(Record):
    """An alarm: of a sequential test for a class, and when the sequence was reviewed that raised it; or of the embedding, without a class."""

    metric: str
    class_id: str
    raised_at: str

    @property
    def key(self) -> str:
        """The same for the same alarm in every run."""
        return f"{self.metric} {self.class_id} {self.raised_at}"

    @property
    def what(self) -> str:
        """What it is about."""
        return "images unlike those of the training" if self.metric == EMBEDDING else f"{self.metric} of {self.class_id}"


class ServiceStatus(Record):
    """How the model in service does.

    Attributes:
        model: the plan's model.
        state: the name of the state in which the flow ends.
        headline: one sentence.
        sentences: one for each class with a test, and one about the embedding.
        warnings: about cameras, light, names outside of the plan, and what is missing.
        alarms: all alarms so far, in order of time.
        lasting: the keys of those that last.
        names: names of animals that people gave and the plan does not have, with their numbers.
        strangers: animals in unreviewed images that are unlike all that the model learnt from, without their crops.
        page: where the page with all figures is; "" in the store.
        review_page: where the page with the images to review next is; "" if the plan wants none.
    """

    model: str
    state: State
    headline: str
    sentences: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    lasting: tuple[str, ...] = ()
    names: tuple[tuple[str, int], ...] = ()
    strangers: tuple[Stranger, ...] = ()
    page: str = ""
    review_page: str = ""


def service_status(
    model: str,
    tests: Sequence[ClassTest],
    outcomes: pd.DataFrame,
    warnings: Sequence[str],
    names: Sequence[tuple[str, int]],
    look: UnreviewedLook,
    config: MonitorConfig,
) -> ServiceStatus:
    """The status that the tests and the look at unreviewed images show.

    Args:
        model: the plan's model.
        tests: the tests of all classes.
        outcomes: SEQUENTIAL_TESTS.
        warnings: what else people should know.
        names: names outside of the plan, with their numbers.
        look: at unreviewed images.
        config: the plan's section.
    """
    raised = outcomes[outcomes["alarm"].astype(bool)].sort_values("validated_s", kind="stable")
    times = pd.to_datetime(raised["validated_s"], unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    alarms = [Alarm(metric=m, class_id=c, raised_at=t) for m, c, t in zip(raised["metric"], raised["class_id"], times, strict=True)]
    lasting = [[a.key for a in alarms if (a.metric, a.class_id) == (t.metric, t.class_id)][-1] for t in tests if t.state == "alarm"]
    if look.drift is not None and look.drift.raised_at:
        alarms.append(Alarm(metric=EMBEDDING, class_id="", raised_at=look.drift.raised_at))
        lasting.append(alarms[-1].key)
    recent = sum(t.recent for t in tests)
    enough = any(t.state == "usual" for t in tests) and recent >= config.min_recent_sequences
    state: State = "Degraded" if lasting else "Healthy" if enough else "NotEnoughReviewed"
    return ServiceStatus(
        model=model, state=state, headline=_headline(state, [a for a in alarms if a.key in lasting], tests, recent, config),
        sentences=(*(describe_test(t, config) for t in tests), look.drift_sentence()), warnings=tuple(warnings), alarms=tuple(alarms),
        lasting=tuple(lasting), names=tuple(names), strangers=tuple(s.model_copy(update={"crop": ""}) for s in look.strangers),
    )  # fmt: skip


def _headline(state: State, lasting: Sequence[Alarm], tests: Sequence[ClassTest], recent: int, config: MonitorConfig) -> str:
    if state == "Degraded":
        worse = ", ".join(a.what for a in lasting if a.metric != EMBEDDING)
        unlike = "New images are unlike those of the training." if any(a.metric == EMBEDDING for a in lasting) else ""
        return " ".join(part for part in (f"The model is worse than usual: {worse}." if worse else "", unlike) if part)
    if state == "Healthy":
        waiting = ", ".join(t.class_id for t in tests if t.state in {"reference", "undecidable"})
        return f"The model is as good as usual.{f' Not known yet for {waiting}.' if waiting else ''}"
    if any(t.state == "usual" for t in tests):
        needed = f"{config.min_recent_sequences} are needed"
        return f"Too few recent reviews: {recent} reviewed sequences in the last {config.recent_days} days, and {needed}."
    return f"Too few reviews so far: no class has the {config.reference_sequences} reviewed sequences that show what is usual."


def describe_test(test: ClassTest, config: MonitorConfig) -> str:
    """What a test knows of its class, in one sentence."""
    name = f"{test.metric.capitalize()} of {test.class_id}"
    if test.state == "reference":
        return f"{name}: {test.reference} of {config.reference_sequences} reviewed sequences; alarms begin after them."
    recent = f"{test.recent_rate:.2f} in the last {config.recent_days} days ({test.recent} sequences)" if test.recent else "no recent reviews"
    if test.state == "undecidable":
        return f"{name}: usually {test.usual:.2f}, {recent}. The reviews so far cannot tell a drop of {test.drop:.2f} from chance."
    return f"{name}: usually {test.usual:.2f}, {recent}{': an alarm' if test.state == 'alarm' else ''}."


def input_warnings(
    cameras: pd.DataFrame, night: NightShare | None, names: Sequence[tuple[str, int]], share_reviewed: float, other_versions: int, missing: int
) -> list[str]:
    """What people should know of the images and labels.

    Args:
        cameras: CAMERA_ACTIVITY.
        night: share of night images.
        names: names outside of the plan, with their numbers.
        share_reviewed: share of the images that are reviewed; NaN if there are none.
        other_versions: labels for which Animl notes another version than the one that served.
        missing: images that Animl did not answer.
    """
    found = []
    for problem, what in (("dark", "No images for long from"), ("flood", "Far more images than usual from")):
        locations = list(cameras.loc[cameras["problem"] == problem, "location"])
        found += [f"{what} {', '.join(locations[:10])}{f' and {len(locations) - 10} more' if len(locations) > 10 else ''}."] if locations else []
    if night and night.interval and (night.interval[0] > NIGHT_CHANGE or night.interval[1] < -NIGHT_CHANGE):
        found.append(f"Night images: {night.recent:.0%} of the recent ones, {night.before:.0%} in the year before.")
    if names:
        found.append(f"Not in the plan: {', '.join(f'{n} × {name}' for name, n in names[:10])}{' …' if len(names) > 10 else ''}.")
    if not np.isnan(share_reviewed) and share_reviewed < FEW_REVIEWED:
        found.append(f"Only {share_reviewed:.1%} of the images are reviewed; all figures are about these.")
    if other_versions:
        found.append(f"{other_versions:,} labels name another version than the one that served: update the MLModel document with each release.")
    if missing:
        found.append(f"{missing:,} images that Animl counts did not arrive; they are asked for again in the next run.")
    return found

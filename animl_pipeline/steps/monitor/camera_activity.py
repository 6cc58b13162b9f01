"""Which cameras went dark or fire without end, and whether images are taken at night more or less often than before."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.core.evaluation_results import Interval
from animl_pipeline.core.table_schemas import CAMERA_ACTIVITY
from animl_pipeline.inference.bootstrap_intervals import BootstrapDraws, percentile_interval

DAY_S = 86_400
MIN_DARK_DAYS, MIN_DAYS_WITH_IMAGES = 7, 5
DARK_FACTOR = 3
"""A camera is dark after this many times its longest gap between two days with images, and after at least MIN_DARK_DAYS, if it had
images on MIN_DAYS_WITH_IMAGES."""
MAX_DARK_DAYS = 120
"""A camera without images for longer has been taken down."""
FLOOD_IMAGES, FLOOD_FACTOR = 1000, 10
"""A camera fires without end with at least so many recent images, and so many times its usual number."""


class NightShare(NamedTuple):
    """The share of images taken at night, recently and before; the 95 % interval of the difference over locations."""

    recent: float
    before: float
    interval: Interval | None


def camera_activity(images: pd.DataFrame, recent_days: int, until_s: float) -> pd.DataFrame:
    """CAMERA_ACTIVITY.

    Args:
        images: ``location, taken_s, night``.
        recent_days: how many days are recent.
        until_s: the end of these days, in seconds since 1970. Later images, of wrong clocks, do not count.
    """
    dated = images.loc[images["taken_s"] <= until_s, ["location", "taken_s", "night"]].astype({"location": object})
    rows = [(str(location), *_camera(part, recent_days, until_s)) for location, part in dated.groupby("location")]
    return pd.DataFrame(rows, columns=CAMERA_ACTIVITY.names()).sort_values(["problem", "location"], ascending=[False, True], ignore_index=True)


def _camera(part: pd.DataFrame, recent_days: int, until_s: float) -> tuple[object, ...]:
    taken = np.sort(part["taken_s"].to_numpy(np.float64))
    recent = part["taken_s"].to_numpy(np.float64) > until_s - recent_days * DAY_S
    days = np.unique(taken // DAY_S)
    silent = (until_s - taken[-1]) / DAY_S
    longest = float(np.diff(days).max(initial=1.0))
    before = taken[: len(taken) - int(recent.sum())]
    spans = (until_s - recent_days * DAY_S - before[0]) / (recent_days * DAY_S) if len(before) else 0.0
    usual = len(before) / spans if spans >= 1 else np.nan
    is_dark = len(days) >= MIN_DAYS_WITH_IMAGES and max(MIN_DARK_DAYS, DARK_FACTOR * longest) < silent < MAX_DARK_DAYS
    is_flood = int(recent.sum()) >= FLOOD_IMAGES and int(recent.sum()) > FLOOD_FACTOR * usual
    night = float(part["night"].to_numpy()[recent].mean()) if recent.any() else np.nan
    return len(part), float(taken[-1]), int(recent.sum()), float(usual), night, "dark" if is_dark else "flood" if is_flood else ""


def night_share(images: pd.DataFrame, recent_days: int, until_s: float) -> NightShare | None:
    """The share of night images in the recent days and in the year before; None where one of them has no image."""
    start = until_s - recent_days * DAY_S
    taken = images["taken_s"].to_numpy(np.float64)
    recent, before = (taken > start) & (taken <= until_s), (taken <= start) & (taken > start - 365 * DAY_S)
    if not recent.any() or not before.any():
        return None
    draws = BootstrapDraws(images[["location"]].astype({"location": object}))
    night = images["night"].to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [draws.sums(night & part) / draws.sums(part) for part in (recent, before)]
    return NightShare(float(shares[0][0]), float(shares[1][0]), percentile_interval(shares[0] - shares[1], draws.count_locations(recent)))

"""What the island is: its camera places, and who comes by which camera when."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import NamedTuple

import numpy as np

from animl_pipeline.dev.synthetic.animals import KINDS
from animl_pipeline.dev.synthetic.location import PathOrUrl

FRAMES = 3
"""Pictures of a burst, one second apart."""
VISITS: dict[str, int] = {"fox": 38, "rodent": 30, "bird": 28, "skunk": 21, "lizard": 21, "": 23}
"""Bursts by kind; "" is an empty burst, set off by the wind."""
HOMES = 10
"""Places at which a kind occurs."""
PACIFIC = timezone(timedelta(hours=-8))

LOCATIONS: tuple[PathOrUrl, ...] = (
    PathOrUrl("Fennel Flat", "DRAWN01", 0.27, "dry grass", hills=2, shrubs=26, rocks=5, grass=38, blades=4600, sun=0.4),
    PathOrUrl("Raven Rocks", "DRAWN02", 0.22, "wash", hills=3, shrubs=16, rocks=34, grass=26, blades=1200, sun=-0.5, roll=1.6),
    PathOrUrl("Cistern Bend", "DRAWN03", 0.16, "green", hills=2, shrubs=22, rocks=4, path=True, grass=40, blades=4800, sun=0.3),
    PathOrUrl("Oak Hollow", "DRAWN04", 0.10, "litter", hills=1, shrubs=26, rocks=6, trunks=2, grass=24, blades=1500, sun=-0.3),
    PathOrUrl("West Bluff", "DRAWN05", 0.34, "dry grass", hills=1, sea=True, shrubs=20, rocks=10, grass=34, blades=4200, sun=0.6, roll=-1.8),
    PathOrUrl("Driftwood Cove", "DRAWN06", 0.24, "sand", hills=1, sea=True, shrubs=12, rocks=20, grass=30, blades=1500, sun=-0.6),
    PathOrUrl("Burrow Bank", "DRAWN07", -0.30, "red soil", shrubs=6, rocks=14, grass=26, blades=1700, sun=0.5),
    PathOrUrl("Pig Fence", "DRAWN08", 0.30, "red soil", hills=3, shrubs=34, rocks=8, path=True, grass=30, blades=2600, sun=-0.4, roll=1.2),
    PathOrUrl("Ironwood Saddle", "DRAWN09", 0.14, "litter", hills=2, shrubs=18, rocks=12, trunks=3, grass=22, blades=1300, sun=0.2),
    PathOrUrl("Sheep Trail", "DRAWN10", 0.20, "green", hills=3, shrubs=30, rocks=10, path=True, grass=34, blades=3800, sun=-0.2, roll=-1.0),
    PathOrUrl("Vernal Pool", "DRAWN11", -0.12, "wash", shrubs=10, rocks=18, grass=32, blades=2200, sun=0.5),
    PathOrUrl("North Ridge", "DRAWN12", 0.40, "dry grass", hills=3, shrubs=22, rocks=16, grass=42, blades=4400, sun=-0.5),
    PathOrUrl("Manzanita Gully", "DRAWN14", 0.08, "green", hills=2, shrubs=30, rocks=14, trunks=1, grass=28, blades=3000, sun=-0.6, roll=2.0),
    # a camera whose deployment was never named goes by its camera's default
    PathOrUrl("DRAWN13-default", "DRAWN13", -0.05, "sand", shrubs=14, rocks=12, grass=36, blades=2600, sun=0.3),
)


class Visit(NamedTuple):
    """A burst to be: which place, when, by night or not, and who comes (nobody: an empty burst)."""

    number: int
    location: int
    taken: datetime
    night: bool
    kinds: tuple[str, ...]


def plan_visits(rng: np.random.Generator) -> list[Visit]:
    """All bursts in the order of place and time; every kind comes by ``HOMES`` places in turn."""
    drafts: list[tuple[int, datetime, bool, tuple[str, ...]]] = []
    for kind, count in VISITS.items():
        homes = rng.permutation(len(LOCATIONS))[: HOMES if kind else len(LOCATIONS)]
        for i in range(count):
            night = bool(rng.uniform() < (KINDS[kind].night if kind else 0.5))
            drafts.append((int(homes[i % len(homes)]), _time(rng, night), night, _party(kind, rng)))
    drafts.sort(key=lambda d: (d[0], d[1]))
    return [Visit(number, *draft) for number, draft in enumerate(drafts)]


def _party(kind: str, rng: np.random.Generator) -> tuple[str, ...]:
    """One animal, sometimes two, seldom of two kinds."""
    if not kind:
        return ()
    if rng.uniform() > 0.12:
        return (kind,)
    other = kind if rng.uniform() < 0.7 else str(rng.choice([k for k in KINDS if k != kind]))
    return (kind, other)


def _time(rng: np.random.Generator, night: bool) -> datetime:
    """A time in the spring of 2025, by night between 20:00 and 05:00, else between 07:00 and 17:30."""
    start = datetime(2025, 3, 1, 20 if night else 7, tzinfo=PACIFIC)
    return start + timedelta(days=int(rng.integers(0, 90)), seconds=int(rng.integers(0, 9 * 3600 if night else 37800)))

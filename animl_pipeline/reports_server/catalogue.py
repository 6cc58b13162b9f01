"""What the report server lists: the models of a store with their versions and releases, and the pages that steps made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import NamedTuple

from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.deploy.version_overview import VersionOverview, VersionRow, overview_of_versions
from animl_pipeline.storage.manifest import Manifest, manifest_name, parse_manifest
from animl_pipeline.storage.store import Store

_PAGE = re.compile(r"steps/(?P<step>[a-z_]+)/(?P<key>[0-9a-f]{64})/(?P<name>[a-z_]+\.html)")
PLOT_WIDTH, PLOT_HEIGHT = 600, 160
"""Of the plot of scores, in its own units."""


class Page(NamedTuple):
    """A page that a step made, when, and the names of the tables beside it."""

    step: str
    key: str
    name: str
    made_at: str
    tables: tuple[str, ...]

    def path(self) -> str:
        """Its path on the server."""
        return f"/steps/{self.step}/{self.key}/{self.name}"


class PlotPoint(NamedTuple):
    """A version in the plot: x and y, and the ends of the interval, or none."""

    x: float
    y: float
    ends: tuple[float, float] | None
    row: VersionRow


class Model(NamedTuple):
    """A model for the index. ``points`` are the versions by the plan, the oldest first; ``report_paths`` are "" where a report was deleted."""

    name: str
    overview: VersionOverview
    report_paths: tuple[str, ...]
    points: tuple[PlotPoint, ...]


class Catalogue(NamedTuple):
    """All that is listed: models in the order of their names, other pages by time, the latest first."""

    models: tuple[Model, ...] = ()
    pages: tuple[Page, ...] = ()

    def find(self, package: str) -> Report | None:
        """The report of the version with this package; None if there is none."""
        reports = (report for model in self.models for report in model.overview.reports)
        return next((report for report in reports if report.package.digest == package), None)


def read_catalogue(store: Store) -> Catalogue:
    """What a store holds. Reports and records that this version cannot read are left out, with a warning in the log."""
    names = sorted({PurePosixPath(name).parts[1] for name in store.object_store.names("reports/")})
    overviews = {name: overview_of_versions(name, store) for name in names}
    found = [(m["step"], m["key"], m["name"]) for name in store.object_store.names("steps/") if (m := _PAGE.fullmatch(name))]
    pages = {(step, key): name for step, key, name in found}
    models = tuple(_model(name, overview, pages) for name, overview in overviews.items() if overview.rows)
    of_versions = {(e.step, e.key) for overview in overviews.values() for e in overview.evaluations()}
    others = _read_pages((page for page in found if page[:2] not in of_versions), store)
    return Catalogue(models, tuple(sorted(others, key=lambda page: page.made_at, reverse=True)))


def read_manifest(store: Store, step: str, key: str) -> Manifest | None:
    """The manifest of a step; None if it is not there, or not as it was written."""
    data = store.object_store.read(manifest_name(step, key))
    try:
        return parse_manifest(data, step, key) if data is not None else None
    except ValueError:
        return None


def _read_pages(found: Iterable[tuple[str, str, str]], store: Store) -> Iterator[Page]:
    for step, key, name in found:
        manifest = read_manifest(store, step, key)
        if manifest is not None and name in manifest.files:
            yield Page(step, key, name, manifest.made_at, tuple(n for n in sorted(manifest.files) if n.endswith(".csv")))


def _model(name: str, overview: VersionOverview, pages: dict[tuple[str, str], str]) -> Model:
    paths = [Page(e.step, e.key, pages.get((e.step, e.key), ""), "", ()) for e in overview.evaluations()]
    return Model(name, overview, tuple(page.path() if page.name else "" for page in paths), tuple(_points(overview.rows)))


def _points(rows: Iterable[VersionRow]) -> Iterator[PlotPoint]:
    """The production scores over time. A score of 0 is at the bottom; the first version is at the left, the last at the right."""
    scored = [(datetime.fromisoformat(row.trained_at).timestamp(), row) for row in rows if row.production_f1 is not None and row.trained_at]
    scored = [(time, row) for time, row in scored if not row.changes]
    if not scored:
        return
    first, last = scored[0][0], scored[-1][0]
    for time, row in scored:
        x = PLOT_WIDTH * (time - first) / (last - first) if last > first else PLOT_WIDTH / 2
        ends = row.production_f1_interval
        low, high = (PLOT_HEIGHT * (1 - end) for end in ends) if ends else (0.0, 0.0)
        yield PlotPoint(x, PLOT_HEIGHT * (1 - (row.production_f1 or 0.0)), (low, high) if ends else None, row)

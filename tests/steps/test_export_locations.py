"""Merging camera deployments into locations, by coordinates."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from animl_pipeline.config.settings import Settings
from animl_pipeline.integrations.animl import CameraDeployment
from animl_pipeline.steps.export import describe_locations, export_annotations
from animl_pipeline.steps.export.write_export_tables import merge_deployments
from animl_pipeline.storage.store import Store
from tests.conftest import jpeg
from tests.support.camtrap_dp import three_deployments
from tests.support.coco_export import Export
from tests.support.export_tables import export_source, locations_of


def test_a_name_used_at_two_sites_is_one_location() -> None:
    far = [
        CameraDeployment(deployment=n, camera="c", started=None, lat=lat, lon=0.0) for n, lat in (("Gate", 34.0), ("Gate", 35.0), ("Bay", 35.00001))
    ]
    assert {p.location for p in merge_deployments(far, 10)} == {"Bay"}


def test_merged_and_unknown_locations_are_described_by_name_and_number(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = three_deployments()
    package.deployment("d4", locationName="unknown")
    for deployment in ("d1", "d2", "d3", "d4"):
        package.observation(deployment, "Vulpes", package.image(deployment))
    package.write(tmp_path / "dp")
    merged, unknown = describe_locations("isle", export_annotations(export_source("dp"), store, settings), store)
    assert "new gate" in merged
    assert "'gate'" in merged
    assert "1 deployments" in unknown


@pytest.mark.parametrize("placeholder", ["unknown", "nan", -1, None, "NA ", 0])
def test_a_placeholder_is_an_unknown_location_in_coco_and_in_class_folders(
    store: Store, settings: Settings, tmp_path: Path, placeholder: str | float | None
) -> None:
    export = Export()
    for location in ("cam1 ", "cam1", placeholder):
        export.annotation(export.image(), 1)
        export.images[-1]["location"] = location
    (tmp_path / "a.json").write_bytes(export.json())
    assert list(locations_of(store, export_annotations(export_source("a.json", images="images"), store, settings)).values()) == ["cam1", "cam1", ""]
    for location in ("cam1", str(placeholder)):
        (tmp_path / "sorted" / location / "fox").mkdir(parents=True)
        (tmp_path / "sorted" / location / "fox" / "a.jpg").write_bytes(jpeg(seed=len(location)))
    folders = export_annotations(export_source("sorted", layout="{location}/{label}"), store, settings)
    assert sorted(locations_of(store, folders).values()) == ["", "cam1"]


def metres(a: CameraDeployment, b: CameraDeployment) -> float:
    """Great-circle distance by the spherical law of cosines' stable form (atan2)."""
    p, q, d = math.radians(a.lat), math.radians(b.lat), math.radians(b.lon - a.lon)
    y = math.hypot(math.cos(q) * math.sin(d), math.cos(p) * math.sin(q) - math.sin(p) * math.cos(q) * math.cos(d))
    return 6_371_008.8 * math.atan2(y, math.sin(p) * math.sin(q) + math.cos(p) * math.cos(q) * math.cos(d))


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12), st.sampled_from([5.0, 25.0, 60.0]))
def test_locations_are_chains_of_near_deployments(grid: list[tuple[int, int]], radius: float) -> None:
    """Deployments on a grid of about 11 m at 34 degrees north, against a slow search: join until nothing changes."""
    all_ = [
        CameraDeployment(deployment=f"n{i:02d}", camera="c", started=None, lat=34 + y * 1e-4, lon=-119 + x * 1e-4) for i, (y, x) in enumerate(grid)
    ]
    loc = {d.deployment: d.deployment for d in all_}
    for _ in all_:
        for a in all_:
            for b in all_:
                if metres(a, b) <= radius:
                    loc[a.deployment] = loc[b.deployment] = min(loc[a.deployment], loc[b.deployment])
    assert {m.deployment: m.location for m in merge_deployments(all_, radius)} == loc

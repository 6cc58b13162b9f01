"""Several sources together: shared locations, limits of a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from animl_pipeline.config import LabelsConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, resolve_labels
from animl_pipeline.storage.store import Store
from tests.support.camtrap_dp import three_deployments
from tests.support.coco_export import Export
from tests.support.export_tables import export_source
from tests.support.web_server import served

BOX = (0.25, 0.5, 0.25, 0.25)
"""Relative x, y, width, height."""


def labelled(store: Store, settings: Settings, *plans: SourceConfig) -> Artifact:
    """The labels of some sources, foxes and rats."""
    steps = []
    for plan in plans:
        export = export_annotations(plan, store, settings)
        steps.append(SourceArtifacts(plan, export, download_images(plan, export, ["fox", "rat"], store, settings)))
    return resolve_labels(steps, LabelsConfig.model_validate({"classes": {"fox": ["fox"], "rat": ["rat"]}}), store, settings)


def test_sources_share_locations_only_in_one_namespace(store: Store, settings: Settings, tmp_path: Path) -> None:
    """In one namespace a camera is one location: by its name, by what one export knows of it, or by its coordinates."""
    package = three_deployments()
    for deployment in ("d1", "d2", "d3"):
        package.observation(deployment, "fox", package.image(deployment), BOX)
    package.write(tmp_path / "dp")
    e = Export()
    for loc in ("new gate", "d3", "cove"):
        e.annotation(e.image(loc), 2, [4, 4, 20, 20])
    e.write(tmp_path / "cct")
    one = {"name": "one", "export": "dp"}
    two = {"name": "two", "export": "cct/export.json", "images": "cct/images"}

    def at(**fields: Any) -> dict[str, set[str]]:
        made = labelled(store, settings, *(SourceConfig.model_validate(s | fields) for s in (one, two)))
        rows = store.table(made, "labels.parquet").astype(str)
        return {source: set(locations) for source, locations in rows.groupby("source")["location"]}

    assert at() == {"one": {"one/gate", "one/d3"}, "two": {"two/new gate", "two/d3", "two/cove"}}
    assert at(location_namespace="island") == {"one": {"island/gate", "island/d3"}, "two": {"island/gate", "island/d3", "island/cove"}}


def test_limits_of_a_source_choose_before_the_download_and_consistently(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    imgs = {}
    for i in range(40):
        e.image(("den", "den", "den", f"p{i}")[i % 4], seed=i, id=f"i{i}", file_name=f"{i}.jpg")
        e.annotation(f"i{i}", 1 + i % 2, [4, 4, 20, 20])
        imgs[f"{i}.jpg"] = e.files[f"{i}.jpg"]
    (tmp_path / "e.json").write_bytes(e.json())

    def fetched(asked: dict[str, int], **limits: int) -> tuple[Artifact, set[str]]:
        with served(imgs) as site:
            plan = export_source("e.json", images=site.address, **limits)
            made = download_images(plan, export_annotations(plan, store, settings), ["fox", "rat"], store, settings)
            asked |= {path: n for path, n in site.asked.items() if n}
        return made, set(store.table(made, "images.parquet")["image_id"])

    asked: dict[str, int] = {}
    made, few = fetched(asked, max_per_location=4)
    assert made.counts.dropped == {"over_limit": 26}
    assert len(asked) == made.counts.kept == 14
    _, fewer = fetched({}, max_per_location=4, max_images=6)
    _, more = fetched({}, max_per_location=5)
    assert fewer < few < more
    assert len(fewer) == 6
    missing = store.table(made, "missing.parquet")
    assert set(missing["reason"]) == {"over_limit"}
    assert set(missing["detail"]) == {"the source's limits: max_per_location 4"}


def test_annotations_over_a_sources_limit_are_counted(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for i in range(6):
        e.annotation(e.image(f"p{i}"), 1 + i % 2, [4, 4, 20, 20])
    e.write(tmp_path)
    plan = export_source("export.json", images="images", max_images=5)
    made = labelled(store, settings, plan)
    assert (made.counts.kept, made.counts.dropped) == (5, {"over_source_limit": 1})

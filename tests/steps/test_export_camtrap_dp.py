"""Camtrap DP exports: folder, URL and zip; deployments as locations; media-based and event-based observations; wrong packages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.storage.store import Store
from tests.support.camtrap_dp import three_deployments
from tests.support.export_tables import export_source, labels_of, locations_of, problems_of
from tests.support.web_server import served

BOX = (0.25, 0.5, 0.25, 0.25)
"""Relative x, y, width, height."""


def test_folder_url_and_zip_give_the_same_artifact(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = three_deployments()
    package.observation("d1", "Urocyon littoralis", package.image("d1"), BOX)
    package.write(tmp_path / "dp")
    (tmp_path / "dp.zip").write_bytes(package.zipped("inner/"))
    with served(package.files()) as site:
        plans = [
            export_source("dp"),
            export_source("dp/datapackage.json"),
            export_source("dp.zip", images="dp"),
            export_source(f"{site.address}/datapackage.json", images="dp"),
        ]
        made = [export_annotations(plan, store, settings) for plan in plans]
    assert len({a.digest for a in made}) == 1
    files = package.files()
    assert {n: store.path(made[0], f"original/{n}").read_bytes() for n in files} == files


def test_near_deployments_are_one_location_with_the_oldest_name(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = three_deployments()
    for deployment in ("d1", "d2", "d3"):
        package.observation(deployment, "Urocyon littoralis", package.image(deployment), BOX)
    package.write(tmp_path / "dp")
    assert locations_of(store, export_annotations(export_source("dp"), store, settings)) == {"m0": "gate", "m1": "gate", "m2": "d3"}
    apart = export_annotations(export_source("dp", merge_locations_within_m=None), store, settings)
    assert locations_of(store, apart) == {"m0": "gate", "m1": "new gate", "m2": "d3"}
    by_id = export_annotations(export_source("dp", location_field="deploymentID", merge_locations_within_m=None), store, settings)
    assert locations_of(store, by_id) == {"m0": "d1", "m1": "d2", "m2": "d3"}
    with pytest.raises(ExportError) as caught:
        export_annotations(export_source("dp", location_field="island"), store, settings)
    assert caught.value.code == "no_location_field"


def test_events_label_only_images_without_an_observation(store: Store, settings: Settings, tmp_path: Path) -> None:
    """And only images taken from start to end, whatever the time zones, and only with one label."""
    package = three_deployments()
    own, early, late = (package.image("d1", s) for s in (5, 6, 50))
    package.observation("d1", "Vulpes", own, BOX, eventID="e1")
    package.event("d1", "Urocyon littoralis", (4, 10), eventID="e1")
    package.event("d1", "", (40, 59), observationType="blank")
    two = package.image("d3", 7)
    package.event("d3", "Rattus", (0, 9))
    package.event("d3", "Peromyscus", (0, 9))
    package.event("d2", "Rattus", (0, 9))
    package.write(tmp_path / "dp")
    artifact = export_annotations(export_source("dp"), store, settings)
    assert labels_of(store, artifact) == {own: "Vulpes", early: "Urocyon littoralis", late: "empty"}
    assert two in locations_of(store, artifact)
    assert artifact.counts.dropped == {"event_with_several_labels": 2, "event_without_images": 1}
    assert store.table(artifact, "images.parquet").set_index("image_id")["sequence"].to_dict() == {
        own: "d1/e1",
        early: "d1/e1",
        late: "d1/e",
        two: "",
    }


def test_machine_labels_are_unreviewed_and_superseded_by_people(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = three_deployments()
    both, alone = package.image("d1", 1), package.image("d1", 2)
    package.observation("d1", "Rattus", both, BOX, classificationMethod="machine", classificationProbability=0.7)
    package.observation("d1", "Urocyon littoralis", both, BOX)
    package.observation("d1", "Rattus", alone, BOX, classificationMethod="machine", classificationProbability=0.7)
    package.write(tmp_path / "dp")
    artifact = export_annotations(export_source("dp"), store, settings)
    annotations = store.table(artifact, "annotations.parquet").set_index("image_id")
    assert annotations["label"].to_dict() == {both: "Urocyon littoralis", alone: "Rattus"}
    assert annotations["reviewed"].to_dict() == {both: True, alone: False}
    assert annotations["confidence"][alone] == pytest.approx(0.7)
    assert math.isnan(annotations["confidence"][both])
    assert artifact.counts.dropped == {"superseded_by_people": 1}


def test_dropped_media_and_observations_are_counted_by_reason(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = three_deployments()
    kept = package.image("d1")
    package.observation("d1", "Vulpes", kept, BOX)
    package.observation("d1", "Vulpes", kept, BOX)
    package.observation("d1", "Vulpes", kept, (0.9, 0.5, 0.5, 0.2))
    package.observation("d1", "Vulpes", kept, ("NaN", "NA", "", ""))
    package.observation("d1", "", kept, observationType="unclassified")
    package.observation("d1", "", kept, observationType="human", cameraSetupType="setup")
    package.observation("d1", "Vulpes", "m99")
    package.observation("d1", "Vulpes", package.image("d1", fileMediatype="video/mp4"))
    package.observation("d1", "Vulpes", package.image("d1", filePath="https://elsewhere.org/1/file"))
    package.observation("d1", "Vulpes", package.image("d1", filePath="../../etc/passwd"))
    package.observation("d9", "Vulpes", package.image("d9"))
    package.write(tmp_path / "dp")
    artifact = export_annotations(export_source("dp"), store, settings)
    assert artifact.counts.kept == 3
    assert artifact.counts.dropped == {
        "repeated_label": 1, "malformed_annotation": 1, "unclassified": 1, "camera_setup": 1, "unknown_image": 2, "not_an_image": 1,
        "image_elsewhere": 1, "label_of_dropped_image": 2, "unsafe_path": 1,
    }  # fmt: skip
    assert artifact.counts.notes == {"unknown_deployment": 1}
    assert ("image_elsewhere", "m2") in problems_of(store, artifact)


def test_media_urls_are_read_below_the_plans_images(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = three_deployments()
    for i in range(2):
        package.observation("d1", "Vulpes", package.image("d1", filePath=f"https://media.host/assets/{i}-a/file", fileName=""), BOX)
    package.write(tmp_path / "dp")
    with pytest.raises(ExportError) as caught:
        export_annotations(export_source("dp"), store, settings)
    assert (caught.value.code, caught.value.details) == ("images_elsewhere", {"base": "https://media.host/assets"})
    artifact = export_annotations(export_source("dp", images="https://media.host/assets"), store, settings)
    assert list(store.table(artifact, "images.parquet")["path"]) == ["0-a/file", "1-a/file"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d["resources"][1].update(path="../media.csv"), "bad_package"),
        (lambda d: d["resources"][1].update(path="/etc/media.csv"), "bad_package"),
        (lambda d: d["resources"][1].update(path="https://host/media.csv"), "bad_package"),
        (lambda d: d["resources"][1].update(path="media.parquet"), "bad_package"),
        (lambda d: d["resources"][1].update(path="deployments.csv"), "bad_table"),
        (lambda d: d["resources"].pop(2), "bad_package"),
        (lambda d: d.pop("resources"), "bad_package"),
        (lambda d: d["resources"][0].update(path="none.csv"), "not_found"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_wrong_package_is_an_error_in_one_line(store: Store, settings: Settings, tmp_path: Path, change: Any, code: str, zipped: bool) -> None:
    package = three_deployments()
    package.observation("d1", "Vulpes", package.image("d1"), BOX)
    change(package.description)
    package.write(tmp_path / "dp")
    (tmp_path / "dp.zip").write_bytes(package.zipped())
    with pytest.raises(ExportError) as caught:
        export_annotations(export_source("dp.zip" if zipped else "dp", images="dp"), store, settings)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)

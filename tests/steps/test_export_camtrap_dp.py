"""Camtrap DP exports: folder, URL and zip; deployments as locations; media-based and event-based observations; wrong packages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.storage.store import Store
from tests.support.camtrap_dp import CamtrapPackage, three_deployments
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
        "repeated_label": 2, "unclassified": 1, "camera_setup": 1, "unknown_image": 2, "not_an_image": 1,
        "image_elsewhere": 1, "label_of_dropped_image": 2, "unsafe_path": 1,
    }  # fmt: skip
    assert artifact.counts.notes == {"unknown_deployment": 1, "box_malformed": 1, "merged_location": 1}
    assert ("image_elsewhere", "m2") in problems_of(store, artifact)


def test_a_location_is_the_id_else_the_name_else_the_coordinates(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = CamtrapPackage()
    package.deployment("d0", 34.0001, -119.7, locationID="gate", locationName="The gate")
    package.deployment("d1", 34.1001, -119.7, locationID="NA", locationName="The gate")
    package.deployment("d2", 34.2001, -119.7, locationID="-1", locationName="Creek ")
    package.deployment("d3", 34.3001, -119.7, locationName="Creek")
    package.deployment("d4", 34.4001, -119.7, locationID="unknown")
    package.deployment("d5", 34.4001, -119.7, locationName="?")
    package.deployment("d6", locationID="None")
    for deployment in [row["deploymentID"] for row in package.rows["deployments"]]:
        package.observation(deployment, "Vulpes", package.image(deployment), BOX)
    package.write(tmp_path / "dp")
    artifact = export_annotations(export_source("dp", merge_locations_within_m=None), store, settings)
    assert list(locations_of(store, artifact).values()) == ["gate", "gate", "Creek", "Creek", "d4", "d4", ""]
    assert artifact.counts.notes == {"deployment_without_location": 1}


@pytest.mark.parametrize(
    ("lat", "precision", "uncertainty", "merged"),
    [
        ("51.0", 0.1, "", False),  # rounded, and the package says so
        ("51.01234", 0.01, "", False),
        ("51.01", None, "", False),  # rounded, as its digits show
        ("51.01234", None, "7871", False),  # rounded, as the table says
        ("51.01234", None, "30", True),  # the error of a GPS
        ("51.01234", 0.0001, "", True),
    ],
)
def test_locations_are_not_merged_within_the_precision_of_their_coordinates(
    store: Store, settings: Settings, tmp_path: Path, lat: str, precision: float | None, uncertainty: str, merged: bool
) -> None:
    package = CamtrapPackage()
    package.description |= {"coordinatePrecision": precision} if precision else {}
    for i in range(3):
        package.deployment(f"d{i}", lat, "5.0", locationID=f"l{i}", coordinateUncertainty=uncertainty)
        package.observation(f"d{i}", "Vulpes", package.image(f"d{i}"), BOX)
    package.write(tmp_path / "dp")
    artifact = export_annotations(export_source("dp"), store, settings)
    assert set(locations_of(store, artifact).values()) == ({"l0"} if merged else {"l0", "l1", "l2"})
    assert artifact.counts.notes == ({"merged_location": 2} if merged else {"coordinates_too_coarse_to_merge": 3})


def test_an_image_in_events_of_different_labels_has_no_label(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = three_deployments()
    fox, both, hare, blank, machine = (package.image("d1", s) for s in (5, 20, 40, 50, 55))
    package.event("d1", "Vulpes", (0, 30), eventID="e1")
    package.event("d1", "Lepus", (20, 45), eventID="e2")
    package.event("d1", "", (50, 50), eventID="e3", observationType="blank")
    package.event("d1", "Vulpes", (48, 52), eventID="e4")
    package.event("d1", "Meles", (54, 56), eventID="e5", classificationMethod="machine")
    package.event("d1", "Vulpes", (55, 57), eventID="e6")
    package.write(tmp_path / "dp")
    artifact = export_annotations(export_source("dp"), store, settings)
    assert labels_of(store, artifact) == {fox: "Vulpes", hare: "Lepus", machine: "Vulpes"}
    assert artifact.counts.dropped == {"image_in_events_of_several_labels": 2}
    assert {("image_in_events_of_several_labels", both), ("image_in_events_of_several_labels", blank)} <= problems_of(store, artifact)


@pytest.mark.parametrize("box", [(0.2, 0.3), (0.2, 0.3, 0, 0), ("a", "b", "c", "d"), (0.2, 0.3, -0.1, 0.2), (100, 120, 80, 80)])
def test_a_box_that_cannot_be_used_leaves_a_label_of_the_image(store: Store, settings: Settings, tmp_path: Path, box: tuple[Any, ...]) -> None:
    package = three_deployments()
    image, other = package.image("d1", 1), package.image("d1", 2)
    package.observation("d1", "Vulpes", image, box)
    package.event("d1", "Vulpes", (0, 9))
    package.write(tmp_path / "dp")
    artifact = export_annotations(export_source("dp"), store, settings)
    assert labels_of(store, artifact) == {image: "Vulpes", other: "Vulpes"}
    assert artifact.counts.notes == {"box_malformed": 1, "merged_location": 1}
    assert store.table(artifact, "annotations.parquet")["x"].isna().all()


def test_ids_with_points_and_blanks_and_other_forms_of_dates_are_understood(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = CamtrapPackage()
    package.deployment("d1", 34.0001, -119.7, locationID="7.0")
    package.deployment("d2", 34.0001, -119.7, locationID="7")
    for deployment, name, time in (("d1 ", "11", "2024/05/31 10:00"), (" d2", "12", "2024/06/01 10:00:30"), ("d1", "13", "01-06-2024 10:00")):
        package.image(deployment, mediaID=name, timestamp=time)
    package.observation("d1", "Vulpes ", "11.0 ", BOX)
    package.observation("d2", "Lepus", observationLevel="event", eventStart="2024/06/01 10:00:00", eventEnd="2024/06/01 10:01")
    package.observation("d1", "Meles", observationLevel="event", eventStart="yesterday", eventEnd="2024/06/01 10:01")
    package.write(tmp_path / "dp")
    artifact = export_annotations(export_source("dp", merge_locations_within_m=None), store, settings)
    assert labels_of(store, artifact) == {"11": "Vulpes", "12": "Lepus"}
    assert list(locations_of(store, artifact).values()) == ["7", "7", "7"]
    assert list(store.table(artifact, "images.parquet")["taken"]) == ["2024-05-31T10:00:00", "2024-06-01T10:00:30", ""]
    assert (artifact.counts.dropped, artifact.counts.notes) == ({"event_without_time": 1}, {"ambiguous_time": 1})


def test_version_0_1_6_with_sequences_instead_of_events_is_read(store: Store, settings: Settings, tmp_path: Path) -> None:
    tables = {
        "deployments": "deploymentID,locationID,longitude,latitude,start,end\nd1,gate,-119.7,34.0001,2021-01-01T00:00:00Z,2021-02-01T00:00:00Z\n",
        "media": "mediaID,deploymentID,sequenceID,timestamp,filePath,fileMediatype\n"
        + "".join(f"m{i},d1,s{i // 2},2021-01-0{1 + i // 2}T00:00:0{i}Z,media/m{i}.jpg,image/jpeg\n" for i in range(6)),
        "observations": "observationID,deploymentID,sequenceID,mediaID,observationType,cameraSetup,scientificName,classificationMethod\n"
        "o0,d1,s0,,animal,false,Vulpes,human\no1,d1,s1,m2,animal,false,Lepus,human\no2,d1,s2,,human,true,,human\n",
    }
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "datapackage.json").write_text(json.dumps({"resources": [{"name": name, "path": f"{name}.csv"} for name in tables]}))
    artifact = export_annotations(export_source("datapackage.json"), store, settings)
    assert labels_of(store, artifact) == {"m0": "Vulpes", "m1": "Vulpes", "m2": "Lepus"}
    assert artifact.counts.dropped == {"camera_setup": 1}
    assert set(locations_of(store, artifact).values()) == {"gate"}


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

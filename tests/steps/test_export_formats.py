"""Sources of every kind: each read by name, its labels, boxes and places as they are, everything that is left out counted."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from animl_pipeline.config import LabelsConfig, SourceConfig, check_plan
from animl_pipeline.config.lila_datasets import lila_sets
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, PlanError
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.export.archives import MAX_RATIO, gunzipped
from animl_pipeline.steps.images import fetch_images
from animl_pipeline.steps.labels import SourceSteps, resolve_labels
from animl_pipeline.storage.step_cache import Store
from tests.conftest import jpeg
from tests.support.camtrap_dp import CamtrapPackage
from tests.support.coco_export import Export
from tests.support.web_server import served

BOX = (0.25, 0.5, 0.25, 0.25)
"""Relative x, y, width, height."""


def source(export: str, **fields: Any) -> SourceConfig:
    return SourceConfig.model_validate({"name": "isle", "export": export} | fields)


def names(store: Store, artifact: Artifact) -> dict[str, str]:
    """Image id → the name of its object."""
    table = store.table(artifact, "annotations.parquet")
    return dict(zip(table["image_id"], table["label"], strict=True))


def locations(store: Store, artifact: Artifact) -> dict[str, str]:
    table = store.table(artifact, "images.parquet")
    return dict(zip(table["image_id"], table["location"], strict=True))


def problems(store: Store, artifact: Artifact) -> set[tuple[str, str]]:
    table = store.table(artifact, "problems.parquet")
    return set(zip(table["problem"], table["subject"], strict=True))


def write_images(folder: Path, *paths: str) -> None:
    for i, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg(seed=i))


def dated(taken: str, zone: str = "") -> bytes:
    """A JPEG whose EXIF says when it was taken."""
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0x9003: taken} | ({0x9011: zone} if zone else {}))
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


# -- which kind it is ----------------------------------------------------------------------------------------------


def test_the_same_labels_are_read_alike_however_they_are_written(store: Store, settings: Settings, tmp_path: Path) -> None:
    """A fox and a rat at two places: as COCO for Camera Traps, as folders, as a Camtrap DP and as MegaDetector's JSON."""
    cct = Export()
    cct.annotation(cct.image("cove", file_name="cove/fox/a.jpg"), 1, [16, 24, 16, 12])
    cct.annotation(cct.image("bay", file_name="bay/rat/b.jpg"), 2, [16, 24, 16, 12])
    (tmp_path / "cct.json").write_bytes(cct.json())
    write_images(tmp_path / "images", "cove/fox/a.jpg", "bay/rat/b.jpg")
    package = CamtrapPackage()
    for loc, taxon, path in (("cove", "fox", "cove/fox/a.jpg"), ("bay", "Rat", "bay/rat/b.jpg")):
        package.deployment(loc)
        package.seen(loc, taxon, package.image(loc, filePath=path), BOX)
    package.write(tmp_path / "package")
    classes = {"0": "fox", "1": "Rat"}
    rows = [
        {"file": f, "detections": [{"category": "1", "conf": 0.9, "bbox": list(BOX), "classifications": [[k, 0.8]]}]}
        for k, f in enumerate_files("cove/fox/a.jpg", "bay/rat/b.jpg")
    ]
    machine = {"images": rows, "detection_categories": {"1": "animal"}, "classification_categories": classes, "info": {}}
    (tmp_path / "md.json").write_text(json.dumps(machine))
    told = {
        "cct": source("cct.json", images="images"),
        "folders": source("images", layout="{location}/{label}"),
        "camtrap-dp": source("package"),
        "megadetector": source("md.json", images="images", layout="{location}/*"),
    }
    for kind, plan in told.items():
        artifact = export_annotations(plan, store, settings)
        assert sorted(n.casefold() for n in names(store, artifact).values()) == ["fox", "rat"], kind
        assert sorted(locations(store, artifact).values()) == ["bay", "cove"], kind
        assert sorted(store.table(artifact, "images.parquet")["path"]) == ["bay/rat/b.jpg", "cove/fox/a.jpg"], kind
        images, objects = store.table(artifact, "images.parquet"), store.table(artifact, "annotations.parquet")
        if kind == "folders":
            assert objects["x"].isna().all()
        else:
            sides = images[["width", "height", "width", "height"]].to_numpy(float)
            assert np.allclose(objects[["x", "y", "w", "h"]].to_numpy() / sides, BOX), kind
        assert bool(objects["reviewed"].all()) == (kind != "megadetector"), kind
        assert export_annotations(plan, store, settings).cached, kind
        assert export_annotations(plan.model_copy(update={"kind": kind}), store, settings).cached, kind


def enumerate_files(*files: str) -> list[tuple[str, str]]:
    return [(str(i), f) for i, f in enumerate(files)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"export": "a.json", "images": "i", "kind": "lila"}, ["kind", "lila://"]),
        ({"export": "animl://isle", "images": "i", "kind": "cct"}, ["kind", "animl://"]),
        ({"export": "lila://atlantis"}, ["channel-islands-camera-traps", "'atlantis'"]),
        ({"export": "images", "layout": "label/place"}, ["layout", "{label}"]),
        ({"export": "images", "layout": "{location}", "kind": "folders"}, ["layout", "{label}"]),
        ({"export": "a.json", "images": "i", "kind": "cct", "layout": "{label}"}, ["layout", "cct"]),
        ({"export": "a.json"}, ["'sources.0.images' is missing"]),
        ({"export": "a.zip", "kind": "camtrap-dp"}, ["'sources.0.images' is missing"]),
        ({"export": "a.json", "images": "i", "kind": "coco"}, ["sources.0.kind", "camtrap-dp"]),
        ({"export": "a.json", "images": "i", "max_images": 0}, ["sources.0.max_images"]),
        ({"export": "a.json", "images": "i", "megadetector": {"confidence": 2}}, ["sources.0.megadetector.confidence"]),
    ],
)
def test_what_does_not_fit_in_a_source_is_one_line(fields: dict[str, Any], words: list[str]) -> None:
    plan = {"model": "m", "sources": [{"name": "isle"} | fields], "labels": {"classes": {"a": ["a"], "b": ["b"]}}}
    with pytest.raises(PlanError) as caught:
        check_plan(plan)
    assert all(word in str(caught.value) for word in words), caught.value


def test_images_lie_where_the_export_says_and_old_plans_stay_plans() -> None:
    assert source("pictures/by-class").images == "pictures/by-class"
    assert source("https://host/dp/datapackage.json").images == "https://host/dp"
    assert source("lila://channel-islands-camera-traps").images == "lila://channel-islands-camera-traps"
    old = source("animl://isle", images="i", animl={"cameras": ["a"], "merge_locations_within_m": None})
    assert old.merge_locations_within_m is None
    assert old.animl is not None
    assert old.animl.cameras == ("a",)


# -- LILA ------------------------------------------------------------------------------------------------------------


def test_a_lila_set_comes_by_its_name_with_metadata_in_a_zip_and_images_below_its_mirror(store: Store, settings: Settings) -> None:
    known = lila_sets()["channel-islands-camera-traps"]
    e = Export()
    e.image("loc-1", file_name="loc-1/a.jpg", id="a", seq_id="s1", seq_num_frames=1, frame_num=0, rights_holder="x")
    e.image("loc-2", file_name="loc-2/b.jpg", id="b", location=None)
    e.annotation("a", 1, [4, 4, 20, 20])
    e.annotation("b", 2)
    for row in e.annotations:  # LILA's files do not say who reviewed what
        del row["validated"], row["validated_by"], row["confidence"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("channel-islands-camera-traps.json", e.json())
    files = {known.metadata: packed.getvalue()} | {f"{known.images}/{name}": data for name, data in e.files.items()}
    with served(files) as site:
        here = settings.model_copy(update={"lila": site.address})
        plan = source("lila://channel-islands-camera-traps")
        export = export_annotations(plan, store, here)
        imgs = fetch_images(plan, export, ["fox", "rat"], store, here)
    assert names(store, export) == {"a": "fox", "b": "Rat"}
    assert locations(store, export) == {"a": "loc-1", "b": ""}
    assert store.table(export, "annotations.parquet")["reviewed"].all()
    assert (export.counts.dropped, imgs.counts.kept) == ({}, 2)


def test_every_known_lila_set_has_paths_that_stay_below_a_mirror() -> None:
    assert len(lila_sets()) >= 10
    for known in lila_sets().values():
        assert not known.metadata.startswith("/")
        assert known.metadata.endswith((".json", ".zip"))
        assert "://" not in known.metadata + known.images
        assert source(f"lila://{known.name}").images.endswith(known.name)


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folders_name_is_the_label_and_the_location_and_exif_says_when(store: Store, settings: Settings, tmp_path: Path) -> None:
    base = tmp_path / "sorted"
    write_images(base, "north gate/fox/day 1/deep.jpg", "north gate/Deer Mouse/b.PNG", "shallow.jpg", "fox/half.jpg")
    (base / "north gate/fox/c.jpg").write_bytes(dated("2026:03:01 06:30:00", "-08:00"))
    (base / "north gate/fox/broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (base / "north gate/fox/clip.mp4").write_bytes(b"film")
    (base / "north gate/fox/.hidden.jpg").write_bytes(b"")
    artifact = export_annotations(source("sorted", layout="{location}/{label}"), store, settings)
    assert names(store, artifact) == {
        "north gate/fox/day 1/deep.jpg": "fox",
        "north gate/Deer Mouse/b.PNG": "Deer Mouse",
        "north gate/fox/c.jpg": "fox",
        "north gate/fox/broken.jpg": "fox",
    }
    assert set(locations(store, artifact).values()) == {"north gate"}
    taken = store.table(artifact, "images.parquet").set_index("image_id")["taken"]
    assert taken["north gate/fox/c.jpg"] == "2026-03-01T06:30:00-08:00"
    assert artifact.counts.dropped == {"not_an_image": 1, "not_in_a_class_folder": 2}
    assert artifact.counts.noted == {"no_capture_time": 3}
    listing = json.loads(store.path(artifact, "original/listing.json").read_bytes())
    assert len(listing) == 7
    (base / "north gate/fox/new.jpg").write_bytes(dated("2026:03:02 06:30:00"))
    again = export_annotations(source("sorted", layout="{location}/{label}"), store, settings)
    assert (again.cached, again.counts.kept) == (False, 5)


def test_without_a_layout_the_first_folder_is_the_label_and_the_location_is_unknown(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_images(tmp_path / "sorted", "fox/a.jpg", "rat/x/b.jpg")
    artifact = export_annotations(source("sorted"), store, settings)
    assert names(store, artifact) == {"fox/a.jpg": "fox", "rat/x/b.jpg": "rat"}
    assert set(locations(store, artifact).values()) == {""}


def test_folders_in_a_bucket_are_listed(store: Store, settings: Settings, bucket: str) -> None:
    for key in ("own/fox/a.jpg", "own/rat/b.jpg", "own/notes.txt", "other/fox/c.jpg"):
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=jpeg(seed=len(key)))
    plan = source(f"s3://{bucket}/own")
    artifact = export_annotations(plan, store, settings)
    assert names(store, artifact) == {"fox/a.jpg": "fox", "rat/b.jpg": "rat"}
    assert artifact.counts.dropped == {"not_an_image": 1}
    assert fetch_images(plan, artifact, ["fox", "rat"], store, settings).counts.kept == 2


@pytest.mark.parametrize(
    ("export", "line"),
    [
        ("none", "expected a folder of pictures at .*none"),
        ("https://host/pictures", "cannot be listed over https"),
        ("empty", "found none among 1 files"),
    ],
)
def test_folders_that_cannot_be_read_are_one_line(store: Store, settings: Settings, tmp_path: Path, export: str, line: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("none")
    with pytest.raises(ExportError, match=line):
        export_annotations(source(export, kind="folders"), store, settings)


# -- Camtrap DP --------------------------------------------------------------------------------------------------------


def island() -> CamtrapPackage:
    """Two deployments within metres of each other, and one far away."""
    package = CamtrapPackage()
    package.deployment("d1", 34.0, -119.7, "2026-01-01T00:00:00Z", locationID="gate")
    package.deployment("d2", 34.00002, -119.7, "2026-02-01T00:00:00Z", locationID="new gate")
    package.deployment("d3", 34.1, -119.7)
    return package


def test_a_package_is_the_same_from_a_folder_an_address_and_a_zip(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = island()
    package.seen("d1", "Urocyon littoralis", package.image("d1"), BOX)
    package.write(tmp_path / "dp")
    (tmp_path / "dp.zip").write_bytes(package.zipped("inner/"))
    with served(package.files()) as site:
        plans = [source("dp"), source("dp/datapackage.json"), source("dp.zip", images="dp"), source(f"{site.address}/datapackage.json", images="dp")]
        made = [export_annotations(plan, store, settings) for plan in plans]
    assert len({a.digest for a in made}) == 1
    files = package.files()
    assert {n: store.path(made[0], f"original/{n}").read_bytes() for n in files} == files


def test_deployments_within_metres_are_one_location_by_the_oldest_name(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = island()
    for deployment in ("d1", "d2", "d3"):
        package.seen(deployment, "Urocyon littoralis", package.image(deployment), BOX)
    package.write(tmp_path / "dp")
    assert locations(store, export_annotations(source("dp"), store, settings)) == {"m0": "gate", "m1": "gate", "m2": "d3"}
    apart = export_annotations(source("dp", merge_locations_within_m=None), store, settings)
    assert locations(store, apart) == {"m0": "gate", "m1": "new gate", "m2": "d3"}
    by_id = export_annotations(source("dp", location_field="deploymentID", merge_locations_within_m=None), store, settings)
    assert locations(store, by_id) == {"m0": "d1", "m1": "d2", "m2": "d3"}
    with pytest.raises(ExportError, match="location_field: expected a column of its deployments"):
        export_annotations(source("dp", location_field="island"), store, settings)


def test_what_images_say_counts_before_what_their_event_says(store: Store, settings: Settings, tmp_path: Path) -> None:
    """Events label pictures that nothing else labels, between start and end, whatever the zones, and only with one kind of thing."""
    package = island()
    told, early, late = (package.image("d1", s) for s in (5, 6, 50))
    package.seen("d1", "Vulpes", told, BOX, eventID="e1")
    package.event("d1", "Urocyon littoralis", (4, 10), eventID="e1")
    package.event("d1", "", (40, 59), observationType="blank")
    two = package.image("d3", 7)
    package.event("d3", "Rattus", (0, 9))
    package.event("d3", "Peromyscus", (0, 9))
    package.event("d2", "Rattus", (0, 9))
    package.write(tmp_path / "dp")
    artifact = export_annotations(source("dp"), store, settings)
    assert names(store, artifact) == {told: "Vulpes", early: "Urocyon littoralis", late: "empty"}
    assert two in locations(store, artifact)
    assert artifact.counts.dropped == {"event_with_several_kinds": 2, "event_without_images": 1}
    assert store.table(artifact, "images.parquet").set_index("image_id")["sequence"].to_dict() == {
        told: "d1/e1",
        early: "d1/e1",
        late: "d1/e",
        two: "",
    }


def test_what_a_machine_said_is_unreviewed_and_gives_way_to_people(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = island()
    both, alone = package.image("d1", 1), package.image("d1", 2)
    package.seen("d1", "Rattus", both, BOX, classificationMethod="machine", classificationProbability=0.7)
    package.seen("d1", "Urocyon littoralis", both, BOX)
    package.seen("d1", "Rattus", alone, BOX, classificationMethod="machine", classificationProbability=0.7)
    package.write(tmp_path / "dp")
    artifact = export_annotations(source("dp"), store, settings)
    objects = store.table(artifact, "annotations.parquet").set_index("image_id")
    assert objects["label"].to_dict() == {both: "Urocyon littoralis", alone: "Rattus"}
    assert objects["reviewed"].to_dict() == {both: True, alone: False}
    assert objects["confidence"][alone] == pytest.approx(0.7)
    assert math.isnan(objects["confidence"][both])
    assert artifact.counts.dropped == {"superseded_by_people": 1}


def test_everything_that_a_package_loses_is_counted_by_its_reason(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = island()
    kept = package.image("d1")
    package.seen("d1", "Vulpes", kept, BOX)
    package.seen("d1", "Vulpes", kept, BOX)
    package.seen("d1", "Vulpes", kept, (0.9, 0.5, 0.5, 0.2))
    package.seen("d1", "Vulpes", kept, ("NaN", "NA", "", ""))
    package.seen("d1", "", kept, observationType="unclassified")
    package.seen("d1", "", kept, observationType="human", cameraSetupType="setup")
    package.seen("d1", "Vulpes", "m99")
    package.seen("d1", "Vulpes", package.image("d1", fileMediatype="video/mp4"))
    package.seen("d1", "Vulpes", package.image("d1", filePath="https://elsewhere.org/1/file"))
    package.seen("d1", "Vulpes", package.image("d1", filePath="../../etc/passwd"))
    package.seen("d9", "Vulpes", package.image("d9"))
    package.write(tmp_path / "dp")
    artifact = export_annotations(source("dp"), store, settings)
    assert artifact.counts.kept == 3
    assert artifact.counts.dropped == {
        "same_label_again": 1, "malformed_object": 1, "unclassified": 1, "camera_setup": 1, "unknown_image": 2, "not_an_image": 1,
        "image_elsewhere": 1, "of_a_image_left_out": 2, "unsafe_path": 1,
    }  # fmt: skip
    assert artifact.counts.noted == {"unknown_deployment": 1}
    assert ("image_elsewhere", "m2") in problems(store, artifact)


def test_images_behind_addresses_are_found_below_the_base_that_the_plan_names(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = island()
    for i in range(2):
        package.seen("d1", "Vulpes", package.image("d1", filePath=f"https://media.host/assets/{i}-a/file", fileName=""), BOX)
    package.write(tmp_path / "dp")
    with pytest.raises(ExportError, match=r"found all 2 of the package below https://media\.host/assets; set sources\.images to that"):
        export_annotations(source("dp"), store, settings)
    artifact = export_annotations(source("dp", images="https://media.host/assets"), store, settings)
    assert list(store.table(artifact, "images.parquet")["path"]) == ["0-a/file", "1-a/file"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d: d["resources"][1].update(path="../media.csv"), "expected a path inside the package for the table 'media'"),
        (lambda d: d["resources"][1].update(path="/etc/media.csv"), "expected a path inside the package"),
        (lambda d: d["resources"][1].update(path="https://host/media.csv"), "expected a path inside the package"),
        (lambda d: d["resources"][1].update(path="media.parquet"), r"as \.csv or \.csv\.gz"),
        (lambda d: d["resources"][1].update(path="deployments.csv"), "has no column 'mediaID'; expected Camtrap DP 1.0 or later"),
        (lambda d: d["resources"].pop(2), "expected one resource 'observations'"),
        (lambda d: d.pop("resources"), "describes no data package"),
        (lambda d: d["resources"][0].update(path="none.csv"), r"none\.csv"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_package_that_is_none_is_one_line(store: Store, settings: Settings, tmp_path: Path, change: Any, line: str, zipped: bool) -> None:
    package = island()
    package.seen("d1", "Vulpes", package.image("d1"), BOX)
    change(package.description)
    package.write(tmp_path / "dp")
    (tmp_path / "dp.zip").write_bytes(package.zipped())
    with pytest.raises(ExportError, match=line) as caught:
        export_annotations(source("dp.zip" if zipped else "dp", images="dp"), store, settings)
    assert "\n" not in str(caught.value)


# -- MegaDetector ------------------------------------------------------------------------------------------------------


def machine(*images: dict[str, Any]) -> bytes:
    found = {
        "images": images,
        "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
        "classification_categories": {"0": "fox", "1": "rat"},
        "info": {"detector": "md_v5a"},
    }
    return json.dumps(found).encode()


def detection(category: str = "1", conf: float = 0.9, bbox: Any = BOX, classifications: Any = None) -> dict[str, Any]:
    return {"category": category, "conf": conf, "bbox": list(bbox)} | ({"classifications": classifications} if classifications else {})


def test_a_machines_best_class_is_a_label_that_nobody_has_reviewed(store: Store, settings: Settings, tmp_path: Path) -> None:
    data = machine(
        {"file": "cove/a.jpg", "detections": [detection(classifications=[["1", 0.3], ["0", 0.6]]), detection(conf=0.1)]},
        {"file": "cove/b.jpg", "detections": [detection(classifications=[["1", 0.4]]), detection("2"), detection("3", bbox=[0, 0, 0.1, 0.1])]},
        {"file": "cove/c.jpg", "detections": [detection(conf=0.15)], "datetime": "2026-03-01T10:00:00"},
        {"file": "d.jpg", "failure": "image access failure", "detections": None},
        {"file": "e.mp4", "detections": []},
        {"file": "../f.jpg", "detections": []},
        {"file": "g.jpg", "detections": [detection(bbox=[0.9, 0.9, 0.5, 0.5]), {"category": "1"}]},
        {"detections": []},
    )
    (tmp_path / "md.json").write_bytes(data)
    artifact = export_annotations(source("md.json", images="images", layout="{location}"), store, settings)
    objects = store.table(artifact, "annotations.parquet")
    found = sorted(zip(objects["image_id"], objects["label"], strict=True))
    assert found == [
        ("cove/a.jpg", "fox"),
        ("cove/b.jpg", "animal"),
        ("cove/b.jpg", "person"),
        ("cove/b.jpg", "vehicle"),
        ("cove/c.jpg", "empty"),
    ]
    assert not objects["reviewed"].any()
    assert artifact.counts.dropped == {"failed_image": 1, "not_an_image": 1, "unsafe_path": 1, "image_without_id": 1, "malformed_object": 2}
    assert artifact.counts.noted == {"image_with_boxes_below_confidence": 2, "no_location_folder": 1, "unreviewed": 5}
    assert locations(store, artifact) == {"cove/a.jpg": "cove", "cove/b.jpg": "cove", "cove/c.jpg": "cove", "g.jpg": ""}
    assert store.path(artifact, "original/results.json").read_bytes() == data


def test_how_sure_a_machine_must_be_is_the_plans_word(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "md.json").write_bytes(machine({"file": "a.jpg", "detections": [detection(conf=0.5, classifications=[["0", 0.6]])]}))
    said = {}
    for confidence, classification in ((0.4, 0.5), (0.4, 0.7), (0.6, 0.5)):
        plan = source("md.json", images="i", megadetector={"confidence": confidence, "classification": classification})
        said[confidence, classification] = names(store, export_annotations(plan, store, settings))["a.jpg"]
    assert said == {(0.4, 0.5): "fox", (0.4, 0.7): "animal", (0.6, 0.5): "empty"}


@pytest.mark.parametrize("data", [b"[]", b'{"images": []}', b'{"images": {}, "detection_categories": {}}', b"{"])
def test_what_is_no_result_of_megadetector_is_one_line(store: Store, settings: Settings, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "md.json").write_bytes(data)
    with pytest.raises(ExportError, match=r"is not MegaDetector's format|is not JSON"):
        export_annotations(source("md.json", images="i", kind="megadetector"), store, settings)


# -- archives ----------------------------------------------------------------------------------------------------------


def test_an_archive_that_unpacks_to_far_more_than_it_is_ends_in_one_line(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = island()
    package.seen("d1", "Vulpes", package.image("d1"), BOX)
    files = package.files() | {"media.csv": b"\0" * (80 << 20)}
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(ExportError, match=rf"media\.csv: expected an archive that unpacks to at most .* \({MAX_RATIO} times"):
        export_annotations(source("bomb.zip", images="i"), store, settings)


def test_a_gzip_is_unpacked_and_a_broken_one_is_one_line() -> None:
    import gzip

    assert gunzipped(gzip.compress(b"a,b\n"), "x") == b"a,b\n"
    with pytest.raises(ExportError, match="the archive is broken"):
        gunzipped(gzip.compress(b"a,b\n")[:-6], "x")


# -- several sources ---------------------------------------------------------------------------------------------------


def labelled(store: Store, settings: Settings, *plans: SourceConfig) -> Artifact:
    """The labels of some sources, foxes and rats."""
    steps = []
    for plan in plans:
        export = export_annotations(plan, store, settings)
        steps.append(SourceSteps(plan, export, fetch_images(plan, export, ["fox", "rat"], store, settings)))
    return resolve_labels(steps, LabelsConfig.model_validate({"classes": {"fox": ["fox"], "rat": ["rat"]}}), store, settings)


def test_sources_keep_their_locations_apart_unless_they_share_them(store: Store, settings: Settings, tmp_path: Path) -> None:
    """Shared, a camera is one place whichever export names it: by its name, by what one export knows of it, by where it lies."""
    package = island()
    for deployment in ("d1", "d2", "d3"):
        package.seen(deployment, "fox", package.image(deployment), BOX)
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
    assert at(locations="island") == {"one": {"island/gate", "island/d3"}, "two": {"island/gate", "island/d3", "island/cove"}}


def test_a_sources_limits_choose_before_anything_travels_and_the_choice_stays_as_it_grows(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    imgs = {}
    for i in range(40):
        e.image(("den", "den", "den", f"p{i}")[i % 4], seed=i, id=f"i{i}", file_name=f"{i}.jpg")
        e.annotation(f"i{i}", 1 + i % 2, [4, 4, 20, 20])
        imgs[f"{i}.jpg"] = e.files[f"{i}.jpg"]
    (tmp_path / "e.json").write_bytes(e.json())

    def fetched(asked: dict[str, int], **limits: int) -> tuple[Artifact, set[str]]:
        with served(imgs) as site:
            plan = source("e.json", images=site.address, **limits)
            made = fetch_images(plan, export_annotations(plan, store, settings), ["fox", "rat"], store, settings)
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


def test_labels_say_which_objects_a_sources_limit_left_out(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for i in range(6):
        e.annotation(e.image(f"p{i}"), 1 + i % 2, [4, 4, 20, 20])
    e.write(tmp_path)
    plan = source("export.json", images="images", max_images=5)
    made = labelled(store, settings, plan)
    assert (made.counts.kept, made.counts.dropped) == (5, {"over_source_limit": 1})


def test_the_bytes_of_a_step_do_not_depend_on_where_it_ran(store: Store, settings: Settings, tmp_path: Path) -> None:
    """The listing of a folder names no folder of this machine."""
    for name in ("here", "there"):
        (tmp_path / name / "fox").mkdir(parents=True)
        (tmp_path / name / "fox" / "a.jpg").write_bytes(dated("2026:03:01 06:30:00"))
    one, two = (export_annotations(source(name), store, settings) for name in ("here", "there"))
    assert one.digest == two.digest
    assert hashlib.sha256(store.path(one, "original/listing.json").read_bytes()).hexdigest()

"""Export formats other than Animl: detection, LILA, class folders, MegaDetector results, archives, and several sources together."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from animl_pipeline.config import check_plan
from animl_pipeline.config.lila_datasets import lila_datasets
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, ExportUnreachableError, PlanError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.export.unpack_archives import gunzip
from animl_pipeline.steps.images import download_images
from animl_pipeline.storage.store import Store
from tests.conftest import jpeg
from tests.support.camtrap_dp import CamtrapPackage, three_deployments
from tests.support.coco_export import Export
from tests.support.export_tables import export_source, labels_of, locations_of
from tests.support.web_server import served

BOX = (0.25, 0.5, 0.25, 0.25)
"""Relative x, y, width, height."""


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


# -- all formats --------------------------------------------------------------------------------------------------


def test_all_formats_give_the_same_labels(store: Store, settings: Settings, tmp_path: Path) -> None:
    """A fox and a rat at two locations: as COCO for Camera Traps, class folders, Camtrap DP and MegaDetector results."""
    cct = Export()
    cct.annotation(cct.image("cove", file_name="cove/fox/a.jpg"), 1, [16, 24, 16, 12])
    cct.annotation(cct.image("bay", file_name="bay/rat/b.jpg"), 2, [16, 24, 16, 12])
    (tmp_path / "cct.json").write_bytes(cct.json())
    write_images(tmp_path / "images", "cove/fox/a.jpg", "bay/rat/b.jpg")
    package = CamtrapPackage()
    for loc, taxon, path in (("cove", "fox", "cove/fox/a.jpg"), ("bay", "Rat", "bay/rat/b.jpg")):
        package.deployment(loc, locationID=loc)
        package.observation(loc, taxon, package.image(loc, filePath=path), BOX)
    package.write(tmp_path / "package")
    classes = {"0": "fox", "1": "Rat"}
    rows = [
        {"file": f, "detections": [{"category": "1", "conf": 0.9, "bbox": list(BOX), "classifications": [[k, 0.8]]}]}
        for k, f in enumerate_files("cove/fox/a.jpg", "bay/rat/b.jpg")
    ]
    results = {"images": rows, "detection_categories": {"1": "animal"}, "classification_categories": classes, "info": {}}
    (tmp_path / "md.json").write_text(json.dumps(results))
    sources = {
        "cct": export_source("cct.json", images="images"),
        "folders": export_source("images", layout="{location}/{label}"),
        "camtrap-dp": export_source("package"),
        "megadetector": export_source("md.json", images="images", layout="{location}/*"),
    }
    for kind, plan in sources.items():
        artifact = export_annotations(plan, store, settings)
        assert sorted(n.casefold() for n in labels_of(store, artifact).values()) == ["fox", "rat"], kind
        assert sorted(locations_of(store, artifact).values()) == ["bay", "cove"], kind
        assert sorted(store.table(artifact, "images.parquet")["path"]) == ["bay/rat/b.jpg", "cove/fox/a.jpg"], kind
        images, annotations = store.table(artifact, "images.parquet"), store.table(artifact, "annotations.parquet")
        if kind == "folders":
            assert annotations["x"].isna().all()
        else:
            sides = images[["width", "height", "width", "height"]].to_numpy(float)
            assert np.allclose(annotations[["x", "y", "w", "h"]].to_numpy() / sides, BOX), kind
        assert bool(annotations["reviewed"].all()) == (kind != "megadetector"), kind
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
def test_a_plan_error_names_the_key_that_does_not_fit(fields: dict[str, Any], words: list[str]) -> None:
    plan = {"model": "m", "sources": [{"name": "isle"} | fields], "labels": {"classes": {"a": ["a"], "b": ["b"]}}}
    with pytest.raises(PlanError) as caught:
        check_plan(plan)
    assert all(word in str(caught.value) for word in words), caught.value


def test_images_are_where_the_export_says() -> None:
    assert export_source("pictures/by-class").images == "pictures/by-class"
    assert export_source("https://host/dp/datapackage.json").images == "https://host/dp"
    assert export_source("lila://channel-islands-camera-traps").images == "lila://channel-islands-camera-traps"


# -- LILA ------------------------------------------------------------------------------------------------------------


def test_a_lila_set_is_fetched_by_name_from_its_mirror(store: Store, settings: Settings) -> None:
    known = lila_datasets()["channel-islands-camera-traps"]
    e = Export()
    e.image("loc-1", file_name="loc-1/a.jpg", id="a", seq_id="s1", seq_num_frames=1, frame_num=0, rights_holder="x")
    e.image(None, file_name="loc-2/b.jpg", id="b")
    e.annotation("a", 1, [4, 4, 20, 20])
    e.annotation("b", 2)
    for row in e.annotations:  # LILA's files do not say who reviewed what
        del row["validated"], row["validated_by"], row["confidence"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("channel-islands-camera-traps.json", e.json())
    files = {known.metadata: packed.getvalue()} | {f"{known.images}/{name}": data for name, data in e.files.items()}
    with served(files) as site:
        here = settings.model_copy(update={"lila_url": site.address})
        plan = export_source("lila://channel-islands-camera-traps")
        export = export_annotations(plan, store, here)
        imgs = download_images(plan, export, ["fox", "rat"], store, here)
    assert labels_of(store, export) == {"a": "fox", "b": "Rat"}
    assert locations_of(store, export) == {"a": "loc-1", "b": ""}
    assert store.table(export, "annotations.parquet")["reviewed"].all()
    assert (export.counts.dropped, imgs.counts.kept) == ({}, 2)


def test_paths_of_known_lila_sets_stay_below_the_mirror() -> None:
    assert len(lila_datasets()) >= 10
    for known in lila_datasets().values():
        assert not known.metadata.startswith("/")
        assert known.metadata.endswith((".json", ".zip"))
        assert "://" not in known.metadata + known.images
        assert export_source(f"lila://{known.name}").images.endswith(known.name)


# -- folders -----------------------------------------------------------------------------------------------------------


def test_folder_names_are_label_and_location_and_exif_is_the_time(store: Store, settings: Settings, tmp_path: Path) -> None:
    base = tmp_path / "sorted"
    write_images(base, "north gate/fox/day 1/deep.jpg", "north gate/Deer Mouse/b.PNG", "shallow.jpg", "fox/half.jpg")
    (base / "north gate/fox/c.jpg").write_bytes(dated("2026:03:01 06:30:00", "-08:00"))
    (base / "north gate/fox/broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (base / "north gate/fox/clip.mp4").write_bytes(b"film")
    (base / "north gate/fox/.hidden.jpg").write_bytes(b"")
    artifact = export_annotations(export_source("sorted", layout="{location}/{label}"), store, settings)
    assert labels_of(store, artifact) == {
        "north gate/fox/day 1/deep.jpg": "fox",
        "north gate/Deer Mouse/b.PNG": "Deer Mouse",
        "north gate/fox/c.jpg": "fox",
        "north gate/fox/broken.jpg": "fox",
    }
    assert set(locations_of(store, artifact).values()) == {"north gate"}
    taken = store.table(artifact, "images.parquet").set_index("image_id")["taken"]
    assert taken["north gate/fox/c.jpg"] == "2026-03-01T06:30:00-08:00"
    assert artifact.counts.dropped == {"not_an_image": 1, "not_in_a_class_folder": 2}
    assert artifact.counts.notes == {"no_capture_time": 3}
    listing = json.loads(store.path(artifact, "original/listing.json").read_bytes())
    assert len(listing) == 7
    (base / "north gate/fox/new.jpg").write_bytes(dated("2026:03:02 06:30:00"))
    again = export_annotations(export_source("sorted", layout="{location}/{label}"), store, settings)
    assert (again.cached, again.counts.kept) == (False, 5)


def test_without_a_layout_the_first_folder_is_the_label(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_images(tmp_path / "sorted", "fox/a.jpg", "rat/x/b.jpg")
    artifact = export_annotations(export_source("sorted"), store, settings)
    assert labels_of(store, artifact) == {"fox/a.jpg": "fox", "rat/x/b.jpg": "rat"}
    assert set(locations_of(store, artifact).values()) == {""}


def test_folders_in_a_bucket_are_listed(store: Store, settings: Settings, bucket: str) -> None:
    for key in ("own/fox/a.jpg", "own/rat/b.jpg", "own/notes.txt", "other/fox/c.jpg"):
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=jpeg(seed=len(key)))
    plan = export_source(f"s3://{bucket}/own")
    artifact = export_annotations(plan, store, settings)
    assert labels_of(store, artifact) == {"fox/a.jpg": "fox", "rat/b.jpg": "rat"}
    assert artifact.counts.dropped == {"not_an_image": 1}
    assert download_images(plan, artifact, ["fox", "rat"], store, settings).counts.kept == 2


def test_a_bucket_that_does_not_answer_is_retryable(store: Store, settings: Settings, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ExportUnreachableError):
        export_annotations(export_source(f"s3://{bucket}/own"), store, settings)


def test_a_bucket_that_does_not_exist_is_an_error(store: Store, settings: Settings, bucket: str) -> None:
    with pytest.raises(ExportError) as caught:
        export_annotations(export_source("s3://no-such-bucket/own"), store, settings)
    assert (caught.value.code, caught.value.retryable) == ("not_found", False)


@pytest.mark.parametrize(
    ("export", "code"),
    [("none", "not_found"), ("https://host/pictures", "not_listable"), ("empty", "no_images")],
)
def test_folders_that_cannot_be_read_are_an_error(store: Store, settings: Settings, tmp_path: Path, export: str, code: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("none")
    with pytest.raises(ExportError) as caught:
        export_annotations(export_source(export, kind="folders"), store, settings)
    assert caught.value.code == code


# -- MegaDetector ------------------------------------------------------------------------------------------------------


def results(*images: dict[str, Any]) -> bytes:
    found = {
        "images": images,
        "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
        "classification_categories": {"0": "fox", "1": "rat"},
        "info": {"detector": "md_v5a"},
    }
    return json.dumps(found).encode()


def detection(category: str = "1", conf: float = 0.9, bbox: Any = BOX, classifications: Any = None) -> dict[str, Any]:
    return {"category": category, "conf": conf, "bbox": list(bbox)} | ({"classifications": classifications} if classifications else {})


def test_the_best_class_of_a_box_is_an_unreviewed_label(store: Store, settings: Settings, tmp_path: Path) -> None:
    data = results(
        {"file": "cove/a.jpg", "detections": [detection(classifications=[["1", 0.3], ["0", 0.6]]), detection(conf=0.1)]},
        {"file": "cove/b.jpg", "detections": [detection(classifications=[["1", 0.4]]), detection("2"), detection("3", bbox=[0, 0, 0.1, 0.1])]},
        {"file": "cove/c.jpg", "detections": [detection(conf=0.15)], "datetime": "2026-03-01T10:00:00"},
        {"file": "d.jpg", "failure": "image access failure", "detections": None},
        {"file": "e.mp4", "detections": []},
        {"file": "../f.jpg", "detections": []},
        {"file": "g.jpg", "detections": [detection(bbox=[1.2, 0.9, 0.5, 0.5]), {"category": "1"}]},
        {"file": "h.jpg", "detections": [detection(bbox=[-0.05, 0.9, 0.2, 0.2])]},
        {"detections": []},
    )
    (tmp_path / "md.json").write_bytes(data)
    artifact = export_annotations(export_source("md.json", images="images", layout="{location}"), store, settings)
    annotations = store.table(artifact, "annotations.parquet")
    found = sorted(zip(annotations["image_id"], annotations["label"], strict=True))
    assert found == [
        ("cove/a.jpg", "fox"),
        ("cove/b.jpg", "animal"),
        ("cove/b.jpg", "person"),
        ("cove/b.jpg", "vehicle"),
        ("cove/c.jpg", "empty"),
        ("h.jpg", "animal"),
    ]
    assert not annotations["reviewed"].any()
    assert artifact.counts.dropped == {"failed_image": 1, "not_an_image": 1, "unsafe_path": 1, "image_without_id": 1, "malformed_annotation": 2}
    assert artifact.counts.notes == {"boxes_below_confidence": 2, "no_location_folder": 2, "unreviewed": 6, "box_partly_outside": 1}
    assert locations_of(store, artifact) == {"cove/a.jpg": "cove", "cove/b.jpg": "cove", "cove/c.jpg": "cove", "g.jpg": "", "h.jpg": ""}
    assert store.path(artifact, "original/results.json").read_bytes() == data


def test_the_plans_confidence_limits_choose_boxes_and_classes(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "md.json").write_bytes(results({"file": "a.jpg", "detections": [detection(conf=0.5, classifications=[["0", 0.6]])]}))
    found = {}
    for confidence, classification in ((0.4, 0.5), (0.4, 0.7), (0.6, 0.5)):
        plan = export_source("md.json", images="i", megadetector={"confidence": confidence, "classification": classification})
        found[confidence, classification] = labels_of(store, export_annotations(plan, store, settings))["a.jpg"]
    assert found == {(0.4, 0.5): "fox", (0.4, 0.7): "animal", (0.6, 0.5): "empty"}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"[]", "not_megadetector"),
        (b'{"images": []}', "not_megadetector"),
        (b'{"images": {}, "detection_categories": {}}', "not_megadetector"),
        (b"{", "not_json"),
    ],
)
def test_a_file_that_is_not_megadetectors_is_an_error(store: Store, settings: Settings, tmp_path: Path, data: bytes, code: str) -> None:
    (tmp_path / "md.json").write_bytes(data)
    with pytest.raises(ExportError) as caught:
        export_annotations(export_source("md.json", images="i", kind="megadetector"), store, settings)
    assert caught.value.code == code


# -- archives ----------------------------------------------------------------------------------------------------------


def test_a_table_that_unpacks_to_too_much_is_refused(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = three_deployments()
    package.observation("d1", "Vulpes", package.image("d1"), BOX)
    files = package.files() | {"media.csv": b"\0" * (80 << 20)}
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(ExportError, match=r"media\.csv") as caught:
        export_annotations(export_source("bomb.zip", images="i"), store, settings)
    assert caught.value.code == "archive_too_large"


def test_a_gzip_is_unpacked_and_a_broken_one_is_an_error() -> None:
    assert gunzip(gzip.compress(b"a,b\n"), "x") == b"a,b\n"
    with pytest.raises(ExportError) as caught:
        gunzip(gzip.compress(b"a,b\n")[:-6], "x")
    assert caught.value.code == "bad_archive"


def test_the_artifact_does_not_depend_on_the_folders_path(store: Store, settings: Settings, tmp_path: Path) -> None:
    """The listing of a folder names no folder of this machine."""
    for name in ("here", "there"):
        (tmp_path / name / "fox").mkdir(parents=True)
        (tmp_path / name / "fox" / "a.jpg").write_bytes(dated("2026:03:01 06:30:00"))
    one, two = (export_annotations(export_source(name), store, settings) for name in ("here", "there"))
    assert one.digest == two.digest

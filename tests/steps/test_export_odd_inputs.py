"""Sources as they come: written by Windows, macOS, spreadsheets and hasty scripts. Each fault is one line or counted; no label is made up."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.storage.step_cache import Store
from tests.conftest import jpeg
from tests.support.camtrap_dp import CamtrapPackage
from tests.support.coco_export import Export

BOX = (0.25, 0.5, 0.25, 0.25)


def source(export: str, **fields: Any) -> SourceConfig:
    return SourceConfig.model_validate({"name": "isle", "export": export, "images": "images"} | fields)


def names(store: Store, artifact: Artifact) -> dict[str, str]:
    table = store.table(artifact, "annotations.parquet")
    return dict(zip(table["image_id"], table["label"], strict=True))


def column(store: Store, artifact: Artifact, name: str) -> dict[str, str]:
    table = store.table(artifact, "images.parquet")
    return dict(zip(table["image_id"], table[name], strict=True))


def refusal(plan: SourceConfig, store: Store, settings: Settings) -> str:
    """The one line in which an export ends."""
    with pytest.raises(ExportError) as caught:
        export_annotations(plan, store, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def fox() -> Export:
    e = Export()
    e.annotation(e.image("cove"), 1, [4, 4, 20, 20])
    return e


# -- archives and addresses ----------------------------------------------------------------------------------------------


def test_what_macos_packs_beside_a_file_is_not_taken_for_one(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "cct.zip").write_bytes(zipped({"a.json": fox().json(), "__MACOSX/._a.json": b"\x00\x05"}))
    assert export_annotations(source("cct.zip"), store, settings).counts.kept == 1
    package = CamtrapPackage()
    package.seen(package.deployment("d"), "Vulpes", package.image("d"), BOX)
    (tmp_path / "dp.zip").write_bytes(zipped({f"dp/{k}": v for k, v in package.files().items()} | {"__MACOSX/dp/datapackage.json": b"\x00"}))
    assert export_annotations(source("dp.zip"), store, settings).counts.kept == 1


def test_an_archive_whose_directory_is_broken_is_one_line(store: Store, settings: Settings, tmp_path: Path) -> None:
    data = bytearray(zipped({"a.json": fox().json()}))
    data[data.rfind(b"PK\x01\x02")] = 0
    (tmp_path / "a.zip").write_bytes(data)
    assert refusal(source("a.zip"), store, settings).startswith("a.zip: the archive is broken")


def test_no_message_tells_the_password_or_the_signature_of_an_address(store: Store, settings: Settings) -> None:
    line = refusal(source("http://ranger:do-not-tell@127.0.0.1:9/isle.json?X-Amz-Signature=nor-this"), store, settings)
    assert "http://127.0.0.1:9/isle.json" in line
    assert "do-not-tell" not in line
    assert "nor-this" not in line


# -- COCO for Camera Traps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [str, float, int])
@pytest.mark.parametrize("other", [str, float, int])
def test_an_id_is_the_same_as_text_and_as_a_number(store: Store, settings: Settings, tmp_path: Path, number: Any, other: Any) -> None:
    cct = {
        "images": [{"id": number(7), "file_name": "a.jpg", "location": number(12)}],
        "annotations": [{"id": 1, "image_id": other(7), "category_id": other(1)}],
        "categories": [{"id": number(1), "name": "fox"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(cct))
    artifact = export_annotations(source("a.json"), store, settings)
    assert names(store, artifact) == {"7": "fox"}
    assert column(store, artifact, "location") == {"7": "12"}


def test_a_category_of_two_names_makes_no_labels(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = fox()
    e.annotation(e.image("bay"), 2)
    e.annotation(e.image("bay"), True)  # as no export should have it
    e.categories = [{"id": 1, "name": "fox"}, {"id": 2, "name": "rat"}, {"id": 2, "name": "owl"}, {"name": "elk"}, {"id": 3}]
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    assert list(names(store, artifact).values()) == ["fox"]
    assert artifact.counts.dropped == {"unknown_category": 1, "malformed_object": 1}
    assert artifact.counts.noted == {"ambiguous_category": 1, "malformed_category": 2}


def test_what_is_not_a_number_is_no_location_no_time_and_no_sequence(store: Store, settings: Settings, tmp_path: Path) -> None:
    """As pandas writes cells that are empty: all these pictures would be of one place, named nan."""
    e = fox()
    e.annotation(e.image(location=float("nan"), datetime=float("nan"), seq_id=float("nan")), 1)
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    said = {c: list(column(store, artifact, c).values())[1] for c in ("location", "taken", "sequence")}
    assert said == {"location": "", "taken": "", "sequence": ""}


def test_a_path_that_windows_wrote_is_one_below_the_images(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for name in (r"cove\a.jpg", r"..\b.jpg", r"C:\c.jpg"):
        e.annotation(e.image(file_name=name), 1)
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    assert list(column(store, artifact, "path").values()) == ["cove/a.jpg"]
    assert artifact.counts.dropped == {"unsafe_path": 2, "unknown_image": 2}


def test_an_export_without_annotations_is_one_line(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert "nothing is left of 0 annotations: no annotations at all" in refusal(source("a.json"), store, settings)


# -- MegaDetector --------------------------------------------------------------------------------------------------------


def machine(*images: dict[str, Any], **more: Any) -> str:
    head = {"detection_categories": {"1": "animal", "2": "person"}, "classification_categories": {"0": "fox"}, "info": {"format_version": "1.0"}}
    return json.dumps({"images": images} | head | more)


def detection(**fields: Any) -> dict[str, Any]:
    return {"category": "1", "conf": 0.9, "bbox": list(BOX)} | fields


def test_what_a_machine_says_oddly_is_counted_and_makes_no_label(store: Store, settings: Settings, tmp_path: Path) -> None:
    odd = {
        "huge.jpg": detection(conf=10**400),
        "far.jpg": detection(bbox=[10**400, 0, 1, 1]),
        "number.jpg": detection(classifications=5),
        "sure.jpg": detection(classifications=[["0", 10**400], ["0", 0.8]]),
        "class.jpg": detection(classifications=[["77", 0.9]]),
        "kind.jpg": detection(category="9"),
        r"cove\win.jpg": detection(classifications=[[0, 0.9]]),
    }
    (tmp_path / "md.json").write_text(machine(*({"file": f, "detections": [d]} for f, d in odd.items())))
    artifact = export_annotations(source("md.json"), store, settings)
    assert names(store, artifact) == {"number.jpg": "animal", "sure.jpg": "fox", "class.jpg": "animal", "cove/win.jpg": "fox"}
    assert artifact.counts.dropped == {"malformed_object": 2, "unknown_category": 1}
    assert artifact.counts.noted == {"malformed_classification": 2, "unknown_classification": 1, "unreviewed": 4}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (machine({"file": "a.jpg", "detections": [detection()]}, classification_categories=["fox"]), "expected classification_categories as numbers"),
        (machine(), "nothing is left of 0 annotations"),
        (machine({"file": "a.jpg", "failure": "Failure image access", "detections": None}), "1 failed picture"),
    ],
)
def test_results_that_say_nothing_are_one_line(store: Store, settings: Settings, tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "md.json").write_text(text)
    assert line in refusal(source("md.json"), store, settings)


# -- Camtrap DP ----------------------------------------------------------------------------------------------------------


def package() -> CamtrapPackage:
    p = CamtrapPackage()
    p.seen(p.deployment("d"), "Vulpes", p.image("d"), BOX)
    return p


def media(p: CamtrapPackage, **fields: Any) -> None:
    p.description["resources"][1].update(fields)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda p: media(p, dialect="dialect.json"), "expected a dialect with one character as its delimiter, found 'dialect.json'"),
        (lambda p: media(p, dialect={"delimiter": ";;"}), "expected a dialect with one character as its delimiter"),
        (lambda p: media(p, dialect={"delimiter": None}), "expected a dialect with one character as its delimiter"),
        (lambda p: media(p, dialect={"delimiter": ";"}), "with the columns mediaID,deploymentID,"),
        (lambda p: media(p, encoding="klingon"), "expected an encoding such as utf-8, found 'klingon'"),
        (lambda p: media(p, path=[]), "expected a path inside the package for the table 'media'"),
        (lambda p: p.rows["media"].clear(), "1 unknown image"),
        (lambda p: p.rows["observations"].clear(), "no annotations at all"),
        (lambda p: p.rows["observations"][0].update(mediaID="", observationLevel="event"), "1 event without pictures"),
    ],
)
def test_a_package_that_says_nothing_is_one_line(
    store: Store, settings: Settings, tmp_path: Path, change: Callable[[CamtrapPackage], Any], line: str
) -> None:
    p = package()
    change(p)
    p.write(tmp_path / "dp")
    assert line in refusal(source("dp", images="dp"), store, settings)


def test_rows_with_more_values_than_columns_do_not_move_under_other_names(store: Store, settings: Settings, tmp_path: Path) -> None:
    p = package()
    p.write(tmp_path / "dp")
    head, *rows = p.files()["media.csv"].splitlines()
    (tmp_path / "dp/media.csv").write_bytes(b"\n".join([head, *(row + b"," for row in rows)]) + b"\n")
    assert "its rows hold more values than it has columns" in refusal(source("dp", images="dp"), store, settings)


def test_a_table_is_read_in_the_encoding_that_the_package_names(store: Store, settings: Settings, tmp_path: Path) -> None:
    p = package()
    p.seen("d", "Hérisson", p.image("d"), BOX)
    p.description["resources"][2]["encoding"] = "ISO-8859-1"
    p.write(tmp_path / "dp")
    (tmp_path / "dp/observations.csv").write_bytes(p.files()["observations.csv"].decode("utf-8-sig").encode("latin-1"))
    assert set(names(store, export_annotations(source("dp", images="dp"), store, settings)).values()) == {"Vulpes", "Hérisson"}


def test_dates_of_any_century_and_deployments_named_twice_lose_nothing(store: Store, settings: Settings, tmp_path: Path) -> None:
    p = CamtrapPackage()
    for name, lat, started, taken in (
        ("old", 10, "0001-01-01T00:00:00+14:00", "1500-06-01T12:00:00Z"),
        ("new", 11, "9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
    ):
        p.deployment(name, lat, 10, started, locationID=name)
        p.image(name, timestamp=taken)
        p.seen(name, name, eventStart="0001-01-01T00:00:00Z", eventEnd="9999-12-31T23:59:59Z")
    p.deployment("old", 12, 10, locationID="elsewhere")
    p.seen("old", "fox", p.image("old", timestamp="yesterday"), observationLevel="no such level")
    p.write(tmp_path / "dp")
    artifact = export_annotations(source("dp", images="dp"), store, settings)
    assert names(store, artifact) == {"m0": "old", "m1": "new", "m2": "fox"}
    assert column(store, artifact, "location") == {"m0": "old", "m1": "new", "m2": "old"}
    assert artifact.counts.noted == {"duplicate_deployment": 1}


# -- folders -------------------------------------------------------------------------------------------------------------


def put(path: Path | bytes, data: bytes) -> None:
    Path(os.fsdecode(path)).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:  # noqa: PTH123 - a name that is no text
        f.write(data)


def test_names_that_no_table_holds_and_links_are_counted(store: Store, settings: Settings, tmp_path: Path) -> None:
    put(tmp_path / "sorted/fox/a.jpg", jpeg())
    put(tmp_path / "elsewhere/b.jpg", jpeg(seed=1))
    put(os.fsencode(tmp_path) + b"/sorted/fox/\xff.jpg", jpeg(seed=2))
    (tmp_path / "sorted/rat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "sorted/fox/nowhere.jpg").symlink_to("nothing.jpg")
    (tmp_path / "sorted/fox/circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(tmp_path / "sorted/fox/pipe.jpg")
    artifact = export_annotations(source("sorted"), store, settings)
    assert set(names(store, artifact)) == {"fox/a.jpg", "fox/nowhere.jpg", "fox/circle.jpg"}  # the links end as missing pictures
    assert artifact.counts.dropped == {"name_not_utf8": 1, "link_to_a_folder": 1}


def test_a_folder_that_cannot_be_listed_is_one_line_instead_of_fewer_images(store: Store, settings: Settings, tmp_path: Path) -> None:
    put(tmp_path / "sorted/fox/a.jpg", jpeg())
    handle = os.open(tmp_path / "sorted", os.O_RDONLY)
    for _ in range(20):  # deeper than a path can say
        os.mkdir("x" * 250, dir_fd=handle)
        handle, outer = os.open("x" * 250, os.O_RDONLY, dir_fd=handle), handle
        os.close(outer)
    os.close(handle)
    assert "expected folders of pictures that can be listed" in refusal(source("sorted"), store, settings)


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("2026:03:01 10:00:00", "2026-03-01T10:00:00"),
        ("2026-03-01 10:00:00.123", "2026-03-01T10:00:00"),
        ("2026:13:45 25:61:61", ""),
        ("0000:00:00 00:00:00", ""),
        ("    :  :     :  :  ", ""),
        ("1969:12:31 23:59:59", "1969-12-31T23:59:59"),
    ],
)
def test_a_date_in_exif_counts_where_there_is_such_a_day(store: Store, settings: Settings, tmp_path: Path, said: str, taken: str) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769).update({0x9003: said})
    Image.new("RGB", (32, 24)).save(buffer, "JPEG", exif=exif)
    put(tmp_path / "sorted/fox/a.jpg", buffer.getvalue())
    assert column(store, export_annotations(source("sorted"), store, settings), "taken") == {"fox/a.jpg": taken}


def test_damaged_exif_is_a_image_without_a_date_and_no_warning(store: Store, settings: Settings, tmp_path: Path) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769).update({0x9003: "2026:03:01 10:00:00"})
    Image.new("RGB", (32, 24)).save(buffer, "JPEG", exif=exif)
    whole = buffer.getvalue()
    for at in range(24, 80):
        put(tmp_path / f"sorted/fox/{at}.jpg", whole[:at] + b"\xff" + whole[at + 1 :])
    assert export_annotations(source("sorted"), store, settings).counts.kept == 56

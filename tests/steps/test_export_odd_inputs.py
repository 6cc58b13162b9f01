"""Odd exports from Windows, macOS, spreadsheets and scripts: each fault is counted or ends in one line, and no label is made up."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.table_schemas import EXPORT_PROBLEMS
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.storage.store import Store
from tests.conftest import jpeg
from tests.support.camtrap_dp import CamtrapPackage
from tests.support.coco_export import Export
from tests.support.export_tables import export_source, image_column, labels_of
from tests.support.odd_exports import export_error, one_fox, source

BOX = (0.25, 0.5, 0.25, 0.25)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


# -- archives and addresses ----------------------------------------------------------------------------------------------


def test_files_that_macos_adds_to_a_zip_are_ignored(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "cct.zip").write_bytes(zipped({"a.json": one_fox().json(), "__MACOSX/._a.json": b"\x00\x05"}))
    assert export_annotations(source("cct.zip"), store, settings).counts.kept == 1
    package = CamtrapPackage()
    package.observation(package.deployment("d"), "Vulpes", package.image("d"), BOX)
    (tmp_path / "dp.zip").write_bytes(zipped({f"dp/{k}": v for k, v in package.files().items()} | {"__MACOSX/dp/datapackage.json": b"\x00"}))
    assert export_annotations(source("dp.zip"), store, settings).counts.kept == 1


def test_a_zip_with_a_broken_directory_is_an_error(store: Store, settings: Settings, tmp_path: Path) -> None:
    data = bytearray(zipped({"a.json": one_fox().json()}))
    data[data.rfind(b"PK\x01\x02")] = 0
    (tmp_path / "a.zip").write_bytes(data)
    assert export_error(source("a.zip"), store, settings).code == "bad_archive"


def test_no_message_shows_the_password_or_signature_of_a_url(store: Store, settings: Settings) -> None:
    line = str(export_error(source("http://ranger:do-not-tell@127.0.0.1:9/isle.json?X-Amz-Signature=nor-this"), store, settings))
    assert "http://127.0.0.1:9/isle.json" in line
    assert "do-not-tell" not in line
    assert "nor-this" not in line


# -- COCO for Camera Traps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [str, float, int])
@pytest.mark.parametrize("other", [str, float, int])
def test_ids_match_as_text_and_as_numbers(store: Store, settings: Settings, tmp_path: Path, number: Any, other: Any) -> None:
    cct = {
        "images": [{"id": number(7), "file_name": "a.jpg", "location": number(12)}],
        "annotations": [{"id": 1, "image_id": other(7), "category_id": other(1)}],
        "categories": [{"id": number(1), "name": "fox"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(cct))
    artifact = export_annotations(source("a.json"), store, settings)
    assert labels_of(store, artifact) == {"7": "fox"}
    assert image_column(store, artifact, "location") == {"7": "12"}


def test_a_category_id_with_two_names_gives_no_labels(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = one_fox()
    e.annotation(e.image("bay"), 2)
    e.annotation(e.image("bay"), True)  # as no export should have it
    e.categories = [{"id": 1, "name": "fox"}, {"id": 2, "name": "rat"}, {"id": 2, "name": "owl"}, {"name": "elk"}, {"id": 3}]
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    assert list(labels_of(store, artifact).values()) == ["fox", "unknown category 2", "unknown category"]
    assert artifact.counts.notes == {"ambiguous_category": 1, "malformed_category": 2, "category_without_name": 2}


def test_nan_is_no_location_no_time_and_no_sequence(store: Store, settings: Settings, tmp_path: Path) -> None:
    """Empty cells of a pandas table become NaN; read as text, all these images would have one location, named nan."""
    e = one_fox()
    e.annotation(e.image(location=float("nan"), datetime=float("nan"), seq_id=float("nan")), 1)
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    values = {c: list(image_column(store, artifact, c).values())[1] for c in ("location", "taken", "sequence")}
    assert values == {"location": "", "taken": "", "sequence": ""}


def test_windows_paths_are_read_with_slashes(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for name in (r"cove\a.jpg", r"..\b.jpg", r"C:\c.jpg"):
        e.annotation(e.image(file_name=name), 1)
    (tmp_path / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    assert list(image_column(store, artifact, "path").values()) == ["cove/a.jpg"]
    assert artifact.counts.dropped == {"unsafe_path": 2, "unknown_image": 2}


def test_an_export_without_annotations_is_an_error(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert export_error(source("a.json"), store, settings).code == "nothing_left"


# -- MegaDetector --------------------------------------------------------------------------------------------------------


def results(*images: dict[str, Any], **more: Any) -> str:
    head = {"detection_categories": {"1": "animal", "2": "person"}, "classification_categories": {"0": "fox"}, "info": {"format_version": "1.0"}}
    return json.dumps({"images": images} | head | more)


def detection(**fields: Any) -> dict[str, Any]:
    return {"category": "1", "conf": 0.9, "bbox": list(BOX)} | fields


def test_odd_detections_are_counted_and_give_no_label(store: Store, settings: Settings, tmp_path: Path) -> None:
    odd = {
        "huge.jpg": detection(conf=10**400),
        "far.jpg": detection(bbox=[10**400, 0, 1, 1]),
        "number.jpg": detection(classifications=5),
        "sure.jpg": detection(classifications=[["0", 10**400], ["0", 0.8]]),
        "class.jpg": detection(classifications=[["77", 0.9]]),
        "kind.jpg": detection(category="9"),
        r"cove\win.jpg": detection(classifications=[[0, 0.9]]),
    }
    (tmp_path / "md.json").write_text(results(*({"file": f, "detections": [d]} for f, d in odd.items())))
    artifact = export_annotations(source("md.json"), store, settings)
    assert labels_of(store, artifact) == {"number.jpg": "animal", "sure.jpg": "fox", "class.jpg": "animal", "cove/win.jpg": "fox"}
    assert artifact.counts.dropped == {"malformed_annotation": 2, "unknown_category": 1}
    assert artifact.counts.notes == {"malformed_classification": 2, "unknown_classification": 1, "unreviewed": 4}


@pytest.mark.parametrize(
    ("text", "code", "problems"),
    [
        (results({"file": "a.jpg", "detections": [detection()]}, classification_categories=["fox"]), "not_megadetector", None),
        (results(), "nothing_left", {}),
        (results({"file": "a.jpg", "failure": "Failure image access", "detections": None}), "nothing_left", {"failed_image": 1}),
    ],
)
def test_results_without_labels_are_an_error(
    store: Store, settings: Settings, tmp_path: Path, text: str, code: str, problems: dict[str, int] | None
) -> None:
    (tmp_path / "md.json").write_text(text)
    error = export_error(source("md.json"), store, settings)
    assert (error.code, error.details.get("problems")) == (code, problems)


# -- Camtrap DP ----------------------------------------------------------------------------------------------------------


def package() -> CamtrapPackage:
    p = CamtrapPackage()
    p.observation(p.deployment("d", locationID="gate"), "Vulpes", p.image("d"), BOX)
    return p


def media(p: CamtrapPackage, **fields: Any) -> None:
    p.description["resources"][1].update(fields)


@pytest.mark.parametrize(
    ("change", "code", "problems"),
    [
        (lambda p: media(p, dialect="dialect.json"), "bad_table", None),
        (lambda p: media(p, dialect={"delimiter": ";;"}), "bad_table", None),
        (lambda p: media(p, dialect={"delimiter": None}), "bad_table", None),
        (lambda p: media(p, dialect={"delimiter": ";"}), "bad_table", None),
        (lambda p: media(p, encoding="klingon"), "bad_table", None),
        (lambda p: media(p, path=[]), "bad_package", None),
        (lambda p: p.rows["media"].clear(), "nothing_left", {"unknown_image": 1}),
        (lambda p: p.rows["observations"].clear(), "nothing_left", {}),
        (lambda p: p.rows["observations"][0].update(mediaID="", observationLevel="event"), "nothing_left", {"event_without_time": 1}),
    ],
)
def test_a_package_without_labels_is_an_error(
    store: Store, settings: Settings, tmp_path: Path, change: Callable[[CamtrapPackage], Any], code: str, problems: dict[str, int] | None
) -> None:
    p = package()
    change(p)
    p.write(tmp_path / "dp")
    error = export_error(source("dp", images="dp"), store, settings)
    assert (error.code, error.details.get("problems")) == (code, problems)


def test_rows_with_more_values_than_columns_are_refused(store: Store, settings: Settings, tmp_path: Path) -> None:
    p = package()
    p.write(tmp_path / "dp")
    head, *rows = p.files()["media.csv"].splitlines()
    (tmp_path / "dp/media.csv").write_bytes(b"\n".join([head, *(row + b"," for row in rows)]) + b"\n")
    assert export_error(source("dp", images="dp"), store, settings).code == "bad_table"


def test_a_table_is_read_in_its_stated_encoding(store: Store, settings: Settings, tmp_path: Path) -> None:
    p = package()
    p.observation("d", "Hérisson", p.image("d"), BOX)
    p.description["resources"][2]["encoding"] = "ISO-8859-1"
    p.write(tmp_path / "dp")
    (tmp_path / "dp/observations.csv").write_bytes(p.files()["observations.csv"].decode("utf-8-sig").encode("latin-1"))
    assert set(labels_of(store, export_annotations(source("dp", images="dp"), store, settings)).values()) == {"Vulpes", "Hérisson"}


def test_times_of_any_century_and_repeated_deployments_are_kept(store: Store, settings: Settings, tmp_path: Path) -> None:
    p = CamtrapPackage()
    for name, lat, started, taken in (
        ("old", 10, "0001-01-01T00:00:00+14:00", "1500-06-01T12:00:00Z"),
        ("new", 11, "9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
    ):
        p.deployment(name, lat, 10, started, locationID=name)
        p.image(name, timestamp=taken)
        p.observation(name, name, eventStart="0001-01-01T00:00:00Z", eventEnd="9999-12-31T23:59:59Z")
    p.deployment("old", 12, 10, locationID="elsewhere")
    p.observation("old", "fox", p.image("old", timestamp="yesterday"), observationLevel="no such level")
    p.write(tmp_path / "dp")
    artifact = export_annotations(source("dp", images="dp"), store, settings)
    assert labels_of(store, artifact) == {"m0": "old", "m1": "new", "m2": "fox"}
    assert image_column(store, artifact, "location") == {"m0": "old", "m1": "new", "m2": "old"}
    assert artifact.counts.notes == {"duplicate_deployment": 1, "unreadable_time": 1}


# -- folders -------------------------------------------------------------------------------------------------------------


def write_bytes(path: Path | bytes, data: bytes) -> None:
    Path(os.fsdecode(path)).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:  # noqa: PTH123 - the name is not UTF-8
        f.write(data)


def test_links_and_names_that_are_not_utf8_are_counted(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_bytes(tmp_path / "sorted/fox/a.jpg", jpeg())
    write_bytes(tmp_path / "elsewhere/b.jpg", jpeg(seed=1))
    write_bytes(os.fsencode(tmp_path) + b"/sorted/fox/\xff.jpg", jpeg(seed=2))
    (tmp_path / "sorted/rat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "sorted/fox/nowhere.jpg").symlink_to("nothing.jpg")
    (tmp_path / "sorted/fox/circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(tmp_path / "sorted/fox/pipe.jpg")
    artifact = export_annotations(source("sorted"), store, settings)
    assert set(labels_of(store, artifact)) == {"fox/a.jpg", "fox/nowhere.jpg", "fox/circle.jpg"}  # the images step counts broken links as missing
    assert artifact.counts.dropped == {"name_not_utf8": 1, "link_to_a_folder": 1}


def test_a_folder_that_cannot_be_listed_ends_the_step(store: Store, settings: Settings, tmp_path: Path) -> None:
    write_bytes(tmp_path / "sorted/fox/a.jpg", jpeg())
    handle = os.open(tmp_path / "sorted", os.O_RDONLY)
    for _ in range(20):  # deeper than a path may be long
        os.mkdir("x" * 250, dir_fd=handle)
        handle, outer = os.open("x" * 250, os.O_RDONLY, dir_fd=handle), handle
        os.close(outer)
    os.close(handle)
    assert export_error(source("sorted"), store, settings).code == "unreadable"


@pytest.mark.parametrize(
    ("exif_time", "taken"),
    [
        ("2026:03:01 10:00:00", "2026-03-01T10:00:00"),
        ("2026-03-01 10:00:00.123", "2026-03-01T10:00:00"),
        ("2026:13:45 25:61:61", ""),
        ("0000:00:00 00:00:00", ""),
        ("    :  :     :  :  ", ""),
        ("1969:12:31 23:59:59", "1969-12-31T23:59:59"),
    ],
)
def test_exif_times_are_read_if_they_exist_in_the_calendar(store: Store, settings: Settings, tmp_path: Path, exif_time: str, taken: str) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769).update({0x9003: exif_time})
    Image.new("RGB", (32, 24)).save(buffer, "JPEG", exif=exif)
    write_bytes(tmp_path / "sorted/fox/a.jpg", buffer.getvalue())
    assert image_column(store, export_annotations(source("sorted"), store, settings), "taken") == {"fox/a.jpg": taken}


def test_an_image_with_damaged_exif_has_no_time(store: Store, settings: Settings, tmp_path: Path) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769).update({0x9003: "2026:03:01 10:00:00"})
    Image.new("RGB", (32, 24)).save(buffer, "JPEG", exif=exif)
    whole = buffer.getvalue()
    for at in range(24, 80):
        write_bytes(tmp_path / f"sorted/fox/{at}.jpg", whole[:at] + b"\xff" + whole[at + 1 :])
    assert export_annotations(source("sorted"), store, settings).counts.kept == 56


# -- other formats, times and suffixes -------------------------------------------------------------------------------------

PACKED_TAR = io.BytesIO()
with tarfile.open(fileobj=PACKED_TAR, mode="w") as archive:
    archive.addfile(tarfile.TarInfo("a.json"))
OTHER_FORMATS = {
    "wildlife insights": (b"project_id,deployment_id,image_id,filename,wi_taxon_id,common_name\n1,2,3,a.jpg,x,Fox\n", "read_wi"),
    "zamba": (b"filepath,blank,bird,fox\na.jpg,0.1,0.2,0.7\n", "zamba"),
    "zamba's labels": (b"filepath,label,site\na.jpg,fox,1\n", "zamba"),
    "deepfaune": (b'"filename","date","seqnum","predictionbase","scorebase","prediction","score"\n"a.jpg",,1,,,"fox",0.9\n', "DeepFaune"),
    "timelapse": ("\ufeffRootFolder,File,RelativePath,DateTime,DeleteFlag\n,a.jpg,,,false\n".encode(), "Timelapse"),
    "camtrap dp": (b"mediaID,deploymentID,timestamp\n1,2,3\n", "datapackage.json"),
    "semicolons": (b"file;species\na.jpg;fox\n", "species"),
    "utf-16": ("file\tspecies\na.jpg\tfox\n".encode("utf-16"), "species"),
    "json lines": (b'{"id": 1, "file_name": "a.jpg"}\n{"id": 2}\n', "JSON Lines"),
    "speciesnet": (b'{"predictions": [{"filepath": "a.jpg"}]}', "speciesnet_to_md"),
    "tar": (PACKED_TAR.getvalue(), "tar xf"),
    "tar.gz": (gzip.compress(PACKED_TAR.getvalue()), "tar xf"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "7z x"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_another_format_is_named_with_what_converts_it(store: Store, settings: Settings, tmp_path: Path, name: str) -> None:
    data, words = OTHER_FORMATS[name]
    (tmp_path / "labels.csv").write_bytes(data)
    error = export_error(source("labels.csv"), store, settings)
    assert error.code == "other_format"
    assert words in str(error)


def taken(store: Store, settings: Settings, folder: Path, *written: str) -> tuple[list[str], dict[str, int]]:
    """The times of images with these texts as their time, and the notes of the export."""
    e = Export()
    for text in written:
        e.annotation(e.image(datetime=text), 1)
    (folder / "a.json").write_bytes(e.json())
    artifact = export_annotations(source("a.json"), store, settings)
    return list(image_column(store, artifact, "taken").values()), artifact.counts.notes


@pytest.mark.parametrize(
    ("written", "read", "notes"),
    [
        (["2024/05/31 10:00:00", "2024:05:30 09:00:00"], ["2024-05-31T10:00:00", "2024-05-30T09:00:00"], {}),
        (["31/05/2024 10:00", "04/05/2024 11:00"], ["2024-05-31T10:00:00", "2024-05-04T11:00:00"], {}),
        (["05/31/2024 1:00 PM", "05/04/2024 11:00 AM"], ["2024-05-31T13:00:00", "2024-05-04T11:00:00"], {}),
        (["04/05/2024 11:00", "2024-05-31 10:00:00"], ["", "2024-05-31 10:00:00"], {"ambiguous_time": 1}),
        (["31/05/2024 10:00", "05/31/2024 10:00"], ["", ""], {"ambiguous_time": 2}),
        (["yesterday", ""], ["", ""], {"unreadable_time": 1}),
        (["2024-05-31 10:00:00 PM", "2024-05-30 09:00:00 UTC", "2024-5-1"], ["2024-05-31T22:00:00", "2024-05-30T09:00:00Z", "2024-05-01"], {}),
        (["2024-06-31 10:00:00", "1717171717", "0999-05-31T10:00:00"], ["", "", "0999-05-31T10:00:00"], {"unreadable_time": 2}),
    ],
)
def test_a_date_is_read_if_its_form_is_certain_and_never_guessed(
    store: Store, settings: Settings, tmp_path: Path, written: list[str], read: list[str], notes: dict[str, int]
) -> None:
    assert taken(store, settings, tmp_path, *written) == (read, notes)


def test_folders_hold_jfif_images_and_say_what_to_do_with_those_that_are_not_read(store: Store, settings: Settings, tmp_path: Path) -> None:
    for name in ("fox/a.jfif", "fox/b.heic", "fox/c.GIF", "fox/d.mp4"):
        path = tmp_path / "pics" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    artifact = export_annotations(export_source("pics"), store, settings)
    assert labels_of(store, artifact) == {"fox/a.jfif": "fox"}
    listed = store.table(artifact, EXPORT_PROBLEMS).set_index("subject")["detail"]
    assert ["JPEG" in listed[f"fox/{name}"] for name in ("b.heic", "c.GIF", "d.mp4")] == [True, True, False]
    (tmp_path / "pics/fox/a.jfif").unlink()
    assert "JPEG" in str(export_error(export_source("pics"), store, settings))

"""Export: kept untouched, read from path, https and s3, every problem counted, none fatal while something is left."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import boto3
import pytest

from animl_pipeline.errors import ExportError
from animl_pipeline.export import export_annotations
from animl_pipeline.plan import SourcePlan
from animl_pipeline.settings import Settings
from animl_pipeline.store import Store
from tests.cct import Export
from tests.web import served


def source(export: str = "export.json", **fields: str) -> SourcePlan:
    return SourcePlan.model_validate({"name": "isle", "export": export, "images": "images"} | fields)


def good() -> Export:
    e = Export()
    e.object(e.picture(), bbox=[4, 4, 20, 20])
    return e


def locked_zip() -> bytes:
    """An archive whose one member says that it needs a password."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.json", b"{}")
    data = bytearray(buffer.getvalue())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(header) + flags] |= 1
    return bytes(data)


def test_the_export_is_kept_byte_for_byte(store: Store, settings: Settings, tmp_path: Path) -> None:
    good().write(tmp_path)
    artifact = export_annotations(source(), store, settings)
    assert store.path(artifact, "export.json").read_bytes() == (tmp_path / "export.json").read_bytes()
    assert export_annotations(source(), store, settings).cached


def test_a_path_https_and_s3_give_the_same_artifact(store: Store, settings: Settings, tmp_path: Path, bucket: str) -> None:
    e = good()
    e.write(tmp_path)
    boto3.client("s3").put_object(Bucket=bucket, Key="exports/isle.json", Body=e.json())
    with served({"exports/isle.json": e.json()}) as site:
        places = [str(tmp_path / "export.json"), f"{site.address}/exports/isle.json", f"s3://{bucket}/exports/isle.json"]
        assert len({export_annotations(source(p), store, settings).digest for p in places}) == 1


def test_a_zip_and_a_gzip_are_unpacked(store: Store, settings: Settings, tmp_path: Path) -> None:
    data = good().json()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(data))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.json", data)
    (tmp_path / "a.json.zip").write_bytes(buffer.getvalue())
    one, two = (export_annotations(source(n), store, settings) for n in ("a.json.gz", "a.json.zip"))
    assert one.digest == two.digest
    assert store.path(one, "export.json").read_bytes() == data


def test_every_problem_is_counted_and_listed_and_none_stops_the_run(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = good()
    a = e.picture()
    e.images.append(dict(e.images[0]))
    e.images.append({"file_name": "x.jpg"})
    e.picture(file_name="../../etc/passwd")
    sizeless = e.picture(width=None, height=0)
    e.object(sizeless, bbox=[1, 1, 5, 5])
    e.object("isle:nowhere", bbox=[1, 1, 5, 5])
    e.object(a, category=99, bbox=[1, 1, 5, 5])
    e.object(a, bbox=[1, 1, 0, 5])
    e.object(a, bbox=[200, 1, 5, 5])
    e.object(a, bbox=[60, 40, 20, 20])
    e.object(a, bbox=["a", 1, 5, 5])
    e.object(a, bbox=[1, 1, 5, 5], validated=False, validated_by="Not Reviewed")
    e.annotations.append(dict(e.annotations[0]))
    e.annotations.append("no object")  # type: ignore[arg-type] - as a broken export has it
    e.write(tmp_path)
    artifact = export_annotations(source(), store, settings)
    assert artifact.counts.kept == 4
    assert artifact.counts.dropped == {
        "duplicate_image": 1, "image_without_id": 1, "unsafe_path": 1, "unknown_image": 1, "unknown_category": 1, "box_empty": 1,
        "box_outside": 1, "malformed_object": 2, "duplicate_object": 1,
    }  # fmt: skip
    assert artifact.counts.noted == {"missing_size": 1, "box_partly_outside": 1, "unreviewed": 1}
    listed = store.table(artifact, "problems.parquet")
    assert len(listed) == sum(artifact.counts.dropped.values()) + sum(artifact.counts.noted.values())


def test_numbers_and_texts_that_no_table_can_hold_are_faults_of_their_record_only(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = good()
    kept = len(e.annotations)
    for width in (10**400, 10**30, 1e300):
        e.object(e.picture(width=width), bbox=[1, 1, 5, 5])
    e.object(e.picture(location="cove \ud800"), bbox=[1, 1, 5, 5], confidence=10**400)
    e.object(e.picture(file_name="."))
    e.object(e.picture(), bbox=[10**400, 1, 5, 5])
    e.annotations.append("\ud800")  # type: ignore[arg-type] - as a broken export has it
    (tmp_path / "export.json").write_bytes(e.json())
    artifact = export_annotations(source(), store, settings)
    assert artifact.counts.kept == kept + 4
    assert artifact.counts.dropped == {"unsafe_path": 1, "unknown_image": 1, "malformed_object": 2}
    assert artifact.counts.noted["missing_size"] == 3
    assert "cove ?" in set(store.table(artifact, "images.parquet")["place"])


def test_the_signature_of_an_address_is_not_told(store: Store, settings: Settings) -> None:
    with pytest.raises(ExportError) as caught:
        export_annotations(source("http://127.0.0.1:9/export.json?X-Amz-Signature=secret"), store, settings)
    assert "secret" not in str(caught.value)


def test_when_nothing_is_left_the_line_says_what_was_wrong_with_how_many(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    a = e.picture()
    for _ in range(3):
        e.object(a, category=99)
    e.object("isle:gone")
    e.write(tmp_path)
    with pytest.raises(ExportError, match="nothing is left of 4 annotations: 3 unknown category, 1 unknown image"):
        export_annotations(source(), store, settings)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"<html>Sign in</html>", "is not JSON .* begins with '<html>Sign in</html>'"),
        (b'{"images": [', "is not JSON .* cut off"),
        (b'{"images": []}', "found no 'annotations'"),
        (b"[1, 2]", "found no 'images'"),
        (b"\x1f\x8bnot a gzip", "archive is broken"),
        (gzip.compress(b'{"images": []}')[:10] + b"\xff" * 40, "archive is broken"),
        (locked_zip(), "expected an archive that can be opened, found that .* encrypted"),
    ],
)
def test_what_is_no_export_is_one_clear_line(store: Store, settings: Settings, tmp_path: Path, data: bytes, line: str) -> None:
    (tmp_path / "export.json").write_bytes(data)
    with pytest.raises(ExportError, match=line) as caught:
        export_annotations(source(), store, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["nowhere.json", "http://127.0.0.1:9/export.json"])
def test_an_export_that_is_not_there_names_the_key_of_the_plan(store: Store, settings: Settings, place: str) -> None:
    with pytest.raises(ExportError, match=r"expected an export at .* mend sources\.export"):
        export_annotations(source(place), store, settings)


def test_any_field_can_be_the_place(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.object(e.picture(location_group="bay"))
    e.write(tmp_path)
    artifact = export_annotations(source(place_field="location_group"), store, settings)
    assert list(store.table(artifact, "images.parquet")["place"]) == ["bay"]

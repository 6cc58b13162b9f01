"""The export step on COCO files: kept byte for byte, read from path, https and s3, every problem counted, streamed reading."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import boto3
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.export.json_stream import MAX_BLANKS, read_lists
from animl_pipeline.steps.export.unpack_archives import unpack_json
from animl_pipeline.steps.export.write_export_tables import write_tables
from animl_pipeline.storage.bounded_http_body import RATIO_FREE
from animl_pipeline.storage.store import Store, Workspace
from tests.support.coco_export import Export
from tests.support.web_server import served


def source(export: str = "export.json", **fields: str) -> SourceConfig:
    return SourceConfig.model_validate({"name": "isle", "export": export, "images": "images"} | fields)


def one_fox() -> Export:
    e = Export()
    e.annotation(e.image(), bbox=[4, 4, 20, 20])
    return e


def locked_zip() -> bytes:
    """An archive whose one file is marked as encrypted."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.json", b"{}")
    data = bytearray(buffer.getvalue())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(header) + flags] |= 1
    return bytes(data)


def test_the_export_is_kept_byte_for_byte(store: Store, settings: Settings, tmp_path: Path) -> None:
    one_fox().write(tmp_path)
    artifact = export_annotations(source(), store, settings)
    assert store.path(artifact, "export.json").read_bytes() == (tmp_path / "export.json").read_bytes()
    assert export_annotations(source(), store, settings).cached


def test_path_https_and_s3_give_the_same_artifact(store: Store, settings: Settings, tmp_path: Path, bucket: str) -> None:
    e = one_fox()
    e.write(tmp_path)
    boto3.client("s3").put_object(Bucket=bucket, Key="exports/isle.json", Body=e.json())
    with served({"exports/isle.json": e.json()}) as site:
        locations = [str(tmp_path / "export.json"), f"{site.address}/exports/isle.json", f"s3://{bucket}/exports/isle.json"]
        assert len({export_annotations(source(p), store, settings).digest for p in locations}) == 1


def test_a_zip_and_a_gzip_are_unpacked(store: Store, settings: Settings, tmp_path: Path) -> None:
    data = one_fox().json()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(data))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.json", data)
    (tmp_path / "a.json.zip").write_bytes(buffer.getvalue())
    one, two = (export_annotations(source(n), store, settings) for n in ("a.json.gz", "a.json.zip"))
    assert one.digest == two.digest
    assert store.path(one, "export.json").read_bytes() == data


def test_problems_are_counted_and_listed_and_do_not_stop_the_step(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = one_fox()
    image = e.image()
    e.images.append(dict(e.images[0]))
    e.images.append({"file_name": "x.jpg"})
    e.image(file_name="../../etc/passwd")
    sizeless = e.image(width=None, height=0)
    e.annotation(sizeless, bbox=[1, 1, 5, 5])
    e.annotation("isle:nowhere", bbox=[1, 1, 5, 5])
    e.annotation(image, category=99, bbox=[1, 1, 5, 5])
    e.annotation(image, bbox=[1, 1, 0, 5])
    e.annotation(image, bbox=[200, 1, 5, 5])
    e.annotation(image, bbox=[60, 40, 20, 20])
    e.annotation(image, bbox=["a", 1, 5, 5])
    e.annotation(image, bbox=[1, 1, 5, 5], validated=False, validated_by="Not Reviewed")
    e.annotations.append(dict(e.annotations[0]))
    e.annotations.append("no annotation")  # type: ignore[arg-type] - as a broken export has it
    e.write(tmp_path)
    artifact = export_annotations(source(), store, settings)
    assert artifact.counts.kept == 8
    assert artifact.counts.dropped == {
        "duplicate_image": 1, "image_without_id": 1, "unsafe_path": 1, "unknown_image": 1, "malformed_annotation": 1, "duplicate_annotation": 1,
    }  # fmt: skip
    assert artifact.counts.notes == {
        "missing_size": 1, "box_partly_outside": 1, "unreviewed": 1, "category_without_name": 1, "box_empty": 1, "box_outside": 1,
        "box_malformed": 1,
    }  # fmt: skip
    listed = store.table(artifact, "problems.parquet")
    assert len(listed) == sum(artifact.counts.dropped.values()) + sum(artifact.counts.notes.values())


def test_values_that_no_table_can_hold_drop_or_blank_their_record_only(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = one_fox()
    kept = len(e.annotations)
    for width in (10**400, 10**30, 1e300):
        e.annotation(e.image(width=width), bbox=[1, 1, 5, 5])
    e.annotation(e.image(location="cove \ud800"), bbox=[1, 1, 5, 5], confidence=10**400)
    e.annotation(e.image(file_name="."))
    e.annotation(e.image(), bbox=[10**400, 1, 5, 5])
    e.annotations.append("\ud800")  # type: ignore[arg-type] - as a broken export has it
    (tmp_path / "export.json").write_bytes(e.json())
    artifact = export_annotations(source(), store, settings)
    assert artifact.counts.kept == kept + 5
    assert artifact.counts.dropped == {"unsafe_path": 1, "unknown_image": 1, "malformed_annotation": 1}
    assert artifact.counts.notes == {"missing_size": 3, "box_malformed": 1}
    assert "cove ?" in set(store.table(artifact, "images.parquet")["location"])


def test_no_message_shows_the_signature_of_a_url(store: Store, settings: Settings) -> None:
    with pytest.raises(ExportError) as caught:
        export_annotations(source("http://127.0.0.1:9/export.json?X-Amz-Signature=secret"), store, settings)
    assert "secret" not in str(caught.value)


def test_an_export_without_usable_annotations_is_an_error_with_counts(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    image = e.image()
    for _ in range(3):
        e.annotation(image, category=99)
    e.annotation("isle:gone")
    e.write(tmp_path)
    with pytest.raises(ExportError) as caught:
        export_annotations(source(), store, settings)
    assert caught.value.code == "nothing_left"
    assert caught.value.details == {"problems": {"category_without_name": 3, "unknown_image": 1}}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"<html>Sign in</html>", "not_json"),
        (b'{"images": [', "not_json"),
        (b'{"images": []}', "not_coco"),
        (b"[1, 2]", "not_coco"),
        (b"\x1f\x8bnot a gzip", "bad_archive"),
        (gzip.compress(b'{"images": []}', mtime=0)[:10] + b"\xff" * 40, "bad_archive"),
        (locked_zip(), "bad_archive"),
    ],
)
def test_a_file_that_is_not_an_export_is_an_error_in_one_line(store: Store, settings: Settings, tmp_path: Path, data: bytes, code: str) -> None:
    (tmp_path / "export.json").write_bytes(data)
    with pytest.raises(ExportError) as caught:
        export_annotations(source(), store, settings)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("export", "retryable"), [("nowhere.json", False), ("http://127.0.0.1:9/export.json", True)])
def test_a_missing_export_names_the_key_of_the_plan_and_a_silent_host_is_retryable(
    store: Store, settings: Settings, export: str, retryable: bool
) -> None:
    with pytest.raises(ExportError, match=r"sources\.export") as caught:
        export_annotations(source(export), store, settings)
    assert (caught.value.code, caught.value.retryable) == ("not_found", retryable)


def test_any_field_can_be_the_location(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.annotation(e.image(location_group="bay"))
    e.write(tmp_path)
    artifact = export_annotations(source(location_field="location_group"), store, settings)
    assert list(store.table(artifact, "images.parquet")["location"]) == ["bay"]


# -- streamed reading ---------------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_infinity=False) | st.text('a{}[],:" \\\n\ud800é😀', max_size=12)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3), max_leaves=6)
RECORDS = st.lists(st.fixed_dictionaries({"id": LEAVES | st.integers(2**63, 2**70)}, optional={"a": VALUES, "b": VALUES}) | VALUES, max_size=8)
DOCUMENTS = st.fixed_dictionaries({}, optional={"images": RECORDS, "annotations": RECORDS, "info": VALUES})
LAYOUTS = st.sampled_from([None, 1, 4])


def streamed(data: bytes, window: int) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for part, rows in read_lists(io.BytesIO(data), window):
        found.setdefault(part, []).extend(rows)
    return found


@trials(deadline=None)
@given(DOCUMENTS, LAYOUTS, st.booleans(), st.integers(16, 400))
def test_streamed_lists_equal_those_of_json_loads(document: dict[str, Any], indent: int | None, plain: bool, window: int) -> None:
    data = json.dumps(document, indent=indent, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    lists = {part: rows for part, rows in json.loads(data).items() if isinstance(rows, list)}
    assert repr(streamed(data, window)) == repr(lists)


@trials(deadline=None)
@given(DOCUMENTS, LAYOUTS, st.integers(16, 400), st.data())
def test_a_document_cut_off_anywhere_is_refused(document: dict[str, Any], indent: int | None, window: int, data: st.DataObject) -> None:
    whole = json.dumps(document, indent=indent).encode()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match="at character"):
        streamed(whole[:cut], window)


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [{"id": 1}, ], "annotations": []}',
        '{"images": [{"id": 1} {"id": 2}]}',
        '{"images": [{"id": 1}]} {}',
        '{"images": [{"id": 1}], }',
        '{"images": [{"id": 1}], "images": [{"id": 2}]}',
        '{"images": [{"id": 1}]',
        "{1: []}",
        "{" + '"a": [' * 3000,
    ],
)
def test_almost_json_is_refused(text: str) -> None:
    for window in (16, 1 << 20):
        with pytest.raises(ValueError, match=r"at character|twice|expected a key"):
            streamed(text.encode(), window)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
def test_an_export_in_another_encoding_is_read(encoding: str) -> None:
    assert streamed('{"images": [{"id": "é"}]}'.encode(encoding), 64) == {"images": [{"id": "é"}]}


def test_both_layouts_of_animls_files_give_the_same_tables(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = one_fox()
    e.annotation(e.image(location="bay"), bbox=[1.5, 1, 5, 5], confidence=float("nan"))
    e.annotation(e.image(), bbox=[float("nan"), 1, 5, 5])
    document = json.loads(e.json())
    (tmp_path / "indented.json").write_text(json.dumps(document, indent=4))
    lists = [f'"{part}": [{", ".join(json.dumps(row, indent=4) for row in document[part])}]' for part in ("images", "annotations")]
    (tmp_path / "streamed.json").write_text(f'{{{", ".join(lists)}, "categories": {json.dumps(document["categories"])}, "info":{{}}}}')
    one, two = (export_annotations(source(f"{n}.json"), store, settings) for n in ("indented", "streamed"))
    assert one.counts == two.counts
    assert one.counts.notes == {"box_malformed": 1}
    for table in ("images.parquet", "annotations.parquet", "problems.parquet"):
        assert store.path(one, table).read_bytes() == store.path(two, table).read_bytes()


@trials(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_tables_do_not_depend_on_the_order_and_size_of_batches(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    e = one_fox()
    e.images += [dict(e.images[0]), {"file_name": "x.jpg"}, dict(e.images[0], id="isle:x", file_name="../x")]
    image = e.image(width=None)
    for fields in ({"bbox": [1, 1, 5, 5]}, {"category": 99}, {"bbox": "no"}, {"validated": False}, {"bbox": [-9, 0, 20, 20]}):
        e.annotation(image, **fields)  # type: ignore[arg-type] - as a broken export has them
    e.annotations.append(dict(e.annotations[0]))
    document = json.loads(e.json())
    parts = [(p, document[p][i : i + size]) for size in sizes for p in reversed(document) if p != "info" for i in range(0, len(document[p]), size)]
    once, pieces = (Workspace(tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("scratch")) for _ in range(2))
    whole = write_tables(once, [(p, document[p] * len(sizes)) for p in ("images", "annotations", "categories")], source())
    assert write_tables(pieces, parts, source()).counts == whole.counts
    for table in ("images.parquet", "annotations.parquet"):
        assert pd.read_parquet(once.out / table).equals(pd.read_parquet(pieces.out / table))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b" " * 2_000_000))
    with pytest.raises(ExportError) as caught:
        unpack_json(tmp_path / "a.json.gz", tmp_path / "a.json", "a.json.gz", 1_000_000)
    assert caught.value.code == "archive_too_large"
    assert unpack_json(tmp_path / "a.json.gz", tmp_path / "a.json", "a.json.gz", 2_000_000).stat().st_size == 2_000_000


@pytest.mark.parametrize("kind", ["gzip", "zip"])
def test_an_archive_that_grows_as_no_export_does_is_refused_whatever_the_limit(tmp_path: Path, kind: str) -> None:
    blanks = b" " * (RATIO_FREE + 1)
    path = tmp_path / "a.json.gz"
    if kind == "gzip":
        path.write_bytes(gzip.compress(blanks))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.json", blanks)
    with pytest.raises(ExportError) as caught:
        unpack_json(path, tmp_path / "a.json", "a.json.gz", 10**12)
    assert caught.value.code == "archive_too_large"


@pytest.mark.parametrize("begin", [b"", b'{"images": [', b'{"images":'])
def test_megabytes_of_blanks_are_not_an_export(begin: bytes) -> None:
    assert list(read_lists(io.BytesIO(b'{"a": [' + b" " * 1000 + b"]}"))) == [("a", [])]
    with pytest.raises(ValueError, match="blanks"):
        list(read_lists(io.BytesIO(begin + b" " * (MAX_BLANKS + 10))))


def test_unpacking_leaves_no_temporary_folder(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(one_fox().json()))
    export_annotations(source("a.json.gz"), store, settings)
    assert [p for p in (store.local / "work").glob("export-*") if p.is_dir()] == []

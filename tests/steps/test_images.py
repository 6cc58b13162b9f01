"""Images: downloaded from a folder, https and s3, verified, once only; a killed process loses few of them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import boto3
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from animl_pipeline.config import ImagesConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import ImageError, ImagesError, ImagesUnreachableError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.images.download import image_size
from animl_pipeline.steps.images.step import BATCH, MAX_OFFLINE
from animl_pipeline.storage.bounded_http_body import TimeLimits
from animl_pipeline.storage.read_remote_files import HttpFolder, LocalFolder, ReadLimits, RemoteError
from animl_pipeline.storage.store import Store, open_store
from tests.conftest import jpeg
from tests.support.coco_export import Export
from tests.support.endpoint_process import wait_until
from tests.support.hostile_images import EXIF, encoded, flat_png, jpeg_with_segments
from tests.support.paths import DATA as REAL
from tests.support.web_server import served

WANTED = ("fox", "rat")


def island(n: int = 6) -> Export:
    e = Export()
    for i in range(n):
        e.annotation(e.image(f"p{i % 3}"), bbox=[4, 4, 20, 20])
    return e


def download(
    e: Export, images: str, store: Store, settings: Settings, tmp_path: Path, path_field: str = "file_name", config: ImagesConfig | None = None
) -> Artifact:
    (tmp_path / "export.json").write_bytes(e.json())
    source = SourceConfig.model_validate({"name": "isle", "export": str(tmp_path / "export.json"), "images": images, "path_field": path_field})
    return download_images(source, export_annotations(source, store, settings), WANTED, store, settings, config)


def missing(store: Store, artifact: Artifact) -> dict[str, str]:
    t = store.table(artifact, "missing.parquet")
    return dict(zip(t["image_id"], t["reason"], strict=True))


def test_a_folder_https_and_s3_give_the_same_images(store: Store, settings: Settings, tmp_path: Path, bucket: str) -> None:
    e = island()
    e.write(tmp_path)
    for image in e.images:
        boto3.client("s3").put_object(Bucket=bucket, Key=image["serving_bucket_key"], Body=e.files[image["file_name"]])
    with served({f"pics/{k}": v for k, v in e.files.items()}) as site:
        steps = [
            download(e, str(tmp_path / "images"), store, settings, tmp_path),
            download(e, f"{site.address}/pics", store, settings, tmp_path),
            download(e, f"s3://{bucket}", store, settings, tmp_path, path_field="serving_bucket_key"),
        ]
    blobs = [set(store.table(s, "images.parquet")["blob"]) for s in steps]
    assert blobs[0] == blobs[1] == blobs[2]
    assert all(store.blob(b) in e.files.values() for b in blobs[0])
    assert [s.counts.kept for s in steps] == [6, 6, 6]


def test_each_failure_is_counted_by_reason_and_the_others_arrive(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(4)
    gone, forbidden, wrong, cut, broken = (e.image() for _ in range(5))
    for image_id in (gone, forbidden, wrong, cut, broken):
        e.annotation(image_id)
    whole = jpeg(seed=99)
    torn = e.image(data=whole[: len(whole) // 2])  # the md5 fits, but the file is cut off
    e.annotation(torn)
    name = {i["id"]: i["file_name"] for i in e.images}
    with served(dict(e.files)) as site:
        del site.files[name[gone]]
        site.status[name[forbidden]] = 403
        site.files[name[wrong]] = jpeg(seed=1234)
        site.cut.add(name[cut])
        site.status[name[broken]] = 418
        artifact = download(e, site.address, store, settings, tmp_path)
        assert site.asked[name[gone]] == 1  # a lasting failure is not tried again
        assert site.asked[name[cut]] > 1
    assert artifact.counts.kept == 4
    assert missing(store, artifact) == {
        gone: "missing", forbidden: "forbidden", wrong: "wrong_md5", cut: "truncated", broken: "refused", torn: "broken_image",
    }  # fmt: skip


def test_images_of_other_formats_and_images_that_take_too_much_memory_are_left_out(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    tiff, strip, segments = (e.image(data=data) for data in (encoded("TIFF"), flat_png(1, 70_000), jpeg_with_segments(0xE1, EXIF, 100)))
    for image_id in (tiff, strip, segments):
        e.annotation(image_id)
    e.write(tmp_path)
    artifact = download(e, str(tmp_path / "images"), store, settings, tmp_path)
    assert artifact.counts.kept == 2
    assert missing(store, artifact) == {tiff: "format_not_allowed", strip: "broken_image", segments: "broken_image"}
    allowed = ImagesConfig(formats=("JPEG", "TIFF"))
    assert download(e, str(tmp_path / "images"), store, settings, tmp_path, config=allowed).counts.kept == 3


def test_a_temporary_failure_is_tried_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(3)
    with served(dict(e.files)) as site:
        site.fail_first = dict.fromkeys(e.files, 2)
        assert download(e, site.address, store, settings, tmp_path).counts.kept == 3


def test_a_second_run_downloads_new_images_only(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(5)
    with served(dict(e.files)) as site:
        download(e, site.address, store, settings, tmp_path)
        e.annotation(e.image("p9"))
        site.files |= e.files
        site.asked.clear()
        assert download(e, site.address, store, settings, tmp_path).counts.kept == 6
        assert site.asked.total() == 1


def test_a_run_with_an_unreachable_image_is_not_final(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(3)
    with served(dict(e.files)) as site:
        path = e.images[0]["file_name"]
        site.status[path] = 500
        assert download(e, site.address, store, settings, tmp_path).counts.dropped == {"unreachable": 1}
        site.status.clear()
        again = download(e, site.address, store, settings, tmp_path)
        assert (again.cached, again.counts.kept, again.counts.dropped) == (False, 3, {})


def test_images_without_a_wanted_label_are_not_downloaded(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    e.annotation(e.image(), category=0)
    with served(dict(e.files)) as site:
        artifact = download(e, site.address, store, settings, tmp_path)
        assert site.asked.total() == 2
    assert artifact.counts.dropped == {"without_a_wanted_label": 1}


def test_images_with_unreviewed_labels_only_are_not_downloaded_and_do_not_count_for_limits(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    for i in range(20):
        e.annotation(e.image(f"p{i % 3}"), validated=False)
    (tmp_path / "export.json").write_bytes(e.json())
    with served(dict(e.files)) as site:
        asked = {}
        for unreviewed in ("drop", "keep"):
            plan = {"name": "isle", "export": str(tmp_path / "export.json"), "images": site.address, "unreviewed": unreviewed, "max_images": 3}
            source = SourceConfig.model_validate(plan)
            artifact = download_images(source, export_annotations(source, store, settings), WANTED, store, settings)
            asked[unreviewed] = (artifact.counts.kept, artifact.counts.dropped)
    assert asked == {"drop": (2, {"with_unreviewed_labels_only": 20}), "keep": (3, {"over_limit": 19})}


@pytest.mark.parametrize(("category", "why"), [(0, "none has a label of the plan"), (1, "not validated by a person")])
def test_a_source_without_wanted_images_is_a_warning(
    store: Store, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, category: int, why: str
) -> None:
    e = Export()
    e.annotation(e.image(), category, validated=False)
    e.write(tmp_path)
    assert download(e, str(tmp_path / "images"), store, settings, tmp_path).counts.kept == 0
    assert why in caplog.text


def test_a_signature_in_the_address_works_and_stays_out_of_the_store(
    store: Store, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    e, unknown = island(2), Export()
    for i in range(3):
        unknown.annotation(unknown.image(seed=90 + i))
    with served({f"pics/{k}?sig=do-not-tell": v for k, v in e.files.items()}) as site:
        base = f"{site.address}/pics?sig=do-not-tell".replace("://", "://ranger:nor-this@")
        assert download(e, base, store, settings, tmp_path).counts.kept == 2
        assert download(e, base.replace("do-not", "did"), store, settings, tmp_path).cached  # another signature for the same host
        site.files.clear()
        with pytest.raises(ImagesError) as caught:
            download(unknown, base, store, settings, tmp_path)
    held = b"".join(p.read_bytes() for p in store.local.rglob("*") if p.is_file())
    for secret in ("do-not-tell", "nor-this"):
        assert secret not in str(caught.value) + caplog.text
        assert secret.encode() not in held


def test_a_link_out_of_the_folder_is_not_followed(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    e.write(tmp_path)
    (tmp_path / "secret.jpg").write_bytes(e.files[e.images[0]["file_name"]])
    inside = tmp_path / "images" / e.images[0]["file_name"]
    inside.unlink()
    inside.symlink_to(tmp_path / "secret.jpg")
    artifact = download(e, str(tmp_path / "images"), store, settings, tmp_path)
    assert artifact.counts.dropped == {"unsafe_path": 1}


def test_a_missing_folder_and_a_folder_without_images_are_errors(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    (tmp_path / "bare").mkdir()
    for folder, code in (("nowhere", "no_folder"), ("bare", "none_downloaded")):
        with pytest.raises(ImagesError) as caught:
            download(e, str(tmp_path / folder), store, settings, tmp_path)
        assert (caught.value.code, caught.value.retryable) == (code, False)


def test_images_in_an_index_of_another_version_are_downloaded_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    e.write(tmp_path)
    first = download(e, str(tmp_path / "images"), store, settings, tmp_path)
    for name in [*store.object_store.names("index/"), *store.object_store.names("steps/images/")]:
        if name.startswith("index/"):
            store.add_to_index(name.removeprefix("index/").rpartition("/")[0], {path: {"blob": "x"} for path in e.files})
        else:
            store.object_store.delete(name)
    again = download(e, str(tmp_path / "images"), store, settings, tmp_path)
    assert (again.cached, again.digest) == (False, first.digest)


def test_names_that_no_file_can_have_are_missing(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    e.write(tmp_path)
    (tmp_path / "images" / "circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(tmp_path / "images" / "pipe.jpg")
    for name in ("circle.jpg", "pipe.jpg", "x" * 5000, "isle"):
        e.annotation(e.image(file_name=name))
    artifact = download(e, str(tmp_path / "images"), store, settings, tmp_path)
    assert artifact.counts.dropped == {"missing": 4}
    assert download(e, str(tmp_path / "images"), store, settings, tmp_path).cached


@pytest.mark.parametrize("name", ["circle", "x" * 5000])
def test_a_folder_that_cannot_exist_is_an_error(store: Store, settings: Settings, tmp_path: Path, name: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    export = island(1).json()
    (tmp_path / "export.json").write_bytes(export)
    source = SourceConfig.model_construct(
        name="isle", export="export.json", images=name, path_field="file_name", location_field="location", unreviewed="drop"
    )
    with pytest.raises(ImagesError) as caught:
        download_images(source, export_annotations(source, store, settings), WANTED, store, settings)
    assert caught.value.code == "no_folder"


def test_a_host_that_does_not_answer_ends_the_step_with_a_retryable_error_and_downloads_are_kept(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    e = island(4)
    with served(dict(e.files)) as site:
        address = site.address
        assert download(e, address, store, settings, tmp_path).counts.kept == 4
    for _ in range(MAX_OFFLINE + 10):
        e.annotation(e.image())
    fast = settings.model_copy(update={"max_connections": 64})
    with pytest.raises(ImagesUnreachableError):
        download(e, address, store, fast, tmp_path)
    assert len(store.read_index(next(store.object_store.names("index/images/")).removeprefix("index/").rpartition("/")[0])) == 4


def test_an_unreachable_host_is_a_retryable_error_with_few_images_as_well(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    with served(dict(e.files)) as site:
        site.status = dict.fromkeys(e.files, 503)
        with pytest.raises(ImagesUnreachableError) as caught:
            download(e, site.address, store, settings, tmp_path)
    assert caught.value.details == {"reasons": {"unreachable": 2}}


CHILD = """
import json, sys
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import load_settings
from animl_pipeline.storage.store import open_store
settings = load_settings()
store = open_store(settings)
source = SourceConfig.model_validate(json.loads(sys.argv[1]))
print(download_images(source, export_annotations(source, store, settings), ("fox",), store, settings).digest)
"""


def test_a_killed_process_loses_at_most_one_batch_and_leaves_no_temporary_files(tmp_path: Path) -> None:
    n = BATCH + 140
    e = island(n)
    e.write(tmp_path)
    environment = os.environ | {"ANIML_CACHE": str(tmp_path / "cache"), "ANIML_MAX_CONNECTIONS": "8"}

    def child(store: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(plan)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"ANIML_STORE": str(tmp_path / store)},
        )

    with served(dict(e.files)) as site:
        plan = {"name": "isle", "export": str(tmp_path / "export.json"), "images": site.address}
        site.gate_after = BATCH + 60
        first = child("store")
        wait_until(lambda: any((tmp_path / "store").glob("index/images/*/*.jsonl")), "a batch is in the index")
        first.send_signal(signal.SIGKILL)
        assert first.wait(30) == -signal.SIGKILL
        if first.stdout:
            first.stdout.close()
        assert all(hashlib.sha256(p.read_bytes()).hexdigest() == p.name for p in (tmp_path / "store" / "blobs").rglob("*") if p.is_file())
        site.gate_after = None
        site.gate.set()
        site.asked.clear()
        second = child("store")
        digest_after_kill = second.communicate(timeout=120)[0].strip()
        assert site.asked.total() <= n - BATCH
        here = Settings(store=str(tmp_path / "other"), cache=tmp_path / "cache")
        source, other = SourceConfig.model_validate(plan), open_store(here)
        digest_without_kill = download_images(source, export_annotations(source, other, here), ("fox",), other, here).digest
    assert digest_after_kill == digest_without_kill != ""
    left = [p for p in (tmp_path / "store").rglob("*") if p.is_file() and (p.name.startswith(".") or "parts" in p.parts)]
    assert [p.name for p in left] in ([], ["lock"])


def test_the_md5_of_the_server_is_checked_and_wrong_bytes_are_requested_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    md5_headers: dict[str, Callable[[bytes], str]] = {
        "Content-MD5": lambda md5: base64.b64encode(md5).decode(),
        "x-goog-hash": lambda md5: f"crc32c=AAAAAA==,md5={base64.b64encode(md5).decode()}",
        "ETag": lambda md5: f'"{md5.hex()}"',
    }
    with served({}) as site:
        for i, (header, value) in enumerate(md5_headers.items()):
            data = jpeg(seed=i)
            name = f"p{i}.jpg"
            e.annotation(e.image(data=data, id=f"no-md5-{i}", file_name=name))
            site.headers[name] = {header: value(hashlib.md5(data, usedforsecurity=False).digest()), "x-amz-request-id": "1"}
            site.wrong_first[name] = 1
        for annotation, image in zip(e.annotations, e.images, strict=True):
            annotation["image_id"] = image["id"]
        site.files = dict(e.files)
        artifact = download(e, site.address, store, settings, tmp_path)
        assert set(site.asked.values()) == {2}
    blobs = store.table(artifact, "images.parquet")["blob"]
    assert {store.blob(b) for b in blobs} == set(e.files.values())


def test_wrong_bytes_short_bodies_and_hanging_requests_are_tried_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(4)
    names = [i["file_name"] for i in e.images]
    with served(dict(e.files)) as site:
        site.wrong_first[names[0]] = 2
        site.cut_first[names[1]] = 2
        site.hang_first[names[2]] = 1
        site.fail_first[names[3]] = 1
        artifact = download(e, site.address, store, settings.model_copy(update={"timeout_s": 0.5}), tmp_path)
        assert [site.asked[name] for name in names] == [3, 3, 2, 2]
    assert (artifact.counts.kept, artifact.counts.dropped) == (4, {})


def test_a_redirect_is_followed(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(1)
    (name,) = e.files
    with served({"moved.jpg": e.files[name]}) as site:
        site.elsewhere[name] = "moved.jpg"
        assert download(e, site.address, store, settings, tmp_path).counts.kept == 1


def test_the_same_bytes_under_two_names_are_stored_once_and_noted(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    for name in ("again.jpg", "once-more.jpg"):
        e.image(data=jpeg(seed=0), file_name=name, id=f"copy:{name}")
        e.annotation(f"copy:{name}")
    e.write(tmp_path)
    artifact = download(e, str(tmp_path / "images"), store, settings, tmp_path)
    assert artifact.counts.notes == {"same_bytes_as_another": 2}
    assert sum(1 for name in store.object_store.names("blobs/")) == len(set(e.files.values())) == 2


def test_the_disk_budget_limits_the_store_and_a_larger_one_allows_the_rest(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(12)
    e.write(tmp_path)
    with pytest.raises(ImagesError) as caught:
        download(e, str(tmp_path / "images"), store, settings, tmp_path, config=ImagesConfig.model_validate({"max_disk": 1}))
    assert (caught.value.code, caught.value.retryable) == ("over_budget", False)
    half = sum(len(p) for p in e.files.values()) // 2
    small = ImagesConfig.model_validate({"max_disk": f"{(store.object_store.total_bytes() + half) / 1000} KB"})
    cut_off = download(e, str(tmp_path / "images"), store, settings, tmp_path, config=small)
    assert 0 < cut_off.counts.kept < 12
    assert cut_off.counts.dropped == {"over_budget": 12 - cut_off.counts.kept}
    assert sum(store.table(cut_off, "images.parquet")["bytes"]) <= half
    whole = download(e, str(tmp_path / "images"), store, settings, tmp_path, config=ImagesConfig())
    assert (whole.cached, whole.counts.kept, whole.counts.dropped) == (False, 12, {})
    assert download(e, str(tmp_path / "images"), store, settings, tmp_path, config=small).cached  # images in the store are not removed


def test_credentials_that_s3_refuses_end_the_step(store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = island(MAX_OFFLINE + 1)
    with served({}) as site:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": site.address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-west-2",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        for name in e.files:
            site.status[f"isle/{name}"] = 403
            site.bodies[f"isle/{name}"] = b"<Error><Code>ExpiredToken</Code></Error>"
        with pytest.raises(ImagesError, match="ExpiredToken") as caught:
            download(e, "s3://isle", store, settings, tmp_path)
    assert (caught.value.code, caught.value.retryable) == ("credentials_refused", False)


def test_public_data_is_downloaded_without_a_signature_if_there_are_no_credentials(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    e = island(2)
    with served({f"lila/set/{name}": data for name, data in e.files.items()}) as site:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", site.address)
        assert download(e, "s3://lila/set", store, settings, tmp_path).counts.kept == 2
        assert site.said["Authorization"] == {None}


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(1000))
    with served({"a.jpg": bytes(1000)}) as site:
        for remote in (LocalFolder(tmp_path), HttpFolder(site.address, ReadLimits(10**9, TimeLimits(5, 60)))):
            assert len(remote.read_once("a.jpg", 1000).data) == 1000
            with pytest.raises(RemoteError) as caught:
                remote.read_once("a.jpg", 999)
            assert (caught.value.reason, caught.value.retryable) == ("too_large", False)


# -- whether an image is complete --------------------------------------------------------------------------------------


def test_the_size_of_a_jpeg_is_read_without_decoding_it() -> None:
    assert image_size(jpeg(160, 120)) == (160, 120)


@pytest.mark.parametrize("end", [2, 10, 500, 1000])
def test_a_jpeg_that_is_cut_off_is_refused(end: int) -> None:
    with pytest.raises(ImageError):
        image_size(jpeg(160, 120)[:-end])


def test_a_jpeg_with_bytes_after_its_end_is_decoded() -> None:
    assert image_size(jpeg(160, 120) + bytes(20)) == (160, 120)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"<html>", b"\xff\xd8\xff\xe0\x00\x00"])
def test_bytes_that_are_not_an_image_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        image_size(data)


def test_other_formats_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg())).save(buffer, "PNG")
    assert image_size(buffer.getvalue()) == (64, 48)
    with pytest.raises(ImageError):
        image_size(buffer.getvalue()[:-50])


@given(st.floats(0, 0.999), st.floats(0, 0.2), st.randoms(use_true_random=False), st.sampled_from(["zero", "random", "gone"]))
@hypothesis_settings(max_examples=100, deadline=None)
def test_an_image_that_decodes_is_never_refused(at: float, share: float, random: Random, how: str) -> None:
    data = jpeg(160, 120, seed=7)
    start, end = int(at * len(data)), int(min(1.0, at + share) * len(data)) + 1
    middle = {"zero": bytes(end - start), "random": random.randbytes(end - start), "gone": b""}[how]
    damaged = data[:start] + middle + data[end:]
    try:
        size = open_image(damaged).size
    except ImageError:
        return
    assert image_size(damaged) == size


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.exists(), reason="no real images beside the checkout")
def test_real_images_are_complete_and_refused_when_cut_off() -> None:
    paths = sorted(p for p in REAL.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})[::25]
    assert len(paths) > 50
    for path in paths:
        data = path.read_bytes()
        assert image_size(data) == open_image(data).size, path
        with pytest.raises(ImageError):
            image_size(data[: len(data) * 2 // 3])

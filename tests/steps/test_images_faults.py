"""Downloads that fail: counted by reason, tried again, ended in an error; a killed process loses few images."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ImagesError, ImagesUnreachableError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.images.step import BATCH, MAX_OFFLINE
from animl_pipeline.storage.store import Store, open_store
from tests.conftest import jpeg
from tests.support.coco_export import Export
from tests.support.endpoint_process import wait_until
from tests.support.image_downloads import download, island, missing
from tests.support.web_server import served


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


def test_a_temporary_failure_is_tried_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(3)
    with served(dict(e.files)) as site:
        site.fail_first = dict.fromkeys(e.files, 2)
        assert download(e, site.address, store, settings, tmp_path).counts.kept == 3


def test_a_run_with_an_unreachable_image_is_not_final(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(3)
    with served(dict(e.files)) as site:
        path = e.images[0]["file_name"]
        site.status[path] = 500
        assert download(e, site.address, store, settings, tmp_path).counts.dropped == {"unreachable": 1}
        site.status.clear()
        again = download(e, site.address, store, settings, tmp_path)
        assert (again.cached, again.counts.kept, again.counts.dropped) == (False, 3, {})


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

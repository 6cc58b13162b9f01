"""Images: what the export names, verified, from a folder, https and s3; only what is missing travels; kill -9 loses little."""

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

import boto3
import pytest

from animl_pipeline.config import ImagesConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ImagesError
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import fetch_images
from animl_pipeline.steps.images.step import BATCH, IN_VAIN
from animl_pipeline.storage.remote_files import HttpFolder, LocalFolder, RemoteError
from animl_pipeline.storage.step_cache import Store, open_store
from tests.conftest import jpeg
from tests.support.coco_export import Export
from tests.support.endpoint_process import until
from tests.support.web_server import served

WANTED = ("fox", "rat")


def island(n: int = 6) -> Export:
    e = Export()
    for i in range(n):
        e.annotation(e.image(f"p{i % 3}"), bbox=[4, 4, 20, 20])
    return e


def fetched(
    e: Export, images: str, store: Store, settings: Settings, tmp_path: Path, key: str = "file_name", spec: ImagesConfig | None = None
) -> Artifact:
    (tmp_path / "export.json").write_bytes(e.json())
    source = SourceConfig.model_validate({"name": "isle", "export": str(tmp_path / "export.json"), "images": images, "key": key})
    return fetch_images(source, export_annotations(source, store, settings), WANTED, store, settings, spec)


def missing(store: Store, artifact: Artifact) -> dict[str, str]:
    t = store.table(artifact, "missing.parquet")
    return dict(zip(t["image_id"], t["reason"], strict=True))


def test_folder_https_and_s3_bring_the_same_images(store: Store, settings: Settings, tmp_path: Path, bucket: str) -> None:
    e = island()
    e.write(tmp_path)
    for image in e.images:
        boto3.client("s3").put_object(Bucket=bucket, Key=image["serving_bucket_key"], Body=e.files[image["file_name"]])
    with served({f"pics/{k}": v for k, v in e.files.items()}) as site:
        steps = [
            fetched(e, str(tmp_path / "images"), store, settings, tmp_path),
            fetched(e, f"{site.address}/pics", store, settings, tmp_path),
            fetched(e, f"s3://{bucket}", store, settings, tmp_path, key="serving_bucket_key"),
        ]
    blobs = [set(store.table(s, "images.parquet")["blob"]) for s in steps]
    assert blobs[0] == blobs[1] == blobs[2]
    assert all(store.blob(b) in e.files.values() for b in blobs[0])
    assert [s.counts.kept for s in steps] == [6, 6, 6]


def test_each_fault_is_a_counted_reason_and_the_others_arrive(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(4)
    gone, forbidden, wrong, cut, broken = (e.image() for _ in range(5))
    for image_id in (gone, forbidden, wrong, cut, broken):
        e.annotation(image_id)
    whole = jpeg(seed=99)
    torn = e.image(data=whole[: len(whole) // 2])  # the md5 of a torn picture: right bytes, no picture
    e.annotation(torn)
    name = {i["id"]: i["file_name"] for i in e.images}
    with served(dict(e.files)) as site:
        del site.files[name[gone]]
        site.status[name[forbidden]] = 403
        site.files[name[wrong]] = jpeg(seed=1234)
        site.cut.add(name[cut])
        site.status[name[broken]] = 418
        artifact = fetched(e, site.address, store, settings, tmp_path)
        assert site.asked[name[gone]] == 1  # what cannot heal is not asked again
        assert site.asked[name[cut]] > 1
    assert artifact.counts.kept == 4
    assert missing(store, artifact) == {
        gone: "missing", forbidden: "forbidden", wrong: "wrong_md5", cut: "truncated", broken: "refused", torn: "broken_image",
    }  # fmt: skip


def test_a_passing_fault_heals(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(3)
    with served(dict(e.files)) as site:
        site.fail_first = dict.fromkeys(e.files, 2)
        assert fetched(e, site.address, store, settings, tmp_path).counts.kept == 3


def test_a_second_run_fetches_only_what_is_new(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(5)
    with served(dict(e.files)) as site:
        fetched(e, site.address, store, settings, tmp_path)
        e.annotation(e.image("p9"))
        site.files |= e.files
        site.asked.clear()
        assert fetched(e, site.address, store, settings, tmp_path).counts.kept == 6
        assert site.asked.total() == 1


def test_a_run_with_an_unreachable_image_is_not_taken_for_the_last_word(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(3)
    with served(dict(e.files)) as site:
        path = e.images[0]["file_name"]
        site.status[path] = 500
        assert fetched(e, site.address, store, settings, tmp_path).counts.dropped == {"unreachable": 1}
        site.status.clear()
        healed = fetched(e, site.address, store, settings, tmp_path)
        assert (healed.cached, healed.counts.kept, healed.counts.dropped) == (False, 3, {})


def test_images_without_a_wanted_label_do_not_travel(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    e.annotation(e.image(), category=0)
    with served(dict(e.files)) as site:
        artifact = fetched(e, site.address, store, settings, tmp_path)
        assert site.asked.total() == 2
    assert artifact.counts.dropped == {"without_a_wanted_label": 1}


def test_images_of_which_no_person_saw_a_wanted_label_do_not_travel_and_take_no_room_of_a_limit(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    e = island(2)
    for i in range(20):
        e.annotation(e.image(f"p{i % 3}"), validated=False)
    (tmp_path / "export.json").write_bytes(e.json())
    with served(dict(e.files)) as site:
        asked = {}
        for unreviewed in ("drop", "keep"):
            plan = {"name": "isle", "export": str(tmp_path / "export.json"), "images": site.address, "unreviewed": unreviewed, "max_images": 3}
            source = SourceConfig.model_validate(plan)
            artifact = fetch_images(source, export_annotations(source, store, settings), WANTED, store, settings)
            asked[unreviewed] = (artifact.counts.kept, artifact.counts.dropped)
    assert asked == {"drop": (2, {"with_unreviewed_labels_only": 20}), "keep": (3, {"over_limit": 19})}


@pytest.mark.parametrize(("category", "why"), [(0, "none carries a label of the plan"), (1, "no person validated the labels")])
def test_a_source_of_which_nothing_is_wanted_does_not_stop_the_others(
    store: Store, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, category: int, why: str
) -> None:
    e = Export()
    e.annotation(e.image(), category, validated=False)
    e.write(tmp_path)
    assert fetched(e, str(tmp_path / "images"), store, settings, tmp_path).counts.kept == 0
    assert f"pictures of isle: none is wanted: {why}" in caplog.text


def test_an_address_with_a_signature_brings_images_and_the_signature_stays_out_of_the_store(
    store: Store, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    e, strangers = island(2), Export()
    for i in range(3):
        strangers.annotation(strangers.image(seed=90 + i))
    with served({f"pics/{k}?sig=do-not-tell": v for k, v in e.files.items()}) as site:
        base = f"{site.address}/pics?sig=do-not-tell".replace("://", "://ranger:nor-this@")
        assert fetched(e, base, store, settings, tmp_path).counts.kept == 2
        assert fetched(e, base.replace("do-not", "did"), store, settings, tmp_path).cached  # another signature for the same place
        site.files.clear()
        with pytest.raises(ImagesError, match=r"not one of 3 pictures arrived") as caught:
            fetched(strangers, base, store, settings, tmp_path)
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
    artifact = fetched(e, str(tmp_path / "images"), store, settings, tmp_path)
    assert artifact.counts.dropped == {"unsafe_path": 1}


def test_a_folder_that_is_not_there_and_one_without_images_are_one_clear_line_each(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    with pytest.raises(ImagesError, match=r"expected a folder of pictures .* mend sources\.images"):
        fetched(e, str(tmp_path / "nowhere"), store, settings, tmp_path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ImagesError, match=r"not one of 2 pictures arrived .* 2 missing .*sources\.key"):
        fetched(e, str(tmp_path / "bare"), store, settings, tmp_path)


def test_what_another_version_remembered_is_fetched_anew(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    e.write(tmp_path)
    first = fetched(e, str(tmp_path / "images"), store, settings, tmp_path)
    for name in [*store.object_store.names("index/"), *store.object_store.names("steps/images/")]:
        if name.startswith("index/"):
            store.object_store.put(name, "".join(f'["{path}", {{"blob": "x"}}]\n' for path in e.files).encode())
        else:
            store.object_store.delete(name)
    again = fetched(e, str(tmp_path / "images"), store, settings, tmp_path)
    assert (again.cached, again.digest) == (False, first.digest)


def test_names_under_which_there_cannot_be_a_file_are_missing_for_good(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    e.write(tmp_path)
    (tmp_path / "images" / "circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(tmp_path / "images" / "pipe.jpg")
    for name in ("circle.jpg", "pipe.jpg", "x" * 5000, "isle"):
        e.annotation(e.image(file_name=name))
    artifact = fetched(e, str(tmp_path / "images"), store, settings, tmp_path)
    assert artifact.counts.dropped == {"missing": 4}
    assert fetched(e, str(tmp_path / "images"), store, settings, tmp_path).cached


@pytest.mark.parametrize("name", ["circle", "x" * 5000])
def test_a_folder_that_cannot_be_is_one_clear_line(store: Store, settings: Settings, tmp_path: Path, name: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    export = island(1).json()
    (tmp_path / "export.json").write_bytes(export)
    source = SourceConfig.model_construct(
        name="isle", export="export.json", images=name, key="file_name", location_field="location", unreviewed="drop"
    )
    with pytest.raises(ImagesError, match="expected a folder of pictures"):
        fetch_images(source, export_annotations(source, store, settings), WANTED, store, settings)


def test_a_network_that_is_gone_ends_the_step_after_one_batch_and_what_arrived_is_kept(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(4)
    with served(dict(e.files)) as site:
        address = site.address
        assert fetched(e, address, store, settings, tmp_path).counts.kept == 4
    for _ in range(IN_VAIN + 10):
        e.annotation(e.image())
    fast = settings.model_copy(update={"connections": 64})
    with pytest.raises(ImagesError, match=rf"reached none of {IN_VAIN} in a row \(.*no connection\); .*credentials"):
        fetched(e, address, store, fast, tmp_path)
    assert len(store.read_index(next(store.object_store.names("index/images/")).removeprefix("index/").rpartition("/")[0])) == 4


CHILD = """
import json, sys
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import fetch_images
from animl_pipeline.config import ImagesPlan, SourcePlan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.storage.step_cache import open_store
settings = load_settings()
store = open_store(settings)
source = SourcePlan.model_validate(json.loads(sys.argv[1]))
print(fetch_images(source, export_annotations(source, store, settings), ("fox",), store, settings).digest)
"""


def test_kill_9_in_the_middle_loses_at_most_the_batch_in_hand_and_leaves_nothing_lying_about(tmp_path: Path) -> None:
    n = BATCH + 140
    e = island(n)
    e.write(tmp_path)
    environment = os.environ | {"ANIML_CACHE": str(tmp_path / "cache"), "ANIML_CONNECTIONS": "8"}

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
        until(lambda: any((tmp_path / "store").glob("index/images/*/*.jsonl")), "a batch is remembered")
        first.send_signal(signal.SIGKILL)
        assert first.wait(30) == -signal.SIGKILL
        if first.stdout:
            first.stdout.close()
        assert all(hashlib.sha256(p.read_bytes()).hexdigest() == p.name for p in (tmp_path / "store" / "blobs").rglob("*") if p.is_file())
        site.gate_after = None
        site.gate.set()
        site.asked.clear()
        second = child("store")
        killed_then_resumed = second.communicate(timeout=120)[0].strip()
        assert site.asked.total() <= n - BATCH
        here = Settings(store=str(tmp_path / "other"), cache=tmp_path / "cache")
        source, other = SourceConfig.model_validate(plan), open_store(here)
        undisturbed = fetch_images(source, export_annotations(source, other, here), ("fox",), other, here).digest
    assert killed_then_resumed == undisturbed != ""
    left = [p for p in (tmp_path / "store").rglob("*") if p.is_file() and (p.name.startswith(".") or "parts" in p.parts)]
    assert [p.name for p in left] in ([], ["lock"])


def test_a_server_that_says_an_md5_is_believed_and_what_changed_on_the_way_is_asked_for_again(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    e = Export()
    said: dict[str, Callable[[bytes], str]] = {
        "Content-MD5": lambda md5: base64.b64encode(md5).decode(),
        "x-goog-hash": lambda md5: f"crc32c=AAAAAA==,md5={base64.b64encode(md5).decode()}",
        "ETag": lambda md5: f'"{md5.hex()}"',
    }
    with served({}) as site:
        for i, (header, value) in enumerate(said.items()):
            data = jpeg(seed=i)
            name = f"p{i}.jpg"
            e.annotation(e.image(data=data, id=f"no-md5-{i}", file_name=name))
            site.headers[name] = {header: value(hashlib.md5(data, usedforsecurity=False).digest()), "x-amz-request-id": "1"}
            site.wrong_first[name] = 1
        for annotation, image in zip(e.annotations, e.images, strict=True):
            annotation["image_id"] = image["id"]
        site.files = dict(e.files)
        artifact = fetched(e, site.address, store, settings, tmp_path)
        assert set(site.asked.values()) == {2}
    blobs = store.table(artifact, "images.parquet")["blob"]
    assert {store.blob(b) for b in blobs} == set(e.files.values())


def test_wrong_bytes_cut_bodies_and_hangs_heal(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(4)
    names = [i["file_name"] for i in e.images]
    with served(dict(e.files)) as site:
        site.wrong_first[names[0]] = 2
        site.cut_first[names[1]] = 2
        site.hang_first[names[2]] = 1
        site.fail_first[names[3]] = 1
        artifact = fetched(e, site.address, store, settings.model_copy(update={"timeout_s": 0.5}), tmp_path)
        assert [site.asked[name] for name in names] == [3, 3, 2, 2]
    assert (artifact.counts.kept, artifact.counts.dropped) == (4, {})


def test_a_redirect_is_followed(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(1)
    (name,) = e.files
    with served({"moved.jpg": e.files[name]}) as site:
        site.elsewhere[name] = "moved.jpg"
        assert fetched(e, site.address, store, settings, tmp_path).counts.kept == 1


def test_the_same_bytes_under_two_names_are_kept_once_and_noted(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(2)
    for name in ("again.jpg", "once-more.jpg"):
        e.image(data=jpeg(seed=0), file_name=name, id=f"copy:{name}")
        e.annotation(f"copy:{name}")
    e.write(tmp_path)
    artifact = fetched(e, str(tmp_path / "images"), store, settings, tmp_path)
    assert artifact.counts.noted == {"same_bytes_as_another": 2}
    assert sum(1 for name in store.object_store.names("blobs/")) == len(set(e.files.values())) == 2


def test_a_budget_keeps_what_fits_and_a_larger_one_brings_the_rest(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(12)
    e.write(tmp_path)
    with pytest.raises(ImagesError, match=r"12 over budget .* raise images\.max_disk"):
        fetched(e, str(tmp_path / "images"), store, settings, tmp_path, spec=ImagesConfig.model_validate({"max_disk": 1}))
    half = sum(len(p) for p in e.files.values()) // 2
    small = ImagesConfig.model_validate({"max_disk": f"{(store.object_store.total_bytes() + half) / 1000} KB"})
    cut_off = fetched(e, str(tmp_path / "images"), store, settings, tmp_path, spec=small)
    assert 0 < cut_off.counts.kept < 12
    assert cut_off.counts.dropped == {"over_budget": 12 - cut_off.counts.kept}
    assert sum(store.table(cut_off, "images.parquet")["bytes"]) <= half
    whole = fetched(e, str(tmp_path / "images"), store, settings, tmp_path, spec=ImagesConfig())
    assert (whole.cached, whole.counts.kept, whole.counts.dropped) == (False, 12, {})
    assert fetched(e, str(tmp_path / "images"), store, settings, tmp_path, spec=small).cached  # what is there is not thrown away


def test_credentials_that_s3_does_not_take_end_the_step_and_are_named(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = island(IN_VAIN + 1)
    with served({}) as site:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": site.address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-west-2",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        for name in e.files:
            site.status[f"isle/{name}"] = 403
            site.bodies[f"isle/{name}"] = b"<Error><Code>ExpiredToken</Code></Error>"
        with pytest.raises(ImagesError, match=r"ExpiredToken\): S3 does not take our credentials .*check .*credentials"):
            fetched(e, "s3://isle", store, settings, tmp_path)


def test_public_data_is_fetched_unsigned_where_there_are_no_credentials(
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
        assert fetched(e, "s3://lila/set", store, settings, tmp_path).counts.kept == 2
        assert site.said["Authorization"] == {None}


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(1000))
    with served({"a.jpg": bytes(1000)}) as site:
        for remote in (LocalFolder(tmp_path), HttpFolder(site.address, 5)):
            assert len(remote.read_once("a.jpg", 1000).data) == 1000
            with pytest.raises(RemoteError, match="1,000 bytes; at most 999") as caught:
                remote.read_once("a.jpg", 999)
            assert (caught.value.reason, caught.value.retryable) == ("too_large", False)

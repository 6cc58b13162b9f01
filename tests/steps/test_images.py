"""Images: downloaded from a folder, https and s3, verified, once only; a killed process loses few of them."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pandas as pd
import pytest

from animl_pipeline.config import ImagesConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.errors import ImagesError
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import TEST_IMAGES
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images, download_test_images
from animl_pipeline.storage.bounded_http_body import TimeLimits
from animl_pipeline.storage.read_remote_files import HttpFolder, LocalFolder, ReadLimits, RemoteError
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.conftest import jpeg
from tests.support.coco_export import Export
from tests.support.hostile_images import EXIF, encoded, flat_png, jpeg_with_segments
from tests.support.image_downloads import WANTED, download, island, missing
from tests.support.web_server import served


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


def test_two_data_folders_in_one_store_keep_their_own_images_of_the_same_names(store: Store, settings: Settings, tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        e = Export()
        e.image(data=jpeg(seed=number), id="first", file_name="cam1/IMG_0001.JPG")  # an id without md5
        e.annotation("first", bbox=[4, 4, 20, 20])
        e.write(tmp_path / name)
        here = settings.model_copy(update={"data": tmp_path / name})
        artifact = download(e, "images", store, here, tmp_path / name)
        (blob,) = store.table(artifact, "images.parquet")["blob"]
        assert store.blob(blob) == e.files["cam1/IMG_0001.JPG"]


def test_files_that_were_swapped_or_copied_later_are_read_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    one, other = tmp_path / "cards/fox/IMG_1.JPG", tmp_path / "cards/rat/IMG_1.JPG"
    for path, width in ((one, 64), (other, 80)):
        path.parent.mkdir(parents=True)
        path.write_bytes(jpeg(width=width))
    source = SourceConfig.model_validate({"name": "sorted", "export": str(tmp_path / "cards")})
    for _ in range(2):
        made = download_images(source, export_annotations(source, store, settings), WANTED, store, settings)
        table = store.table(made, "images.parquet")
        assert len(table) == 2
        assert all(store.blob(b) == (tmp_path / "cards" / p).read_bytes() for b, p in zip(table["blob"], table["path"], strict=True))
        one.rename(tmp_path / "x")
        other.rename(one)
        (tmp_path / "x").rename(other)
    e = island(2)
    e.write(tmp_path)
    late = tmp_path / "images" / e.images[0]["file_name"]
    late.rename(tmp_path / "late.jpg")
    assert download(e, str(tmp_path / "images"), store, settings, tmp_path).counts.dropped == {"missing": 1}
    assert download(e, str(tmp_path / "images"), store, settings, tmp_path).cached
    late.write_bytes(b"half of it")
    assert download(e, str(tmp_path / "images"), store, settings, tmp_path).counts.dropped == {"wrong_md5": 1}
    (tmp_path / "late.jpg").rename(late)
    for cached in (False, True):
        again = download(e, str(tmp_path / "images"), store, settings, tmp_path)
        assert (again.cached, again.counts.kept) == (cached, 2)


def test_a_file_that_was_replaced_under_the_same_export_is_read_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    e.image(data=jpeg(), id="first", file_name="cam1/IMG_0001.JPG")  # an id without md5
    e.annotation("first", bbox=[4, 4, 20, 20])
    e.write(tmp_path)
    replaced = tmp_path / "images/cam1/IMG_0001.JPG"
    download(e, str(tmp_path / "images"), store, settings, tmp_path)
    replaced.write_bytes(jpeg(width=80))
    for cached in (False, True):
        again = download(e, str(tmp_path / "images"), store, settings, tmp_path)
        (blob,) = store.table(again, "images.parquet")["blob"]
        assert (again.cached, store.blob(blob)) == (cached, replaced.read_bytes())
    replaced.unlink()
    assert download(e, str(tmp_path / "images"), store, settings, tmp_path).counts.kept == 1


def test_test_images_of_a_format_that_the_plan_names_later_are_downloaded(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, data in (("a.jpg", jpeg()), ("b.tif", encoded("TIFF"))):
        (tmp_path / "images" / name).write_bytes(data)
    rows = [("isle", name, name, name, "isle/cove", "2026-01-01T00:00:00", 64, 48, i, 1.0, False) for i, name in enumerate(("a.jpg", "b.tif"))]

    def build(space: Workspace) -> StepOutput:
        write_table(space.out, TEST_IMAGES, pd.DataFrame(rows, columns=TEST_IMAGES.names()))
        return StepOutput(Counts(kept=2))

    chosen = store.make(Step("test_images", version=1), build=build)
    source = SourceConfig(name="isle", export="export.json", images=str(tmp_path / "images"))
    assert download_test_images(source, chosen, store, settings, ImagesConfig()).counts.kept == 1
    assert download_test_images(source, chosen, store, settings, ImagesConfig(formats=("JPEG", "TIFF"))).counts.kept == 2


def test_a_second_run_downloads_new_images_only(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island(5)
    with served(dict(e.files)) as site:
        download(e, site.address, store, settings, tmp_path)
        e.annotation(e.image("p9"))
        site.files |= e.files
        site.asked.clear()
        assert download(e, site.address, store, settings, tmp_path).counts.kept == 6
        assert site.asked.total() == 1


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

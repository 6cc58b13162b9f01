"""Reading files that others keep: every failure has its reason, and says whether another try may help."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.storage import read_remote_files
from animl_pipeline.storage.read_remote_files import (
    ATTEMPTS,
    HttpFolder,
    LocalFolder,
    RemoteError,
    check_relative_path,
    read_path_or_url,
    retry_pause_s,
    sent_md5,
)

MD5 = "900150983cd24fb0d6963f7d28e17f72"
AS_BASE64 = "kAFQmDzST7DWlj99KOF/cg=="


def reason_of(folder: LocalFolder | HttpFolder, name: str, max_bytes: int | None = None) -> str:
    with pytest.raises(RemoteError) as caught:
        folder.read_once(name, max_bytes)
    return caught.value.reason


def test_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"data")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "images" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "images" / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "images" / "pipe")
    folder = LocalFolder(tmp_path / "images")
    assert folder.read("a.jpg") == b"data"
    assert {name: reason_of(folder, name) for name in ("b.jpg", "a.jpg/c", "pipe", "circle", "x" * 300)} == dict.fromkeys(
        ("b.jpg", "a.jpg/c", "pipe", "circle", "x" * 300), "missing"
    )
    assert reason_of(folder, "link") == "unsafe_path"
    assert reason_of(folder, "a.jpg", 3) == "too_large"


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../a", "a/../../b", "a\\b", "a\nb", "C:/a"])
def test_names_that_leave_their_base_are_refused(name: str) -> None:
    with pytest.raises(RemoteError) as caught:
        check_relative_path(name)
    assert (caught.value.reason, caught.value.retryable) == ("unsafe_path", False)


def test_a_host_that_is_gone_is_tried_again_and_its_address_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(read_remote_files, "retry_pause_s", lambda attempt, error: pauses.append(attempt) or 0.0)
    with pytest.raises(RemoteError) as caught:
        read_path_or_url("http://ranger:owl@127.0.0.1:1/a.json?signature=owl", settings)
    assert (caught.value.reason, caught.value.retryable, caught.value.offline) == ("unreachable", True, True)
    assert max(pauses) >= ATTEMPTS - 1
    assert "owl" not in str(caught.value)


def test_pauses_grow_and_a_server_may_ask_for_longer_ones() -> None:
    error = RemoteError("unreachable", "", retryable=True)
    assert [0.5 <= retry_pause_s(n, error) / (0.2 * 2 ** (n - 1)) <= 1.5 for n in (1, 2, 3)] == [True] * 3
    assert retry_pause_s(20, error) <= 15
    assert retry_pause_s(1, RemoteError("missing", "")) is None
    assert retry_pause_s(1, RemoteError("unreachable", "", retryable=True, retry_after_s=30)) == 30
    assert retry_pause_s(1, RemoteError("unreachable", "", retryable=True, retry_after_s=3600)) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Content-MD5": AS_BASE64}, MD5),
        ({"x-goog-hash": f"crc32c=AAAAAA==, md5={AS_BASE64}"}, MD5),
        ({"Content-MD5": "not base64!"}, None),
        ({"Content-MD5": AS_BASE64, "Content-Encoding": "gzip"}, None),
        ({"ETag": f'"{MD5}"'}, None),
        ({"ETag": f'"{MD5}"', "x-amz-request-id": "1"}, MD5),
        ({"ETag": f'"{MD5}-2"', "x-amz-request-id": "1"}, None),
        ({"ETag": f'"{MD5}"', "x-amz-request-id": "1", "x-amz-server-side-encryption": "aws:kms"}, None),
        ({"ETag": f'"{MD5}"', "x-amz-request-id": "1", "x-amz-server-side-encryption-customer-algorithm": "AES256"}, None),
    ],
)
def test_the_md5_that_a_server_sent(headers: dict[str, str], expected: str | None) -> None:
    assert sent_md5(headers) == expected

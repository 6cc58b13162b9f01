"""A store in S3 whose answers break off, have wrong bytes, or say that S3 is busy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from animl_pipeline.core.errors import StoreError, StoreUnreachableError
from animl_pipeline.storage.object_store import READ_ATTEMPTS, S3ObjectStore
from tests.support.web_server import Site, served

DATA = b"an object" * 100
ETAG = {"ETag": f'"{hashlib.md5(DATA).hexdigest()}"', "x-amz-request-id": "1"}  # noqa: S324 - S3's


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with served({}) as site:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": site.address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-west-2", "AWS_MAX_ATTEMPTS": "1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield site


def store_error(store: S3ObjectStore, name: str) -> tuple[type, bool]:
    with pytest.raises(StoreError) as caught:
        store.read(name)
    return type(caught.value), caught.value.retryable


def test_an_object_that_breaks_off_or_has_wrong_bytes_is_read_again(s3: Site) -> None:
    s3.files = {"bucket/store/cut": DATA, "bucket/store/wrong": DATA}
    s3.headers = dict.fromkeys(s3.files, ETAG)
    s3.cut_first, s3.wrong_first = {"bucket/store/cut": 2}, {"bucket/store/wrong": 2}
    store = S3ObjectStore("s3://bucket/store")
    assert (store.read("cut"), store.read("wrong")) == (DATA, DATA)
    assert [s3.asked[name] for name in s3.files] == [3, 3]


@pytest.mark.parametrize("fault", ["cut_first", "wrong_first"])
def test_an_object_that_never_arrives_whole_is_a_retryable_error(s3: Site, fault: str) -> None:
    name = "bucket/store/a"
    s3.files, s3.headers = {name: DATA}, {name: ETAG}
    setattr(s3, fault, {name: 99})
    with pytest.raises(StoreUnreachableError):
        S3ObjectStore("s3://bucket/store").read("a")
    assert s3.asked[name] == READ_ATTEMPTS


def test_what_passes_by_itself_is_told_apart_from_what_a_person_must_fix(s3: Site) -> None:
    answers = {
        "busy": (503, b"<Error><Code>ServiceUnavailable</Code></Error>"), "page": (503, b"<html>busy</html>"), "limit": (429, b""),
        "expired": (400, b"<Error><Code>ExpiredToken</Code></Error>"), "denied": (403, b"<Error><Code>AccessDenied</Code></Error>"),
    }  # fmt: skip
    s3.status = {f"bucket/store/{name}": status for name, (status, _) in answers.items()}
    s3.bodies = {f"bucket/store/{name}": body for name, (_, body) in answers.items()}
    store = S3ObjectStore("s3://bucket/store")
    found = {name: store_error(store, name) for name in answers}
    assert {name for name, (kind, _) in found.items() if kind is StoreUnreachableError} == {"busy", "page", "limit"}
    assert {name for name, (_, retryable) in found.items() if retryable} == {"busy", "page", "limit"}


@pytest.mark.parametrize(("code", "retryable"), [("SlowDown", True), ("InternalError", True), ("AccessDenied", False)])
def test_objects_that_s3_does_not_delete(s3: Site, code: str, retryable: bool) -> None:
    s3.files["bucket?delete"] = f"<DeleteResult><Error><Key>store/a</Key><Code>{code}</Code></Error></DeleteResult>".encode()
    with pytest.raises(StoreError) as caught:
        S3ObjectStore("s3://bucket/store").delete("a")
    assert caught.value.retryable is retryable


def test_an_answer_that_is_not_s3s_is_a_retryable_error(s3: Site) -> None:
    s3.files["bucket?list-type=2&prefix=store/a/&encoding-type=url"] = b"<ListBucketResult><Conte"
    with pytest.raises(StoreUnreachableError):
        list(S3ObjectStore("s3://bucket/store").objects("a/"))

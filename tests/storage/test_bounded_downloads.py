"""Limits of downloads: redirects, packed bodies, slow servers and long pauses obey the same bounds as everything else."""

from __future__ import annotations

import gzip
import logging
import time
import zlib

import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.bounded_http_body import RATIO_FREE, TimeLimits, decode_body, unpacked_limit
from animl_pipeline.storage.http_connection_pool import ConnectionPool
from animl_pipeline.storage.read_remote_files import HttpFolder, ReadLimits, RemoteError, read_path_or_url
from animl_pipeline.storage.redirects import MAX_REDIRECTS, Nearness, nearness, redirect_target, refuse_nearer
from tests.support.web_server import served

LIMITS = ReadLimits(1_000_000, TimeLimits(silence_s=5, deadline_s=30))
HASTY = ReadLimits(1_000_000, TimeLimits(silence_s=0.3, deadline_s=0.6))


def refused(folder: HttpFolder, name: str) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        folder.read_once(name)
    return caught.value


def test_a_redirect_obeys_the_limits_of_the_first_request() -> None:
    big = bytes(LIMITS.bytes + 1)
    with served({"big": big, "small": b"data"}) as site:
        site.elsewhere = {"a": "b", "b": "small", "c": "big", "circle": "circle"}
        site.bodies["a"] = big  # of the redirect itself
        folder = HttpFolder(site.address, LIMITS)
        assert folder.read_once("a").data == b"data"
        assert refused(folder, "c").reason == "too_large"
        error = refused(folder, "circle")
        assert (error.reason, error.retryable, site.asked["circle"]) == ("refused", False, MAX_REDIRECTS + 1)


def test_a_redirect_to_another_host_is_followed_without_the_password_of_the_first() -> None:
    with served({"b": b"data"}) as other, served({"a": b""}) as site:
        site.elsewhere["a"] = f"{other.address}/b"
        assert HttpFolder(site.address.replace("://", "://ranger:owl@"), LIMITS).read_once("a").data == b"data"
        assert (other.said["Authorization"], site.said["Authorization"] - {None} != set()) == ({None}, True)


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/a", "http://10.0.0.1/a", "http://localhost/a"])
def test_a_public_host_cannot_redirect_into_this_network(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    with served({}) as proxy:  # as a proxy, it answers for a host on the internet
        monkeypatch.setenv("http_proxy", proxy.address)
        proxy.elsewhere["http://images.example.org/a"] = target
        error = refused(HttpFolder("http://images.example.org", LIMITS), "a")
        assert (error.reason, error.retryable, proxy.asked.total()) == ("refused", False, 1)


def test_a_name_that_leads_to_this_machine_is_found_out_before_a_request_is_sent() -> None:
    with served({"a": b"data"}) as site:
        there = f"http://[::ffff:127.0.0.1]:{site.address.rpartition(':')[2]}/a"
        for address in (f"{site.address}/a", there):
            with pytest.raises(RemoteError) as caught:
                ConnectionPool(address, LIMITS.time, 1, farthest_in=Nearness.PRIVATE).get(address, max_bytes=100)
            assert caught.value.reason == "refused"
        assert site.asked.total() == 0


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("93.184.215.14", Nearness.PUBLIC), ("2606:4700::1", Nearness.PUBLIC), ("images.example.org", Nearness.PUBLIC),
        ("192.168.1.1", Nearness.PRIVATE), ("100.100.100.200", Nearness.PRIVATE), ("fd00:ec2::254", Nearness.PRIVATE),
        ("127.8.0.1", Nearness.LOOPBACK), ("0.0.0.0", Nearness.LOOPBACK), ("::1", Nearness.LOOPBACK), ("localhost.", Nearness.LOOPBACK),
        ("169.254.169.254", Nearness.LINK_LOCAL), ("fe80::1%eth0", Nearness.LINK_LOCAL), ("::ffff:169.254.169.254", Nearness.LINK_LOCAL),
        ("64:ff9b::a9fe:a9fe", Nearness.LINK_LOCAL), ("2002:7f00:1::", Nearness.LOOPBACK), ("168.63.129.16", Nearness.LINK_LOCAL),
    ],
)  # fmt: skip
def test_how_near_an_address_is(host: str, expected: Nearness) -> None:
    assert nearness(host) == expected
    refuse_nearer(host, expected, expected)
    if expected > Nearness.PUBLIC:
        with pytest.raises(RemoteError):
            refuse_nearer(host, expected, Nearness(expected - 1))


def test_https_never_redirects_to_http() -> None:
    assert redirect_target("https://a.org/x?k=1", "../y") == "https://a.org/y"
    assert redirect_target("http://a.org/x", "https://u:p@b.org:8443/y#z") == "https://b.org:8443/y"
    for address, location in [
        ("https://a.org/x", "http://a.org/x"), ("http://a.org/x", "file:///etc/passwd"), ("http://a.org/x", "http://[/"),
        ("http://a.org/x", "http://b.org:99999/"), ("http://a.org/x", "ftp://b.org/x"),
    ]:  # fmt: skip
        with pytest.raises(RemoteError) as caught:
            redirect_target(address, location)
        assert (caught.value.reason, caught.value.retryable) == ("refused", False)


def test_a_packed_body_unpacks_within_the_limit() -> None:
    packed = gzip.compress(b"data") + gzip.compress(b" more")
    with served({"a": packed, "bomb": gzip.compress(bytes(LIMITS.bytes + 1)), "cut": packed[:-9], "br": b"x"}) as site:
        site.headers = {name: {"Content-Encoding": "br" if name == "br" else "gzip"} for name in site.files}
        folder = HttpFolder(site.address, LIMITS)
        assert folder.read_once("a").data == b"data more"
        reasons = {name: refused(folder, name).reason for name in ("bomb", "cut", "br")}
    assert reasons == {"bomb": "too_large", "cut": "truncated", "br": "refused"}
    assert decode_body(zlib.compress(b"data"), "deflate", "a", 10) == b"data"
    assert (unpacked_limit(10, 10**12), unpacked_limit(10**6, 10**12), unpacked_limit(10**9, 10**10)) == (RATIO_FREE, 250 * 10**6, 10**10)


@pytest.mark.parametrize("name", ["body", "redirected", "header"])
def test_an_answer_that_comes_byte_by_byte_ends_in_time(name: str) -> None:
    with served({"body": bytes(5000), "header": b""}) as site:
        site.sent_slowly, site.slow_header, site.elsewhere = {"body"}, {"header"}, {"redirected": "body"}
        started = time.monotonic()
        error = refused(HttpFolder(site.address, HASTY), name)
        assert (error.reason, error.retryable) == ("timed_out", True)
        assert time.monotonic() - started < 5


def test_a_file_larger_than_the_setting_is_not_read(settings: Settings) -> None:
    small = settings.model_copy(update={"max_download_mb": 1})
    with served({"export.json": bytes(1_000_001)}) as site:
        with pytest.raises(RemoteError) as caught:
            read_path_or_url(f"{site.address}/export.json", small)
        assert len(read_path_or_url(f"{site.address}/export.json", settings)) == 1_000_001
    assert (caught.value.reason, caught.value.retryable) == ("too_large", False)


def test_a_server_that_asks_to_wait_an_hour_is_not_waited_for(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with served({"a": b"data"}) as site:
        site.fail_first, site.headers = {"a": 1}, {"a": {"Retry-After": "3600"}}
        with pytest.raises(RemoteError) as caught:
            read_path_or_url(f"{site.address}/a", settings)
        assert (caught.value.reason, caught.value.retryable, caught.value.retry_after_s) == ("unreachable", True, 3600)
        assert site.asked["a"] == 1


def test_a_pause_that_a_person_notices_is_logged(settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("animl_pipeline.storage.read_remote_files.LONG_PAUSE_S", 1)
    with served({"a": b"data"}) as site, caplog.at_level(logging.WARNING):
        site.fail_first, site.headers = {"a": 1}, {"a": {"Retry-After": "1"}}
        assert read_path_or_url(f"{site.address}/a", settings) == b"data"
    assert [record.levelname for record in caplog.records] == ["WARNING"]

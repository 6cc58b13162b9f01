"""Bytes below an https address."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import cached_property
from urllib.parse import quote

import requests

from animl_pipeline.remote.answers import Fetched, RemoteError, bare_address, patiently, refusal, safe_name
from animl_pipeline.remote.door import Door, Reply, wished_pause

_ELSEWHERE = frozenset({301, 302, 303, 307, 308})


class Web:
    """Files below an https address."""

    def __init__(self, base: str, timeout_s: float, connections: int = 1) -> None:
        base, asks, query = base.partition("?")
        self.base = base.rstrip("/")
        self._query = asks + query  # such as a signature that holds for all that lies below
        self.timeout_s = timeout_s
        self.connections = connections

    def get(self, name: str) -> bytes:
        return patiently(lambda: self.once(name)).data

    def get_address(self, address: str) -> bytes:
        """The bytes at a full address of the same host."""
        return patiently(lambda: self._ask(address, None)).data

    def once(self, name: str, at_most: int | None = None) -> Fetched:
        return self._ask(f"{self.base}/{quote(safe_name(name))}{self._query}", at_most)

    def _ask(self, address: str, at_most: int | None) -> Fetched:
        reply = self._door.get(address, at_most=at_most)
        if reply.status in _ELSEWHERE:
            reply = self._follow(address)
        if reply.status != requests.codes.ok:
            raise refusal(reply.status, bare_address(address), wished_pause(reply.headers))
        if at_most is not None and len(reply.data) > at_most:
            raise RemoteError("too_large", f"{bare_address(address)} has {len(reply.data):,} bytes; at most {at_most:,} are read")
        return Fetched(reply.data, said_md5(reply.headers))

    def _follow(self, address: str) -> Reply:
        """The answer to a GET where redirects lead."""
        where = bare_address(address)
        try:
            answer = requests.get(address, timeout=self.timeout_s, headers={"Accept-Encoding": "identity"})
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as e:
            raise RemoteError("refused", f"{where} leads to what is no address") from e
        except requests.RequestException as e:
            offline = isinstance(e, requests.ConnectionError)
            raise RemoteError("unreachable", f"{where} leads elsewhere: {type(e).__name__}", heals=True, offline=offline) from e
        return Reply(answer.status_code, answer.headers, answer.content)

    @cached_property
    def _door(self) -> Door:
        return Door(self.base, self.timeout_s, self.connections)


def said_md5(headers: Mapping[str, str]) -> str | None:
    """The md5 that a server says of what it sent, as hexadecimal: Content-MD5 (Azure), x-goog-hash (Google), S3's ETag.

    S3's ETag is an md5 for objects sent in one piece that are not encrypted with a key of KMS or of the customer.
    """
    for text in (headers.get("Content-MD5", ""), *(p.strip()[4:] for p in headers.get("x-goog-hash", "").split(",") if p.strip().startswith("md5="))):
        try:
            digest = base64.b64decode(text, validate=True).hex()
        except (binascii.Error, ValueError):
            continue
        if len(digest) == 32:
            return digest
    if "x-amz-request-id" not in headers or "kms" in headers.get("x-amz-server-side-encryption", ""):
        return None
    etag = headers.get("ETag", "").strip('"').lower()
    sealed = "x-amz-server-side-encryption-customer-algorithm" in headers
    return etag if len(etag) == 32 and not sealed and set(etag) <= set("0123456789abcdef") else None

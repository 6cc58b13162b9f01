"""Bytes below s3://bucket/prefix, signed with what boto3 finds, fetched without its cost for each object.

boto3 says once where the bucket is and who we are; requests are then signed by botocore and sent through one pool of
connections, which takes a third of the CPU that ``get_object`` takes.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING
from urllib.parse import quote

import requests

from animl_pipeline.remote.answers import Fetched, RemoteError, patiently, refusal, safe_name
from animl_pipeline.remote.door import Door, Reply, wished_pause
from animl_pipeline.remote.web import said_md5

if TYPE_CHECKING:
    from botocore.credentials import Credentials

NOT_US = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired"})
"""S3's words for credentials that are at fault, whatever is asked for: another run, with others, may succeed."""

_CODE = re.compile(rb"<Code>([A-Za-z0-9]+)</Code>")


class Bucket:
    """Objects below s3://bucket/prefix; boto3 finds region, credentials and address in its usual variables."""

    def __init__(self, base: str, connections: int, timeout_s: float) -> None:
        self.bucket, _, prefix = base.rstrip("/").removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.connections = connections
        self.timeout_s = timeout_s
        self._opening = threading.Lock()
        self._way: _Way | None = None

    def get(self, name: str) -> bytes:
        return patiently(lambda: self.once(name)).data

    def once(self, name: str, at_most: int | None = None) -> Fetched:
        key = self.prefix + safe_name(name)
        where = f"s3://{self.bucket}/{key}"
        way = self._open()
        reply = way.get(key, at_most)
        region = reply.headers.get("x-amz-bucket-region", "")
        if reply.status in {301, 307, 400} and region and region != way.region:
            reply = self._open(region).get(key, at_most)
        if reply.status == requests.codes.ok:
            return Fetched(reply.data, said_md5(reply.headers))
        raise _refused(reply, where)

    def _open(self, region: str | None = None) -> _Way:
        """The way to the bucket, found at first use; anew where S3 names another region."""
        way = self._way
        if way is not None and region in {None, way.region}:
            return way
        with self._opening:
            if self._way is None or region not in {None, self._way.region}:
                self._way = _find_way(self.bucket, region, self.connections, self.timeout_s)
            return self._way


class _Way:
    """Where a bucket is, and who asks: signed requests through one door."""

    def __init__(self, address: str, region: str, credentials: Credentials | None, door: Door) -> None:
        self.address = address
        self.region = region
        self._credentials = credentials
        self._door = door

    def get(self, key: str, at_most: int | None) -> Reply:
        address = self.address + quote(key, safe="/~")
        return self._door.get(address, self._signed(address), at_most)

    def _signed(self, address: str) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        if self._credentials is None:
            return {}
        request = AWSRequest("GET", address)
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)  # frozen anew each time: they expire
        return dict(request.headers.items())


def _find_way(bucket: str, region: str | None, connections: int, timeout_s: float) -> _Way:
    """Ask boto3 for the bucket's address and our credentials; public data is asked for unsigned where there are none.

    Raises:
        RemoteError: ``refused``: boto3 cannot tell, or there is no such name for a bucket.
    """
    import boto3
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    try:
        core = botocore.session.get_session()
        session = boto3.Session(botocore_session=core)
        credentials = session.get_credentials()
        client = session.client("s3", region_name=region, config=Config(signature_version="s3v4" if credentials else UNSIGNED))
        probe = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
        address = probe.partition("?")[0].removesuffix("k")
        bundle = core.get_config_variable("ca_bundle")
    except (BotoCoreError, ValueError) as e:
        raise RemoteError("refused", f"s3://{bucket}: {e}") from e
    return _Way(address, client.meta.region_name, credentials, Door(address, timeout_s, connections, bundle))


def _refused(reply: Reply, where: str) -> RemoteError:
    """What S3's answer says, with its code where there is one."""
    found = _CODE.search(reply.data)
    code = found[1].decode() if found else ""
    where = f"{where} ({code})" if code else where
    if code in NOT_US:
        return RemoteError("forbidden", f"{where}: S3 does not take our credentials ({reply.status})", heals=True, offline=True)
    return refusal(reply.status, where, wished_pause(reply.headers))

"""Which remote an address or path means."""

from __future__ import annotations

from animl_pipeline.plan.lila import LILA, lila_images
from animl_pipeline.remote.answers import Remote
from animl_pipeline.remote.bucket import Bucket
from animl_pipeline.remote.folder import Folder
from animl_pipeline.remote.web import Web
from animl_pipeline.settings import Settings


def remote_at(base: str, settings: Settings) -> Remote:
    """The base that an address or path names; ``lila://<set>`` means that set's pictures at the mirror of the settings."""
    if base.startswith(LILA):
        base = lila_images(base, settings.lila)
    if base.startswith("s3://"):
        return Bucket(base, settings.connections, settings.timeout_s)
    if base.startswith(("https://", "http://")):
        return Web(base, settings.timeout_s, settings.connections)
    return Folder(settings.data_path(base))


def read_address(address: str, settings: Settings) -> bytes:
    """The bytes at one full address: a path, https://… or s3://bucket/key.

    Raises:
        RemoteError: as :meth:`Remote.get`.
    """
    if "://" not in address:
        path = settings.data_path(address)
        return Folder(path.parent).get(path.name)
    base, _, name = address.rpartition("/")
    if base.startswith("s3://"):
        return remote_at(base, settings).get(name)
    return Web(base, settings.timeout_s).get_address(address)

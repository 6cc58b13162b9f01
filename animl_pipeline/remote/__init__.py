"""Bytes from where others keep them: a folder, an https base address, an S3 bucket. Retried where that can heal.

Names below a base come from exports and are not to be trusted: a name that would leave its base is refused.
"""

from animl_pipeline.remote.answers import ATTEMPTS, Fetched, Remote, RemoteError, bare_address, pause_s, safe_name
from animl_pipeline.remote.bucket import Bucket
from animl_pipeline.remote.folder import Folder
from animl_pipeline.remote.places import read_address, remote_at
from animl_pipeline.remote.web import Web

__all__ = [
    "ATTEMPTS",
    "Bucket",
    "Fetched",
    "Folder",
    "Remote",
    "RemoteError",
    "Web",
    "bare_address",
    "pause_s",
    "read_address",
    "remote_at",
    "safe_name",
]

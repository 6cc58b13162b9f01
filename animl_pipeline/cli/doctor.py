"""What ``animl-pipeline doctor`` looks at: this machine, its settings, and what they lead to."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from animl_pipeline.cli.prefect_server import check_server, load_prefect, server_address
from animl_pipeline.config.settings import Settings, tell_libraries, without_secrets
from animl_pipeline.core.errors import PipelineError
from animl_pipeline.integrations.weights import KnownWeights, fetch_known, registry
from animl_pipeline.steps.detections.ultralytics_checkpoint import import_ultralytics
from animl_pipeline.storage.step_cache import open_store

NEEDED_GB = 5
"""Free disk below which a run of a few thousand pictures may end early."""
SERVER_ANSWERS_WITHIN_S = 5


class Check(NamedTuple):
    """One thing looked at."""

    what: str
    state: Literal["good", "note", "fault"]
    found: str

    @property
    def mark(self) -> str:
        """A sign for the terminal."""
        return {"good": "ok   ", "note": "note ", "fault": "FAULT"}[self.state]


def examined(settings: Settings) -> Iterator[Check]:
    """Every check in turn; none raises."""
    yield Check("python", "good" if sys.version_info >= (3, 11) else "fault", sys.version.split()[0] + " (3.11 or newer is needed)")
    tell_libraries(ORT_DISABLE_TELEMETRY="1")  # read at onnxruntime's import
    for name in ("torch", "torchvision", "lightning", "timm", "yolox", "ultralytics", "onnxruntime", "prefect"):
        yield _package(name, settings)
    yield _checked("store", lambda: _store(settings))
    yield _disk(settings)
    for weights in (w for w in registry() if w.package):
        yield _checked("weights", lambda w=weights: _weights(w, settings))  # type: ignore[misc]
    yield _animl(settings)
    yield _aws(settings)
    yield asked_server()


def _animl(settings: Settings) -> Check:
    if not settings.api_url:
        return Check("animl", "note", "ANIML_API_URL is not set; needed only where a plan's export is animl://<project>")
    if settings.id_token.get_secret_value():
        return Check("animl", "good", f"{settings.api_url}, with ANIML_ID_TOKEN (it lives for about an hour)")
    if not (settings.user and settings.password.get_secret_value() and settings.cognito_pool and settings.cognito_client):
        wanted = "ANIML_ID_TOKEN, or all of ANIML_USER, ANIML_PASSWORD, ANIML_COGNITO_POOL and ANIML_COGNITO_CLIENT"
        return Check("animl", "fault", f"{settings.api_url}, but nobody to ask as: set {wanted}")
    if importlib.util.find_spec("pycognito") is None:
        return Check("animl", "fault", "signing in with ANIML_USER needs pycognito: pip install 'animl-pipeline[cognito]'")
    return Check("animl", "good", f"{settings.api_url}, as {settings.user}")


def _package(name: str, settings: Settings) -> Check:
    try:
        if name == "ultralytics":  # imported as the detections import it, else it greets, and keeps settings of its own at home
            import_ultralytics(settings)
        if name == "prefect":  # which reads its settings then
            load_prefect()
        module = importlib.import_module(name)
    except PipelineError as e:
        return Check(name, "fault", str(e))
    except ImportError as e:
        hint = " (on Debian: apt-get install libgl1 libglib2.0-0)" if "libGL" in str(e) or "libgthread" in str(e) else " (run make install)"
        return Check(name, "fault", f"{e}{hint}")
    return Check(name, "good", str(getattr(module, "__version__", "installed")))


def _checked(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, "good", look())
    except PipelineError as e:
        return Check(what, "fault", str(e))


def _weights(known: KnownWeights, settings: Settings) -> str:
    key = "train.weights" if known.for_ == "train" else "detections.detector"
    return f"{known.name} in {fetch_known(known, settings, key=key)} ({known.licence})"


def _store(settings: Settings) -> str:
    store = open_store(settings)
    store.object_store.put("doctor.txt", b"written by animl-pipeline doctor\n")
    store.object_store.delete("doctor.txt")
    return f"{store.object_store} can be written"


def _disk(settings: Settings) -> Check:
    wanted = Path(tempfile.gettempdir()) if settings.store.startswith("s3://") else Path(settings.store).expanduser().resolve()
    location, free = next(_free_gb(wanted))
    return Check("disk", "good" if free >= NEEDED_GB else "note", f"{free:.0f} GB free at {location}")


def _free_gb(wanted: Path) -> Iterator[tuple[Path, float]]:
    """A folder and its parents, nearest first, with the free disk there; what is not there, no folder or closed to us is passed over."""
    for folder in (wanted, *wanted.parents):
        with suppress(OSError):
            if folder.is_dir():
                yield folder, shutil.disk_usage(folder).free / 1e9


def _aws(settings: Settings) -> Check:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        credentials = boto3.Session().get_credentials()
    except BotoCoreError as e:
        return Check("aws", "fault", f"{e}; mend AWS_PROFILE and the files that it names")
    if credentials is None:
        return Check("aws", "note", "no credentials; retrain works on local and public data, release needs them (aws configure, or a role)")
    lacking = [f"ANIML_{n.upper()}" for n in ("role_arn", "endpoint_image") if not getattr(settings, n)]
    if lacking:
        return Check("aws", "note", f"credentials found; release on AWS also needs {' and '.join(lacking)}")
    return Check("aws", "good", f"credentials, role and image are set; packages go to s3://{settings.models_bucket}")


def asked_server() -> Check:
    """Whether the Prefect server that is set answers, and lets us in."""
    try:
        address = server_address()
        if address is None:
            return Check("server", "note", "no PREFECT_API_URL: an embedded Prefect server runs for as long as a command")
        check_server(SERVER_ANSWERS_WITHIN_S)
    except PipelineError as e:
        return Check("server", "fault", str(e))
    return Check("server", "good", without_secrets(address))

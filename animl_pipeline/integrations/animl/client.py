"""One project of Animl, asked over GraphQL. Retried where that can heal; nothing secret in any message.

What does not come is a :class:`RemoteError` with a word to count by: ``timed_out`` (Animl answers within 30 s or not at
all), ``unreachable``, ``forbidden`` (an address that is dead), ``refused``. What a person must mend is a SettingsError.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import requests
from pydantic import Field, SecretStr, ValidationError
from requests.auth import AuthBase
from tenacity import Retrying, retry_if_exception, retry_if_result, stop_after_attempt, stop_after_delay, wait_exponential, wait_exponential_jitter

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.records import Record
from animl_pipeline.integrations.animl import queries
from animl_pipeline.integrations.animl.queries import ImageFilters
from animl_pipeline.integrations.animl.redact_urls import hide_signatures
from animl_pipeline.integrations.animl.sign_in import Access
from animl_pipeline.storage.remote_files import RemoteError

log = logging.getLogger(__name__)

ATTEMPTS = 5
LONGEST_PAUSE_S = 30.0
UNKNOWN_USER = {"UNAUTHENTICATED", "UNAUTHORIZED"}


class ExportTask(Record):
    """How an export ended: COMPLETE with an address that dies after an hour and a number of images, or FAIL with a reason."""

    status: str
    url: SecretStr = Field(default=SecretStr(""), description="whoever has it can read the export")
    count: int = 0
    error: str = ""


class CameraDeployment(Record):
    """A camera at a place for a time. ``deployment`` is the name that an export gives it."""

    deployment: str
    camera: str
    started: datetime | None
    lat: float
    lon: float


class _Bearer(AuthBase):
    """Sends the ID token (as requests' own auth, so that a .netrc cannot put another in its place)."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._access.token().get_secret_value()}"
        return request


class AnimlClient:
    """A project, asked as the user that the settings name.

    Raises:
        SettingsError: from any call: where Animl is, or as whom to ask, is not said or not right.
    """

    def __init__(self, project: str, settings: Settings) -> None:
        self.project = project
        self._address = _checked_address(settings.api_url)
        self._settings = settings
        self._access = Access(settings)
        self._api = requests.Session()
        self._files = requests.Session()  # addresses are signed already; S3 refuses a second kind of authorisation
        hide_signatures()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()
        self._files.close()

    def count(self, filters: ImageFilters) -> int:
        """How many images fit, now.

        Raises:
            RemoteError: ``timed_out`` when the question is too hard to be answered within Animl's 30 s.
        """
        with self._in_form():
            count = int(self._ask(queries.COUNT, {"input": {"filters": filters.as_input()}}, hard=True)["imagesCount"]["count"])
            if count < 0:
                raise ValueError(count)
            return count

    def begin_export(self, filters: ImageFilters) -> str:
        """Ask for an export of annotations in COCO for Camera Traps; its task's id comes back."""
        wanted = {
            "format": "coco",
            "timezone": "UTC",
            "filters": filters.as_input(),
            "onlyIncludeReviewed": filters.only_reviewed,
            "aggregateObjects": False,
        }
        with self._in_form():
            return str(self._ask(queries.EXPORT, {"input": wanted})["exportAnnotations"]["_id"])

    def outcome(self, task: str, within_s: float) -> ExportTask:
        """What became of an export, looked at with growing pauses.

        Raises:
            RemoteError: ``timed_out`` when it has not ended within ``within_s`` seconds.
        """
        pauses = wait_exponential(multiplier=self._settings.poll_s, exp_base=1.5, max=max(LONGEST_PAUSE_S, self._settings.poll_s))
        unfinished = retry_if_result(lambda found: found.status not in {"COMPLETE", "FAIL"})
        look = Retrying(retry=unfinished, wait=pauses, stop=stop_after_delay(within_s), retry_error_callback=lambda state: state.outcome.result())  # type: ignore[union-attr] # it has an outcome: that is why it stops
        found: ExportTask = look(self._look, task)
        if found.status not in {"COMPLETE", "FAIL"}:
            raise RemoteError("timed_out", f"the export {task} was still {found.status} after {within_s:.0f} s", retryable=True)
        return found

    def _look(self, task: str) -> ExportTask:
        with self._in_form():
            found = self._ask(queries.TASK, {"input": {"taskId": task}})["task"]
            output = found.get("output") or {}
            error = self._access.scrubbed(str(output.get("error") or ""))
            return ExportTask(
                status=str(found["status"]), url=SecretStr(str(output.get("url") or "")), count=int(output.get("count") or 0), error=error
            )

    def download(self, url: SecretStr, path: Path) -> None:
        """Write what lies at an export's address to ``path``, whole.

        Raises:
            RemoteError: ``forbidden`` when the address is dead, else as the other calls.
        """
        _patiently(lambda: self._download_once(url, path), self._settings.poll_s)

    def _download_once(self, url: SecretStr, path: Path) -> None:
        try:
            with self._files.get(url.get_secret_value(), stream=True, timeout=self._settings.timeout_s) as answer:
                if answer.status_code in {400, 401, 403, 404, 410}:
                    raise RemoteError("forbidden", f"the export's address is dead ({answer.status_code})")
                _check_status(answer.status_code, "the export's address")
                with path.open("wb") as f:
                    for chunk in answer.iter_content(1 << 20):
                        f.write(chunk)
        except (requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL):
            raise RemoteError("failed", "Animl says that the export is complete, but names no address at which it could lie") from None
        except requests.RequestException as e:  # also a body that ended early
            raise RemoteError("unreachable", f"the export did not arrive: {type(e).__name__}", retryable=True) from None

    def deployments(self) -> list[CameraDeployment]:
        """Where the project's cameras stood, those without coordinates left out."""
        with self._in_form():
            projects = self._ask(queries.LOCATIONS, {"input": {"_ids": [self.project]}})["projects"] or []
            found = [p for p in projects if p.get("_id") == self.project]
            if not found:
                raise RemoteError("refused", f"expected the project {self.project!r}, Animl shows {len(projects)} others to this user")
            cameras = found[0].get("cameraConfigs") or []
            return [d for camera in cameras for raw in camera.get("deployments") or [] if (d := _deployment(camera["_id"], raw)) is not None]

    def ml_model(self, model_id: str) -> dict[str, Any] | None:
        """Animl's document of a model (_id, version, defaultConfThreshold, categories, …), None where it has none."""
        with self._in_form():
            known = self._ask(queries.ML_MODELS, {"input": {"_ids": [model_id]}})["mlModels"] or []
            return next((dict(m) for m in known if m.get("_id") == model_id), None)

    def automation_rules(self) -> list[dict[str, Any]]:
        """The project's automation rules with every field that Animl's API knows, as it takes them back."""
        with self._in_form():
            projects = self._ask(queries.RULES, {"input": {"_ids": [self.project]}})["projects"] or []
            rules = next((p.get("automationRules") or [] for p in projects if p.get("_id") == self.project), [])
            return [without_nulls(rule) for rule in rules]

    def replace_automation_rules(self, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Replace ALL of the project's automation rules; what Animl then holds comes back. Managers only."""
        with self._in_form():
            answer = self._ask(queries.REPLACE_RULES, {"input": {"automationRules": rules}}, once=True)["updateAutomationRules"]
            return [without_nulls(rule) for rule in answer["automationRules"] or []]

    @contextmanager
    def _in_form(self) -> Iterator[None]:
        """Say in one line that an answer is in another form than Animl's, whichever part of it is.

        Raises:
            RemoteError: ``refused``.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            raise RemoteError("refused", f"{self._address} answered in a form that is not Animl's; check ANIML_API_URL") from None

    def _ask(self, query: str, variables: dict[str, Any], *, hard: bool = False, once: bool = False) -> dict[str, Any]:
        """The answer's data. A ``hard`` question that times out is not asked again: it would time out again; a change is asked for ``once``."""
        if once:
            return self._signed_in_ask(query, variables)
        answer: dict[str, Any] = _patiently(lambda: self._signed_in_ask(query, variables), self._settings.poll_s, but="timed_out" if hard else "")
        return answer

    def _signed_in_ask(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """One question; a token that ran out is renewed once."""
        answer = self._post(query, variables)
        if _is_unknown_user(answer):
            self._access.renew()
            answer = self._post(query, variables)
        return self._data(answer)

    def _post(self, query: str, variables: dict[str, Any]) -> requests.Response:
        signed = _Bearer(self._access)
        try:
            return self._api.post(
                self._address,
                json={"query": query, "variables": variables},
                headers={"x-selected-project": self.project},
                auth=signed,
                timeout=self._settings.timeout_s,
                allow_redirects=False,
            )
        except requests.ConnectTimeout:
            raise RemoteError("unreachable", f"{self._address} does not answer", retryable=True) from None
        except requests.Timeout:
            raise RemoteError("timed_out", f"{self._address} gave no answer within {self._settings.timeout_s:.0f} s", retryable=True) from None
        except requests.RequestException as e:
            raise RemoteError("unreachable", f"{self._address}: {type(e).__name__}", retryable=True) from None

    def _data(self, answer: requests.Response) -> dict[str, Any]:
        """What was asked for, or why it is not there."""
        status, where = answer.status_code, self._address
        if _is_unknown_user(answer):
            raise SettingsError(f"{where} does not accept a token that is new; check that ANIML_COGNITO_POOL and ANIML_COGNITO_CLIENT are its own")
        if status == 403 or "FORBIDDEN" in _codes(answer):
            raise SettingsError(
                f"Animl does not let this user export the project {self.project!r} or change its rules; the user must be a member of it "
                "(for rules: a manager); check ANIML_USER "
                "(or whose ANIML_ID_TOKEN it is), ANIML_API_URL, and the project's id in sources.export of the plan"
            )
        if status in {404, 405} or 300 <= status < 400:
            raise SettingsError(f"expected Animl's GraphQL at {where}, the server answered {status}; ANIML_API_URL must end in /external")
        errors = _errors(answer)
        if errors and status < 500:
            said = self._access.scrubbed(str(errors[0].get("message", "")))
            slow = "timed out" in said.lower()
            raise RemoteError("timed_out" if slow else "refused", f"Animl: {said}", retryable=slow)
        _check_status(status, where)
        return dict(answer.json()["data"])


def without_nulls(value: Any) -> Any:
    """A GraphQL answer without what is not set, so that it can be sent back as input."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def _checked_address(address: str) -> str:
    if not address:
        raise SettingsError("a source says animl://…, but not where Animl is: set ANIML_API_URL to its GraphQL address, https://…/external")
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as e:
        raise SettingsError(f"ANIML_API_URL: expected https://…/external, found what is no address ({e})") from None
    local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if not parts.hostname or parts.scheme not in ({"http", "https"} if local else {"https"}):
        raise SettingsError(f"ANIML_API_URL: expected https://…/external, found {parts.scheme or 'no scheme'}; a token goes over https only")
    if parts.username or parts.password or parts.query:
        raise SettingsError("ANIML_API_URL holds a user, a password or a query; it must be an address alone, secrets have their own settings")
    return address.rstrip("/")


def _patiently(call: Any, pause_s: float, but: str = "") -> Any:
    """Try again what can heal, with growing pauses."""
    again = retry_if_exception(lambda e: isinstance(e, RemoteError) and e.retryable and e.reason != but)
    pauses = wait_exponential_jitter(initial=min(0.5, pause_s), max=10, jitter=min(1.0, pause_s))
    return Retrying(retry=again, stop=stop_after_attempt(ATTEMPTS), wait=pauses, reraise=True)(call)


def _check_status(status: int, where: str) -> None:
    if status == 504:
        raise RemoteError("timed_out", f"{where}: the server answered 504, it took too long", retryable=True)
    if status in {408, 429} or status >= 500:
        raise RemoteError("unreachable", f"{where}: the server answered {status}", retryable=True)
    if status != requests.codes.ok:
        raise RemoteError("refused", f"{where}: the server answered {status}")


def _errors(answer: requests.Response) -> list[dict[str, Any]]:
    """GraphQL's errors, which come with status 200, too."""
    try:
        body = answer.json()
    except ValueError:
        return []
    errors = body.get("errors") if isinstance(body, dict) else None
    return [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []


def _codes(answer: requests.Response) -> set[str]:
    return {str((e.get("extensions") or {}).get("code")) for e in _errors(answer)}


def _is_unknown_user(answer: requests.Response) -> bool:
    return answer.status_code == 401 or bool(_codes(answer) & UNKNOWN_USER)


def _deployment(camera: str, raw: dict[str, Any] | None) -> CameraDeployment | None:
    """A deployment with a name and coordinates; 0, 0 is what stands where nobody entered any. GeoJSON says longitude first."""
    if not raw or not raw.get("name"):
        return None
    coordinates = ((raw.get("location") or {}).get("geometry") or {}).get("coordinates") or []
    if len(coordinates) < 2 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in coordinates[:2]):
        return None
    lon, lat = float(coordinates[0]), float(coordinates[1])
    if (lat, lon) == (0, 0) or not (abs(lat) <= 90 and abs(lon) <= 180):
        return None
    deployment = f"{camera}-default" if raw["name"] == "default" else str(raw["name"])
    try:
        return CameraDeployment(deployment=deployment, camera=camera, started=raw.get("startDate"), lat=lat, lon=lon)
    except ValidationError:
        return CameraDeployment(deployment=deployment, camera=camera, started=None, lat=lat, lon=lon)

"""A client of Animl's GraphQL API for one project. It retries where another try may help; no message holds a secret.

Calls raise RemoteError with a reason: ``timed_out`` (Animl answers within 30 s or not at all), ``unreachable``, ``forbidden``
(the address of an export has expired), ``not_found`` (Animl does not know a task), ``refused``, or ``failed``. What a person
must fix is a SettingsError.
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import requests
from pydantic import Field, SecretStr
from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception,
    retry_if_result,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_exponential_jitter,
)

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.integrations.animl import queries
from animl_pipeline.integrations.animl.camera_deployments import CameraDeployment, parse_deployment
from animl_pipeline.integrations.animl.errors_in_answers import check_status, codes, graphql_errors, json_body, post_query, reason_in, token_refused
from animl_pipeline.integrations.animl.names_of_ids import ProjectNames
from animl_pipeline.integrations.animl.queries import ImageFilters
from animl_pipeline.integrations.animl.sign_in import SignIn, check_api_url, redact_urllib3_logs
from animl_pipeline.storage.read_remote_files import RemoteError

T = TypeVar("T")
ATTEMPTS = 5
MAX_POLL_PAUSE_S = 30.0
ENDED = {"COMPLETE", "FAIL"}
EXPIRED_STATUS = {400, 401, 403, 404, 410}
"""What S3 answers for a presigned address that has expired."""
IMAGES_PER_QUESTION = 100
"""Images whose boxes are asked for at a time."""


class ExportTask(Record):
    """How an export ended: COMPLETE with an address (valid for an hour) and a number of images, or FAIL with a reason."""

    status: str
    url: SecretStr = Field(default=SecretStr(""), description="everybody who has it can read the export")
    count: int = 0
    error: str = ""


class AnimlClient:
    """A project of Animl, as the user that the settings name sees it.

    Raises:
        SettingsError: from any call: a setting is missing or wrong, or the user may not do this.
    """

    def __init__(self, project: str, settings: Settings) -> None:
        self.project = project
        self._url = check_api_url(settings.api_url)
        self._settings = settings
        self._sign_in = SignIn(settings)
        self._project_is_known = False  # remembered by this client only: a user may lose the project later
        self._api = requests.Session()
        self._files = requests.Session()  # presigned addresses: S3 refuses a second kind of authorisation
        redact_urllib3_logs()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()
        self._files.close()

    # -- exports -----------------------------------------------------------------------------------------------------

    def count_images(self, filters: ImageFilters) -> int:
        """How many images fit the filters now.

        Animl counts 0 images for a project that it does not know, so the project is asked for first.

        Raises:
            SettingsError: ``unknown_project``: the user sees no such project.
            RemoteError: ``timed_out``: Animl needs more than its 30 s. This is not retried; it would time out again.
        """
        self.require_project()
        with self._expected_form():
            answer = self._query(queries.COUNT, {"input": {"filters": filters.as_input()}}, retry_timeouts=False)
            count = int(answer["imagesCount"]["count"])
            if count < 0:
                raise ValueError(count)
            return count

    def start_export(self, filters: ImageFilters) -> str:
        """Start an export of annotations as COCO for Camera Traps and return its task's id."""
        wanted = {
            "format": "coco",
            "timezone": "UTC",
            "filters": filters.as_input(),
            "onlyIncludeReviewed": filters.only_reviewed,
            "aggregateObjects": False,
        }
        with self._expected_form():
            return str(self._query(queries.EXPORT, {"input": wanted})["exportAnnotations"]["_id"])

    def wait_for_export(self, task_id: str, timeout_s: float) -> ExportTask:
        """The ended export. Animl is asked with growing pauses.

        Raises:
            RemoteError: ``timed_out``: it has not ended within ``timeout_s`` seconds.
        """
        pauses = wait_exponential(multiplier=self._settings.poll_s, exp_base=1.5, max=max(MAX_POLL_PAUSE_S, self._settings.poll_s))
        poll = Retrying(retry=retry_if_result(lambda task: task.status not in ENDED), wait=pauses, stop=stop_after_delay(timeout_s))
        try:
            return poll(self._export_task, task_id)
        except RetryError as e:
            status = e.last_attempt.result().status
            raise RemoteError("timed_out", f"the export {task_id} was still {status} after {timeout_s:.0f} s", retryable=True) from None

    def _export_task(self, task_id: str) -> ExportTask:
        with self._expected_form():
            task = self._query(queries.TASK, {"input": {"taskId": task_id}})["task"]
            output = task.get("output") or {}
            return ExportTask(
                status=str(task["status"]),
                url=SecretStr(str(output.get("url") or "")),
                count=int(output.get("count") or 0),
                error=self._sign_in.redact(reason_in(output.get("error"))),
            )

    def download(self, url: SecretStr, path: Path) -> None:
        """Write the complete file at an export's address to ``path``.

        Raises:
            RemoteError: ``forbidden``: the address has expired; ``failed``: Animl gave no address.
        """
        _retry(lambda: self._download_once(url, path), self._settings.poll_s)

    def _download_once(self, url: SecretStr, path: Path) -> None:
        try:
            with self._files.get(url.get_secret_value(), stream=True, timeout=self._settings.timeout_s) as response:
                if response.status_code in EXPIRED_STATUS:
                    raise RemoteError("forbidden", f"the export's address has expired ({response.status_code})")
                check_status(response.status_code, "the export's address")
                self._write_bounded(response, path)
        except (requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL):
            raise RemoteError("failed", "Animl says that the export is complete, but gives no valid address for it") from None
        except requests.RequestException as e:  # also a body that ended early; its message would hold the address
            raise RemoteError("unreachable", f"the export did not arrive: {type(e).__name__}", retryable=True) from None

    def _write_bounded(self, response: requests.Response, path: Path) -> None:
        """Write a body within the limits of the settings."""
        most, started, size = self._settings.max_download_mb * 1_000_000, time.monotonic(), 0
        with path.open("wb") as f:
            for chunk in response.iter_content(1 << 16):
                size += len(chunk)
                if size > most:
                    raise RemoteError("too_large", f"the export has more than {most:,} bytes (ANIML_MAX_DOWNLOAD_MB)")
                if time.monotonic() - started > self._settings.max_download_s:
                    raise RemoteError("timed_out", f"only {size:,} bytes of the export came within ANIML_MAX_DOWNLOAD_S", retryable=True)
                f.write(chunk)

    # -- projects and models -----------------------------------------------------------------------------------------

    def require_project(self) -> None:
        """See once that the user sees the project.

        Raises:
            SettingsError: ``unknown_project``.
        """
        if self._project_is_known:
            return
        with self._expected_form():
            seen = sorted(str(p["_id"]) for p in self._query(queries.PROJECTS, {})["projects"] or [])
        if self.project not in seen:
            raise self._unknown_project(seen)
        self._project_is_known = True

    def _unknown_project(self, seen: list[str]) -> SettingsError:
        near = difflib.get_close_matches(self.project, seen, n=3, cutoff=0.5) or seen[:5]
        shows = f"it shows {len(seen)}, such as {', '.join(near)}" if seen else "it shows none at all"
        return SettingsError(
            f"Animl shows this user no project {self.project!r}; {shows}. Check the project's id in the plan (sources.export, or "
            "release.register.rule_projects), and that the user of ANIML_USER or ANIML_ID_TOKEN is a member of it",
            code="unknown_project",
            project=self.project,
        )

    def _ask_project(self, query: str) -> dict[str, Any]:
        """The fields of the project that a query names.

        Raises:
            SettingsError: ``unknown_project``.
        """
        projects = self._query(query, {"input": {"_ids": [self.project]}})["projects"] or []
        found = next((dict(p) for p in projects if p.get("_id") == self.project), None)
        if found is None:
            self._project_is_known = False
            self.require_project()
            raise RemoteError("refused", f"Animl lists the project {self.project!r}, but says nothing of it")
        return found

    def deployments(self) -> list[CameraDeployment]:
        """Where the project's cameras stood. Deployments without coordinates are left out.

        Raises:
            SettingsError: ``unknown_project``.
        """
        with self._expected_form():
            cameras = self._ask_project(queries.LOCATIONS).get("cameraConfigs") or []
            return [d for camera in cameras for raw in camera.get("deployments") or [] if (d := parse_deployment(camera["_id"], raw)) is not None]

    def project_names(self) -> ProjectNames:
        """The names of the project's labels, tags and deployments.

        Raises:
            SettingsError: ``unknown_project``.
        """
        with self._expected_form():
            return ProjectNames.parse(self._ask_project(queries.NAMES))

    def relative_boxes(self, image_ids: Sequence[str]) -> dict[str, list[float]]:
        """Object id → its box [ymin, xmin, ymax, xmax], relative to the image, for all objects of some images that have one."""
        objects = (obj for image in self.images_by_id(queries.BOXES, image_ids) for obj in image.get("objects") or [])
        with self._expected_form():
            return {str(obj["_id"]): box for obj in objects if (box := relative_box(obj)) is not None}

    def images_by_id(self, query: str, image_ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The images with these ids that Animl still has, with the fields that a query of ``images`` names."""
        for start in range(0, len(image_ids), IMAGES_PER_QUESTION):
            custom = queries.all_of([queries.one_of("_id", image_ids[start : start + IMAGES_PER_QUESTION])])
            for page in self.image_pages(query, {"custom": custom}):
                yield from page

    def image_pages(self, query: str, filters: dict[str, Any], page_images: int = IMAGES_PER_QUESTION) -> Iterator[list[dict[str, Any]]]:
        """The images that fit, page by page, with the fields that the query names.

        Args:
            query: of ``images``, with ``pageInfo { next hasNext }``.
            filters: which images, as Animl's FiltersInput.
            page_images: images on a page. If Animl needs more than its 30 s for a page, it is asked for half as many from there on.

        Raises:
            RemoteError: ``timed_out``: Animl does not answer for a single image in time.
        """
        following: str | None = ""
        while following is not None:
            question = {"filters": filters, "limit": page_images} | ({"next": following} if following else {})
            try:
                answer = self._query(query, {"input": question}, retry_timeouts=page_images == 1)
            except RemoteError as e:
                if e.reason != "timed_out" or page_images == 1:
                    raise
                page_images = max(1, page_images // 2)
                continue
            with self._expected_form():
                page = answer["images"]
                images, more = [dict(image) for image in page["images"] or []], page["pageInfo"]
                following = str(more["next"]) if more.get("hasNext") and more.get("next") else None
            yield images

    def ml_model(self, model_id: str) -> dict[str, Any] | None:
        """Animl's document of a model (_id, version, defaultConfThreshold, categories, …); None for an unknown model."""
        with self._expected_form():
            models = self._query(queries.ML_MODELS, {"input": {"_ids": [model_id]}})["mlModels"] or []
            return next((dict(m) for m in models if m.get("_id") == model_id), None)

    def automation_rules(self) -> list[dict[str, Any]]:
        """The project's automation rules with all fields that Animl's API knows, in the form in which it takes them back.

        Raises:
            SettingsError: ``unknown_project``: for such a project Animl would answer that it has no rules.
        """
        with self._expected_form():
            return [drop_nulls(rule) for rule in self._ask_project(queries.RULES).get("automationRules") or []]

    def replace_automation_rules(self, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Replace ALL of the project's automation rules and return the rules that Animl then has. The user must be a manager."""
        with self._expected_form():
            payload = self._query_once(queries.REPLACE_RULES, {"input": {"automationRules": rules}})["updateAutomationRules"]
            return [drop_nulls(rule) for rule in payload["automationRules"] or []]

    def tag_images(self, name: str, image_ids: Sequence[str]) -> None:
        """Give images a tag. It is made if the project has none of this name; the user must be a member."""
        with self._expected_form():
            tags = {tag: known for known, tag in ProjectNames.parse(self._ask_project(queries.NAMES)).tags.items()}
            if name not in tags:
                made = self._query_once(queries.CREATE_TAG, {"input": {"name": name, "color": queries.TAG_COLOUR}})["createProjectTag"]["tags"]
                tags = {str(tag["name"]): str(tag["_id"]) for tag in made}
            for start in range(0, len(image_ids), queries.MAX_TAGS):
                pairs = [{"imageId": image, "tagId": tags[name]} for image in image_ids[start : start + queries.MAX_TAGS]]
                self._query(queries.TAG_IMAGES, {"input": {"tags": pairs}})

    # -- requests ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _expected_form(self) -> Iterator[None]:
        """Turn the errors of reading an unexpected answer into one line.

        Raises:
            RemoteError: ``refused``.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            raise RemoteError("refused", f"{self._url} gave an answer that is not Animl's; check ANIML_API_URL") from None

    def _query(self, query: str, variables: dict[str, Any], *, retry_timeouts: bool = True) -> dict[str, Any]:
        """The data of the answer, retried where that may help."""
        return _retry(lambda: self._query_once(query, variables), self._settings.poll_s, except_reason="" if retry_timeouts else "timed_out")

    def _query_once(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of the answer. A token that has expired is renewed once."""
        response = self._post(query, variables)
        if token_refused(response):
            self._sign_in.renew()
            response = self._post(query, variables)
        return self._data(response)

    def _post(self, query: str, variables: dict[str, Any]) -> requests.Response:
        headers = {"x-selected-project": self.project}
        return post_query(self._api, self._url, query, variables, self._add_token, self._settings.timeout_s, headers)

    def _add_token(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._sign_in.token().get_secret_value()}"
        return request

    def _data(self, response: requests.Response) -> dict[str, Any]:
        """The data of a response, or the error that says why there is none."""
        status, errors = response.status_code, graphql_errors(response)
        if token_refused(response):
            why = self._sign_in.redact(reason_in(json_body(response)))
            line = (
                f"{self._url} refuses a new token ({why or status}); check that ANIML_COGNITO_POOL and ANIML_COGNITO_CLIENT are those of this Animl"
            )
            raise SettingsError(line, code="token_refused")
        if status == 403 or "FORBIDDEN" in codes(errors):
            raise SettingsError(
                f"Animl does not let this user work with the project {self.project!r}. The user must be a member of it (for automation rules: "
                "a manager). Check ANIML_USER (or whose ANIML_ID_TOKEN it is), ANIML_API_URL, and the project's id in sources.export of the plan",
                code="project_forbidden",
                project=self.project,
            )
        if status in {404, 405} or 300 <= status < 400:
            line = f"expected Animl's GraphQL at {self._url}, the server answered {status}; ANIML_API_URL must end in /external"
            raise SettingsError(line, code="wrong_url")
        if errors and status < 500:
            message = self._sign_in.redact(reason_in(errors))
            slow = "timed out" in message.lower()
            reason = "timed_out" if slow else "not_found" if "NOT_FOUND" in codes(errors) else "refused"
            raise RemoteError(reason, f"Animl: {message}", retryable=slow)
        check_status(status, self._url, self._sign_in.redact(reason_in(json_body(response))))
        return dict(response.json()["data"])


def relative_box(obj: dict[str, Any]) -> list[float] | None:
    """The box of an object of an image, [ymin, xmin, ymax, xmax] relative to the image; None where it has none."""
    box = [float(n) for n in obj.get("bbox") or [] if n is not None]
    return box if len(box) == 4 and all(map(math.isfinite, box)) else None


def drop_nulls(value: Any) -> Any:
    """A GraphQL answer without null fields, so that it can be sent back as input."""
    if isinstance(value, dict):
        return {k: drop_nulls(v) for k, v in value.items() if v is not None}
    return [drop_nulls(v) for v in value] if isinstance(value, list) else value


def _retry(call: Callable[[], T], pause_s: float, except_reason: str = "") -> T:
    """Call again after retryable errors, with growing pauses."""
    retryable = retry_if_exception(lambda e: isinstance(e, RemoteError) and e.retryable and e.reason != except_reason)
    pauses = wait_exponential_jitter(initial=min(0.5, pause_s), max=10, jitter=min(1.0, pause_s))
    return Retrying(retry=retryable, stop=stop_after_attempt(ATTEMPTS), wait=pauses, reraise=True)(call)

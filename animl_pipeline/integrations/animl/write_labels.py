"""Write labels of a model to Animl as its own inference does: ``createInternalLabels``, which takes an API key and no user.

The call changes more than a label: the image is unreviewed again, and automation rules run. Animl does not notice that it has the label
already. So nothing is tried twice here, and the caller looks first at what Animl has.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import requests

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.integrations.animl.errors_in_answers import check_status, graphql_errors, json_body, post_query, reason_in
from animl_pipeline.integrations.animl.queries import CREATE_LABELS
from animl_pipeline.integrations.animl.sign_in import check_api_url
from animl_pipeline.storage.read_remote_files import RemoteError

USERS, MACHINES = "/external", "/internal"
"""The ends of the addresses of Animl's API for users and for its own programs."""


class ModelLabel(Record):
    """A label for one object: the model's category, its probability, the object's box exactly as Animl has it, and who gives it."""

    labelId: str  # noqa: N815 - Animl's own names
    conf: float
    bbox: tuple[float, float, float, float]
    mlModel: str  # noqa: N815
    mlModelVersion: str  # noqa: N815


class LabelWriter:
    """Writes labels with the API key of the settings.

    Raises:
        SettingsError: ANIML_API_URL or ANIML_API_KEY is missing or wrong.
    """

    def __init__(self, settings: Settings) -> None:
        url = check_api_url(settings.api_url)
        if not url.endswith(USERS) or not settings.api_key.get_secret_value():
            raise SettingsError(
                "writing labels to Animl needs ANIML_API_URL, which ends in /external, and ANIML_API_KEY, the key of Animl's own programs; set both, "
                "or set review.write_back: false in the plan",
                code="no_api_key",
            )
        self._url = url.removesuffix(USERS) + MACHINES
        self._settings = settings
        self._session = requests.Session()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._session.close()

    def create(self, image_id: str, labels: Sequence[ModelLabel]) -> None:
        """Add labels to the objects of an image, without a second try.

        Raises:
            RemoteError: ``refused``: Animl does not take them, though it may have taken the first of several; ``timed_out`` or
                ``unreachable``: it may have taken all of them.
            SettingsError: Animl refuses the API key.
        """
        variables = {"input": {"imageId": image_id, "labels": [label.model_dump(mode="json") for label in labels]}}
        response = post_query(self._session, self._url, CREATE_LABELS, variables, self._add_key, self._settings.timeout_s)
        if response.status_code in {401, 403}:
            raise SettingsError("Animl refuses ANIML_API_KEY; set the key of this Animl's own programs", code="api_key_refused")
        if errors := graphql_errors(response):
            raise RemoteError("refused", f"Animl: {self._redact(reason_in(errors))}")
        check_status(response.status_code, self._url)
        body: Any = json_body(response)
        if not isinstance(body, dict) or not ((body.get("data") or {}).get("createInternalLabels") or {}).get("isOk"):
            raise RemoteError("refused", f"{self._url} gave an answer that is not Animl's; check ANIML_API_URL")

    def _add_key(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["x-api-key"] = self._settings.api_key.get_secret_value()
        return request

    def _redact(self, text: str) -> str:
        return " ".join(text.replace(self._settings.api_key.get_secret_value(), "***").split())[:200]

"""The GraphQL queries of the Animl client, and the filters that choose images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from animl_pipeline.config import AnimlExportConfig
from animl_pipeline.core.frozen_record import Record

if TYPE_CHECKING:
    from animl_pipeline.integrations.animl.animl_windows import Window

_TIME = r"\d\d(?::?\d\d(?::?\d\d(?:[.,]\d+)?)?)?(?:Z|[+-]\d\d(?::?\d\d)?)?"
_DATE = r"(?:[+-]\d{6}|\d{4})(?:-?\d\d(?:-?\d\d)?|-?\d{3}|-?W\d\d(?:-?\d)?)?"
_ISO_DATE = re.compile(rf"{_DATE}(?:T{_TIME})?|T?{_TIME}")
"""Text in one of ISO 8601's forms; whether there is such a day or hour does not matter here."""


class ImageFilters(Record):
    """Which images: by capture time (from inclusive, to exclusive), camera, deployment, label, validation, and when they were added."""

    created_from: datetime | None = None
    created_to: datetime | None = None
    cameras: tuple[str, ...] = ()
    deployments: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    only_reviewed: bool = False
    validated_since: datetime | None = None
    added_since: datetime | None = None

    def as_input(self) -> dict[str, Any]:
        """Animl's FiltersInput. Unused filters are left out, because an empty list fits no image.

        Animl's exports turn each text that reads as an ISO date into a date, which no id equals. Lists with such an id are
        therefore conditions of the text ``custom``, which is not touched.
        """
        dates = {name: any(map(reads_as_date, ids)) for name, ids in (("cameras", self.cameras), ("labels", self.labels))}
        conditions = [
            self.validated_since and _condition("objects.labels.validation.validationDate", f"$gte: ISODate('{iso_utc(self.validated_since)}')"),
            dates["cameras"] and one_of("cameraId", self.cameras),
            dates["labels"] and one_of("queryableLabelIds", self.labels),
        ]
        filters = {
            "createdStart": self.created_from and iso_utc(self.created_from),
            "createdEnd": self.created_to and iso_utc(self.created_to),
            "addedStart": self.added_since and iso_utc(self.added_since),
            "cameras": not dates["cameras"] and list(self.cameras),
            "deployments": list(self.deployments),
            "labels": not dates["labels"] and list(self.labels),
            "reviewed": self.only_reviewed,
            "custom": all_of(c for c in conditions if c),
        }
        return {name: value for name, value in filters.items() if value}

    def ids(self) -> list[str]:
        """All ids that the filters name."""
        return [*self.cameras, *self.deployments, *self.labels]

    def of_window(self, window: Window) -> ImageFilters:
        """These filters, limited to one window."""
        limits = {"created_from": window.start, "created_to": window.end, "validated_since": window.since, "added_since": window.added_since}
        return self.model_copy(update=limits)


def image_filters(config: AnimlExportConfig) -> ImageFilters:
    """The plan's choice of images as Animl's filters."""
    start, end = _as_utc(config.created_from), _as_utc(config.created_to)
    chosen = config.model_dump(include={"cameras", "deployments", "labels", "only_reviewed"})
    return ImageFilters(created_from=start, created_to=end, **chosen)


def _as_utc(moment: datetime | None) -> datetime | None:
    return moment and (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC))


def reads_as_date(text: str) -> bool:
    """Whether Animl's exports take an id for an ISO date: 1001, 20201015, 2014123, 23, 2020-W01."""
    return _ISO_DATE.fullmatch(text) is not None


def one_of(field: str, values: Iterable[str]) -> str:
    """A condition of a MongoDB filter: the field holds one of some texts."""
    return _condition(field, f"$in: {json.dumps(list(values))}")


def all_of(conditions: Iterable[str]) -> str:
    """Conditions as the text of Animl's filter ``custom``; "" for none."""
    joined = ", ".join(conditions)
    return f"{{ {joined} }}" if joined else ""


def _condition(field: str, test: str) -> str:
    return f"'{field}': {{ {test} }}"


def iso_utc(moment: datetime) -> str:
    """A time as Animl writes it: in UTC, with milliseconds. A time without a zone counts as UTC."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


COUNT = "query Count($input: QueryImagesCountInput!) { imagesCount(input: $input) { count } }"

EXPORT = "query Export($input: ExportInput!) { exportAnnotations(input: $input) { _id } }"

TASK = "query Task($input: QueryTaskInput!) { task(input: $input) { _id status output } }"

LOCATIONS = """query Locations($input: QueryProjectsInput) {
  projects(input: $input) {
    _id
    cameraConfigs { _id deployments { _id name startDate location { geometry { coordinates } } } }
  }
}"""

PROJECTS = "query Projects { projects { _id } }"

BOXES = """query Boxes($input: QueryImagesInput!) {
  images(input: $input) { images { _id objects { _id bbox } } pageInfo { next hasNext } }
}"""

NAMES = """query Names($input: QueryProjectsInput) {
  projects(input: $input) { _id labels { _id name } tags { _id name } cameraConfigs { _id deployments { _id name } } }
}"""

LABELS = """query Labels($input: QueryImagesInput!) {
  images(input: $input) {
    images {
      _id cameraId deploymentId dateAdded dateTimeAdjusted timezone reviewed tags
      objects { _id locked labels { labelId type conf labeledDate mlModel mlModelVersion validation { validated validationDate } } }
    }
    pageInfo { next hasNext }
  }
}"""

LABELS_WITH_BOXES = LABELS.replace("objects { _id locked", "objects { _id bbox locked")

CREATE_LABELS = "mutation Create($input: CreateInternalLabelsInput!) { createInternalLabels(input: $input) { isOk } }"

TAG_COLOUR = "#E0A100"
MAX_TAGS = 5_000
"""Images that get a tag in one request. Animl takes 20,000, within its 30 s."""

CREATE_TAG = "mutation Create($input: CreateProjectTagInput!) { createProjectTag(input: $input) { tags { _id name } } }"

TAG_IMAGES = "mutation Tag($input: CreateImageTagsInput!) { createImageTags(input: $input) { isOk } }"

ML_MODELS = """query Models($input: QueryMLModelsInput) {
  mlModels(input: $input) { _id version description defaultConfThreshold expectsCrops categories { _id name color taxonomy } }
}"""

_RULE = "_id name event { type label } action { type alertRecipients mlModel country admin1Region confThreshold categoryConfig }"

RULES = f"query Rules($input: QueryProjectsInput) {{ projects(input: $input) {{ _id automationRules {{ {_RULE} }} }} }}"

REPLACE_RULES = f"""mutation Replace($input: UpdateAutomationRulesInput!) {{
  updateAutomationRules(input: $input) {{ automationRules {{ {_RULE} }} }}
}}"""

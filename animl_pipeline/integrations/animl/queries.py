"""The GraphQL queries of the Animl client, and the filters that choose images."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from animl_pipeline.core.frozen_record import Record


class ImageFilters(Record):
    """Which images: by capture time (from inclusive, to exclusive), camera, deployment, label, and validation."""

    created_from: datetime | None = None
    created_to: datetime | None = None
    cameras: tuple[str, ...] = ()
    deployments: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    only_reviewed: bool = False
    validated_since: datetime | None = None

    def as_input(self) -> dict[str, Any]:
        """Animl's FiltersInput. Unused filters are left out, because an empty list fits no image."""
        since = self.validated_since and f"{{ $gte: ISODate('{iso_utc(self.validated_since)}') }}"
        filters = {
            "createdStart": self.created_from and iso_utc(self.created_from),
            "createdEnd": self.created_to and iso_utc(self.created_to),
            "cameras": list(self.cameras),
            "deployments": list(self.deployments),
            "labels": list(self.labels),
            "reviewed": self.only_reviewed,
            "custom": since and f"{{ 'objects.labels.validation.validationDate': {since} }}",
        }
        return {name: value for name, value in filters.items() if value}


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

ML_MODELS = """query Models($input: QueryMLModelsInput) {
  mlModels(input: $input) { _id version description defaultConfThreshold expectsCrops categories { _id name color taxonomy } }
}"""

_RULE = "_id name event { type label } action { type alertRecipients mlModel country admin1Region confThreshold categoryConfig }"

RULES = f"query Rules($input: QueryProjectsInput) {{ projects(input: $input) {{ _id automationRules {{ {_RULE} }} }} }}"

REPLACE_RULES = f"""mutation Replace($input: UpdateAutomationRulesInput!) {{
  updateAutomationRules(input: $input) {{ automationRules {{ {_RULE} }} }}
}}"""

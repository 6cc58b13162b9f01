"""How much has been validated in Animl since a moment: what decides whether a retraining is worth it."""

from __future__ import annotations

from datetime import datetime

from animl_pipeline.config import AnimlExportConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, ExportUnreachableError
from animl_pipeline.integrations.animl import AnimlClient
from animl_pipeline.steps.export.animl_export import filters_of
from animl_pipeline.storage.remote_files import RemoteError


def count_validated(source: SourceConfig, since: datetime | None, settings: Settings) -> int:
    """How many images of a source's Animl project fit the plan and hold a label that was validated since then (None: ever).

    Raises:
        ExportUnreachableError: Animl does not answer now.
        ExportError: the source is no Animl project, or the question was refused.
        SettingsError: where Animl is, or as whom to ask, is not said or not right.
    """
    project = source.project()
    if project is None:
        raise ExportError(f"source {source.name!r}: expected animl://<project id> to watch, found {source.export}; a file does not tell what is new")
    filters = filters_of(source.animl or AnimlExportConfig()).model_copy(update={"validated_since": since})
    try:
        with AnimlClient(project, settings) as animl:
            return animl.count(filters)
    except RemoteError as e:
        kind = ExportUnreachableError if e.retryable else ExportError
        raise kind(f"source {source.name!r}: Animl cannot be asked for {source.export}: {e}") from e

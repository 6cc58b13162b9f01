"""The newest report of a model in the store."""

from __future__ import annotations

import pytest

from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.deploy.latest_report_and_training_start import read_latest_report
from animl_pipeline.storage.store import Store


def test_a_report_that_cannot_be_read_is_an_evaluation_error(store: Store) -> None:
    store.object_store.put("reports/isle/newest.json", b'{"model": "isle"')
    with pytest.raises(EvaluationError):
        read_latest_report("isle", store)

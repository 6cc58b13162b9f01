"""docs/data-contracts.md says what the code declares, and every step declares the tables that it writes."""

from __future__ import annotations

import importlib

import pytest

from animl_pipeline.core.tables_of_steps import TABLES
from tests.project.data_contracts import PAGE, page
from tests.project.step_digests import ROOT, Code


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs-reference`"


@pytest.mark.parametrize(("step", "definition"), Code(ROOT).steps().items())
def test_each_step_declares_its_tables(step: str, definition: tuple[str, str]) -> None:
    module, name = definition
    assert getattr(importlib.import_module(module), name).writes == TABLES.get(step, ())

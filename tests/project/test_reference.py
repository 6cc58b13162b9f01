"""The reference pages hold what the code has, and every key of a plan has a meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from animl_pipeline.config import Plan
from tests.project.reference import PAGES


@pytest.mark.parametrize("page", list(PAGES), ids=lambda page: page.name)
def test_a_reference_page_is_current(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == PAGES[page](), f"run `make docs-reference` to write {page.name} again"


def test_every_key_of_a_plan_and_every_section_says_what_it_means() -> None:
    schema = Plan.model_json_schema(by_alias=True)
    models = {"Plan": schema, **schema["$defs"]}
    silent = [
        f"{name}.{key}"
        for name, model in models.items()
        for key, found in model.get("properties", {}).items()
        if not found.get("description") and not models.get(str(found.get("$ref", "")).rpartition("/")[2], {}).get("description")
        and not any("$ref" in part for part in (found.get("items", {}), *found.get("anyOf", [])))
    ]  # fmt: skip
    assert silent == []

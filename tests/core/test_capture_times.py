"""Times of an export are read where their form is certain, and never guessed where it is not."""

from __future__ import annotations

import pandas as pd
import pytest

from animl_pipeline.core.capture_times import parse_days, parse_seconds, to_iso


@pytest.mark.parametrize(
    ("texts", "iso"),
    [
        (["2024-05-31 10:00:07", "2024-05-31T10:00:07Z", ""], ["2024-05-31 10:00:07", "2024-05-31T10:00:07Z", ""]),
        (["2024/05/31 10:00", "2024:05:31 10:00:07", "2024.5.3"], ["2024-05-31T10:00:00", "2024-05-31T10:00:07", "2024-05-03"]),
        (["31/05/2024 10:00:07", "5/6/2024 1:02"], ["2024-05-31T10:00:07", "2024-06-05T01:02:00"]),
        (["05/31/2024 12:00 AM", "5/6/2024 1:02 pm"], ["2024-05-31T00:00:00", "2024-05-06T13:02:00"]),
        (["31.05.2024, 10:00:07.5+02:00"], ["2024-05-31T10:00:07.5+02:00"]),
    ],
)
def test_a_form_that_is_certain_is_read(texts: list[str], iso: list[str]) -> None:
    found = to_iso(pd.Series(texts, dtype=str))
    assert list(found.texts) == iso
    assert not found.ambiguous.any()
    assert not found.unreadable.any()


@pytest.mark.parametrize("texts", [["05/06/2024 10:00"], ["31/05/2024", "05/31/2024", "05/06/2024"]])
def test_a_column_that_does_not_show_its_order_is_ambiguous(texts: list[str]) -> None:
    column = pd.Series(texts, dtype=str)
    assert to_iso(column).ambiguous[-1]
    assert pd.isna(parse_days(column)[-1])
    assert pd.isna(parse_seconds(column)[-1])


@pytest.mark.parametrize("text", ["yesterday", "2024/13/45", "31/05/24", "31/05/2024 later", "12:00", "\n"])
def test_a_text_that_is_no_time_is_said_to_be_unreadable(text: str) -> None:
    column = pd.Series([text, "2024-05-31"], dtype=str)
    assert to_iso(column).unreadable.tolist() == [True, False]
    assert pd.isna(parse_seconds(column)[0])

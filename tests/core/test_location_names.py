"""Placeholders are unknown locations, names are locations, and names of one location are merged by spelling, distance and known pairs."""

from __future__ import annotations

import numpy as np
import pytest

from animl_pipeline.core.location_names import is_placeholder, known_locations, merge_locations

METRE = 1 / 111_195  # degrees of latitude


@pytest.mark.parametrize(
    "name",
    ["", " ", "nan", "NaN", "None", "null", "NA", "N/A", "n.a.", "<NA>", "#N/A", "#REF!", "unknown", "(Unknown)", "unknown_site", "no location",
     "Site: unknown", "-", "--", "?", "—", "[]", "{}", "-1", "-1.0", "-9999", "False", "not recorded", "\ufeffNA", "\u00a0"],
)  # fmt: skip
def test_placeholders_say_nothing_about_the_location(name: str) -> None:
    assert is_placeholder(name)


@pytest.mark.parametrize(
    "name", ["CAM01", "7", "-12", "Camera", "Namibia", "Nan Province", "Unknown Creek", "Noname Camp", "Site 9", "Station A", "草原", "#3"]
)
def test_names_are_no_placeholders(name: str) -> None:
    assert not is_placeholder(name)


def test_a_name_in_two_spellings_is_one_location_and_zero_counts_only_among_numbers() -> None:
    assert known_locations(["CAM01", "CAM01 ", "Caf\u00e9", "Cafe\u0301", "0"]) == {
        "CAM01": "CAM01", "CAM01 ": "CAM01", "Caf\u00e9": "Caf\u00e9", "Cafe\u0301": "Caf\u00e9", "0": "",
    }  # fmt: skip
    assert known_locations(["0", "1", "2", "-1"]) == {"0": "0", "1": "1", "2": "2", "-1": ""}
    assert known_locations(["0.0", "1001"]) == {"0.0": "", "1001": "1001"}


def test_names_near_to_each_other_are_one_location_and_so_is_a_chain_of_them() -> None:
    points = np.array([[0, 0], [8 * METRE, 0], [16 * METRE, 0], [40 * METRE, 0]])
    assert merge_locations(["a", "b", "c", "d"], points, 10) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_without_a_distance_or_coordinates_only_known_pairs_are_merged() -> None:
    points = np.array([[0, 0], [0, 0], [np.nan, np.nan]])
    assert merge_locations(["a", "b", "c"], points, None, [("a", "c")]) == {"a": "a", "b": "b", "c": "a"}
    assert merge_locations(["a", "b", "c"], points, 10) == {"a": "a", "b": "a", "c": "c"}


def test_a_name_with_several_coordinates_is_one_location() -> None:
    points = np.array([[0, 0], [1, 0], [1, 5 * METRE]])
    assert merge_locations(["a", "a", "b"], points, 10) == {"a": "a", "b": "a"}

"""Names of one location are merged by distance and by what is known of them."""

from __future__ import annotations

import numpy as np

from animl_pipeline.core.merge_locations import merge_locations

METRE = 1 / 111_195  # degrees of latitude


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

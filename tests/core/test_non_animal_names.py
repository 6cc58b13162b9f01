"""Names of people, vehicles, empty and unknown images are recognised in all their spellings."""

from __future__ import annotations

import pytest

from animl_pipeline.core.non_animal_names import Role, is_person, is_vehicle, normalise_name, role


@pytest.mark.parametrize("name", ["person", "People", "HUNTERS", "cyclist", "Ranger", "children", "women", "homo_sapiens", "Human beings"])
def test_people(name: str) -> None:
    assert role(name) == "people"
    assert is_person(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Vehicles", "vehicle"),
        ("quad", "vehicle"),
        ("no animal", "empty"),
        ("false_trigger", "empty"),
        ("unknown rodent", "unknown"),
        ("Unidentified", "unknown"),
        ("island fox", ""),
        ("train-bearer", ""),
        ("personal", ""),
    ],
)
def test_other_names(name: str, expected: Role) -> None:
    assert role(name) == expected
    assert is_vehicle(name) is (expected == "vehicle")


@pytest.mark.parametrize(
    ("a", "b"), [("Grey_Foxes", "gray fox"), ("deer mice", "Deer-Mouse"), ("puppies", "puppy"), ("walrus", "walrus"), ("geese", "goose")]
)
def test_spellings_of_one_name(a: str, b: str) -> None:
    assert normalise_name(a) == normalise_name(b)

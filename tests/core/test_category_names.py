"""Names of people, vehicles, empty and unknown images are recognised in all their spellings."""

from __future__ import annotations

import pytest

from animl_pipeline.core.category_names import Role, is_person, is_taxon, is_vehicle, label_forms, normalise_name, parse_name, role


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
        *((name, "unknown") for name in ("nan", "NA", "N/A", "NULL", "unk", "not available")),
        *((name, "empty") for name in ("false positive", "False_positives", "false detection")),
        ("nanday parakeet", ""),
        ("null heron", ""),
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


SPECIESNET = [
    ("f1856211-cfb7-4a5b-9158-c0f72fd09ee6;;;;;;blank", "empty"),
    ("e2895ed5-780b-48f6-8a11-9e27cb594511;;;;;;vehicle", "vehicle"),
    ("1f689929-883d-4dae-958c-3d57ab5b6c16;;;;;;animal", "unknown"),
    ("990ae9dd-7a59-4344-afcb-1b7b21368000;mammalia;primates;hominidae;homo;sapiens;human", "people"),
    (";".join(["f2efdae9-efb8-48fb-8a91-eccf79ab4ffb", *["no cv result"] * 6]), "unknown"),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *SPECIESNET,
        ("990ae9dd;mammalia;primates;hominidae;homo;sapiens;", "people"),
        ("990ae9dd;mammalia;primates;hominidae;homo;;farmer", "people"),
        ("mammalia;primates;hominidae;homo;sapiens", "people"),
        ("u;mammalia;primates;hominidae;gorilla;gorilla;western gorilla", ""),
        ("u;aves;;;;;bird", ""),
        *((name, "people") for name in ("Human-Camera Trapper", "Homo Species", "Setup_Pickup", "humain", "umano", "Mensch")),
        *((name, "vehicle") for name in ("véhicule", "Fahrzeug")),
        *((name, "empty") for name in ("Misfire", "Time lapse", "vide", "NOTHINGHERE")),
        *((name, "unknown") for name in ("No CV Result", "undefined", "unclassified", "indéfini", "Corrupted")),
    ],
)
def test_every_form_that_the_fields_tools_write(name: str, expected: Role) -> None:
    assert role(name) == expected


@pytest.mark.parametrize(
    ("label", "name", "forms"),
    [
        ("U;Mammalia;Carnivora;Canidae;Vulpes;Vulpes;Red Fox", "Red Fox", 2),
        ("u;mammalia;carnivora;canidae;vulpes;vulpes;", "vulpes vulpes", 2),
        ("u;mammalia;carnivora;canidae;;;", "canidae", 2),
        ("mammalia;carnivora;canidae;vulpes;vulpes;red fox", "red fox", 2),
        ("red fox", "red fox", 1),
        ("fox; rabbit", "fox; rabbit", 1),
        (";;;;;;", "", 1),
    ],
)
def test_the_name_in_a_taxonomy_is_the_common_name_else_the_narrowest_rank(label: str, name: str, forms: int) -> None:
    assert parse_name(label).name == name
    assert label_forms(label)[-1] == (name or label).casefold()
    assert len(label_forms(label)) == forms


@pytest.mark.parametrize("name", ["Bos taurus", "bos gaurus", "Urocyon species", "Marmosa", "Felidae family", "u;mammalia;rodentia;;;;rodent"])
def test_names_that_may_be_scientific(name: str) -> None:
    assert is_taxon(name)
    assert not is_taxon("island fox")

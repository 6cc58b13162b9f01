"""The taxa of classes by the plan's taxonomy table, and their way into Animl's MLModel document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from animl_pipeline.config import LabelsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.deploy import register_model
from animl_pipeline.deploy.animl_registration import ml_model_document
from animl_pipeline.steps.labels import class_taxa
from animl_pipeline.steps.labels.class_mapping import NO_ANIMAL, map_names
from animl_pipeline.storage.store import Store
from tests.support.packaged_model import colour_plan, make_package

TABLE = """dataset_name,query,kingdom,class,order,family,genus,species
isle,island fox,animalia,mammalia,carnivora,canidae,urocyon,urocyon littoralis
isle,red fox,animalia,mammalia,carnivora,canidae,vulpes,vulpes vulpes
isle,black rat,animalia,mammalia,rodentia,muridae,rattus,rattus rattus
isle,brown rat,animalia,mammalia,rodentia,muridae,rattus,rattus norvegicus
isle,mouse,animalia,mammalia,rodentia,cricetidae,peromyscus,peromyscus maniculatus
isle,raven,animalia,aves,passeriformes,corvidae,corvus,corvus corax
other,mouse,animalia,mammalia,rodentia,muridae,mus,mus musculus
"""


def labels_of(folder: Path, classes: dict[str, Any], **more: Any) -> LabelsConfig:
    (folder / "taxonomy.csv").write_text(TABLE)
    return LabelsConfig.model_validate({"classes": classes, "taxonomy": {"table": str(folder / "taxonomy.csv")}} | more)


@pytest.mark.parametrize(
    ("rule", "taxon"),
    [
        (["island fox"], "mammalia;carnivora;canidae;urocyon;littoralis"),
        (["Black rat", "brown rat"], "mammalia;rodentia;muridae;rattus;"),
        (["island fox", "black rat"], "mammalia;;;;"),
        (["mouse"], "mammalia;rodentia;;;"),
        ({"taxa": [{"level": "family", "name": "Corvidae"}]}, "aves;passeriformes;corvidae;;"),
        (["5;mammalia;rodentia;muridae;rattus;exulans;pacific rat"], "mammalia;rodentia;muridae;rattus;exulans"),
        (["raven", "mouse"], None),
        (["bird", "raven"], None),
        ({"taxa": [{"level": "order", "name": "chiroptera"}]}, None),
    ],
)
def test_a_class_has_the_narrowest_taxon_of_all_its_labels(tmp_path: Path, settings: Settings, rule: Any, taxon: str | None) -> None:
    config = labels_of(tmp_path, {"asked": rule, "rest": ["nothing else"]})
    assert class_taxa(config, ["isle"], settings) == ({"asked": taxon} if taxon else {})


def test_a_source_with_a_data_set_uses_only_its_labels(tmp_path: Path, settings: Settings) -> None:
    config = labels_of(tmp_path, {"mouse": ["mouse"], "rat": {"from": {"far": ["black rat"]}}})
    chosen = config.model_copy(update={"taxonomy": config.taxonomy and config.taxonomy.model_copy(update={"datasets": {"isle": "other"}})})
    assert class_taxa(chosen, ["isle"], settings) == {
        "mouse": "mammalia;rodentia;muridae;mus;musculus",
        "rat": "mammalia;rodentia;muridae;rattus;rattus",
    }


def test_the_document_has_the_plans_taxonomy_then_the_tables_then_animls(tmp_path: Path, store: Store) -> None:
    plan = colour_plan(register={"taxonomy": {"red": "by hand"}})
    card = ModelCard.model_validate_json(store.path(make_package(store, tmp_path), "card.json").read_bytes())
    known = {"categories": [{"_id": c, "taxonomy": "of Animl"} for c in ("red", "green", "blue")]}
    document = ml_model_document(card, plan, known, {"red": "of the table", "green": "of the table"})
    assert [c["taxonomy"] for c in document["categories"]] == ["by hand", "of the table", "of Animl"]


def test_a_registration_goes_on_without_the_table(tmp_path: Path, store: Store, settings: Settings) -> None:
    plan = colour_plan(register={"ssm": False})
    plan = plan.model_copy(update={"labels": labels_of(tmp_path, {"red": ["island fox"], "green": ["raven"], "blue": ["bird"]})})
    package = make_package(store, tmp_path)
    written = register_model(package, plan, store, settings, only_files=True).folder
    assert "urocyon;littoralis" in (Path(written) / "mlmodel.json").read_text()
    (tmp_path / "taxonomy.csv").unlink()
    written = register_model(package, plan, store, settings, only_files=True).folder
    assert "taxonomy" not in (Path(written) / "mlmodel.json").read_text()


def test_names_of_other_models_are_mapped_by_labels_ids_and_taxa(tmp_path: Path, settings: Settings) -> None:
    classes = {"rat": {"taxa": [{"level": "genus", "name": "rattus"}], "exclude": ["brown rat"]}, "Fox": ["island fox", "Zorro"], "bird": ["bird"]}
    config = labels_of(tmp_path, classes, exclude=["boat"])
    seven = "1;mammalia;rodentia;muridae;rattus;rattus;roof rat"
    names = {
        ("ZORRO",): "Fox",
        ("fox",): "Fox",
        ("black rat",): "rat",
        ("roof rat", seven): "rat",
        ("3;mammalia;carnivora;canidae;urocyon;littoralis;island fox",): "Fox",
        ("boat",): NO_ANIMAL,
        ("f1856211-cfb7-4a5b-9158-c0f72fd09ee6;;;;;;blank",): NO_ANIMAL,
        ("990ae9dd-7a59-4344-afcb-1b7b21368000;mammalia;primates;hominidae;homo;sapiens;human",): NO_ANIMAL,
        ("elk",): None,
        ("7;aves;;;;;bird",): "bird",
        ("8;mammalia;rodentia;;;;rodent",): None,
    }
    assert map_names(names, config, settings) == names

"""The command evaluate: any package on the labelled boxes of any plan."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from animl_pipeline.cli.evaluate_package import CropSet, evaluate, evaluate_package
from animl_pipeline.config import load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import EvaluationError, PackageError
from animl_pipeline.inference.classifier import load_package
from animl_pipeline.storage.store import Store
from tests.conftest import colour_model
from tests.support.tiny_project import write_plan, write_project


def test_a_package_of_other_classes_and_another_size_is_scored_on_all_crops_or_on_a_split(
    tmp_path: Path, store: Store, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    colour_model(tmp_path / "model", ("fox", "bird", "dragon"), size=48)
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        for file in ("model.onnx", "card.json"):
            archive.add(tmp_path / "model" / file, file)
    package = load_package(tmp_path / "model.tar.gz")
    write_project(tmp_path, locations=6, each=2)
    plan = load_plan(write_plan(tmp_path))
    found = evaluate_package(package, plan, CropSet.ALL, store, settings)
    scores = {c.id: (c.examples, c.locations, c.recall) for c in found.metrics.classes}
    assert scores == {"fox": (12, 6, 1.0), "bird": (12, 6, 1.0), "dragon": (0, 0, 0.0)}
    assert (found.metrics.macro_f1, found.left_out) == (1.0, {"rat": 12})
    assert not list(store.object_store.names("steps/splits")), "no location was frozen"
    evaluate(tmp_path / "model.tar.gz", str(tmp_path / "plan.yaml"), CropSet.ALL, as_json=True, store=settings.store, data=tmp_path)
    printed = json.loads(capsys.readouterr().out)
    assert (printed["left_out"], printed["metrics"]["macro_f1"]) == ({"rat": 12}, 1.0)
    (tmp_path / "splits.csv").write_text("location,split\nisle/p0,train\nisle/p1,test\nisle/p2,test\n")
    by_table = load_plan(write_plan(tmp_path, splits={"table": "splits.csv"}))
    tested = evaluate_package(package, by_table, CropSet.TEST, store, settings.model_copy(update={"data": tmp_path})).metrics
    assert (tested.examples, tested.locations) == (8, 2)
    with pytest.raises(EvaluationError) as caught:
        evaluate_package(package, plan, CropSet.TEST, store, settings)
    assert caught.value.code == "no_report"


def test_what_is_no_package_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no package")
    for path in (tmp_path / "absent.tar.gz", tmp_path / "notes.txt", tmp_path):
        with pytest.raises(PackageError) as caught:
            load_package(path)
        assert caught.value.code == "file_missing"

"""The pipeline on real camera-trap images: missouri, ena24 and animl-py with coarse classes (tests/real-data.yaml).

Needs the private test images (ANIML_TEST_DATA, or beside the checkout). docs/real-data.md shows the numbers that the slow test prints.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path

import pytest

from animl_pipeline.config import Plan, load_plan
from animl_pipeline.config.settings import Settings, load_settings, use_local_aws
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.box_type import Box
from animl_pipeline.deploy import invoke_endpoint
from animl_pipeline.deploy.trained_versions import read_latest_report
from animl_pipeline.dev.sagemaker_local import local_sagemaker
from animl_pipeline.steps.crops import extract_crops
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, class_by_label, resolve_labels, wanted_labels
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.storage.store import Store, open_store
from tests.support.paths import DATA, ROOT

PLAN = Path(__file__).parent / "real-data.yaml"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real test pictures are not beside this checkout"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def real_store(home: Path) -> Store:
    return open_store(Settings(store=str(home / "store")))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load_plan(PLAN)


@pytest.fixture(scope="module")
def steps(home: Path, real_store: Store, plan: Plan) -> dict[str, Artifact]:
    """The steps from export to splits."""
    settings = Settings(store=str(home / "store"), data=DATA)
    sources = []
    for source in plan.sources:
        export = export_annotations(source, real_store, settings)
        wanted = wanted_labels(plan.labels, source.name, settings)
        sources.append(SourceArtifacts(source, export, download_images(source, export, wanted, real_store, settings)))
    labels = resolve_labels(sources, plan.labels, real_store, settings)
    detections = detect_animals(labels, plan.detections, real_store, settings)
    crops = extract_crops(labels, detections, plan.crops, plan.model_input, real_store, settings)
    splits = split_by_location(crops, plan.splits, tuple(plan.labels.classes), real_store, plan.model)
    return {"labels": labels, "detections": detections, "crops": crops, "splits": splits}


def test_the_plans_classes_are_the_coarse_classes_of_the_data(plan: Plan) -> None:
    with (DATA / "coarse_classes.csv").open(encoding="utf-8") as f:
        coarse = {row["name"]: row["coarse_class"] for row in csv.DictReader(f)}
    mapped = class_by_label(plan.labels)
    assert {label: coarse[label] for label in mapped} == mapped


def test_boxes_come_from_annotations_if_there_are_any_and_else_from_the_detector(steps: dict[str, Artifact], real_store: Store) -> None:
    labels, found = real_store.table(steps["labels"], "labels.parquet"), real_store.table(steps["detections"], "detections.parquet")
    boxed = set(labels.loc[labels["ymin"].notna(), "image_id"])
    assert set(found.loc[found["origin"] == "annotation", "image_id"]) == boxed
    assert boxed & set(found.loc[found["origin"] == "detector", "image_id"]) == set()
    assert (found["origin"] == "detector").sum() > 5


def test_no_real_location_sequence_or_image_is_in_two_splits(steps: dict[str, Artifact], real_store: Store) -> None:
    t = real_store.table(steps["crops"], "crops.parquet").merge(real_store.table(steps["splits"], "splits.parquet"), on="crop_id")
    for column in ("location", "sequence", "image"):
        assert t[t[column] != ""].groupby(column)["split"].nunique().max() == 1
    assert set(t["split"]) == {"train", "val", "test"}
    assert (t["location"] != "").all()


def test_the_megadetector_files_of_real_images_pass_the_fields_validator(steps: dict[str, Artifact], real_store: Store) -> None:
    from megadetector.postprocessing.validate_batch_results import validate_batch_results

    for step in ("labels", "detections"):
        checked = validate_batch_results(str(real_store.path(steps[step], "megadetector.json")))
        assert checked["validation_results"]["errors"] == []


@pytest.fixture
def local_aws(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import boto3

    with local_sagemaker(home / "sagemaker") as addresses:
        for name in [*addresses.variables(), "ANIML_ROLE_ARN", "ANIML_ENDPOINT_IMAGE"]:
            monkeypatch.setenv(name, "")  # so that what use_local_aws sets is taken back afterwards
            monkeypatch.delenv(name)
        use_local_aws(addresses.variables())
        boto3.client("s3").create_bucket(Bucket=load_settings().models_bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        yield


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("local_aws")
def test_the_model_is_held_released_by_force_and_every_live_answer_equals_the_offline_one(home: Path, real_store: Store, plan: Plan) -> None:
    variables = {"ANIML_STORE": str(home / "store"), "ANIML_DATA": str(DATA), "PREFECT_HOME": str(home / "prefect"), "COLUMNS": "160"}
    plain, forced = ["release", str(PLAN)], ["release", str(PLAN), "--force", "a trial"]
    output = {}
    for what, command, status in (("retrain", ["retrain", str(PLAN)], 0), ("refused", plain, 1), ("released", forced, 0)):
        done = subprocess.run(
            [sys.executable, "-m", "animl_pipeline.cli.main", *command],
            capture_output=True,
            text=True,
            env=os.environ | variables,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == status, done.stderr
        print(done.stderr, done.stdout)  # noqa: T201 - the figures for docs/real-data.md
        output[what] = done.stdout + done.stderr
    assert re.search(r"Hold: .*, because scored as in production, it", output["retrain"])
    assert "the plan asks for at least" in output["refused"]
    assert re.search(r"now serves|served already", output["released"])
    report = read_latest_report(plan.model, real_store)
    predictions = real_store.table(report.evaluation, "predictions.parquet")
    crops = real_store.table(Artifact.model_validate(_crops_of(real_store, report.model_artifact)), "crops.parquet")
    asked = predictions.merge(crops, on="crop_id", suffixes=("", "_crop"))
    differences = [_difference(row, plan, real_store) for row in asked.to_dict("records")]
    print(json.dumps({"crops": len(differences), "largest difference": max(differences)}))  # noqa: T201
    assert len(differences) == report.metrics.examples
    assert max(differences) <= plan.release.tolerance


def _difference(row: Mapping[Hashable, object], plan: Plan, store: Store) -> float:
    """The largest |probability live - offline| of one test crop."""
    box = Box.of([float(str(row[c])) for c in ("ymin", "xmin", "ymax", "xmax")])
    live = invoke_endpoint(plan.endpoint_name(), store.blob(str(row["image"])), box)
    assert set(live) == set(plan.labels.classes)
    return max(abs(p - float(str(row[f"p_{c}"]))) for c, p in live.items())


def _crops_of(store: Store, model: Artifact) -> dict[str, object]:
    """The crops step that a model was trained on, found by its digest."""
    wanted = store.manifest(model).inputs["crops"]
    for name in store.object_store.names("steps/crops/"):
        manifest = json.loads(store.object_store.read(name) or b"{}") if name.endswith("manifest.json") else {}
        if manifest.get("digest") == wanted:
            return {k: manifest[k] for k in ("step", "key", "digest", "counts")}
    raise AssertionError("the crops step is not in the store")

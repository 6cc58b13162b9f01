"""Re-inference of old images: a dry run, throttled requests within the endpoint's limit, nothing asked twice, no person's label touched."""

from __future__ import annotations

import json
import subprocess
import uuid
from datetime import date, datetime
from pathlib import Path

import pandas as pd
import pytest

from animl_pipeline.cli.reinfer import reinfer
from animl_pipeline.config import SourceConfig, ThresholdsConfig
from animl_pipeline.config.package_and_release import RegisterConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.deploy import deploy_package
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.trained_versions import save_report
from animl_pipeline.dev.sagemaker_local import Addresses
from animl_pipeline.review.reinfer import BATCH, execute, plan_reinference
from animl_pipeline.storage.store import Store
from tests.conftest import jpeg
from tests.support.coco_export import Export
from tests.support.command_line import COMMAND
from tests.support.endpoint_process import wait_until
from tests.support.packaged_model import CLASSES, colour_plan, make_package, make_report
from tests.support.sagemaker_faults import with_faults

RED, GREEN, GREY = (220, 40, 40), (40, 220, 40), (128, 128, 128)
BOX = [8.0, 8.0, 32.0, 32.0]


def old_images(folder: Path) -> SourceConfig:
    """Unreviewed images with a box and an old label: two that the model names otherwise, one that it does not know, one as before; and two others."""
    export = Export()
    export.categories = [{"id": i, "name": name} for i, name in enumerate(("empty", *CLASSES, "person"))]
    for i, (colour, old, day, reviewed) in enumerate(
        [(GREEN, 1, 2, False), (RED, 2, 2, False), (GREY, 1, 2, False), (RED, 1, 2, False), (RED, 2, 1, False), (RED, 2, 2, True), (RED, 4, 2, False)]
    ):
        image = export.image(data=jpeg(colour=colour, seed=i), datetime=f"2026-03-0{day}T10:00:{i:02d}")
        export.annotation(image, old, BOX, validated=reviewed, confidence=0.9)
    export.write(folder)
    return SourceConfig(name="isle", export=str(folder / "export.json"), images=str(folder / "images"))


def test_old_images_are_asked_about_once_within_the_limits_and_an_invader_comes_first(
    cloud: Addresses, store: Store, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = colour_plan(endpoint=f"old-{uuid.uuid4().hex[:6]}").model_copy(
        update={"sources": (old_images(tmp_path / "data"),), "thresholds": ThresholdsConfig(invasive=("green",))}
    )
    since = date(2026, 3, 2)
    with pytest.raises(ReleaseError) as caught:
        plan_reinference(plan, since, store, settings)
    assert caught.value.code == "not_released"
    package = make_package(store, tmp_path, thresholds=dict.fromkeys(CLASSES, 0.8))
    save_report(make_report(package, store), store)
    deploy_package(package, plan, store, settings)

    (tmp_path / "plan.yaml").write_text(json.dumps(plan.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
    reinfer(str(tmp_path / "plan.yaml"), datetime(2026, 3, 2), store=str(store.local), as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["boxes"], said["answered_before"], "changed" in said) == (4, 0, False)

    work = plan_reinference(plan, since, store, settings)
    assert (work.images, len(work.objects), work.answered, work.version) == (4, 4, 0, "1")
    assert work.seconds is not None
    with with_faults(cloud, invocations_throttled=6):
        changed, failed = execute(work, plan, tmp_path / "out", store, settings)
    assert failed == 0
    assert list(zip(changed["old"], changed["new"], changed["invasive"], strict=True)) == [
        ("red", "green", True),
        ("green", "red", False),
        ("red", "unknown", False),
    ]
    written = json.loads((tmp_path / "out" / "reinferred.json").read_bytes())
    assert len(written["images"]) == 4
    assert len(pd.read_csv(tmp_path / "out" / "changed.csv")) == 3

    AwsApi().delete_endpoint(work.endpoint, 60)  # the answers are in the store: nothing is asked again
    again, _ = execute(work, plan, tmp_path / "again", store, settings)
    pd.testing.assert_frame_equal(again, changed)
    strict = plan.model_copy(update={"release": plan.release.model_copy(update={"register_": RegisterConfig(disabled=("green",))})})
    fewer, _ = execute(work, strict, tmp_path / "strict", store, settings)
    assert sorted(zip(fewer["old"], fewer["new"], strict=True)) == [("green", "red"), ("red", "unknown"), ("red", "unknown")]


@pytest.mark.slow
def test_a_killed_command_keeps_its_answers_and_the_next_one_asks_for_the_rest(
    cloud: Addresses, store: Store, settings: Settings, tmp_path: Path
) -> None:
    export = Export()
    export.categories = [{"id": i, "name": name} for i, name in enumerate(("empty", *CLASSES))]
    for i in range(300):
        export.annotation(export.image(data=jpeg(colour=GREEN, seed=i)), 1, BOX, validated=False, confidence=0.9)
    export.write(tmp_path / "data")
    source = SourceConfig(name="isle", export=str(tmp_path / "data" / "export.json"), images=str(tmp_path / "data" / "images"))
    plan = colour_plan(endpoint=f"old-{uuid.uuid4().hex[:6]}").model_copy(update={"sources": (source,)})
    (tmp_path / "plan.yaml").write_text(json.dumps(plan.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
    package = make_package(store, tmp_path, thresholds=dict.fromkeys(CLASSES, 0.8))
    save_report(make_report(package, store), store)
    deploy_package(package, plan, store, settings)

    line = [*COMMAND, "reinfer", str(tmp_path / "plan.yaml"), "--since", "2026-01-01", "--execute", "--store", str(store.local)]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: plan_reinference(plan, date(2026, 1, 1), store, settings).answered >= BATCH, "a batch of answers", 120)
        process.kill()
    work = plan_reinference(plan, date(2026, 1, 1), store, settings)
    assert BATCH <= work.answered < 300
    changed, failed = execute(work, plan, tmp_path / "out", store, settings)
    assert (len(changed), failed) == (300, 0)
    assert plan_reinference(plan, date(2026, 1, 1), store, settings).answered == 300

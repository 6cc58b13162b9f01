"""Writing changed answers to Animl: to unreviewed images only, never twice, also after a kill between two labels."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import SecretStr

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.review.write_back import write_back
from animl_pipeline.storage.store import Store
from tests.review.conftest import animl_settings, unreview, with_project
from tests.support.animl_images import AnimlLabel, make_images
from tests.support.animl_server import AnimlServer, serve_animl
from tests.support.endpoint_process import wait_until
from tests.support.packaged_model import CLASSES
from tests.support.paths import ROOT

CATEGORIES = [{"_id": name, "name": name.title(), "color": "#112233"} for name in CLASSES]


@pytest.fixture
def site() -> Iterator[AnimlServer]:
    """60 images that people did not review, with an animal that the detector found."""
    images = unreview(make_images(60))
    for image in images:
        image.objects[0].labels = [AnimlLabel("animal", "megadetector_v5a", "5a", 0.9)]
    with serve_animl(images) as site:
        site.models = [{"_id": "colours", "version": "1", "categories": CATEGORIES, "expectsCrops": False}]
        yield site


@pytest.fixture
def project(plan: Plan, tmp_path: Path) -> Plan:
    return with_project(plan, tmp_path)


@pytest.fixture
def key(site: AnimlServer, settings: Settings) -> Settings:
    return animl_settings(site, settings).model_copy(update={"api_key": SecretStr(site.api_key)})


def changes(site: AnimlServer, new: dict[int, str] | None = None) -> pd.DataFrame:
    """All images' objects with a new answer, as reinfer gives them."""
    rows = [("isle", im.id, im.objects[0].id, (new or {}).get(i, "red"), 0.9) for i, im in enumerate(site.images)]
    return pd.DataFrame(rows, columns=["source", "image_id", "object", "new", "probability"])


def test_only_unreviewed_images_get_labels_once_on_the_object_with_the_same_box(
    site: AnimlServer, project: Plan, key: Settings, store: Store
) -> None:
    changed = changes(site, {0: "unknown", 1: "gone"})
    site.images[2].objects[0].validated = True  # reviewed after the endpoint was asked
    site.images[3].objects[0].labels = [AnimlLabel("fox", "colours", "0", 0.9, validated=False)]
    site.images[4].objects[0].locked = True
    site.images[5].objects = []
    site.images[6].objects[0].labels = [AnimlLabel("red", "colours", "1", 0.9)]
    expected = {"written": 53, "unknown": 1, "reviewed": 3, "gone": 1, "written_before": 1, "refused": 1}
    assert write_back(changed, "1", project, store, key) == expected
    assert Counter(image for image, _ in site.internal_labels) == Counter(im.id for im in site.images[7:])
    assert {(label.name, label.model, label.version, label.conf) for _, label in site.internal_labels} == {("Red", "colours", "1", 0.9)}
    assert {len(im.objects) for im in site.images[7:]} == {1}  # no new object: the box was the same
    again = write_back(changed, "1", project, store, key)
    assert (again["written_before"], again.get("written", 0), len(site.internal_labels)) == (54, 0, 53)


@pytest.mark.parametrize(("wrong", "code"), [({"api_key": SecretStr("")}, "no_api_key"), ({"api_key": SecretStr("another")}, "api_key_refused")])
def test_without_the_key_nothing_is_written_and_the_setting_is_named(
    site: AnimlServer, project: Plan, key: Settings, store: Store, wrong: dict[str, Any], code: str
) -> None:
    with pytest.raises(SettingsError, match="ANIML_API_KEY") as caught:
        write_back(changes(site), "1", project, store, key.model_copy(update=wrong))
    assert (caught.value.code, site.internal_labels) == (code, [])
    assert "another" not in str(caught.value)


def test_a_killed_run_leaves_no_label_twice_and_none_out(site: AnimlServer, project: Plan, key: Settings, store: Store, tmp_path: Path) -> None:
    site.seconds_per_label = 0.05
    changed = changes(site)
    changed.to_json(tmp_path / "changed.json")
    (tmp_path / "plan.json").write_text(project.model_dump_json(by_alias=True))
    script = f"""
import pandas as pd
from animl_pipeline.config import Plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.review.write_back import write_back
from animl_pipeline.storage.store import open_store
plan = Plan.model_validate_json(open("{tmp_path}/plan.json").read())
write_back(pd.read_json("{tmp_path}/changed.json", dtype=False), "1", plan, open_store(load_settings()), load_settings())
"""
    names = {"STORE": str(store.local), "API_URL": site.url, "ID_TOKEN": "token-of-a-service-user", "API_KEY": site.api_key}
    environment = {f"ANIML_{name}": value for name, value in names.items()} | {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment) as process:
        wait_until(lambda: len(site.internal_labels) >= 25 or process.poll() is not None, "some labels arrive", 60)
        process.kill()
    with site.lock:  # the request that was under way has ended
        arrived = len(site.internal_labels)
        site.seconds_per_label = 0
    assert 25 <= arrived < 60
    waiting = write_back(changed, "1", project, store, key)
    assert waiting["in_flight"] > 0
    assert write_back(changed, "1", project, store, key, in_flight_s=0)["written"] == waiting["in_flight"]
    assert Counter(image for image, _ in site.internal_labels) == Counter(im.id for im in site.images)

"""The list of images to review next: from Animl's unreviewed images or a folder, as a table, a page without people, and tags."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from animl_pipeline.config import Plan, ReviewConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PackageError
from animl_pipeline.deploy.trained_versions import save_report
from animl_pipeline.review.animl_tags import tag_images
from animl_pipeline.review.review_next import Wish, list_images, write_list
from animl_pipeline.storage.store import Store
from tests.review.conftest import BLUE, GREEN, GREY, RED, animl_settings, put_image, unreview, write_image, write_results
from tests.support.animl_images import make_images
from tests.support.animl_server import serve_animl
from tests.support.command_line import run_command
from tests.support.packaged_model import make_package, make_report

ANIMAL, PERSON = "1", "2"


def test_unreviewed_images_of_animl_are_listed_shown_without_people_and_tagged(tmp_path: Path, plan: Plan, store: Store, settings: Settings) -> None:
    animl = make_images(24)
    unreview(animl[:20])
    paths = [put_image(im, tmp_path / "images", (RED, GREEN, BLUE, GREY)[i % 4]) for i, im in enumerate(animl)]
    people = paths[3]
    results = write_results(tmp_path / "boxes.json", {p: [(ANIMAL, 0.9)] + ([(PERSON, 0.9)] if p == people else []) for p in paths})
    source = SourceConfig(name="isle", export="animl://isle", images=str(tmp_path / "images"))
    plan = plan.model_copy(update={"sources": (source,), "review": ReviewConfig(tag="review next")})
    plan = plan.model_copy(update={"monitor": plan.monitor.model_copy(update={"random_tag": "random"})})
    with serve_animl(animl) as site:
        settings = animl_settings(site, settings)
        found = list_images(plan, Wish(images=20, random_share=0.2, candidates=100, results=results), store, settings)
        files = write_list(found, tmp_path / "out", store)
        assert tag_images(found.table, plan, settings) == tag_images(found.table, plan, settings) == 20
        names = {tag["_id"]: tag["name"] for tag in site.tags}
        tagged = {im.id: {names[t] for t in im.tags} for im in site.images if im.tags}
    assert set(found.table["image_id"]) == {im.id for im in animl[:20]}
    assert found.pool.unreviewed == 20
    random = set(found.table.loc[found.table["random"], "image_id"])
    assert len(random) == 4
    assert tagged == {im.id: {"review next"} | ({"random"} if im.id in random else set()) for im in animl[:20]}
    page = files[1].read_text()
    assert page.count('src="data:image/jpeg;base64,') == 19
    assert page.count("https://animl.test/") == 20
    assert "<script" not in page
    table = pd.read_csv(files[0])
    assert table["rank"].tolist() == list(range(1, 21))
    assert table.loc[table["label"] == "unknown", "image_id"].tolist()
    (kept,) = store.object_store.names("reviews/colours/")
    assert store.object_store.read(kept) == files[0].read_bytes()


def test_the_command_lists_a_folder_whose_names_are_no_formulas_and_no_markup(tmp_path: Path, plan: Plan, store: Store) -> None:
    names = [write_image(tmp_path / "card" / "=1+1" / f"<b>{i}.jpg", RED, f"2024:05:31 10:00:0{i}") for i in range(2)]
    results = write_results(tmp_path / "boxes.json", {name: [(ANIMAL, 0.9)] for name in names})
    (tmp_path / "plan.yaml").write_text(json.dumps(plan.model_dump(mode="json", by_alias=True, include={"model", "sources", "labels"})))
    places = ("--store", store.local, "--folder", tmp_path / "card", "--results", results, "--out", tmp_path / "out")
    done = run_command("review-next", tmp_path / "plan.yaml", *places, "--count", "5", "--json")
    assert json.loads(done.stdout)["images"] == 1, done.stderr  # both images are of one sequence
    assert pd.read_csv(tmp_path / "out" / "review.csv")["location"].tolist() == ["'=1+1"]
    assert "<b>" not in (tmp_path / "out" / "review.html").read_text()


def test_a_package_of_an_earlier_version_is_refused_with_the_way_out(tmp_path: Path, plan: Plan, store: Store, settings: Settings) -> None:
    save_report(make_report(make_package(store, tmp_path, version="0"), store), store)
    with pytest.raises(PackageError) as caught:
        list_images(plan, Wish(images=5, random_share=0.1, candidates=5, folder=tmp_path), store, settings)
    assert caught.value.code == "no_embeddings"

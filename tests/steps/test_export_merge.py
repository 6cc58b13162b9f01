"""Merging Animl's answers: later answers replace earlier ones, image by image."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from animl_pipeline.steps.export.animl_merge import ExportMerge

IDS = st.sampled_from("abcde")
ANSWERS = st.lists(st.dictionaries(IDS, st.dictionaries(st.sampled_from(["1", "2", "3"]), st.sampled_from(["fox", "Rat"]), max_size=3)), max_size=4)


@hypothesis_settings(max_examples=60, deadline=None)
@given(ANSWERS, st.randoms(use_true_random=False))
def test_a_merge_equals_a_dictionary_that_later_answers_update(answers: list[dict[str, dict[str, str]]], random: Any) -> None:
    truth: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder, ExportMerge(Path(folder) / "m") as merge:
        for answer in answers:
            numbers = dict(zip(random.sample(["fox", "Rat"], 2), (1, 2), strict=True))
            coco = {
                "images": [{"id": image} for image in answer],
                "annotations": [
                    {"id": image + a, "image_id": image, "category_id": numbers[label]}
                    for image, annotations in answer.items()
                    for a, label in annotations.items()
                ],
                "categories": [{"id": i, "name": n} for n, i in numbers.items()],
            }
            changed = sum(image not in truth or truth[image] != annotations for image, annotations in answer.items())
            assert merge.add(coco) == changed
            truth |= answer
        merge.write(Path(folder) / "merged.json")
        merged = json.loads((Path(folder) / "merged.json").read_text())
    names = {c["id"]: c["name"] for c in merged["categories"]}
    assert [i["id"] for i in merged["images"]] == sorted(truth)
    assert {a["id"]: names[a["category_id"]] for a in merged["annotations"]} == {
        i + a: label for i, annotations in truth.items() for a, label in annotations.items()
    }

"""Crops: the right box for every label, each reason for a drop told, and no box ever cut twice."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from animl_pipeline.config import CropsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core import progress
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.boxes import Box
from animl_pipeline.core.errors import CropsError, ImageError
from animl_pipeline.core.imaging import extract_crop, open_image
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.step import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.steps.crops import extract_crops
from animl_pipeline.steps.crops.match_labels import choose_boxes
from animl_pipeline.steps.crops.perceptual_hash import compute_phash
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace, open_store
from tests.conftest import jpeg

NAN = float("nan")
NO_BOX = (NAN, NAN, NAN, NAN)
BOX = (0.25, 0.25, 0.75, 0.5)
VIEW = ModelInput(size=32)
DETECTION = ["source", "image_id", "blob", "annotation_id", "origin", "category", "confidence", "ymin", "xmin", "ymax", "xmax"]


def class_id(
    image_id: str, annotation_id: str = "o", box: tuple[float, ...] = NO_BOX, name: str = "fox", blob: str = "b", **more: Any
) -> dict[str, Any]:
    """A row of labels.parquet."""
    row = {
        "source": "island", "image_id": image_id, "annotation_id": annotation_id, "class_id": name, "label": name,
        "ymin": box[0], "xmin": box[1], "ymax": box[2], "xmax": box[3], "location": "island/P1", "taken": "2024-01-02T03:04:05", "sequence": "island/s",
        "blob": blob, "bytes": 100, "width": 64, "height": 48, "file_name": f"{image_id}.jpg",
    }  # fmt: skip
    return row | more


def found(image_id: str, box: tuple[float, ...] = BOX, annotation_id: str = "", confidence: float = 0.9, category: str = "1") -> dict[str, Any]:
    """A row of detections.parquet."""
    origin = "annotation" if annotation_id else "detector"
    return dict(zip(DETECTION, ("island", image_id, "b", annotation_id, origin, category, confidence, *box), strict=True))


def failed(image_id: str, reason: str) -> dict[str, Any]:
    return {"source": "island", "image_id": image_id, "reason": reason}


def tables(labels: list[Any], detections: list[Any], failures: list[Any]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    return (
        pd.DataFrame(labels),
        pd.DataFrame(detections, columns=DETECTION),
        pd.DataFrame(failures, columns=["source", "image_id", "reason"]),
    )


def choice(labels: list[Any], detections: list[Any], failures: list[Any] = [], spec: CropsConfig = CropsConfig()) -> tuple[list[Any], dict[str, int]]:  # noqa: B006, B008 - never changed
    """What is chosen, as (image, object, box), and the reasons for drops with their number."""
    chosen, dropped = choose_boxes(*tables(labels, detections, failures), spec)
    return [(c.what.image_id, c.what.annotation_id, c.where.box) for c in chosen], dict(Counter(d.reason for d in dropped))


def artifacts(store: Store, labels: list[Any], detections: list[Any], failures: list[Any] = []) -> tuple[Artifact, Artifact]:  # noqa: B006 - never changed
    """The two steps before, as if they had made these rows."""
    frames = tables(labels, detections, failures)

    def write(**files: pd.DataFrame) -> Any:
        def build(space: Workspace) -> StepOutput:
            for name, frame in files.items():
                write_parquet(space.out / f"{name}.parquet", frame)
            return StepOutput(Counts(kept=0))

        return build

    def config(*rows: list[Any]) -> dict[str, Any]:
        return {"rows": json.loads(json.dumps(rows))}

    return (
        store.make(Step("labels", version=1), config=config(labels), build=write(labels=frames[0])),
        store.make(Step("detections", version=1), config=config(detections, failures), build=write(detections=frames[1], failures=frames[2])),
    )


def img(store: Store, data: bytes) -> dict[str, Any]:
    """What a label's row says of its picture, which is put into the store."""
    try:
        width, height = open_image(data).size
    except ImageError:
        width, height = 64, 48
    return {"blob": store.put_blob(data), "bytes": len(data), "width": width, "height": height}


def crops_of(store: Store, artifact: Artifact) -> pd.DataFrame:
    return store.table(artifact, "crops.parquet")


# -- which object, which box


def test_an_object_with_a_box_gets_the_detection_of_its_id() -> None:
    other = (0.0, 0.0, 0.2, 0.2)
    chosen, dropped = choice([class_id("a", "o1", BOX), class_id("a", "o2", other)], [found("a", other, "o2"), found("a", BOX, "o1")])
    assert chosen == [("a", "o1", BOX), ("a", "o2", other)]
    assert dropped == {}


def test_an_image_level_label_goes_to_the_most_certain_animals_and_to_no_person_or_vehicle() -> None:
    boxes = [(0.0, 0.1 * i, 0.5, 0.1 * i + 0.3) for i in range(5)]
    detections = [found("a", box, confidence=0.3 + 0.1 * i) for i, box in enumerate(boxes)]
    detections += [found("a", (0.1, 0.1, 0.9, 0.9), confidence=0.99, category=c) for c in ("2", "3")]
    chosen, dropped = choice([class_id("a")], detections, spec=CropsConfig(max_per_image_level_label=3))
    assert [box for _, _, box in chosen] == boxes[:1:-1]
    assert dropped == {"beyond_cap": 2}


@pytest.mark.parametrize(
    ("rule", "kept", "reasons"), [("all", 3, {}), ("highest_confidence", 1, {"beyond_cap": 2}), ("drop_image", 0, {"several_boxes": 1})]
)
def test_an_image_with_several_boxes_and_one_label_goes_by_the_plans_rule(rule: Any, kept: int, reasons: dict[str, int]) -> None:
    detections = [found("a", (0.1 * i, 0.0, 0.1 * i + 0.3, 0.5), confidence=0.3 + 0.1 * i) for i in range(3)] + [found("b")]
    chosen, dropped = choice([class_id("a"), class_id("b")], detections, spec=CropsConfig(image_level_label=rule))
    assert [image for image, _, _ in chosen].count("a") == kept
    assert [image for image, _, _ in chosen].count("b") == 1, "one box is no question"
    assert dropped == reasons


def test_an_image_level_label_never_takes_a_reviewed_objects_box() -> None:
    chosen, dropped = choice([class_id("a", "o1", BOX), class_id("a", "o2")], [found("a", BOX, "o1")])
    assert chosen == [("a", "o1", BOX)]
    assert dropped == {"no_animal_found": 1}


def test_two_classes_on_an_image_without_boxes_are_ambiguous_and_twice_the_same_is_one() -> None:
    labels = [class_id("a", "o1"), class_id("a", "o2", name="bird"), class_id("b", "o1"), class_id("b", "o2")]
    chosen, dropped = choice(labels, [found("a"), found("b", (0.1, 0.1, 0.9, 0.9))])
    assert [image for image, _, _ in chosen] == ["b"]
    assert dropped == {"ambiguous_label": 2, "duplicate_label": 1}


def test_every_way_to_have_no_box_has_its_reason() -> None:
    labels = [class_id("a"), class_id("b", "o", BOX), class_id("c"), class_id("d")]
    chosen, dropped = choice(labels, [], [failed("c", "image_broken"), failed("d", "no_box")])
    assert chosen == []
    assert dropped == {"no_animal_found": 3, "image_broken": 1}


def test_persons_and_vehicles_are_never_cut_out_whatever_class_a_plan_gives_them() -> None:
    labels = [
        class_id("i1", "fox", BOX), class_id("i1", "p", (0, 0, 0.5, 0.5), name="Homo sapiens", class_id="human"),
        class_id("i2", "q", name="Person", class_id="human"), class_id("i3", "v", BOX, name="truck", class_id="other"),
    ]  # fmt: skip
    detections = [found("i1", annotation_id="fox"), found("i1", (0, 0, 0.5, 0.5), annotation_id="p"), found("i2"), found("i3", annotation_id="v")]
    assert choice(labels, detections) == ([("i1", "fox", BOX)], {"person_or_vehicle": 3})


def test_a_box_of_just_the_smallest_size_is_kept_and_one_below_is_not() -> None:
    labels = [class_id("a", "o1", BOX), class_id("a", "o2", BOX)]
    kept, below = (0.0, 0.0, 8 / 48, 1 / 64), (0.0, 0.0, 7.9 / 48, 1 / 64)
    chosen, dropped = choice(labels, [found("a", kept, "o1"), found("a", below, "o2")], spec=CropsConfig(min_pixels=8))
    assert chosen == [("a", "o1", kept)]
    assert dropped == {"too_small": 1}


def test_the_same_image_twice_is_one_crop_and_contradictory_ones_are_none() -> None:
    labels = [class_id("a", "o", BOX), class_id("b", "o", BOX), class_id("c", "o", BOX, blob="z"), class_id("d", "o", BOX, "bird", blob="z")]
    chosen, dropped = choice(
        [*labels, class_id("a", "p", BOX)], [found(i, BOX, o) for i, o in [("a", "o"), ("a", "p"), ("b", "o"), ("c", "o"), ("d", "o")]]
    )
    assert chosen == [("a", "o", BOX)]
    assert dropped == {"duplicate_image": 1, "duplicate_box": 1, "contradictory_label": 2}


starts, lengths = st.floats(0, 0.7), st.floats(0.001, 0.3)
boxes = st.tuples(starts, starts, lengths, lengths).map(lambda s: (s[0], s[1], s[0] + s[2], s[1] + s[3]))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["fox", "bird"]), st.one_of(st.just(NO_BOX), boxes)), min_size=1, max_size=6),
    st.lists(st.tuples(st.sampled_from("ab"), boxes, st.floats(0.2, 1)), max_size=6),
)
def test_every_object_is_chosen_or_dropped_and_no_box_is_chosen_twice(objects: list[Any], animals: list[Any]) -> None:
    labels = [class_id(image, f"o{i}", box, name) for i, (image, name, box) in enumerate(objects)]
    own = [found(image, box, f"o{i}") for i, (image, _, box) in enumerate(objects) if box != NO_BOX]
    free = [found(image, box, confidence=c) for image, box, c in animals]
    chosen, dropped = choose_boxes(*tables(labels, own + free, []), CropsConfig())
    assert {o["annotation_id"] for o in labels} == {c.what.annotation_id for c in chosen} | {d.annotation_id for d in dropped}
    cuts = [(c.what.blob, c.where.box) for c in chosen]
    assert len(cuts) == len(set(cuts))
    assert all(c.where.annotation_id in {"", c.what.annotation_id} for c in chosen)


# -- pictures


def test_a_crop_is_the_very_view_of_its_box_without_loss(store: Store, settings: Settings) -> None:
    data = jpeg(120, 90)
    labels, detections = artifacts(store, [class_id("a", "o", BOX, **img(store, data))], [found("a", BOX, "o")])
    model_input = ModelInput(size=48, margin=0.2)
    made = extract_crops(labels, detections, CropsConfig(), model_input, store, settings)
    (row,) = crops_of(store, made).to_dict("records")
    crop = Image.open(io.BytesIO(store.blob(row["blob"])))
    assert (crop.format, crop.mode, crop.size) == ("WEBP", "RGB", (48, 48))
    assert np.array_equal(np.asarray(crop), np.asarray(extract_crop(open_image(data), Box.of(list(BOX)), model_input)))
    assert (row["class_id"], row["location"], row["taken"], row["sequence"]) == ("fox", "island/P1", "2024-01-02T03:04:05", "island/s")
    assert (row["origin"], row["confidence"], row["image_bytes"]) == ("annotation", 0.9, len(data))
    assert [row[c] for c in ("ymin", "xmin", "ymax", "xmax")] == list(BOX)


def test_crops_of_images_that_show_a_person_or_a_vehicle_say_so_whoever_saw_it(store: Store, settings: Settings) -> None:
    images = ("plain", "walker", "jeep", "labelled person", "labelled car")
    rows = [class_id(name, "o", BOX, **img(store, jpeg(seed=i))) for i, name in enumerate(images)]
    boxes = [found(name, BOX, "o") for name in images]
    boxes += [found("walker", (0.1, 0.6, 0.9, 0.9), category="2"), found("jeep", (0.1, 0.6, 0.9, 0.9), category="3")]
    labels, detections = artifacts(store, rows, boxes)

    def more(step: str, before: Artifact, name: str, rows: list[dict[str, str]]) -> Artifact:
        """The step again, with one more table."""

        def build(space: Workspace) -> StepOutput:
            for file in store.files(before):
                shutil.copy(store.path(before, file), space.out / file)
            write_parquet(space.out / name, pd.DataFrame(rows))
            return StepOutput(Counts(kept=0))

        return store.make(Step(step, version=1), inputs={"before": before}, build=build)

    dropped = [{"source": "island", "image_id": image, "label": name} for image, name in (("labelled car", "Car"), ("plain", "rock"))]
    labels = more("labels", labels, "dropped.parquet", dropped)
    detections = more("detections", detections, "people.parquet", [{"source": "island", "image_id": "labelled person"}])
    made = extract_crops(labels, detections, CropsConfig(), VIEW, store, settings)
    said = crops_of(store, made).set_index("image_id")["with_people"]
    assert said.to_dict() == {name: name != "plain" for name in images}
    assert made.counts.notes == {"with_people_never_shown": 4}


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_cmyk_grey_and_16_bit_images_are_cut_and_broken_ones_are_counted(store: Store, settings: Settings) -> None:
    deep = Image.fromarray(np.full((48, 64), 40_000, np.uint16))
    imgs = {
        "cmyk": encoded(Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG"),
        "grey": encoded(Image.new("L", (64, 48), 77), "JPEG"),
        "deep": encoded(deep, "PNG"),
        "cut-off": jpeg()[:-400],
        "letter": b"dear reader",
    }
    labels = [class_id(name, "o", BOX, **img(store, data)) for name, data in imgs.items()]
    made = extract_crops(*artifacts(store, labels, [found(name, BOX, "o") for name in imgs]), CropsConfig(), VIEW, store, settings)
    assert made.counts == Counts(kept=3, dropped={"image_broken": 2}, unit="crops")
    assert set(store.table(made, "dropped.parquet")["image_id"]) == {"cut-off", "letter"}
    centre = {r.image_id: open_image(store.blob(r.blob)).getpixel((16, 16)) for r in crops_of(store, made).itertuples()}
    assert centre["grey"] == (77, 77, 77)
    assert centre["deep"] == (40_000 >> 8,) * 3
    red, green, blue = centre["cmyk"]
    assert red > 200
    assert max(green, blue) < 60


def test_the_table_is_the_same_whatever_the_order_and_the_number_of_threads(tmp_path: Path, store: Store, settings: Settings) -> None:
    def made_in(store: Store, workers: int, turned: bool) -> Artifact:
        labels = [class_id(f"i{i:02}", "o", BOX, **img(store, jpeg(seed=i))) for i in range(12)]
        rows = labels[::-1] if turned else labels
        inputs = artifacts(store, rows, [found(r["image_id"], BOX, "o") for r in rows])
        return extract_crops(*inputs, CropsConfig(), VIEW, store, settings.model_copy(update={"workers": workers}))

    one, other = made_in(store, 1, False), made_in(open_store(Settings(store=str(tmp_path / "other"))), 8, True)
    assert one.digest == other.digest


def test_only_new_boxes_are_cut_and_old_crops_keep_their_names(store: Store, settings: Settings) -> None:
    old = [class_id(f"i{i}", "o", BOX, **img(store, jpeg(seed=i))) for i in range(10)]
    new = class_id("new", "o", BOX, **img(store, jpeg(seed=99)))
    first = extract_crops(*artifacts(store, old, [found(r["image_id"], BOX, "o") for r in old]), CropsConfig(), VIEW, store, settings)
    told: list[tuple[str, int, int]] = []
    progress.set_listener(lambda *step: told.append(step))
    both = artifacts(store, [*old, new], [found(r["image_id"], BOX, "o") for r in [*old, new]])
    second = extract_crops(*both, CropsConfig(), VIEW, store, settings)
    progress.set_listener(None)
    assert told == [("crops", 10, 11), ("crops", 11, 11)]
    assert set(crops_of(store, first)["crop_id"]) < set(crops_of(store, second)["crop_id"])


def test_a_crop_that_vanished_from_the_store_is_cut_again(store: Store, settings: Settings) -> None:
    rows = [class_id(f"i{i}", "o", BOX, **img(store, jpeg(seed=i))) for i in range(3)]
    inputs = artifacts(store, rows, [found(r["image_id"], BOX, "o") for r in rows])
    first = extract_crops(*inputs, CropsConfig(), VIEW, store, settings)
    blob = crops_of(store, first)["blob"].iloc[0]
    (Path(settings.store) / "blobs" / blob[:2] / blob).unlink()
    again = extract_crops(*inputs, CropsConfig(), VIEW, store, settings)
    assert (again.cached, again.digest) == (False, first.digest)
    assert open_image(store.blob(blob)).size == (32, 32)


def test_mean_and_std_of_the_view_do_not_matter_and_its_size_does(store: Store, settings: Settings) -> None:
    inputs = artifacts(store, [class_id("a", "o", BOX, **img(store, jpeg()))], [found("a", BOX, "o")])
    keys = [
        extract_crops(*inputs, CropsConfig(), model_input, store, settings).key
        for model_input in (ModelInput(size=32), ModelInput(size=32, mean=(0.5, 0.5, 0.5)), ModelInput(size=40), ModelInput(size=32, margin=0.5))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_large_image_is_known_again_when_it_is_resized_and_encoded_anew_and_is_no_other() -> None:
    chance = np.random.default_rng(3)

    def scene() -> Image.Image:
        rough = Image.fromarray(chance.integers(20, 235, (24, 32, 3)).astype(np.uint8)).resize((2048, 1536), Image.Resampling.BICUBIC)
        grained = np.asarray(rough, np.int16) + chance.integers(-20, 21, (1536, 2048, 1))
        return Image.fromarray(grained.clip(0, 255).astype(np.uint8))

    def looks(image: Image.Image) -> int:
        return int(compute_phash(image), 16)

    one, other = scene(), scene()
    again = [open_image(encoded(one.resize(size, Image.Resampling.LANCZOS), "JPEG")) for size in ((2048, 1536), (1600, 1200), (640, 480))]
    assert max((looks(one) ^ looks(a)).bit_count() for a in again) <= 6
    assert (looks(one) ^ looks(other)).bit_count() > 30


def test_nothing_left_to_cut_is_one_line_with_the_reasons_and_what_to_turn(store: Store, settings: Settings) -> None:
    inputs = artifacts(store, [class_id("a"), class_id("b", "o", BOX)], [])
    with pytest.raises(CropsError, match=r"found none: 2 no animal found; .*detections\.confidence or crops\.min_pixels") as refused:
        extract_crops(*inputs, CropsConfig(), VIEW, store, settings)
    assert "\n" not in str(refused.value)


def test_crops_lie_in_s3_as_well(bucket: str, tmp_path: Path, settings: Settings) -> None:
    store = open_store(Settings(store=f"s3://{bucket}/store", cache=tmp_path / "cache"))
    rows = [class_id(f"i{i}", "o", BOX, **img(store, jpeg(seed=i))) for i in range(4)]
    made = extract_crops(*artifacts(store, rows, [found(r["image_id"], BOX, "o") for r in rows]), CropsConfig(), VIEW, store, settings)
    assert [open_image(store.blob(b)).size for b in crops_of(store, made)["blob"]] == [(32, 32)] * 4

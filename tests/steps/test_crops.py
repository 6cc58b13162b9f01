"""The step crops: the right box for every label, a reason for every dropped label, and no crop extracted twice."""

from __future__ import annotations

import io
import json
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
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import CropsError, ImageError
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.model_input import extract_crop
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, DETECTION_FAILURES, DETECTIONS, DROPPED_ANNOTATIONS, DROPPED_LABELS, IMAGES_WITH_PEOPLE, LABELS
from animl_pipeline.core.tables import Table, write_table
from animl_pipeline.steps.crops import extract_crops
from animl_pipeline.steps.crops.extract import compute_phash
from animl_pipeline.steps.crops.match_labels import match_labels
from animl_pipeline.storage.store import StepOutput, Store, Workspace, open_store
from tests.conftest import jpeg
from tests.support.hostile_images import EXIF, flat_png, jpeg_with_segments
from tests.support.table_rows import fill_rows

NAN = float("nan")
NO_BOX = (NAN, NAN, NAN, NAN)
BOX = (0.25, 0.25, 0.75, 0.5)
MODEL_INPUT = ModelInput(size=32)
Row = dict[str, Any]


def label(image_id: str, annotation_id: str = "o", box: tuple[float, ...] = NO_BOX, name: str = "fox", blob: str = "b", **more: Any) -> Row:
    """A row of labels.parquet."""
    row = {
        "source": "island", "image_id": image_id, "annotation_id": annotation_id, "class_id": name, "label": name,
        "ymin": box[0], "xmin": box[1], "ymax": box[2], "xmax": box[3], "location": "island/P1", "taken": "2024-01-02T03:04:05",
        "sequence": "island/s", "blob": blob, "bytes": 100, "width": 64, "height": 48, "file_name": f"{image_id}.jpg",
    }  # fmt: skip
    return row | more


def detection(image_id: str, box: tuple[float, ...] = BOX, annotation_id: str = "", confidence: float = 0.9, category: str = "1") -> Row:
    """A row of detections.parquet."""
    return {
        "source": "island", "image_id": image_id, "blob": "b", "annotation_id": annotation_id, "category": category, "confidence": confidence,
        "origin": "annotation" if annotation_id else "detector", "ymin": box[0], "xmin": box[1], "ymax": box[2], "xmax": box[3],
    }  # fmt: skip


def failure(image_id: str, reason: str) -> Row:
    """A row of detector_failures.parquet."""
    return {"source": "island", "image_id": image_id, "reason": reason}


def match(
    labels: list[Row],
    detections: list[Row],
    failures: list[Row] = [],  # noqa: B006 - never changed
    config: CropsConfig = CropsConfig(),  # noqa: B008 - never changed
    dropped: list[Row] = [],  # noqa: B006 - never changed
) -> tuple[list[Any], dict[str, int]]:
    """The matches as (image, annotation, box), and the number of dropped labels by reason."""
    tables = [fill_rows(t, rows) for t, rows in ((LABELS, labels), (DROPPED_ANNOTATIONS, dropped), (DETECTIONS, detections))]
    matches, without = match_labels(*tables, fill_rows(DETECTION_FAILURES, failures), config)
    return [(m.annotation.image_id, m.annotation.annotation_id, m.animal.box) for m in matches], dict(Counter(d.reason for d in without))


def make_artifacts(
    store: Store,
    labels: list[Row],
    detections: list[Row],
    dropped: list[Row] = [],  # noqa: B006 - never changed
    people: list[Row] = [],  # noqa: B006 - never changed
) -> tuple[Artifact, Artifact]:
    """Artifacts of the steps labels and detections with these rows."""

    def make(step: str, tables: dict[Table, list[Row]]) -> Artifact:
        def build(space: Workspace) -> StepOutput:
            for table, rows in tables.items():
                write_table(space.out, table, fill_rows(table, rows))
            return StepOutput(Counts(kept=0))

        return store.make(Step(step, version=1), config={"rows": json.loads(json.dumps(list(tables.values())))}, build=build)

    return (
        make("labels", {LABELS: labels, DROPPED_ANNOTATIONS: dropped}),
        make("detections", {DETECTIONS: detections, DETECTION_FAILURES: [], IMAGES_WITH_PEOPLE: people}),
    )


def make_boxed(store: Store, rows: list[Row], box: tuple[float, ...] = BOX) -> tuple[Artifact, Artifact]:
    """Artifacts with one reviewed box for each label."""
    return make_artifacts(store, rows, [detection(r["image_id"], box, r["annotation_id"]) for r in rows])


def stored_image(store: Store, data: bytes) -> Row:
    """The columns that describe an image, which is put into the store."""
    try:
        width, height = open_image(data).size
    except ImageError:
        width, height = 64, 48
    return {"blob": store.put_blob(data), "bytes": len(data), "width": width, "height": height}


def boxed_labels(store: Store, count: int) -> list[Row]:
    return [label(f"i{i:02}", "o", BOX, **stored_image(store, jpeg(seed=i))) for i in range(count)]


def read_crops(store: Store, crops: Artifact) -> pd.DataFrame:
    return store.table(crops, CROPS)


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


# -- which label gets which box


def test_an_annotation_with_a_box_gets_the_detection_with_its_id() -> None:
    other = (0.0, 0.0, 0.2, 0.2)
    matches, dropped = match([label("a", "o1", BOX), label("a", "o2", other)], [detection("a", other, "o2"), detection("a", BOX, "o1")])
    assert matches == [("a", "o1", BOX), ("a", "o2", other)]
    assert dropped == {}


def test_boxes_are_cut_at_the_edges_of_the_image_and_those_beyond_it_are_not_used() -> None:
    boxes = [(-0.1, 0.2, 0.5, 1.002), (1.1, 0.2, 1.4, 0.5), (0.2, NAN, 0.4, 0.5)]
    matches, dropped = match([label(i) for i in "abc"], [detection(i, box) for i, box in zip("abc", boxes, strict=True)])
    assert matches == [("a", "o", (0.0, 0.2, 0.5, 1.0))]
    assert dropped == {"no_animal_found": 2}


def test_an_image_level_label_goes_to_the_animals_with_the_highest_confidence_only() -> None:
    boxes = [(0.0, 0.1 * i, 0.5, 0.1 * i + 0.3) for i in range(5)]
    detections = [detection("a", box, confidence=0.3 + 0.1 * i) for i, box in enumerate(boxes)]
    detections += [detection("a", (0.1, 0.1, 0.9, 0.9), confidence=0.99, category=c) for c in ("2", "3")]
    matches, dropped = match([label("a")], detections, config=CropsConfig(max_per_image_level_label=3))
    assert [box for _, _, box in matches] == boxes[:1:-1]
    assert dropped == {"beyond_cap": 2}


@pytest.mark.parametrize(
    ("rule", "kept", "reasons"), [("all", 3, {}), ("highest_confidence", 1, {"beyond_cap": 2}), ("drop_image", 0, {"several_boxes": 1})]
)
def test_the_plan_decides_about_an_image_with_one_label_and_several_boxes(rule: Any, kept: int, reasons: dict[str, int]) -> None:
    detections = [detection("a", (0.1 * i, 0.0, 0.1 * i + 0.3, 0.5), confidence=0.3 + 0.1 * i) for i in range(3)] + [detection("b")]
    matches, dropped = match([label("a"), label("b")], detections, config=CropsConfig(image_level_label=rule))
    assert [image for image, _, _ in matches].count("a") == kept
    assert [image for image, _, _ in matches].count("b") == 1, "an image with one box keeps it"
    assert dropped == reasons


def test_an_image_level_label_never_gets_the_box_of_another_annotation() -> None:
    matches, dropped = match([label("a", "o1", BOX), label("a", "o2")], [detection("a", BOX, "o1")])
    assert matches == [("a", "o1", BOX)]
    assert dropped == {"no_animal_found": 1}


def test_an_image_level_label_never_gets_what_a_person_boxed_and_labelled_otherwise() -> None:
    away, loose = (0.0, 0.6, 0.2, 0.9), (0.2, 0.2, 0.9, 0.9)
    dropped = [label(image, "x", box, "empty") for image, box in (("a", loose), ("b", BOX), ("c", NO_BOX))]
    labels = [label(image) for image in "abc"] + [label("d"), label("d", "p", BOX, name="person")]
    detections = [detection(image) for image in "abcd"] + [detection("a", away)]
    matches, without = match(labels, detections, dropped=dropped)
    assert matches == [("a", "o", away), ("c", "o", BOX)]
    assert without == {"box_of_another_label": 2, "person_or_vehicle": 1}


def test_two_classes_of_image_level_labels_are_ambiguous_and_two_of_one_class_are_one() -> None:
    labels = [label("a", "o1"), label("a", "o2", name="bird"), label("b", "o1"), label("b", "o2")]
    matches, dropped = match(labels, [detection("a"), detection("b", (0.1, 0.1, 0.9, 0.9))])
    assert [image for image, _, _ in matches] == ["b"]
    assert dropped == {"ambiguous_label": 2, "duplicate_label": 1}


def test_a_label_without_a_box_is_dropped_for_the_detectors_reason() -> None:
    labels = [label("a"), label("b", "o", BOX), label("c"), label("d")]
    matches, dropped = match(labels, [], [failure("c", "image_broken"), failure("d", "no_box")])
    assert matches == []
    assert dropped == {"no_animal_found": 3, "image_broken": 1}


def test_people_and_vehicles_are_never_cropped_whatever_class_the_plan_gives_them() -> None:
    labels = [
        label("i1", "fox", BOX), label("i1", "p", (0, 0, 0.5, 0.5), name="Homo sapiens", class_id="human"),
        label("i2", "q", name="Person", class_id="human"), label("i3", "v", BOX, name="truck", class_id="other"),
    ]  # fmt: skip
    detections = [detection("i1", BOX, "fox"), detection("i1", (0, 0, 0.5, 0.5), "p"), detection("i2"), detection("i3", BOX, "v")]
    assert match(labels, detections) == ([("i1", "fox", BOX)], {"person_or_vehicle": 3})


def test_a_box_of_the_smallest_size_is_kept_and_a_smaller_one_is_dropped() -> None:
    labels = [label("a", "o1", BOX), label("a", "o2", BOX)]
    smallest, smaller = (0.0, 0.0, 8 / 48, 1 / 64), (0.0, 0.0, 7.9 / 48, 1 / 64)
    detections = [detection("a", smallest, "o1"), detection("a", smaller, "o2")]
    assert match(labels, detections, config=CropsConfig(min_pixels=8)) == ([("a", "o1", smallest)], {"too_small": 1})


def test_a_box_of_a_duplicate_image_is_cropped_once_and_not_at_all_if_classes_differ() -> None:
    labels = [
        label("a", "o", BOX),
        label("b", "o", BOX),
        label("c", "o", BOX, blob="z"),
        label("d", "o", BOX, "bird", blob="z"),
        label("a", "p", BOX),
    ]
    detections = [detection(image, BOX, annotation) for image, annotation in [("a", "o"), ("a", "p"), ("b", "o"), ("c", "o"), ("d", "o")]]
    assert match(labels, detections) == ([("a", "o", BOX)], {"duplicate_image": 1, "duplicate_box": 1, "contradictory_label": 2})


starts, lengths = st.floats(0, 0.7), st.floats(0.001, 0.3)
boxes = st.tuples(starts, starts, lengths, lengths).map(lambda s: (s[0], s[1], s[0] + s[2], s[1] + s[3]))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["fox", "bird"]), st.one_of(st.just(NO_BOX), boxes)), min_size=1, max_size=6),
    st.lists(st.tuples(st.sampled_from("ab"), boxes, st.floats(0.2, 1)), max_size=6),
)
def test_every_label_is_matched_or_dropped_and_no_box_is_matched_twice(annotations: list[Any], animals: list[Any]) -> None:
    labels = [label(image, f"o{i}", box, name) for i, (image, name, box) in enumerate(annotations)]
    reviewed = [detection(image, box, f"o{i}") for i, (image, _, box) in enumerate(annotations) if box != NO_BOX]
    free = [detection(image, box, confidence=c) for image, box, c in animals]
    claimed = [label(image, "x", box) for image, box, c in animals if c > 0.8]
    tables = [fill_rows(t, rows) for t, rows in ((LABELS, labels), (DROPPED_ANNOTATIONS, claimed), (DETECTIONS, reviewed + free))]
    matches, dropped = match_labels(*tables, fill_rows(DETECTION_FAILURES, []), CropsConfig())
    assert {row["annotation_id"] for row in labels} == {m.annotation.annotation_id for m in matches} | {d.annotation_id for d in dropped}
    crops = [(m.annotation.blob, m.animal.box) for m in matches]
    assert len(crops) == len(set(crops))
    assert all(m.animal.annotation_id in {"", m.annotation.annotation_id} for m in matches)


# -- images and crops


def test_a_crop_has_exactly_the_pixels_of_the_model_input(store: Store, settings: Settings) -> None:
    data = jpeg(120, 90)
    model_input = ModelInput(size=48, margin=0.2)
    made = extract_crops(*make_boxed(store, [label("a", "o", BOX, **stored_image(store, data))]), CropsConfig(), model_input, store, settings)
    (row,) = read_crops(store, made).to_dict("records")
    crop = Image.open(io.BytesIO(store.blob(row["blob"])))
    assert (crop.format, crop.mode, crop.size) == ("WEBP", "RGB", (48, 48))
    assert np.array_equal(np.asarray(crop), np.asarray(extract_crop(open_image(data), Box.of(list(BOX)), model_input)))
    assert (row["class_id"], row["location"], row["taken"], row["sequence"]) == ("fox", "island/P1", "2024-01-02T03:04:05", "island/s")
    assert (row["origin"], row["confidence"], row["image_bytes"]) == ("annotation", 0.9, len(data))
    assert tuple(row[c] for c in ("ymin", "xmin", "ymax", "xmax")) == BOX


def test_crops_of_images_with_a_labelled_or_detected_person_or_vehicle_are_marked(store: Store, settings: Settings) -> None:
    images = ("plain", "walker", "jeep", "labelled person", "labelled car")
    rows = [label(name, "o", BOX, **stored_image(store, jpeg(seed=i))) for i, name in enumerate(images)]
    detections = [detection(name, BOX, "o") for name in images]
    detections += [detection("walker", (0.1, 0.6, 0.9, 0.9), category="2"), detection("jeep", (0.1, 0.6, 0.9, 0.9), category="3")]
    dropped = [{"source": "island", "image_id": image, "label": name} for image, name in (("labelled car", "Car"), ("plain", "rock"))]
    people = [{"source": "island", "image_id": "labelled person"}]
    inputs = make_artifacts(store, rows, detections, dropped, people)
    made = extract_crops(*inputs, CropsConfig(), MODEL_INPUT, store, settings)
    assert read_crops(store, made).set_index("image_id")["with_people"].to_dict() == {name: name != "plain" for name in images}
    assert made.counts.notes == {"with_people_never_shown": 4}


def test_every_kind_of_image_is_cropped_and_broken_ones_are_counted(store: Store, settings: Settings) -> None:
    palette = io.BytesIO()
    Image.new("RGB", (64, 48), (180, 20, 20)).quantize(4).save(palette, "PNG", transparency=0)
    images = {
        "cmyk": encode(Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG"),
        "grey": encode(Image.new("L", (64, 48), 77), "JPEG"),
        "16 bit": encode(Image.fromarray(np.full((48, 64), 40_000, np.uint16)), "PNG"),
        "one bit": encode(Image.new("1", (64, 48), 1), "PNG"),
        "palette": palette.getvalue(),
        "truncated": jpeg()[:-400],
        "text": b"dear reader",
        "strip": flat_png(70_000, 4),
        "column": flat_png(4, 70_000),
        "segments": jpeg_with_segments(0xE1, EXIF, 300),
    }
    broken = {"truncated", "text", "strip", "column", "segments"}
    rows = [label(name, "o", BOX, **stored_image(store, data)) for name, data in images.items()]
    made = extract_crops(*make_boxed(store, rows), CropsConfig(), MODEL_INPUT, store, settings)
    assert made.counts == Counts(kept=len(images) - len(broken), dropped={"image_broken": len(broken)}, unit="crops")
    assert set(store.table(made, DROPPED_LABELS)["image_id"]) == broken
    centre = {r.image_id: open_image(store.blob(r.blob)).getpixel((16, 16)) for r in read_crops(store, made).itertuples()}
    assert centre["grey"] == (77, 77, 77)
    assert centre["16 bit"] == (40_000 >> 8,) * 3
    assert centre["one bit"] == (255, 255, 255)
    assert centre["palette"] == (180, 20, 20)
    for row in read_crops(store, made).itertuples():  # what the endpoint makes of the same file and box
        served = extract_crop(open_image(images[row.image_id]), Box.of(BOX), MODEL_INPUT)
        assert np.array_equal(np.asarray(open_image(store.blob(row.blob))), np.asarray(served))
    red, green, blue = centre["cmyk"]
    assert red > 200
    assert max(green, blue) < 60


def test_the_table_does_not_depend_on_the_order_or_the_number_of_threads(tmp_path: Path, store: Store, settings: Settings) -> None:
    one = extract_crops(*make_boxed(store, boxed_labels(store, 12)), CropsConfig(), MODEL_INPUT, store, settings.model_copy(update={"workers": 1}))
    other = open_store(Settings(store=str(tmp_path / "other")))
    inputs = make_boxed(other, boxed_labels(other, 12)[::-1])
    two = extract_crops(*inputs, CropsConfig(), MODEL_INPUT, other, settings.model_copy(update={"workers": 8}))
    assert one.digest == two.digest


def test_only_new_boxes_are_cropped_and_old_crops_keep_their_ids(store: Store, settings: Settings) -> None:
    old = boxed_labels(store, 10)
    new = label("new", "o", BOX, **stored_image(store, jpeg(seed=99)))
    first = extract_crops(*make_boxed(store, old), CropsConfig(), MODEL_INPUT, store, settings)
    reported: list[tuple[str, int, int]] = []
    progress.set_listener(lambda *step: reported.append(step))
    second = extract_crops(*make_boxed(store, [*old, new]), CropsConfig(), MODEL_INPUT, store, settings)
    progress.set_listener(None)
    assert reported == [("crops", 10, 11), ("crops", 11, 11)]
    assert set(read_crops(store, first)["crop_id"]) < set(read_crops(store, second)["crop_id"])


def test_a_crop_that_is_missing_from_the_store_is_extracted_again(store: Store, settings: Settings) -> None:
    inputs = make_boxed(store, boxed_labels(store, 3))
    first = extract_crops(*inputs, CropsConfig(), MODEL_INPUT, store, settings)
    blob = read_crops(store, first)["blob"].iloc[0]
    (Path(settings.store) / "blobs" / blob[:2] / blob).unlink()
    again = extract_crops(*inputs, CropsConfig(), MODEL_INPUT, store, settings)
    assert (again.cached, again.digest) == (False, first.digest)
    assert open_image(store.blob(blob)).size == (32, 32)


def test_size_and_margin_of_the_model_input_change_the_crops_and_its_mean_does_not(store: Store, settings: Settings) -> None:
    inputs = make_boxed(store, boxed_labels(store, 1))
    model_inputs = (ModelInput(size=32), ModelInput(size=32, mean=(0.5, 0.5, 0.5)), ModelInput(size=40), ModelInput(size=32, margin=0.5))
    keys = [extract_crops(*inputs, CropsConfig(), model_input, store, settings).key for model_input in model_inputs]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_perceptual_hash_survives_resizing_and_encoding_and_tells_images_apart() -> None:
    rng = np.random.default_rng(3)

    def scene() -> Image.Image:
        coarse = Image.fromarray(rng.integers(20, 235, (24, 32, 3)).astype(np.uint8)).resize((2048, 1536), Image.Resampling.BICUBIC)
        grained = np.asarray(coarse, np.int16) + rng.integers(-20, 21, (1536, 2048, 1))
        return Image.fromarray(grained.clip(0, 255).astype(np.uint8))

    def bits(image: Image.Image) -> int:
        return int(compute_phash(image), 16)

    one, other = scene(), scene()
    again = [open_image(encode(one.resize(size, Image.Resampling.LANCZOS), "JPEG")) for size in ((2048, 1536), (1600, 1200), (640, 480))]
    assert max((bits(one) ^ bits(a)).bit_count() for a in again) <= 6
    assert (bits(one) ^ bits(other)).bit_count() > 30


def test_without_any_crop_the_error_has_the_reasons(store: Store, settings: Settings) -> None:
    with pytest.raises(CropsError) as refused:
        extract_crops(*make_artifacts(store, [label("a"), label("b", "o", BOX)], []), CropsConfig(), MODEL_INPUT, store, settings)
    assert (refused.value.code, refused.value.details) == ("no_crops", {"dropped": {"no_animal_found": 2}})
    assert "\n" not in str(refused.value)


def test_crops_are_stored_in_s3(bucket: str, tmp_path: Path, settings: Settings) -> None:
    store = open_store(Settings(store=f"s3://{bucket}/store", cache=tmp_path / "cache"))
    made = extract_crops(*make_boxed(store, boxed_labels(store, 4)), CropsConfig(), MODEL_INPUT, store, settings)
    assert [open_image(store.blob(b)).size for b in read_crops(store, made)["blob"]] == [(32, 32)] * 4

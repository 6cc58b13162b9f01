"""The choice of images: never two of a sequence, a random part of the wished size, strangers and thin classes where there are any."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from animl_pipeline.inference.embedding_reference import EmbeddingReference
from animl_pipeline.review.candidates import sample_pool
from animl_pipeline.review.choose_images import Candidates, choose_images
from animl_pipeline.review.folder_images import IMAGE_COLUMNS
from tests.review.conftest import BLUE, GREEN, RED, STRANGE, colour_reference


def animals_of(colours: np.ndarray, reference: EmbeddingReference, per_sequence: int = 1) -> Candidates:
    """One animal of a colour in each image; images of a sequence follow each other."""
    embeddings = 2 * colours / 255 - 1
    logits = 4 * embeddings
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    images = np.arange(len(colours))
    location = np.array([f"place {i % 4}" for i in images], object)
    return Candidates(
        images, images // per_sequence, location, probability, reference.components(embeddings), reference.stranger_scores(embeddings, probability)
    )


@settings(max_examples=10, deadline=None)
@given(
    images=st.integers(1, 60),
    per_sequence=st.integers(1, 4),
    count=st.integers(1, 50),
    share=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 9),
)
def test_no_two_images_are_of_a_sequence_and_the_random_part_has_its_size(
    images: int, per_sequence: int, count: int, share: float, seed: int
) -> None:
    colours = np.random.default_rng(seed).integers(0, 256, (images, 3)).astype(float)
    animals = animals_of(colours, colour_reference(), per_sequence)
    sequences = len(np.unique(animals.sequence))
    drawn = np.arange(0, images, per_sequence)[: round(count * share)]
    found = choose_images(animals, animals.sequence, drawn, colour_reference(), [0], count)
    assert not pd.Series(animals.sequence[found["image"]]).duplicated().any()
    assert len(found) == min(count, sequences)
    assert int((found["reason"] == "random").sum()) == len(drawn)


def test_strangers_and_thin_classes_are_on_the_list_with_their_reason() -> None:
    colours = np.array([GREEN] * 40 + [BLUE] * 40 + [RED] * 3 + [STRANGE] * 3, float) + np.random.default_rng(0).normal(0, 4, (86, 3))
    found = choose_images(animals_of(colours, colour_reference()), np.arange(86), np.zeros(0, np.int64), colour_reference(), [0], 20)
    reason = found.set_index("image")["reason"]
    assert set(reason.index[reason == "stranger"]) == {83, 84, 85}
    assert set(reason.index[reason == "thin_class"]) == {80, 81, 82}
    assert (reason == "informative").sum() == 14


def test_a_pool_has_one_image_of_a_sequence_and_the_same_random_part_for_the_same_seed() -> None:
    taken = [f"2024-05-31T{hour:02}:00:{second:02}" for hour in range(20) for second in (0, 1, 2)]
    rows = [("isle", f"{i}", f"{i}.jpg", "", ("cove", "dune")[i // 30], time, "") for i, time in enumerate(taken)]
    images = pd.DataFrame(rows, columns=IMAGE_COLUMNS)
    pool = sample_pool(images, random=4, most=10, seed=1, gap_s=3)
    assert (pool.unreviewed, pool.sequences, len(pool.images), int(pool.random.sum())) == (60, 20, 14, 4)
    assert pool.images["sequence"].is_unique
    assert pool.images.loc[~pool.random, "location"].value_counts().tolist() == [5, 5]
    pd.testing.assert_frame_equal(pool.images, sample_pool(images, random=4, most=10, seed=1, gap_s=3).images)
    assert set(pool.images["image_id"][:4]) != set(sample_pool(images, random=4, most=10, seed=2, gap_s=3).images["image_id"][:4])

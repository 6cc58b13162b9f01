"""The step `splits`: divide the crops into train, val and test by location."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import SplitsConfig
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import DamagedError, SplitsError
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, DROPPED_CROPS, LATE_IMAGES_LEFT_OUT, SPLIT_LOCATIONS, SPLITS
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.splits.apply_history import GroupedCrops, apply_history
from animl_pipeline.steps.splits.constraints import Shortfall, SplittableCrops, find_shortfalls, make_problem
from animl_pipeline.steps.splits.grouping import Bools, Ints, to_list
from animl_pipeline.steps.splits.later_images import (
    ALL_SPLITS,
    LATER,
    LEARNT,
    cut_links,
    linked_images,
    list_late_images_left_out,
    reserve_later_images,
    undated_at_tested_locations,
    without_earlier_images,
)
from animl_pipeline.steps.splits.leakage import count_leaks, in_two_splits, split_of_images
from animl_pipeline.steps.splits.number_crops import NumberedCrops, number_crops, read_crops, sequences_by_time
from animl_pipeline.steps.splits.optimise import SPLIT_NAMES, TEST, TRAIN, VAL, search
from animl_pipeline.steps.splits.splits_given_by_plan import NOT_IN_TABLE, splits_by_table
from animl_pipeline.steps.splits.test_set_registry import (
    PREFIX,
    TESTED,
    TRAINED,
    History,
    Registry,
    count_conflicts,
    find_history,
    read_registry,
    record_split,
    was_judged,
)
from animl_pipeline.storage.manifest import manifest_name
from animl_pipeline.storage.store import StepOutput, Store, Workspace, digest_of

log = logging.getLogger(__name__)

STEP = Step(
    "splits",
    version=2,
    sections=("splits",),
    reads=(CROPS,),
    writes=(SPLITS, SPLIT_LOCATIONS, DROPPED_CROPS, LATE_IMAGES_LEFT_OUT),
    libraries=("scipy", "scikit-learn"),
)
UNFINISHED = (
    "splits: %d of %d locations keep the split of a training of %s that has not finished, so no scores were given on this test set. To divide all "
    "locations again, set splits.test_set: %d in the plan"
)
"""They stay frozen, because such a training may still be running on another machine."""


class SplitCrops(NamedTuple):
    """The splits of n crops.

    Attributes:
        split: int [n], 0 train, 1 val, 2 test, 3 test_later, -1 for none.
        reason: text [n], why a crop is in no split, else "".
        shortfalls: classes with fewer crops in val or test than wanted.
    """

    split: Ints
    reason: NDArray[np.object_]
    shortfalls: list[Shortfall]

    def drop(self, mask: Bools, reason: str) -> None:
        """Take some crops out of their splits."""
        self.split[mask] = -1
        self.reason[mask] = reason


def split_by_location(
    crops: Artifact, config: SplitsConfig, classes: tuple[str, ...], store: Store, model: str, table: Mapping[str, str] | None = None
) -> Artifact:
    """Divide the crops into train, val and test, with each location in one split only, and record them in the model's registry.

    With ``splits.test_after``, the later images of the locations of train and val are in the split ``test_later``.
    Writes the tables SPLITS, SPLIT_LOCATIONS, DROPPED_CROPS and LATE_IMAGES_LEFT_OUT; leakage.json, how much is in two splits or in a split that the
    history forbids (all 0), and how many crops cannot be checked, because their location is unknown; and shortfalls.json, the classes
    with fewer crops in val or test than the plan wants, and why.

    ``classes``: class ids. Each is in train, val and test if it has enough locations. ``table``: the plan's ``splits.table``: location →
    split; None: the locations are divided by search.

    Raises:
        SplitsError: the table contradicts itself or the test set, there are too few locations, a split would be empty, or the plan wants to train on
            locations of the test set.
        StoreError: the registry cannot be read, or files of it are missing.
        DamagedError: stored splits disagree with the registry; they are removed.
    """
    rows = read_crops(crops, store)
    run = digest_of([crops.digest, _key(config, classes, table)])[:16]
    prefixes = set(to_list(rows["image"].str.slice(0, PREFIX)))
    while True:
        registry = read_registry(store, model, config.test_set)
        history = find_history(registry, run, set(rows["location"].unique().tolist()), prefixes)
        if history.locations and not history.recorded and not was_judged(store, model, config.test_set):
            log.warning(UNFINISHED, len(history.locations), rows["location"].nunique(), model, config.test_set + 1)
        artifact = _make(crops, rows, config, classes, history, store, table)
        splits = store.table(artifact, SPLITS)  # in the order of the crops' ids, as the rows
        used = rows if len(rows) == len(splits) else rows[rows["crop_id"].isin(splits["crop_id"])]
        divided = used.assign(split=splits["split"].to_numpy())
        if artifact.cached:
            _check_against_registry(artifact, divided, registry, store)
        if history.recorded or record_split(store, registry, run, divided):
            return artifact
        log.info("splits: another run of %s recorded its split meanwhile; dividing again, with its test locations", model)


def _key(config: SplitsConfig, classes: tuple[str, ...], table: Mapping[str, str] | None) -> dict[str, Any]:
    unused = {"table"} | ({"test_after"} if config.test_after is None else set())
    return config.model_dump(mode="json", exclude=unused) | {"classes": list(classes)} | ({"table": sorted(table.items())} if table else {})


def _make(
    crops: Artifact,
    rows: pd.DataFrame,
    config: SplitsConfig,
    classes: tuple[str, ...],
    history: History,
    store: Store,
    table: Mapping[str, str] | None,
) -> Artifact:
    """The step's artifact for what earlier runs used: built now, or reused."""

    def build(space: Workspace) -> StepOutput:
        numbered = number_crops(rows, config, classes)
        result = _divide(numbered, config, classes, history, table)
        leaks = count_leaks(numbered, result.split, history)
        if (result.split == LATER).any():
            leaks["later_images_linked_to_train_or_val"] = linked_images(numbered, result.split, config)
        if any(leaks.values()):
            raise SplitsError(f"leakage between the splits: {leaks}; this is a bug of the splitter, please report it", code="leakage")
        leaks["not_checked_at_unknown_locations"] = int(((result.split >= 0) & (numbered.location < 0)).sum())
        return _write(space.out, numbered, result, leaks, _notes(numbered, result, config, classes, history))

    return store.make(STEP, inputs={"crops": crops}, config=_key(config, classes, table) | {"history": history.digest()}, build=build)


def _check_against_registry(artifact: Artifact, divided: pd.DataFrame, registry: Registry, store: Store) -> None:
    """Check that a stored split puts nothing into test that the registry calls trained on, or the other way round.

    Raises:
        DamagedError: it does. Its manifest is removed, so the next try divides again.
    """
    if conflicts := count_conflicts(registry, divided):
        store.object_store.delete(manifest_name(artifact.step, artifact.key))
        raise DamagedError(
            f"the stored splits {artifact.key[:12]} disagree with the registry of test locations about {conflicts:,} crops, so they were changed; "
            "they are removed now; run the pipeline again to divide again",
            code="splits_against_registry",
            crops=conflicts,
        )


def _divide(crops: NumberedCrops, config: SplitsConfig, classes: tuple[str, ...], history: History, table: Mapping[str, str] | None) -> SplitCrops:
    crops, later, frozen = reserve_later_images(crops, history)
    known, usable = np.asarray(crops.location >= 0), crops.usable
    located = crops.select(known)
    grouped = apply_history(located, history)
    if table is not None:
        absent = ~np.array([name in table for name in located.locations], bool)[located.location] & (grouped.group >= 0)
        grouped.group[absent], grouped.reason[absent] = -1, NOT_IN_TABLE
    split, reason = np.full(len(known), -1, np.int64), np.full(len(known), "unknown_location", object)
    split[known], shortfalls = _divide_groups(grouped, located, config, classes, table)
    reason[known] = grouped.reason
    result = SplitCrops(split, reason, shortfalls)
    trained = np.zeros(len(known), bool)
    trained[known] = (grouped.location_use[located.location] == TRAINED) & (grouped.reason == "")
    split[later & known & (np.isin(split, LEARNT) | (trained & (split < 0)))] = LATER
    result.drop((split == TRAIN) & ~usable[TRAIN], "too_new_for_training")
    result.drop((split == VAL) & ~usable[VAL] & ~usable[TRAIN], "too_new_for_training")
    result.drop((split >= 0) & ~np.take_along_axis(usable, split[None].clip(0, TEST), 0)[0], "too_old_for_testing")
    reason[known & (split < 0) & (reason == "")] = "no_split_allowed"
    if (split == LATER).any():
        _keep_later_images_apart(crops, result, frozen, history, config)
    _drop_likely_copies(crops, result)
    if config.unknown_location == "train":
        _train_on_unknown_locations(crops, result, history, config)
    return result


def _divide_groups(
    grouped: GroupedCrops, crops: NumberedCrops, config: SplitsConfig, classes: tuple[str, ...], table: Mapping[str, str] | None
) -> tuple[Ints, list[Shortfall]]:
    """The split of each crop (all have a known location), -1 for crops that are left out; and the shortfalls."""
    left = np.flatnonzero(grouped.group >= 0)
    while True:  # twice at most: first all groups, then those that may be in any split
        group = np.unique(grouped.group[left], return_inverse=True)[1]
        if (n := int(group.max(initial=-1)) + 1) < len(SPLIT_NAMES):
            raise SplitsError(
                f"train, val and test need at least 3 locations that share no sequence or image, found {n} among {len(left)} crops with a known "
                "location; add sources with more locations, or check sources.location_field in the plan",
                code="too_few_locations",
            )
        splittable = SplittableCrops(
            group, crops.location[left], crops.class_number[left], crops.usable[:, left], crops.locations, grouped.location_use
        )
        problem = make_problem(splittable, config, classes)
        forbidden = np.asarray(~problem.allowed.any(1))
        if not forbidden.any():
            break
        left = left[~forbidden[group]]
    by_search = table is None
    splits = search(problem, config.max_rounds, np.random.default_rng(config.seed)) if by_search else splits_by_table(splittable, table or {})
    split = np.full(len(crops.location), -1, np.int64)
    split[left] = splits[group]
    return split, find_shortfalls(splits, problem, splittable, config, classes)


def _keep_later_images_apart(crops: NumberedCrops, result: SplitCrops, frozen: Bools, history: History, config: SplitsConfig) -> None:
    """Leave out what would let the later test show images that were learnt from."""
    result.drop(without_earlier_images(crops, result.split, history), "location_has_only_later_images")
    later, learnt = cut_links(crops, result.split, frozen, config)
    result.drop(later, "later_image_linked_to_train_or_val")
    result.drop(learnt, "linked_to_a_tested_later_image")
    result.drop(undated_at_tested_locations(crops, result.split, config), "undated_where_later_images_are_tested")


def _drop_likely_copies(crops: NumberedCrops, result: SplitCrops) -> None:
    """Of two likely copies in different splits, drop the one that is not in test, or else the one that is not in val."""
    rank = np.array([0, 1, 3, 2, -1])  # of train, val, test, test_later and none
    of_image = rank[split_of_images(crops, result.split)]
    one, other = crops.likely_copies
    lower = np.where(of_image[one] < of_image[other], one, other)[in_two_splits(crops, result.split, crops.likely_copies)]
    result.drop((result.split >= 0) & np.isin(crops.image, lower), "likely_copy_of_a_held_out_image")


def _train_on_unknown_locations(crops: NumberedCrops, result: SplitCrops, history: History, config: SplitsConfig) -> None:
    """Put images of unknown location into train, except those that may be from a location that is not in train."""
    split, reason, usable = result.split, result.reason, crops.usable
    unknown = np.asarray(crops.location < 0)
    held_out = ~unknown & (split != TRAIN)
    linked = np.isin(crops.image, crops.image[~unknown])
    by_time = sequences_by_time(crops.rows["source"], crops.seconds, config.sequence_gap_seconds)
    for link in (crops.sequence, crops.copy, by_time):
        linked |= (link >= 0) & np.isin(link, link[held_out])
    image_held_out = np.zeros(len(crops.images), bool)
    image_held_out[crops.image[held_out]] = True
    one, other = crops.likely_copies
    linked |= np.isin(crops.image, np.concatenate([one[image_held_out[other]], other[image_held_out[one]]]))
    tested = crops.rows["image"].str.slice(0, PREFIX).isin(history.tested_images()).to_numpy(bool)
    split[unknown & ~linked & ~tested & usable[TRAIN]] = TRAIN
    reason[unknown & ~usable[TRAIN]] = "too_new_for_training"
    reason[unknown & linked] = "unknown_location_linked_to_a_known_one"
    reason[unknown & tested] = "image_was_tested"
    reason[split >= 0] = ""


def _notes(crops: NumberedCrops, result: SplitCrops, config: SplitsConfig, classes: tuple[str, ...], history: History) -> dict[str, int]:
    """Counts that a reader should know. Shortfalls are logged as well."""
    for shortfall in result.shortfalls:
        log.warning("splits: %s", shortfall.message(config))
    without_crops = sorted({*config.train_only, *config.test_only} - set(crops.locations))
    for name in without_crops:
        log.warning("splits: train_only or test_only names the location %r, which has no crop", name)
    counts = [np.bincount(crops.class_number[result.split == s], minlength=len(classes)) for s in range(len(SPLIT_NAMES))]
    in_test = set(np.unique(crops.location[(result.split == TEST) & (crops.location >= 0)]))
    other = {
        "named_locations_without_crops": len(without_crops),
        "locations_frozen_in_test": sum(history.locations.get(crops.locations[i]) == TESTED for i in in_test),
        "copies_kept_together": len(set(crops.image[crops.copy >= 0].tolist())),
        "images_not_compared_for_copies": len(set(crops.image[(crops.rows["phash"] == "").to_numpy()].tolist())),
        "crops_without_a_date": crops.undated,
        "test_later": int((result.split == LATER).sum()),
        "late_crops_used_for_training_before": int((crops.late & np.isin(result.split, LEARNT)).sum()),
    }
    return {
        **{name: int((result.split == s).sum()) for s, name in enumerate(SPLIT_NAMES)},
        **{f"no_{c}_in_{name}": 1 for s, name in enumerate(SPLIT_NAMES) for i, c in enumerate(classes) if not counts[s][i]},
        **{f"few_{s.class_id}_in_{s.split}": s.crops for s in result.shortfalls if s.crops},
        **{name: n for name, n in other.items() if n},
    }


def _write(folder: Path, crops: NumberedCrops, result: SplitCrops, leaks: dict[str, int], notes: dict[str, int]) -> StepOutput:
    used, names, crop_id = result.split >= 0, np.array(ALL_SPLITS, object), crops.rows["crop_id"]
    write_table(folder, SPLITS, pd.DataFrame({"crop_id": crop_id[used], "split": names[result.split[used]]}))
    known = used & (crops.location >= 0)
    located = pd.DataFrame({"location": np.array(crops.locations, object)[crops.location[known]], "split": names[result.split[known]]})
    write_table(folder, SPLIT_LOCATIONS, located.groupby(["location", "split"], as_index=False).size().rename(columns={"size": "crops"}))
    write_table(folder, DROPPED_CROPS, pd.DataFrame({"crop_id": crop_id[~used], "reason": result.reason[~used]}).astype(str))
    left_out = list_late_images_left_out(crops, result.split, result.reason)
    write_table(folder, LATE_IMAGES_LEFT_OUT, left_out)
    (folder / "leakage.json").write_text(json.dumps(leaks, indent=1) + "\n", encoding="utf-8")
    shortfalls = json.dumps([s._asdict() for s in result.shortfalls], indent=1, ensure_ascii=False)
    (folder / "shortfalls.json").write_text(shortfalls + "\n", encoding="utf-8")
    dropped = {str(reason): n for reason, n in Counter(result.reason[~used].tolist()).items()}
    not_checked = leaks["not_checked_at_unknown_locations"]
    checks = {"leaks_found": sum(leaks.values()) - not_checked} | ({"leaks_not_checked": not_checked} if not_checked else {})
    return StepOutput(Counts(kept=int(used.sum()), dropped=dropped, notes=notes | checks, unit="crops"))

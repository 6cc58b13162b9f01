"""The step: a table of crops in, the side of each out; every crop that is on no side is counted by reason."""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import SplitsConfig
from animl_pipeline.core.errors import SplitsError
from animl_pipeline.core.records import Artifact, Counts
from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import CROPS, DROPPED_CROPS, SPLIT_LOCATIONS, SPLITS
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.splits.constraints import Grouped, Shortfall, shortfalls, wanted_of
from animl_pipeline.steps.splits.grouping import Codes, texts
from animl_pipeline.steps.splits.history import Crops, Settled, settle
from animl_pipeline.steps.splits.leakage import leaks, side_of_images
from animl_pipeline.steps.splits.optimise import SIDES, TEST, TRAIN, VAL, search
from animl_pipeline.steps.splits.read_crops import Table, numbered, read_crops
from animl_pipeline.steps.splits.test_set_registry import MARK, TESTED, Past, read_past, register_of, write_register
from animl_pipeline.steps.splits.timestamps import before, bursts_of, from_then_on
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace, digest_of

log = logging.getLogger(__name__)

STEP = Step(
    "splits", version=1, sections=("splits",), reads=(CROPS,), writes=(SPLITS, SPLIT_LOCATIONS, DROPPED_CROPS), libraries=("scipy", "scikit-learn")
)


class Parted(NamedTuple):
    """Crops on their sides."""

    side: Codes  # of each crop: 0 train, 1 val, 2 test, -1 on none
    reason: NDArray[np.object_]  # of each crop: why it is on none, else empty text
    short: list[Shortfall]


def split_by_location(crops: Artifact, spec: SplitsConfig, classes: tuple[str, ...], store: Store, lineage: str) -> Artifact:
    """Which crop is in train, val or test.

    splits.parquet: ``crop_id, split``. places.parquet: ``place, split, crops``. dropped.parquet: ``crop_id, reason``.
    leakage.json: how many places, bursts, pictures and copies of pictures lie on two sides, and how many crops are learnt
    from though once tested on or the other way round: all zero. shortfalls.json: the classes of which val or test has less
    than the plan asks for, and why.

    Args:
        crops: the crops step.
        spec: shares, seed, places and days with a side of their own, and what becomes of pictures whose place is unknown.
        classes: class ids; each must be in train, val and test wherever it has places enough.
        store: where crops lie and the split goes, and where the register of tested places is.
        lineage: whose register: the model's name.

    Raises:
        SplitsError: too few places for three sides, a side would have no example, or the plan asks to train on what was
            once tested on.
        StoreError: the register is damaged or not what this version wrote.
    """
    rows = read_crops(store.path(crops, "crops.parquet"))
    config = spec.model_dump(mode="json") | {"classes": list(classes)}
    run = digest_of([crops.digest, config])[:16]
    register = register_of(lineage, spec.test_set)
    past = read_past(store, register, run, set(rows["location"].unique().tolist()), set(texts(rows["image"].str.slice(0, MARK))))
    artifact = store.make(
        STEP,
        inputs={"crops": crops},
        config=config | {"past": past.digest()},
        build=lambda space: _build(space, rows, spec, classes, past),
    )
    if not past.complete:
        write_register(store, register, run, _with_sides(rows, store.table(artifact, "splits.parquet")))
    return artifact


def _with_sides(rows: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """The crops that are on a side, with it; both tables are in the order of the crops' ids."""
    used = rows if len(rows) == len(splits) else rows[rows["crop_id"].isin(splits["crop_id"])]
    return used.assign(split=splits["split"].to_numpy())


def _build(space: Workspace, rows: pd.DataFrame, spec: SplitsConfig, classes: tuple[str, ...], past: Past) -> StepOutput:
    table = numbered(rows, spec)
    parted = _parted(table, spec, classes, past)
    found = leaks(table, parted.side, past)
    if any(found.values()):
        raise SplitsError(f"places, bursts or pictures lie on two sides: {found}; this is a fault of the splitter, please report it")
    return _write(space, table, parted, found, _notes(table, parted, spec, classes, past))


def _parted(table: Table, spec: SplitsConfig, classes: tuple[str, ...], past: Past) -> Parted:
    class_id = _labels(table, classes)
    usable = _usable(table, spec)
    known = table.location >= 0
    settled = settle(Crops(table.location[known], table.locations, table.image[known], table.images, tuple(t[known] for t in table.ties())), past)
    side, short = np.full(len(known), -1, np.int64), list[Shortfall]()
    side[known], short = _shared_out(settled, table.location[known], table.locations, class_id[known], usable[:, known], spec, classes)
    reason = np.full(len(known), "", object)
    reason[known] = settled.reason
    _leave_out(side, reason, (side == TRAIN) & ~usable[TRAIN], "too_new_to_learn_from")
    _leave_out(side, reason, (side == VAL) & ~usable[VAL] & ~usable[TRAIN], "too_new_to_learn_from")
    _leave_out(side, reason, (side >= 0) & ~np.take_along_axis(usable, side[None].clip(0), 0)[0], "too_old_to_test_on")
    reason[known & (side < 0) & (reason == "")] = "no_side_by_plan_and_past"
    _leave_out_likely_copies(table, side, reason)
    reason[~known] = "unknown_location"
    if spec.unknown_location == "train":
        _train_on_unknown(table, side, reason, usable, past, spec)
    return Parted(side, reason, short)


def _labels(table: Table, classes: tuple[str, ...]) -> Codes:
    codes = pd.Categorical(table.rows["class_id"], categories=list(classes)).codes.astype(np.int64)
    if (codes < 0).any():
        strange = table.rows["class_id"][codes < 0].iloc[0]
        raise SplitsError(f"expected crops of {', '.join(classes)}, found {strange!r} among them; run the steps 'labels' to 'crops' of this plan")
    return codes


def _usable(table: Table, spec: SplitsConfig) -> NDArray[np.bool_]:
    """[3, crops]: on which sides the plan's dates let a crop be."""
    old, new = before(table.day, spec.train_only_before), from_then_on(table.day, spec.test_only_after)
    return np.stack([~new, ~old & ~new, ~old])


def _shared_out(
    settled: Settled,
    location: Codes,
    locations: tuple[str, ...],
    class_id: Codes,
    usable: NDArray[np.bool_],
    spec: SplitsConfig,
    classes: tuple[str, ...],
) -> tuple[Codes, list[Shortfall]]:
    """The side of each crop of a known place, -1 for those left out; and what could not be had."""
    side = np.full(len(location), -1, np.int64)
    left = np.flatnonzero(settled.group >= 0)
    while True:  # twice at most: without the groups that may be nowhere the others are as before
        group = np.unique(settled.group[left], return_inverse=True)[1]
        if (n := int(group.max(initial=-1)) + 1) < len(SIDES):
            raise SplitsError(
                f"train, val and test need at least 3 places that share no burst, found {n} among {len(left)} crops of known place; "
                "add sources with more places, or check sources.location_field in the plan"
            )
        crops = Grouped(group, location[left], class_id[left], usable[:, left], locations, settled.standing)
        wanted = wanted_of(crops, spec, classes)
        nowhere = wanted.allowed.sum(1) == 0
        if not nowhere.any():
            break
        left = left[~nowhere[group]]
    sides = search(wanted, spec.tries, np.random.default_rng(spec.seed))
    side[left] = sides[group]
    return side, shortfalls(sides, wanted, crops, spec, classes)


def _leave_out(side: Codes, reason: NDArray[np.object_], some: NDArray[np.bool_], why: str) -> None:
    side[some] = -1
    reason[some] = why


def _leave_out_likely_copies(table: Table, side: Codes, reason: NDArray[np.object_]) -> None:
    """Of two pictures that are likely copies, on two sides, the one is left out that is not in test, or else not in val."""
    sides = side_of_images(table, side)
    one, other = table.likely
    apart = (sides[one] >= 0) & (sides[other] >= 0) & (sides[one] != sides[other])
    lower = np.where(sides[one] < sides[other], one, other)[apart]
    _leave_out(side, reason, (side >= 0) & np.isin(table.image, lower), "likely_copy_of_a_held_out_image")


def _train_on_unknown(table: Table, side: Codes, reason: NDArray[np.object_], usable: NDArray[np.bool_], past: Past, spec: SplitsConfig) -> None:
    """Put pictures of unknown place into train, but none that may be of a place that is not in train."""
    unknown, held = table.location < 0, (table.location >= 0) & (side != TRAIN)
    tied = np.isin(table.image, table.image[~unknown])
    moment = bursts_of(table.rows["source"], table.moment, spec.sequence_gap_seconds)
    for tie in (table.burst, table.copy, moment):
        tied |= (tie >= 0) & np.isin(tie, tie[held])
    images = np.zeros(len(table.images), bool)
    images[table.image[held]] = True
    one, other = table.likely
    tied |= np.isin(table.image, np.concatenate([one[images[other]], other[images[one]]]))
    once = set().union(*(marks for use, marks in past.images.items() if use.how == TESTED))
    tested = table.rows["image"].str.slice(0, MARK).isin(once).to_numpy(bool)
    side[unknown & ~tied & ~tested & usable[TRAIN]] = TRAIN
    reason[unknown & ~usable[TRAIN]] = "too_new_to_learn_from"
    reason[unknown & tied] = "unknown_location_tied_to_a_known_one"
    reason[unknown & tested] = "once_tested"
    reason[side >= 0] = ""


def _notes(table: Table, parted: Parted, spec: SplitsConfig, classes: tuple[str, ...], past: Past) -> dict[str, int]:
    notes = {name: int((parted.side == s).sum()) for s, name in enumerate(SIDES)}
    here = pd.Series(parted.side).groupby([table.rows["class_id"].to_numpy(), parted.side]).size()
    absent = {f"no_{c}_in_{name}": 1 for s, name in enumerate(SIDES) for c in classes if (c, s) not in here.index}
    few = {f"few_{s.class_id}_in_{s.split}": s.crops for s in parted.short if s.crops}
    for s in parted.short:
        log.warning("splits: %s", s.against(spec))
    absent_locations = sorted({*spec.train_only, *spec.test_only} - set(table.locations))
    for name in absent_locations:
        log.warning("splits: the plan names the place %r in train_only or test_only, of which there is no crop", name)
    frozen = {name for name, use in past.locations.items() if use == TESTED}
    in_test = set(np.unique(table.location[(parted.side == TEST) & (table.location >= 0)]))
    other = {
        "locations_named_but_not_there": len(absent_locations),
        "locations_frozen_in_test": sum(table.locations[p] in frozen for p in in_test),
        "copies_kept_together": len(set(table.image[table.copy >= 0].tolist())),
        "images_not_compared_for_copies": len(set(table.image[(table.rows["phash"] == "").to_numpy()].tolist())),
        "crops_without_a_date": int(np.isnat(table.day).sum()) if spec.train_only_before or spec.test_only_after else 0,
    }
    return notes | absent | few | {what: n for what, n in other.items() if n}


def _write(space: Workspace, table: Table, parted: Parted, found: dict[str, int], notes: dict[str, int]) -> StepOutput:
    used = parted.side >= 0
    names = np.array(SIDES, object)
    splits = pd.DataFrame({"crop_id": table.rows["crop_id"][used], "split": names[parted.side[used]]})
    write_table(space.out, SPLITS, splits)
    at = used & (table.location >= 0)
    locations = pd.DataFrame({"location": np.array(table.locations, object)[table.location[at]], "split": names[parted.side[at]]})
    write_table(space.out, SPLIT_LOCATIONS, locations.groupby(["location", "split"], as_index=False).size().rename(columns={"size": "crops"}))
    write_table(space.out, DROPPED_CROPS, pd.DataFrame({"crop_id": table.rows["crop_id"][~used], "reason": parted.reason[~used]}).astype(str))
    (space.out / "leakage.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (space.out / "shortfalls.json").write_text(json.dumps([s._asdict() for s in parted.short], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    dropped = {str(reason): n for reason, n in Counter(parted.reason[~used].tolist()).items()}
    return StepOutput(Counts(kept=int(used.sum()), dropped=dropped, noted=notes | {"leaks_found": sum(found.values())}, unit="crops"))

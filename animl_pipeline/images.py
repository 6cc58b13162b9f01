"""The pictures that an export names, as local, verified copies. Only what is missing travels.

Each picture ends in one of two tables: images.parquet, with its content's sha256, or missing.parquet, with the reason. One
picture's fault never ends the others.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pandas as pd

from animl_pipeline.errors import ImagesError, PictureError
from animl_pipeline.pixels import open_picture
from animl_pipeline.plan import SourcePlan
from animl_pipeline.progress import track
from animl_pipeline.records import Artifact, Counts
from animl_pipeline.remote import Folder, Remote, RemoteError, remote_at
from animl_pipeline.settings import Settings
from animl_pipeline.store import BlobColumn, Made, Store, Workspace, batches, digest_of, write_table

IMAGE_COLUMNS = ("image_id", "path", "blob", "bytes", "width", "height")
MISSING_COLUMNS = ("image_id", "path", "reason", "detail")
BATCH = 128
"""Pictures after which what arrived is remembered: a kill loses at most these."""

REMEMBERED = frozenset({"blob", "bytes", "width", "height", "md5"})
"""What is known of a picture that arrived."""

_MD5_ID = re.compile(r"^[^:]+:([0-9a-f]{32})$")


def fetch_images(source: SourcePlan, export: Artifact, wanted: Collection[str], store: Store, settings: Settings) -> Artifact:
    """The pictures of ``source`` that carry a wanted label.

    images.parquet: ``image_id, path, blob`` (sha256, in the store), ``bytes, width, height`` (as decoded).
    missing.parquet: ``image_id, path, reason, detail``; reasons are missing, forbidden, unreachable, refused, unsafe_path,
    wrong_md5 and broken_picture.

    Args:
        source: where the pictures lie, and which field names them.
        export: its export step.
        wanted: category names, case-folded; pictures without any of them do not travel.
        store: keeps pictures by content and remembers what was fetched.
        settings: how many at a time, how patiently.

    Raises:
        ImagesError: the place of the pictures is not there, or not one of them arrived; says why, with counts.
    """
    remote = remote_at(source.images, settings)
    if isinstance(remote, Folder) and not os.path.isdir(remote.folder):  # noqa: PTH112 - Path.is_dir raises where a name is too long
        raise ImagesError(
            f"source {source.name!r}: expected a folder of pictures at {remote.folder}, found none; mend sources.images in the plan or set ANIML_DATA"
        )
    config = {"images": source.images, "key": source.key, "wanted": sorted(wanted)}

    def build(space: Workspace) -> Made:
        return _fetch_all(space, source, _wanted_images(store, export, wanted), remote, store, settings)

    return store.make("images", room="images", inputs={"export": export}, config=config, build=build)


def _wanted_images(store: Store, export: Artifact, wanted: Collection[str]) -> tuple[pd.DataFrame, int]:
    """The images with a wanted label, and how many have none."""
    images, objects = store.table(export, "images.parquet"), store.table(export, "objects.parquet")
    names = objects["name"].str.casefold()
    chosen = set(objects.loc[names.isin(list(wanted)), "image_id"])
    mask = images["image_id"].isin(chosen)
    return images.loc[mask, ["image_id", "path"]], int((~mask).sum())


def _fetch_all(space: Workspace, source: SourcePlan, todo: tuple[pd.DataFrame, int], remote: Remote, store: Store, settings: Settings) -> Made:
    images, not_wanted = todo
    memory = f"images/{digest_of([source.images, source.key])[:16]}"
    pairs = list(images.itertuples(index=False, name=None))
    known = {path: answer for path, answer in store.recall(memory).items() if answer.keys() >= REMEMBERED}
    answers = {
        image_id: known[path]
        for image_id, path in pairs
        if path in known and _fits(image_id, known[path]) and store.has_blob(known[path]["blob"], known[path]["bytes"])
    }
    new = [pair for pair in pairs if pair[0] not in answers]
    with track(f"pictures of {source.name}", len(pairs), len(answers)) as step, ThreadPoolExecutor(settings.workers) as pool:
        for batch in batches(new, BATCH):
            fetched = list(zip(batch, pool.map(partial(_fetch, remote, store, step), batch), strict=True))
            store.remember(memory, {path: answer for (_, path), answer in fetched if "blob" in answer})
            answers |= {image_id: answer for (image_id, _), answer in fetched}
            _check_reached(source, batch, answers)
    return _write_tables(space, source, pairs, answers, not_wanted)


def _check_reached(source: SourcePlan, batch: list[tuple[str, str]], answers: dict[str, dict[str, Any]]) -> None:
    """End early where the pictures' place is gone: every picture of a batch would be asked for in vain, patiently.

    Raises:
        ImagesError: no picture of the batch was reached.
    """
    if len(batch) < BATCH or not all(answers[image_id].get("offline") for image_id, _ in batch):
        return
    arrived = sum("blob" in answer for answer in answers.values())
    raise ImagesError(
        f"source {source.name!r}: expected pictures from {source.images}, reached none of {len(batch)} in a row "
        f"({answers[batch[0][0]]['detail']}); check the network and sources.images, then run again: {arrived} that arrived are kept"
    )


def _fits(image_id: str, answer: dict[str, Any]) -> bool:
    """Whether a remembered picture is the one that this id names."""
    md5 = _MD5_ID.match(image_id)
    return md5 is None or md5[1] == answer["md5"]


def _fetch(remote: Remote, store: Store, step: Any, pair: tuple[str, str]) -> dict[str, Any]:
    """What became of one picture: its blob, or the reason why there is none."""
    image_id, path = pair
    try:
        data = remote.get(path)
        return _verified(image_id, data) | {"blob": store.put_blob(data), "bytes": len(data)}
    except RemoteError as e:
        return {"reason": e.reason, "detail": str(e), "heals": e.heals, "offline": e.offline}
    except PictureError as e:
        return {"reason": "broken_picture", "detail": str(e), "heals": False}
    finally:
        step()


_decoding = threading.BoundedSemaphore(4)
"""Decoded pictures are 30 to 150 MB each: many may travel at a time, few are decoded at a time."""


def _verified(image_id: str, data: bytes) -> dict[str, Any]:
    """Size and md5 of a picture that is whole and, where its id names an md5, the right one."""
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    expected = _MD5_ID.match(image_id)
    if expected is not None and expected[1] != md5:
        raise RemoteError("wrong_md5", f"expected md5 {expected[1]}, found {md5} in {len(data)} bytes")
    with _decoding:
        width, height = open_picture(data).size
    return {"width": width, "height": height, "md5": md5}


def _write_tables(space: Workspace, source: SourcePlan, pairs: list[tuple[str, str]], answers: dict[str, dict[str, Any]], not_wanted: int) -> Made:
    here, missing = [], []
    for image_id, path in pairs:
        a = answers[image_id]
        if "blob" in a:
            here.append((image_id, path, a["blob"], a["bytes"], a["width"], a["height"]))
        else:
            missing.append((image_id, path, a["reason"], a["detail"]))
    reasons = Counter(reason for _, _, reason, _ in missing)
    if not here:
        found = ", ".join(f"{n} {r.replace('_', ' ')}" for r, n in reasons.most_common()) or "none that carries a label of the plan"
        first = f" (the first: {missing[0][3]})" if missing else ""
        raise ImagesError(
            f"source {source.name!r}: not one of {len(pairs)} pictures arrived from {source.images}: {found}{first}; "
            "check sources.images and sources.key in the plan"
        )
    write_table(space.out / "images.parquet", pd.DataFrame(here, columns=list(IMAGE_COLUMNS)))
    write_table(space.out / "missing.parquet", pd.DataFrame(missing, columns=list(MISSING_COLUMNS)))
    dropped = dict(reasons) | ({"without_a_wanted_label": not_wanted} if not_wanted else {})
    final = not any(a.get("heals") for a in answers.values())
    return Made(Counts(kept=len(here), dropped=dropped, unit="pictures"), blobs=(BlobColumn(file="images.parquet"),), final=final)

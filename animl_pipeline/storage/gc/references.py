"""What is needed in a store: steps of reports and releases, the steps that those were made from, and the blobs that they name.

The frozen test set needs no step: its register is in the image index, which garbage collection leaves alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from animl_pipeline.core.errors import StoreError
from animl_pipeline.core.frozen_record import Digest
from animl_pipeline.storage import image_index
from animl_pipeline.storage.gc.stored_steps import StepId, StoredStep
from animl_pipeline.storage.manifest import BlobColumn, matches, step_folder
from animl_pipeline.storage.object_store import ObjectStore
from animl_pipeline.storage.store import Store

R = TypeVar("R", bound=BaseModel)

IMAGES, CROPS, ANIML, ANIML_WINDOWS, TEST_SETS = "images", "crops", "animl", "animl-windows", "splits"
"""Groups of indexes: downloaded images, crops, Animl's exports, those that are not finished, locations in test sets. Records of images and
crops name a blob that can be made again in ``blob``; those of Animl's exports name blobs that must stay in ``blobs``."""
CHAMPION = ("evaluation", "champion")
"""An evaluation's input that is another model's package. What that was made from is not needed."""
RELEASED_WEIGHTS = ("training", "released")
"""A training's input that is another model's weights, by the digest of their file. What they were made from is not needed."""
COMPARED_WITH = "a model that stays was compared with it, or trained on from it"


class Root(NamedTuple):
    """A needed step, and why it is needed."""

    id: StepId
    why: str


class _Artifact(BaseModel):
    step: str
    key: Digest

    def id(self) -> StepId:
        return StepId(self.step, self.key)


class _Report(BaseModel):
    """The fields of a stored report that garbage collection reads."""

    model_config = ConfigDict(protected_namespaces=())

    model_artifact: _Artifact
    evaluation: _Artifact
    package: _Artifact


class _Release(BaseModel):
    """The fields of a stored release or rollback that garbage collection reads."""

    kind: Literal["release", "rollback"]
    state: str
    endpoint_config: str
    previous_config: str | None
    version: str
    package: _Artifact | None


# -- roots: what reports and releases need -----------------------------------------------------------------------------


def find_roots(object_store: ObjectStore, keep: int) -> list[Root]:
    """The steps that the newest report of each model, and the releases in use or to go back to, were made from.

    ``keep``: how many released versions of each endpoint can be gone back to.

    Raises:
        StoreError: a report or a release record cannot be read (code ``unreadable_record``).
    """
    return [*_report_roots(object_store), *_release_roots(object_store, keep)]


def _report_roots(object_store: ObjectStore) -> Iterator[Root]:
    for name in object_store.names("reports/"):
        model, _, file = name.removeprefix("reports/").rpartition("/")
        if file == "newest.json":
            report = _read_record(object_store, name, _Report)
            for artifact in (report.package, report.evaluation, report.model_artifact):
                yield Root(artifact.id(), f"newest report of {model}")


def _release_roots(object_store: ObjectStore, keep: int) -> Iterator[Root]:
    endpoints: dict[str, list[_Release]] = defaultdict(list)
    for name in object_store.names("releases/"):
        endpoints[name.removeprefix("releases/").rpartition("/")[0]].append(_read_record(object_store, name, _Release))
    for endpoint, releases in endpoints.items():
        for release in _needed_releases(releases, keep):
            if release.package is not None:
                yield Root(release.package.id(), f"releases of {endpoint}")


def _needed_releases(releases: Sequence[_Release], keep: int) -> Iterator[_Release]:
    """Of an endpoint's releases, oldest first: those not finished, the last ``keep`` versions, and what rollback or comparison needs."""
    yield from (r for r in releases if r.state not in {"done", "rolled_back"})
    done = [r for r in releases if r.state == "done"]
    if not done:
        return
    last = {r.endpoint_config: r for r in done}
    order = list(dict.fromkeys(r.endpoint_config for r in reversed(done)))
    yield from (last[config] for config in order[:keep])
    present = done[-1]
    yield from (r for r in done if r.version == present.version)  # all packages of the present version
    first = next(i for i, r in enumerate(done) if r.version == present.version)
    yield from done[:first][-1:]  # the champion that it was compared with
    before = {r.previous_config for r in done if r.endpoint_config == present.endpoint_config}
    yield from (last[config] for config in before if config in last)  # what a rollback goes back to


def _read_record(object_store: ObjectStore, name: str, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(object_store.read(name) or b"")
    except ValidationError as e:
        what = "report" if kind is _Report else "release record"
        raise StoreError(
            f"{object_store}/{name} cannot be read as a {what}, so it is unknown which steps it needs, and nothing is deleted: restore it from a "
            "copy of the store, or delete it if it is not needed",
            code="unreadable_record",
        ) from e


# -- steps that others were made from ----------------------------------------------------------------------------------


def needed_steps(steps: Mapping[StepId, StoredStep], roots: Sequence[Root]) -> dict[StepId, str]:
    """Each needed step and why: by the first root that leads to it.

    A manifest names its inputs by digest, so every step with that digest counts.

    ``roots``: the needed steps, the most important reason first; those that the store lacks lead nowhere.
    """
    of_digest: dict[str, list[StepId]] = defaultdict(list)
    of_file: dict[str, list[StepId]] = defaultdict(list)
    for step in steps.values():
        of_digest[step.manifest.digest].append(step.id)
        for sha256 in {f.sha256 for f in step.manifest.files.values()}:
            of_file[sha256].append(step.id)
    found: dict[StepId, str] = {}
    without_inputs: list[StepId] = []
    todo = [root for root in reversed(roots) if root.id in steps]
    while todo:
        at = todo.pop()
        if at.id in found:
            continue
        found[at.id] = at.why
        for name, digest in steps[at.id].manifest.inputs.items():
            if (at.id.step, name) == CHAMPION:
                without_inputs += of_digest[digest]
            elif (at.id.step, name) == RELEASED_WEIGHTS:
                without_inputs += of_file[digest]
            else:
                todo += [Root(i, at.why) for i in of_digest[digest]]
    return found | {i: COMPARED_WITH for i in without_inputs if i not in found}


# -- blobs -------------------------------------------------------------------------------------------------------------


def blobs_of_step(step: StoredStep, store: Store) -> Iterator[set[str]]:
    """The blobs that a step's manifest declares, a part at a time.

    Raises:
        StoreError: a declared table cannot be read (code ``unreadable_record``).
    """
    yield set(step.manifest.blob_digests)
    for column in step.manifest.blobs:
        try:
            yield from _read_column(step, column, store)
        except (OSError, ValueError, LookupError) as e:  # pyarrow's errors are among them
            raise StoreError(
                f"{column.file} of the step {step.id} in the store at {store.object_store} cannot be read ({e}), so it is unknown which blobs it "
                f"needs, and nothing is deleted: run the plan that made it again, or delete {step.manifest_name}",
                code="unreadable_record",
            ) from e


def blobs_of_indexes(store: Store, *, images: bool) -> Iterator[set[str]]:
    """The blobs that index records need, a part at a time. Of Animl's answers, those of the last run count.

    ``images``: whether downloaded images count as well, though they can be downloaded again.
    """
    for name in indexes(store, ANIML):
        last: dict[str, dict[str, Any]] = {}
        for _, records in image_index.read_shards(store.object_store, name):
            last |= records or {}
        yield {blob for record in last.values() for blob in record.get("blobs", ())}
    for name in indexes(store, IMAGES) if images else ():
        for _, records in image_index.read_shards(store.object_store, name):
            yield {record["blob"] for record in (records or {}).values() if "blob" in record}


def indexes(store: Store, *groups: str) -> list[str]:
    """The names of the indexes of some groups."""
    return [name for name in image_index.index_names(store.object_store) if name.partition("/")[0] in groups]


def _read_column(step: StoredStep, column: BlobColumn, store: Store) -> Iterator[set[str]]:
    import pyarrow.parquet as pq

    name = f"{step_folder(*step.id)}/{column.file}"
    path = store.local / name
    entry = step.manifest.files[column.file]
    if not matches(path, entry):
        store.object_store.fetch(name, path)
    if not matches(path, entry):
        raise ValueError("it differs from its manifest")
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[column.column]):
            yield set(batch.column(0).unique().to_pylist())

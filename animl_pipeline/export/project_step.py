"""The step that an Animl project's answers make: untouched, merged, and as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from animl_pipeline.export.kept import Answer, Exported
from animl_pipeline.export.merging import Merge
from animl_pipeline.export.places import Location, places_table
from animl_pipeline.export.problems import Problem
from animl_pipeline.export.reading import Batch, batches, parsed
from animl_pipeline.export.tables import write_batches
from animl_pipeline.export.windows import Window
from animl_pipeline.plan import SourcePlan
from animl_pipeline.records import Artifact
from animl_pipeline.store import Made, Store, Workspace, digest_of, write_table


def make_step(source: SourcePlan, exported: Exported, places: list[Location], store: Store) -> Artifact:
    """The artifact of what the exports amount to; the same answers, holes and places are the same artifact."""
    answers = [a.model_dump(mode="json") for a in exported.answers]
    holes = [h.model_dump(mode="json") for h in exported.holes]
    config = {"export": source.export, "key": source.key, "place_field": source.place_field, "outside": exported.outside}
    digests = {"answers": digest_of(answers), "holes": digest_of(holes), "places": digest_of(places)}

    def build(space: Workspace) -> Made:
        return _build(space, source, exported, places, store)

    return store.make("export", room="export", digests=digests, config=config, build=build)


def _build(space: Workspace, source: SourcePlan, exported: Exported, places: list[Location], store: Store) -> Made:
    _keep_untouched(space, exported.answers, store)
    with Merge(space.scratch / "merge.sqlite") as merge:
        lay(merge, exported.answers, store)
        merge.write(space.out / "export.json")
    named: set[str] = set()
    records = _noting_locations(batches(space.out / "export.json", source.export), named)
    place_of = {p.location: p.place for p in places} if source.place_field == "location" else {}
    made = write_batches(space, records, source, known=_problems(exported), places=place_of)
    write_table(space.out / "places.parquet", places_table(_all_locations(places, named)))
    return made


def lay(merge: Merge, answers: Iterable[Answer], store: Store) -> int:
    """Lay answers over each other in their order; how many images changed comes back."""
    changed = 0
    for answer in answers:
        cct = parsed(store.blob(answer.blob), str(answer.window))
        changed += merge.add(cct, partial(_counts, answer.only))
    return changed


def _counts(only: tuple[Window, ...], taken: str) -> bool:
    """Whether an image of that capture time counts in an answer that is limited to some windows."""
    return not only or any(window.holds(taken) for window in only)


def _keep_untouched(space: Workspace, answers: tuple[Answer, ...], store: Store) -> None:
    """Write what Animl answered, byte for byte, and which is what."""
    (space.out / "windows").mkdir()
    listed: list[dict[str, Any]] = []
    for i, answer in enumerate(answers):
        name = f"windows/{i:03d}.json"
        (space.out / name).write_bytes(store.blob(answer.blob))
        listed.append({"file": name, **answer.window.model_dump(mode="json"), "only": [w.model_dump(mode="json") for w in answer.only]})
    (space.out / "windows.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def _problems(exported: Exported) -> list[Problem]:
    found = [("window_failed", str(h.window), f"about {h.window.images} images: {h.reason}: {h.detail}") for h in exported.holes]
    if exported.outside:
        found.append(
            ("images_outside_of_time", "", f"{exported.outside} images have no capture time that Animl can ask for; they are not in the export")
        )
    return found


def _noting_locations(records: Iterable[Batch], named: set[str]) -> Iterator[Batch]:
    """The records as they are; the locations that their images name are added to ``named`` on the way."""
    for part, rows in records:
        if part == "images":
            named |= {row["location"] for row in rows if isinstance(row, dict) and isinstance(row.get("location"), str) and row["location"]}
        yield part, rows


def _all_locations(places: list[Location], named: set[str]) -> list[Location]:
    """The places, with those locations that stand nowhere, as places of their own."""
    known = {p.location for p in places}
    return sorted([*places, *(Location(name, name, float("nan"), float("nan")) for name in named - known)])

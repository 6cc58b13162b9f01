"""Faults from public bug reports and from files of people who do this job: no label may reach the wrong animal.

Each case builds a small project, runs the steps from export to splits, and checks what came out. Add a case as a function with
``@case``: it gets an empty project, and returns a plan and what must be true of the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from animl_pipeline.config import Plan
from animl_pipeline.core.errors import PipelineError
from tests.support.field_cases import BLUE, CATEGORIES, FOX, HEIGHT, MIDDLE, OWL, RABBIT, RED, WIDTH, Outcome, Project, around, relative, run_steps

RESULTS = {"source": "results", "results": "md.json"}
FOXES_AND_OWLS = {("fox", "red"): 3, ("owl", "blue"): 3}
BOX = around(*MIDDLE)
RED_FOX, BLUE_ONE = (RED, *MIDDLE), (BLUE, *MIDDLE)


class Right(NamedTuple):
    """What must come out. ``error`` is the code of the error in which the steps must end; what is None is not checked."""

    crops: dict[tuple[str, str], int] | None = None
    dropped: Mapping[str, dict[str, int]] = MappingProxyType({})
    notes: Mapping[str, dict[str, int]] = MappingProxyType({})
    locations: set[str] | None = None
    error: str = ""


Build = Callable[[Project], tuple[Plan, Right]]
CASES: dict[str, Build] = {}


def case(name: str) -> Callable[[Build], Build]:
    """Put a case into the table."""

    def add(build: Build) -> Build:
        assert name not in CASES
        CASES[name] = build
        return build

    return add


def check(outcome: Outcome, right: Right) -> None:
    """Compare what came out with what must come out."""
    if right.crops is not None:
        assert outcome.crops == right.crops
    if right.locations is not None:
        assert outcome.locations == right.locations
    for step, counts in right.dropped.items():
        assert outcome.dropped[step] == counts
    for step, counts in right.notes.items():
        assert counts.items() <= outcome.notes[step].items()
    assert outcome.notes["splits"]["leaks_found"] == 0
    assert all(len(splits) == 1 for location, splits in outcome.splits_of.items() if location)


# -- several labels on an image -------------------------------------------------------------------------------------------


@case("01 a fox and a rabbit, which the plan does not name")
def _unlisted_beside_fox(p: Project) -> tuple[Plan, Right]:
    for location in "abc":
        p.label(p.image([RED_FOX], location), FOX)
        p.label(p.image([BLUE_ONE], location), OWL)
        both = p.image([(BLUE, 20, 36), (RED, 76, 36)], location)
        p.label(both, FOX)
        p.label(both, RABBIT)
    return p.coco(detections=RESULTS), Right(FOXES_AND_OWLS, {"labels": {"unlisted_label": 3, "ambiguous_label": 3}})


@case("01b a fox somewhere, and a rabbit in a box that a person drew")
def _boxed_rabbit(p: Project) -> tuple[Plan, Right]:
    for location in "abc":
        p.label(p.image([BLUE_ONE], location), OWL)
        rabbit = p.image([BLUE_ONE], location)
        p.label(rabbit, RABBIT, BOX)
        p.label(rabbit, FOX)
    return p.coco(detections=RESULTS), Right({("owl", "blue"): 3}, {"labels": {"unlisted_label": 3, "ambiguous_label": 3}})


@case("01c a box that a person drew and called empty is not taken by a label of the whole image")
def _rejected_box(p: Project) -> tuple[Plan, Right]:
    for location in "abc":
        p.label(p.image([BLUE_ONE], location), OWL)
        image = p.image([(BLUE, 20, 36), (RED, 76, 36)], location)
        p.label(image, 0, around(20, 36))
        p.label(image, FOX)
    return p.coco(detections=RESULTS), Right(FOXES_AND_OWLS, {"labels": {"empty": 3}, "crops": {}})


# -- ids and boxes ---------------------------------------------------------------------------------------------------------


@case("04b one image id, two files")
def _two_files(p: Project) -> tuple[Plan, Right]:
    for n, location in enumerate("abc"):
        p.label(p.image([RED_FOX], location), FOX, BOX)
        p.label(p.image([BLUE_ONE], location), OWL, BOX)
        for colour, category, part in ((RED, FOX, 0), (BLUE, OWL, 1)):
            p.label(p.image([(colour, *MIDDLE)], location, id=f"n{n}", file_name=f"set{part}/p{n}.jpg"), category, BOX)
    return p.coco(), Right(FOXES_AND_OWLS, {"export": {"ambiguous_image_id": 3, "label_of_ambiguous_image": 6}})


@case("annotation ids are all 0, or missing")
def _no_ids(p: Project) -> tuple[Plan, Right]:
    for n, location in enumerate("abc"):
        for colour, category in ((RED, FOX), (BLUE, OWL)):
            p.label(p.image([(colour, *MIDDLE)], location), category, BOX, id=0 if n else None)
    return p.coco(), Right(FOXES_AND_OWLS, {"export": {}}, {"export": {"annotation_without_id": 2, "annotation_id_of_several": 4}})


@case("05 sequence ids begin anew at every camera")
def _sequences(p: Project) -> tuple[Plan, Right]:
    for location in "abc":
        for sequence, (colour, category) in enumerate(((RED, FOX), (BLUE, OWL))):
            p.label(p.image([(colour, *MIDDLE)], location, seq_id=sequence), category, BOX)
    return p.coco(), Right(FOXES_AND_OWLS, notes={"labels": {"sequence_ids_at_several_locations": 2}})


@case("06 boxes in 0..1 beside sizes in pixels")
def _relative_boxes(p: Project) -> tuple[Plan, Right]:
    for location in "abc":
        p.label(p.image([RED_FOX], location), FOX, relative(BOX))
        p.label(p.image([BLUE_ONE], location), OWL, relative(BOX))
    return p.coco(), Right(FOXES_AND_OWLS, notes={"export": {"relative_boxes": 1}})


@case("boxes that cannot be used: their labels are kept for the whole image")
def _unusable_boxes(p: Project) -> tuple[Plan, Right]:
    unusable: list[list[Any]] = [[10, 20], [None] * 4, [40, 36, -9, 9]]
    for box, location in zip(unusable, "abc", strict=True):
        p.label(p.image([RED_FOX], location), FOX, box)
        p.label(p.image([BLUE_ONE], location), OWL, BOX)
    return p.coco(detections=RESULTS), Right(FOXES_AND_OWLS, {"export": {}}, {"export": {"box_malformed": 2, "box_empty": 1}})


# -- frames and results files ----------------------------------------------------------------------------------------------


@case("02 a results file of a tool that turns images by their EXIF orientation")
def _turned_results(p: Project) -> tuple[Plan, Right]:
    for location in "abc":
        for colour, category in ((RED, FOX), (BLUE, OWL)):
            p.label(p.image([(colour, 20, 20)], location, orientation=6, width=HEIGHT, height=WIDTH), category)
            file = p.results.pop()["file"]
            p.detect(file, [relative(around(HEIGHT - 20, 20), HEIGHT, WIDTH)], width=HEIGHT, height=WIDTH)
    return p.coco(detections=RESULTS), Right(FOXES_AND_OWLS)


@case("03 people's boxes in the image as shown")
def _turned_boxes(p: Project) -> tuple[Plan, Right]:
    for location in "abc":
        for colour, category in ((RED, FOX), (BLUE, OWL)):
            image = p.image([(colour, 70, 20)], location, orientation=6, width=HEIGHT, height=WIDTH)
            p.label(image, category, around(HEIGHT - 20, 70))
    return p.coco(), Right(FOXES_AND_OWLS)


@case("17 undated images of a resting animal")
def _resting_fox(p: Project) -> tuple[Plan, Right]:
    for n in range(12):
        p.label(p.image([(RED, 40 + n % 2, 36)], "a", datetime=None), FOX)
    for location in "bcd":
        p.label(p.image([(RED, 60, 30)], location, datetime=None), FOX)
        p.label(p.image([(BLUE, 30, 40)], location, datetime=None), OWL)
    return p.coco(detections=RESULTS), Right({("fox", "red"): 15, ("owl", "blue"): 3})


@case("21 a results file of another camera with the same file names")
def _other_camera(p: Project) -> tuple[Plan, Right]:
    for location in "abc":
        p.label(p.image([RED_FOX], location), FOX)
        p.label(p.image([BLUE_ONE], location), OWL)
    for row in p.results:
        row["file"] = f"cam2/{row['file']}"
    return p.coco(detections=RESULTS), Right(error="folders_contradict")


# -- locations -------------------------------------------------------------------------------------------------------------

NO_LOCATION = ["nan", "None", "null", "NA", "N/A", "unknown", "-", "?", "#N/A", "", " ", None, 0, -1]


@case("09 placeholders where a location is missing")
def _placeholders(p: Project) -> tuple[Plan, Right]:
    for location in ("a", "b", "c"):
        p.label(p.image([RED_FOX], location), FOX, BOX)
        p.label(p.image([BLUE_ONE], location), OWL, BOX)
    for placeholder in NO_LOCATION:
        p.label(p.image([RED_FOX], placeholder), FOX, BOX)
    return p.coco(), Right(locations={"", "s/a", "s/b", "s/c"})


@case("31 half of a camera's images have a placeholder as location")
def _half_unknown(p: Project) -> tuple[Plan, Right]:
    for n in range(12):
        for colour, category in ((RED, FOX), (BLUE, OWL)):
            p.label(p.image([(colour, *MIDDLE)], "unknown" if n % 2 else f"cam{n % 3}"), category, BOX)
    right = Right({("fox", "red"): 12, ("owl", "blue"): 12}, {"splits": {"unknown_location": 12}}, locations={"", "s/cam0", "s/cam1", "s/cam2"})
    return p.coco(), right


# -- Camtrap DP ------------------------------------------------------------------------------------------------------------


def _media(p: Project, deployment: str, colour: Any, taken: str, **fields: Any) -> dict[str, Any]:
    """A row of media, and its image."""
    n = p.image([(colour, *MIDDLE)], deployment)
    p.results[-1]["file"] = f"pics/p{n}.jpg"
    p.put(f"dp/pics/p{n}.jpg", (p.folder / f"pics/p{n}.jpg").read_bytes())
    return {"mediaID": f"m{n}", "deploymentID": deployment, "timestamp": taken, "filePath": f"pics/p{n}.jpg", "fileMediatype": "image/jpeg"} | fields


def _observation(media: dict[str, Any], taxon: str, box: tuple[float, ...] = tuple(relative(BOX)), **fields: Any) -> dict[str, Any]:
    """A row of observations of one image."""
    row = {"observationID": f"o{media['mediaID']}", "deploymentID": media["deploymentID"], "mediaID": media["mediaID"]}
    box_columns = dict(zip(("bboxX", "bboxY", "bboxWidth", "bboxHeight"), box, strict=False))
    what = {"observationLevel": "media", "observationType": "animal", "scientificName": taxon, "classificationMethod": "human"}
    return row | what | box_columns | fields


def _deployment(name: str, **fields: Any) -> dict[str, Any]:
    return {"deploymentID": name, "deploymentStart": "2024-05-01T00:00:00Z", "deploymentEnd": "2024-06-01T00:00:00Z"} | fields


def _pairs(p: Project, deployments: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """A fox and a badger at each deployment: rows of media, and the taxon of each."""
    kinds = ((RED, "Vulpes vulpes"), (BLUE, "Meles meles"))
    rows = [(name, day, hour, kind) for day, name in enumerate(deployments, 2) for hour, kind in enumerate(kinds)]
    media = [_media(p, name, colour, f"2024-05-{day:02d}T0{hour}:00:00Z") for name, day, hour, (colour, _) in rows]
    return media, [taxon for *_, (_, taxon) in rows]


@case("10 coordinates rounded to protect a species")
def _rounded(p: Project) -> tuple[Plan, Right]:
    names = [f"d{n}" for n in range(4)]
    deployments = [_deployment(name, locationID=f"l{name}", latitude=51.0, longitude=5.0) for name in names]
    media, taxa = _pairs(p, names)
    plan = p.camtrap_dp(deployments, media, [_observation(m, t) for m, t in zip(media, taxa, strict=True)], package={"coordinatePrecision": 0.1})
    return plan, Right({("fox", "red"): 4, ("badger", "blue"): 4}, locations={f"s/l{name}" for name in names})


@case("15 events of different animals that overlap in time")
def _overlapping_events(p: Project) -> tuple[Plan, Right]:
    media: list[dict[str, Any]] = []
    observations: list[dict[str, Any]] = []

    def event(deployment: str, first: str, last: str, taxon: str) -> None:
        row = _observation({"deploymentID": deployment, "mediaID": ""}, taxon, (), observationLevel="event")
        observations.append(
            row | {"observationID": f"e{len(observations)}", "eventID": f"e{len(observations)}", "eventStart": first, "eventEnd": last}
        )

    for n in range(3):
        day = f"2024-05-0{n + 2}T"
        media += [_media(p, f"d{n}", colour, f"{day}{t}Z") for t, colour in (("12:00:00", RED), ("12:00:20", BLUE), ("12:00:40", RED))]
        media.append(_media(p, f"d{n}", BLUE, f"{day}15:00:00Z"))
        event(f"d{n}", f"{day}12:00:00Z", f"{day}12:00:40Z", "Vulpes vulpes")
        event(f"d{n}", f"{day}12:00:20Z", f"{day}12:00:20Z", "Lepus europaeus")
        event(f"d{n}", f"{day}15:00:00Z", f"{day}15:00:00Z", "Meles meles")
    plan = p.camtrap_dp([_deployment(f"d{n}", locationID=f"l{n}") for n in range(3)], media, observations, detections=RESULTS)
    return plan, Right({("fox", "red"): 6, ("badger", "blue"): 3})


@case("24 locationID is empty, locationName says it")
def _location_name(p: Project) -> tuple[Plan, Right]:
    names = [f"d{n}-{part}" for n in range(3) for part in range(2)]
    deployments = [_deployment(name, locationID="", locationName=f"Creek {name[1]}") for name in names]
    media, taxa = _pairs(p, names)
    plan = p.camtrap_dp(deployments, media, [_observation(m, t) for m, t in zip(media, taxa, strict=True)])
    return plan, Right({("fox", "red"): 6, ("badger", "blue"): 6}, locations={"s/Creek 0", "s/Creek 1", "s/Creek 2"})


@case("25 half a box")
def _half_a_box(p: Project) -> tuple[Plan, Right]:
    names = ["d0", "d1", "d2"]
    media, taxa = _pairs(p, names)
    half = tuple(relative(BOX)[:2])
    observations = [_observation(m, t, half) for m, t in zip(media, taxa, strict=True)]
    plan = p.camtrap_dp([_deployment(name, locationID=name) for name in names], media, observations, detections=RESULTS)
    return plan, Right({("fox", "red"): 3, ("badger", "blue"): 3}, {"export": {}})


# -- names -----------------------------------------------------------------------------------------------------------------

UUID = "00000000-0000-4000-8000-00000000000"
SEVEN_PARTS = [
    f"{UUID}1;mammalia;carnivora;canidae;vulpes;vulpes;red fox",
    f"{UUID}2;aves;strigiformes;strigidae;;;owl",
    f"{UUID}3;mammalia;primates;hominidae;homo;sapiens;human",
    f"{UUID}4;;;;;;blank",
    f"{UUID}5;;;;;;vehicle",
]


@case("14 names in SpeciesNet's seven parts, people and blank among them")
def _seven_parts(p: Project) -> tuple[Plan, Right]:
    p.categories = dict(enumerate(SEVEN_PARTS, 1))
    for location in "abc":
        for category, colour in enumerate((RED, BLUE, BLUE, BLUE, BLUE), 1):
            p.label(p.image([(colour, *MIDDLE)], location), category, BOX)
    labels = {"classes": {"fox": ["red fox"], "owl": ["owl"], "other": ["human", "vehicle"]}, "empty": ["blank"], "on_too_few": "warn"}
    return p.coco(labels=labels), Right(FOXES_AND_OWLS, {"crops": {"person_or_vehicle": 6}})


@case("names that look alike: blanks, case, Unicode's forms")
def _names_alike(p: Project) -> tuple[Plan, Right]:
    p.categories = CATEGORIES | {11: "Red\u00a0Fox ", 12: "he\u0301risson", 13: "OWL"}
    for location, fox in zip("abc", (FOX, 11, 12), strict=True):
        p.label(p.image([RED_FOX], location), fox, BOX)
        p.label(p.image([BLUE_ONE], location), 13, BOX)
    return p.coco(labels={"classes": {"fox": ["fox", "red fox", "h\u00e9risson"], "owl": ["owl "]}}), Right(FOXES_AND_OWLS, {"labels": {}})


# -- the test ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_no_label_reaches_the_wrong_animal(name: str, tmp_path: Path) -> None:
    plan, right = CASES[name](Project(tmp_path))
    if right.error:
        with pytest.raises(PipelineError) as caught:
            run_steps(plan, tmp_path)
        assert caught.value.code == right.error
        return
    check(run_steps(plan, tmp_path), right)

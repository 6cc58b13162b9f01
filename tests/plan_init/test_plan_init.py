"""The first plan from exports: it is always valid, has the right classes and warnings, and no file is overwritten."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from animl_pipeline.cli.init_plan import init
from animl_pipeline.cli.main import main
from animl_pipeline.config import Plan, SourceConfig, check_plan, load_plan
from animl_pipeline.core.category_names import normalise_name, role
from animl_pipeline.core.errors import ExportError, PlanError
from animl_pipeline.core.location_names import tidy_name
from animl_pipeline.plan_init import LabelCounts, Survey, render_plan, suggest_plan
from animl_pipeline.plan_init.render_yaml import yaml_scalar
from animl_pipeline.plan_init.suggest_classes import group_spellings, is_likely_typo
from tests.conftest import jpeg
from tests.support.camtrap_dp import CamtrapPackage
from tests.support.coco_export import Export
from tests.support.paths import DATA


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the data, with the store in it."""
    monkeypatch.setenv("ANIML_DATA", str(tmp_path))
    monkeypatch.setenv("ANIML_STORE", str(tmp_path / "store"))
    return tmp_path


def messy() -> Export:
    """Two kinds of animals with several spellings, one kind at one location, people, and all common faults."""
    e = Export()
    names = ["empty", "Island Fox", "island_foxes", "deer mouse", "Deer Mice", "raven", "person", "unknown bird", "Islnd Fox"]
    e.categories = [{"id": i, "name": n} for i, n in enumerate(names)]
    for i in range(40):
        image = e.image(f"cam{i % 4}", datetime="1999-01-01T00:00:00" if i == 0 else f"2026-03-{1 + i % 28:02d}T10:00:00")
        e.annotation(image, 2 if i % 4 == 0 else 1, [4, 4, 20, 20])
        e.annotation(image, 4 if i % 4 == 1 else 3, [30, 4, 20, 20], validated=i % 8 != 0)
    for i in range(12):
        e.annotation(e.image("cliff"), 5, [4, 4, 20, 20])
        e.annotation(e.image(None), 6 + i % 2)
    e.annotation(e.image("cam1"), 8, [4, 4, 20, 20])
    e.annotation(e.image("cam1"), 1, [400, 4, 20, 20])
    e.annotations.append(dict(e.annotations[0]))
    e.image("cam1", width=None)
    return e


def test_a_label_that_no_person_validated_becomes_no_class(folder: Path) -> None:
    e = Export()
    e.categories = [{"id": i, "name": n} for i, n in enumerate(["empty", "fox", "rat", "rodent"])]
    for i in range(60):
        kind = 1 + i % 3
        e.annotation(e.image(f"cam{i % 5}"), kind, [4, 4, 20, 20], validated=kind != 3)
    e.write(folder / "isle")
    init(["isle/export.json"], output=folder / "plan.yaml", min_annotations=10, min_locations=3)
    assert list(load_plan(folder / "plan.yaml").labels.classes) == ["fox", "rat"]
    assert "rodent: [rodent]  0 annotations" in (folder / "plan.yaml").read_text(encoding="utf-8")


def test_a_folder_of_images_is_found_where_the_shell_is_as_the_export_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = folder / "here"
    messy().write(here)
    (folder / "data").mkdir()
    monkeypatch.setenv("ANIML_DATA", str(folder / "data"))
    monkeypatch.chdir(here)
    init(["export.json"], images=["images"], output=folder / "plan.yaml", min_annotations=10, min_locations=3)
    [source] = load_plan(folder / "plan.yaml").sources
    assert (source.export, source.images) == (str(here / "export.json"), str(here / "images"))


def test_a_messy_export_gives_a_valid_plan_with_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messy().write(folder / "isle")
    output = folder / "plan.yaml"
    init(["isle/export.json"], output=output, min_annotations=10, min_locations=3)
    plan, text, shown = load_plan(output), output.read_text(encoding="utf-8"), capsys.readouterr().out
    assert {c: rule.labels() for c, rule in plan.labels.classes.items()} == {
        "Island Fox": ("Island Fox", "island_foxes", "Islnd Fox"),
        "deer mouse": ("deer mouse", "Deer Mice"),
    }
    assert (plan.labels.empty, plan.labels.exclude) == (("empty",), ("person", "unknown bird"))
    [source] = plan.sources
    assert (source.name, source.kind, source.export, source.images, source.path_field) == (
        "isle",
        "cct",
        "isle/export.json",
        "isle/images",
        "file_name",
    )
    comments = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
    for line in (
        "fewer than 3 known locations: raven (12 at 1)",
        "'Island Fox', 'island_foxes', 'Islnd Fox' are taken as spellings of one name; this may be wrong",
        "'deer mouse', 'Deer Mice' are taken as spellings of one name",
        "isle: 1 box outside",
        "isle: 1 duplicate annotation",
        "isle: 1 missing size",
        "isle: no person validated 5 of 106 labels (5 %)",
        "isle: 12 of 67 images (18 %) have no location",
        "isle: 1 image dated before 2000 or after today",
    ):
        assert line in comments, line
        assert line in " ".join(shown.split()), line
    assert (
        "Island Fox: [Island Fox, island_foxes, Islnd Fox]  # 42 annotations (41 boxes) in 42 images at 4 locations, 2026-03-01 to 2026-03-28" in text
    )
    assert "raven: [raven]  12 annotations (12 boxes) in 12 images at 1 location" in text
    assert f"written: {output}" in shown


def test_an_existing_file_is_not_overwritten(folder: Path) -> None:
    messy().write(folder / "isle")
    (folder / "plan.yaml").write_text("mine")
    with pytest.raises(PlanError) as caught:
        init(["isle/export.json"], output=folder / "plan.yaml")
    assert caught.value.code == "file_exists"
    assert (folder / "plan.yaml").read_text() == "mine"


def test_several_exports_of_several_kinds_become_one_plan(folder: Path) -> None:
    messy().write(folder / "isle")
    package = CamtrapPackage()
    for i in range(4):
        package.deployment(f"cam{i}", locationID=f"cam{i}")
        package.observation(f"cam{i}", "Corvus corax", package.image(f"cam{i}", filePath=f"https://media.host/assets/{i}/file"))
        (folder / "sorted" / "island fox").mkdir(parents=True, exist_ok=True)
        (folder / "sorted" / "island fox" / f"{i}.jpg").write_bytes(jpeg(seed=i))
    package.write(folder / "dp")
    init(["isle/export.json", "dp", str(folder / "sorted")], output=folder / "plan.yaml", model="three", min_annotations=4, min_locations=1)
    plan, text = load_plan(folder / "plan.yaml"), (folder / "plan.yaml").read_text(encoding="utf-8")
    assert plan.model == "three"
    assert [(s.name, s.kind, s.images) for s in plan.sources] == [
        ("isle", "cct", "isle/images"),
        ("dp", "camtrap-dp", "https://media.host/assets"),
        ("sorted", "folders", "sorted"),
    ]
    assert {"Island Fox", "deer mouse", "raven", "Corvus corax"} <= plan.labels.classes.keys()
    assert "4 location names in several sources (such as 'cam0' in dp and isle)" in " ".join(text.replace("#", "").split())


def test_labels_that_are_not_validated_are_dropped_unless_the_user_keeps_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = '[{{"category": "1", "conf": 0.9, "bbox": [0.1, 0.1, 0.2, 0.2], "classifications": [["{}", 0.9]]}}]'
    rows = ", ".join(f'{{"file": "c{i % 4}/{i}.jpg", "detections": {found.format(i % 2)}}}' for i in range(8))
    names = '"detection_categories": {"1": "animal"}, "classification_categories": {"0": "a", "1": "b"}'
    (folder / "md.json").write_text(f'{{"images": [{rows}], {names}}}')
    init(["md.json"], output=folder / "plan.yaml", layout="{location}", min_annotations=1, min_locations=1)
    [source] = load_plan(folder / "plan.yaml").sources
    assert (source.kind, source.layout, source.unreviewed) == ("megadetector", "{location}", "drop")
    assert "no person validated its 8 labels" in " ".join(capsys.readouterr().out.split())


def test_similar_location_names_give_a_warning_and_exif_dates_are_understood(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    e = Export()
    for i in range(12):
        loc, taken = ("Cove", "cove ", "bay", "Bay West")[i % 4], ("2026:03:01 10:00:00", "2026-13-45T10:00:00")[i // 6]
        e.annotation(e.image(loc, datetime=taken), 1 + i % 2)
    e.write(folder / "isle")
    init(["isle/export.json"], output=folder / "plan.yaml", min_annotations=1, min_locations=1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "(such as 'isle/Cove' and 'isle/cove')" in shown
    assert "2026-03-01 to 2026-03-01" in shown
    assert "isle (6 of 12)" in shown


@pytest.mark.parametrize(
    ("labels", "kinds"),
    [({"fox": 5, "empty": 3}, 1), ({"person": 2}, 0)],
)
def test_an_export_with_fewer_than_two_kinds_of_animals_is_an_error(labels: dict[str, int], kinds: int) -> None:
    with pytest.raises(ExportError) as caught:
        suggest_plan([survey(labels)], 1, 1)
    assert (caught.value.code, caught.value.details["kinds"]) == ("too_few_kinds", kinds)


@pytest.mark.parametrize(
    ("words", "part"),
    [(["isle/export.json", "--layout", "label"], "sources.0.layout"), (["lila://atlantis"], "lila://"), ([""], "EXPORT")],
)
def test_a_wrong_option_is_an_error_and_no_file_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], part: str
) -> None:
    messy().write(folder / "isle")
    monkeypatch.setattr("sys.argv", ["animl-pipeline", "plan", "init", *words, "--output", str(folder / "p.yaml")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert part in capsys.readouterr().err
    assert not (folder / "p.yaml").exists()


# -- labels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Deer Mouse", "deer_mice", True),
        ("grey fox", "gray-foxes", True),
        ("canis lupus", "Canis  lupus", True),
        ("fox", "ox", False),
        ("red deer", "roe deer", False),
        ("moss", "mos", False),
    ],
)
def test_spellings_of_one_name_have_the_same_normal_form(one: str, other: str, same: bool) -> None:
    assert (normalise_name(one) == normalise_name(other)) is same


def test_a_rare_typing_error_is_grouped_with_the_right_name() -> None:
    assert group_spellings({"raccoon": 100, "racoon": 3, "red fox": 9, "rad fox": 1}) == [["raccoon", "racoon"], ["red fox"], ["rad fox"]]
    assert group_spellings({"marten": 100, "martin": 90}) == [["marten"], ["martin"]]
    assert is_likely_typo("opossum", "oppossum")
    assert not is_likely_typo("eastern towhee", "western towhee")


def test_names_of_taxa_are_never_merged() -> None:
    cattle = [f"{i};mammalia;artiodactyla;bovidae;bos;{species};domestic cattle" for i, species in enumerate(("taurus", "indicus"))]
    counts = {
        "Bos taurus": 40,
        "Bos gaurus": 8,
        "Urocyon species": 60,
        "Procyon species": 12,
        "Marmota": 50,
        "Marmosa": 9,
        cattle[0]: 9,
        cattle[1]: 1,
    }
    assert sorted(group_spellings(counts)) == sorted([name] for name in counts)
    assert group_spellings({"Bos taurus": 40, "bos_taurus": 2}) == [["Bos taurus", "bos_taurus"]]


def test_names_in_seven_parts_give_classes_by_their_common_name_and_no_class_of_people_or_blanks() -> None:
    animals = ["a1;mammalia;carnivora;canidae;vulpes;vulpes;red fox", "a2;mammalia;lagomorpha;leporidae;lepus;europaeus;european hare"]
    others = ["a3;mammalia;primates;hominidae;homo;sapiens;human", "a4;;;;;;blank", "a5;;;;;;vehicle", "Setup_Pickup"]
    suggested = suggest_plan([survey(dict.fromkeys([*animals, *others], 20))], 10, 2)
    assert {c.id: c.labels for c in suggested.classes} == {"red fox": (animals[0],), "european hare": (animals[1],)}
    assert {r: set(labels) for r, labels in suggested.no_animals.items()} == {
        "people": {others[0], others[3]},
        "empty": {others[1]},
        "vehicle": {others[2]},
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "empty") for name in ("Empty", "no_animal", "Blank")),
        *((name, "people") for name in ("Humans", "Homo sapiens")),
        *((name, "vehicle") for name in ("Cars", "ATV")),
        *((name, "unknown") for name in ("Unidentified rodent", "#REF!", "other")),
        *((name, "") for name in ("fox", "sea otter", "human-like thing")),
    ],
)
def test_names_of_no_animals_have_a_role(name: str, expected: str) -> None:
    assert role(name) == expected


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


def survey(counts: dict[str, int]) -> Survey:
    """An export in which each label has so many annotations at each of three locations."""
    labels = tuple(LabelCounts(n, c, c, c, Counter({f"isle/p{i}": c for i in range(3)}), "", "") for n, c in counts.items())
    locations = frozenset(p for c in labels for p in c.locations)
    source = SourceConfig(name="isle", kind="cct", export="e.json", images="i")
    return Survey(source, 9, sum(counts.values()), locations, 0, 0, 0, 0, 0, "", "", labels, {})


@settings(deadline=None)
@given(st.dictionaries(TEXTS.map(tidy_name).filter(bool), st.integers(1, 100), min_size=1, max_size=12))
def test_any_labels_give_a_valid_plan_that_uses_each_label_once(labels: dict[str, int]) -> None:
    surveys = [survey(labels)]
    try:
        suggested = suggest_plan(surveys, 10, 2)
    except ExportError:
        assert len({normalise_name(n) for n in labels if not role(n)}) < 2
        return
    plan: Plan = check_plan(yaml.safe_load(render_plan("isle", surveys, suggested, {})))
    given_labels = {n.casefold() for n in labels}
    used = [n.casefold() for rule in plan.labels.classes.values() for n in rule.labels()]
    assert len(used) == len(set(used))
    assert set(used) <= given_labels
    assert set(used) | {n.casefold() for k in suggested.too_few for n in k.labels} == {n for n in given_labels if not role(n)}


@settings(deadline=None)
@given(TEXTS)
def test_a_yaml_scalar_is_read_as_the_same_text(text: str) -> None:
    assert yaml.safe_load(f"[{yaml_scalar(text)}, {{{yaml_scalar(text)}: 1}}]") == [text, {text: 1}]


# -- real exports ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real camera-trap images beside this checkout")
def test_real_exports_give_a_valid_plan(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANIML_DATA", str(DATA))
    exports = sorted(str(p.relative_to(DATA)) for p in DATA.glob("*/cct.json"))
    init(exports, output=tmp_path / "plan.yaml", model="all")
    plan = load_plan(tmp_path / "plan.yaml")
    assert [s.images for s in plan.sources] == [Path(e).parent.as_posix() for e in exports]
    assert {"striped skunk", "mouflon", "paca", "red deer"} <= plan.labels.classes.keys()

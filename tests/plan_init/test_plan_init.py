"""A first plan from exports: always valid, never written over another, and it says what a person must know."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from unicodedata import normalize

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from animl_pipeline.cli.main import main
from animl_pipeline.cli.plan_init import init
from animl_pipeline.config import Plan, SourceConfig, check_plan, load_plan
from animl_pipeline.core.category_names import normalise_name as key
from animl_pipeline.core.category_names import role
from animl_pipeline.core.errors import ExportError, PlanError
from animl_pipeline.plan_init import Category, Survey, drafted, plan_text
from animl_pipeline.plan_init.category_names import is_slip, spellings
from animl_pipeline.plan_init.render_yaml import scalar
from tests.conftest import jpeg
from tests.support.camtrap_dp import CamtrapPackage
from tests.support.coco_export import Export
from tests.support.paths import DATA


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which paths of plans start and the store lies."""
    monkeypatch.setenv("ANIML_DATA", str(tmp_path))
    monkeypatch.setenv("ANIML_STORE", str(tmp_path / "store"))
    return tmp_path


def messy() -> Export:
    """Two kinds of animals with spellings, one kind at one place, people, and every common fault."""
    e = Export()
    names = ["empty", "Island Fox", "island_foxes", "deer mouse", "Deer Mice", "raven", "person", "unknown bird", "Islnd fox"]
    e.categories = [{"id": i, "name": n} for i, n in enumerate(names)]
    for i in range(40):
        image = e.image(f"cam{i % 4}", datetime="1999-01-01T00:00:00" if i == 0 else f"2026-03-{1 + i % 28:02d}T10:00:00")
        e.annotation(image, 2 if i % 4 == 0 else 1, [4, 4, 20, 20])
        e.annotation(image, 4 if i % 4 == 1 else 3, [30, 4, 20, 20], validated=i % 8 != 0)
    for i in range(12):
        e.annotation(e.image("cliff"), 5, [4, 4, 20, 20])
        e.annotation(e.image("", location=None), 6 + i % 2)
    e.annotation(e.image("cam1"), 8, [4, 4, 20, 20])
    e.annotation(e.image("cam1"), 1, [400, 4, 20, 20])
    e.annotations.append(dict(e.annotations[0]))
    e.image("cam1", width=None)
    return e


def test_a_messy_export_gives_a_plan_that_checks_and_says_what_looks_wrong(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messy().write(here / "isle")
    output = here / "plan.yaml"
    init(["isle/export.json"], output=output, min_objects=10, min_locations=3)
    plan, text, shown = load_plan(output), output.read_text(encoding="utf-8"), capsys.readouterr().out
    assert {c: rule.names() for c, rule in plan.labels.classes.items()} == {
        "Island Fox": ("Island Fox", "island_foxes", "Islnd fox"),
        "deer mouse": ("deer mouse", "Deer Mice"),
    }
    assert (plan.labels.empty, plan.labels.exclude) == (("empty",), ("person", "unknown bird"))
    [source] = plan.sources
    assert (source.name, source.kind, source.export, source.images, source.key) == ("isle", "cct", "isle/export.json", "isle/images", "file_name")
    comments = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
    for line in (
        "enough objects, but at fewer than 3 known places to learn from and be tested at: raven (12 at 1)",
        "'Island Fox', 'island_foxes', 'Islnd fox' were taken as spellings of one name, perhaps wrongly",
        "'deer mouse', 'Deer Mice' were taken as spellings of one name",
        "isle: 1 box outside",
        "isle: 1 duplicate object",
        "isle: 1 missing size",
        "isle: 5 of 105 labels (5 %) were validated by no person",
        "isle: 12 of 67 pictures (18 %) do not say where they were taken",
        "isle: 1 picture dated before 2000 or after today",
    ):
        assert line in comments, line
        assert line in " ".join(shown.split()), line
    assert "Island Fox: [Island Fox, island_foxes, Islnd fox]  # 41 objects (41 boxes) in 41 pictures at 4 places, 2026-03-01 to 2026-03-28" in text
    assert "raven: [raven]  12 objects (12 boxes) in 12 pictures at 1 place" in text
    assert f"written: {output}" in shown


def test_a_plan_that_is_there_is_not_written_over(here: Path) -> None:
    messy().write(here / "isle")
    (here / "plan.yaml").write_text("mine")
    with pytest.raises(PlanError, match="is there already and stays as it is; name another file with --output"):
        init(["isle/export.json"], output=here / "plan.yaml")
    assert (here / "plan.yaml").read_text() == "mine"


def test_several_exports_of_several_kinds_become_one_plan(here: Path) -> None:
    messy().write(here / "isle")
    package = CamtrapPackage()
    for i in range(4):
        package.deployment(f"cam{i}")
        package.seen(f"cam{i}", "Corvus corax", package.image(f"cam{i}", filePath=f"https://media.host/assets/{i}/file"))
        (here / "sorted" / "island fox").mkdir(parents=True, exist_ok=True)
        (here / "sorted" / "island fox" / f"{i}.jpg").write_bytes(jpeg(seed=i))
    package.write(here / "dp")
    init(["isle/export.json", "dp", str(here / "sorted")], output=here / "plan.yaml", model="three", min_objects=4, min_locations=1)
    plan, text = load_plan(here / "plan.yaml"), (here / "plan.yaml").read_text(encoding="utf-8")
    assert plan.model == "three"
    assert [(s.name, s.kind, s.images) for s in plan.sources] == [
        ("isle", "cct", "isle/images"),
        ("dp", "camtrap-dp", "https://media.host/assets"),
        ("sorted", "folders", "sorted"),
    ]
    assert {"Island Fox", "deer mouse", "raven", "Corvus corax"} <= plan.labels.classes.keys()
    assert "4 place names in several sources (such as 'cam0' in dp and isle)" in " ".join(text.replace("#", "").split())


def test_labels_of_a_machine_are_left_out_until_a_person_says_otherwise(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = '[{{"category": "1", "conf": 0.9, "bbox": [0.1, 0.1, 0.2, 0.2], "classifications": [["{}", 0.9]]}}]'
    rows = ", ".join(f'{{"file": "c{i % 4}/{i}.jpg", "detections": {found.format(i % 2)}}}' for i in range(8))
    names = '"detection_categories": {"1": "animal"}, "classification_categories": {"0": "a", "1": "b"}'
    (here / "md.json").write_text(f'{{"images": [{rows}], {names}}}')
    init(["md.json"], output=here / "plan.yaml", layout="{location}", min_objects=1, min_locations=1)
    [source] = load_plan(here / "plan.yaml").sources
    assert (source.kind, source.layout, source.unreviewed) == ("megadetector", "{location}", "drop")
    assert "no person validated any of its 8 labels, so nothing of it is learnt as the plan stands" in " ".join(capsys.readouterr().out.split())


def test_locations_that_differ_by_case_alone_and_days_as_exif_writes_them_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    e = Export()
    for i in range(12):
        loc, taken = ("Cove", "cove ", "bay", "Bay West")[i % 4], ("2026:03:01 10:00:00", "2026-13-45T10:00:00")[i // 6]
        e.annotation(e.image(loc, datetime=taken), 1 + i % 2)
    e.write(here / "isle")
    init(["isle/export.json"], output=here / "plan.yaml", min_objects=1, min_locations=1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 place under names that differ by case or blanks alone (such as 'isle/Cove' and 'isle/cove ')" in shown
    assert "2026-03-01 to 2026-03-01" in shown
    assert "isle (6 of 12)" in shown


@pytest.mark.parametrize(
    ("names", "line"),
    [({"fox": 5, "empty": 3}, "expected at least two kinds of animals to tell apart, found 1 .*fox 5"), ({"person": 2}, "found 0")],
)
def test_an_export_with_nothing_to_tell_apart_is_one_line(names: dict[str, int], line: str) -> None:
    with pytest.raises(ExportError, match=line):
        drafted([survey(names)], 1, 1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["isle/export.json", "--layout", "label"], "sources.0.layout: expected {label}, {location}"),
        (["lila://atlantis"], "expected lila://<set>, a set being one of channel-islands-camera-traps"),
        ([""], "EXPORT: expected a path, an address, animl://<project> or lila://<set>, found nothing"),
    ],
)
def test_help_teaches_and_a_wrong_option_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], line: str
) -> None:
    messy().write(here / "isle")
    monkeypatch.setattr("sys.argv", ["animl-pipeline", "plan", "init", *words, "--output", str(here / "p.yaml")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert line in capsys.readouterr().err
    assert not (here / "p.yaml").exists()


# -- names -------------------------------------------------------------------------------------------------------------


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
def test_spellings_of_one_name_have_one_key(one: str, other: str, same: bool) -> None:
    assert (key(one) == key(other)) is same


def test_a_rare_slip_goes_with_the_name_that_it_slipped_from() -> None:
    assert spellings({"raccoon": 100, "racoon": 3, "red fox": 9, "rad fox": 1}) == [["raccoon", "racoon"], ["red fox"], ["rad fox"]]
    assert spellings({"marten": 100, "martin": 90}) == [["marten"], ["martin"]]
    assert is_slip("opossum", "oppossum")
    assert not is_slip("eastern towhee", "western towhee")


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        *((name, "empty") for name in ("Empty", "no_animal", "Blank")),
        *((name, "people") for name in ("Humans", "Homo sapiens")),
        *((name, "vehicle") for name in ("Cars", "ATV")),
        *((name, "unknown") for name in ("Unidentified rodent", "#REF!", "other")),
        *((name, "") for name in ("fox", "sea otter", "human-like thing")),
    ],
)
def test_names_that_are_no_animals_are_known(name: str, meaning: str) -> None:
    assert role(name) == meaning


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


def survey(names: dict[str, int]) -> Survey:
    """An export in figures in which each name has so many objects, at three places."""
    categories = tuple(Category(n, c, c, c, Counter({f"isle/p{i}": c for i in range(3)}), "", "") for n, c in names.items())
    locations = frozenset(p for c in categories for p in c.locations)
    source = SourceConfig(name="isle", kind="cct", export="e.json", images="i")
    return Survey(source, 9, sum(names.values()), locations, 0, 0, 0, 0, 0, "", "", categories, {})


@settings(deadline=None)
@given(st.dictionaries(TEXTS.map(partial(normalize, "NFC")), st.integers(1, 100), min_size=1, max_size=12))
def test_whatever_names_an_export_holds_the_plan_is_valid_and_gives_each_one_meaning(names: dict[str, int]) -> None:
    surveys = [survey(names)]
    try:
        draft = drafted(surveys, 10, 2)
    except ExportError:
        assert len({key(n) for n in names if not role(n)}) < 2
        return
    plan: Plan = check_plan(yaml.safe_load(plan_text("isle", surveys, draft, {})))
    given_names = {n.casefold() for n in names}
    said = [n.casefold() for rule in plan.labels.classes.values() for n in rule.names()]
    assert len(said) == len(set(said))
    assert set(said) <= given_names
    assert set(said) | {n.casefold() for k in draft.few for n in k.names} == {n for n in given_names if not role(n)}


@settings(deadline=None)
@given(TEXTS)
def test_a_scalar_is_read_as_the_text_that_it_was(text: str) -> None:
    assert yaml.safe_load(f"[{scalar(text)}, {{{scalar(text)}: 1}}]") == [text, {text: 1}]


# -- real exports ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="the real camera-trap pictures do not lie beside this checkout")
def test_real_exports_together_give_a_plan_that_checks(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANIML_DATA", str(DATA))
    exports = sorted(str(p.relative_to(DATA)) for p in DATA.glob("*/cct.json"))
    init(exports, output=tmp_path / "plan.yaml", model="all")
    plan = load_plan(tmp_path / "plan.yaml")
    assert [s.images for s in plan.sources] == [Path(e).parent.as_posix() for e in exports]
    assert {"striped skunk", "mouflon", "paca", "red deer"} <= plan.labels.classes.keys()

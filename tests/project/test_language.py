"""The words of the glossary: old words and metaphors do not come back into code and documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

OLD_WORDS = {
    "picture": "image",
    "pictures": "images",
    "places": "locations",
    "burst": "sequence",
    "bursts": "sequences",
    "street": "pipeline",
    "rooms": "packages, steps",
    "cellar": "core",
    "depot": "object store",
    "mend": "fix",
    "mended": "fixed",
    "mends": "fixes",
    "told": "logged, reported",
    "whoever": "the one who",
    "settled": "finished",
    "settles": "finishes",
    "golden": "reference",
    "sureness": "calibration",
    "anew": "again",
    "wishes": "constraints",
    "quaint": "unusual",
}
"""Old word → what to write. Only whole words count."""

SKIPPED = {"animl_pipeline/config/plan_errors.py", "CHANGELOG.md"}
"""Files that must name old words."""


def texts() -> list[Path]:
    """Product code and documents."""
    code = [p for top in ("animl_pipeline", "flows", "tasks") for p in sorted((ROOT / top).rglob("*")) if p.suffix in {".py", ".j2"}]
    data = sorted((ROOT / "deployments").rglob("*.yaml"))
    docs = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    return [p for p in [*code, *data, *docs] if str(p.relative_to(ROOT)) not in SKIPPED]


@pytest.mark.parametrize("path", texts(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_text_uses_the_words_of_the_glossary(path: Path) -> None:
    old = re.compile(rf"(?<![\w-])({'|'.join(OLD_WORDS)})(?![\w-])", re.IGNORECASE)
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        found += [f"line {number}: {word!r}, write {OLD_WORDS[word.lower()]!r}: {line.strip()[:100]}" for word in old.findall(line)]
    assert found == []

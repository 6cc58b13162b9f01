"""The words of the glossary: old words and metaphors do not come back into code and documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

OLD_WORDS = {
    "picture": "image",
    "pictures": "images",
    "place": "location",
    "places": "locations",
    "burst": "sequence",
    "bursts": "sequences",
    "street": "pipeline",
    "room": "package, step",
    "rooms": "packages, steps",
    "cellar": "core",
    "depot": "object store",
    "mend": "fix",
    "mended": "fixed",
    "mends": "fixes",
    "told": "logged, reported",
    "whoever": "the one who",
    "stone": "repeat detection",
    "stones": "repeat detections",
    "settled": "finished",
    "settles": "finishes",
    "golden": "reference",
    "sureness": "calibration",
    "island": "data set",
    "anew": "again",
    "wishes": "constraints",
    "quaint": "unusual",
}
"""Old word → what to write. Only whole words count."""

SKIPPED = {
    "docs/performance.md",
    "CHANGELOG.md",
}
ALLOWED = [
    re.compile(r"Santa Cruz Island|santa-cruz-island|Channel Islands?|channel-islands|[Tt]he island's|@island|islands?\b.*(endemic|Santa Cruz)|synthetic_island"),
    re.compile(r"island fox|island spotted skunk", re.IGNORECASE),
    re.compile(r"in (its|their) place|take place|takes place|in place\b|placeholder|decimal place|place_animal|first place", re.IGNORECASE),
    re.compile(r"room for|makes? room|make room|no room", re.IGNORECASE),
]
"""Uses of such a word in its ordinary sense, and names of real things."""


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
        plain = line
        for allowed in ALLOWED:
            plain = allowed.sub("", plain)
        found += [f"line {number}: {word!r}, write {OLD_WORDS[word.lower()]!r}: {line.strip()[:100]}" for word in old.findall(plain)]
    assert found == []

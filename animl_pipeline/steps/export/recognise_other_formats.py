"""Recognise label files that this program does not read, by their first bytes or the columns of their table, and say how to convert them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import NamedTuple

HEAD_BYTES = 1 << 16
"""How much of a file is enough to recognise it."""
FOLDERS = "sort the images into one folder for each label and use `kind: folders`"
MEGADETECTOR = "write its results in MegaDetector's format (JSON)"
READ_FORMATS = "COCO for Camera Traps, Camtrap DP, MegaDetector's JSON or folders of images"


class OtherFormat(NamedTuple):
    """What a file is, and what to do with it."""

    name: str
    advice: str


MAGIC = (
    (0, b"7z\xbc\xaf\x27\x1c", OtherFormat("a 7z archive", "unpack it (7z x FILE) and name what is inside")),
    (0, b"Rar!\x1a\x07", OtherFormat("a RAR archive", "unpack it (unrar x FILE) and name what is inside")),
    (257, b"ustar", OtherFormat("a tar archive", "unpack it (tar xf FILE) and name what is inside")),
    (0, b"\xfd7zXZ\x00", OtherFormat("an xz file", "unpack it (unxz FILE) and name what is inside")),
    (0, b"BZh", OtherFormat("a bzip2 file", "unpack it (bunzip2 FILE) and name what is inside")),
    (0, b"\x28\xb5\x2f\xfd", OtherFormat("a zstd file", "unpack it (unzstd FILE) and name what is inside")),
    (0, b"SQLite format 3\x00", OtherFormat("a SQLite database, such as Timelapse's", "export a Camtrap DP from Timelapse and name that")),
    (0, b"PAR1", OtherFormat("a Parquet table", f"convert it to {READ_FORMATS}")),
    (0, b"\xff\xd8\xff", OtherFormat("an image", "name the folder that holds the images, or the file with their labels")),
    (0, b"\x89PNG", OtherFormat("an image", "name the folder that holds the images, or the file with their labels")),
)
"""Position, bytes there, and the format that begins so."""
TABLES = (
    ({"wi_taxon_id"}, "Wildlife Insights' table of images", "read its download with camtraptor::read_wi() in R, write it as a Camtrap DP with "
        "frictionless::write_package(), and name its datapackage.json"),
    ({"mediaid", "deploymentid"}, "a table of a Camtrap DP", "name the package's datapackage.json instead"),
    ({"deploymentid", "deploymentlat"}, "Animl's CSV", "export it from Animl as 'coco'"),
    ({"filename", "predictionbase"}, "DeepFaune's table of results", FOLDERS),
    ({"filename", "prediction", "score"}, "a table of predictions such as DeepFaune's", FOLDERS),
    ({"relativepath", "deleteflag"}, "Timelapse's table", "export a Camtrap DP from Timelapse and name that"),
    ({"filepath", "label"}, "a table of labels such as zamba's", FOLDERS),
    ({"filepath"}, "a table of predictions such as zamba's", FOLDERS),
)  # fmt: skip
"""Columns in lower case, the table that has them, and what to do. The first that fits counts."""


def recognise(head: bytes) -> OtherFormat | None:
    """The format of a file that begins with these bytes (``HEAD_BYTES`` of them or all); None where nothing is recognised."""
    for start, magic, found in MAGIC:
        if head[start : start + len(magic)] == magic:
            return found
    text = _decode(head)
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[1].lstrip()[:1] == "{" and _is_json_object(lines[0]):
        return OtherFormat("JSON Lines", f"convert it to {READ_FORMATS}: COCO needs the lists images, annotations and categories in one JSON object")
    return _recognise_table(lines[0]) if lines and lines[0].lstrip()[:1] not in {"{", "[", "<"} else None


def recognise_json(keys: Iterable[str]) -> OtherFormat | None:
    """The format of a JSON object with these keys, of those that are not read; None where nothing is recognised."""
    if "predictions" in set(keys):
        advice = "convert it with python -m speciesnet.scripts.speciesnet_to_md, and name the MegaDetector file that it writes"
        return OtherFormat("SpeciesNet's predictions", advice)
    return None


def _recognise_table(line: str) -> OtherFormat | None:
    """The format of a table with this first line."""
    columns = [column.strip().strip('"').strip() for column in re.split(r"[,;\t]", line)]
    if len(columns) < 2 or not all(re.fullmatch(r"[\w .:/()-]{1,60}", column) for column in columns if column):
        return None
    names = {column.casefold() for column in columns}
    for needed, name, advice in TABLES:
        if needed <= names:
            return OtherFormat(name, advice)
    shown = ", ".join(columns[:8])
    return OtherFormat(f"a table with the columns {shown}", f"convert it to {READ_FORMATS}")


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _decode(head: bytes) -> str:
    encoding = "utf-16" if head[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    return head.decode(encoding, "replace")

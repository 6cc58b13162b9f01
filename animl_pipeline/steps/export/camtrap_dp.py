"""A Camtrap DP (Camera Trap Data Package, https://camtrap-dp.tdwg.org) as an export: read from a folder, an address or a zip.

datapackage.json names three tables; their paths are not to be trusted and never leave the package.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import pandas as pd

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, redact_url
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.export.archives import faults_named, gunzipped, member, own_names
from animl_pipeline.steps.export.camtrap_dp_observations import converted
from animl_pipeline.steps.export.to_coco import is_safe, make_converted
from animl_pipeline.storage.remote_files import RemoteError, open_remote
from animl_pipeline.storage.step_cache import Store

PACKAGE = "datapackage.json"
TABLES = ("deployments", "media", "observations")
COLUMNS = {
    "deployments": ("deploymentID",),
    "media": ("mediaID", "deploymentID", "filePath"),
    "observations": ("observationID", "deploymentID", "observationType"),
}
"""Columns without which a table is not one of version 1.0 or later."""
MISSING = ["", "NA", "NaN", "nan"]
"""How a value that is not there is written (1.0: empty only; since 1.0.2 the others, too)."""

Getter = Callable[[str], bytes]


def export_camtrap(source: SourceConfig, store: Store, settings: Settings, archive: bytes | None = None) -> Artifact:
    """The export step of a Camtrap DP; see :func:`animl_pipeline.steps.export.export_annotations`.

    Args:
        source: names a folder, the address of a datapackage.json, or a zip.
        store: where to.
        settings: where paths start.
        archive: the zip, if it is one.

    Raises:
        ExportError: it is no package of version 1.0 or later, a table is not there, or nothing of it is left.
    """
    where = redact_url(source.export)
    get = _from_zip(archive, where) if archive is not None else _from_folder(source, settings)
    originals = _files(get, where)
    tables = {name: _table(name, originals, where) for name in TABLES}
    return make_converted(
        source,
        store,
        originals=originals,
        digests={f"file {name}": hashlib.sha256(data).hexdigest() for name, data in originals.items()},
        config={
            "kind": "camtrap-dp",
            "location_field": source.location_field,
            "images": redact_url(source.images) if "://" in source.images else "",  # what is cut off from a picture's address
            "merge_locations_within_m": source.merge_locations_within_m,
        },
        convert=lambda: converted(tables, source, where),
    )


def _from_folder(source: SourceConfig, settings: Settings) -> Getter:
    base = source.export.removesuffix(f"/{PACKAGE}") if source.export != PACKAGE else "."
    remote = open_remote(base, settings)

    def get(name: str) -> bytes:
        try:
            return remote.read(name)
        except RemoteError as e:
            raise ExportError(f"source {source.name!r}: expected a Camtrap DP with {name} at {redact_url(base)}: {e}; mend sources.export") from e

    return get


def _from_zip(data: bytes, where: str) -> Getter:
    with faults_named(where):
        archive = zipfile.ZipFile(io.BytesIO(data))
    names = [n for n in own_names(archive) if n.rpartition("/")[2] == PACKAGE]
    if len(names) != 1:
        raise ExportError(f"{where}: expected one {PACKAGE} in the archive, found {len(names)}; unpack it and name the right one")
    folder = names[0].removesuffix(PACKAGE)
    return lambda name: member(archive, folder + name, where)


def _files(get: Getter, where: str) -> dict[str, bytes]:
    """The package's description and tables, untouched, by name."""
    originals = {PACKAGE: get(PACKAGE)}
    for name in TABLES:
        for path in _paths(_description(originals, where), name, where):
            originals[path] = get(path)
    return originals


def _description(originals: dict[str, bytes], where: str) -> dict[str, Any]:
    try:
        package = json.loads(originals[PACKAGE])
    except (ValueError, RecursionError) as e:
        raise ExportError(f"{where}: {PACKAGE} is not JSON ({e}); fetch it again") from e
    if not isinstance(package, dict) or not isinstance(package.get("resources"), list):
        raise ExportError(f"{where}: {PACKAGE} describes no data package: expected the list resources; fetch it again")
    return package


def _resource(package: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    found = [r for r in package["resources"] if isinstance(r, dict) and r.get("name") == name]
    if len(found) != 1:
        has = ", ".join(str(r.get("name")) for r in package["resources"] if isinstance(r, dict))
        raise ExportError(f"{where}: expected one resource {name!r} in {PACKAGE}, found {len(found)} among {has or 'none'}; is it a Camtrap DP?")
    return dict(found[0])


def _paths(package: dict[str, Any], name: str, where: str) -> list[str]:
    """A table's files: relative paths inside the package."""
    said = _resource(package, name, where).get("path")
    paths = said if isinstance(said, list) and said else [said]
    for path in paths:
        if not isinstance(path, str) or not is_safe(path):
            raise ExportError(f"{where}: expected a path inside the package for the table {name!r}, found {path!r}; fetch it beside {PACKAGE}")
        if not path.endswith((".csv", ".csv.gz")):
            raise ExportError(f"{where}: expected the table {name!r} as .csv or .csv.gz, found {path!r}; write it as CSV")
    return [str(path) for path in paths]


def _table(name: str, originals: dict[str, bytes], where: str) -> pd.DataFrame:
    """A table, all its values as text, empty where missing."""
    package = _description(originals, where)
    resource = _resource(package, name, where)
    delimiter, encoding = _dialect(resource, f"{where}: the table {name!r} in {PACKAGE}")
    parts = [_read_csv(originals[path], f"{where}, {path}", delimiter, encoding) for path in _paths(package, name, where)]
    table = pd.concat(parts, ignore_index=True)
    lacking = [c for c in COLUMNS[name] if c not in table]
    if lacking:
        version, found = str(package.get("profile", "no profile"))[:120], ", ".join(map(str, table.columns))[:200]
        raise ExportError(
            f"{where}: the table {name!r} has no column {lacking[0]!r}; expected Camtrap DP 1.0 or later, found {version} with the columns {found}"
        )
    return table


def _dialect(resource: dict[str, Any], what: str) -> tuple[str, str]:
    """Between which characters a table's values stand, and in which encoding it is written."""
    dialect, encoding = resource.get("dialect") or {}, resource.get("encoding") or "utf-8"
    delimiter = dialect.get("delimiter", ",") if isinstance(dialect, dict) else None
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise ExportError(f"{what}: expected a dialect with one character as its delimiter, found {str(dialect)[:80]!r}; write it as CSV with commas")
    try:
        codec = codecs.lookup(encoding).name
    except (LookupError, TypeError, ValueError) as e:
        raise ExportError(f"{what}: expected an encoding such as utf-8, found {str(encoding)[:80]!r}; write it in UTF-8") from e
    return delimiter, codec


def _read_csv(raw: bytes, where: str, delimiter: str, encoding: str) -> pd.DataFrame:
    plain = gunzipped(raw, where) if raw[:2] == b"\x1f\x8b" else raw
    try:
        data = io.BytesIO(plain.removeprefix(codecs.BOM_UTF8))
        table = pd.read_csv(data, dtype=str, keep_default_na=False, na_values=MISSING, encoding=encoding, sep=delimiter)
    except (ValueError, LookupError, pd.errors.ParserError, pd.errors.EmptyDataError) as e:
        raise ExportError(f"{where} is no table that can be read: {e}; fetch it again") from e
    if not isinstance(table.index, pd.RangeIndex):  # pandas would take the first values for names of rows
        raise ExportError(f"{where} is no table that can be read: its rows hold more values than it has columns; write it anew")
    return table.fillna("").astype(object)  # rows are taken one by one: Python's own texts are quicker there than Arrow's

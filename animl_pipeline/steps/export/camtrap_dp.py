"""Read a Camtrap DP (Camera Trap Data Package, https://camtrap-dp.tdwg.org) from a folder, an address or a zip.

datapackage.json names three tables. Their paths are not trusted and never leave the package.
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
from animl_pipeline.steps.export.camtrap_dp_observations import convert_observations
from animl_pipeline.steps.export.columns_from_json import is_number
from animl_pipeline.steps.export.fetch_and_parse_coco import export_error
from animl_pipeline.steps.export.images_table import is_safe_path
from animl_pipeline.steps.export.to_coco import converted_export
from animl_pipeline.steps.export.unpack_archives import archive_errors, gunzip, read_zip_member, zip_names
from animl_pipeline.steps.export.write_export_tables import ExportBuild
from animl_pipeline.storage.read_remote_files import RemoteError, open_remote

PACKAGE_FILE = "datapackage.json"
REQUIRED_COLUMNS = {
    "deployments": ("deploymentID",),
    "media": ("mediaID", "deploymentID", "filePath"),
    "observations": ("observationID", "deploymentID", "observationType"),
}
"""Table → columns without which it is not of version 0.1.6 or later."""
MISSING_VALUES = ["", "NA", "NaN", "nan"]
"""How a missing value is written: empty in 1.0, also the others since 1.0.2."""

Reader = Callable[[str], bytes]
"""Gives the content of a file in the package, by its path."""
OLD_NAMES = {
    "deployments": {"start": "deploymentStart", "end": "deploymentEnd"},
    "media": {"sequenceID": "eventID"},
    "observations": {"sequenceID": "eventID", "classificationConfidence": "classificationProbability", "cameraSetup": "cameraSetupType"},
}
"""Table → columns of version 0.1.6 that 1.0 renamed (https://camtrap-dp.tdwg.org/version-history/)."""
IDS = ("deploymentID", "locationID", "mediaID", "eventID", "observationID")
TIDIED = (*IDS, "locationName", "observationType", "observationLevel", "scientificName", "classificationMethod", "cameraSetupType")


def read_camtrap_dp(source: SourceConfig, settings: Settings, archive: bytes | None = None) -> ExportBuild:
    """The export of a Camtrap DP.

    ``source``: names a folder, the address of a datapackage.json, or a zip. ``archive``: the content of the zip, if it is one.

    Raises:
        ExportUnreachableError: its host does not answer now.
        ExportError: ``not_found``, ``bad_archive``, ``archive_too_large``, ``bad_package``, or ``bad_table``.
    """
    where = redact_url(source.export)
    read = _zip_reader(archive, where) if archive is not None else _folder_reader(source, settings)
    package = _parse_package(data := read(PACKAGE_FILE), where)
    paths = {table: _table_paths(package, table, where) for table in REQUIRED_COLUMNS}
    originals = {PACKAGE_FILE: data} | {path: read(path) for table in paths.values() for path in table}
    tables = tidy_columns({t: _read_table(package, t, [(path, originals[path]) for path in paths[t]], where) for t in paths})
    return converted_export(
        source,
        originals=originals,
        digests={f"file {name}": hashlib.sha256(data).hexdigest() for name, data in originals.items()},
        config={
            "kind": "camtrap-dp",
            "location_field": source.location_field,
            "images": redact_url(source.images) if "://" in source.images else "",  # cut off from the addresses of images
            "merge_locations_within_m": source.merge_locations_within_m,
        },
        convert=lambda: convert_observations(tables, _stated_precision(package), source, where),
    )


def _folder_reader(source: SourceConfig, settings: Settings) -> Reader:
    base = source.export.removesuffix(f"/{PACKAGE_FILE}") if source.export != PACKAGE_FILE else "."
    remote = open_remote(base, settings)

    def read(path: str) -> bytes:
        try:
            return remote.read(path)
        except RemoteError as e:
            raise export_error(source, f"a Camtrap DP with {path} at {redact_url(base)}", e) from e

    return read


def _zip_reader(data: bytes, where: str) -> Reader:
    with archive_errors(where):
        archive = zipfile.ZipFile(io.BytesIO(data))
    names = [name for name in zip_names(archive) if name.rpartition("/")[2] == PACKAGE_FILE]
    if len(names) != 1:
        raise ExportError(f"{where}: expected one {PACKAGE_FILE} in the archive, found {len(names)}; unpack it and name the right one")
    folder = names[0].removesuffix(PACKAGE_FILE)
    return lambda path: read_zip_member(archive, folder + path, where)


def _parse_package(data: bytes, where: str) -> dict[str, Any]:
    try:
        package = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ExportError(f"{where}: {PACKAGE_FILE} is not JSON ({e}); fetch it again", code="bad_package") from e
    if not isinstance(package, dict) or not isinstance(package.get("resources"), list):
        raise ExportError(f"{where}: expected the list resources in {PACKAGE_FILE}, found none; fetch it again", code="bad_package")
    return package


def _stated_precision(package: dict[str, Any]) -> float | None:
    """coordinatePrecision: the precision of the least exact coordinates, in degrees; None where the package does not state it."""
    value: Any = package.get("coordinatePrecision")
    return float(value) if is_number(value) and value > 0 else None


def _resource(package: dict[str, Any], table: str, where: str) -> dict[str, Any]:
    found = [r for r in package["resources"] if isinstance(r, dict) and r.get("name") == table]
    if len(found) != 1:
        others = ", ".join(str(r.get("name")) for r in package["resources"] if isinstance(r, dict)) or "none"
        line = f"{where}: expected one resource {table!r} in {PACKAGE_FILE}, found {len(found)} among {others}; is it a Camtrap DP?"
        raise ExportError(line, code="bad_package")
    return dict(found[0])


def _table_paths(package: dict[str, Any], table: str, where: str) -> list[str]:
    """The files of a table: relative paths inside the package."""
    value = _resource(package, table, where).get("path")
    paths = value if isinstance(value, list) and value else [value]
    for path in paths:
        if not isinstance(path, str) or not is_safe_path(path) or "://" in path:
            line = f"{where}: expected a path inside the package for the table {table!r}, found {path!r}; put it beside {PACKAGE_FILE}"
            raise ExportError(line, code="bad_package")
        if not path.endswith((".csv", ".csv.gz")):
            raise ExportError(f"{where}: expected the table {table!r} as .csv or .csv.gz, found {path!r}; write it as CSV", code="bad_package")
    return [str(path) for path in paths]


def _read_table(package: dict[str, Any], table: str, files: list[tuple[str, bytes]], where: str) -> pd.DataFrame:
    """A table with all values as text, "" where missing."""
    delimiter, encoding = _dialect(_resource(package, table, where), f"{where}: the table {table!r} in {PACKAGE_FILE}")
    rows = pd.concat([_read_csv(data, f"{where}, {path}", delimiter, encoding) for path, data in files], ignore_index=True)
    missing = [column for column in REQUIRED_COLUMNS[table] if column not in rows]
    if missing:
        version, found = str(package.get("profile", "no profile"))[:120], ", ".join(map(str, rows.columns))[:200]
        raise ExportError(
            f"{where}: the table {table!r} has no column {missing[0]!r}; expected Camtrap DP 0.1.6 or later, found {version} with the columns "
            f"{found}; export it again in a newer version",
            code="bad_table",
        )
    return rows


def _dialect(resource: dict[str, Any], what: str) -> tuple[str, str]:
    """The delimiter and the encoding of a table."""
    dialect, encoding = resource.get("dialect") or {}, resource.get("encoding") or "utf-8"
    delimiter = dialect.get("delimiter", ",") if isinstance(dialect, dict) else None
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        line = f"{what}: expected a dialect with one character as its delimiter, found {str(dialect)[:80]!r}; write it as CSV with commas"
        raise ExportError(line, code="bad_table")
    try:
        codec = codecs.lookup(encoding).name
    except (LookupError, TypeError, ValueError) as e:
        line = f"{what}: expected an encoding such as utf-8, found {str(encoding)[:80]!r}; write it in UTF-8"
        raise ExportError(line, code="bad_table") from e
    return delimiter, codec


def _read_csv(raw: bytes, where: str, delimiter: str, encoding: str) -> pd.DataFrame:
    data = gunzip(raw, where) if raw[:2] == b"\x1f\x8b" else raw
    try:
        text = io.BytesIO(data.removeprefix(codecs.BOM_UTF8))
        table = pd.read_csv(text, dtype=str, keep_default_na=False, na_values=MISSING_VALUES, encoding=encoding, sep=delimiter)
    except (ValueError, LookupError, pd.errors.ParserError, pd.errors.EmptyDataError) as e:
        raise ExportError(f"{where} cannot be read as a table: {e}; fetch it again", code="bad_table") from e
    if not isinstance(table.index, pd.RangeIndex):  # pandas would take the first values for the names of the rows
        raise ExportError(f"{where} cannot be read as a table: its rows hold more values than it has columns; write it again", code="bad_table")
    return table.fillna("").astype(object)  # rows are read one by one, for which Python's own strings are faster than Arrow's


def tidy_columns(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables with the names of version 1.0, without blanks around ids, types and names.

    Whole numbers as ids lose their point: 12.0 is how pandas writes 12 in a column with gaps. Version 0.1.6 knows sequences of media
    instead of events, so an observation without media gets the times of its sequence's first and last media.
    """
    tidy = {name: _tidy_texts(_with_new_names(table, OLD_NAMES[name])) for name, table in tables.items()}
    observations, media = tidy["observations"], tidy["media"]
    if "cameraSetup" in tables["observations"]:  # a boolean in 0.1.6, the kind of setup since 1.0
        observations["cameraSetupType"] = observations["cameraSetupType"].str.lower().map({"true": "setup", "1": "setup"}).fillna("")
    if "eventStart" not in observations and {"eventID", "timestamp"} <= set(media.columns):
        tidy["observations"] = _with_times_of_sequences(observations, media)
    return tidy


def _with_new_names(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    return table.rename(columns={old: new for old, new in names.items() if old in table and new not in table})


def _tidy_texts(table: pd.DataFrame) -> pd.DataFrame:
    tidied = {column: table[column].str.strip() for column in TIDIED if column in table}
    tidied |= {column: tidied[column].str.replace(r"^(\d+)\.0+$", r"\1", regex=True) for column in IDS if column in tidied}
    return table.assign(**tidied)


def _with_times_of_sequences(observations: pd.DataFrame, media: pd.DataFrame) -> pd.DataFrame:
    """The observations with eventStart and eventEnd, "" where the sequence has no media."""
    times = media[media["timestamp"] != ""].groupby(["deploymentID", "eventID"])["timestamp"].agg(["min", "max"])
    keys = pd.MultiIndex.from_frame(observations[["deploymentID", "eventID"]])
    found = times.reindex(keys).fillna("")
    return observations.assign(eventStart=found["min"].to_numpy(), eventEnd=found["max"].to_numpy())

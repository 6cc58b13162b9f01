"""Bring the tables of a Camtrap DP to the columns of version 1.0, and ids to one spelling."""

from __future__ import annotations

import pandas as pd

OLD_NAMES = {
    "deployments": {"start": "deploymentStart", "end": "deploymentEnd"},
    "media": {"sequenceID": "eventID"},
    "observations": {"sequenceID": "eventID", "classificationConfidence": "classificationProbability", "cameraSetup": "cameraSetupType"},
}
"""Table → columns of version 0.1.6 that 1.0 renamed (https://camtrap-dp.tdwg.org/version-history/)."""
IDS = ("deploymentID", "locationID", "mediaID", "eventID", "observationID")
TIDIED = (*IDS, "locationName", "observationType", "observationLevel", "scientificName", "classificationMethod", "cameraSetupType")


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

"""Name sequences so that an id counts within its location only: many cameras number their sequences from 1."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import pyarrow as pa


class SequenceKeys(NamedTuple):
    """The sequence of each image: text [n], empty where unknown; and how many sequence ids occur at several locations."""

    keys: pa.Array
    at_several_locations: int


def sequence_keys(source: str, locations: pa.Array, sequences: pa.Array) -> SequenceKeys:
    """``<source>/<location>/<sequence id>`` for each image.

    An image of unknown location belongs to its sequence id's only location; where the id has several, its location stays empty.

    Args:
        source: name of the source.
        locations: text [n], empty where unknown.
        sequences: text [n], the ids of the export, empty where unknown.
    """
    rows = pd.DataFrame({"location": locations.to_pandas(), "sequence": sequences.to_pandas()})
    pairs = rows[(rows["location"] != "") & (rows["sequence"] != "")].drop_duplicates()
    count = pairs["sequence"].value_counts()
    only = pairs[pairs["sequence"].map(count) == 1].set_index("sequence")["location"]
    unknown = rows["location"] == ""
    rows.loc[unknown, "location"] = rows.loc[unknown, "sequence"].map(only).fillna("")
    keys = (f"{source}/" + rows["location"] + "/" + rows["sequence"]).where(rows["sequence"] != "", "")
    return SequenceKeys(pa.array(keys, pa.string()), int((count > 1).sum()))

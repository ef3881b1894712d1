"""Confusion matrices of the readers of generated answers, any two of them.

A grid of generated answers holds each answer as several readers read it (the dimension `reading`).
No reader is the truth; a matrix says where two differ, for each letter of the matching answer.
Wrong for: several answers to an item, of which the grid holds shares and not letters.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr

from steercube.cells import LETTERS_READ, READER_VARIABLES

A, B, NONE = LETTERS_READ


RUN = ["model", "concept", "direction"]


def readers(grid: xr.Dataset) -> pd.DataFrame:
    """Counts of answers by the letters that two readers read: rows of READER_VARIABLES."""
    letters = letters_read(grid)
    tables = []
    for one, other in combinations(grid["reading"].values.tolist(), 2):
        pair = letters.rename(columns={one: "read_as", other: "read_as_other"})
        both = pair[(pair["read_as"] != "") & (pair["read_as_other"] != "")]
        counts = (
            both.groupby([*RUN, "letter", "read_as", "read_as_other"])
            .size()
            .rename("n")
            .reset_index()
        )
        items = both.groupby(RUN)["sample"].nunique().rename("n_items").reset_index()
        tables.append(counts.merge(items).assign(reading=one, reading_other=other))
    return pd.concat(tables)[list(READER_VARIABLES)] if tables else pd.DataFrame()


def letters_read(grid: xr.Dataset) -> pd.DataFrame:
    """A row for each answer: its labels, and a column for each reading with the letter read.

    NONE for no choice; "" without a reading, and where repeats leave a share and not a letter. Of
    items that do not offer the two scored letters there is no row.
    """
    letter, valid, match = grid["letter"], grid["generation_valid"], grid["generation_match"]
    other = letter.copy(data=np.where(letter == A, B, A))
    read = letter.where(match == 1, other.where(match == 0, ""))
    read = read.where(valid == 1, "").where(valid != 0, NONE)
    scored = grid["item_valid"] & letter.isin([A, B])
    read = read.where(scored, "").reset_coords(drop=True)
    columns = {name: read.sel(reading=name, drop=True) for name in grid["reading"].values.tolist()}
    table = xr.Dataset(columns | {"letter": letter.reset_coords(drop=True)}).to_dataframe()
    table = table[(table[list(columns)] != "").any(axis=1)].reset_index()
    return table if "direction" in table else table.assign(direction="")

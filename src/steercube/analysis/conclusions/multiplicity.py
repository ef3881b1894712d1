r"""Many tests, some small p-values: families of tests, and Holm's correction within each.

A family is a set of questions that is searched for anything significant: the headlines, the
contrast in other outcomes, the slopes of single concepts on size, and so on. Holm's corrected p
(Holm 1979, Scand. J. Statist. 6(2)) keeps the chance of any false alarm in the family at the level,
however its tests depend on each other. Tests outside a family are not corrected for. A headline
needs the corrected p; other questions are graded one by one.
"""

import numpy as np
import pandas as pd

from steercube.estimate import SIGNIFICANT


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values corrected for their number (Holm 1979); a NaN is no test and stays one.

    >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    corrected = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(np.isfinite(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def with_holm(table: pd.DataFrame, family: str = "") -> pd.DataFrame:
    """The table with `p_holm` beside `p_value`, corrected within each value of `family`, or in all.

    `family` is a column; a table without p-values is returned as it is.
    """
    if "p_value" not in table:
        return table
    p = table["p_value"].astype(float)
    groups = table[family] if family else pd.Series("", index=table.index)
    corrected = p.groupby(groups, sort=False).transform(lambda of: holm(of.to_numpy()))
    made = table.copy()
    made.insert(table.columns.get_loc("p_value") + 1, "p_holm", corrected)
    return made


def families(conclusions: pd.DataFrame) -> pd.DataFrame:
    """One row a family with tests: how many, and how many reject with and without correction."""
    tested = conclusions[conclusions["p_value"].notna()]
    rows = [
        {
            "family": family,
            "n": len(of),
            "level": SIGNIFICANT,
            "uncorrected": int((of["p_value"] <= SIGNIFICANT).sum()),
            "value": int((of["p_holm"] <= SIGNIFICANT).sum()),
            "smallest_p_holm": float(of["p_holm"].min()),
        }
        for family, of in tested.groupby("family", sort=False)
    ]
    columns = ["family", "n", "level", "uncorrected", "value", "smallest_p_holm"]
    return pd.DataFrame(rows, columns=columns)

r"""Many tests, some small p-values: families of tests, and Holm's correction within each.

A family is a set of tests that is searched for anything significant: the claims of the ledger, the
questions of the conclusions, the slopes of single concepts on size, the differences of two
concepts' slopes. Holm's corrected p (Holm 1979, Scand. J. Statist. 6(2)) keeps the chance of any
false alarm in the family at the level, however its tests depend on each other. Tests outside a
family are not corrected for, and verdicts use the uncorrected p.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from steercube.estimate import SIGNIFICANT

FAMILIES_OF_SLOPES = {
    "least squares": "slopes of a concept on size",
    "difference of slopes": "differences of two concepts' slopes on size",
}
"""By the method in `scale_trends`."""


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


def families(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a family with tests: how many, and how many reject with and without correction."""
    slopes = tables["scale_trends"]
    found = {
        "claims": tables["claims"] if "claims" in tables else pd.DataFrame(),
        "questions": tables["conclusions"],
    } | {name: slopes[slopes["method"] == method] for method, name in FAMILIES_OF_SLOPES.items()}
    rows = []
    for name, table in found.items():
        p = table["p_value"].dropna() if "p_value" in table else pd.Series(dtype=float)
        if len(p):
            holm_p = table.loc[p.index, "p_holm"]
            rows.append(
                {
                    "family": name,
                    "n": len(p),
                    "level": SIGNIFICANT,
                    "uncorrected": int((p <= SIGNIFICANT).sum()),
                    "value": int((holm_p <= SIGNIFICANT).sum()),
                    "smallest_p_holm": float(holm_p.min()),
                }
            )
    columns = ["family", "n", "level", "uncorrected", "value", "smallest_p_holm"]
    return pd.DataFrame(rows, columns=columns)

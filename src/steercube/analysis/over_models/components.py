"""How much models, concepts, their cells and items each vary, by every method of the same model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from steercube.analysis.over_models.means import level_of
from steercube.analysis.over_models.nuts import Sampled, failed_gates
from steercube.analysis.over_models.posterior import (
    OUTCOMES,
    SDS,
    CellEffects,
    fit,
    fitted_to,
    primary_terms,
    usable_effects,
)
from steercube.analysis.over_models.reml import reml_of_cells
from steercube.analysis.over_models.training import GRID, NUTS, REML

Row = dict[str, Any]


def variance_components(
    cells: xr.Dataset, *, sampled: Mapping[str, Sampled] | None = None
) -> list[Row]:
    """Sds of each outcome beyond the terms of the primary model: median, interval, share.

    `share` is the component's share of the variance of one cell's effect, the known sampling error
    (`sd_items`, its root mean square) included. NaN with its `reason`.
    """
    rows: list[Row] = []
    level = level_of(cells)
    for outcome in OUTCOMES:
        try:
            effects = usable_effects(cells, outcome, ())
        except ValueError as error:
            rows.append(_row(outcome, GRID, "sd_model", reason=str(error)))
            continue
        terms = primary_terms(effects)
        posterior = fit(effects, terms=terms)
        items = float(np.sqrt(np.mean(np.diag(effects.covariance))))
        found = {name: posterior.quantile(name, 0.5) for name in posterior.sds}
        total = items**2 + sum(sd**2 for sd in found.values())
        for name, sd in found.items():
            low, high = (posterior.quantile(name, s) for s in ((1 - level) / 2, (1 + level) / 2))
            rows.append(_row(outcome, GRID, name, sd, low, high, share=sd**2 / total))
        rows.append(_row(outcome, GRID, "sd_items", items, share=items**2 / total))
        rows += _of_reml(effects, terms)
        if sampled and outcome in sampled:
            failed = bool(failed_gates(sampled[outcome], posterior))
            rows += _of_nuts(outcome, sampled[outcome], failed)
    return rows + _of_items(cells)


def _row(
    outcome: str,
    method: str,
    component: str,
    estimate: float = np.nan,
    low: float = np.nan,
    high: float = np.nan,
    share: float = np.nan,
    mc_error: float = np.nan,
    reason: str = "",
) -> Row:
    return {
        "outcome": outcome,
        "units": OUTCOMES[outcome].units,
        "method": method,
        "component": component,
        "estimate": estimate,
        "low": low,
        "high": high,
        "share": share,
        "mc_error": mc_error,
        "reason": reason,
    }


def _of_reml(effects: CellEffects, terms: Sequence[str]) -> list[Row]:
    try:
        found = reml_of_cells(effects, terms=terms)
    except ValueError as error:
        return [_row(effects.outcome, REML, "sd_model", reason=str(error))]
    zero = found.at_boundary
    return [
        _row(effects.outcome, REML, n, sd, reason="at its boundary 0" if n in zero else "")
        for n, sd in found.sds.items()
    ]


def _of_nuts(outcome: str, sampled: Sampled, failed: bool) -> list[Row]:
    if failed:
        return [_row(outcome, NUTS, "sd_model", reason="failed its gates")]
    return [
        _row(
            *(outcome, NUTS, name, row["median"], row["low"], row["high"]),
            mc_error=row["mcse_mean"],
        )
        for name, row in sampled.summary.items()
        if name in SDS
    ]


def _of_items(cells: xr.Dataset) -> list[Row]:
    """The sds of the fits of single items that the cells keep, without those that did not run."""
    if not {"item_fit_of", "item_fit_value"} <= set(cells.variables):
        return []
    if cells["item_fit_of"].item() != fitted_to(cells):
        return []
    rows = []
    for fit_name in cells["item_fit"].values:
        for term in cells["item_term"].values:
            found = cells.sel(item_fit=fit_name, item_term=term)
            value = float(found["item_fit_value"])
            if str(term).startswith("sd_") and np.isfinite(value):
                low, high = float(found["item_fit_low"]), float(found["item_fit_high"])
                rows.append(_row("cohens_d", str(fit_name), str(term), value, low, high))
    return rows

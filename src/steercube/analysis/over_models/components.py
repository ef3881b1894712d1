"""Variance components of models, concepts, cells and items, by every method on the same model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from steercube.analysis.over_models.cell_effects import (
    OUTCOMES,
    CellEffects,
    primary_terms,
    usable_outcomes,
)
from steercube.analysis.over_models.contrast_effect import EXACT, NUTS, REML
from steercube.analysis.over_models.item_fits import read_item_fits
from steercube.analysis.over_models.nuts import Sampled, failed_gates
from steercube.analysis.over_models.posterior import SDS, posterior_of
from steercube.analysis.over_models.reml import reml_of_cells
from steercube.analysis.view import Study

Row = dict[str, Any]


def variance_components(study: Study, *, sampled: Mapping[str, Sampled] | None = None) -> list[Row]:
    """Sds of each outcome beyond the terms of the primary model: median, interval, share.

    `share` is the component's share of the variance of one cell's effect, which includes the known
    sampling error (`sd_items`, its root mean square). A NaN has its `reason`.
    """
    rows: list[Row] = []
    for outcome, effects, reason in usable_outcomes(study):
        if reason:
            rows.append(_row(outcome, EXACT, "sd_model", reason=reason))
            continue
        terms = primary_terms(effects)
        posterior = posterior_of(study, outcome, terms)
        items = float(np.sqrt(np.mean(np.diag(effects.covariance))))
        intervals = {name: posterior.interval(name, study.level) for name in posterior.sds}
        total = items**2 + sum(sd**2 for _, sd, _ in intervals.values())
        rows += [
            _row(outcome, EXACT, name, sd, low, high, share=sd**2 / total)
            for name, (low, sd, high) in intervals.items()
        ]
        rows.append(_row(outcome, EXACT, "sd_items", items, share=items**2 / total))
        rows += _reml_rows(effects, terms)
        if sampled and outcome in sampled:
            failed = bool(failed_gates(sampled[outcome], posterior))
            rows += _nuts_rows(outcome, sampled[outcome], failed)
    return [*rows, *_item_rows(study)]


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


def _reml_rows(effects: CellEffects, terms: Sequence[str]) -> Iterator[Row]:
    try:
        fitted = reml_of_cells(effects, terms=terms)
    except ValueError as error:
        yield _row(effects.outcome, REML, "sd_model", reason=str(error))
        return
    for name, sd in fitted.sds.items():
        reason = "at its boundary 0" if name in fitted.at_boundary else ""
        yield _row(effects.outcome, REML, name, sd, reason=reason)


def _nuts_rows(outcome: str, sampled: Sampled, failed: bool) -> Iterator[Row]:
    if failed:
        yield _row(outcome, NUTS, "sd_model", reason="failed its gates")
        return
    for name, row in sampled.summary.items():
        if name in SDS:
            ends = (row["median"], row["low"], row["high"])
            yield _row(outcome, NUTS, name, *ends, mc_error=row["mcse_mean"])


def _item_rows(study: Study) -> Iterator[Row]:
    """Sds from the item-level fits that the cells keep, without those that did not run."""
    fits = read_item_fits(study)
    for fit in [] if isinstance(fits, str) else fits:
        for name, sd in fit.terms.items():
            if name.startswith("sd_") and np.isfinite(sd.value):
                yield _row("cohens_d", fit.method, name, sd.value, sd.low, sd.high)

"""Fits of the item-level model by every method, as the cells keep them.

The reference is the fully crossed model by `reml.reml_of_items`. statsmodels' MixedLM is used only
where it agrees with this. Its default optimiser reports convergence at a wrong optimum on crossed
intercepts with few models (a standard error 2.5 times too large), and grouping by item alone, its
usual form, gives one five times too small. So every factor is a variance component of one single
group, the optimisers are Powell's and L-BFGS, and a fit is refused if its log-likelihood differs
from ours by more than MAX_DIFFERENCE.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from steercube.analysis.over_models.cell_effects import cell_effects, fitted_to, primary_terms
from steercube.analysis.over_models.items import ItemShifts, item_shifts
from steercube.analysis.over_models.nuts import (
    Progress,
    Sampled,
    failed_gates,
    gates_text,
    sample_items,
)
from steercube.analysis.over_models.reml import AT_BOUNDARY, Reml, reml_of_items
from steercube.analysis.view import Study
from steercube.cells import (
    ITEM_FIT_VARIABLES,
    ITEM_FITS,
    ITEM_FITTED,
    ITEM_TERMS,
    Cells,
    samples_sha256,
)
from steercube.estimate import Estimate, t_quantile

CONTRAST_TERM = "training"
"""Name of the term `contrast` in the cells' contract."""

MAX_DIFFERENCE = 1e-3
"""Largest difference of the restricted log-likelihoods, in nats."""


def mixedlm(shifts: ItemShifts, *, terms: Sequence[str], factors: Sequence[str]) -> Reml:
    """MixedLM with crossed random intercepts of `factors` (names of sds), restricted likelihood."""
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    indicators = [np.eye(int(shifts.index[f].max()) + 1)[shifts.index[f]] for f in factors]
    labels = [
        [[f"{f}[{i}]" for i in range(z.shape[1])]] for f, z in zip(factors, indicators, strict=True)
    ]
    spec = VCSpec(list(factors), labels, [[z] for z in indicators])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence is judged by the likelihood instead
        fit = MixedLM(
            shifts.value,
            shifts.design(terms),
            groups=np.zeros(len(shifts.value)),
            exog_vc=spec,
        ).fit(reml=True, method=["powell", "lbfgs"])
    sds = dict(zip(factors, np.sqrt(fit.vcomp).tolist(), strict=True))
    names = ("intercept", *terms)
    return Reml(
        coefficients=dict(zip(names, fit.fe_params.tolist(), strict=True)),
        standard_errors=dict(zip(names, fit.bse_fe.tolist(), strict=True)),
        sds=sds | {"sd_residual": float(np.sqrt(fit.scale))},
        log_likelihood=float(fit.llf),
        at_boundary=tuple(n for n, sd in sds.items() if sd < AT_BOUNDARY * np.sqrt(fit.scale)),
    )


def disagreement(theirs: Reml, ours: Reml) -> str:
    """Why MixedLM's fit must not be used; empty if its likelihood agrees with ours."""
    gap = theirs.log_likelihood - ours.log_likelihood
    if abs(gap) <= MAX_DIFFERENCE:
        return ""
    where = "below" if gap < 0 else "above"
    return f"its restricted log-likelihood is {abs(gap):.4g} nats {where} the one that we find"


def item_fits(
    grid: xr.Dataset, study: Study, *, full: bool = False, progress: Progress = lambda n: None
) -> tuple[xr.Dataset, Sampled | None]:
    """Item-level fits by their names in `steercube.cells.ITEM_FITS`, and the draws of NUTS.

    Without `full`, MixedLM leaves the items out (seconds) and NUTS does not run; `item_fit_problem`
    says which fits are absent. The Dataset is empty if neither the contrast nor scale can be
    separated from the spread between these models.
    """
    effects = cell_effects(study)
    terms = primary_terms(effects)
    if not terms or effects.n_concepts < 2:
        return xr.Dataset(), None
    shifts = item_shifts(grid, study)
    out = _blank_fits()
    out["item_fit_of"] = fitted_to(study)
    crossed, cell_level = list(shifts.index), list(shifts.index)[:-1]
    ours = {
        name: reml_of_items(
            shifts.value, shifts.design(terms), {f: shifts.index[f] for f in factors}, terms=terms
        )
        for name, factors in {"crossed": crossed, "cells": cell_level}.items()
    }
    _record(out, "REML, items crossed", ours["crossed"], shifts, study.level)
    theirs = mixedlm(shifts, terms=terms, factors=cell_level)
    _record(out, "MixedLM, without items", theirs, shifts, study.level, ours["cells"])
    if not full:
        for fit in ("MixedLM, items crossed", "NUTS, items"):
            out["item_fit_problem"].loc[fit] = NOT_FULL
        return out, None
    theirs = mixedlm(shifts, terms=terms, factors=crossed)
    _record(out, "MixedLM, items crossed", theirs, shifts, study.level, ours["crossed"])
    if theirs.log_likelihood > ours["crossed"].log_likelihood + MAX_DIFFERENCE:
        out["item_fit_value"].loc["REML, items crossed"] = np.nan
        out["item_fit_problem"].loc["REML, items crossed"] = "MixedLM finds a larger likelihood"
    sampled = sample_items(
        shifts, terms=terms, level=study.level, seed=study.seed, progress=progress
    )
    _record_sampled(out, sampled)
    return out, sampled


NOT_FULL = "not run; `steercube analyze --full` does, from the cube"


def _blank_fits() -> xr.Dataset:
    out = xr.Dataset(coords={"item_fit": list(ITEM_FITS), "item_term": list(ITEM_TERMS)})
    for name, variable in ITEM_FIT_VARIABLES.items():
        out[name] = variable.full(out.sizes)
        if variable.kind == "U":
            out[name] = out[name].astype(object)
    return out


def _record(
    out: xr.Dataset,
    fit: str,
    fitted: Reml,
    shifts: ItemShifts,
    level: float,
    reference: Reml | None = None,
) -> None:
    """Write estimates with t intervals on the models' degrees of freedom, or why there are none."""
    text = f"restricted log-likelihood {fitted.log_likelihood:.4f}"
    if reference is not None:
        difference = fitted.log_likelihood - reference.log_likelihood
        text += f", {difference:+.2g} from our own"
        out["item_fit_problem"].loc[fit] = disagreement(fitted, reference)
    if fitted.at_boundary:
        text += f"; at its boundary 0: {', '.join(fitted.at_boundary)}"
    out["item_fit_diagnostics"].loc[fit] = text
    if out["item_fit_problem"].loc[fit].item():
        return
    t = t_quantile(level, shifts.n_models - len(fitted.coefficients))
    for name, value in (fitted.coefficients | fitted.sds).items():
        half = t * fitted.standard_errors.get(name, np.nan)
        _write(out, fit, name, value, value - half, value + half)


def _record_sampled(out: xr.Dataset, sampled: Sampled) -> None:
    fit = "NUTS, items"
    out["item_fit_diagnostics"].loc[fit] = gates_text(sampled)
    if problems := failed_gates(sampled):
        out["item_fit_problem"].loc[fit] = f"failed its gates: {'; '.join(problems)}"
        return
    for name, row in sampled.summary.items():
        _write(out, fit, name, row["median"], row["low"], row["high"])


def _write(out: xr.Dataset, fit: str, name: str, value: float, low: float, high: float) -> None:
    at = {"item_fit": fit, "item_term": CONTRAST_TERM if name == "contrast" else name}
    out["item_fit_value"].loc[at] = value
    out["item_fit_low"].loc[at], out["item_fit_high"].loc[at] = low, high


def keep_slow_fits(new: Cells, old: Cells) -> Cells:
    """`new` cells, with the fits of a full analysis copied from `old` cells of the same samples."""
    same = new.attrs["seed"] == old.attrs.get("seed") and all(
        name in old and samples_sha256(new, name) == samples_sha256(old, name)
        for name in new.measures
    )
    if not same or ITEM_FITTED not in new or ITEM_FITTED not in old:
        return new
    made, earlier = new[ITEM_FITTED], old[ITEM_FITTED]
    if made["item_fit_of"].item() != earlier["item_fit_of"].item():
        return new
    absent = made["item_fit_problem"] == NOT_FULL
    kept = [name for name in ITEM_FIT_VARIABLES if "item_fit" in made[name].dims]
    fits = made.assign({name: made[name].where(~absent, earlier[name]) for name in kept})
    return new.with_tables({ITEM_FITTED: fits})


@dataclass(frozen=True)
class ItemFit:
    """One item-level fit that the cells keep: an estimate by term, or a `problem`."""

    method: str
    terms: dict[str, Estimate]
    diagnostics: str
    problem: str


def read_item_fits(study: Study) -> list[ItemFit] | str:
    """The fits kept in the cells, or why none is of this study's models and contrast."""
    cells = study.cells
    if not {"item_fit_of", "item_fit_value"} <= set(cells.variables):
        return "the cells keep no fit of single items; `steercube analyze` makes it from the cube"
    if cells["item_fit_of"].item() != fitted_to(study):
        return "the cells keep fits of other models, trainings or concepts"
    return [
        ItemFit(
            str(method),
            {
                str(term).replace(CONTRAST_TERM, "contrast"): _estimate(cells, method, term)
                for term in cells["item_term"].values
            },
            diagnostics=cells["item_fit_diagnostics"].sel(item_fit=method).item(),
            problem=cells["item_fit_problem"].sel(item_fit=method).item(),
        )
        for method in cells["item_fit"].values
    ]


def _estimate(cells: xr.Dataset, method: str, term: str) -> Estimate:
    value, low, high = (
        float(cells[f"item_fit_{name}"].sel(item_fit=method, item_term=term))
        for name in ("value", "low", "high")
    )
    return Estimate(value, low, high)

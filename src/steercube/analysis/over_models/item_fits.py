"""The model of single items by every method, as the cells keep it.

The reference is the fully crossed model by `steercube.analysis.over_models.reml`. statsmodels'
MixedLM is used only where it agrees with that. Its default optimiser reports convergence at a wrong
optimum on crossed intercepts with few models (a standard error 2.5 times too large), and grouping
by item alone, its usual form, gives one five times too small. So: every factor is a variance
component of one single group, the optimisers are Powell's and L-BFGS, and the fit is refused where
its log-likelihood is not that of ours to MAX_APART.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import xarray as xr

from steercube.analysis.over_models.items import ItemShifts, item_shifts
from steercube.analysis.over_models.means import level_of, t_quantile
from steercube.analysis.over_models.nuts import (
    Progress,
    Sampled,
    failed_gates,
    gates_text,
    sample_items,
)
from steercube.analysis.over_models.posterior import cell_effects, fitted_to, primary_terms
from steercube.analysis.over_models.reml import AT_BOUNDARY, Reml, reml_of_items
from steercube.cells import ITEM_FIT_VARIABLES, ITEM_FITS, ITEM_TERMS

MAX_APART = 1e-3
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
        warnings.simplefilter("ignore")  # whether it converged is judged by the likelihood reached
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
    """Why MixedLM's fit must not be used; empty if its likelihood is that of our own."""
    apart = theirs.log_likelihood - ours.log_likelihood
    if abs(apart) <= MAX_APART:
        return ""
    where = "below" if apart < 0 else "above"
    return f"its restricted log-likelihood is {abs(apart):.4g} nats {where} the one that we find"


def item_fits(
    cube: xr.Dataset,
    cells: xr.Dataset,
    *,
    full: bool = False,
    progress: Progress = lambda n: None,
) -> tuple[xr.Dataset, Sampled | None]:
    """The fits of single items by the names of `steercube.cells.ITEM_FITS`, and NUTS's draws.

    Without `full` MixedLM leaves the items out (seconds) and NUTS does not run; an absent fit says
    so in `item_fit_problem`. No fits at all, an empty Dataset, where the cells cannot tell a
    training or scale from their models.
    """
    try:
        effects = cell_effects(cells)
    except ValueError:
        return xr.Dataset(), None
    terms = primary_terms(effects)
    if not terms or len(np.unique(effects.concept)) < 2:
        return xr.Dataset(), None
    shifts = item_shifts(cube, cells)
    out = _blank_fits()
    out["item_fit_of"] = fitted_to(cells)
    level, crossed, cell_level = level_of(cells), list(shifts.index), list(shifts.index)[:-1]
    ours = {
        name: reml_of_items(
            shifts.value, shifts.design(terms), {f: shifts.index[f] for f in factors}, terms=terms
        )
        for name, factors in {"crossed": crossed, "cells": cell_level}.items()
    }
    _record(out, "REML, items crossed", ours["crossed"], shifts, level)
    theirs = mixedlm(shifts, terms=terms, factors=cell_level)
    _record(out, "MixedLM, without items", theirs, shifts, level, ours["cells"])
    if not full:
        for fit in ("MixedLM, items crossed", "NUTS, items"):
            out["item_fit_problem"].loc[fit] = NOT_FULL
        return out, None
    theirs = mixedlm(shifts, terms=terms, factors=crossed)
    _record(out, "MixedLM, items crossed", theirs, shifts, level, ours["crossed"])
    if theirs.log_likelihood > ours["crossed"].log_likelihood + MAX_APART:
        out["item_fit_value"].loc["REML, items crossed"] = np.nan
        out["item_fit_problem"].loc["REML, items crossed"] = "MixedLM finds a larger likelihood"
    seed = int(cells.attrs["seed"])
    sampled = sample_items(shifts, terms=terms, level=level, seed=seed, progress=progress)
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
    found: Reml,
    shifts: ItemShifts,
    level: float,
    reference: Reml | None = None,
) -> None:
    """Estimates with t intervals on the models' degrees of freedom, or why there are none."""
    text = f"restricted log-likelihood {found.log_likelihood:.4f}"
    if reference is not None:
        apart = found.log_likelihood - reference.log_likelihood
        text += f", {apart:+.2g} from our own"
        out["item_fit_problem"].loc[fit] = disagreement(found, reference)
    if found.at_boundary:
        text += f"; at its boundary 0: {', '.join(found.at_boundary)}"
    out["item_fit_diagnostics"].loc[fit] = text
    if out["item_fit_problem"].loc[fit].item():
        return
    t = t_quantile(level, shifts.n_models - len(found.coefficients))
    for name, value in (found.coefficients | found.sds).items():
        at = {"item_fit": fit, "item_term": name}
        half = t * found.standard_errors.get(name, np.nan)
        out["item_fit_value"].loc[at] = value
        out["item_fit_low"].loc[at], out["item_fit_high"].loc[at] = value - half, value + half


def _record_sampled(out: xr.Dataset, sampled: Sampled) -> None:
    fit = "NUTS, items"
    out["item_fit_diagnostics"].loc[fit] = gates_text(sampled)
    if problems := failed_gates(sampled):
        out["item_fit_problem"].loc[fit] = f"failed its gates: {'; '.join(problems)}"
        return
    for name, row in sampled.summary.items():
        at = {"item_fit": fit, "item_term": name}
        out["item_fit_value"].loc[at] = row["median"]
        out["item_fit_low"].loc[at], out["item_fit_high"].loc[at] = row["low"], row["high"]


def keep_slow_fits(new: xr.Dataset, old: xr.Dataset) -> xr.Dataset:
    """`new` cells, with what only a full analysis fits taken from `old` cells of the same cube."""
    same = all(new.attrs[name] == old.attrs.get(name) for name in ("cube_sha256", "seed"))
    if not same or "item_fit_of" not in new or "item_fit_of" not in old:
        return new
    if new["item_fit_of"].item() != old["item_fit_of"].item():
        return new
    absent = new["item_fit_problem"] == NOT_FULL
    kept = [name for name in ITEM_FIT_VARIABLES if "item_fit" in new[name].dims]
    return new.assign({name: new[name].where(~absent, old[name]) for name in kept})

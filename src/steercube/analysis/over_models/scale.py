r"""Do effects grow or shrink with the size of the model, and do concepts scale unlike each other?

Slopes on log10 of the number of parameters, the change for a tenfold size. Total and active
parameters (fewer in a mixture of experts) are both given, since they order the models differently;
raw and standardised units too, since a larger model may only be noisier. With six models each slope
rests on four degrees of freedom.
"""

from itertools import combinations

import numpy as np
import xarray as xr

from steercube.analysis.over_models.contrasts import scale_slope, slope_over_models
from steercube.analysis.over_models.means import (
    best_effects,
    level_of,
    swept_models,
    why_not_recorded,
)
from steercube.analysis.over_models.posterior import cell_effects, fit, why_not
from steercube.estimate import Estimate

SCALED = ("delta", "cohens_d", "within_letter_d")
SIZES = ("n_params", "n_active_params")

Row = tuple[dict[str, str], Estimate]


def scale_trends(cells: xr.Dataset) -> list[Row]:
    """Slopes of each concept, of all concepts together, and of each pair's difference."""
    concepts = [str(c) for c in cells["concept"].values]
    rows: list[Row] = []
    for outcome in SCALED:
        for size in SIZES:
            labels = {"outcome": outcome, "size": size}
            for concept in concepts:
                slope = scale_slope(cells, estimand=outcome, concept=concept, size=size)
                rows.append((labels | {"concept": concept, "method": "least squares"}, slope))
            every = labels | {"concept": "every concept"}
            for method, terms in {
                "hierarchical, scale alone": ("scale",),
                "hierarchical, with training": ("training", "scale"),
            }.items():
                slope = hierarchical_slope(cells, outcome=outcome, size=size, terms=terms)
                rows.append((every | {"method": method}, slope))
            for one, other in combinations(concepts, 2):
                apart = slope_difference(cells, outcome=outcome, size=size, one=one, other=other)
                name = f"{one} minus {other}"
                rows.append((labels | {"concept": name, "method": "difference of slopes"}, apart))
    return rows


def hierarchical_slope(
    cells: xr.Dataset, *, outcome: str, size: str, terms: tuple[str, ...]
) -> Estimate:
    """b_scale of the hierarchical model, median and credible interval; no p-value."""
    try:
        effects = cell_effects(cells, outcome, scale=size)
    except ValueError as error:
        return Estimate.undefined(str(error))
    if reason := why_not(effects, terms):
        return Estimate.undefined(reason)
    posterior, tail = fit(effects, terms=terms), (1 - level_of(cells)) / 2
    return Estimate(
        posterior.quantile("scale", 0.5),
        low=posterior.quantile("scale", tail),
        high=posterior.quantile("scale", 1 - tail),
        over="models",
        n=len(np.unique(effects.model)),
    )


def slope_difference(
    cells: xr.Dataset, *, outcome: str, size: str, one: str, other: str
) -> Estimate:
    """Slope of the difference of two concepts' effects within models that ran both.

    What the concepts share in a model cancels. `p_value` is not corrected for the number of pairs.
    """
    if reason := why_not_recorded(cells, outcome):
        return Estimate.undefined(reason)
    table = best_effects(cells, outcome, concepts=[one, other], models=swept_models(cells))
    apart = (table.sel(concept=one) - table.sel(concept=other)).dropna("model")
    log_size = np.log10(cells[size].sel(model=apart["model"]).values)
    return slope_over_models(log_size, apart.values, level_of(cells))

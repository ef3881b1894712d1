r"""The slope on size of every concept, from one model in which the slopes are random.

    d = mu + b_contrast x + (b_scale + t_concept) s + u_model + v_concept + w_cell + error,
    t_concept ~ N(0, sd_slope^2),  sd_slope ~ half-normal(0.5),

s being log10 of the size, centred; all else as in `posterior`. A concept's slope is
b_scale + t_concept, drawn towards that of all concepts as far as they are alike. So the slopes need
no correction for their number: what a correction would widen, the pooling moves together (Gelman,
Hill & Yajima 2012, J. Res. Educ. Eff. 5(2)). Given sd_slope the t are coefficients with a normal
prior, and the posterior is that of `posterior`; sd_slope is integrated by Gauss-Legendre
quadrature.

When to use it: for statements on single concepts, or on the difference of two. What it is wrong
for: sizes that go with another property of the models, such as their label: give that as a term.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from steercube.analysis.over_models.cell_effects import (
    IN_CONCEPT,
    CellEffects,
    cell_effects,
    concept_terms,
    why_not,
)
from steercube.analysis.over_models.posterior import (
    PRIOR,
    Mixture,
    OfPosterior,
    Posterior,
    Sum,
    fit,
)
from steercube.analysis.view import Study, kept, where_recorded
from steercube.estimate import Estimate

SD_SLOPE = 0.5
"""Scale of the half-normal prior on sd_slope, in units of the outcome."""
N_SLOPES = 12
"""Nodes of sd_slope; with 20 of each other sd, the ends are then within 0.1% of the width of those
of a grid of 40 and 32."""
LARGEST = 3.0
"""The upper end of the quadrature, in prior scales."""


@where_recorded
def concept_slope(study: Study, *, estimand: str, concept: str, size: str = "n_params") -> Estimate:
    """The random slope of one concept's effect for a tenfold size: median, credible interval.

    `n` counts the models that ran the concept; the others' slopes are drawn from all models.
    """
    posterior = concept_slopes(study, estimand, size, ("scale",))
    if isinstance(posterior, str):
        return Estimate.undefined(posterior)
    effects = cell_effects(study, estimand, holding=size)
    if concept not in effects.concepts:
        return Estimate.undefined(f"no model ran {concept} with a usable effect")
    known = OfPosterior(posterior, slope_of(concept))
    n = int(np.sum(effects.concept == effects.concepts.index(concept)))
    return Estimate.of(known, study.level, over=OF_SLOPES, n=n)


OF_SLOPES = "items, models"
"""What the interval of one concept's slope is over."""


@kept
def concept_slopes(study: Study, outcome: str, size: str, terms: tuple[str, ...]) -> Mixture | str:
    """The posterior of a study's slopes, or why there is none."""
    effects = cell_effects(study, outcome, holding=size)
    return why_not(effects, terms) or fit_slopes(effects, terms=terms)


def fit_slopes(
    effects: CellEffects, *, terms: Sequence[str] = ("scale",), n_nodes: int = 20
) -> Mixture:
    """The posterior with a slope on size for each concept: `slope_of` names a concept's.

    Raises ValueError where `cell_effects.why_not` gives a reason.
    """
    # Quadratic in the root, denser near 0, as the grids of the other sds.
    at, width = np.polynomial.legendre.leggauss(N_SLOPES)
    root = (1 + at) / 2
    sds = LARGEST * SD_SLOPE * root**2
    log_prior = np.log(width * root) + stats.halfnorm.logpdf(sds, scale=SD_SLOPE)
    every = (*terms, *concept_terms(effects))

    def given(sd_slope: float) -> Posterior:
        prior = replace(PRIOR, sd_slope=sd_slope)
        return fit(effects, terms=every, prior=prior, n_nodes=n_nodes)

    return Mixture.over(sds, log_prior, given)


def slope_of(concept: str) -> Sum:
    """One concept's slope in the posterior of `fit_slopes`."""
    return (("scale", 1.0), (f"scale{IN_CONCEPT}{concept}", 1.0))


def slope_difference(one: str, other: str) -> Sum:
    """The difference of two concepts' slopes."""
    return ((f"scale{IN_CONCEPT}{one}", 1.0), (f"scale{IN_CONCEPT}{other}", -1.0))

r"""Comparisons of models: the two labels of a contrast, any other two labels, and size.

The unit is the model. With two models of one label among six, no number of items narrows these
intervals, and a permutation of the labels cannot give a p-value under 1/15.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import xarray as xr
from scipy import stats

from steercube.analysis.over_models.cell_effects import cell_effects, why_not
from steercube.analysis.over_models.depth import typical_depths
from steercube.analysis.over_models.means import model_means, pooled_sd
from steercube.analysis.over_models.permute import MAX_ASSIGNMENTS, assignments, two_sided_p
from steercube.analysis.over_models.posterior import OfPosterior, posterior_of
from steercube.analysis.over_models.slopes import (
    OF_SLOPES,
    concept_slope,
    concept_slopes,
    slope_difference,
)
from steercube.analysis.view import Study, kept, where_recorded
from steercube.estimate import Estimate, Student, t_quantile
from steercube.streams import stream

SCALED = ("delta", "cohens_d", "within_letter_d")
SIZES = ("n_params", "n_active_params")


@where_recorded
def training_gap(
    study: Study,
    *,
    estimand: str,
    concepts: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    from_rounded: int | None = None,
) -> Estimate:
    r"""The share by which the contrast's `high` models fall below its `low` ones.

    $1 - \bar y_h / \bar y_l$. Interval: t on the log of the ratio with n_models - 2 degrees of
    freedom, delta method, $Var = s^2 (1 / (n_h \bar y_h^2) + 1 / (n_l \bar y_l^2))$, s pooled
    between models. `p_value` is over every assignment of the labels to the models. `from_rounded`
    rounds both averages to that many digits first, as a reader of printed averages would.
    """
    means = model_means(study, estimand=estimand, concepts=concepts, models=models).value
    if study.contrast is None:
        return Estimate.undefined(study.needs_contrast)
    labels = study.facts(study.contrast.by, means["model"].values)
    a, b = (means.values[labels == label] for label in (study.contrast.high, study.contrast.low))
    if not len(a) or not len(b):
        return Estimate.undefined(study.needs_contrast)
    y, reference = float(a.mean()), float(b.mean())
    if from_rounded is not None:
        y, reference = round(y, from_rounded), round(reference, from_rounded)
    values, group = np.concatenate([a, b]), np.array([0] * len(a) + [1] * len(b))
    s, df = pooled_sd(values, group)
    half = np.nan
    if df and y > 0 and reference > 0:
        se = s * np.sqrt(1 / (len(a) * y**2) + 1 / (len(b) * reference**2))
        half = t_quantile(study.level, df) * se
    return Estimate(
        1 - y / reference,
        low=1 - y / reference * np.exp(half),
        high=1 - y / reference * np.exp(-half),
        over="models",
        n=len(values),
        p_value=permutation_p(values, group == 0),
        reason="" if np.isfinite(half) else "a ratio needs two positive averages and three models",
    )


def two_sample_t(values: np.ndarray, marked: np.ndarray, *, level: float) -> Estimate:
    """Mean of the marked minus mean of the others, one sd for both: t with n - 2 df.

    `p_value` is by permutation, which assumes no distribution.
    """
    a, b = values[marked], values[~marked]
    s, df = pooled_sd(values, marked.astype(int))
    value, p = float(a.mean() - b.mean()), permutation_p(values, marked)
    if df and s <= 1e-12 * np.abs(values).max():
        return Estimate(value, n=len(values), p_value=p, reason="the models do not differ at all")
    if not df:
        reason = "two models have no spread within a label"
        return Estimate(value, n=len(values), p_value=p, reason=reason)
    student = Student(value, float(s * np.sqrt(1 / len(a) + 1 / len(b))), df)
    return Estimate.of(student, level, value=value, over="models", n=len(values), p_value=p)


def permutation_p(values: np.ndarray, marked: np.ndarray) -> float:
    """Two-sided p of the difference in means, over every choice of as many marked ones.

    With more than MAX_ASSIGNMENTS of them, over that many: the observed one and random ones.

    >>> permutation_p(np.array([1.0, 2.0, 3.0, 4.0, 9.0, 9.5]), np.array([0, 0, 0, 0, 1, 1]) > 0)
    0.06666666666666667
    """
    if marked.all() or not marked.any():
        return np.nan
    ways = assignments(marked, stream("choices of models"), limit=MAX_ASSIGNMENTS)
    return two_sided_p(ways @ values - marked.sum() * values.mean())


@kept
def depth_difference(study: Study) -> Estimate:
    """Typical best depth of the contrast's `high` models minus its `low` ones, fraction of depth.

    Two-sample t over models with one sd for both labels, n_models - 2 degrees of freedom (two
    models alone estimate their spread too poorly); `p_value` by permutation. A `reason` says if no
    model of one label has fewer blocks than any of the other: then the label and the number of
    blocks cannot be separated.
    """
    if study.contrast is None or not study.has_contrast:
        return Estimate.undefined(study.needs_contrast)
    is_high, n_blocks = study.is_high(study.compared), study.facts("n_layers", study.compared)
    depths = typical_depths(study).sel(model=study.compared)
    estimate = two_sample_t(depths.values, is_high, level=study.level)
    blocks = {study.contrast.high: n_blocks[is_high], study.contrast.low: n_blocks[~is_high]}
    for more, fewer in (tuple(blocks), tuple(blocks)[::-1]):
        if blocks[more].min() >= blocks[fewer].max() and np.ptp(n_blocks):
            reason = f"no {more} model has fewer blocks than any {fewer} one"
            if blocks[more].min() > blocks[fewer].max():
                reason = f"every {more} model has more blocks than every {fewer} one"
            return replace(estimate, reason=reason)
    return estimate


@where_recorded
def label_difference(
    study: Study,
    *,
    estimand: str,
    by: str,
    low: str,
    high: str,
    holding: str,
    concepts: Sequence[str] | None = None,
) -> Estimate:
    """Models labelled `high` minus those labelled `low` in `by`, the labels of `holding` fixed.

    By `difference_holding` of model means.
    """
    means = model_means(study, estimand=estimand, concepts=concepts).value
    names = means["model"].values
    compared = np.isin(study.facts(by, names), (low, high))
    is_high = (study.facts(by, names) == high)[compared]
    held = study.facts(holding, names)[compared]
    estimate = difference_holding(means.values[compared], is_high, held, study.level)
    if estimate.known is None:
        n_labels = len(set(held))
        return Estimate.undefined(
            f"needs models of {by} {low!r} and {high!r} with each of {n_labels} labels of "
            f"{holding}, at least {n_labels + 2}"
        )
    return estimate


def columns_holding(is_high: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The intercept, the label, and the held labels but one, dims (model, coefficient)."""
    indicators = [(held == label).astype(float) for label in sorted(set(held))[1:]]
    return np.stack([np.ones(len(held)), is_high.astype(float), *indicators], axis=1)


def difference_holding(
    values: np.ndarray, is_high: np.ndarray, held: np.ndarray, level: float
) -> Estimate:
    """b in y = a + b high + c_k [held = k] + error, by ordinary least squares; dims (model,).

    Student's t with as many degrees of freedom as models remain after the coefficients; undefined
    if none remains, or the two cannot be separated.
    """
    design = columns_holding(is_high, held)
    df = len(values) - design.shape[1]
    if df < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return Estimate.undefined("the labels cannot be separated")
    solution, *_ = np.linalg.lstsq(design, values, rcond=None)
    s2 = float(np.sum((values - design @ solution) ** 2)) / df
    se = float(np.sqrt(s2 * np.linalg.inv(design.T @ design)[1, 1]))
    student = Student(float(solution[1]), se, df)
    return Estimate.of(student, level, over="models", n=len(values))


@where_recorded
def scale_slope(
    study: Study,
    *,
    estimand: str,
    concept: str,
    models: Sequence[str] | None = None,
    size: str = "n_params",
) -> Estimate:
    """Slope of one concept's effect on log10 of parameters, effect per tenfold size.

    `size` is n_params (total) or n_active_params (per token, fewer in a mixture of experts).
    Least squares over models, t with n_models - 2 degrees of freedom.
    """
    effects = model_means(study, estimand=estimand, models=models, concepts=[concept]).value
    return slope_over_models(study, size, effects)


def slope_over_models(study: Study, size: str, values: xr.DataArray) -> Estimate:
    """Least-squares slope of `values` (model,) on log10 size, t with n_models - 2 df."""
    log_size = np.log10(study.facts(size, values["model"].values))
    return slope(log_size, values.values, study.level)


def slope(log_size: np.ndarray, values: np.ndarray, level: float) -> Estimate:
    """Least-squares slope of one value a model, t with n_models - 2 degrees of freedom."""
    if len(values) < 3 or np.ptp(log_size) == 0:
        return Estimate.undefined("a slope with an interval needs three models of unlike size")
    fit = stats.linregress(log_size, values)
    student = Student(float(fit.slope), float(fit.stderr), len(values) - 2)
    p = float(fit.pvalue)
    return Estimate.of(student, level, over="models", n=len(values), p_value=p)


Row = tuple[dict[str, str], Estimate]
RANDOM_SLOPES, DIFFERENCE = "random slopes", "difference of slopes"


def scale_trends(study: Study) -> list[Row]:
    """Slopes on size of each concept, of all concepts together, and of differences of two concepts.

    Slopes on log10 of the number of parameters, the change for a tenfold size, from the model of
    `slopes`; all concepts together, from that of `posterior` too, without and with the contrast.
    Total and active parameters are both given, since they order the models differently; raw and
    standardised units too, since a larger model may only be noisier.
    """
    rows: list[Row] = []
    for outcome in SCALED:
        for size in SIZES:
            labels = {"outcome": outcome, "size": size}
            rows += [(labels | of, slope) for of, slope in _slopes(study, outcome, size)]
            every = labels | {"concept": "every concept"}
            by = study.contrast.by if study.contrast else ""
            methods: dict[str, tuple[str, ...]] = {"hierarchical, scale alone": ("scale",)}
            if study.contrast:
                methods[f"hierarchical, with {by}"] = ("contrast", "scale")
            for method, terms in methods.items():
                trend = hierarchical_slope(study, outcome=outcome, size=size, terms=terms)
                rows.append((every | {"method": method}, trend))
    return rows


def _slopes(study: Study, outcome: str, size: str) -> Iterator[Row]:
    """The random slopes of every concept, and of every two their difference."""
    posterior = concept_slopes(study, outcome, size, ("scale",))
    effects = cell_effects(study, outcome, holding=size)
    for concept in study.concepts:
        slope = concept_slope(study, estimand=outcome, concept=concept, size=size)
        yield {"concept": concept, "method": RANDOM_SLOPES}, slope
    for one, other in combinations(study.concepts, 2):
        labels = {"concept": f"{one} minus {other}", "method": DIFFERENCE}
        if isinstance(posterior, str):
            yield labels, Estimate.undefined(posterior)
        elif not {one, other} <= set(effects.concepts):
            yield labels, Estimate.undefined("no model ran both with a usable effect")
        else:
            known = OfPosterior(posterior, slope_difference(one, other))
            yield labels, Estimate.of(known, study.level, over=OF_SLOPES, n=effects.n_models)


def hierarchical_slope(
    study: Study, *, outcome: str, size: str, terms: tuple[str, ...]
) -> Estimate:
    """b_scale of the hierarchical model, median and credible interval; no p-value."""
    effects = cell_effects(study, outcome, holding=size)
    if reason := why_not(effects, terms):
        return Estimate.undefined(reason)
    fitted = posterior_of(study, outcome, terms, holding=size)
    low, median, high = fitted.interval("scale", study.level)
    return Estimate(median, low=low, high=high, over="models", n=effects.n_models)

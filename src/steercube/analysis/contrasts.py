r"""Comparisons of models: training, architecture, scale, and whether they rank concepts alike.

The unit is the model. With two full-RL models of six, no number of items narrows these intervals,
and a permutation of the labels cannot give a p-value under 1/15.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np
import xarray as xr
from scipy import stats

from steercube.analysis.averages import (
    best_effects,
    level_of,
    model_means,
    pooled_sd,
    root_of,
    t_quantile,
    where_recorded,
    why_not_recorded,
)
from steercube.results import Estimate
from steercube.streams import stream

N_REDRAWS = 4_000
MAX_CHOICES = 20_000


@where_recorded
def training_gap(
    cells: xr.Dataset,
    *,
    estimand: str,
    low: str = "rl",
    high: str = "distilled",
    concepts: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    from_rounded: int | None = None,
) -> Estimate:
    r"""The share by which training `low` falls below `high`: 1 - mean_low / mean_high.

    Interval: t on the log of the ratio with n_models - 2 degrees of freedom, delta method,
    $Var = s^2 (1 / (n_l \bar y_l^2) + 1 / (n_h \bar y_h^2))$, s pooled between models. `p_value`
    is exact, over every assignment of the labels to the models. `from_rounded` rounds both
    averages to so many digits first, as a reader of printed averages does.
    """
    means = model_means(cells, estimand=estimand, concepts=concepts, models=models).value
    labels = cells["training"].sel(model=means["model"]).values
    a, b = means.values[labels == low], means.values[labels == high]
    if not len(a) or not len(b):
        return Estimate.undefined(f"needs models of both trainings, {low!r} and {high!r}")
    y, reference = float(a.mean()), float(b.mean())
    if from_rounded is not None:
        y, reference = round(y, from_rounded), round(reference, from_rounded)
    values, of = np.concatenate([a, b]), np.array([0] * len(a) + [1] * len(b))
    s, df = pooled_sd(values, of)
    half = np.nan
    if df and y > 0 and reference > 0:
        se = s * np.sqrt(1 / (len(a) * y**2) + 1 / (len(b) * reference**2))
        half = t_quantile(level_of(cells), df) * se
    return Estimate(
        1 - y / reference,
        low=1 - y / reference * np.exp(half),
        high=1 - y / reference * np.exp(-half),
        over="models",
        n=len(values),
        p_value=permutation_p(values, of == 0),
        reason="" if np.isfinite(half) else "a ratio needs two positive averages and three models",
    )


def two_sample_t(values: np.ndarray, marked: np.ndarray, *, level: float) -> Estimate:
    """Mean of the marked minus mean of the others, one sd for both: t with n - 2 df.

    `p_value` is the permutation's, which assumes no distribution.
    """
    a, b = values[marked], values[~marked]
    s, df = pooled_sd(values, marked.astype(int))
    value = float(a.mean() - b.mean())
    if df and s <= 1e-12 * np.abs(values).max():
        p = permutation_p(values, marked)
        return Estimate(value, n=len(values), p_value=p, reason="the models do not differ at all")
    half = t_quantile(level, df) * s * np.sqrt(1 / len(a) + 1 / len(b))
    return Estimate(
        value,
        low=value - half,
        high=value + half,
        over="models",
        n=len(values),
        p_value=permutation_p(values, marked),
        reason="" if df else "two models have no spread within a training",
    )


def permutation_p(values: np.ndarray, marked: np.ndarray) -> float:
    """Two-sided exact p of the difference in means, over every choice of the marked ones.

    With more than MAX_CHOICES of them, over so many at random and the one found.

    >>> permutation_p(np.array([1.0, 2.0, 3.0, 4.0, 9.0, 9.5]), np.array([0, 0, 0, 0, 1, 1]) > 0)
    0.06666666666666667
    """
    n, k = len(values), int(marked.sum())
    if k in (0, n):
        return np.nan
    if comb(n, k) <= MAX_CHOICES:
        sums = np.array([values[list(chosen)].sum() for chosen in combinations(range(n), k)])
    else:
        drawn = stream("choices of models").permuted(np.tile(values, (MAX_CHOICES - 1, 1)), axis=1)
        sums = np.append(drawn[:, :k].sum(axis=1), values[marked].sum())
    apart = np.abs(sums - k * values.mean())
    observed = abs(values[marked].sum() - k * values.mean())
    return float(np.mean(apart >= observed - 1e-12 * max(1.0, observed)))


@where_recorded
def architecture_difference(
    cells: xr.Dataset, *, estimand: str, concepts: Sequence[str] | None = None
) -> Estimate:
    """Mixture of experts minus dense, training held fixed: b in y = a + b moe + c rl + error.

    Ordinary least squares over model means, t with n_models - 3 degrees of freedom.
    """
    means = model_means(cells, estimand=estimand, concepts=concepts).value
    moe = (cells["architecture"].sel(model=means["model"]).values == "moe").astype(float)
    rl = (cells["training"].sel(model=means["model"]).values == "rl").astype(float)
    design = np.stack([np.ones_like(moe), moe, rl], axis=1)
    df = len(means) - design.shape[1]
    if df < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return Estimate.undefined("needs dense and MoE models of both trainings, four or more")
    solution, *_ = np.linalg.lstsq(design, means.values, rcond=None)
    s2 = float(np.sum((means.values - design @ solution) ** 2)) / df
    se = np.sqrt(s2 * np.linalg.inv(design.T @ design)[1, 1])
    half = t_quantile(level_of(cells), df) * se
    value = float(solution[1])
    return Estimate(value, low=value - half, high=value + half, over="models", n=len(means))


@where_recorded
def scale_slope(
    cells: xr.Dataset,
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
    effects = model_means(cells, estimand=estimand, models=models, concepts=[concept]).value
    log_size = np.log10(cells[size].sel(model=effects["model"]).values)
    if len(effects) < 3 or np.ptp(log_size) == 0:
        return Estimate.undefined("a slope with an interval needs three models of unlike size")
    fit = stats.linregress(log_size, effects.values)
    t = t_quantile(level_of(cells), len(effects) - 2)
    return Estimate(
        float(fit.slope),
        low=float(fit.slope - t * fit.stderr),
        high=float(fit.slope + t * fit.stderr),
        over="models",
        n=len(effects),
        p_value=float(fit.pvalue),
    )


@where_recorded
def concept_concordance(
    cells: xr.Dataset, *, estimand: str, concepts: Sequence[str] | None = None
) -> Estimate:
    """Kendall's W: do models rank the concepts alike? 0 is no agreement, 1 is one ranking.

    Over the models and concepts that form a complete table. Effects redrawn around those found,
    with their sampling covariance, have a larger W, because models err alike on the items they
    share; so W itself is too large, and the interval over items is the basic one, reflected:
    2 W - quantiles, within [0, 1]. `p_value`: each model's ranking permuted at random and its
    effects redrawn likewise, so that agreement in error alone does not count as agreement.
    """
    effects = best_effects(cells, estimand, concepts=concepts)
    effects = effects.isel(concept=np.flatnonzero(effects.notnull().all("model")))
    if effects.sizes["model"] < 2 or effects.sizes["concept"] < 3:
        return Estimate.undefined("needs two models that ran the same three concepts")
    table = effects.transpose("model", "concept").values
    value = float(kendalls_w(table))
    rng = stream(f"concordance of {estimand}", seed=cells.attrs["seed"])
    errors = _sampling_errors(cells, effects, estimand, rng)
    if not len(errors):
        return Estimate(value, n=len(table), reason="the items' covariance is not known")
    shuffled = kendalls_w(rng.permuted(np.tile(table, (N_REDRAWS, 1, 1)), axis=-1) + errors)
    tail = (1 - level_of(cells)) / 2
    low, high = np.quantile(kendalls_w(table + errors), [tail, 1 - tail])
    return Estimate(
        value,
        low=float(np.clip(2 * value - high, 0, 1)),
        high=float(np.clip(2 * value - low, 0, 1)),
        over="items",
        n=int(cells["n_items"].sel(concept=effects["concept"]).sum()),
        p_value=float((1 + np.sum(shuffled >= value - 1e-12)) / (1 + N_REDRAWS)),
    )


def pairwise_concordance(
    cells: xr.Dataset, *, estimand: str, concepts: Sequence[str] | None = None
) -> list[tuple[tuple[str, str], Estimate]]:
    """Kendall's tau of the concepts' effects for each pair of models, then their mean.

    The mean's pair is named ("every model", "every model"). Models and concepts, and the basic
    interval over items, are those of `concept_concordance`.
    """
    effects = best_effects(cells, estimand, concepts=concepts)
    effects = effects.isel(concept=np.flatnonzero(effects.notnull().all("model")))
    every = ("every model", "every model")
    if reason := why_not_recorded(cells, estimand):
        return [(every, Estimate.undefined(reason))]
    if effects.sizes["model"] < 2 or effects.sizes["concept"] < 3:
        reason = "needs two models that ran the same three concepts"
        return [(every, Estimate.undefined(reason))]
    table = effects.transpose("model", "concept").values
    errors = _sampling_errors(
        cells, effects, estimand, stream(f"pairs of {estimand}", seed=cells.attrs["seed"])
    )
    names = [str(m) for m in effects["model"].values]
    pairs = list(combinations(range(len(names)), 2))
    value = kendalls_tau(table, pairs)
    drawn = kendalls_tau(table + errors, pairs) if len(errors) else np.full((1, len(pairs)), np.nan)
    tail = (1 - level_of(cells)) / 2
    n = int(cells["n_items"].sel(concept=effects["concept"]).sum())
    labelled = {(names[i], names[j]): at for at, (i, j) in enumerate(pairs)}
    rows = []
    for pair, tau, of in [
        *((pair, value[at], drawn[:, at]) for pair, at in labelled.items()),
        (every, value.mean(), drawn.mean(axis=1)),
    ]:
        low, high = np.quantile(of, [tail, 1 - tail])
        ends = np.clip([2 * tau - high, 2 * tau - low], -1, 1)
        found = Estimate(float(tau), float(ends[0]), float(ends[1]), over="items", n=n)
        if not ends[0] < ends[1]:
            reason = "at the limit of tau, or the items' covariance is not known"
            found = Estimate(float(tau), n=n, reason=reason)
        rows.append((pair, found))
    return rows


def kendalls_tau(table: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Kendall's tau of pairs of rows over columns without ties, dims (..., pair).

    >>> float(kendalls_tau(np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]), [(0, 1)])[0])
    0.3333333333333333
    """
    one, other = np.triu_indices(table.shape[-1], 1)
    order = np.sign(table[..., one] - table[..., other])
    return np.stack([(order[..., i, :] * order[..., j, :]).mean(-1) for i, j in pairs], axis=-1)


def _sampling_errors(
    cells: xr.Dataset, effects: xr.DataArray, estimand: str, rng: np.random.Generator
) -> np.ndarray:
    """Sampling errors of the effects, (redraw, model, concept); none if a covariance is unknown."""
    models = effects["model"].values
    columns = []
    for concept in effects["concept"].values:
        covariance = cells["selected_covariance"].sel(
            estimand=estimand, concept=concept, model=models, model_other=models
        )
        if covariance.isnull().any():
            return np.empty((0, *effects.shape))
        draws = rng.standard_normal((N_REDRAWS, len(models)))
        columns.append(draws @ root_of(covariance.values).T)
    return np.stack(columns, axis=-1)


def kendalls_w(table: np.ndarray) -> np.ndarray:
    r"""Kendall's coefficient of concordance of m rows that rank k columns.

    $W = 12 S / (m^2 (k^3 - k))$, S the sum of squares of the columns' rank totals around their
    mean. Dims: `table` (..., row, column), result (...).

    >>> float(kendalls_w(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])))
    1.0
    """
    ranks = stats.rankdata(table, axis=-1)
    m, k = ranks.shape[-2:]
    return 12 * k * ranks.sum(axis=-2).var(axis=-1) / (m**2 * (k**3 - k))

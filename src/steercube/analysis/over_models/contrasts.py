r"""Comparisons of models: training, architecture and scale.

The unit is the model. With two full-RL models of six, no number of items narrows these intervals,
and a permutation of the labels cannot give a p-value under 1/15.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np
import xarray as xr
from scipy import stats

from steercube.analysis.over_models.means import (
    HIGH,
    LOW,
    level_of,
    model_means,
    pooled_sd,
    t_quantile,
    where_recorded,
)
from steercube.estimate import Estimate
from steercube.streams import stream

MAX_CHOICES = 20_000


@where_recorded
def training_gap(
    cells: xr.Dataset,
    *,
    estimand: str,
    low: str = LOW,
    high: str = HIGH,
    concepts: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    from_rounded: int | None = None,
) -> Estimate:
    r"""The share by which training `high` falls below `low`: 1 - mean_high / mean_low.

    Interval: t on the log of the ratio with n_models - 2 degrees of freedom, delta method,
    $Var = s^2 (1 / (n_h \bar y_h^2) + 1 / (n_l \bar y_l^2))$, s pooled between models. `p_value`
    is exact, over every assignment of the labels to the models. `from_rounded` rounds both
    averages to so many digits first, as a reader of printed averages does.
    """
    means = model_means(cells, estimand=estimand, concepts=concepts, models=models).value
    labels = cells["training"].sel(model=means["model"]).values
    a, b = means.values[labels == high], means.values[labels == low]
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
    rl = (cells["training"].sel(model=means["model"]).values == HIGH).astype(float)
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
    return slope_over_models(log_size, effects.values, level_of(cells))


def slope_over_models(log_size: np.ndarray, values: np.ndarray, level: float) -> Estimate:
    """Least-squares slope of one value a model, t with n_models - 2 degrees of freedom."""
    if len(values) < 3 or np.ptp(log_size) == 0:
        return Estimate.undefined("a slope with an interval needs three models of unlike size")
    fit = stats.linregress(log_size, values)
    t = t_quantile(level, len(values) - 2)
    return Estimate(
        float(fit.slope),
        low=float(fit.slope - t * fit.stderr),
        high=float(fit.slope + t * fit.stderr),
        over="models",
        n=len(values),
        p_value=float(fit.pvalue),
    )

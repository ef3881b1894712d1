r"""Means of best-layer effects over concepts and models, with intervals over what they mean.

A mean that names its models is about those models: its interval is over items, from the
sampling covariance of the selected effects (block-diagonal by concept), around the mean less its
optimism. A mean over "the distilled models" or over "models" is about models like them: its
interval is Student's t over model means, however many items each had. The models answered the
same items, so part of their error is common and does not show in the spread between them; that
part, the mean covariance of two models' means, is added.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import xarray as xr
from scipy import stats

from steercube.cells import REASONS
from steercube.estimate import Estimate

LOW, HIGH = "distilled", "rl"
"""The trainings compared: every contrast is HIGH minus LOW, or the share by which HIGH is lower. A
predictor codes LOW, the reference, as 0 and HIGH as 1."""

P = ParamSpec("P")


def why_not_recorded(cells: xr.Dataset, estimand: str) -> str:
    """What to say where these cells lack an estimand altogether; empty where they hold it."""
    # Plain arrays: the sensitivity table asks thousands of times.
    reason = cells.variables["reason"].transpose("estimand", ...).values
    lacking = (
        estimand not in cells.indexes["estimand"]
        or (reason[cells.indexes["estimand"].get_loc(estimand)] == REASONS["not_recorded"]).all()
    )
    return f"not recorded: these cells hold no {estimand}" if lacking else ""


def where_recorded(statistic: Callable[P, Estimate]) -> Callable[P, Estimate]:
    """The statistic of `cells` (its first argument), undefined where they lack its `estimand`."""

    @wraps(statistic)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Estimate:
        cells, estimand = args[0], kwargs["estimand"]
        assert isinstance(cells, xr.Dataset)
        reason = why_not_recorded(cells, str(estimand))
        return Estimate.undefined(reason) if reason else statistic(*args, **kwargs)

    return checked


def swept_models(cells: xr.Dataset) -> list[str]:
    """Models with a logit sweep, in order of size."""
    layer = cells.variables["selected_layer"].transpose("model", "concept").values
    by_size = np.argsort(cells.variables["n_params"].values, kind="stable")
    swept = by_size[np.isfinite(layer).any(axis=1)[by_size]]
    return [str(model) for model in cells.indexes["model"][swept]]


def best_effects(
    cells: xr.Dataset,
    estimand: str,
    *,
    models: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
    field: str = "selected_estimate",
) -> xr.DataArray:
    """The estimand at each selected layer, dims (model, concept), NaN where never run.

    Models or concepts that `cells` does not hold are left out. `field` may be another of the
    selected variables of an estimand, such as its optimism.
    """
    # Bare labels and one fancy index: this is called thousands of times by the sensitivity table.
    table = cells.variables[field].transpose("estimand", "model", "concept")
    labels = {
        "model": _held(swept_models(cells), models),
        "concept": _held(cells.indexes["concept"].tolist(), concepts),
    }
    where = [cells.indexes[dim].get_indexer(names) for dim, names in labels.items()]
    of_estimand = table.values[cells.indexes["estimand"].get_loc(estimand)]
    return xr.DataArray(of_estimand[np.ix_(*where)], coords=labels, dims=("model", "concept"))


def _held(held: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    return [name for name in held if wanted is None or name in wanted]


def complete_concepts(cells: xr.Dataset, concepts: Sequence[str] | None = None) -> list[str]:
    """Those of the concepts that every swept model ran."""
    effects = best_effects(cells, "delta", concepts=concepts)
    return [str(c) for c in effects["concept"].values[effects.notnull().all("model")]]


def complete_models(cells: xr.Dataset, concepts: Sequence[str] | None = None) -> list[str]:
    """The swept models that ran every one of the concepts."""
    effects = best_effects(cells, "delta", concepts=concepts)
    return [str(m) for m in effects["model"].values[effects.notnull().all("concept")]]


@where_recorded
def model_mean(
    cells: xr.Dataset,
    *,
    estimand: str,
    model: str,
    concepts: Sequence[str] | None = None,
) -> Estimate:
    r"""Mean over concepts of one model's best-layer effect, its interval over items.

    $\bar T = \sum_c T_c / C$ over the C concepts that the model ran; concepts share no item, so
    $Var(\bar T) = \sum_c Var(T_c) / C^2$, and the interval is $\bar T$ less its mean optimism
    $\pm z \sqrt{Var}$.
    """
    effects = best_effects(cells, estimand, models=[model], concepts=concepts)
    run = effects["concept"].values[effects.notnull().any("model")]
    if not len(run):
        return Estimate.undefined(f"{model} ran none of these concepts")
    means = model_means(cells, estimand=estimand, models=[model], concepts=run)
    value, corrected = float(means.value.item()), float(means.corrected.item())
    se = float(np.sqrt(item_covariance(cells, estimand, [model], run)[0, 0]))
    z = stats.norm.ppf((1 + level_of(cells)) / 2)
    return Estimate(
        value,
        low=corrected - z * se,
        high=corrected + z * se,
        over="items",
        n=int(cells["n_items"].sel(concept=run).sum()),
        corrected=corrected,
        reason="" if np.isfinite(se) else "the items' covariance is not known for these cells",
    )


def item_covariance(
    cells: xr.Dataset, estimand: str, models: Sequence[str], concepts: Sequence[str]
) -> np.ndarray:
    r"""Sampling covariance, over items, of the models' means over concepts, (model, model).

    $Cov(\bar T_m, \bar T_{m'}) = \sum_c Cov(T_{mc}, T_{m'c}) / (C_m C_{m'})$ over the concepts that
    both ran. NaN where a covariance of cells that were run is not known.
    """
    run = best_effects(cells, estimand, models=models, concepts=concepts).notnull()
    where = [cells.indexes[d].get_indexer(run[d].values) for d in ("concept", "model", "model")]
    order = ("estimand", "concept", "model", "model_other")
    covariance = cells.variables["selected_covariance"].transpose(*order)
    of_estimand = covariance.values[cells.indexes["estimand"].get_loc(estimand)][np.ix_(*where)]
    ran = run.transpose("concept", "model").values
    both = ran[:, :, None] & ran[:, None, :]
    count = ran.sum(axis=0)
    return np.where(both, of_estimand, 0.0).sum(axis=0) / np.outer(count, count)


@where_recorded
def mean_over_models(
    cells: xr.Dataset,
    *,
    estimand: str,
    models: Sequence[str] | None = None,
    training: str | None = None,
    concepts: Sequence[str] | None = None,
) -> Estimate:
    """Mean of model means, its interval Student's t over models.

    The models are those named, those of one training, or all. With `training` the spread between
    models is pooled over all trainings (one sd, n_models - n_trainings degrees of freedom), since
    two models alone say next to nothing about their own spread.
    """
    means = model_means(cells, estimand=estimand, models=models, concepts=concepts)
    names = means.value["model"].values.tolist()
    common = item_covariance(cells, estimand, names, _held(cells.indexes["concept"], concepts))
    return t_over_models(
        means.value,
        means.corrected,
        groups=cells["training"],
        group=training,
        level=level_of(cells),
        common=common,
    )


class ModelMeans(NamedTuple):
    """Means over concepts, dims (model): as found, and less their mean optimism."""

    value: xr.DataArray
    corrected: xr.DataArray


def model_means(
    cells: xr.Dataset,
    *,
    estimand: str,
    models: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
) -> ModelMeans:
    """Mean over the concepts that each model ran of its best-layer effect, dims (model).

    The corrected mean is NaN where the optimism of a concept that was run is not known.
    """
    effects = best_effects(cells, estimand, models=models, concepts=concepts)
    optimism = best_effects(
        cells, estimand, models=models, concepts=concepts, field="selected_optimism"
    )
    run = np.isfinite(effects.values)
    names = effects["model"].values[run.any(axis=1)]
    ran = run[run.any(axis=1)]
    value, less = (
        np.where(ran, table.values[run.any(axis=1)], 0.0).sum(axis=1) / ran.sum(axis=1)
        for table in (effects, optimism)
    )
    means = [xr.DataArray(x, coords={"model": names}, dims="model") for x in (value, value - less)]
    return ModelMeans(*means)


def concept_mean(
    cells: xr.Dataset,
    *,
    estimand: str,
    concept: str,
    models: Sequence[str] | None = None,
) -> Estimate:
    """Mean over models of one concept's best-layer effect, its interval Student's t over models."""
    return mean_over_models(cells, estimand=estimand, models=models, concepts=[concept])


def t_over_models(
    means: xr.DataArray,
    corrected: xr.DataArray,
    *,
    groups: xr.DataArray,
    group: str | None,
    level: float,
    common: np.ndarray | None = None,
) -> Estimate:
    r"""Mean of the group's members, t interval; the sd is pooled over `groups` if one is named.

    $\bar y \pm \sqrt{t_{df}^2 s^2 / n + z^2 \max(0, \bar c)}$ around the corrected mean where it
    is known; $\bar c$ is the mean off-diagonal of `common`, the models' covariance over items,
    whose variance is known well enough for the normal quantile z. With negative $\bar c$ the spread
    between models holds all the error there is.
    """
    labels = groups.sel(model=means["model"]).values
    values = means.values
    inside = np.full(len(values), True) if group is None else labels == group
    if not inside.any():
        return Estimate.undefined(f"no model here has the training {group!r}")
    value, n = float(values[inside].mean()), int(inside.sum())
    s, df = pooled_sd(values, labels if group is not None else np.zeros(len(values)))
    shared = 0.0
    if common is not None and n > 1:
        between = common[np.ix_(inside, inside)][~np.eye(n, dtype=bool)]
        shared = max(0.0, float(between.mean())) if np.isfinite(between).all() else 0.0
    t, z = t_quantile(level, df), stats.norm.ppf((1 + level) / 2)
    half = float(np.sqrt(t**2 * s**2 / n + z**2 * shared))
    less_optimism = float(corrected.reindex(model=means["model"]).values[inside].mean())
    centre = less_optimism if np.isfinite(less_optimism) else value
    return Estimate(
        value,
        low=centre - half,
        high=centre + half,
        over="models",
        n=n,
        corrected=less_optimism,
        span=(float(values[inside].min()), float(values[inside].max())),
        reason="" if df else ONE_MODEL,
    )


def pooled_sd(values: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Sd around the mean of each label, and its degrees of freedom; (nan, 0) if there are none."""
    residual = [values[labels == label] - values[labels == label].mean() for label in set(labels)]
    df = len(values) - len(residual)
    if df < 1:
        return np.nan, 0
    return float(np.sqrt(np.sum(np.concatenate(residual) ** 2) / df)), df


def root_of(covariance: np.ndarray) -> np.ndarray:
    """A lower triangle L with L L' = covariance, a hair above it so that a cell may have no error.

    Cholesky's factor is unique; numpy's own sampler uses singular vectors, whose signs differ
    between processors, and so would the draws.
    """
    ridge = 1e-9 * float(np.trace(covariance)) or 1e-12
    return np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))


def level_of(cells: xr.Dataset) -> float:
    """The confidence level of every interval of these cells."""
    return float(cells.attrs["confidence_level"])


def t_margin(values: np.ndarray, level: float) -> float:
    """Half the width of Student's t interval of the mean of `values`; NaN for a single one."""
    if len(values) < 2:
        return np.nan
    return float(t_quantile(level, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def mean_of_models(values: np.ndarray, level: float, **fields: Any) -> Estimate:
    """Mean of one value a model, its interval Student's t over them; a single one has none.

    `fields` are those of the Estimate that say more, or otherwise.
    """
    mean, margin, several = float(values.mean()), t_margin(values, level), len(values) > 1
    found = Estimate(
        mean,
        low=mean - margin,
        high=mean + margin,
        over="models" if several else "",
        n=len(values),
        span=(float(values.min()), float(values.max())),
        reason="" if several else ONE_MODEL,
    )
    return replace(found, **fields)


def t_quantile(level: float, df: int) -> float:
    """The t that a share `level` of Student's distribution lies within; NaN without df."""
    return float(stats.t.ppf((1 + level) / 2, df)) if df > 0 else np.nan


ONE_MODEL = "one model has no spread between models"

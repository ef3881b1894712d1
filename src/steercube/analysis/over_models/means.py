r"""Means of best-layer effects over concepts and models, with intervals over items or models.

A mean of one named model is about that model: its interval is over items, from the sampling
covariance of the selected effects (block-diagonal by concept), around the mean minus its optimism.
A mean over the models of one training, or over "models", is about other models like them: its
interval is Student's t over model means, however many items each had. The models share their items,
so part of their error is common and does not show in the spread between them; that part, the mean
covariance of two models' means, is added.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from steercube.analysis.view import Study, kept, where_recorded
from steercube.estimate import Estimate, Student, normal_quantile, t_quantile

ONE_MODEL = "one model has no spread between models"


@where_recorded
def model_mean(
    study: Study, *, estimand: str, model: str, concepts: Sequence[str] | None = None
) -> Estimate:
    r"""Mean over concepts of one model's best-layer effect, its interval over items.

    $\bar T = \sum_c T_c / C$ over the C concepts that the model ran; concepts share no item, so
    $Var(\bar T) = \sum_c Var(T_c) / C^2$, and the interval is $\bar T$ less its mean optimism
    $\pm z \sqrt{Var}$.
    """
    effects = study.best(estimand, models=[model], concepts=concepts)
    run = effects["concept"].values[effects.notnull().any("model")].tolist()
    if not run:
        return Estimate.undefined(f"{model} ran none of these concepts")
    means = model_means(study, estimand=estimand, models=[model], concepts=run)
    corrected = float(means.corrected.item())
    se = float(np.sqrt(item_covariance(study, estimand, [model], run)[0, 0]))
    return Estimate.around(
        corrected,
        normal_quantile(study.level) * se,
        value=float(means.value.item()),
        over="items",
        n=int(study.cells["n_items"].sel(concept=run).sum()),
        corrected=corrected,
        reason="" if np.isfinite(se) else "the items' covariance is not known for these cells",
    )


def item_covariance(
    study: Study, estimand: str, models: Sequence[str], concepts: Sequence[str]
) -> np.ndarray:
    r"""Sampling covariance, over items, of the models' means over concepts, (model, model).

    $Cov(\bar T_m, \bar T_{m'}) = \sum_c Cov(T_{mc}, T_{m'c}) / (C_m C_{m'})$ over the concepts that
    both ran. NaN if the covariance of cells that were run is unknown.
    """
    indexes = study.cells.indexes
    run = study.best(estimand, models=models, concepts=concepts).notnull()
    where = [indexes[dim].get_indexer(run[dim].values) for dim in ("concept", "model", "model")]
    order = ("estimand", "concept", "model", "model_other")
    covariance = study.cells.variables["selected_covariance"].transpose(*order)
    blocks = covariance.values[indexes["estimand"].get_loc(estimand)][np.ix_(*where)]
    ran = run.transpose("concept", "model").values
    both = ran[:, :, None] & ran[:, None, :]
    count = ran.sum(axis=0)
    return np.where(both, blocks, 0.0).sum(axis=0) / np.outer(count, count)


@kept
@where_recorded
def mean_over_models(
    study: Study,
    *,
    estimand: str,
    models: Sequence[str] | None = None,
    training: str | None = None,
    concepts: Sequence[str] | None = None,
) -> Estimate:
    """Mean of model means, its interval Student's t over models.

    The models are those named, those of one training, or all. With `training` the spread between
    models is pooled over all trainings (one sd, n_models - n_trainings degrees of freedom), since
    two models alone say almost nothing about their spread.
    """
    means = model_means(study, estimand=estimand, models=models, concepts=concepts)
    names = means.value["model"].values.tolist()
    averaged = [c for c in study.concepts if concepts is None or c in concepts]
    return t_over_models(
        means.value,
        means.corrected,
        groups=study.cells["training"],
        group=training,
        level=study.level,
        common=item_covariance(study, estimand, names, averaged),
    )


class ModelMeans(NamedTuple):
    """Means over concepts, dims (model): as measured, and minus their mean optimism."""

    value: xr.DataArray
    corrected: xr.DataArray


@kept
def model_means(
    study: Study,
    *,
    estimand: str,
    models: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
) -> ModelMeans:
    """Mean over the concepts that each model ran of its best-layer effect, dims (model).

    The corrected mean is NaN if the optimism of a concept that was run is unknown.
    """
    effects = study.best(estimand, models=models, concepts=concepts)
    optimism = study.best(estimand, models=models, concepts=concepts, of="selected_optimism")
    run = np.isfinite(effects.values)
    names = effects["model"].values[run.any(axis=1)]
    ran = run[run.any(axis=1)]
    value, bias = (
        np.where(ran, table.values[run.any(axis=1)], 0.0).sum(axis=1) / ran.sum(axis=1)
        for table in (effects, optimism)
    )
    means = [xr.DataArray(x, coords={"model": names}, dims="model") for x in (value, value - bias)]
    return ModelMeans(*means)


def concept_mean(
    study: Study, *, estimand: str, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Mean over models of one concept's best-layer effect, its interval Student's t over models."""
    return mean_over_models(study, estimand=estimand, models=models, concepts=[concept])


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
    whose variance is known well enough for the normal quantile z. If $\bar c$ is negative nothing
    is added, as the spread between models then contains all of the error.
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
    t, z = t_quantile(level, df), normal_quantile(level)
    less_optimism = float(corrected.reindex(model=means["model"]).values[inside].mean())
    return Estimate.around(
        less_optimism if np.isfinite(less_optimism) else value,
        float(np.sqrt(t**2 * s**2 / n + z**2 * shared)),
        value=value,
        over="models",
        n=n,
        corrected=less_optimism,
        span=(float(values[inside].min()), float(values[inside].max())),
        reason="" if df else ONE_MODEL,
    )


def shared_t(values: np.ndarray, covariance: np.ndarray, level: float) -> Estimate:
    """`t_over_models` of one value a model (model,), with their covariance over shared items."""
    means = xr.DataArray(values, {"model": np.arange(len(values))}, "model")
    groups = xr.zeros_like(means)
    return t_over_models(means, means, groups=groups, group=None, level=level, common=covariance)


def pooled_sd(values: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Sd around the mean of each label, and its degrees of freedom; (nan, 0) if there are none."""
    residual = [values[labels == label] - values[labels == label].mean() for label in set(labels)]
    df = len(values) - len(residual)
    if df < 1:
        return np.nan, 0
    return float(np.sqrt(np.sum(np.concatenate(residual) ** 2) / df)), df


def mean_of_models(values: np.ndarray, level: float, **fields: Any) -> Estimate:
    """Mean of one value a model, its interval Student's t over them; a single one has none.

    `fields` set or replace further fields of the Estimate.
    """
    n, value = len(values), float(values.mean())
    span = (float(values.min()), float(values.max()))
    if n < 2:
        alone: dict[str, Any] = {"value": value, "n": n, "span": span, "reason": ONE_MODEL}
        return Estimate(**alone | fields)
    student = Student(value, float(values.std(ddof=1) / np.sqrt(n)), n - 1)
    usual = {"value": value, "over": "models", "n": n, "span": span}
    return Estimate.of(student, level, **usual | fields)


def root_of(covariance: np.ndarray) -> np.ndarray:
    """Lower triangular L with L L' = covariance, plus a tiny ridge as a cell may have no error.

    The Cholesky factor is unique; numpy's sampler uses singular vectors, whose signs, and so the
    draws, differ between processors.
    """
    ridge = 1e-9 * float(np.trace(covariance)) or 1e-12
    return np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))

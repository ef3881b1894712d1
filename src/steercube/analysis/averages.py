r"""Means of best-layer effects over concepts and models, with intervals over what they mean.

A mean that names its models is about those models: its interval is over items, from the
sampling covariance of the selected effects (block-diagonal by concept), around the mean less its
optimism. A mean over "the distilled models" or over "models" is about models like them: its
interval is Student's t over model means, however many items each had.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy import stats

from steercube.results import Estimate


def swept_models(cells: xr.Dataset) -> list[str]:
    """Models with a logit sweep, in order of size."""
    swept = cells["selected_layer"].notnull().any("concept").values
    by_size = np.argsort(cells["n_params"].values, kind="stable")
    return [str(model) for model in cells["model"].values[by_size[swept[by_size]]]]


def best_effects(
    cells: xr.Dataset,
    estimand: str,
    *,
    models: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
) -> xr.DataArray:
    """The estimand at each selected layer, dims (model, concept), NaN where never run.

    Models or concepts that `cells` does not hold are left out.
    """
    # Bare labels and one fancy index: this is called thousands of times by the sensitivity table.
    table = cells["selected_estimate"].variable.transpose("estimand", "model", "concept")
    labels = {
        "model": _held(swept_models(cells), models),
        "concept": _held(cells["concept"].values.tolist(), concepts),
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
    effects = effects.squeeze("model") if effects.sizes["model"] else effects.sum("model")
    run = effects["concept"].values[effects.notnull()]
    if not effects.sizes["concept"] or not len(run):
        return Estimate.undefined(f"{model} ran none of these concepts")
    cell = {"estimand": estimand, "model": model, "concept": run}
    value = float(effects.sel(concept=run).mean())
    corrected = value - float(cells["selected_optimism"].sel(cell).mean(skipna=False))
    variance = cells["selected_covariance"].sel(cell).sel(model_other=model)
    se = float(np.sqrt(variance.sum(skipna=False))) / len(run)
    z = stats.norm.ppf((1 + cells.attrs["confidence_level"]) / 2)
    return Estimate(
        value,
        low=corrected - z * se,
        high=corrected + z * se,
        over="items",
        n=int(cells["n_items"].sel(concept=run).sum()),
        corrected=corrected,
    )


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
    corrected = model_means(
        cells, estimand=estimand, models=models, concepts=concepts, corrected=True
    )
    return t_over_models(
        means, corrected, groups=cells["training"], group=training, level=_level(cells)
    )


def model_means(
    cells: xr.Dataset,
    *,
    estimand: str,
    models: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
    corrected: bool = False,
) -> xr.DataArray:
    """Mean over the concepts that each model ran of its best-layer effect, dims (model)."""
    effects = best_effects(cells, estimand, models=models, concepts=concepts)
    if corrected:
        optimism = cells["selected_optimism"].sel(estimand=estimand).reset_coords(drop=True)
        effects = effects - optimism
    # An empty selection has a mean of its own kind of zero, not a warning.
    means = (
        effects.mean("concept") if effects.sizes["concept"] else effects.sum("concept", min_count=1)
    )
    return means.isel(model=np.flatnonzero(means.notnull()))


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
) -> Estimate:
    """Mean of the group's members, t interval; the sd is pooled over `groups` if one is named."""
    labels = groups.sel(model=means["model"]).values
    values = means.values
    inside = np.full(len(values), True) if group is None else labels == group
    if not inside.any():
        return Estimate.undefined(f"no model here has the training {group!r}")
    value, n = float(values[inside].mean()), int(inside.sum())
    s, df = pooled_sd(values, labels if group is not None else np.zeros(len(values)))
    half = stats.t.ppf((1 + level) / 2, df) * s / np.sqrt(n) if df else np.nan
    centre = float(corrected.reindex(model=means["model"]).values[inside].mean())
    centre = centre if np.isfinite(centre) else value
    return Estimate(
        value,
        low=centre - half,
        high=centre + half,
        over="models",
        n=n,
        corrected=centre,
        span=(float(values[inside].min()), float(values[inside].max())),
        reason="" if df else "one model has no spread between models",
    )


def pooled_sd(values: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Sd around the mean of each label, and its degrees of freedom; (nan, 0) if there are none."""
    residual = [values[labels == label] - values[labels == label].mean() for label in set(labels)]
    df = len(values) - len(residual)
    if df < 1:
        return np.nan, 0
    return float(np.sqrt(np.sum(np.concatenate(residual) ** 2) / df)), df


def _level(cells: xr.Dataset) -> float:
    return float(cells.attrs["confidence_level"])

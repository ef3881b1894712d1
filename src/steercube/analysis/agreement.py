r"""Do logits and generated answers agree on which layers steer?

The published measure pools the layers of all models into one correlation. Neighbouring layers
are nearly the same observation, so its n says nothing; the interval here is over models, one
correlation each.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from steercube.analysis.averages import ONE_MODEL, best_effects, level_of, t_margin
from steercube.analysis.effects import BASELINE, NEGATIVE, POSITIVE
from steercube.results import Estimate

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def generation_delta(cells: xr.Dataset) -> xr.DataArray:
    """Generation rate at +1 minus that at -1, without the dimension strength."""
    rate = cells["generation_rate"]
    return rate.sel(strength=POSITIVE) - rate.sel(strength=NEGATIVE)


def layer_curves(cells: xr.Dataset, *, concept: str, models: Sequence[str] | None) -> Curves:
    """(logit delta, generation delta) over the layers where a model has both, by model."""
    if "generation_rate" not in cells or concept not in cells["concept"]:
        return {}
    order = ("model", "layer")
    of_concept = cells[["estimate", "generation_rate"]].sel(concept=concept)
    logit = of_concept["estimate"].sel(estimand="delta").transpose(*order).values
    generation = generation_delta(of_concept).transpose(*order).values
    curves = {}
    for model, *pair in zip(map(str, cells["model"].values), logit, generation, strict=True):
        both = np.isfinite(pair).all(axis=0)
        if (models is None or model in models) and both.sum() > 3:
            curves[model] = (pair[0][both], pair[1][both])
    return curves


def shaped_curves(cells: xr.Dataset, *, concept: str, models: Sequence[str] | None) -> Curves:
    """Those of `layer_curves` that vary in both measures: a flat one has no shape to agree with."""
    curves = layer_curves(cells, concept=concept, models=models)
    return {m: pair for m, pair in curves.items() if all(np.ptp(curve) > 0 for curve in pair)}


def scaled(curve: np.ndarray) -> np.ndarray:
    """The curve mapped to [0, 1] by its own minimum and maximum.

    >>> scaled(np.array([2.0, 4.0, 3.0])).tolist()
    [0.0, 1.0, 0.5]
    """
    return (curve - curve.min()) / np.ptp(curve)


def pooled_agreement(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Pearson r of the scaled curves, the layers of all models pooled: the published measure.

    The interval is not that of r with n layers, which are autocorrelated: it is the jackknife's,
    each model left out in turn, on Fisher's z with Student's t over models.
    """
    curves = shaped_curves(cells, concept=concept, models=models)
    if not curves:
        return Estimate.undefined("no model has varying logits and generations here")
    logit, generation = (
        np.concatenate([scaled(pair[i]) for pair in curves.values()]) for i in (0, 1)
    )
    r = float(np.corrcoef(logit, generation)[0, 1])
    if len(curves) < 2:
        return Estimate(r, n=1, reason=ONE_MODEL)
    without = [
        np.corrcoef(*np.delete(np.stack([logit, generation]), rows, axis=1))[0, 1]
        for rows in _rows_of_each(curves)
    ]
    n = len(curves)
    pseudo = n * np.arctanh(r) - (n - 1) * np.arctanh(without)
    margin = t_margin(pseudo, level_of(cells))
    return Estimate(
        r,
        low=float(np.tanh(pseudo.mean() - margin)),
        high=float(np.tanh(pseudo.mean() + margin)),
        over="models",
        n=n,
    )


def _rows_of_each(curves: Curves) -> list[np.ndarray]:
    """Which of the pooled layers are each model's."""
    ends = np.cumsum([len(logit) for logit, _ in curves.values()])
    return np.split(np.arange(ends[-1]), ends[:-1])


def model_agreement(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Mean over models of each one's own correlation, through Fisher's z, t over models."""
    r = np.array(list(correlations(cells, concept=concept, models=models).values()))
    if not len(r):
        return Estimate.undefined("no model has varying logits and generations here")
    z = np.arctanh(r)
    margin = t_margin(z, level_of(cells))
    return Estimate(
        float(np.tanh(z.mean())),
        low=float(np.tanh(z.mean() - margin)),
        high=float(np.tanh(z.mean() + margin)),
        over="models",
        n=len(r),
        span=(float(r.min()), float(r.max())),
        reason="" if len(r) > 1 else ONE_MODEL,
    )


def correlations(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> dict[str, float]:
    """Pearson r of the two layer curves, by model."""
    curves = shaped_curves(cells, concept=concept, models=models)
    return {model: float(np.corrcoef(*pair)[0, 1]) for model, pair in curves.items()}


def best_generation(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Mean over models of the largest generation delta over layers, t over models.

    `expected_under_null` is what that maximum would average if steering did nothing: rates of
    few answers, maximised over many layers, hold much noise.
    """
    curves = layer_curves(cells, concept=concept, models=models)
    if not curves:
        return Estimate.undefined("no generation sweep of this concept")
    best = np.array([generation.max() for _, generation in curves.values()])
    null = [expected_maximum(cells, concept=concept, model=model) for model in curves]
    mean, margin = float(best.mean()), t_margin(best, level_of(cells))
    return Estimate(
        mean,
        low=mean - margin,
        high=mean + margin,
        over="models",
        n=len(best),
        span=(float(best.min()), float(best.max())),
        expected_under_null=float(np.mean([x for x in null if np.isfinite(x)] or [np.nan])),
        reason="" if len(best) > 1 else ONE_MODEL,
    )


def expected_maximum(cells: xr.Dataset, *, concept: str, model: str) -> float:
    """Expected largest generation delta over layers if nothing were added at either strength.

    The sweep measured its unsteered rate anew at every layer, so differences of two of those
    rates are what noise alone does to a delta. With F their distribution over all ordered pairs
    and L layers, the largest of L such differences has the distribution F^L. That is the noise of
    sampling answers again; a useless direction of the same norm would do more, so it is a lower
    bound. NaN where fewer than two baselines were measured, so that nothing is known of them.
    """
    if BASELINE not in cells["strength"]:
        return np.nan
    baseline = cells["generation_rate"].sel(model=model, concept=concept, strength=BASELINE).values
    baseline = baseline[np.isfinite(baseline)]
    first, second = np.triu_indices(len(baseline), k=1)
    apart = baseline[first] - baseline[second]
    if not len(apart):
        return np.nan
    differences = np.sort(np.concatenate([apart, -apart]))
    cumulative = (np.arange(1, len(differences) + 1) / len(differences)) ** len(baseline)
    return float(differences @ np.diff(cumulative, prepend=0.0))


def agreement_against_effect(
    cells: xr.Dataset,
    *,
    estimand: str,
    concepts: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
) -> Estimate:
    """Does agreement rise with the effect? Slope of r on the effect over a model's concepts.

    One least-squares slope a model (change of r per unit of effect), averaged, t over models.
    """
    effects = best_effects(cells, estimand, concepts=concepts)
    of_concept = {
        str(c): correlations(cells, concept=str(c), models=models)
        for c in effects["concept"].values
    }
    slopes = []
    for model in effects["model"].values:
        pairs = [
            (float(effects.sel(model=model, concept=c)), of_model[model])
            for c, of_model in of_concept.items()
            if model in of_model
        ]
        if len(pairs) > 2:
            slopes.append(float(np.polyfit([d for d, _ in pairs], [r for _, r in pairs], 1)[0]))
    if len(slopes) < 2:
        return Estimate.undefined("needs two models with three concepts in both measures")
    values = np.array(slopes)
    mean, margin = float(values.mean()), t_margin(values, level_of(cells))
    return Estimate(mean, low=mean - margin, high=mean + margin, over="models", n=len(values))

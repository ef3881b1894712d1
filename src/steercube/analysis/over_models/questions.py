r"""The study's open questions: is a model odd, what makes a concept hard, what predicts steering.

`model_deviations` asks the hierarchical model which part of a model's effects neither its training
nor its size nor its concepts account for. `difficulty` splits a concept's Cohen's d into the shift
(nats) and the spread of the items that divides it, d = delta / sd, so that a small d has a cause.
`extraction` asks whether what is known when a vector is made, its norm and the coherence of its
pairs, goes with what steering does. None of them is a test of a cause: six concepts differ in more
than is measured here. And none knows why a model or a concept is looked at: intervals of the lowest
of several are too narrow for it.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from steercube.analysis.over_models.means import (
    best_effects,
    level_of,
    mean_of_models,
    swept_models,
    why_not_recorded,
)
from steercube.analysis.over_models.posterior import Posterior, fit, primary_terms, usable_effects
from steercube.estimate import Estimate
from steercube.streams import stream

Rows = Iterator[tuple[dict[str, str], Estimate]]

MAX_ORDERS = 5_040
"""Every order of seven concepts; of more concepts so many at random."""
COHERENCES = ("split_half_cosine", "pairwise_cosine")
PROPERTIES = ("vector_norm", "residual_norm", *COHERENCES, "added_over_residual")
"""What the extraction shows of a vector, or of the stream that it is added to."""
HELD = "models, these items"
"""The error of the items that models share is not in the spread between them, nor in these."""


def model_deviations(cells: xr.Dataset) -> list[dict[str, Any]]:
    """u of each model in the primary model of Cohen's d: its median, interval and P(u < 0).

    u is what a model's effects lie above or below those of models of its training and size, shrunk
    to the spread between models. A model that is looked at because it is the lowest has to be
    compared with the lowest of as many: `smallest model mean` of `predictive_checks`.
    """
    try:
        effects = usable_effects(cells, "cohens_d", ())
    except ValueError as error:
        return [{"model": "every model", "reason": str(error)}]
    posterior = fit(effects, terms=primary_terms(effects))
    rows = []
    for model in effects.models:
        low, middle, high = deviation(posterior, model, level_of(cells))
        rows.append(
            {
                "model": model,
                "training": cells["training"].sel(model=model).item(),
                "estimate": middle,
                "low": low,
                "high": high,
                "probability_negative": posterior.cdf(f"u of {model}", 0.0),
                "n": len(effects.models),
                "interval_over": "items, concepts, models",
                "reason": "",
            }
        )
    return rows


LETTER_SHARE, ANTI_STEERED = "letter share of the shift", "share of items steered the other way"
NEEDED_OF_OWN = {
    LETTER_SHARE: ("letter_shift", "content_shift"),
    ANTI_STEERED: ("anti_steerable_share",),
}
"""Estimands behind what a concept says of itself."""


def deviation(posterior: Posterior, model: str, level: float) -> tuple[float, float, float]:
    """Lower end, median and upper end of a model's u."""
    tail = (1 - level) / 2
    low, middle, high = (
        posterior.quantile(f"u of {model}", share) for share in (tail, 0.5, 1 - tail)
    )
    return low, middle, high


def difficulty(cells: xr.Dataset) -> Rows:
    """What sets each concept apart: ratios to a model's other concepts, and its own properties.

    The ratios of Cohen's d, of delta and of the items' sd are related by log d = log delta - log sd
    and each is the mean over models of the log, against the mean log of the model's others; t over
    models, for d and delta with the error of the items that models share. `letter share` is
    |letter shift| / (|letter shift| + |content shift|).
    """
    delta, d = (best_effects(cells, name) for name in ("delta", "cohens_d"))
    tables = {"Cohen's d": d, "delta": delta, "sd of items": delta / d}
    covariances = {
        "Cohen's d": relative_covariance(cells, "cohens_d"),
        "delta": relative_covariance(cells, "delta"),
    }
    letter, content = (abs(best_effects(cells, n)) for n in ("letter_shift", "content_shift"))
    own = {
        LETTER_SHARE: letter / (letter + content),
        ANTI_STEERED: best_effects(cells, "anti_steerable_share"),
    } | {
        f"{name.replace('_', ' ')} of the vector": at_best_layer(cells, name)
        for name in COHERENCES
        if name in cells
    }
    lacking = {
        name: next(filter(None, (why_not_recorded(cells, of) for of in needed)), "")
        for name, needed in NEEDED_OF_OWN.items()
    }
    for concept in map(str, d["concept"].values):
        for name, table in tables.items():
            labels = {"concept": concept, "statistic": f"{name}, relative to the others"}
            covariance = covariances.get(name)
            yield labels, relative_to_others(table, concept, level_of(cells), covariance)
        for name, table in own.items():
            if reason := lacking.get(name):
                yield {"concept": concept, "statistic": name}, Estimate.undefined(reason)
                continue
            values = table.sel(concept=concept).values
            found = _mean(values[np.isfinite(values)], level_of(cells))
            held = replace(found, over=HELD) if found.over else found
            yield {"concept": concept, "statistic": name}, held
        yield {"concept": concept, "statistic": "share of invalid items"}, _invalid(cells, concept)


def _invalid(cells: xr.Dataset, concept: str) -> Estimate:
    of = cells.sel(concept=concept)
    n, valid = int(of["n_items"]), int(of["n_valid_items"])
    if not n:
        return Estimate.undefined("no item was swept")
    return Estimate(1 - valid / n, n=n, reason="a census of the items")


def relative_covariance(cells: xr.Dataset, estimand: str) -> xr.DataArray:
    """Cov over items of log T of two models, Cov(T_m, T_m') / (T_m T_m') by the delta method.

    Dims (concept, model, model_other), NaN where either was not run.
    """
    effects = best_effects(cells, estimand)
    models = effects["model"].values
    covariance = cells["selected_covariance"].sel(
        estimand=estimand, model=models, model_other=models
    )
    return covariance / (effects * effects.rename(model="model_other"))


def relative_to_others(
    table: xr.DataArray, concept: str, level: float, covariance: xr.DataArray | None = None
) -> Estimate:
    r"""Ratio of one concept's values to the geometric mean of the same models' other concepts.

    exp of the mean over models of log x - mean log of the others. On the log the interval is
    $\pm \sqrt{t^2 s^2 / n + z^2 \max(0, \bar c)}$, $\bar c$ the mean over pairs of models of the
    error over items that they share: of the concept, and of the others' mean. Without the
    `covariance` of `relative_covariance` these items are held fixed.

    >>> table = xr.DataArray([[1.0, 2.0, 8.0]], dims=("model", "concept"),
    ...                      coords={"model": ["m"], "concept": ["a", "b", "c"]})
    >>> relative_to_others(table, "a", 0.95).value
    0.25
    """
    if (table <= 0).any():
        return Estimate.undefined("a ratio needs positive values of every concept")
    logs = table.copy(data=np.log(table.values))
    others = logs.drop_sel(concept=concept)
    apart = logs.sel(concept=concept) - others.mean("concept")
    kept = np.isfinite(apart.values)
    if not kept.any():
        return Estimate.undefined("no model ran this concept and another")
    found = _mean(apart.values[kept], level)
    shared = 0.0 if covariance is None else _shared(covariance, concept, kept)
    t_half, z = (found.high - found.low) / 2, stats.norm.ppf((1 + level) / 2)
    half = np.sqrt(t_half**2 + z**2 * shared)
    over = HELD if covariance is None else found.over
    return Estimate(
        float(np.exp(found.value)),
        low=float(np.exp(found.value - half)),
        high=float(np.exp(found.value + half)),
        over=over if found.over else "",
        n=found.n,
        reason=found.reason,
    )


def _shared(covariance: xr.DataArray, concept: str, kept: np.ndarray) -> float:
    """Mean over pairs of models of what they share of the error of log x - mean log of others.

    Concepts share no item, and the mean of C others has 1 / C^2 of the sum of their covariances.
    """
    models = np.flatnonzero(kept)
    if len(models) < 2:
        return 0.0
    between = covariance.isel(model=models, model_other=models)
    others = between.drop_sel(concept=concept)
    ran = others["concept"].size - others.isnull().sum("concept")
    total = between.sel(concept=concept) + others.sum("concept") / ran.clip(min=1) ** 2
    pairs = total.transpose("model", "model_other").values[~np.eye(len(models), dtype=bool)]
    return max(0.0, float(pairs.mean()))


def _mean(values: np.ndarray, level: float) -> Estimate:
    if not len(values):
        return Estimate.undefined("not known for these cells")
    return mean_of_models(values, level)


def at_best_layer(cells: xr.Dataset, name: str) -> xr.DataArray:
    """A property of the vector at each selected layer, dims (model, concept), swept models."""
    of = cells[name].sel(model=swept_models(cells)).transpose("model", "concept", "layer")
    chosen = cells["layer"] == cells["selected_layer"].sel(model=of["model"])
    return of.where(chosen).sum("layer", min_count=1).reset_coords(drop=True)


def extraction(cells: xr.Dataset) -> Rows:
    """Does what the extraction shows go with Cohen's d: over concepts, and over layers.

    Over concepts, Spearman's rho of the property and d at the selected layers, a model at a time,
    then their mean; `p_value` exchanges the concepts' properties, alike in all models, in every
    way. Over layers, Pearson's r of the two curves of a (model, concept), meaned over a model's
    concepts. Intervals are t over models.
    """
    d = best_effects(cells, "cohens_d")
    curves = cells["estimate"].sel(estimand="cohens_d", model=d["model"])
    for name in PROPERTIES:
        if name not in cells:
            missing = Estimate.undefined("these cells hold no properties of the vectors")
            yield {"property": name, "statistic": "rho over concepts"}, missing
            continue
        over_concepts = _rho_over_concepts(at_best_layer(cells, name), d, level_of(cells))
        yield {"property": name, "statistic": "rho over concepts"}, over_concepts
        properties = cells[name].sel(model=d["model"])
        over_layers = _r_over_layers(properties, curves, level_of(cells))
        yield {"property": name, "statistic": "r over layers"}, over_layers


def _rho_over_concepts(x: xr.DataArray, d: xr.DataArray, level: float) -> Estimate:
    pairs = [(x.sel(model=m).values, d.sel(model=m).values) for m in d["model"].values]
    told = [(a, b) for a, b in pairs if _varies(a, b)]
    if not told:
        return Estimate.undefined("needs a model with four concepts that differ in it")
    found = np.array([_spearman(a, b) for a, b in told])
    orders = _orders(d.sizes["concept"])
    exchanged = [abs(np.mean([_spearman(a[order], b) for a, b in told])) for order in orders]
    p = float(np.mean(np.array(exchanged) >= abs(found.mean()) - 1e-12))
    return mean_of_models(found, level, p_value=p)


def _orders(n: int) -> np.ndarray:
    """Ways to order n concepts, the one found among them, dims (order, concept)."""
    if factorial(n) <= MAX_ORDERS:
        return np.array(list(permutations(range(n))))
    drawn = stream("orders of concepts").permuted(
        np.tile(np.arange(n), (MAX_ORDERS - 1, 1)), axis=1
    )
    return np.vstack([np.arange(n), drawn])


def _varies(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether four places hold both, and neither is one value there: else r is not defined."""
    both = np.isfinite(a) & np.isfinite(b)
    return bool(both.sum() > 3 and min(np.ptp(a[both]), np.ptp(b[both])) > 0)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(stats.rankdata(a[both]), stats.rankdata(b[both]))[0, 1])


def _r_over_layers(x: xr.DataArray, d: xr.DataArray, level: float) -> Estimate:
    means = []
    for model in d["model"].values:
        rs = []
        for concept in d["concept"].values:
            a, b = (t.sel(model=model, concept=concept).values for t in (x, d))
            both = np.isfinite(a) & np.isfinite(b)
            if _varies(a, b):
                rs.append(np.corrcoef(a[both], b[both])[0, 1])
        if rs:
            means.append(np.mean(rs))
    return _mean(np.array(means), level)

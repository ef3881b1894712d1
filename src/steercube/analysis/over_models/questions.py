r"""The study's open questions: is a model odd, what makes a concept hard, what predicts steering.

`model_deviations` is the part of a model's effects that its label, size and concepts do not account
for in the hierarchical model. `difficulty` splits a concept's Cohen's d into the shift (nats) and
the spread of the items, d = delta / sd, to show which of them makes a small d. `extraction` is the
correlation of the effect with what is known when a vector is made: its norm and the coherence of
its pairs. None of them tests a cause: six concepts differ in more than is measured here. None
corrects for why a model or concept was picked: intervals of the lowest of several are too narrow.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from steercube.analysis.over_models.cell_effects import cell_effects, primary_terms, why_not
from steercube.analysis.over_models.means import mean_of_models
from steercube.analysis.over_models.permute import orders, two_sided_p
from steercube.analysis.over_models.posterior import fit
from steercube.analysis.view import Study
from steercube.estimate import Estimate, normal_quantile
from steercube.streams import stream

Rows = Iterator[tuple[dict[str, str], Estimate]]

COHERENCES = ("split_half_cosine", "pairwise_cosine")
PROPERTIES = ("vector_norm", "residual_norm", *COHERENCES, "added_over_residual")
"""Properties, known at extraction, of a vector or of the residual stream it is added to."""
HELD = "models, these items"
"""Said of intervals from the spread between models, without the error of shared items."""


def model_deviations(study: Study) -> list[dict[str, Any]]:
    """u of each model in the primary model of Cohen's d: its median, interval and P(u < 0).

    u is how far a model's effects are above or below those of models of its label and size, shrunk
    according to the spread of models. A model picked because it is the lowest must be compared with
    the lowest of as many: `smallest model mean` of `predictive_checks`.
    """
    effects = cell_effects(study, "cohens_d")
    if reason := why_not(effects, ()):
        return [{"model": "every model", "reason": reason}]
    posterior = fit(effects, terms=primary_terms(effects))
    rows = []
    for model, training in zip(
        effects.models, study.facts("training", effects.models), strict=True
    ):
        low, middle, high = posterior.interval(f"u of {model}", study.level)
        rows.append(
            {
                "model": model,
                "training": str(training),
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


def difficulty(study: Study) -> Rows:
    """What distinguishes each concept: ratios to a model's other concepts, and its own properties.

    Ratios of Cohen's d, delta and the items' sd, related by log d = log delta - log sd, come from
    the mean over models of the log minus the mean log of the model's other concepts; t over models,
    for d and delta with the error of the items that models share. `letter share` is
    |letter shift| / (|letter shift| + |content shift|).
    """
    delta, d = (study.best(name) for name in ("delta", "cohens_d"))
    ratios: dict[str, tuple[xr.DataArray, xr.DataArray | None]] = {
        "Cohen's d": (d, relative_covariance(study, "cohens_d")),
        "delta": (delta, relative_covariance(study, "delta")),
        "sd of items": (delta / d, None),
    }
    own = _properties_of_concepts(study)
    for concept in study.concepts:
        for name, (table, covariance) in ratios.items():
            labels = {"concept": concept, "statistic": f"{name}, relative to the others"}
            yield labels, relative_to_others(table, concept, study.level, covariance)
        for name, measured in own.items():
            labels = {"concept": concept, "statistic": name}
            if isinstance(measured, str):
                yield labels, Estimate.undefined(measured)
                continue
            values = measured.sel(concept=concept).values
            mean = _mean(values[np.isfinite(values)], study.level)
            yield labels, replace(mean, over=HELD) if mean.over else mean
        labels = {"concept": concept, "statistic": "share of invalid items"}
        yield labels, _invalid(study.cells, concept)


def _properties_of_concepts(study: Study) -> dict[str, xr.DataArray | str]:
    """Tables (model, concept) of properties of items and vectors, or why there is none."""
    letter, content = (abs(study.best(n)) for n in ("letter_shift", "content_shift"))
    reasons = [study.lacks(name) for name in ("letter_shift", "content_shift")]
    own: dict[str, xr.DataArray | str] = {
        LETTER_SHARE: next(filter(None, reasons), letter / (letter + content)),
        ANTI_STEERED: study.lacks("anti_steerable_share") or study.best("anti_steerable_share"),
    }
    return own | {
        f"{name.replace('_', ' ')} of the vector": at_best_layer(study, name)
        for name in COHERENCES
        if name in study.cells
    }


def _invalid(cells: xr.Dataset, concept: str) -> Estimate:
    n, valid = (int(cells[name].sel(concept=concept)) for name in ("n_items", "n_valid_items"))
    if not n:
        return Estimate.undefined("no item was swept")
    return Estimate(1 - valid / n, n=n, reason="a census of the items")


def relative_covariance(study: Study, estimand: str) -> xr.DataArray:
    """Cov over items of log T of two models, Cov(T_m, T_m') / (T_m T_m') by the delta method.

    Dims (concept, model, model_other), NaN where either was not run.
    """
    effects = study.best(estimand)
    models = effects["model"].values
    covariance = study.cells["selected_covariance"].sel(
        estimand=estimand, model=models, model_other=models
    )
    return covariance / (effects * effects.rename(model="model_other"))


def relative_to_others(
    table: xr.DataArray, concept: str, level: float, covariance: xr.DataArray | None = None
) -> Estimate:
    r"""Ratio of one concept's values to the geometric mean of the same models' other concepts.

    exp of the mean over models of log x - mean log of the others. On the log the interval is
    $\pm \sqrt{t^2 s^2 / n + z^2 \max(0, \bar c)}$, $\bar c$ the mean over pairs of models of their
    shared error over items, of the concept and of the others' mean. Without `covariance` (from
    `relative_covariance`) the items are held fixed.

    >>> table = xr.DataArray([[1.0, 2.0, 8.0]], dims=("model", "concept"),
    ...                      coords={"model": ["m"], "concept": ["a", "b", "c"]})
    >>> relative_to_others(table, "a", 0.95).value
    0.25
    """
    if (table <= 0).any():
        return Estimate.undefined("a ratio needs positive values of every concept")
    logs = table.copy(data=np.log(table.values))
    others = logs.drop_sel(concept=concept)
    difference = logs.sel(concept=concept) - others.mean("concept")
    kept = np.isfinite(difference.values)
    if not kept.any():
        return Estimate.undefined("no model ran this concept and another")
    mean = _mean(difference.values[kept], level)
    shared = 0.0 if covariance is None else _shared(covariance, concept, kept)
    t_half = (mean.high - mean.low) / 2
    over = HELD if covariance is None else mean.over
    return Estimate.around(
        mean.value,
        np.sqrt(t_half**2 + normal_quantile(level) ** 2 * shared),
        through=np.exp,
        over=over if mean.over else "",
        n=mean.n,
        reason=mean.reason,
    )


def _shared(covariance: xr.DataArray, concept: str, kept: np.ndarray) -> float:
    """Mean covariance of two models' errors of log x - mean log of others; at least 0.

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


def at_best_layer(study: Study, name: str) -> xr.DataArray:
    """A property of the vector at each selected layer, dims (model, concept), swept models."""
    cells = study.cells
    values = cells[name].sel(model=study.models).transpose("model", "concept", "layer")
    chosen = cells["layer"] == cells["selected_layer"].sel(model=values["model"])
    return values.where(chosen).sum("layer", min_count=1).reset_coords(drop=True)


def extraction(study: Study) -> Rows:
    """Correlation of properties known at extraction with Cohen's d, over concepts and over layers.

    Over concepts, Spearman's rho of the property and d at the selected layers in each model,
    averaged; `p_value` is over every order of the concepts' properties, one for all models. Over
    layers, Pearson's r of the two curves of a (model, concept), averaged over a model's concepts.
    Intervals are t over models.
    """
    d = study.best("cohens_d")
    curves = study.cells["estimate"].sel(estimand="cohens_d", model=d["model"])
    for name in PROPERTIES:
        labels = {"property": name}
        if name not in study.cells:
            missing = Estimate.undefined("these cells hold no properties of the vectors")
            yield labels | {"statistic": "rho over concepts"}, missing
            continue
        over_concepts = _rho_over_concepts(at_best_layer(study, name), d, study.level)
        yield labels | {"statistic": "rho over concepts"}, over_concepts
        properties = study.cells[name].sel(model=d["model"])
        over_layers = _r_over_layers(properties, curves, study.level)
        yield labels | {"statistic": "r over layers"}, over_layers


def _rho_over_concepts(x: xr.DataArray, d: xr.DataArray, level: float) -> Estimate:
    pairs = [(x.sel(model=m).values, d.sel(model=m).values) for m in d["model"].values]
    varying = [(a, b) for a, b in pairs if _varies(a, b)]
    if not varying:
        return Estimate.undefined("needs a model with four concepts that differ in it")
    rhos = np.array([_spearman(a, b) for a, b in varying])
    ways = orders(d.sizes["concept"], stream("orders of concepts"))
    exchanged = [np.mean([_spearman(a[order], b) for a, b in varying]) for order in ways]
    return mean_of_models(rhos, level, p_value=two_sided_p(np.array(exchanged)))


def _varies(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether at least four entries have both and neither is constant; else r is undefined."""
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

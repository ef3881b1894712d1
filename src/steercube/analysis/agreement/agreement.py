r"""Do logits and generated answers agree on which layers steer?

The published measure (`pooled_agreement`) pools the layers of all models into one correlation.
Neighbouring layers are nearly the same observation, so its n says nothing. Here the unit is a
model's pair of curves:

- `curve_agreement`, one model: r with its error over items where every answer is known, else over
  blocks of layers;
- `model_agreement`, all models: Fisher's z pooled with random effects, interval by Hartung & Knapp;
  `agreement_by_blocks`: models and blocks of their layers resampled;
- `shift_test`: is the alignment more than two smooth curves have by chance?
- `matched_minus_mismatched`: is it about this concept, or would another's logits do as well?
- `disattenuated`: what r would be without the noise of either curve;
- `agreement_against_effect`, `agreement_effect_correlation`: does agreement rise with the effect?
"""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import permutations
from math import factorial

import numpy as np
import pandas as pd
import xarray as xr
from statsmodels.stats.meta_analysis import combine_effects

from steercube.analysis.agreement.curves import (
    block_resamples,
    circular_shift_p,
    correlation,
    fisher_z,
    n_blocks,
    scaled,
    second_difference_reliability,
)
from steercube.analysis.agreement.generation import (
    MIN_ITEMS,
    Curves,
    generation_delta,
    has_other_responses,
    is_counted,
    layer_curves,
    shaped_curves,
)
from steercube.analysis.over_models.means import (
    ONE_MODEL,
    best_effects,
    level_of,
    mean_of_models,
    t_margin,
    t_quantile,
    where_recorded,
)
from steercube.estimate import Estimate
from steercube.streams import stream

MEAN_R = "mean r of models"
MISMATCHED = "matched minus mismatched r"
"""Statistics as the table of agreement names them."""

N_RESAMPLES = 4_000
"""Resamples of models, layers and shifts; the error of an end of an interval is then about 1%."""
MIN_RELIABILITY = 0.05
MAX_ORDERS = 5040
"""Orders of concepts that are tried: all of up to seven."""
MIN_Z_ERROR = 0.01
"""Curves that are alike in every resample would weigh infinitely."""
WITHOUT_INTERVAL = "a reliability is given without an interval"
NO_CURVES = "no model has varying logits and generations here"


def pooled_agreement(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Pearson r of the scaled curves, the layers of all models pooled: the published measure.

    The interval is not that of r with n layers, which are autocorrelated: it is the jackknife's,
    each model left out in turn, on Fisher's z with Student's t over models.
    """
    curves = shaped_curves(cells, concept=concept, models=models)
    if not curves:
        return Estimate.undefined(NO_CURVES)
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


def curve_agreement(cells: xr.Dataset, *, concept: str, model: str) -> Estimate:
    """Pearson r of one model's two curves over its layers.

    Where every answer is in the cube, over the items that have one, and the interval is over those
    items, drawn alike for both curves (for r as measured: see `disattenuated`). Else it is over
    blocks of layers: z plus and minus t times the error of z in resamples of `block_resamples`,
    with as many degrees of freedom as there are blocks, less one.
    """
    if is_counted(cells, model, concept):
        return response_agreement(cells, concept=concept, model=model)
    curves = shaped_curves(cells, concept=concept, models=[model])
    if model not in curves:
        return Estimate.undefined(NO_CURVES)
    return _agreement_over_blocks(cells, concept, model, curves[model])


def _agreement_over_blocks(
    cells: xr.Dataset, concept: str, model: str, pair: tuple[np.ndarray, np.ndarray]
) -> Estimate:
    z = float(fisher_z(correlation(*pair)))
    blocks = n_blocks(len(pair[0]))
    z_error = _block_z(cells, concept, model, pair).std(ddof=1)
    margin = t_quantile(level_of(cells), blocks - 1) * z_error
    return Estimate(
        float(np.tanh(z)),
        low=float(np.tanh(z - margin)),
        high=float(np.tanh(z + margin)),
        over="blocks of layers",
        n=blocks,
    )


def response_agreement(cells: xr.Dataset, *, concept: str, model: str) -> Estimate:
    """r of the logit curve with the curve counted from the responses, its interval over items."""
    at = {"model": model, "concept": concept}
    unknown = _why_no_items(cells, concept=concept, model=model)
    if unknown or cells["response_r"].sel(at).isnull():
        return Estimate.undefined(unknown or "a curve is flat")
    low = float(cells["response_r_low"].sel(at))
    return Estimate(
        float(cells["response_r"].sel(at)),
        low=low,
        high=float(cells["response_r_high"].sel(at)),
        over="items",
        n=int(cells["n_response_items"].sel(at)),
        reason="" if np.isfinite(low) else "a curve is flat in too many resamples of the items",
    )


def _why_no_items(cells: xr.Dataset, *, concept: str, model: str) -> str:
    """Why nothing is known of single items here; empty where it is."""
    if "n_response_items" not in cells:
        return "the answers of single items are not known"
    n_items = float(cells["n_response_items"].sel(model=model, concept=concept))
    if np.isnan(n_items):
        return "the answers of single items are not known"
    return f"{n_items:.0f} items are too few" if n_items < MIN_ITEMS else ""


def _block_z(
    cells: xr.Dataset, concept: str, model: str, pair: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Fisher's z of the curves in resampled blocks of layers, alike whichever others are there."""
    rng = stream(f"blocks of {model}/{concept}", seed=cells.attrs["seed"])
    layers = block_resamples(len(pair[0]), N_RESAMPLES, rng)
    star = fisher_z(correlation(pair[0][layers], pair[1][layers]))
    return star[np.isfinite(star)]


def _z_of_models(
    cells: xr.Dataset, concept: str, models: Sequence[str] | None, every_response: bool = False
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Models, Fisher's z of each, and its error within the model."""
    names, z, error = [], [], []
    for model, pair in shaped_curves(cells, concept=concept, models=models).items():
        at = {"model": model, "concept": concept}
        from_items = is_counted(cells, model, concept)
        if from_items or (every_response and has_other_responses(cells, model, concept)):
            own = float(fisher_z(cells["response_r"].sel(at).values))
            own_error = float(cells["response_z_error"].sel(at))
        else:
            own = float(fisher_z(correlation(*pair)))
            own_error = float(_block_z(cells, concept, model, pair).std(ddof=1))
        if np.isfinite([own, own_error]).all():
            names.append(model)
            z.append(own)
            error.append(max(own_error, MIN_Z_ERROR))
    return names, np.array(z), np.array(error)


def model_agreement(
    cells: xr.Dataset,
    *,
    concept: str,
    models: Sequence[str] | None = None,
    every_response: bool = False,
) -> Estimate:
    r"""Correlation of the two curves in a model of this kind: Fisher's z with random effects.

    $z_m = \zeta + u_m + e_m$, the error of $e_m$ over items or blocks of layers, the variance of
    $u_m$ by Paule & Mandel; the interval is Hartung & Knapp's, t with n_models - 1 degrees of
    freedom, never narrower than without their factor (Röver et al. 2015). One model has the
    interval of `curve_agreement`, about itself alone. With `every_response` a model's responses
    stand in for a published rate of fewer.
    """
    curves = shaped_curves(cells, concept=concept, models=models)
    if not curves:
        return Estimate.undefined(NO_CURVES)
    if len(curves) == 1:
        return curve_agreement(cells, concept=concept, model=next(iter(curves)))
    names, z, error = _z_of_models(cells, concept, models, every_response)
    if len(z) < 2:
        return Estimate.undefined("the error of r is known for fewer than two models")
    pooled = combine_effects(z, error**2, method_re="iterated", use_t=True)
    mean = float(pooled.mean_effect_re)
    widened = max(1.0, float(pooled.scale_hksj_re))
    margin = t_quantile(level_of(cells), len(z) - 1) * float(pooled.sd_eff_w_re) * widened**0.5
    r = np.tanh(z)
    return Estimate(
        float(np.tanh(mean)),
        low=float(np.tanh(mean - margin)),
        high=float(np.tanh(mean + margin)),
        over="models",
        n=len(z),
        span=(float(r.min()), float(r.max())),
        reason=_without(sorted(set(curves) - set(names))),
    )


def _without(names: Sequence[str]) -> str:
    return f"without {', '.join(names)}, whose error of r is not known" if names else ""


def agreement_by_blocks(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    r"""Mean r of models (through z), models and blocks of their layers drawn with replacement.

    $\bar z \pm t\, s^* \sqrt{n / (n - 1)}$, t with n_models - 1 degrees of freedom: the sd s* of
    resamples of n models is too small by that factor, and its quantiles are those of a normal.
    """
    curves = shaped_curves(cells, concept=concept, models=models)
    n = len(curves)
    if n < 2:
        return Estimate.undefined(ONE_MODEL if curves else NO_CURVES)
    z = np.array([float(fisher_z(correlation(*pair))) for pair in curves.values()])
    rng = stream(f"models and blocks of {concept}", seed=cells.attrs["seed"])
    stars = np.stack(
        [rng.choice(_block_z(cells, concept, m, pair), N_RESAMPLES) for m, pair in curves.items()]
    )
    drawn = rng.integers(0, n, (n, N_RESAMPLES))
    mean = stars[drawn, np.arange(N_RESAMPLES)].mean(axis=0)
    margin = t_quantile(level_of(cells), n - 1) * mean.std(ddof=1) * np.sqrt(n / (n - 1))
    return Estimate(
        float(np.tanh(z.mean())),
        low=float(np.tanh(z.mean() - margin)),
        high=float(np.tanh(z.mean() + margin)),
        over="models and blocks of layers",
        n=n,
    )


def shift_test(
    cells: xr.Dataset,
    *,
    concept: str,
    models: Sequence[str] | None = None,
    every_response: bool = False,
) -> Estimate:
    """Unweighted mean r of these models (through z), and its p against circular shifts.

    Two-sided, by `circular_shift_p`. Small too where both curves only share their place in the
    network: see `matched_minus_mismatched`. With `every_response` of the responses' curves.
    """
    rate = "response_match_rate" if every_response else "generation_rate"
    curves = shaped_curves(cells, concept=concept, models=models, rate=rate)
    if not curves:
        return Estimate.undefined(NO_CURVES)
    rng = stream(f"shifts of {concept}", seed=cells.attrs["seed"])
    z = [float(fisher_z(correlation(*pair))) for pair in curves.values()]
    n_layers = min(len(logit) for logit, _ in curves.values())
    smallest = 1 / n_layers if len(curves) == 1 else 1 / (1 + N_RESAMPLES)
    return Estimate(
        float(np.tanh(np.mean(z))),
        n=len(curves),
        p_value=circular_shift_p(list(curves.values()), N_RESAMPLES, rng),
        reason=f"a p of these curves, at least {smallest:.2g}; a place in depth that both share "
        "makes it small too",
    )


def correlations(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> dict[str, float]:
    """Pearson r of the two layer curves, by model."""
    curves = shaped_curves(cells, concept=concept, models=models)
    return {model: float(correlation(*pair)) for model, pair in curves.items()}


def matched_minus_mismatched(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """r of a concept's generation curve with its own logits, minus its mean r with others' logits.

    Within each model, over the layers that both concepts have; then a t interval over models. What
    every concept's curves share (where in the network anything steers) cancels.
    """
    differences = []
    curves = shaped_curves(cells, concept=concept, models=models)
    for model, (logit, generation) in curves.items():
        of_model = cells.sel(model=model)
        delta = of_model["estimate"].sel(estimand="delta").transpose("concept", "layer")
        own = np.isfinite(generation_delta(of_model).sel(concept=concept).values)
        own &= np.isfinite(delta.sel(concept=concept).values)
        r = {
            str(other): float(correlation(values[own], generation))
            for other, values in zip(delta["concept"].values, delta.values, strict=True)
            if np.isfinite(values[own]).all() and other != concept
        }
        matched = float(correlation(logit, generation))
        if r and np.isfinite([matched, *r.values()]).all():
            differences.append(matched - np.mean(list(r.values())))
    if not differences:
        return Estimate.undefined("no model has another concept's logits at these layers")
    return mean_of_models(np.array(differences), level_of(cells))


def reliabilities(cells: xr.Dataset, *, concept: str, model: str) -> dict[str, Estimate]:
    """Of the logit curve and of the generation curve: the share of their variance that repeats.

    Split-half over items where a curve's items are known, else from second differences over layers;
    `over` says which.
    """
    at = {"model": model, "concept": concept}
    pair = shaped_curves(cells, concept=concept, models=[model]).get(model)
    if pair is None:
        return {name: Estimate.undefined(NO_CURVES) for name in ("logit", "generation")}
    of_items = {"logit": "logit_reliability"}
    if is_counted(cells, model, concept):
        of_items["generation"] = "response_reliability"
    return {
        name: _split_half(cells, of_items[name], at)
        if name in of_items
        else Estimate(
            second_difference_reliability(curve),
            over="second differences",
            n=len(curve),
            reason=WITHOUT_INTERVAL,
        )
        for name, curve in zip(("logit", "generation"), pair, strict=True)
    }


def response_reliability(cells: xr.Dataset, *, concept: str, model: str) -> Estimate:
    """Split-half reliability of the curve counted from the responses."""
    return _split_half(cells, "response_reliability", {"model": model, "concept": concept})


def _split_half(cells: xr.Dataset, name: str, at: dict[str, str]) -> Estimate:
    value = float(cells[name].sel(at)) if name in cells else np.nan
    if np.isnan(value):
        return Estimate.undefined("a half of the items has a flat curve, or the items are too few")
    answered = float(cells["n_response_items"].sel(at))
    n_items = cells["n_items"].sel(concept=at["concept"]) if np.isnan(answered) else answered
    nothing = "" if value > 0 else "halves of the items do not agree; "
    reason = f"{nothing}{WITHOUT_INTERVAL}"
    return Estimate(value, over="items (split-half)", n=int(n_items), reason=reason)


def disattenuated(
    cells: xr.Dataset, *, concept: str, model: str, every_response: bool = False
) -> Estimate:
    r"""r of the two curves without the noise of either.

    Where every answer is in the cube (or with `every_response`, of the responses beside published
    rates) by `responses.agreement_over_items`. Else $r / \sqrt{\rho_x \rho_y}$ (Spearman 1904), the
    ends of r's interval divided alike, taking the reliabilities for known, and cut to [-1, 1]; the
    value is not cut, so that one beyond 1 shows a reliability that is too small.
    """
    if every_response or is_counted(cells, model, concept):
        unknown = _why_no_items(cells, concept=concept, model=model)
        if unknown:
            return Estimate.undefined(unknown)
        at = {"model": model, "concept": concept}
        value, low, high = (
            float(cells[f"noise_free_r{end}"].sel(at)) for end in ("", "_low", "_high")
        )
        n_items = int(cells["n_response_items"].sel(at))
        shapeless = "" if np.isfinite([low, value]).all() else "too little shape beyond noise"
        return Estimate(value, low=low, high=high, over="items", n=n_items, reason=shapeless)
    own = curve_agreement(cells, concept=concept, model=model)
    reliable = [e.value for e in reliabilities(cells, concept=concept, model=model).values()]
    if not np.isfinite([own.value, *reliable]).all():
        return Estimate.undefined(own.reason or "a reliability is not known")
    if min(reliable) <= MIN_RELIABILITY:
        return Estimate.undefined(
            f"a curve's reliability is {min(reliable):.2f}: nothing of it repeats, so nothing can "
            "be divided by it"
        )
    share = float(np.sqrt(reliable[0] * reliable[1]))
    low, high = np.clip([own.low / share, own.high / share], -1, 1)
    return Estimate(
        own.value / share,
        low=float(low),
        high=float(high),
        over=own.over,
        n=own.n,
        reason="the reliabilities are taken for known, so the interval is too narrow",
    )


def published_against_responses(cells: xr.Dataset, *, concept: str, model: str) -> Estimate:
    """r of the published generation curve with that counted from the responses, over layers."""
    published, counted = (
        layer_curves(cells, concept=concept, models=[model], rate=rate).get(model)
        for rate in ("generation_rate", "response_match_rate")
    )
    if published is None or counted is None or is_counted(cells, model, concept):
        return Estimate.undefined("this concept has no published rates beside its responses")
    at = {"model": model, "concept": concept}
    rates = ("generation_rate", "response_match_rate")
    both = cells[list(rates)].sel(at)
    pair = [generation_delta(both, rate).values for rate in rates]
    known = np.isfinite(pair).all(axis=0)
    curves = (pair[0][known], pair[1][known])
    return _agreement_over_blocks(cells, f"{concept} twice", model, curves)


def published_reading_agreement(cells: xr.Dataset, *, concept: str, model: str) -> Estimate:
    """r of the logit curve with that of the responses as the study read them, over blocks."""
    rate = "published_response_match_rate"
    curves = layer_curves(cells, concept=concept, models=[model], rate=rate)
    if model not in curves:
        return Estimate.undefined("no other reading of these responses was published")
    return _agreement_over_blocks(cells, f"{concept} as published", model, curves[model])


def repeated_measures(
    cells: xr.Dataset, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Repeated-measures correlation over layers within models, by pingouin: a cross-check.

    It takes the layers for independent, so its interval and p are far too good. Source: Bakdash &
    Marusich 2017.
    """
    if find_spec("pingouin") is None:
        return Estimate.undefined("pingouin is not installed (the extra `stats` brings it)")
    curves = shaped_curves(cells, concept=concept, models=models)
    if len(curves) < 3:
        return Estimate.undefined("pingouin's rm_corr needs three models" if curves else NO_CURVES)
    import pingouin

    rows = pd.concat(
        pd.DataFrame({"model": model, "logit": logit, "generation": generation})
        for model, (logit, generation) in curves.items()
    )
    with warnings.catch_warnings():
        # What pingouin's own code is told by a newer pandas.
        warnings.simplefilter("ignore")
        found = pingouin.rm_corr(rows, x="logit", y="generation", subject="model").iloc[0]
    # Releases of pingouin differ in how they spell CI95% and p-val, but not in their order.
    r, _, p_value, (low, high), _ = found
    return Estimate(
        float(r),
        low=float(low),
        high=float(high),
        over="layers, taken as independent",
        n=len(rows),
        p_value=float(p_value),
        reason="neighbouring layers are not independent; a cross-check of r alone",
    )


@where_recorded
def agreement_against_effect(
    cells: xr.Dataset,
    *,
    estimand: str,
    concepts: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
) -> Estimate:
    """Does agreement rise with the effect? Slope of r on the effect over a model's concepts.

    One least-squares slope a model (change of r per unit of effect), averaged, t over models: these
    concepts are held fixed, and the interval says nothing of others. `p_value` does: it exchanges
    the concepts' effects, alike in all models, in every way, or beyond seven concepts in 5,040
    ways at random (two-sided). Three concepts have six orders, so that it cannot be below 1/6.
    """
    table = _agreement_and_effect(cells, estimand, concepts, models)
    effect, r = (
        table.pivot(index="model", columns="concept", values=name).to_numpy()
        for name in ("effect", "r")
    )
    slopes = _slopes(effect, r)
    if len(slopes) < 2:
        return Estimate.undefined("needs two models with three concepts in both measures")
    rng = stream(f"orders of concepts by {estimand}", seed=cells.attrs["seed"])
    orders = orders_of(effect.shape[1], rng)
    exchanged = [abs(_slopes(effect[:, order], r).mean()) for order in orders]
    return mean_of_models(
        slopes,
        level_of(cells),
        over="models, these concepts",
        p_value=float(np.mean(np.array(exchanged) >= abs(slopes.mean()) - 1e-12)),
    )


def orders_of(n: int, rng: np.random.Generator) -> np.ndarray:
    """Every order of `n` things, dims (order, thing); beyond MAX_ORDERS, so many at random.

    The order as given is among them, so that a p-value from them is never 0.
    """
    if factorial(n) <= MAX_ORDERS:
        return np.array(list(permutations(range(n))))
    at_random = rng.permuted(np.tile(np.arange(n), (MAX_ORDERS - 1, 1)), axis=1)
    return np.vstack([np.arange(n), at_random])


def _slopes(effect: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Least-squares slope of r on the effect (model, concept) of each model with three of both."""
    found = []
    for x, y in zip(effect, r, strict=True):
        both = np.isfinite(x) & np.isfinite(y)
        if both.sum() > 2:
            found.append(float(np.polyfit(x[both], y[both], 1)[0]))
    return np.array(found)


@where_recorded
def agreement_effect_correlation(
    cells: xr.Dataset,
    *,
    estimand: str,
    concepts: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
) -> Estimate:
    """Correlation of r with the effect over (model, concept).

    Models and concepts are both drawn with replacement, because the pairs of one concept, or of one
    model, are no independent observations (Owen 2007, the pigeonhole bootstrap). There is no
    interval where more than half of the draws have no correlation.
    """
    table = _agreement_and_effect(cells, estimand, concepts, models)
    wide = {
        name: table.pivot_table(index="model", columns="concept", values=name).to_numpy()
        for name in ("effect", "r")
    }
    if len(table) < 4:
        return Estimate.undefined("needs four pairs of model and concept in both measures")
    value = float(correlation(table["effect"].to_numpy(), table["r"].to_numpy()))
    rng = stream(f"agreement and {estimand}", seed=cells.attrs["seed"])
    n_models, n_concepts = wide["r"].shape
    drawn = []
    for _ in range(N_RESAMPLES // 2):
        rows = rng.integers(0, n_models, n_models)
        columns = rng.integers(0, n_concepts, n_concepts)
        effect, r = (wide[name][np.ix_(rows, columns)].ravel() for name in ("effect", "r"))
        known = np.isfinite(effect) & np.isfinite(r)
        drawn.append(float(correlation(effect[known], r[known])) if known.sum() > 2 else np.nan)
    star = np.array(drawn)[np.isfinite(drawn)]
    if len(star) < len(drawn) / 2:
        return Estimate(value, n=len(table), reason="too few models and concepts to draw from")
    tail = (1 - level_of(cells)) / 2
    low, high = np.quantile(star, [tail, 1 - tail])
    over = [name for name, n in {"models": n_models, "concepts": n_concepts}.items() if n > 1]
    return Estimate(value, low=float(low), high=float(high), over=" and ".join(over), n=len(table))


def _agreement_and_effect(
    cells: xr.Dataset,
    estimand: str,
    concepts: Sequence[str] | None,
    models: Sequence[str] | None,
) -> pd.DataFrame:
    """Columns model, concept, effect (best layer) and r, a row a (model, concept) with both."""
    effects = best_effects(cells, estimand, concepts=concepts)
    rows = []
    for concept in map(str, effects["concept"].values):
        for model, r in correlations(cells, concept=concept, models=models).items():
            if model in effects["model"].values:
                effect = float(effects.sel(model=model, concept=concept))
                rows.append({"model": model, "concept": concept, "effect": effect, "r": r})
    table = pd.DataFrame(rows, columns=["model", "concept", "effect", "r"])
    return table[np.isfinite(table["effect"].astype(float))]

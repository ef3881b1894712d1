r"""Do logits and generated answers agree on which layers steer?

The published measure (`pooled_agreement`) pools the layers of all models into one correlation.
Neighbouring layers are nearly the same observation, so its n is meaningless. Here the unit is a
model's pair of curves:

- `curve_agreement`, one model: r with its error over items where every answer is known, else over
  blocks of layers;
- `model_agreement`, all models: Fisher's z pooled with random effects, interval by Hartung & Knapp;
  `agreement_by_blocks`: models and blocks of their layers resampled;
- `shift_test`: is the alignment more than two smooth curves have by chance?
- `matched_minus_mismatched`: is it specific to this concept, or would another's logits do?
- `item_agreement`, `mean_item_agreement`: does the item whose logits move change its answer?
- `disattenuated`: what r would be without the noise of either curve;
- `agreement_over_concepts`, `agreement_against_effect`, `agreement_effect_correlation`: does
  agreement rise with the effect?
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
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
    ONE_MAXIMUM,
    Curves,
    best_generation,
    best_generation_excess,
    best_generation_layer,
    best_response,
    best_response_excess,
    expected_maximum,
    generation_delta,
    has_other_responses,
    is_counted,
    layer_curves,
    of_pair,
    shaped_curves,
    validity_at_best,
)
from steercube.analysis.over_models.means import ONE_MODEL, mean_of_models
from steercube.analysis.over_models.permute import orders, two_sided_p
from steercube.analysis.view import Study, kept, where_recorded
from steercube.contract import MIN_ITEMS
from steercube.estimate import Estimate, Student, percentile_ends, t_quantile

MEAN_R = "mean r of models"
MISMATCHED = "matched minus mismatched r"
PUBLISHED_METHOD = "r, layers of all models pooled (published method)"
R_OVER_LAYERS = "r over layers"
SHIFTS = "r against circular shifts"
R_EVERY_RESPONSE = "r over layers, every response"
FEW_CHANGE = "too few items change their answer"
ITEM_R, MEAN_ITEM_R = "r over items", "mean r over items"
VALIDITY = "change of valid answers at the best generation layer"
EXCESS = "best generation delta less its null"
"""Names of statistics in the table of agreement."""

N_RESAMPLES = 4_000
"""Resamples of models, layers and shifts; the error of an end of an interval is then about 1%."""
MIN_RELIABILITY = 0.05
MIN_Z_ERROR = 0.01
"""Smallest error of z allowed: a model whose resamples all agree would outweigh the others."""
WITHOUT_INTERVAL = "a reliability is given without an interval"
NO_CURVES = "no model has varying logits and generations here"


def pooled_agreement(
    study: Study, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Pearson r of the scaled curves, the layers of all models pooled: the published measure.

    The interval is not that of r with n layers, which are autocorrelated: it is the jackknife's,
    each model left out in turn, on Fisher's z with Student's t over models.
    """
    curves = shaped_curves(study, concept=concept, models=models)
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
    known = Student(float(pseudo.mean()), float(pseudo.std(ddof=1) / np.sqrt(n)), n - 1, np.tanh)
    return Estimate.of(known, study.level, value=r, over="models", n=n)


def _rows_of_each(curves: Curves) -> list[np.ndarray]:
    """Indices of each model's layers among the pooled ones."""
    ends = np.cumsum([len(logit) for logit, _ in curves.values()])
    return np.split(np.arange(ends[-1]), ends[:-1])


def curve_agreement(study: Study, *, concept: str, model: str) -> Estimate:
    """Pearson r of one model's two curves over its layers.

    If the cube holds every answer, r and its interval are over the items that have one, with the
    same resamples for both curves (r as measured: see `disattenuated`). Otherwise the interval is
    over blocks of layers: z plus and minus t times the sd of z over `block_resamples`, with
    n_blocks - 1 degrees of freedom.
    """
    if is_counted(study, model, concept):
        return response_agreement(study, concept=concept, model=model)
    curves = shaped_curves(study, concept=concept, models=[model])
    if model not in curves:
        return Estimate.undefined(NO_CURVES)
    return _agreement_over_blocks(study, concept, model, curves[model])


def _agreement_over_blocks(
    study: Study, concept: str, model: str, pair: tuple[np.ndarray, np.ndarray]
) -> Estimate:
    blocks = n_blocks(len(pair[0]))
    z_error = _block_z(study, concept, model, pair).std(ddof=1)
    known = Student(float(fisher_z(correlation(*pair))), float(z_error), blocks - 1, np.tanh)
    return Estimate.of(known, study.level, over="blocks of layers", n=blocks)


def response_agreement(study: Study, *, concept: str, model: str) -> Estimate:
    """r of the logit curve with the curve counted from the responses, its interval over items."""
    r, low, high, n_items = (
        of_pair(study, name, model, concept)
        for name in ("response_r", "response_r_low", "response_r_high", "n_response_items")
    )
    unknown = _why_no_items(n_items)
    if unknown or np.isnan(r):
        return Estimate.undefined(unknown or "a curve is flat")
    flat = "" if np.isfinite(low) else "a curve is flat in too many resamples of the items"
    z_error = of_pair(study, "response_z_error", model, concept)
    known = (
        None if flat else Student(float(fisher_z(np.array(r))), z_error, int(n_items) - 1, np.tanh)
    )
    return Estimate(r, low=low, high=high, over="items", n=int(n_items), known=known, reason=flat)


def _why_no_items(n_items: float) -> str:
    """Why there are no item-level statistics here; empty if there are."""
    if np.isnan(n_items):
        return "the answers of single items are not known"
    return f"{n_items:.0f} items are too few" if n_items < MIN_ITEMS else ""


def _block_z(
    study: Study, concept: str, model: str, pair: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Fisher's z in resampled blocks of layers, the same whichever other models are compared."""
    rng = study.stream(f"blocks of {model}/{concept}")
    layers = block_resamples(len(pair[0]), N_RESAMPLES, rng)
    star = fisher_z(correlation(pair[0][layers], pair[1][layers]))
    return star[np.isfinite(star)]


def _z_of_models(
    study: Study, concept: str, curves: Curves, every_response: bool
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Models, Fisher's z of each, and its error within the model."""
    names, z, error = [], [], []
    for model, pair in curves.items():
        from_items = is_counted(study, model, concept)
        if from_items or (every_response and has_other_responses(study, model, concept)):
            own = float(fisher_z(np.array(of_pair(study, "response_r", model, concept))))
            own_error = of_pair(study, "response_z_error", model, concept)
        else:
            own = float(fisher_z(correlation(*pair)))
            own_error = float(_block_z(study, concept, model, pair).std(ddof=1))
        if np.isfinite([own, own_error]).all():
            names.append(model)
            z.append(own)
            error.append(max(own_error, MIN_Z_ERROR))
    return names, np.array(z), np.array(error)


@kept
def model_agreement(
    study: Study,
    *,
    concept: str,
    models: Sequence[str] | None = None,
    every_response: bool = False,
) -> Estimate:
    r"""Correlation of the two curves over models: Fisher's z pooled with random effects.

    $z_m = \zeta + u_m + e_m$, the error of $e_m$ over items or blocks of layers, the variance of
    $u_m$ by Paule & Mandel; the interval is Hartung & Knapp's, t with n_models - 1 degrees of
    freedom, never narrower than without their factor (Röver et al. 2015). One model has the
    interval of `curve_agreement`, about itself alone. With `every_response` rates counted from a
    model's responses replace published rates from fewer.
    """
    curves = shaped_curves(study, concept=concept, models=models)
    if not curves:
        return Estimate.undefined(NO_CURVES)
    if len(curves) == 1:
        return curve_agreement(study, concept=concept, model=next(iter(curves)))
    names, z, error = _z_of_models(study, concept, curves, every_response)
    if len(z) < 2:
        return Estimate.undefined("the error of r is known for fewer than two models")
    lost = sorted(set(curves) - set(names))
    reason = f"without {', '.join(lost)}, whose error of r is not known" if lost else ""
    return _pooled(z, error, study.level, reason=reason)


def _pooled(z: np.ndarray, error: np.ndarray, level: float, **fields: Any) -> Estimate:
    """Fisher's z of models (model,) pooled with random effects, as `model_agreement` says."""
    pooled = combine_effects(z, error**2, method_re="iterated", use_t=True)
    knapp_factor = max(1.0, float(pooled.scale_hksj_re))
    scale = float(pooled.sd_eff_w_re) * knapp_factor**0.5
    r = np.tanh(z)
    student = Student(float(pooled.mean_effect_re), scale, len(z) - 1, np.tanh)
    span = (float(r.min()), float(r.max()))
    return Estimate.of(student, level, over="models", n=len(z), span=span, **fields)


def agreement_by_blocks(
    study: Study, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    r"""Mean r of models (through z), with models and blocks of their layers resampled.

    $\bar z \pm t\, s^* \sqrt{n / (n - 1)}$, t with n_models - 1 degrees of freedom: the sd s* of
    resamples of n models is too small by that factor, and their quantiles are a normal's, not t's.
    """
    curves = shaped_curves(study, concept=concept, models=models)
    n = len(curves)
    if n < 2:
        return Estimate.undefined(ONE_MODEL if curves else NO_CURVES)
    z = np.array([float(fisher_z(correlation(*pair))) for pair in curves.values()])
    rng = study.stream(f"models and blocks of {concept}")
    stars = np.stack(
        [rng.choice(_block_z(study, concept, m, pair), N_RESAMPLES) for m, pair in curves.items()]
    )
    drawn = rng.integers(0, n, (n, N_RESAMPLES))
    mean = stars[drawn, np.arange(N_RESAMPLES)].mean(axis=0)
    half = t_quantile(study.level, n - 1) * mean.std(ddof=1) * np.sqrt(n / (n - 1))
    over = "models and blocks of layers"
    return Estimate.around(z.mean(), half, through=np.tanh, over=over, n=n)


def shift_test(
    study: Study,
    *,
    concept: str,
    models: Sequence[str] | None = None,
    every_response: bool = False,
) -> Estimate:
    """Unweighted mean r of these models (through z), and its p against circular shifts.

    The p is two-sided, by `circular_shift_p`, and also small if both curves only share their place
    in the network: see `matched_minus_mismatched`. `every_response` takes counted rates only.
    """
    rate = "response_match_rate" if every_response else "generation_rate"
    curves = shaped_curves(study, concept=concept, models=models, rate=rate)
    if not curves:
        return Estimate.undefined(NO_CURVES)
    rng = study.stream(f"shifts of {concept}")
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


def item_agreement(study: Study, *, concept: str, model: str) -> Estimate:
    r"""Does the item whose logits move change its answer? r over items at the logits' best layer.

    Pearson's r, within letters, of an item's shift with the change of its answer; the interval is
    Student's t on Fisher's z with the error $1 / \sqrt{n - 4}$. See
    `steercube.analysis.per_cell.responses`.
    """
    r, n_items = (of_pair(study, name, model, concept) for name in ("item_r", "n_items_both"))
    if np.isnan(n_items):
        return Estimate.undefined("the answers of single items are not known")
    if np.isnan(r):
        return Estimate(np.nan, n=int(n_items), reason=FEW_CHANGE)
    known = Student(float(fisher_z(np.array(r))), _item_error(n_items), int(n_items) - 1, np.tanh)
    return Estimate.of(known, study.level, value=r, over="items", n=int(n_items))


def _item_error(n_items: float) -> float:
    return float(1 / np.sqrt(n_items - 4))


def mean_item_agreement(
    study: Study, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Mean over models of `item_agreement`, pooled as `model_agreement` pools r over layers."""
    names = [str(m) for m in study.cells["model"].values if models is None or m in models]
    r = {m: of_pair(study, "item_r", m, concept) for m in names}
    known = [m for m in names if np.isfinite(r[m])]
    if len(known) < 2:
        return Estimate.undefined("fewer than two models have r over items")
    error = [_item_error(of_pair(study, "n_items_both", m, concept)) for m in known]
    z = fisher_z(np.array([r[m] for m in known]))
    return _pooled(z, np.array(error), study.level)


def correlations(
    study: Study, *, concept: str, models: Sequence[str] | None = None
) -> dict[str, float]:
    """Pearson r of the two layer curves, by model."""
    curves = shaped_curves(study, concept=concept, models=models)
    return {model: float(correlation(*pair)) for model, pair in curves.items()}


def matched_minus_mismatched(
    study: Study, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """r of a concept's generation curve with its own logits, minus its mean r with others' logits.

    Within each model, over the layers that both concepts have; then a t interval over models. What
    every concept's curves share (where in the network anything steers) cancels.
    """
    differences = []
    curves = shaped_curves(study, concept=concept, models=models)
    for model, (logit, generation) in curves.items():
        of_model = study.cells.sel(model=model)
        delta = of_model["estimate"].sel(estimand="delta").transpose("concept", "layer")
        own = np.isfinite(generation_delta(of_model).sel(concept=concept).values)
        own &= np.isfinite(delta.sel(concept=concept).values)
        r = [
            float(correlation(values[own], generation))
            for other, values in zip(delta["concept"].values, delta.values, strict=True)
            if np.isfinite(values[own]).all() and other != concept
        ]
        matched = float(correlation(logit, generation))
        if r and np.isfinite([matched, *r]).all():
            differences.append(matched - np.mean(r))
    if not differences:
        return Estimate.undefined("no model has another concept's logits at these layers")
    return mean_of_models(np.array(differences), study.level)


def reliabilities(study: Study, *, concept: str, model: str) -> dict[str, Estimate]:
    """Reliability of the logit and the generation curve: the share of variance that is not noise.

    Split-half over items if a curve's items are known, else from second differences over layers;
    `over` says which.
    """
    pair = shaped_curves(study, concept=concept, models=[model]).get(model)
    if pair is None:
        return {name: Estimate.undefined(NO_CURVES) for name in ("logit", "generation")}
    variables = {"logit": "logit_reliability"}
    if is_counted(study, model, concept):
        variables["generation"] = "response_reliability"
    return {
        name: _split_half(study, variables[name], model, concept)
        if name in variables
        else Estimate(
            second_difference_reliability(curve),
            over="second differences",
            n=len(curve),
            reason=WITHOUT_INTERVAL,
        )
        for name, curve in zip(("logit", "generation"), pair, strict=True)
    }


def response_reliability(study: Study, *, concept: str, model: str) -> Estimate:
    """Split-half reliability of the curve counted from the responses."""
    return _split_half(study, "response_reliability", model, concept)


def _split_half(study: Study, name: str, model: str, concept: str) -> Estimate:
    value = of_pair(study, name, model, concept)
    if np.isnan(value):
        return Estimate.undefined("a half of the items has a flat curve, or the items are too few")
    answered = of_pair(study, "n_response_items", model, concept)
    n_items = study.cells["n_items"].sel(concept=concept) if np.isnan(answered) else answered
    nothing = "" if value > 0 else "halves of the items do not agree; "
    reason = f"{nothing}{WITHOUT_INTERVAL}"
    return Estimate(value, over="items (split-half)", n=int(n_items), reason=reason)


def disattenuated(
    study: Study, *, concept: str, model: str, every_response: bool = False
) -> Estimate:
    r"""r of the two curves corrected for the noise of both.

    If the cube holds every answer (or, with `every_response`, for responses beside published rates)
    by `steercube.analysis.per_cell.responses.agreement_over_items`. Otherwise
    $r / \sqrt{\rho_x \rho_y}$ (Spearman 1904), with the ends of r's interval divided likewise, the
    reliabilities taken as known, and cut to [-1, 1]. The value is not cut: one beyond 1 shows that
    a reliability is too small.
    """
    if every_response or is_counted(study, model, concept):
        return _noise_free(study, concept, model)
    own = curve_agreement(study, concept=concept, model=model)
    reliable = [e.value for e in reliabilities(study, concept=concept, model=model).values()]
    if not np.isfinite([own.value, *reliable]).all():
        return Estimate.undefined(own.reason or "a reliability is not known")
    if min(reliable) <= MIN_RELIABILITY:
        return Estimate.undefined(
            f"a curve's reliability is {min(reliable):.2f}: nothing of it repeats, so nothing can "
            "be divided by it"
        )
    share = float(np.sqrt(reliable[0] * reliable[1]))
    low, high = np.clip([own.low / share, own.high / share], -1, 1)
    reason = "the reliabilities are taken for known, so the interval is too narrow"
    return Estimate(own.value / share, low=float(low), high=float(high), over=own.over, n=own.n,
                    reason=reason)  # fmt: skip


def _noise_free(study: Study, concept: str, model: str) -> Estimate:
    """r of the curves that infinitely many items would give, from stage one."""
    value, low, high, n_items = (
        of_pair(study, name, model, concept)
        for name in ("noise_free_r", "noise_free_r_low", "noise_free_r_high", "n_response_items")
    )
    if unknown := _why_no_items(n_items):
        return Estimate.undefined(unknown)
    shapeless = "" if np.isfinite([low, value]).all() else "too little shape beyond noise"
    return Estimate(value, low=low, high=high, over="items", n=int(n_items), reason=shapeless)


def published_against_responses(study: Study, *, concept: str, model: str) -> Estimate:
    """r of the published generation curve with the one counted from responses, over layers."""
    rates = ("generation_rate", "response_match_rate")
    known = [layer_curves(study, concept=concept, models=[model], rate=rate) for rate in rates]
    if not all(known) or is_counted(study, model, concept):
        return Estimate.undefined("this concept has no published rates beside its responses")
    both = study.cells.sel(model=model, concept=concept)
    pair = [generation_delta(both, rate).values for rate in rates]
    defined = np.isfinite(pair).all(axis=0)
    curves = (pair[0][defined], pair[1][defined])
    return _agreement_over_blocks(study, f"{concept} twice", model, curves)


def published_reading_agreement(study: Study, *, concept: str, model: str) -> Estimate:
    """r of the logit curve with the curve of responses as the study read them, over blocks."""
    rate = "published_response_match_rate"
    curves = layer_curves(study, concept=concept, models=[model], rate=rate)
    if model not in curves:
        return Estimate.undefined("no other reading of these responses was published")
    return _agreement_over_blocks(study, f"{concept} as published", model, curves[model])


def repeated_measures(
    study: Study, *, concept: str, models: Sequence[str] | None = None
) -> Estimate:
    """Repeated-measures correlation over layers within models, by pingouin: a cross-check.

    It treats layers as independent, so its interval is far too narrow and its p far too small.
    Source: Bakdash & Marusich 2017.
    """
    if find_spec("pingouin") is None:
        return Estimate.undefined("pingouin is not installed (the extra `stats` brings it)")
    curves = shaped_curves(study, concept=concept, models=models)
    if len(curves) < 3:
        return Estimate.undefined("pingouin's rm_corr needs three models" if curves else NO_CURVES)
    import pingouin

    rows = pd.concat(
        pd.DataFrame({"model": model, "logit": logit, "generation": generation})
        for model, (logit, generation) in curves.items()
    )
    with warnings.catch_warnings():
        # Newer pandas warns about pingouin's own code.
        warnings.simplefilter("ignore")
        row = pingouin.rm_corr(rows, x="logit", y="generation", subject="model").iloc[0]
    # Releases of pingouin differ in how they spell CI95% and p-val, but not in their order.
    r, _, p_value, (low, high), _ = row
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
    study: Study,
    *,
    estimand: str,
    concepts: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
) -> Estimate:
    """Does agreement rise with the effect? Slope of r on the effect over a model's concepts.

    One least-squares slope per model (change of r per unit of effect), averaged, t over models: the
    interval holds these concepts fixed. `p_value` does not: it is over every order of the
    concepts' effects, one for all models; beyond seven concepts, 5,040 random ones (two-sided).
    Three concepts have six orders, so it cannot be below 1/6.
    """
    table = agreement_and_effect(study, estimand, concepts, models)
    effect, r = (
        table.pivot(index="model", columns="concept", values=name).to_numpy()
        for name in ("effect", "r")
    )
    slopes = _slopes(effect, r)
    if len(slopes) < 2:
        return Estimate.undefined("needs two models with three concepts in both measures")
    ways = orders(effect.shape[1], study.stream(f"orders of concepts by {estimand}"))
    exchanged = np.array([_slopes(effect[:, order], r).mean() for order in ways])
    over = "models, these concepts"
    return mean_of_models(slopes, study.level, over=over, p_value=two_sided_p(exchanged))


@where_recorded
def agreement_over_concepts(
    study: Study,
    *,
    estimand: str,
    concepts: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
) -> Estimate:
    """Slope of a concept's mean r on its mean effect, Student's t over concepts.

    Both means are over the models that have both. This is the interval of a claim on concepts in
    general, with n_concepts - 2 degrees of freedom, where `agreement_against_effect` is about the
    concepts that were swept.
    """
    table = agreement_and_effect(study, estimand, concepts, models)
    means = table.groupby("concept")[["effect", "r"]].mean().dropna()
    return slope_over_concepts(means["effect"].to_numpy(), means["r"].to_numpy(), study.level)


def slope_over_concepts(effect: np.ndarray, r: np.ndarray, level: float) -> Estimate:
    """Least-squares slope of r (concept,) on the effect, t with n_concepts - 2 df."""
    if len(r) < 3 or np.ptp(effect) == 0:
        return Estimate.undefined("needs three concepts with both measures and unlike effects")
    fitted = stats.linregress(effect, r)
    student = Student(float(fitted.slope), float(fitted.stderr), len(r) - 2)
    return Estimate.of(student, level, over="concepts", n=len(r))


def _slopes(effect: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Least-squares slope of r on the effect over concepts, for each model with three of both."""
    slopes = []
    for x, y in zip(effect, r, strict=True):
        both = np.isfinite(x) & np.isfinite(y)
        if both.sum() > 2:
            slopes.append(float(np.polyfit(x[both], y[both], 1)[0]))
    return np.array(slopes)


@where_recorded
def agreement_effect_correlation(
    study: Study,
    *,
    estimand: str,
    concepts: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
) -> Estimate:
    """Correlation of r with the effect over (model, concept).

    Models and concepts are both drawn with replacement, because the pairs of one concept, or of one
    model, are not independent observations (Owen 2007, the pigeonhole bootstrap). There is no
    interval where more than half of the draws have no correlation.
    """
    table = agreement_and_effect(study, estimand, concepts, models)
    wide = {
        name: table.pivot_table(index="model", columns="concept", values=name).to_numpy()
        for name in ("effect", "r")
    }
    if len(table) < 4:
        return Estimate.undefined("needs four pairs of model and concept in both measures")
    value = float(correlation(table["effect"].to_numpy(), table["r"].to_numpy()))
    rng = study.stream(f"agreement and {estimand}")
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
    low, high = percentile_ends(star, study.level)
    over = [name for name, n in {"models": n_models, "concepts": n_concepts}.items() if n > 1]
    return Estimate(value, low=low, high=high, over=" and ".join(over), n=len(table))


def agreement_and_effect(
    study: Study,
    estimand: str,
    concepts: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Model, concept, effect (best layer) and r, one row per (model, concept) with both."""
    effects = study.best(estimand, concepts=concepts)
    rows = [
        {"model": m, "concept": c, "effect": float(effects.sel(model=m, concept=c)), "r": r}
        for c in map(str, effects["concept"].values)
        for m, r in correlations(study, concept=c, models=models).items()
        if m in effects["model"].values
    ]
    table = pd.DataFrame(rows, columns=["model", "concept", "effect", "r"])
    return table[np.isfinite(table["effect"].astype(float))]


EFFECTS_OF_AGREEMENT = ("cohens_d", "within_letter_d", "delta")
"""Estimands whose effects agreement is compared with."""

Statistics = dict[str, Callable[..., Estimate]]
OVER_MODELS: Statistics = {
    PUBLISHED_METHOD: pooled_agreement,
    MEAN_R: model_agreement,
    SHIFTS: shift_test,
    "mean r, models and blocks of layers resampled": agreement_by_blocks,
    MISMATCHED: matched_minus_mismatched,
    MEAN_ITEM_R: mean_item_agreement,
    "repeated-measures r (pingouin)": repeated_measures,
    "mean best generation delta": best_generation,
    "mean best generation delta less its null": best_generation_excess,
}
OF_RESPONSES: Statistics = {
    R_EVERY_RESPONSE: response_agreement,
    f"{SHIFTS}, every response": lambda study, concept, model: shift_test(
        study, concept=concept, models=[model], every_response=True
    ),
    "reliability of the responses' curve": response_reliability,
    f"{R_EVERY_RESPONSE}, without noise": partial(disattenuated, every_response=True),
    f"{R_EVERY_RESPONSE} as the study read it": published_reading_agreement,
    "best generation delta, every response": best_response,
    f"{EXCESS}, every response": best_response_excess,
    ITEM_R: item_agreement,
    VALIDITY: validity_at_best,
    "r of the published and the counted generation curve": published_against_responses,
}
"""Statistics of one model whose responses are known beside its published rates."""


def agreement(study: Study) -> list[tuple[dict[str, str], Estimate]]:
    """Agreement of logits and generations by layer: as published, model by model, and pooled."""
    rows: list[tuple[dict[str, str], Estimate]] = []
    concepts = [c for c in study.concepts if layer_curves(study, concept=c)]
    for concept in concepts:
        names = list(layer_curves(study, concept=concept))
        for model in names:
            labels = {"concept": concept, "model": model}
            named = _statistics_of_model(study, concept, model)
            rows += [(labels | {"statistic": name}, estimate) for name, estimate in named.items()]
        statistics = dict(OVER_MODELS)
        if any(has_other_responses(study, model, concept) for model in names):
            every = partial(model_agreement, every_response=True)
            statistics[f"{MEAN_R}, every response where known"] = every
        labels = {"concept": concept, "model": "every model"}
        for name, statistic in statistics.items():
            rows.append((labels | {"statistic": name}, statistic(study, concept=concept)))
    labels = {"concept": "every concept", "model": "every model"}
    for estimand in EFFECTS_OF_AGREEMENT if concepts else ():
        for name, of_effect in {
            f"slope of r on {estimand}": agreement_against_effect,
            f"slope of mean r on mean {estimand}": agreement_over_concepts,
            f"correlation of r with {estimand}": agreement_effect_correlation,
        }.items():
            rows.append((labels | {"statistic": name}, of_effect(study, estimand=estimand)))
    return rows


def _statistics_of_model(study: Study, concept: str, model: str) -> dict[str, Estimate]:
    """Statistics of one model's pair of curves, by name."""
    at: dict[str, Any] = {"concept": concept, "model": model}
    reliable = reliabilities(study, **at)
    estimates = {
        R_OVER_LAYERS: curve_agreement(study, **at),
        SHIFTS: shift_test(study, concept=concept, models=[model]),
        "reliability of the logit curve": reliable["logit"],
        "reliability of the generation curve": reliable["generation"],
        "r without noise (disattenuated)": disattenuated(study, **at),
        MISMATCHED: matched_minus_mismatched(study, concept=concept, models=[model]),
        "best generation layer": best_generation_layer(study, **at),
        "best generation delta": best_response(study, **at)
        if is_counted(study, model, concept)
        else Estimate(
            float(layer_curves(study, concept=concept)[model][1].max()),
            expected_under_null=expected_maximum(study, **at),
            n=1,
            reason=ONE_MAXIMUM,
        ),
    }
    if is_counted(study, model, concept):
        estimates |= {
            EXCESS: best_response_excess(study, **at),
            ITEM_R: item_agreement(study, **at),
            VALIDITY: validity_at_best(study, **at),
        }
    if has_other_responses(study, model, concept):
        estimates |= {name: statistic(study, **at) for name, statistic in OF_RESPONSES.items()}
        alike = of_pair(study, "responses_read_alike", model, concept)
        n = estimates[R_EVERY_RESPONSE].n
        census = Estimate(alike, n=n, reason="a census of the responses")
        estimates["share of responses read as published"] = census
    return estimates

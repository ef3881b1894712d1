r"""The effect of a contrast of models, such as their training, by every method side by side.

Each row names its random effects, because they decide what its interval covers: over items alone
it says nothing about other models. The primary row is the posterior of `posterior.fit` with the
contrast and scale; all estimates are `high` minus `low`, of effects minus their optimism.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from steercube.analysis.over_models.cell_effects import (
    TERMS,
    CellEffects,
    cell_effects,
    primary_terms,
    usable_outcomes,
    why_not,
)
from steercube.analysis.over_models.comparisons import two_sample_t
from steercube.analysis.over_models.item_fits import read_item_fits
from steercube.analysis.over_models.means import root_of
from steercube.analysis.over_models.nuts import Sampled, failed_gates, gates_text
from steercube.analysis.over_models.permute import MAX_ASSIGNMENTS, assignments, two_sided_p
from steercube.analysis.over_models.posterior import PRIOR, Posterior, fit
from steercube.analysis.over_models.reml import Reml, reml_of_cells
from steercube.analysis.over_models.unequal import fit_unequal, welch_t
from steercube.analysis.view import Study
from steercube.contrast import Contrast
from steercube.estimate import percentile_ends, t_quantile
from steercube.streams import stream

N_RESAMPLES = 10_000

EXACT = "hierarchical, exact"
NUTS = "hierarchical, NUTS"
REML = "REML, cells"
PERMUTATION = "permutation of labels"
BOOTSTRAP, MEANS, WELCH = "bootstrap", "t over model means", "Welch's t over model means"
UNEQUAL = "hierarchical, a spread for each label"
BY_DESIGN = (BOOTSTRAP, MEANS, WELCH, PERMUTATION)
ENOUGH_TO_RESAMPLE = 3
"""Models of a label from which their spread can be resampled without being understated much."""
UNDERSTATED = "understates how models differ"
ITEM_OUTCOME = "cohens_d"
MAX_DISTANCE = 0.1
"""Largest distance, in posterior sds, between the estimates of fits that agree."""

ADJUSTMENTS = (TERMS, ("contrast",))
"""Terms of the fits of the contrast: all of them, and the contrast alone."""
ITEMS, CONCEPTS, MODELS = "items", "items, concepts", "items, concepts, models"
WITHOUT_CONCEPTS = "items, models"


def covariates(contrast: Contrast, terms: Sequence[str]) -> str:
    """What a table calls the terms of a fit.

    >>> covariates(Contrast("training", "base", "rl"), ("contrast", "scale"))
    'training and scale'
    """
    names = {"contrast": contrast.by, "scale": contrast.covariate}
    return " and ".join(names[term] for term in terms)


@dataclass(frozen=True)
class ContrastEffect:
    """b_contrast of one outcome by one method; NaN with its `reason`.

    Other fits of the primary model are compared with the exact one: `distance` is between the
    estimates, in posterior sds, and `width` the ratio of the intervals' widths. `agrees` says
    whether the first is within MAX_DISTANCE and the second within a factor t / z, by which a t
    interval on the models' degrees of freedom exceeds one with a known sd.
    """

    outcome: str
    method: str
    random_effects: str
    covariates: str
    estimate: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p_value: float = np.nan
    probability_negative: float = np.nan
    probability_in_rope: float = np.nan
    bayes_factor: float = np.nan
    smallest_p: float = np.nan
    distance: float = np.nan
    width: float = np.nan
    agrees: str = ""
    level: float = np.nan
    rope: float = np.nan
    n_models: int = 0
    mc_error: float = np.nan
    """Standard error of a sampled estimate; NaN where nothing is sampled."""
    diagnostics: str = ""
    reason: str = ""


Effects = list[ContrastEffect]


def contrast_effects(study: Study, *, sampled: Mapping[str, Sampled] | None = None) -> Effects:
    """Every outcome by every method; `sampled` are NUTS fits of the model of cells by outcome."""
    assert study.contrast is not None
    contrast, rows = study.contrast, []
    for outcome, effects, _ in usable_outcomes(study):
        if effects.reason:
            primary = covariates(contrast, TERMS)
            rows.append(ContrastEffect(outcome, EXACT, MODELS, primary, reason=effects.reason))
            continue
        fits = by_method(effects, contrast=contrast, level=study.level, seed=study.seed)
        if sampled and outcome in sampled:
            fits.append(_nuts(effects, contrast, sampled[outcome]))
        if outcome == ITEM_OUTCOME:
            fits += _item_rows(study, contrast)
        compared = _compared(effects, contrast, fits, study.level)
        rows += [replace(row, rope=effects.rope) for row in compared]
    return [replace(row, level=study.level) for row in rows]


def _compared(
    effects: CellEffects, contrast: Contrast, rows: Effects, level: float
) -> Iterator[ContrastEffect]:
    """The rows, with the distance of other fits of the primary model from the exact one."""
    terms = primary_terms(effects)
    held = covariates(contrast, terms)
    exact = fit(effects, terms=terms) if terms in ADJUSTMENTS else None
    primary = next((r for r in rows if r.method == EXACT and r.covariates == held), None)
    df = effects.n_models - 1 - len(terms)
    limit = t_quantile(level, df) / stats.norm.ppf((1 + level) / 2)
    for row in rows:
        same = row.covariates == held and row.method not in (EXACT, UNEQUAL, *BY_DESIGN)
        if exact is None or primary is None or not same or not np.isfinite(row.low):
            yield row
            continue
        distance = abs(row.estimate - primary.estimate) / exact.spread("contrast")
        width = (row.high - row.low) / (primary.high - primary.low)
        agrees = distance <= MAX_DISTANCE and 1 / limit <= width <= limit
        yield replace(row, distance=distance, width=width, agrees="yes" if agrees else "no")


def by_method(
    effects: CellEffects,
    *,
    contrast: Contrast,
    level: float,
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> Effects:
    """Every method that needs only the cells' effects."""
    rows = list(_by_design(effects, contrast.by, level, seed, n_resamples))
    for terms in ADJUSTMENTS:
        held = covariates(contrast, terms)
        rows += [_exact(effects, terms, held, level), _unequal(effects, terms, held, level)]
        rows.append(_reml(effects, terms, held, level))
    return rows


def difference(
    table: np.ndarray, high: np.ndarray, models: np.ndarray, concepts: np.ndarray
) -> np.ndarray:
    r"""Weighted mean over concepts of the difference of the labels' means, dims (...).

    $\hat b = \sum_c k_c (\bar y_{Hc} - \bar y_{Lc}) / \sum_c k_c$ over the concepts that models of
    both labels ran, so that a cell that was never run changes the concepts' weight only. `table`
    (..., model, concept) with NaN where not run, `high` (model,) true for the contrast's `high`
    label, `models` (..., model) and `concepts` (..., concept) how often each counts.
    """
    ran = np.isfinite(table) * models[..., None]
    filled = np.where(np.isfinite(table), table, 0.0)
    side = [high.astype(float), 1.0 - high]
    counts = [np.einsum("...mc,m->...c", ran, members) for members in side]
    sums = [np.einsum("...mc,m->...c", ran * filled, members) for members in side]
    both = (counts[0] > 0) & (counts[1] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = np.where(both, sums[0] / counts[0] - sums[1] / counts[1], 0.0)
        return (gaps * concepts).sum(-1) / (both * concepts).sum(-1)


def _by_design(
    effects: CellEffects, by: str, level: float, seed: int, n_resamples: int
) -> Iterator[ContrastEffect]:
    """Methods without a model of effects: bootstraps, t over model means, permutation."""

    def row(method: str, random: str, **fields: Any) -> ContrastEffect:
        return ContrastEffect(effects.outcome, method, random, by, **fields)

    if reason := why_not(effects, ()) or _one_sided(effects):
        yield row(BOOTSTRAP, ITEMS, reason=reason)
        return
    table, high, n_models = effects.table, effects.is_high, len(effects.models)
    estimate = float(difference(table, high, *_unit_weights(table)))
    if not np.isfinite(estimate):
        yield row(BOOTSTRAP, ITEMS, reason="no concept was run by models of both labels")
        return
    common: dict[str, Any] = {"estimate": estimate, "n_models": n_models}
    for random, draws in _bootstraps(effects, table, high, seed, n_resamples).items():
        if reason := _why_not_resampled(random, high):
            yield row(BOOTSTRAP, random, **common, reason=reason)
            continue
        low, high_end = percentile_ends(draws[np.isfinite(draws)], level)
        around = {"low": low, "high": high_end, "diagnostics": _bootstrap_note(random, high)}
        yield row(BOOTSTRAP, random, **common, **around)
    means = adjusted_means(table)
    if means is None:
        reason = "models and concepts are not linked: what one ran, too few others ran"
        yield row(MEANS, "models", reason=reason)
    else:
        notes = {MEANS: f"degrees of freedom: {n_models - 2}", WELCH: ""}
        for method, test in {MEANS: two_sample_t, WELCH: welch_t}.items():
            t = test(means, high, level=level)
            yield row(
                method,
                "models",
                estimate=t.value,
                low=t.low,
                high=t.high,
                n_models=n_models,
                diagnostics=notes[method],
                reason=t.reason,
            )
    p, least = permutation(table, high, stream("training labels", seed=seed))
    least_note: dict[str, Any] = {
        "smallest_p": least,
        "diagnostics": f"the least possible p is {least:.4g}",
    }
    yield row(PERMUTATION, "labels of models", **common, p_value=p, **least_note)


def _one_sided(effects: CellEffects) -> str:
    return "" if "contrast" in effects.predictors else effects.lacks_contrast


def _unit_weights(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights with which every model and every concept counts once."""
    return np.ones(table.shape[0]), np.ones(table.shape[1])


def adjusted_means(table: np.ndarray) -> np.ndarray | None:
    """Model means as if all had run every concept: least squares of model + concept, dims (model).

    The plain means if nothing is missing; None if the cells do not connect all models.
    """
    model, concept = np.nonzero(np.isfinite(table))
    n_models, n_concepts = table.shape
    design = np.hstack([np.eye(n_models)[model], np.eye(n_concepts)[concept]])
    solution = np.linalg.lstsq(design, table[model, concept], rcond=None)[0]
    ran = np.isfinite(table).any(axis=0)
    if np.linalg.matrix_rank(design) < n_models + int(ran.sum()) - 1:
        return None
    return solution[:n_models] + solution[n_models:][ran].mean()


def _fewest(high: np.ndarray) -> int:
    """Number of models of the label that has fewer."""
    return int(min(high.sum(), (~high).sum()))


def _why_not_resampled(random: str, high: np.ndarray) -> str:
    """Why models cannot be resampled: a label with one model would give it every time."""
    if random in (ITEMS, CONCEPTS) or _fewest(high) > 1:
        return ""
    return "one label has one model, so resampling models says nothing of others like it"


def _bootstrap_note(random: str, high: np.ndarray) -> str:
    """A note if the interval is too narrow because few models of a label are resampled."""
    if random in (ITEMS, CONCEPTS) or _fewest(high) >= ENOUGH_TO_RESAMPLE:
        return ""
    return f"{UNDERSTATED}: {_fewest(high)} models of one label, resampled"


def _bootstraps(
    effects: CellEffects, table: np.ndarray, high: np.ndarray, seed: int, n_resamples: int
) -> dict[str, np.ndarray]:
    """Draws of the difference, with items resampled, then concepts too, then models too.

    Items enter by the sampling covariance of the joint item bootstrap; models are drawn within
    their label. If concepts are drawn too, the effects already contain the error of the items, so
    intervals widen; few concepts or models vary too little when resampled, so they narrow.
    """
    rng = stream(f"bootstrap of training in {effects.outcome}", seed=seed)
    n_models, n_concepts = table.shape
    errors = np.zeros((n_resamples, n_models, n_concepts))
    for c in range(n_concepts):
        at = np.flatnonzero(effects.concept == c)
        factor = root_of(effects.covariance[np.ix_(at, at)])
        errors[:, effects.model[at], c] = rng.standard_normal((n_resamples, len(at))) @ factor.T
    concepts = rng.multinomial(n_concepts, np.full(n_concepts, 1 / n_concepts), n_resamples)
    models = np.ones((n_resamples, n_models))
    for side in (high, ~high):
        n = int(side.sum())
        models[:, side] = rng.multinomial(n, np.full(n, 1 / n), n_resamples)
    ones = np.ones((1, n_models)), np.ones((1, n_concepts))
    weights = {ITEMS: ones, CONCEPTS: (ones[0], concepts), MODELS: (models, concepts)}
    if n_concepts == 1:
        weights = {ITEMS: ones, WITHOUT_CONCEPTS: (models, ones[1])}
    return {random: difference(table + errors, high, *drawn) for random, drawn in weights.items()}


def permutation(
    table: np.ndarray, high: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Two-sided p of `difference` over all assignments of the labels, and the smallest possible p.

    With more than MAX_ASSIGNMENTS, over that many: the observed and random ones. Assignments in
    which no concept was run by both sides are left out. The null is that models are exchangeable:
    neither the label nor anything confounded with it, such as size, makes a difference.
    """
    ways = assignments(high, rng, limit=MAX_ASSIGNMENTS)
    drawn = np.array([difference(table, labels, *_unit_weights(table)) for labels in ways])
    if not np.isfinite(drawn[0]):
        return np.nan, np.nan
    n_defined = int(np.isfinite(drawn).sum())
    mirrored = 2 * int(high.sum()) == len(high) and len(ways) < MAX_ASSIGNMENTS
    return two_sided_p(drawn), (1 + mirrored) / n_defined


def _exact(effects: CellEffects, terms: Sequence[str], held: str, level: float) -> ContrastEffect:
    blank = ContrastEffect(effects.outcome, EXACT, _random(effects), held)
    if reason := why_not(effects, terms):
        return replace(blank, reason=reason)
    return replace(
        blank,
        **summary(fit(effects, terms=terms), level),
        n_models=effects.n_models,
        diagnostics=f"prior: {PRIOR}{_notes(effects, terms)}",
    )


def _unequal(effects: CellEffects, terms: Sequence[str], held: str, level: float) -> ContrastEffect:
    blank = ContrastEffect(effects.outcome, UNEQUAL, _random(effects), held)
    if reason := why_not(effects, terms):
        return replace(blank, reason=reason)
    posterior = fit_unequal(effects, terms=terms)
    low, median, high = posterior.interval("contrast", level)
    negative, rope = posterior.cdf("contrast", 0.0), effects.rope
    return replace(
        blank,
        estimate=median,
        low=low,
        high=high,
        probability_negative=negative,
        probability_in_rope=posterior.cdf("contrast", rope) - posterior.cdf("contrast", -rope),
        n_models=effects.n_models,
    )


def _random(effects: CellEffects) -> str:
    return MODELS if effects.n_concepts > 1 else WITHOUT_CONCEPTS


def _notes(effects: CellEffects, terms: Sequence[str]) -> str:
    """Caveats on the exact interval for these cells, as text."""
    notes = []
    if effects.n_models < len(terms) + 3:
        notes.append("one degree of freedom between models: mostly the prior on sd_model")
    if effects.left_out:
        notes.append(f"without a usable effect: {', '.join(effects.left_out)}")
    if effects.others:
        notes.append(f"left out, of neither label: {', '.join(effects.others)}")
    return "".join(f"; {note}" for note in notes)


def summary(posterior: Posterior, level: float, name: str = "contrast") -> dict[str, Any]:
    """Median, interval, probabilities and Bayes factor of one slope of the posterior."""
    low, median, high = posterior.interval(name, level)
    return {
        "estimate": median,
        "low": low,
        "high": high,
        "probability_negative": posterior.cdf(name, 0.0),
        "probability_in_rope": posterior.within(name, posterior.effects.rope),
        "bayes_factor": posterior.bayes_factor(name),
    }


def _reml(effects: CellEffects, terms: Sequence[str], held: str, level: float) -> ContrastEffect:
    blank = ContrastEffect(effects.outcome, REML, _random(effects), held)
    if reason := why_not(effects, terms):
        return replace(blank, reason=reason)
    try:
        fitted = reml_of_cells(effects, terms=terms)
    except ValueError as error:
        return replace(blank, reason=str(error))
    ends = t_interval(fitted, effects.n_models, level)
    return replace(blank, **ends, n_models=effects.n_models, diagnostics=_boundary(fitted))


def t_interval(fitted: Reml, n_models: int, level: float, name: str = "contrast") -> dict[str, Any]:
    """Estimate and t interval, with n_models minus the number of coefficients as its df."""
    half = t_quantile(level, n_models - len(fitted.coefficients)) * fitted.standard_errors[name]
    value = fitted.coefficients[name]
    return {"estimate": value, "low": value - half, "high": value + half}


def _boundary(fitted: Reml) -> str:
    if not fitted.at_boundary:
        return "no variance at its boundary"
    return f"at its boundary 0, so that the interval is too narrow: {', '.join(fitted.at_boundary)}"


def _nuts(effects: CellEffects, contrast: Contrast, sampled: Sampled) -> ContrastEffect:
    terms = primary_terms(effects)
    exact = fit(effects, terms=terms)
    held = covariates(contrast, TERMS if terms == TERMS else ("contrast",))
    blank = ContrastEffect(
        effects.outcome, NUTS, MODELS, held, diagnostics=gates_text(sampled, exact)
    )
    problems = failed_gates(sampled, exact)
    if problems or "contrast" not in terms:
        reason = f"failed its gates: {'; '.join(problems)}" if problems else _one_sided(effects)
        return replace(blank, reason=reason)
    row = sampled.summary["contrast"]
    return replace(
        blank,
        estimate=row["median"],
        low=row["low"],
        high=row["high"],
        probability_negative=row["negative"],
        n_models=effects.n_models,
        mc_error=row["mcse_mean"],
    )


def _item_rows(study: Study, contrast: Contrast) -> Iterator[ContrastEffect]:
    """The item-level fits of Cohen's d that the cells keep."""
    fits = read_item_fits(study)
    if isinstance(fits, str):
        held = covariates(contrast, TERMS)
        yield ContrastEffect(ITEM_OUTCOME, "items", MODELS, held, reason=fits)
        return
    terms = primary_terms(cell_effects(study))
    held = covariates(contrast, terms if terms in ADJUSTMENTS else ("scale",))
    for item_fit in fits:
        effect = item_fit.terms["contrast"]
        yield ContrastEffect(
            ITEM_OUTCOME,
            item_fit.method,
            MODELS,
            held,
            estimate=effect.value,
            low=effect.low,
            high=effect.high,
            n_models=len(study.compared),
            diagnostics=item_fit.diagnostics,
            reason=item_fit.problem,
        )

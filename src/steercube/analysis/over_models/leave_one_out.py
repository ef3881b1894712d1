r"""The hierarchical model refitted without part of the data, and under other priors.

Leaving out answers two questions. Does b_contrast depend on one model or concept? See its interval
without it. Does the contrast help to predict? See the log density of the left-out cells given all
others, log p(y_out | y_in) = log p(y) - log p(y_in), with and without the term, exact from the
evidence on the grid. Whole models and whole concepts are left out, not single cells, since the
question is about new ones. A difference under a few nats, or under its standard error over the
parts, decides nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from steercube.analysis.over_models.cell_effects import (
    CellEffects,
    cell_effects,
    usable_outcomes,
    why_not,
)
from steercube.analysis.over_models.contrast_effect import ADJUSTMENTS, covariates, summary
from steercube.analysis.over_models.posterior import PRIOR, Posterior, Prior, fit
from steercube.analysis.view import Study

PRIOR_SCALES = {
    "sd_model": (0.05, 0.1, 0.2, 0.3, 0.5, 1.0),
    "contrast": (0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
    "scale": (0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
}

PRIMARY = "nothing"
EVERY_PART = "each in turn, sum"

Row = dict[str, Any]


def leave_one_out(study: Study) -> list[Row]:
    """b_contrast of every outcome without each model or concept, and how well that is predicted."""
    return [
        labels | row
        for labels, effects, terms, reason in _each_fit(study)
        for row in (
            [{"without": "nothing", "left_out": "", "reason": reason}]
            if reason
            else _parts(study, effects, terms)
        )
    ]


def _each_fit(study: Study) -> Iterator[tuple[Row, CellEffects, tuple[str, ...], str]]:
    """Labels, effects and terms of every outcome and adjustment, and why it cannot be fitted."""
    assert study.contrast is not None
    for outcome, effects, _ in usable_outcomes(study):
        for terms in ADJUSTMENTS:
            labels = {"outcome": outcome, "covariates": covariates(study.contrast, terms)}
            yield labels, effects, terms, why_not(effects, terms)


def _parts(study: Study, effects: CellEffects, terms: tuple[str, ...]) -> Iterator[Row]:
    fewer = tuple(term for term in terms if term != "contrast")
    whole = {kept: fit(effects, terms=kept) for kept in (terms, fewer)}
    sds = list(whole[terms].sds)
    yield {"without": "nothing", "left_out": ""} | _summarised(whole[terms], study.level)
    for kind, names, index in (
        ("model", effects.models, effects.model),
        ("concept", effects.concepts, effects.concept),
    ):
        gained: list[float] = []
        for at, name in enumerate(names):
            rest = effects.only(np.flatnonzero(index != at))
            row: Row = {"without": kind, "left_out": name}
            if reason := why_not(rest, terms):
                yield row | {"reason": reason}
                continue
            # With one concept left `fit` would drop sds, and the evidences need the same ones.
            with_term, without_term = (fit(rest, terms=kept, sds=sds) for kept in (terms, fewer))
            row["log_density_with_contrast"] = whole[terms].log_evidence - with_term.log_evidence
            row["log_density_without"] = whole[fewer].log_evidence - without_term.log_evidence
            row["gain"] = row["log_density_with_contrast"] - row["log_density_without"]
            gained.append(row["gain"])
            yield row | _summarised(with_term, study.level)
        if len(gained) == len(names):
            se = float(np.std(gained, ddof=1) * np.sqrt(len(gained)))
            sums = {"gain": float(np.sum(gained)), "gain_standard_error": se}
            yield {"without": kind, "left_out": EVERY_PART} | sums
    for name, others in _other_data(study, effects.outcome):
        yield {"without": name, "left_out": ""} | _fitted(others, terms, study.level)


def _other_data(study: Study, outcome: str) -> Iterator[tuple[str, CellEffects]]:
    """The effects of the valid items alone, and of the dense models alone."""
    if study.some_items_are_invalid:
        valid = cell_effects(study.valid_items, outcome)
        if not valid.reason:
            yield "invalid items", valid
    dense = study.facts("architecture", study.compared) == "dense"
    if not dense.all():
        kept = [name for name, is_dense in zip(study.compared, dense, strict=True) if is_dense]
        yield "mixtures of experts", cell_effects(study.among(models=kept), outcome)


def _fitted(effects: CellEffects, terms: tuple[str, ...], level: float) -> Row:
    if reason := why_not(effects, terms):
        return {"reason": reason}
    return _summarised(fit(effects, terms=terms), level)


def _summarised(posterior: Posterior, level: float) -> Row:
    return {"n_models": posterior.effects.n_models} | summary(posterior, level)


def prior_sensitivity(study: Study) -> list[Row]:
    """b_contrast under other scales of one prior at a time, in units of the outcome.

    The scale of the prior on sd_model, half-normal here, decides how much six models can say about
    their spread; that on b_contrast decides the Bayes factor and, unless it is small, little else;
    that on b_scale how much of the difference size can explain. The first row is the primary fit.
    """
    rows: list[Row] = []
    for labels, effects, terms, reason in _each_fit(study):
        if reason:
            rows.append(labels | {"reason": reason})
            continue
        for name, scale, prior in _priors(terms):
            posterior = fit(effects, terms=terms, prior=prior)
            changed = study.contrast.by if study.contrast and name == "contrast" else name
            row = {"prior_of": changed, "prior_scale": scale} | summary(posterior, study.level)
            row |= {"sd_model": posterior.quantile("sd_model", 0.5), "prior": str(prior)}
            rows.append(labels | row | {"log_evidence": posterior.log_evidence})
    return rows


def _priors(terms: Sequence[str]) -> Iterator[tuple[str, float, Prior]]:
    """The parameter changed, its scale, and the resulting priors; first the primary priors."""
    yield PRIMARY, np.nan, PRIOR
    for name, scales in PRIOR_SCALES.items():
        if name == "sd_model":
            bounded = replace(PRIOR, cauchy=False)
            yield from ((name, s, bounded.scaled(name, s)) for s in scales)
        elif name in terms:
            yield from ((name, s, PRIOR.scaled(name, s)) for s in scales)

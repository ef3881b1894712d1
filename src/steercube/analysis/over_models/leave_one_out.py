r"""The hierarchical model fitted again: without a part of the data, and under other priors.

Leaving out asks two questions. Does b_training hang on one model or concept: its interval without
it. And does training help to predict: the log density of the left-out cells given all others,
log p(y_out | y_in) = log p(y) - log p(y_in), with the term and without, exact from the evidence on
the grid. Whole models and whole concepts are left out, since the question is about new ones; to
leave out single cells would answer another. A difference under a few nats, or under its standard
error over the parts, decides nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from steercube.analysis.conclusions.sensitivity import without_invalid_items
from steercube.analysis.over_models.means import level_of
from steercube.analysis.over_models.posterior import (
    OUTCOMES,
    PRIOR,
    CellEffects,
    Posterior,
    Prior,
    cell_effects,
    compared_models,
    fit,
    usable_effects,
    why_not,
)
from steercube.analysis.over_models.training import ADJUSTED, summary

PRIOR_SCALES = {
    "sd_model": (0.05, 0.1, 0.2, 0.3, 0.5, 1.0),
    "training": (0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
    "scale": (0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
}

PRIMARY = "nothing"
EVERY_PART = "each in turn, sum"

Row = dict[str, Any]


def leave_one_out(cells: xr.Dataset) -> list[Row]:
    """b_training of every outcome without each part, and how well the part is predicted."""
    rows: list[Row] = []
    for outcome in OUTCOMES:
        for adjusted, terms in ADJUSTED.items():
            labels = {"outcome": outcome, "adjusted": adjusted}
            try:
                effects = usable_effects(cells, outcome, terms)
            except ValueError as error:
                rows.append(labels | {"without": "nothing", "left_out": "", "reason": str(error)})
                continue
            rows += [labels | row for row in _parts(cells, effects, terms)]
    return rows


def _parts(cells: xr.Dataset, effects: CellEffects, terms: tuple[str, ...]) -> Iterator[Row]:
    level = level_of(cells)
    fewer = tuple(term for term in terms if term != "training")
    whole = {terms: fit(effects, terms=terms), fewer: fit(effects, terms=fewer)}
    sds = list(whole[terms].sds)
    yield {"without": "nothing", "left_out": ""} | _fitted(effects, terms, level)
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
            # One concept may be left: the two evidences need the same sds.
            with_it, without = (fit(rest, terms=t, sds=sds) for t in (terms, fewer))
            row["log_density_with_training"] = whole[terms].log_evidence - with_it.log_evidence
            row["log_density_without"] = whole[fewer].log_evidence - without.log_evidence
            row["gain"] = row["log_density_with_training"] - row["log_density_without"]
            gained.append(row["gain"])
            yield row | _summarised(with_it, level)
        if len(gained) == len(names):
            se = float(np.std(gained, ddof=1) * np.sqrt(len(gained)))
            yield {"without": kind, "left_out": EVERY_PART, "gain": float(np.sum(gained)),
                   "gain_standard_error": se}  # fmt: skip
    for name, others in _other_data(cells, effects):
        yield {"without": name, "left_out": ""} | _fitted(others, terms, level)


def _other_data(cells: xr.Dataset, effects: CellEffects) -> Iterator[tuple[str, CellEffects]]:
    """The effects of the valid items alone, and of the dense models alone."""
    if (cells["n_valid_items"] < cells["n_items"]).any():
        with suppress(ValueError):  # too few valid items of a concept have no error of their own
            yield "invalid items", cell_effects(without_invalid_items(cells), effects.outcome)
    names = compared_models(cells)
    dense = cells["architecture"].sel(model=names).values == "dense"
    if not dense.all():
        kept = [name for name, is_dense in zip(names, dense, strict=True) if is_dense]
        yield "mixtures of experts", cell_effects(cells, effects.outcome, models=kept)


def _fitted(effects: CellEffects, terms: tuple[str, ...], level: float) -> Row:
    if reason := why_not(effects, terms):
        return {"reason": reason}
    return _summarised(fit(effects, terms=terms), level)


def _summarised(posterior: Posterior, level: float) -> Row:
    return {"n_models": len(np.unique(posterior.effects.model))} | summary(posterior, level)


def prior_sensitivity(cells: xr.Dataset) -> list[Row]:
    """b_training under other scales of one prior at a time, in units of the outcome.

    The scale of the prior on sd_model, half-normal here, decides how much six models can say of
    their own spread; that of b_training decides the Bayes factor and, until it is small, little
    else; that of b_scale how much of the difference size may take. The first row is the primary.
    """
    rows: list[Row] = []
    level = level_of(cells)
    for outcome in OUTCOMES:
        for adjusted, terms in ADJUSTED.items():
            labels = {"outcome": outcome, "adjusted": adjusted}
            try:
                effects = usable_effects(cells, outcome, terms)
            except ValueError as error:
                rows.append(labels | {"reason": str(error)})
                continue
            for name, scale, prior in _priors(terms):
                posterior = fit(effects, terms=terms, prior=prior)
                row = {"prior_of": name, "prior_scale": scale} | summary(posterior, level)
                row |= {"sd_model": posterior.quantile("sd_model", 0.5), "prior": str(prior)}
                rows.append(labels | row | {"log_evidence": posterior.log_evidence})
    return rows


def _priors(terms: Sequence[str]) -> Iterator[tuple[str, float, Prior]]:
    """What is changed, to which scale, and the priors then; nothing first."""
    yield PRIMARY, np.nan, PRIOR
    for name, scales in PRIOR_SCALES.items():
        if name == "sd_model":
            bounded = replace(PRIOR, cauchy=False)
            yield from ((name, s, bounded.scaled(name, s)) for s in scales)
        elif name in terms:
            yield from ((name, s, PRIOR.scaled(name, s)) for s in scales)

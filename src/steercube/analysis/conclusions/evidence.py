r"""The evidence on a contrast of models: its interval, what carries it, what goes with it.

The same function grades a study's contrast and the simulated ones of
`steercube.analysis.simulated.grading`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from steercube.analysis.conclusions.grades import Evidence
from steercube.analysis.over_models.cell_effects import TERMS, CellEffects, why_not
from steercube.analysis.over_models.confounders import GOES_WITH, Rival, holding
from steercube.analysis.over_models.design import chance
from steercube.analysis.over_models.posterior import (
    PRIOR,
    Mixture,
    OfPosterior,
    Posterior,
    fit,
)
from steercube.analysis.over_models.unequal import fit_unequal
from steercube.numerals import signed

CARRIES = 0.5
"""A part carries an estimate that loses more than this share without it."""
WIDER = replace(PRIOR.scaled("sd_model", 0.5), cauchy=False)
"""Half-normal(0.5) on sd_model: a prior by which models may differ by as much as concepts do."""


def terms_of(effects: CellEffects) -> tuple[str, ...]:
    """The contrast, with what is held fixed beside it where these models can separate the two."""
    return TERMS if not why_not(effects, TERMS) else ("contrast",)


def of_contrast(
    effects: CellEffects,
    *,
    claimed: int,
    level: float,
    rivals: Sequence[Rival] = (),
    n_nodes: int = 20,
) -> Evidence:
    """The evidence on b_contrast of the primary model. Empty where it cannot be fitted.

    Influence and rivals are looked at only where the interval excludes zero.
    """
    terms, margin = terms_of(effects), effects.margins.small
    if why_not(effects, terms):
        return Evidence(claimed, margin)
    posterior = fit(effects, terms=terms, n_nodes=n_nodes)
    evidence = Evidence.of(OfPosterior(posterior, "contrast"), claimed, margin, level)
    side = evidence.side
    if not side:
        beyond = effects.margins.large - (0 if claimed else margin)
        return replace(evidence, chance=chance(effects, terms, beyond, level=level))
    carried = [*_carriers(effects, terms, posterior, n_nodes),
               *_assumptions(effects, terms, side, level, n_nodes)]  # fmt: skip
    confounded = _confounders(effects, rivals, side, level, n_nodes)
    return replace(evidence, carried_by=tuple(carried), confounded_with=tuple(confounded))


def _carriers(
    effects: CellEffects, terms: Sequence[str], posterior: Posterior, n_nodes: int
) -> Iterator[str]:
    """Models and concepts without which the estimate changes sign or loses more than half."""
    whole = posterior.quantile("contrast", 0.5)
    for names, index in ((effects.models, effects.model), (effects.concepts, effects.concept)):
        for at, name in enumerate(names):
            rest = effects.only(index != at)
            estimable = not why_not(rest, terms)
            left = (
                fit(rest, terms=terms, n_nodes=n_nodes).quantile("contrast", 0.5)
                if estimable
                else np.nan
            )
            if text := carries(name, whole, left):
                yield text


def carries(name: str, whole: float, left: float) -> str:
    """What to say of a part without which an estimate is `left` of `whole`; empty if it is enough.

    It carries the estimate if that cannot be had without it (NaN), changes sign, or loses more than
    half.
    """
    if np.isnan(left):
        return f"without {name} it cannot be estimated"
    return f"without {name} it is {signed(f'{left:.2f}')}" if left / whole < 1 - CARRIES else ""


def _assumptions(
    effects: CellEffects, terms: Sequence[str], side: int, level: float, n_nodes: int
) -> Iterator[str]:
    """Assumptions on the spread of models without which the interval holds zero."""
    wider = fit(effects, terms=terms, prior=WIDER, n_nodes=n_nodes)
    if not _excludes(wider, side, level):
        yield f"with sd_model ~ half-normal({WIDER.sd_model:g}) its interval holds zero"
    if not _excludes(fit_unequal(effects, terms=terms, n_nodes=12), side, level):
        yield "with a spread of its own for each label its interval holds zero"


def _confounders(
    effects: CellEffects, rivals: Sequence[Rival], side: int, level: float, n_nodes: int
) -> Iterator[str]:
    """Rivals that separate the labels, or go with them and leave nothing when held fixed."""
    for rival in rivals:
        fixed = holding(effects, rival.values)
        goes = "no overlap" if rival.separates else f"r = {rival.correlation:.2f}"
        if why_not(fixed, TERMS):
            left, held = False, ""
        else:
            posterior = fit(fixed, terms=TERMS, n_nodes=n_nodes)
            left = _excludes(posterior, side, level)
            low, middle, high = posterior.interval("contrast", level)
            held = f"; with it held fixed {middle:+.2f} [{low:.2f}, {high:.2f}]"
        if rival.separates or (abs(rival.correlation) >= GOES_WITH and not left):
            yield signed(f"{rival.name} ({goes}{held})")


def _excludes(posterior: Posterior | Mixture, side: int, level: float) -> bool:
    """Whether the interval of b_contrast lies on this side of zero."""
    negative = posterior.cdf("contrast", 0.0)
    beyond = negative if side < 0 else 1 - negative
    return bool(beyond > (1 + level) / 2)

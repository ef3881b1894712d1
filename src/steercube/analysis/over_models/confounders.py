r"""What goes with the contrast: the difference with each rival variable held fixed, side by side.

A rival is a number of each model that could be the reason for a difference between the labels. For
each: its correlation with the label over models, the difference with it held fixed, and how much
wider that makes the interval. Holding a variable fixed that correlates at r with the label
multiplies the variance by 1 / (1 - r^2), for only the part of the label that it does not account
for is left to compare; the prior on the rival's slope (`holding`) takes a part of that back.

If the labels' ranges do not overlap, no adjustment separates the two: what is held fixed then rests
on a straight line through both. The depth of the best layers is measured after the fact; it may be
a part of how the label works rather than a rival of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steercube.analysis.over_models.cell_effects import (
    TERMS,
    CellEffects,
    usable_outcomes,
    why_not,
)
from steercube.analysis.over_models.contrast_effect import summary
from steercube.analysis.over_models.depth import typical_depths
from steercube.analysis.over_models.posterior import fit
from steercube.analysis.per_cell.estimands import ESTIMANDS
from steercube.analysis.view import Study

FACTS = {
    "n_params": "size",
    "n_active_params": "active size",
    "n_layers": "number of blocks",
}
"""Variables of the models, compared on log10, and what a text calls them."""
DEPTH_OF_BEST = "depth of the best layers"
GOES_WITH = 0.5
"""A correlation with the label from which a rival is named: large, by Cohen (1988)."""


@dataclass(frozen=True)
class Rival:
    """A variable of the models, dims (model,), and its relation to the contrast's label.

    `separates` says that no value of one label lies within the range of the other's.
    """

    name: str
    values: np.ndarray
    correlation: float
    separates: bool


def rivals(study: Study, models: tuple[str, ...], *, depth: bool = True) -> list[Rival]:
    """The rivals that vary over these models; the `depth` of their best layers, if asked for."""
    values = {name: np.log10(study.facts(of, models)) for of, name in FACTS.items()}
    if depth:
        values[DEPTH_OF_BEST] = typical_depths(study).sel(model=list(models)).values
    is_high = study.is_high(models)
    return [
        Rival(
            name,
            of_models,
            float(np.corrcoef(of_models, is_high)[0, 1]),
            separates(of_models, is_high),
        )
        for name, of_models in values.items()
        if np.isfinite(of_models).all()
        and np.ptp(of_models) > 0
        and 0 < is_high.sum() < len(models)
    ]


def separates(values: np.ndarray, is_high: np.ndarray) -> bool:
    """Whether all values of one label exceed all of the other's."""
    high, low = values[is_high], values[~is_high]
    return bool(high.min() > low.max() or high.max() < low.min())


def holding(effects: CellEffects, values: np.ndarray) -> CellEffects:
    """The effects with these values (model,), standardised, in the place of what is held fixed.

    So the prior on the slope is as wide for every rival: it allows a whole unit of the outcome for
    one sd of the rival over the models.
    """
    predictors: Mapping[str, np.ndarray] = effects.predictors
    standardised = (values - values.mean()) / values.std()
    return replace(effects, predictors=dict(predictors) | {"scale": standardised})


def confounders(study: Study) -> Iterator[dict[str, Any]]:
    """Every outcome's difference alone, and with each rival held fixed."""
    for outcome, effects, reason in usable_outcomes(study, ("contrast",)):
        if reason:
            yield {"outcome": outcome, "held": "nothing", "reason": reason}
            continue
        alone = summary(fit(effects, terms=("contrast",)), study.level)
        yield {"outcome": outcome, "held": "nothing", "width_ratio": 1.0} | alone
        for rival in rivals(study, effects.models, depth=outcome in ESTIMANDS):
            row = {
                "outcome": outcome,
                "held": rival.name,
                "correlation": rival.correlation,
                "separates": "yes" if rival.separates else "no",
            }
            fixed = holding(effects, rival.values)
            if reason := why_not(fixed, TERMS):
                yield row | {"reason": reason}
                continue
            held = summary(fit(fixed, terms=TERMS), study.level)
            width = (held["high"] - held["low"]) / (alone["high"] - alone["low"])
            yield row | {"width_ratio": width} | held

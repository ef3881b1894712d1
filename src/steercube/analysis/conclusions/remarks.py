"""What a reader of a recomputed number must know: one function a remark.

What the number is said to show is another matter: see `grades`.

Each takes a `Case` and returns sentences, none where it does not apply. Which of them apply to a
statistic stands in its record (`steercube.analysis.conclusions.claims.STATISTICS`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steercube.analysis.agreement.generation import UPPER_BOUND, best_generation_excess
from steercube.analysis.conclusions.published import Printed, matches
from steercube.analysis.view import Study
from steercube.estimate import Estimate

MATERIAL = 0.05
"""A value that changes by more than this share, by optimism or invalid items, gets a caveat."""


@dataclass(frozen=True)
class Case:
    """One claim with all that its number is judged by.

    `compute(study)` is its statistic with its arguments, `balanced` that over the models or
    concepts without a gap, `also` its other versions by what they are.
    """

    study: Study
    arguments: Mapping[str, Any]
    compute: Callable[[Study], Estimate]
    printed: Printed
    estimate: Estimate
    averages_over: str = ""
    caveat: str = ""
    balanced: Estimate | None = None
    also: Sequence[tuple[str, Estimate]] = ()

    def shown(self, value: float) -> str:
        """A number with more digits than were printed."""
        if self.printed.percent:
            return f"{100 * value:.1f}%"
        return f"{value:.{max(2, self.printed.decimals)}f}"

    def with_interval(self, estimate: Estimate) -> str:
        """An estimate with its interval, where it has one."""
        value = self.shown(estimate.value)
        if not np.isfinite(estimate.low):
            return value
        return f"{value} [{self.shown(estimate.low)}, {self.shown(estimate.high)}]"


Remark = Callable[[Case], list[str]]


def last_digit(case: Case) -> list[str]:
    """It is not the printed number, though near it."""
    if case.printed.direction or matches(case.printed, case.estimate):
        return []
    value, digits = case.estimate.value, case.printed.decimals + 2
    return [f"the definition gives {value:.{digits}f}, {case.printed.show(value)} in print"]


def _no_interval(case: Case) -> list[str] | None:
    if np.isfinite(case.estimate.low):
        return None
    return [f"it has no interval: {case.estimate.reason}"] if case.estimate.reason else []


def published_outside(case: Case) -> list[str]:
    """The published value, or a member of its range, is not what the interval allows."""
    if (missing := _no_interval(case)) is not None:
        return missing
    estimate, printed = case.estimate, case.printed
    if printed.low != printed.high:
        return [f"every model's mean lies inside, {estimate.reason}"] if estimate.reason else []
    if printed.direction or estimate.low <= printed.low <= estimate.high:
        return []
    ends = f"{case.shown(estimate.low)} to {case.shown(estimate.high)}"
    return [f"the published value lies outside the interval over {estimate.over}, {ends}"]


def missing_cells(case: Case) -> list[str]:
    """The average lacks cells that the ones it is compared with have."""
    lacking = _lacking(case)
    if not lacking or case.balanced is None or not np.isfinite(case.balanced.value):
        return []
    value = case.shown(case.balanced.value)
    if value == case.shown(case.estimate.value):
        return [f"{', '.join(lacking)} is missing, unlike what it is compared with"]
    over = f"over the {case.averages_over} without a gap it is {value}"
    return [f"{', '.join(lacking)} is missing; {over}"]


def _lacking(case: Case) -> list[str]:
    """Cells that the claim's own average asks for and that have no effect."""
    arguments, study = case.arguments, case.study
    models = arguments.get("models") or study.models
    if "model" in arguments:
        models = [arguments["model"]]
    elif arguments.get("training"):
        training = study.facts("training", models)
        models = [m for m, of in zip(models, training, strict=True) if of == arguments["training"]]
    concepts = arguments.get("concepts") or study.concepts
    if "concept" in arguments:
        concepts = [arguments["concept"]]
    absent = study.best("delta", models=models, concepts=concepts).isnull()
    return [
        f"{model} on {concept}"
        for model in absent["model"].values
        for concept in absent["concept"].values
        if absent.sel(model=model, concept=concept)
    ]


def expected_anyway(case: Case) -> list[str]:
    """How much of the largest change of answers would be there if nothing were steered."""
    if not np.isfinite(case.estimate.expected_under_null):
        return []
    excess = best_generation_excess(case.study, **case.arguments)
    null = case.shown(case.estimate.expected_under_null)
    least, most = ("at least ", "at most ") if excess.reason.startswith(UPPER_BOUND) else ("", "")
    return [
        "with nothing added, and the answers only sampled again, it would average "
        f"{least}{null}, which leaves {most}{case.with_interval(excess)}"
    ]


def optimism(case: Case) -> list[str]:
    """How much of the value is the optimism of selecting a layer, and of small samples."""
    added = case.estimate.value - case.estimate.corrected
    if not added > MATERIAL * abs(case.estimate.value):
        return []
    return [f"{case.shown(added)} of it is optimism (selection and small samples)"]


def invalid_items(case: Case) -> list[str]:
    """What the value is without the items that are not of two scored choices."""
    valid = case.compute(case.study.valid_items)
    if not abs(valid.value - case.estimate.value) > MATERIAL * abs(case.estimate.value):
        return []
    without_them = "without the items that are not of two scored choices"
    return [f"{without_them} it is {case.shown(valid.value)}"]


def caveat(case: Case) -> list[str]:
    """What the ledger itself says against the claim."""
    return [case.caveat] if case.caveat else []


def other_versions(case: Case) -> list[str]:
    """Other versions whose number prints differently, or that speak against the direction."""
    printed = case.printed
    return [
        f"{what} it is {case.with_interval(other)}"
        for what, other in case.also
        if np.isfinite(other.value)
        and printed.show(other.value) != printed.show(case.estimate.value)
        and not (
            printed.direction in ("+", "-") and other.excludes_zero and matches(printed, other)
        )
    ]


OF_EVERY_CLAIM: tuple[Remark, ...] = (
    last_digit,
    expected_anyway,
    optimism,
    caveat,
    other_versions,
)
ORDER: tuple[Remark, ...] = (
    *(last_digit, published_outside, missing_cells, expected_anyway, optimism),
    *(invalid_items, caveat, other_versions),
)
"""In the order in which a reader would ask."""

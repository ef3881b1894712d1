"""What may be said: one record a question, its evidence, its grade, and the sentence for it.

The grades and their rules stand in `steercube.analysis.conclusions.grades`; which questions are
asked, and where their evidence comes from, in `steercube.analysis.conclusions.asked`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from steercube.analysis.conclusions.grades import (
    CANNOT_SAY,
    CONFOUNDED,
    CONTRADICTED,
    DECISIVE,
    FRAGILE,
    NEGLIGIBLE,
    NOT_ASKED,
    SUPPORTED,
    UNDECIDED,
    Evidence,
    grade,
    is_headline,
)
from steercube.analysis.conclusions.multiplicity import with_holm
from steercube.analysis.margins import VARIED
from steercube.estimate import Known
from steercube.numerals import signed

HEADLINES, OTHER_OUTCOMES = "headlines", "the contrast in other outcomes"
SIZES_OF_CONCEPTS = "single concepts: size"
AGREE, SPECIFIC = "single concepts: agreement", "single concepts: specificity"
OTHER_CLAIMS = "other published claims"
FAMILIES = (HEADLINES, OTHER_OUTCOMES, SIZES_OF_CONCEPTS, AGREE, SPECIFIC, OTHER_CLAIMS)
"""Families of questions, in each of which Holm's correction is made, the headlines first."""


@dataclass(frozen=True)
class Question:
    """A statement, what the data say of it, and what it takes to say more.

    `known` is what `evidence` was taken from. `large` is the effect that its `chance` is about,
    `needed` what would decide, `remarks` what a reader must know besides. `reason` says why there
    is no evidence.
    """

    id: str
    family: str
    statement: str
    evidence: Evidence
    value: float = np.nan
    known: Known | None = None
    units: str = ""
    over: str = ""
    n: int = 0
    large: float = np.nan
    needed: str = ""
    remarks: tuple[str, ...] = ()
    simulated_as: str = ""
    reason: str = ""
    level: float = field(default=0.95, repr=False)

    @property
    def grade(self) -> str:
        """The grade by the rules of `grades`."""
        return grade(self.evidence)

    def by_margin(self, margin: float) -> Evidence:
        """The evidence with another margin."""
        if self.known is None:
            return replace(self.evidence, margin=margin)
        of = self.evidence
        again = Evidence.of(self.known, of.claimed, margin, self.level)
        return replace(
            of,
            margin=margin,
            probability_negligible=again.probability_negligible,
            p_negligible=again.p_negligible,
            p_beyond=again.p_beyond,
        )


def conclusions(asked: Sequence[Question]) -> pd.DataFrame:
    """One row a question: grade, sentence, and the numbers that chose them, with Holm's p.

    `headline` says whether a summary may state the grade.
    """
    table = with_holm(pd.DataFrame([_row(question) for question in asked]), "family")
    stated = [
        family == HEADLINES and is_headline(found, p)
        for family, found, p in zip(table["family"], table["grade"], table["p_holm"], strict=True)
    ]
    table.insert(table.columns.get_loc("grade") + 1, "headline", np.where(stated, "yes", "no"))
    return table


def _row(question: Question) -> dict[str, Any]:
    of = question.evidence
    return {
        "id": question.id,
        "family": question.family,
        "statement": question.statement,
        "claimed": {1: "+", -1: "-", 0: "0"}[of.claimed],
        "grade": question.grade,
        "sentence": sentence(question),
        "value": question.value,
        "low": of.low,
        "high": of.high,
        "units": question.units,
        "interval_over": question.over,
        "n": question.n,
        "probability_claimed": of.probability_claimed,
        "probability_negligible": of.probability_negligible,
        "margin": of.margin,
        "p_value": of.p_of_grade,
        "chance_if_large": of.chance,
        "carried_by": "; ".join(of.carried_by),
        "confounded_with": "; ".join(of.confounded_with),
        "needed": question.needed,
        "remarks": "; ".join(question.remarks),
        "simulated_as": question.simulated_as,
        "reason": question.reason,
    }


def by_margin(asked: Sequence[Question]) -> pd.DataFrame:
    """The grade of every question, and the probability that it is negligible, by other margins."""
    rows = []
    for question in asked:
        if question.grade == NOT_ASKED:
            continue
        for factor in VARIED:
            evidence = question.by_margin(factor * question.evidence.margin)
            rows.append(
                {
                    "id": question.id,
                    "factor": factor,
                    "margin": evidence.margin,
                    "value": evidence.probability_negligible,
                    "grade": grade(evidence),
                }
            )
    return pd.DataFrame(rows, columns=["id", "factor", "margin", "value", "grade"])


def sentence(question: Question) -> str:
    """The one sentence that a text may use."""
    of, found, said = question.evidence, question.grade, question.statement
    if found == NOT_ASKED:
        return f"Whether {said} is not asked here: {question.reason or 'there is no interval'}."
    shown = f"{question.value:+.2f} [{of.low:.2f}, {of.high:.2f}] {_units(question)}".strip()
    shown = f"{shown}, over {question.over}, n = {question.n}"
    margin = f"±{of.margin:.2g} {_units(question)}".strip()
    whole = {
        SUPPORTED: f"These data support that {said}: {shown}{_small(of, margin)}",
        FRAGILE: f"These data support that {said}, but not without what carries it: {shown}; "
        + ", ".join(of.carried_by),
        CONFOUNDED: f"These data support that {said}, but not why: {shown}; these models also "
        f"differ in {', '.join(of.confounded_with)}",
        CONTRADICTED: f"These data contradict that {said}: {shown}{_small(of, margin)}",
        NEGLIGIBLE: f"If {said}, it is by less than {margin.removeprefix('±')}: {shown}",
        UNDECIDED: f"It is undecided whether {said}: {shown}; the interval {_holds(of, margin)}",
        CANNOT_SAY: f"This design cannot say whether {said}: {shown}; even a large "
        f"effect, {question.large:.3g} {_units(question)}".rstrip()
        + f", would be shown by a t-test in only {of.chance:.0%} of such sweeps",
    }[found]
    more = [question.needed] if question.needed and found not in DECISIVE else []
    if found == CONTRADICTED and of.confounded_with:
        more.append(f"but these models also differ in {', '.join(of.confounded_with)}")
    if found in (CONFOUNDED, CONTRADICTED):
        more += of.carried_by
    return signed("; ".join([whole, *more, *question.remarks])) + "."


def _small(of: Evidence, margin: str) -> str:
    """What a decided interval says of the margin, in words."""
    if not of.claimed:
        return f", {'within' if of.is_negligible else 'beyond'} {margin}"
    return f", though by less than {margin.removeprefix('±')}" if of.is_negligible else ""


def _holds(of: Evidence, margin: str) -> str:
    """What an undecided interval includes, in words."""
    if of.never_negative:
        return (
            f"includes more than {margin}, and a test of no such share gives p = {of.p_value:.2f}"
        )
    if not of.claimed:
        return f"includes values within and beyond {margin}"
    return f"includes both zero and differences larger than {margin.removeprefix('±')}"


def _units(question: Question) -> str:
    return "" if question.units == "1" else question.units

"""The claims ledger: what was published, what its definition gives, and what may be said of it.

Reproducing a number says that the arithmetic is the same; whether the claim holds is another
question. The first is the ledger's own:

- *reproduced*: the definition gives the printed digits, or the printed direction;
- *reproduced, but*: it gives them (or misses by one unit of the last digit), and there is a remark:
  the published value lies outside the interval; the average runs over fewer cells than those it is
  compared with, or over many invalid items; much of the value is optimism, or what noise would
  give; another version of the same statistic says otherwise;
- *not reproduced*: the definition gives something else;
- *no number*: it says that nothing differs, and prints no number;
- *cannot be tested*: the cells do not hold what the claim needs.

The second is that of the question which the claim answers: its `grade`, by the rules of
`steercube.analysis.conclusions.grades`, for every claim that something differs, rises or agrees.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steercube.analysis.conclusions import remarks as of
from steercube.analysis.conclusions.claims import STATISTICS, Claim
from steercube.analysis.conclusions.grades import NOT_ASKED
from steercube.analysis.conclusions.published import Printed, matches, read_printed
from steercube.analysis.conclusions.remarks import Case
from steercube.analysis.per_cell.estimands import NAMES, UNITS
from steercube.analysis.view import Study
from steercube.estimate import Estimate

UNTESTED, NO_NUMBER = "cannot be tested", "no number"
NOT_REPRODUCED, REPRODUCED, WITH_REMARKS = "not reproduced", "reproduced", "reproduced, but"


def ledger(
    study: Study, claims: Sequence[Claim], conclusions: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row a claim: published, recomputed, balanced, interval, verdict and why; its grade.

    `conclusions` are the questions with their grades.
    """
    asked = [] if conclusions is None else conclusions.to_dict("records")
    by_id = {str(question["id"]): question for question in asked}
    return pd.DataFrame([_row(study, claim, by_id) for claim in claims])


def _row(study: Study, claim: Claim, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    case = case_of(study, claim)
    estimate, printed = case.estimate, case.printed
    verdict, reason = judge(case, claim)
    interpretive = STATISTICS[claim.statistic].is_difference
    found, unasked = _grade(claim, asked) if interpretive else ("", "")
    return {
        "id": claim.id,
        "section": claim.section,
        "claim": claim.text,
        "quantity": quantity(claim),
        "published": claim.published,
        "printed_as": printed.manner,
        "is_interpretive": interpretive,
        "recomputed": estimate.value,
        "recomputed_as_printed": _as_printed(printed, estimate),
        "matches": matches(printed, estimate),
        "balanced": case.balanced.value if case.balanced else np.nan,
        "corrected": estimate.corrected,
        "low": estimate.low,
        "high": estimate.high,
        "interval_over": estimate.over,
        "n": estimate.n,
        "also": "; ".join(f"{what}: {case.with_interval(other)}" for what, other in case.also),
        "verdict": verdict,
        "reason": "; ".join(filter(None, (reason, unasked))),
        "question": claim.answers if interpretive else "",
        "grade": found,
        "definition": _definition(claim),
    }


def _grade(claim: Claim, asked: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The grade of the question that a claim answers, and why there is none.

    A question that claims a difference does not answer a claim of none, nor the other way round.
    """
    question = asked.get(claim.answers)
    if question is None:
        return NOT_ASKED, f"no question {claim.answers!r} is asked here, but {', '.join(asked)}"
    if (question["claimed"] == "0") != claim.asserts_none:
        other = "a difference" if claim.asserts_none else "no difference"
        return NOT_ASKED, f"the question {claim.answers} is whether there is {other}"
    return str(question["grade"]), ""


def case_of(study: Study, claim: Claim) -> Case:
    """The claim's statistic of this study, and all that it is judged by."""
    statistic, printed = STATISTICS[claim.statistic], read_printed(claim.published)
    study = study.comparing(claim.contrast)

    def compute(of_study: Study) -> Estimate:
        return statistic.compute(of_study, **claim.arguments)

    absent = claim.absent(study)
    others = [] if absent else claim.also
    also = [(entry["what"], _also(study, claim, entry)) for entry in others]
    return Case(
        study=study,
        arguments=claim.arguments,
        compute=compute,
        printed=printed,
        estimate=Estimate.undefined(absent) if absent else compute(study),
        averages_over=statistic.averages_over,
        caveat=claim.caveat,
        balanced=None if absent else _balanced(study, claim),
        also=also,
    )


def quantity(claim: Claim) -> str:
    """What the claim's number measures, with its units unless it has none."""
    estimand, text = claim.arguments.get("estimand"), STATISTICS[claim.statistic].quantity
    if estimand is None:
        return text
    units = "" if UNITS[estimand] == "1" else f" ({UNITS[estimand]})"
    labels = {name: claim.arguments.get(name, "") for name in ("low", "high")}
    return text.format(NAMES[estimand] + units, **labels)


def _definition(claim: Claim) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in claim.arguments.items())
    return f"{claim.statistic}({arguments})"


def _as_printed(printed: Printed, estimate: Estimate) -> str:
    if printed.low != printed.high and not printed.direction:
        return f"{printed.show(estimate.span[0]).rstrip('%')}-{printed.show(estimate.span[1])}"
    return printed.show(estimate.value)


def _balanced(study: Study, claim: Claim) -> Estimate | None:
    """The same statistic over the models or concepts that none of the compared averages lacks."""
    arguments, statistic = dict(claim.arguments), STATISTICS[claim.statistic]
    if statistic.averages_over == "concepts":
        arguments["concepts"] = study.complete_concepts(arguments.get("concepts"))
        if not arguments["concepts"]:
            return None
    elif statistic.averages_over == "models":
        arguments["models"] = study.complete_models(claim.compared)
    else:
        return None
    return statistic.compute(study, **arguments)


def _also(study: Study, claim: Claim, entry: Mapping[str, Any]) -> Estimate:
    arguments = {name: value for name, value in entry.items() if name != "what"}
    return STATISTICS[claim.statistic].compute(study, **arguments)


def judge(case: Case, claim: Claim) -> tuple[str, str]:
    """The verdict by the rules of this module, and what it rests on."""
    printed, estimate, statistic = case.printed, case.estimate, STATISTICS[claim.statistic]
    if not np.isfinite(estimate.value):
        return UNTESTED, estimate.reason
    if printed.direction == "0":
        return NO_NUMBER, "the claim prints no number"
    as_printed = matches(printed, estimate)
    near = (
        not printed.direction
        and printed.low == printed.high
        and abs(printed.units(estimate.value) - printed.units(printed.low)) <= 1
    )
    if not as_printed and not near:
        return NOT_REPRODUCED, f"the definition gives {_as_printed(printed, estimate)}"
    applying = {*of.OF_EVERY_CLAIM, *statistic.remarks}
    said = [text for remark in of.ORDER if remark in applying for text in remark(case)]
    if said:
        return WITH_REMARKS, "; ".join(said)
    if printed.direction:
        return REPRODUCED, "in direction"
    if printed.approximate:
        return REPRODUCED, "to within one unit of the last digit"
    return REPRODUCED, "to the printed digits"

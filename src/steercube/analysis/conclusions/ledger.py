"""The claims ledger: what was published, what its definition gives, and what holds of it.

Reproducing a number says that the arithmetic is the same; whether the claim holds is another
question. The ledger answers both, by the same rules for every claim:

- *reproduced*: the definition gives the printed digits, and no rule below objects;
- *reproduced, but ...*: it gives them (or misses by one unit of the last digit), and a rule
  objects: the interval of a claimed difference includes zero, or one model or concept carries it;
  the published value lies outside the interval; the average runs over fewer cells than those it
  is compared with, or over many invalid items; much of the value is optimism, or what noise would
  give; another version of the same statistic says otherwise;
- *not reproduced*: the definition gives something else;
- *cannot be tested*: the cells do not hold what the claim needs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steercube.analysis.conclusions import objections as of
from steercube.analysis.conclusions.claims import NO_DIFFERENCE, STATISTICS, Claim
from steercube.analysis.conclusions.objections import Case
from steercube.analysis.conclusions.published import Printed, matches, read_printed
from steercube.analysis.per_cell.estimands import NAMES, UNITS
from steercube.analysis.view import Study
from steercube.estimate import Estimate

UNTESTED = "cannot be tested"
NOT_REPRODUCED, REPRODUCED, WITH_OBJECTIONS = "not reproduced", "reproduced", "reproduced, but"


def ledger(study: Study, claims: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim: published, recomputed, balanced, interval, verdict and why."""
    return pd.DataFrame([_row(study, claim) for claim in claims])


def _row(study: Study, claim: Claim) -> dict[str, Any]:
    case = case_of(study, claim)
    estimate, printed = case.estimate, case.printed
    verdict, reason = judge(case, claim)
    return {
        "id": claim.id,
        "section": claim.section,
        "claim": claim.text,
        "quantity": quantity(claim),
        "published": claim.published,
        "printed_as": printed.manner,
        "is_interpretive": STATISTICS[claim.statistic].is_difference,
        "recomputed": estimate.value,
        "recomputed_as_printed": _as_printed(printed, estimate),
        "matches": matches(printed, estimate, case.rope),
        "passes_test": _passes_test(case, claim),
        "balanced": case.balanced.value if case.balanced else np.nan,
        "corrected": estimate.corrected,
        "low": estimate.low,
        "high": estimate.high,
        "interval_over": estimate.over,
        "n": estimate.n,
        "p_value": estimate.p_value,
        "also": "; ".join(f"{what}: {case.with_interval(other)}" for what, other in case.also),
        "verdict": verdict,
        "reason": reason,
        "definition": _definition(claim),
    }


def case_of(study: Study, claim: Claim) -> Case:
    """The claim's statistic of this study, and all that it is judged by."""
    statistic, printed = STATISTICS[claim.statistic], read_printed(claim.published)
    study = study.comparing(claim.contrast)

    def compute(of_study: Study) -> Estimate:
        return statistic.compute(of_study, **claim.arguments)

    absent = _absent(study, claim)
    others = [] if absent else claim.also
    also = [(entry["what"], _also(study, claim, entry)) for entry in others]
    return Case(
        study=study,
        arguments=claim.arguments,
        compute=compute,
        printed=printed,
        estimate=Estimate.undefined(absent) if absent else compute(study),
        rope=rope(study, claim),
        asserts_none=claim.asserts == "none" or printed.direction == "0",
        permuted=statistic.permuted,
        averages_over=statistic.averages_over,
        caveat=claim.caveat,
        balanced=None if absent else _balanced(study, claim),
        also=also,
    )


def _absent(study: Study, claim: Claim) -> str:
    """What to say of models or concepts that a claim names and these cells have not; else empty."""
    for kind in ("model", "concept"):
        there = [str(name) for name in study.cells.indexes[kind]]
        named = claim.arguments.get(f"{kind}s") or [claim.arguments.get(kind)]
        absent = [n for n in named if n is not None and n not in there]
        if absent:
            listed = " or ".join(map(repr, absent))
            return f"there is no {kind} {listed} here, but {', '.join(there)}"
    return ""


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


def rope(study: Study, claim: Claim) -> float:
    """Half-width of the region of practical equivalence: what counts as no difference at all.

    Of an effect what the hierarchical model takes: 0.1 of a standardised one, in nats a tenth of
    the best effects' root mean square. Of the best depth 0.025; of an r or a share 0.1.
    """
    stated, estimand = STATISTICS[claim.statistic].rope, claim.arguments.get("estimand")
    if stated is not None:
        return stated
    if estimand is None or UNITS[estimand] == "1":
        return NO_DIFFERENCE
    effects = study.best(estimand).values
    defined = effects[np.isfinite(effects)]
    return NO_DIFFERENCE * float(np.sqrt(np.mean(defined**2))) if defined.size else np.nan


def _passes_test(case: Case, claim: Claim) -> bool:
    """Whether it is as printed, and neither its interval nor its p-value speaks against it.

    For a sign that is its test; that nothing differs is shown by an interval within the region.
    """
    as_printed = matches(case.printed, case.estimate, case.rope)
    return as_printed and not STATISTICS[claim.statistic].main_objection(case)


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
    as_printed = matches(printed, estimate, case.rope)
    if printed.direction == "0" and not as_printed:
        return NOT_REPRODUCED, "; ".join(statistic.main_objection(case))
    near = (
        not printed.direction
        and printed.low == printed.high
        and abs(printed.units(estimate.value) - printed.units(printed.low)) <= 1
    )
    if not as_printed and not near:
        return NOT_REPRODUCED, f"the definition gives {_as_printed(printed, estimate)}"
    applying = {*of.OF_EVERY_CLAIM, statistic.main_objection, *statistic.more_objections}
    objections = [
        text for objection in of.ORDER if objection in applying for text in objection(case)
    ]
    if objections:
        return WITH_OBJECTIONS, "; ".join(objections)
    if printed.direction:
        return REPRODUCED, "in direction"
    if printed.approximate:
        return REPRODUCED, "to within one unit of the last digit"
    return REPRODUCED, "to the printed digits"

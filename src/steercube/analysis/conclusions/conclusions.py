r"""What may be said: one sentence a question, no stronger than its interval, chosen by rule.

A statement is *reproduced* only if its interval lies on the claimed side of zero and nothing below
objects; *contradicted* if it lies on the other side, unobjected; *negligible* if it, and every
interval without one model or concept, lies within what was called negligible beforehand, whatever
its sign; else *inconclusive*, with what speaks against it. Objections, each from a table:

- the interval includes zero;
- the exact permutation of labels gives p > 0.05; with two of six models it cannot give less, and
  then that is said;
- the design confounds the cause with another: one label's models all have more blocks;
- without one model, or one concept, the interval includes zero or lies on its other side, or p
  exceeds 0.05;
- another measure of the same thing (active instead of total parameters), or a prior that lets
  models differ more, does so too.

What cannot be computed where it is asked for is an objection as well. *Cannot be asked* has the
reason why the data hold no answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from steercube.analysis.agreement.agreement import MEAN_R, MISMATCHED
from steercube.analysis.conclusions.claims import Claim
from steercube.analysis.over_models.cell_effects import OUTCOMES
from steercube.analysis.over_models.comparisons import depth_difference
from steercube.analysis.over_models.contrast_effect import (
    ADJUSTMENTS,
    EXACT,
    PERMUTATION,
    covariates,
)
from steercube.analysis.over_models.leave_one_out import EVERY_PART
from steercube.analysis.over_models.posterior import PRIOR
from steercube.analysis.per_cell.estimands import NAMES
from steercube.analysis.view import Study
from steercube.contrast import Contrast
from steercube.estimate import SIGNIFICANT
from steercube.numerals import signed

REPRODUCED, INCONCLUSIVE = "reproduced", "inconclusive"
CONTRADICTED, NEGLIGIBLE = "contradicted", "negligible"
UNASKED = "cannot be asked"
PLACES = {
    "best_depth": "depth of the best layer",
    "depth_centroid": "centroid of the effect over depth",
}

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Question:
    """A statement as claimed, the sign it needs, its estimate, and what speaks against using it.

    `furthest` is the end furthest from zero of all intervals, those without a part included; `rope`
    the half-width of the region of practical equivalence.
    """

    id: str
    statement: str
    claimed: int
    value: float
    low: float
    high: float
    over: str
    n: int
    units: str = ""
    p_value: float = np.nan
    rope: float = 0.0
    furthest: float = np.inf
    objections: tuple[str, ...] = ()
    reason: str = ""


def verdict(question: Question) -> tuple[str, str]:
    """The verdict by the rules of this module, and what it rests on where it is not reproduced."""
    if not np.isfinite(question.value) or not np.isfinite(question.low):
        return UNASKED, question.reason or "there is no interval"
    if max(-question.low, question.high, question.furthest) < question.rope:
        bound = f"{question.rope:g} {_units(question)}".strip()
        return NEGLIGIBLE, f"with every model or concept left out, too, it is under {bound}"
    if question.low <= 0 <= question.high:
        return INCONCLUSIVE, "the interval includes zero"
    if question.objections:
        return INCONCLUSIVE, "; ".join(question.objections)
    if np.sign(question.low) == question.claimed:
        return REPRODUCED, ""
    return CONTRADICTED, "the interval lies on the other side of zero"


def _units(question: Question) -> str:
    return "" if question.units == "1" else question.units


def sentence(question: Question, found: str, why: str) -> str:
    """The one sentence that a text may use."""
    if found == UNASKED:
        return f"Whether {question.statement} cannot be asked of these data: {why}."
    shown = f"{question.value:+.2f} [{question.low:.2f}, {question.high:.2f}] {_units(question)}"
    shown = f"{shown.strip()}, over {question.over}, n = {question.n}".replace("-", "−")
    return {
        REPRODUCED: f"These data show that {question.statement}: {shown}.",
        INCONCLUSIVE: f"These data do not settle whether {question.statement}: {shown}; {why}.",
        CONTRADICTED: f"These data contradict that {question.statement}: {shown}; {why}.",
        NEGLIGIBLE: f"The question whether {question.statement} is about a negligible difference: "
        f"{shown}; {why}.",
    }[found]


def conclusions(study: Study, tables: Tables, claims: Sequence[Claim] = ()) -> pd.DataFrame:
    """One row a question: verdict, sentence, and the numbers that chose them."""
    rows = []
    for question in _questions(study, tables, claims):
        found, why = verdict(question)
        rows.append(
            {
                "id": question.id,
                "statement": question.statement,
                "claimed": {1: "+", -1: "-"}[question.claimed],
                "verdict": found,
                "sentence": sentence(question, found, why),
                "value": question.value,
                "low": question.low,
                "high": question.high,
                "interval_over": question.over,
                "n": question.n,
                "p_value": question.p_value,
                "reason": why,
            }
        )
    return pd.DataFrame(rows)


def _questions(study: Study, tables: Tables, claims: Sequence[Claim]) -> Iterator[Question]:
    if study.contrast is not None:
        for outcome in OUTCOMES:
            yield _of_contrast(study, study.contrast, tables, outcome)
    yield from _of_scale(tables, claims)
    yield _of_ranking(tables)
    yield from _of_agreement(tables)


def _question(row: Mapping[str, Any], value: str = "value", **fields: Any) -> Question:
    """A question whose numbers are those of one row of a table."""
    usual = {
        "value": float(row[value]),
        "low": float(row["low"]),
        "high": float(row["high"]),
        "over": row.get("interval_over", ""),
        "n": int(row.get("n", 0)),
        "p_value": float(row["p_value"]),
        "claimed": 1,
        "reason": row["reason"],
    }
    return Question(**usual | fields)


def _of_contrast(study: Study, contrast: Contrast, tables: Tables, outcome: str) -> Question:
    """The primary interval, the exact permutation beside it, and the intervals without a part."""
    place = outcome not in NAMES
    of = tables["contrast_effect"]
    of = of[of["outcome"] == outcome]
    held, primary = _primary(of, contrast)
    rest, priors = (
        table[(table["outcome"] == outcome) & (table["covariates"] == held)]
        for table in (tables["leave_one_out"], tables["prior_sensitivity"])
    )
    objections, p = [], np.nan
    if np.isfinite(primary["low"]):
        side = np.sign(primary["low"])
        permuted = of[of["method"] == PERMUTATION]
        p, least = permuted[["p_value", "smallest_p"]].iloc[0] if len(permuted) else (p, p)
        if place and (confound := depth_difference(study).reason):
            objections.append(f"{confound}, which the data cannot separate from {contrast.by}")
        objections += _of_permutation(p, least, contrast.by)
        objections += _without(rest, side)
        objections += _of_priors(priors, side)
    is_adjusted = held == covariates(contrast, ADJUSTMENTS[0])
    fixed = f"with {contrast.held} held fixed; " if is_adjusted else ""
    statement = (
        f"{contrast.models_of(contrast.high)} steer best later in the network "
        f"({fixed}{PLACES[outcome]})"
        if place
        else f"{contrast.named(contrast.high)} lowers the effect of steering "
        f"({fixed}{NAMES[outcome]})"
    )
    ends = rest[["low", "high"]].abs() if "low" in rest else pd.DataFrame()
    return _question(
        primary,
        "estimate",
        id=f"{contrast.by}-{outcome}".replace("_", "-"),
        statement=statement,
        claimed=1 if place else -1,
        over=primary["random_effects"],
        n=int(primary["n_models"]),
        units=OUTCOMES[outcome].units,
        p_value=float(p),
        rope=float(primary["rope"]) if primary["rope"] > 0 else 0.0,
        furthest=float(ends.max(axis=None)) if len(ends) else np.inf,
        objections=tuple(objections),
    )


def _primary(rows: pd.DataFrame, contrast: Contrast) -> tuple[str, pd.Series]:
    """The exact fit with as many terms as these models can separate, and what those are."""
    names = [covariates(contrast, terms) for terms in ADJUSTMENTS]
    exact = rows[(rows["method"] == EXACT) & rows["covariates"].isin(names)]
    defined = exact[exact["low"].notna()]
    row = (defined if len(defined) else exact).iloc[0]
    return row["covariates"], row


def _of_permutation(p: float, least: float, by: str) -> list[str]:
    if p <= SIGNIFICANT:
        return []
    if np.isnan(p):
        return [f"the {by} labels cannot be permuted"]
    if p <= least * (1 + 1e-9):
        return [
            f"no other way to give out the {by} labels is as extreme, but with so few "
            f"models p cannot be under {least:.3f}"
        ]
    return [f"giving the {by} labels to other models yields as much (p = {p:.3f})"]


def _of_priors(rows: pd.DataFrame, side: float) -> list[str]:
    """A prior that lets models differ by as much or more, under which nothing is left."""
    wider = rows[(rows["prior_of"] == "sd_model") & (rows["prior_scale"] >= PRIOR.sd_model)]
    lost = wider[~_on_side(wider, side)]
    if not len(lost):
        return []
    row = lost.iloc[0]
    prior = f"half-normal({row['prior_scale']:g})"
    return [f"with sd_model ~ {prior} it is " + signed(f"[{row['low']:.2f}, {row['high']:.2f}]")]


def _on_side(rows: pd.DataFrame, side: float) -> pd.Series:
    """Which intervals lie all on one side of zero."""
    return np.minimum(side * rows["low"], side * rows["high"]) > 0


def _without(rows: pd.DataFrame, side: float) -> list[str]:
    """Parts without which the interval is not all on its side of zero, or cannot be had."""
    if "low" not in rows:
        return []
    parts = rows[rows["without"].isin(["model", "concept"]) & (rows["left_out"] != EVERY_PART)]
    lost = parts[~_on_side(parts, side)]
    unknown = lost["low"].isna()
    return [
        f"without {' or '.join(some['left_out'])} {what}"
        for some, what in (
            (lost[~unknown], "it includes zero or changes sign"),
            (lost[unknown], "there is no interval"),
        )
        if len(some)
    ]


def _of_scale(tables: Tables, claims: Sequence[Claim]) -> Iterator[Question]:
    """The claims of a slope on size, in Cohen's d: by total and by active parameters."""
    trends = tables["scale_trends"]
    trends = trends[(trends["outcome"] == "cohens_d") & (trends["method"] == "least squares")]
    for claim in claims:
        if claim.statistic != "scale_slope" or claim.published not in ("+", "-"):
            continue
        concept = claim.arguments["concept"]
        of = trends[trends["concept"] == concept].set_index("size")
        if "n_params" not in of.index:
            continue
        total, active = of.loc["n_params"], of.loc["n_active_params"]
        objections, side = [], np.sign(total["low"])
        if not min(side * active["low"], side * active["high"]) > 0:
            ends = f"{active['value']:.2f} [{active['low']:.2f}, {active['high']:.2f}]"
            objections.append(f"by active parameters it is {signed(ends)}")
        rest = tables["sensitivity"]
        objections += _without(rest[rest["headline"] == f"scale slope of {concept}"], side)
        harder = "harder" if claim.published == "-" else "easier"
        yield _question(
            total,
            id=f"scale-{concept.replace('_', '-')}",
            statement=f"{concept.replace('_', ' ')} is {harder} to steer in larger models "
            "(Cohen's d for a tenfold size)",
            claimed=-1 if claim.published == "-" else 1,
            over="models",
            objections=tuple(objections),
        )


def _of_ranking(tables: Tables) -> Question:
    """The share of variance that models have in common: its test, also without each part."""
    rows = tables["sensitivity"]
    rows = rows[rows["headline"] == "concept share in cohens_d"]
    whole = rows[rows["without"] == "nothing"].iloc[0]
    parts = rows[rows["without"].isin(["model", "concept"])]
    objections = []
    if not whole["p_value"] <= SIGNIFICANT:
        objections.append(
            f"models with no ranking in common agree as well (p = {whole['p_value']:.3f})"
        )
    carried = parts[~(parts["p_value"] <= SIGNIFICANT)]
    if len(carried):
        named = zip(carried["left_out"], carried["p_value"], strict=True)
        listed = " or ".join(f"{left_out} (p = {p:.3f})" for left_out, p in named)
        objections.append(f"without {listed} models with no ranking in common agree as well")
    return _question(
        whole,
        id="ranking",
        statement="models rank the concepts alike (the share of the variance over concepts, in "
        "Cohen's d, that models have in common)",
        objections=tuple(objections),
    )


def _of_agreement(tables: Tables) -> Iterator[Question]:
    """Mean r of each concept's models, and whether it rises with the effect."""
    table = tables["agreement"]
    if not len(table):
        return
    over_models = table[table["model"] == "every model"]
    mismatched = over_models[over_models["statistic"] == MISMATCHED].set_index("concept")
    for _, row in over_models[over_models["statistic"] == MEAN_R].iterrows():
        concept, objections = row["concept"], []
        other = mismatched.loc[concept]
        if not other["low"] > 0:
            ends = f"{other['value']:+.2f} [{other['low']:.2f}, {other['high']:.2f}]"
            objections.append(
                "it is not shown that other concepts' logits predict the answers less well "
                f"({signed(ends)})"
            )
        yield _question(
            row,
            id=f"agreement-{concept.replace('_', '-')}",
            statement="logits and answers agree on which layers steer "
            f"{concept.replace('_', ' ')} (r)",
            objections=tuple(objections),
        )
    slopes = table[table["statistic"] == "slope of r on cohens_d"]
    for _, row in slopes.iterrows():
        p = row["p_value"]
        exchanged = f"over every exchange of the concepts p = {p:.2f}"
        yield _question(
            row,
            id="agreement-tracks-steering",
            statement="concepts that steer well have logits and answers that agree (r per unit of "
            "d)",
            objections=() if p <= SIGNIFICANT else (exchanged,),
        )

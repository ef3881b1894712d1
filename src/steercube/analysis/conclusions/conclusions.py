r"""What may be said: one sentence a question, no stronger than its interval, chosen by rule.

A statement is *reproduced* only if its interval lies on the claimed side of zero and nothing below
objects; *contradicted* if it lies on the other side, unobjected; *negligible* if it, and every
interval without one model or concept, lies within what was called negligible beforehand, whatever
its sign; else *inconclusive*, with what speaks against it. Objections, each from a table:

- the interval includes zero;
- the exact permutation of labels gives p > 0.05; with two of six models it cannot give less, and
  then that is said;
- the design confounds the cause with another: one training's models all have more blocks;
- without one model, or one concept, the interval includes zero or lies on its other side, or p
  exceeds 0.05;
- another measure of the same thing (active instead of total parameters), or a prior that lets
  models differ more, does so too.

What cannot be computed where it is asked for is an objection as well. *Cannot be asked* has the
reason why the data hold no answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.agreement.agreement import MEAN_R, MISMATCHED
from steercube.analysis.conclusions.claims import SIGNIFICANT, Claim
from steercube.analysis.over_models.depth import depth_difference
from steercube.analysis.over_models.leave_one_out import EVERY_PART
from steercube.analysis.over_models.posterior import OUTCOMES, PRIOR
from steercube.analysis.over_models.training import ADJUSTED, BOTH, GRID, PERMUTATION
from steercube.analysis.per_cell.estimands import NAMES

REPRODUCED, INCONCLUSIVE = "reproduced", "inconclusive"
CONTRADICTED, NEGLIGIBLE = "contradicted", "negligible"
UNASKED = "cannot be asked"

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Question:
    """A statement as claimed, the sign it needs, its estimate, and what speaks against using it.

    `furthest` is the end furthest from zero of all intervals, those without a part included.
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
    negligible: float = 0.0
    furthest: float = np.inf
    objections: tuple[str, ...] = ()
    reason: str = ""


def verdict(question: Question) -> tuple[str, str]:
    """The verdict by the rules of this module, and what it rests on where it is not reproduced."""
    if not np.isfinite(question.value) or not np.isfinite(question.low):
        return UNASKED, question.reason or "there is no interval"
    if max(-question.low, question.high, question.furthest) < question.negligible:
        bound = f"{question.negligible:g} {_units(question)}".strip()
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


def conclusions(cells: xr.Dataset, tables: Tables, claims: Sequence[Claim] = ()) -> pd.DataFrame:
    """One row a question: verdict, sentence, and the numbers that chose them."""
    rows = []
    for question in _questions(cells, tables, claims):
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


def _questions(cells: xr.Dataset, tables: Tables, claims: Sequence[Claim]) -> Iterator[Question]:
    for outcome in OUTCOMES:
        yield _of_training(cells, tables, outcome)
    yield from _of_scale(tables, claims)
    yield _of_ranking(tables)
    yield from _of_agreement(tables)


def _of_training(cells: xr.Dataset, tables: Tables, outcome: str) -> Question:
    """The primary interval, the exact permutation beside it, and the intervals without a part."""
    place = outcome not in NAMES
    of = tables["training_effect"]
    of = of[of["outcome"] == outcome]
    adjusted, primary = _primary(of)
    rest = tables["leave_one_out"]
    rest = rest[(rest["outcome"] == outcome) & (rest["adjusted"] == adjusted)]
    priors = tables["prior_sensitivity"]
    priors = priors[(priors["outcome"] == outcome) & (priors["adjusted"] == adjusted)]
    objections, p = [], np.nan
    if np.isfinite(primary["low"]):
        side = np.sign(primary["low"])
        permuted = of[of["method"] == PERMUTATION]
        p, least = permuted[["p_value", "least_p"]].iloc[0] if len(permuted) else (np.nan, np.nan)
        if place and (confound := depth_difference(cells).reason):
            objections.append(f"{confound}, which the data cannot tell from training")
        objections += _of_permutation(p, least)
        objections += _without(rest, side)
        objections += _of_priors(priors, side)
    held = "with size held fixed; " if adjusted == BOTH else ""
    statement = (
        f"full-RL models steer best later in the network ({held}{NAMES_OF_PLACES[outcome]})"
        if place
        else f"full RL lowers the effect of steering ({held}{NAMES[outcome]})"
    )
    ends = rest[["low", "high"]].abs() if "low" in rest else pd.DataFrame()
    return Question(
        id=f"training-{outcome.replace('_', '-')}",
        statement=statement,
        claimed=1 if place else -1,
        value=float(primary["estimate"]),
        low=float(primary["low"]),
        high=float(primary["high"]),
        over=primary["takes_as_random"],
        n=int(primary["n_models"]),
        units=OUTCOMES[outcome].units,
        p_value=float(p),
        negligible=float(primary["negligible"]) if primary["negligible"] > 0 else 0.0,
        furthest=float(ends.max(axis=None)) if len(ends) else np.inf,
        objections=tuple(objections),
        reason=primary["reason"],
    )


def _primary(rows: pd.DataFrame) -> tuple[str, pd.Series]:
    """The exact fit with as many terms as these models can tell apart, and what those are."""
    exact = rows[(rows["method"] == GRID) & rows["adjusted"].isin(ADJUSTED)]
    told = exact[exact["low"].notna()]
    row = (told if len(told) else exact).iloc[0]
    return row["adjusted"], row


def _of_permutation(p: float, least: float) -> list[str]:
    if p <= SIGNIFICANT:
        return []
    if np.isnan(p):
        return ["the training labels cannot be permuted"]
    if p <= least * (1 + 1e-9):
        return [
            "no other way to give out the training labels is as extreme, but with so few "
            f"models p cannot be under {least:.3f}"
        ]
    return [f"giving the training labels to other models yields as much (p = {p:.3f})"]


def _of_priors(rows: pd.DataFrame, side: float) -> list[str]:
    """A prior that lets models differ by as much or more, under which nothing is left."""
    wider = rows[(rows["prior_of"] == "sd_model") & (rows["prior_scale"] >= PRIOR.sd_model)]
    lost = wider[~(np.minimum(side * wider["low"], side * wider["high"]) > 0)]
    if not len(lost):
        return []
    row = lost.iloc[0]
    return [
        f"with sd_model ~ half-normal({row['prior_scale']:g}) it is "
        f"[{row['low']:.2f}, {row['high']:.2f}]".replace("-", "−").replace("half−", "half-")
    ]


NAMES_OF_PLACES = {
    "best_depth": "depth of the best layer",
    "depth_centroid": "centroid of the effect over depth",
}


def _without(rows: pd.DataFrame, side: float) -> list[str]:
    """Parts without which the interval is not all on its side of zero, or cannot be had."""
    if "low" not in rows:
        return []
    parts = rows[rows["without"].isin(["model", "concept"]) & (rows["left_out"] != EVERY_PART)]
    kept = np.minimum(side * parts["low"], side * parts["high"]) > 0
    lost = parts[~kept]
    if not len(lost):
        return []
    unknown = lost["low"].isna()
    said = []
    if (~unknown).any():
        said.append(
            f"without {' or '.join(lost[~unknown]['left_out'])} it includes zero or changes sign"
        )
    if unknown.any():
        said.append(f"without {' or '.join(lost[unknown]['left_out'])} there is no interval")
    return said


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
            objections.append(
                f"by active parameters it is {active['value']:.2f} "
                f"[{active['low']:.2f}, {active['high']:.2f}]".replace("-", "−")
            )
        rest = tables["sensitivity"]
        objections += _without(rest[rest["headline"] == f"scale slope of {concept}"], side)
        harder = "harder" if claim.published == "-" else "easier"
        yield Question(
            id=f"scale-{concept.replace('_', '-')}",
            statement=f"{concept.replace('_', ' ')} is {harder} to steer in larger models "
            "(Cohen's d for a tenfold size)",
            claimed=-1 if claim.published == "-" else 1,
            value=float(total["value"]),
            low=float(total["low"]),
            high=float(total["high"]),
            over="models",
            n=int(total["n"]),
            p_value=float(total["p_value"]),
            objections=tuple(objections),
            reason=total["reason"],
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
        listed = " or ".join(
            f"{r['left_out']} (p = {r['p_value']:.3f})" for _, r in carried.iterrows()
        )
        objections.append(f"without {listed} models with no ranking in common agree as well")
    return Question(
        id="ranking",
        statement="models rank the concepts alike (the share of the variance over concepts, in "
        "Cohen's d, that models have in common)",
        claimed=1,
        value=float(whole["value"]),
        low=float(whole["low"]),
        high=float(whole["high"]),
        over=whole["interval_over"],
        n=int(whole["n"]),
        p_value=float(whole["p_value"]),
        objections=tuple(objections),
        reason=whole["reason"],
    )


def _of_agreement(tables: Tables) -> Iterator[Question]:
    """Mean r of each concept's models, and whether it rises with the effect."""
    table = tables["agreement"]
    if not len(table):
        return
    over_models = table[table["model"] == "every model"]
    means = over_models[over_models["statistic"] == MEAN_R]
    mismatched = over_models[over_models["statistic"] == MISMATCHED].set_index("concept")
    for _, row in means.iterrows():
        concept = row["concept"]
        objections = []
        other = mismatched.loc[concept]
        if not other["low"] > 0:
            objections.append(
                "it is not shown that other concepts' logits predict the answers less well "
                f"({other['value']:+.2f} [{other['low']:.2f}, {other['high']:.2f}])".replace(
                    "-", "−"
                )
            )
        yield _question_of_r(
            row, f"agreement-{concept.replace('_', '-')}",
            f"logits and answers agree on which layers steer {concept.replace('_', ' ')} (r)",
            objections,
        )  # fmt: skip
    slope = table[table["statistic"] == "slope of r on cohens_d"]
    if len(slope):
        row = slope.iloc[0]
        p = row["p_value"]
        objections = (
            [] if p <= SIGNIFICANT else [f"over every exchange of the concepts p = {p:.2f}"]
        )
        yield _question_of_r(
            row, "agreement-tracks-steering",
            "concepts that steer well have logits and answers that agree (r per unit of d)",
            objections,
        )  # fmt: skip


def _question_of_r(
    row: pd.Series, name: str, statement: str, objections: Sequence[str]
) -> Question:
    return Question(
        id=name,
        statement=statement,
        claimed=1,
        value=float(row["value"]),
        low=float(row["low"]),
        high=float(row["high"]),
        over=row["interval_over"],
        n=int(row["n"]),
        p_value=float(row["p_value"]),
        objections=tuple(objections),
        reason=row["reason"],
    )

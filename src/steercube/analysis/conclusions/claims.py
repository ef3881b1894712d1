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

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.agreement.agreement import agreement_against_effect, pooled_agreement
from steercube.analysis.agreement.generation import (
    UPPER_BOUND,
    best_generation,
    best_generation_excess,
)
from steercube.analysis.conclusions.sensitivity import without, without_invalid_items
from steercube.analysis.over_models.concordance import concept_share
from steercube.analysis.over_models.contrasts import (
    architecture_difference,
    scale_slope,
    training_gap,
)
from steercube.analysis.over_models.depth import depth_difference, training_depth
from steercube.analysis.over_models.means import (
    best_effects,
    complete_concepts,
    complete_models,
    concept_mean,
    mean_over_models,
    model_mean,
    swept_models,
)
from steercube.analysis.over_models.posterior import OUTCOMES
from steercube.analysis.per_cell.estimands import ESTIMANDS, NAMES, UNITS
from steercube.estimate import Estimate
from steercube.schema import raise_if_any, read_toml

Statistic = Callable[..., Estimate]
STATISTICS: dict[str, Statistic] = {
    statistic.__name__: statistic
    for statistic in (
        agreement_against_effect,
        architecture_difference,
        best_generation,
        concept_mean,
        concept_share,
        depth_difference,
        mean_over_models,
        model_mean,
        pooled_agreement,
        scale_slope,
        training_depth,
        training_gap,
    )
}
OVER_CONCEPTS = {"model_mean", "mean_over_models", "training_gap", "architecture_difference"}
"""Statistics that average over concepts: balanced over the concepts that every model ran."""

OVER_MODELS = {"concept_mean", "scale_slope"}
"""Statistics that run over models: balanced over the models that ran every compared concept."""

CONTRASTS = {
    "agreement_against_effect",
    "architecture_difference",
    "concept_share",
    "depth_difference",
    "pooled_agreement",
    "scale_slope",
    "training_gap",
}
"""Statistics that are zero where nothing differs, so their interval can speak for or against."""

SPANNING = {"best_generation", "concept_mean", "mean_over_models", "training_depth"}
"""Statistics that average members, which a published range may hold."""

QUANTITIES = {
    "agreement_against_effect": "change of r per unit of effect",
    "architecture_difference": "MoE minus dense, {}",
    "best_generation": "share of generated answers changed",
    "concept_mean": "{} of a concept",
    "concept_share": "share of the variance over concepts that models share, {}",
    "depth_difference": "difference of depth (fraction)",
    "mean_over_models": "average {}",
    "model_mean": "average {}",
    "pooled_agreement": "logit–generation correlation r",
    "scale_slope": "{} per tenfold size",
    "training_depth": "typical best depth (fraction)",
    "training_gap": "training gap, share of {}",
}
"""What each statistic measures, {} standing for its estimand; claims of a kind share a scale."""

ASSERTED = ("difference", "none")
"""What a claim may say: that something differs, or that nothing does."""

SIZES = ("n_params", "n_active_params")
"""What a slope may run over."""

ARGUMENT_KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "a list of texts": lambda value: (
        isinstance(value, list) and all(isinstance(text, str) for text in value)
    ),
    "a whole number": lambda value: type(value) is int,
}
KIND_OF_ARGUMENT = {
    **dict.fromkeys(["concepts", "models"], "a list of texts"),
    "from_rounded": "a whole number",
}
"""What a ledger gives to a statistic, where it is no text."""

MATERIAL = 0.05
"""A value that changes by more than this share, by optimism or invalid items, gets a caveat."""

NO_DIFFERENCE = 0.1
"""Half-width of the region of practical equivalence of a standardised effect, a share or an r."""

INFLUENTIAL = 0.5
"""A difference that loses more than this share without one model or concept rests on it."""

MOST_DIGITS = 40
"""Characters of a published value."""

SIGNIFICANT = 0.05
"""p-values above this are no evidence against chance."""


@dataclass(frozen=True)
class Printed:
    """A published value as printed: ends of a range (equal for a number), digits, manner."""

    low: float
    high: float
    decimals: int
    percent: bool = False
    approximate: bool = False
    direction: str = ""

    @property
    def manner(self) -> str:
        """How precisely it is printed: as a number, an approximate one (~ or a range), or a sign.

        >>> read_printed("9.15").manner, read_printed("~7.5").manner, read_printed("+").manner
        ('number', 'approximate', 'qualitative')
        """
        if self.direction:
            return "qualitative"
        return "approximate" if self.approximate or self.low != self.high else "number"

    @property
    def unit(self) -> float:
        """One unit of the last printed digit."""
        return 10.0**-self.decimals / (100 if self.percent else 1)

    def units(self, value: float) -> int:
        """`value` rounded to the digits printed, as a whole number of their last unit."""
        return round(value / self.unit)

    def show(self, value: float) -> str:
        """`value` in the manner of print.

        >>> read_printed("7%").show(0.0667)
        '7%'
        """
        if not np.isfinite(value):
            return ""
        if self.direction:
            return f"{value:+.2f}"
        shown = f"{value * (100 if self.percent else 1):.{self.decimals}f}"
        return shown + ("%" if self.percent else "")


def read_printed(text: str) -> Printed:
    """What a printed value says: "9.15", "~7.5", "7%", "50-65%", or a direction "+", "-", "0".

    >>> read_printed("50-65%").low
    0.5
    """
    if text in ("+", "-", "0"):
        return Printed(np.nan, np.nan, 0, direction=text)
    found = re.fullmatch(r"(~?)(-?\d+(?:\.(\d+))?)(?:-(\d+(?:\.\d+)?))?(%?)", text, re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is no printed value; write 9.15, ~7.5, 7%, 50-65%, +, - or 0")
    tilde, first, digits, last, percent = found.groups()
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:MOST_DIGITS]}... has more digits than a number that is printed")
    scale = 100 if percent else 1
    low, high = float(first) / scale, float(last or first) / scale
    if high < low:
        raise ValueError(f"{text!r} is a range that ends below its beginning")
    return Printed(low, high, len(digits or ""), percent=bool(percent), approximate=bool(tilde))


@dataclass(frozen=True)
class Claim:
    """One published claim and the statistic, with its arguments, that defines its number.

    `asserts` is "none" for a claim that something is absent, however small its number is.
    """

    id: str
    section: str
    text: str
    published: str
    statistic: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    compared: Sequence[str] | None = None
    caveat: str = ""
    asserts: str = "difference"
    also: Sequence[Mapping[str, Any]] = ()


def read_claims(path: str | Path) -> tuple[str, list[Claim]]:
    """The study that a ledger is about, and its claims. Raises ValueError with every problem."""
    table = read_toml(path)
    claims, problems = [], []
    entries = table.get("claim", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: claims are written [[claim]], with two brackets")
    unknown = sorted(set(table) - {"study", "claim"})
    problems += [f"`{name}` is unknown; write `study` and [[claim]]" for name in unknown]
    for number, entry in enumerate(entries, start=1):
        name = entry.get("id", f"number {number}")
        try:
            wrong = _field_problems(entry)
            claim = Claim(**entry)
            if not wrong:
                read_printed(claim.published)
        except (TypeError, ValueError) as error:
            wrong = [str(error)]
        if wrong:
            problems += [f"claim {name}: {problem}" for problem in wrong]
            continue
        problems += [f"claim {name}: {problem}" for problem in _definition_problems(claim)]
        claims.append(claim)
    ids = [claim.id for claim in claims]
    problems += [f"claim {i}: stands twice" for i in sorted({i for i in ids if ids.count(i) > 1})]
    if not isinstance(table.get("study"), str):
        problems.append(
            "`study` is missing or no text; it names the cube that the claims are about"
        )
    raise_if_any(problems, what=str(path))
    return table["study"], claims


def _field_problems(entry: Mapping[str, Any]) -> list[str]:
    """Fields of the wrong type; those that are missing or unknown are for `Claim` to say."""
    kinds: dict[str, type] = {"arguments": dict, "compared": list, "also": list}
    problems = [
        f"{name} = {value!r} must be {kinds.get(name, str).__name__}"
        for name, value in entry.items()
        if not isinstance(value, kinds.get(name, str))
    ]
    if problems:
        return problems
    if any(not isinstance(name, str) for name in entry.get("compared", [])):
        problems.append("`compared` lists names of concepts")
    if any(not isinstance(version, dict) for version in entry.get("also", [])):
        problems.append("other versions are written [[claim.also]], with two brackets")
    if entry.get("asserts", "none") not in ASSERTED:
        problems.append(f"asserts = {entry['asserts']!r} is none of {', '.join(ASSERTED)}")
    return problems


def _definition_problems(claim: Claim) -> list[str]:
    if claim.statistic not in STATISTICS:
        return [f"{claim.statistic!r} is none of {', '.join(sorted(STATISTICS))}"]
    problems = ["an entry of `also` lacks `what`" for entry in claim.also if "what" not in entry]
    takes = inspect.signature(STATISTICS[claim.statistic])
    for arguments in (claim.arguments, *claim.also):
        given = {name: value for name, value in arguments.items() if name != "what"}
        try:
            takes.bind(None, **given)
        except TypeError as error:
            problems.append(f"{claim.statistic}: {error}")
        problems += [
            f"{name} = {value!r} must be {kind}"
            for name, value in given.items()
            if not ARGUMENT_KINDS[kind := KIND_OF_ARGUMENT.get(name, "a text")](value)
        ]
        if given.get("size", SIZES[0]) not in SIZES:
            problems.append(f"{given['size']!r} is none of {', '.join(SIZES)}")
        if given.get("estimand", "delta") not in list(ESTIMANDS):
            problems.append(f"{given['estimand']!r} is none of {', '.join(ESTIMANDS)}")
    printed = read_printed(claim.published)
    if printed.low < printed.high and claim.statistic not in SPANNING:
        problems.append(f"{claim.published!r} is a range; {claim.statistic} has no members to hold")
    return problems


def ledger(cells: xr.Dataset, claims: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim: published, recomputed, balanced, interval, verdict and why."""
    return pd.DataFrame([_row(cells, claim) for claim in claims])


def _row(cells: xr.Dataset, claim: Claim) -> dict[str, Any]:
    printed = read_printed(claim.published)
    absent = _absent(cells, claim)
    estimate = Estimate.undefined(absent) if absent else _compute(cells, claim)
    balanced = None if absent else _balanced(cells, claim)
    others = [] if absent else claim.also
    also = [(entry["what"], _also(cells, claim, entry)) for entry in others]
    region = negligible(cells, claim)
    verdict, reason = _judge(cells, claim, printed, estimate, balanced, also, region)
    return {
        "id": claim.id,
        "section": claim.section,
        "claim": claim.text,
        "quantity": quantity(claim),
        "published": claim.published,
        "printed_as": printed.manner,
        "is_interpretive": claim.statistic in CONTRASTS,
        "recomputed": estimate.value,
        "recomputed_as_printed": _as_printed(printed, estimate),
        "matches": matches(printed, estimate, region),
        "passes_test": _passes_test(claim, printed, estimate, region),
        "balanced": balanced.value if balanced else np.nan,
        "corrected": estimate.corrected,
        "low": estimate.low,
        "high": estimate.high,
        "interval_over": estimate.over,
        "n": estimate.n,
        "p_value": estimate.p_value,
        "also": "; ".join(f"{what}: {_interval(printed, other)}" for what, other in also),
        "verdict": verdict,
        "reason": reason,
        "definition": _definition(claim),
    }


def _absent(cells: xr.Dataset, claim: Claim) -> str:
    """What to say of models or concepts that a claim names and these cells have not; else empty."""
    for kind in ("model", "concept"):
        named = claim.arguments.get(f"{kind}s") or [claim.arguments.get(kind)]
        absent = [n for n in named if n is not None and n not in cells[kind].values]
        if absent:
            held = ", ".join(map(str, cells[kind].values))
            return f"there is no {kind} {' or '.join(map(repr, absent))} here, but {held}"
    return ""


def quantity(claim: Claim) -> str:
    """What the claim's number measures, with its units unless it has none."""
    estimand = claim.arguments.get("estimand")
    if estimand is None:
        return QUANTITIES[claim.statistic]
    units = "" if UNITS[estimand] == "1" else f" ({UNITS[estimand]})"
    return QUANTITIES[claim.statistic].format(NAMES[estimand] + units)


def _compute(cells: xr.Dataset, claim: Claim) -> Estimate:
    return STATISTICS[claim.statistic](cells, **claim.arguments)


def _interval(printed: Printed, estimate: Estimate) -> str:
    value, low, high = (
        _more_digits(printed, x) for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]" if np.isfinite(estimate.low) else value


def _definition(claim: Claim) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in claim.arguments.items())
    return f"{claim.statistic}({arguments})"


def _as_printed(printed: Printed, estimate: Estimate) -> str:
    if printed.low != printed.high and not printed.direction:
        return f"{printed.show(estimate.span[0]).rstrip('%')}-{printed.show(estimate.span[1])}"
    return printed.show(estimate.value)


def negligible(cells: xr.Dataset, claim: Claim) -> float:
    """Half-width of the region of practical equivalence: what counts as no difference at all.

    Of an effect what the hierarchical model calls negligible: 0.1 of a standardised one, in nats a
    tenth of the best effects' root mean square. Of the best depth 0.025; of an r or a share
    0.1.
    """
    estimand = claim.arguments.get("estimand")
    if claim.statistic == "depth_difference":
        return OUTCOMES["best_depth"].negligible or np.nan
    if estimand is None or UNITS[estimand] == "1" or claim.statistic == "training_gap":
        return NO_DIFFERENCE
    effects = best_effects(cells, estimand).values
    defined = effects[np.isfinite(effects)]
    return NO_DIFFERENCE * float(np.sqrt(np.mean(defined**2))) if defined.size else np.nan


def _within(estimate: Estimate, region: float) -> bool:
    """Whether the whole interval is of differences that count as none."""
    return bool(max(-estimate.low, estimate.high) < region)


def matches(printed: Printed, estimate: Estimate, region: float = np.nan) -> bool:
    """Whether the recomputed value is the printed one, to the digits printed.

    A range must hold every member as rounded; an approximate number may be off by one unit of its
    last digit; a direction needs the sign, "0" an interval within the region of no difference.
    """
    if not np.isfinite(estimate.value):
        return False
    if printed.direction:
        if printed.direction == "0":
            return _within(estimate, region)
        return bool(np.sign(estimate.value) == (1 if printed.direction == "+" else -1))
    if printed.low != printed.high:
        low, high = (printed.units(end) for end in estimate.span)
        return printed.units(printed.low) <= low and high <= printed.units(printed.high)
    if printed.approximate:
        return abs(estimate.value - printed.low) <= printed.unit
    return printed.show(estimate.value) == printed.show(printed.low)


def _passes_test(claim: Claim, printed: Printed, estimate: Estimate, region: float) -> bool:
    """Whether it is as printed, and neither its interval nor its p-value speaks against it.

    For a sign that is its test; that nothing differs is shown by an interval within the region.
    """
    objections = _interval_objections(claim, printed, estimate, region)
    return matches(printed, estimate, region) and not objections


def _balanced(cells: xr.Dataset, claim: Claim) -> Estimate | None:
    """The same statistic over the models or concepts that none of the compared averages lacks."""
    arguments = dict(claim.arguments)
    if claim.statistic in OVER_CONCEPTS:
        concepts = arguments.get("concepts")
        arguments["concepts"] = complete_concepts(cells, concepts)
        if not arguments["concepts"]:
            return None
    elif claim.statistic in OVER_MODELS:
        arguments["models"] = complete_models(cells, claim.compared)
    else:
        return None
    return STATISTICS[claim.statistic](cells, **arguments)


def _also(cells: xr.Dataset, claim: Claim, entry: Mapping[str, Any]) -> Estimate:
    arguments = {name: value for name, value in entry.items() if name != "what"}
    return STATISTICS[claim.statistic](cells, **arguments)


def _judge(
    cells: xr.Dataset,
    claim: Claim,
    printed: Printed,
    estimate: Estimate,
    balanced: Estimate | None,
    also: Sequence[tuple[str, Estimate]],
    region: float,
) -> tuple[str, str]:
    if not np.isfinite(estimate.value):
        return "cannot be tested", estimate.reason
    near = (
        not printed.direction
        and printed.low == printed.high
        and abs(printed.units(estimate.value) - printed.units(printed.low)) <= 1
    )
    if printed.direction == "0" and not matches(printed, estimate, region):
        objections = _interval_objections(claim, printed, estimate, region)
        return "not reproduced", "; ".join(objections)
    if not matches(printed, estimate, region) and not near:
        return "not reproduced", f"the definition gives {_as_printed(printed, estimate)}"
    objections = [
        *_digit_objections(printed, estimate),
        *_interval_objections(claim, printed, estimate, region),
        *_influence_objections(cells, claim, printed, estimate),
        *_coverage_objections(cells, claim, printed, estimate, balanced),
        *_share_objections(cells, claim, printed, estimate),
        *([claim.caveat] if claim.caveat else []),
        *_version_objections(printed, estimate, also),
    ]
    if objections:
        return "reproduced, but", "; ".join(objections)
    if printed.direction:
        return "reproduced", "in direction"
    if printed.approximate:
        return "reproduced", "to within one unit of the last digit"
    return "reproduced", "to the printed digits"


def _version_objections(
    printed: Printed, estimate: Estimate, also: Sequence[tuple[str, Estimate]]
) -> list[str]:
    """Other versions whose number prints differently, or that speak against the direction."""
    return [
        f"{what} it is {_interval(printed, other)}"
        for what, other in also
        if np.isfinite(other.value)
        and printed.show(other.value) != printed.show(estimate.value)
        and not (
            printed.direction in ("+", "-") and other.excludes_zero and matches(printed, other)
        )
    ]


def _more_digits(printed: Printed, value: float) -> str:
    if printed.percent:
        return f"{100 * value:.1f}%"
    return f"{value:.{max(2, printed.decimals)}f}"


def _digit_objections(printed: Printed, estimate: Estimate) -> list[str]:
    if printed.direction or matches(printed, estimate, np.nan):
        return []
    digits = printed.decimals + 2
    return [
        f"the definition gives {estimate.value:.{digits}f}, {printed.show(estimate.value)} in print"
    ]


def _interval_objections(
    claim: Claim, printed: Printed, estimate: Estimate, region: float
) -> list[str]:
    if not np.isfinite(estimate.low):
        return [f"it has no interval: {estimate.reason}"] if estimate.reason else []
    low, high = (_more_digits(printed, end) for end in (estimate.low, estimate.high))
    if claim.statistic == "concept_share":
        return _no_common_part(estimate)
    if claim.statistic in CONTRASTS:
        if printed.direction == "0" or claim.asserts == "none":
            if _within(estimate, region):
                return []
            shown = estimate.low >= region or estimate.high <= -region
            so = "there is a difference" if shown else "its absence is not shown"
            return [
                f"the interval over {estimate.over} is {low} to {high}, not within the "
                f"±{_more_digits(printed, region)} that count as none, so {so}"
            ]
        if not estimate.excludes_zero:
            return [f"the interval over {estimate.over}, {low} to {high}, includes zero"]
        confounded = [f"{estimate.reason}, so the two are confounded"] if estimate.reason else []
        if estimate.p_value > SIGNIFICANT:
            of = (
                "concepts"
                if claim.statistic == "agreement_against_effect"
                else "labels over models"
            )
            p = f"an exact permutation of the {of} gives p = {estimate.p_value:.3f}"
            return [*confounded, p]
        return confounded
    if printed.low != printed.high:
        return [f"every model's mean lies inside, {estimate.reason}"] if estimate.reason else []
    if printed.direction or estimate.low <= printed.low <= estimate.high:
        return []
    return [f"the published value lies outside the interval over {estimate.over}, {low} to {high}"]


def _influence_objections(
    cells: xr.Dataset, claim: Claim, printed: Printed, estimate: Estimate
) -> list[str]:
    """The one model, or concept of a concordance, without which little is left of a difference."""
    if claim.statistic not in CONTRASTS or claim.asserts == "none" or printed.direction == "0":
        return []
    if claim.statistic == "concept_share":
        return _influence_on_concordance(cells, claim)
    if not estimate.excludes_zero:
        return []
    left: dict[str, Estimate] = {}
    for model in swept_models(cells):
        rest = cells.sel(model=cells["model"] != model, model_other=cells["model_other"] != model)
        other = _compute(rest, claim)
        if np.isfinite(other.value):
            left[model] = other
    if not left:
        return []
    model = min(left, key=lambda m: left[m].value * np.sign(estimate.value))
    if left[model].value / estimate.value > 1 - INFLUENTIAL:
        return []
    return [f"without {model} it is {_interval(printed, left[model])}"]


def _influence_on_concordance(cells: xr.Dataset, claim: Claim) -> list[str]:
    """The models and concepts without which no common ranking of the concepts is shown."""
    found = []
    for kind, left_out, rest in without(cells):
        if kind in ("model", "concept"):
            objections = _no_common_part(_compute(rest, claim))
            found += [f"without {left_out} {objection}" for objection in objections]
    return found


def _no_common_part(estimate: Estimate) -> list[str]:
    """The objection that models with nothing in common would agree as well."""
    if not estimate.p_value > SIGNIFICANT:
        return []
    return [f"models with no ranking in common agree as well (p = {estimate.p_value:.2f})"]


def _coverage_objections(
    cells: xr.Dataset,
    claim: Claim,
    printed: Printed,
    estimate: Estimate,
    balanced: Estimate | None,
) -> list[str]:
    """The average lacks cells that the ones it is compared with have."""
    lacking = _lacking(cells, claim)
    if not lacking or balanced is None or not np.isfinite(balanced.value):
        return []
    what = "models" if claim.statistic in OVER_MODELS else "concepts"
    value = _more_digits(printed, balanced.value)
    if value == _more_digits(printed, estimate.value):
        return [f"{', '.join(lacking)} is missing, unlike what it is compared with"]
    return [f"{', '.join(lacking)} is missing; over the {what} without a gap it is {value}"]


def _lacking(cells: xr.Dataset, claim: Claim) -> list[str]:
    """Cells that the claim's own average asks for and that have no effect."""
    arguments = claim.arguments
    if claim.statistic not in OVER_CONCEPTS | OVER_MODELS:
        return []
    models = arguments.get("models") or swept_models(cells)
    if "model" in arguments:
        models = [arguments["model"]]
    elif arguments.get("training"):
        models = [m for m in models if cells["training"].sel(model=m) == arguments["training"]]
    concepts = arguments.get("concepts") or cells["concept"].values.tolist()
    if "concept" in arguments:
        concepts = [arguments["concept"]]
    effects = best_effects(cells, "delta", models=models, concepts=concepts)
    absent = effects.isnull()
    return [
        f"{model} on {concept}"
        for model in effects["model"].values
        for concept in effects["concept"].values
        if absent.sel(model=model, concept=concept)
    ]


def _share_objections(
    cells: xr.Dataset, claim: Claim, printed: Printed, estimate: Estimate
) -> list[str]:
    """How much of the value is noise, optimism, or the doing of invalid items."""
    objections = []
    if np.isfinite(estimate.expected_under_null):
        excess = best_generation_excess(cells, **claim.arguments)
        null = _more_digits(printed, estimate.expected_under_null)
        bound = "at least " if excess.reason.startswith(UPPER_BOUND) else ""
        objections.append(
            "with nothing added, and the answers only sampled again, it would average "
            f"{bound}{null}, which leaves {'at most ' if bound else ''}{_interval(printed, excess)}"
        )
    optimism = estimate.value - estimate.corrected
    if optimism > MATERIAL * abs(estimate.value):
        objections.append(
            f"{_more_digits(printed, optimism)} of it is optimism (selection and small samples)"
        )
    if claim.statistic in OVER_CONCEPTS | {"concept_mean"} and claim.statistic not in CONTRASTS:
        valid = _compute(without_invalid_items(cells), claim)
        if abs(valid.value - estimate.value) > MATERIAL * abs(estimate.value):
            objections.append(
                f"without the items that are not of two scored choices it is "
                f"{_more_digits(printed, valid.value)}"
            )
    return objections

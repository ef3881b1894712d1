"""The ledger of a study: its published claims, its contrast, and the statistics that define them.

A ledger is a TOML file, checked when it is read: every problem is listed in one message.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steercube.analysis.agreement.agreement import agreement_against_effect, pooled_agreement
from steercube.analysis.agreement.generation import best_generation
from steercube.analysis.conclusions import remarks as of
from steercube.analysis.conclusions.published import read_printed
from steercube.analysis.margins import CORRELATION, DEPTH, Margins
from steercube.analysis.over_models.comparisons import (
    SIZES,
    depth_difference,
    label_difference,
    scale_slope,
    training_gap,
)
from steercube.analysis.over_models.concordance import concept_share
from steercube.analysis.over_models.depth import training_depth
from steercube.analysis.over_models.means import concept_mean, mean_over_models, model_mean
from steercube.analysis.per_cell.estimands import ESTIMANDS
from steercube.analysis.view import Study
from steercube.contrast import Contrast, contrast_of, contrast_problems
from steercube.estimate import Estimate
from steercube.schema import raise_if_any, read_toml


@dataclass(frozen=True)
class Statistic:
    """What a claim's number may be defined by.

    `compute(study, **arguments)` gives it and `quantity` says what it measures, {} standing for
    its estimand; claims of one quantity share a scale. `is_difference` says that it is zero where
    nothing differs, so that a claim of it is interpretive and its question graded; `margins` are
    then what counts as small, where its estimand does not say. `averages_over` is what a balanced
    version is restricted in: "concepts" or "models" that none of the compared averages lacks.
    `has_members` says that it averages values which a published range may hold. `remarks` are those
    that apply beside the ones that apply to every claim (`remarks.OF_EVERY_CLAIM`).
    `simulated_as` names the simulation of its interval.
    """

    compute: Callable[..., Estimate]
    quantity: str
    remarks: tuple[of.Remark, ...] = (of.published_outside,)
    is_difference: bool = False
    averages_over: str = ""
    has_members: bool = False
    margins: Margins | None = None
    simulated_as: str = ""


def _difference(compute: Callable[..., Estimate], quantity: str, **fields: Any) -> Statistic:
    """A statistic that is zero where nothing differs."""
    usual: dict[str, Any] = {"remarks": (), "is_difference": True}
    return Statistic(compute, quantity, **usual | fields)


MEAN = (of.published_outside, of.missing_cells, of.invalid_items)
STATISTICS = {
    "agreement_against_effect": _difference(
        agreement_against_effect, "change of r per unit of effect", margins=CORRELATION
    ),
    "best_generation": Statistic(
        best_generation, "share of generated answers changed", has_members=True
    ),
    "concept_mean": Statistic(
        concept_mean, "{} of a concept", MEAN, averages_over="models", has_members=True
    ),
    "concept_share": _difference(
        concept_share,
        "share of the variance over concepts that models share, {}",
        margins=CORRELATION,
    ),
    "depth_difference": _difference(
        depth_difference, "difference of depth (fraction)", margins=DEPTH
    ),
    "label_difference": _difference(
        label_difference,
        "{high} minus {low}, {}",
        remarks=(of.missing_cells,),
        averages_over="concepts",
        simulated_as="difference of two labels, others held fixed",
    ),
    "mean_over_models": Statistic(
        mean_over_models, "average {}", MEAN, averages_over="concepts", has_members=True
    ),
    "model_mean": Statistic(model_mean, "average {}", MEAN, averages_over="concepts"),
    "pooled_agreement": _difference(
        pooled_agreement, "logit–generation correlation r", margins=CORRELATION
    ),
    "scale_slope": _difference(
        scale_slope,
        "{} per tenfold size",
        remarks=(of.missing_cells,),
        averages_over="models",
    ),
    "training_depth": Statistic(training_depth, "typical best depth (fraction)", has_members=True),
    "training_gap": _difference(
        training_gap,
        "training gap, share of {}",
        remarks=(of.missing_cells,),
        averages_over="concepts",
        margins=CORRELATION,
    ),
}
"""By the name that a ledger uses."""

ASSERTED = ("difference", "none")
"""What a claim may say: that something differs, or that nothing does."""

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
CHOICES = {"size": SIZES, "estimand": tuple(ESTIMANDS)}


@dataclass(frozen=True)
class Claim:
    """One published claim and the statistic, with its arguments, that defines its number.

    `asserts` is "none" for a claim that something is absent, however small its number is.
    `question` is the id of the question that it answers, if that is not its own. Its `contrast` is
    that of its ledger, whatever else an analysis compares.
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
    question: str = ""
    contrast: Contrast | None = None

    @property
    def answers(self) -> str:
        """The id of the question that it answers."""
        return self.question or self.id

    @property
    def asserts_none(self) -> bool:
        """Whether it claims that nothing differs."""
        return self.asserts == "none" or self.published == "0"

    def absent(self, study: Study) -> str:
        """What to say of models or concepts that it names and a study lacks; empty if it has all"""
        for kind in ("model", "concept"):
            there = [str(name) for name in study.cells.indexes[kind]]
            named = self.arguments.get(f"{kind}s") or [self.arguments.get(kind)]
            absent = [n for n in named if n is not None and n not in there]
            if absent:
                listed = " or ".join(map(repr, absent))
                return f"there is no {kind} {listed} here, but {', '.join(there)}"
        return ""


@dataclass(frozen=True)
class Ledger:
    """The published claims about one study and its contrast; the file's name and its SHA-256."""

    study: str
    claims: list[Claim]
    contrast: Contrast | None = None
    name: str = ""
    sha256: str = ""


def read_ledger(path: str | Path) -> Ledger:
    """The ledger in a file. Raises ValueError with every problem."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file ({path.absolute()})")
    table = read_toml(path)
    claims, problems = [], []
    entries = table.get("claim", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: claims are written [[claim]], with two brackets")
    unknown = sorted(set(table) - {"study", "claim", "contrast"})
    problems += [
        f"`{name}` is unknown; write `study`, [contrast] and [[claim]]" for name in unknown
    ]
    for number, entry in enumerate(entries, start=1):
        name = entry.get("id", f"number {number}")
        claim, wrong = _claim(entry)
        problems += [f"claim {name}: {problem}" for problem in wrong]
        claims += [claim] if claim else []
    ids = [claim.id for claim in claims]
    repeated = sorted({i for i in ids if ids.count(i) > 1})
    problems += [f"claim {i}: this id is used more than once" for i in repeated]
    if not isinstance(table.get("study"), str):
        problems.append(
            "`study` is missing or no text; it names the cube that the claims are about"
        )
    contrast = None
    if "contrast" in table:
        held = table["contrast"] if isinstance(table["contrast"], dict) else {}
        if of_contrast := contrast_problems(held):
            problems += of_contrast
        else:
            contrast = contrast_of(held, what=str(path))
    raise_if_any(problems, what=str(path))
    claims = [replace(claim, contrast=contrast) for claim in claims]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Ledger(table["study"], claims, contrast, path.name, sha256)


def _claim(entry: Mapping[str, Any]) -> tuple[Claim | None, list[str]]:
    """The claim of one entry, if its fields are right, and every problem of it."""
    try:
        wrong = _field_problems(entry)
        wrong += ["`contrast` is the ledger's, a table [contrast]"] * ("contrast" in entry)
        if wrong:
            return None, wrong
        claim = Claim(**entry)
        read_printed(claim.published)
    except (TypeError, ValueError) as error:
        return None, [str(error)]
    return claim, _definition_problems(claim)


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
        return [f"{claim.statistic!r} is none of {', '.join(STATISTICS)}"]
    statistic = STATISTICS[claim.statistic]
    problems = ["an entry of `also` lacks `what`" for entry in claim.also if "what" not in entry]
    takes = inspect.signature(statistic.compute)
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
        problems += [
            f"{given[name]!r} is none of {', '.join(choices)}"
            for name, choices in CHOICES.items()
            if name in given and given[name] not in list(choices)
        ]
    printed = read_printed(claim.published)
    if printed.low < printed.high and not statistic.has_members:
        problems.append(f"{claim.published!r} is a range; {claim.statistic} has no members to hold")
    return problems

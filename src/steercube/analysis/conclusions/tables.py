"""The table of contents of the analysis: every table, how it is made, cited and printed.

A new table is its function and its entry in `TABLES`. `numbers.json`, the printed Markdown, the
README's list and the appendix of definitions are made from these entries.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from steercube.analysis import margins
from steercube.analysis.agreement import agreement, curves, generation, readers
from steercube.analysis.conclusions import (
    asked,
    averages,
    changes,
    counts,
    directions,
    effects,
    grades,
    multiplicity,
    other_measures,
)
from steercube.analysis.conclusions import conclusions as conclusions_module
from steercube.analysis.conclusions import ledger as ledger_module
from steercube.analysis.conclusions.claims import Claim
from steercube.analysis.conclusions.sensitivity import sensitivity
from steercube.analysis.over_models import (
    cell_effects,
    comparisons,
    components,
    concordance,
    confounders,
    contrast_effect,
    depth,
    design,
    leave_one_out,
    means,
    multiverse,
    posterior,
    predictive,
    questions,
    slopes,
    unequal,
)
from steercube.analysis.per_cell import (
    answer_model,
    bootstrap,
    estimands,
    influence,
    readings,
    steers,
)
from steercube.analysis.per_cell import changes as paired
from steercube.analysis.per_cell.estimands import NAMES, UNITS
from steercube.analysis.view import Study
from steercube.cells import ANSWER_MODELS, READERS, REASONS, with_every_estimand
from steercube.contract import LETTER, MIN_ITEMS
from steercube.estimate import Estimate
from steercube.numerals import NONE, decimals, p_value, signed, with_interval

Sampled = Any
Report = Callable[[str], None]
Documented = Callable[..., object] | ModuleType


@dataclass(frozen=True)
class Print:
    """How a post prints a table: its labels, then its numbers with their intervals.

    `rows` chooses and relabels the rows. `labels` are columns of text with their headings, those
    that the rows have; without any, every column is printed as it is. `value` is the heading of
    `number [low, high]`, after which the text in the column `suffix` stands, or `across` names a
    column whose labels head one such column each. With `over` the unit of the interval follows,
    then `numbers`, further columns with their headings. A heading may hold {minus} and {by}, the
    contrast in words. `name` is that of the file, where it is not the table's.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    value: str = ""
    across: str = ""
    suffix: str = ""
    over: bool = False
    numbers: Mapping[str, str] = field(default_factory=dict)
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
    name: str = ""


@dataclass(frozen=True)
class Table:
    """One table of the results.

    `make(tables)` gives its rows; `what` says in one line what it holds, and `group` which tables
    it is listed with. `key` names the columns whose labels identify a row, so that a text can cite
    its number: `value` with `low` and `high`, in `units` (a unit, or the column that names an
    estimand or outcome). With `every_interval` each column x that has an x_low beside it is a
    number of its own. A table without a key has no number that can be cited. `needs` names what a
    study must have for it to be made. `printed` are its forms in a post, `documented` what the
    appendix says of it, by section.
    """

    name: str
    group: str
    what: str
    make: Callable[["Tables"], Any]
    key: tuple[str, ...] = ()
    value: str | Callable[[Mapping[str, Any]], str] = "value"
    low: str = "low"
    high: str = "high"
    every_interval: bool = False
    units: str = ""
    needs: str = ""
    printed: tuple[Print, ...] = ()
    documented: Mapping[str, tuple[Documented, ...]] = field(default_factory=dict)

    def unit_of(self, row: Mapping[str, Any]) -> str:
        """The unit of a row's number; "1" for none, empty where it is not known."""
        if self.units in ("estimand", "outcome", "units"):
            name = row.get(self.units, "")
            outcome = cell_effects.OUTCOMES.get(name)
            return UNITS.get(name) or (outcome.units if outcome else str(name))
        return self.units


class Tables(Mapping[str, pd.DataFrame]):
    """The tables of a study by name, each made when it is first asked for, and then kept.

    A table that is made from others asks for them here, so none is made twice.
    """

    def __init__(
        self,
        study: Study,
        claims: Sequence[Claim] = (),
        sampled: Mapping[str, Sampled] | None = None,
        report: Report = lambda name: None,
    ) -> None:
        self.study, self.claims, self.sampled, self.report = study, claims, sampled, report
        has = {
            "": True,
            "contrast": study.contrast is not None,
            "controls": "other_estimate" in study.cells,
            "letter": LETTER in study.cells.indexes.get("direction", ()),
            "other measures": bool(study.others),
            "claims": bool(claims),
            "readings": "n_readings" in study.cells,
            **{name: changes.holds(study, name) for name in changes.CHOSEN},
            "readers": READERS in study.records,
            "answer models": ANSWER_MODELS in study.records,
        }
        self._entries = {table.name: table for table in TABLES if has[table.needs]}
        self._made: dict[str, pd.DataFrame] = {}

    @classmethod
    def of(
        cls,
        study: Study,
        claims: Sequence[Claim] = (),
        sampled: Mapping[str, Sampled] | None = None,
        report: Report = lambda name: None,
    ) -> "Tables":
        """The tables of cells of any age. Raises ValueError for cells without any effect."""
        if not study.models:
            codes = set(study.cells["selected_reason"].values.ravel().tolist())
            why = ", ".join(
                name.replace("_", " ") for name, code in REASONS.items() if code in codes
            )
            raise ValueError(
                f"the cells hold no effect: every (model, concept) is {why} (effects need "
                f"{MIN_ITEMS} items); `reason` in the cells says which layers."
            )
        study = replace(study, cells=with_every_estimand(study.cells))
        return cls(study, claims, sampled, report)

    @cached_property
    def questions(self) -> list[conclusions_module.Question]:
        """Every question with its evidence, which several tables print."""
        return asked.questions(self.study, self.claims)

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._made:
            make = self._entries[name].make
            self.report(name)
            self._made[name] = as_table(make(self))
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def conclude(
    study: Study,
    claims: Sequence[Claim] = (),
    *,
    sampled: Mapping[str, Sampled] | None = None,
    only: Collection[str] | None = None,
    report: Report = lambda name: None,
) -> dict[str, pd.DataFrame]:
    """Every table of a study, by name, or `only` the ones named.

    Without claims there is no table of claims, without controls in the cells none of controls,
    without a published reading of responses none of readings, without a contrast none that compares
    models. `sampled` are NUTS fits of the hierarchical model, by outcome, to stand beside the exact
    one. `report` is called with the name of each table when it is begun.

    Raises ValueError for cells without any effect, and for a name that is no table's.
    """
    tables = Tables.of(study, claims, sampled, report)
    names = [table.name for table in TABLES]
    if unknown := sorted(set(only or ()) - set(names)):
        raise ValueError(f"only = {unknown}: not among the tables, {', '.join(names)}")
    return {name: tables[name] for name in tables if only is None or name in only}


def as_table(rows: Any) -> pd.DataFrame:
    """Rows as a table: a frame as it is, records, or pairs of labels and an Estimate.

    Of an estimate each field is a column, and its span two.
    """
    if isinstance(rows, pd.DataFrame):
        return rows
    records = list(rows)
    if not records or not isinstance(records[0], tuple):
        return pd.DataFrame(records)
    table = pd.DataFrame([dict(labels) | _fields(estimate) for labels, estimate in records])
    return table[[c for c in table if c != "reason"] + ["reason"]]


def _fields(estimate: Estimate) -> dict[str, Any]:
    fields = asdict(replace(estimate, known=None))
    del fields["known"]
    smallest, largest = fields.pop("span")
    fields["interval_over"] = fields.pop("over")
    return fields | {"smallest": smallest, "largest": largest}


def _counts(tables: Tables) -> pd.DataFrame:
    found = [counts.counts(tables.study), counts.counts_of_pairs(tables["effects"])]
    if tables.claims:
        found.append(counts.counts_of_claims(tables["claims"]))
    return pd.concat(found)


def _size(n_params: float) -> str:
    """Parameters in billions or millions.

    >>> _size(4e9), _size(134_500_000.0)
    ('4B', '134.5M')
    """
    return f"{n_params / 1e9:.4g}B" if n_params >= 1e9 else f"{n_params / 1e6:.4g}M"


def _with_sizes(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: table[name].map(_size) for name in counts.SIZES})


def _where(**labels: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The rows with these labels, estimands by the names that a reader knows."""

    def rows(table: pd.DataFrame) -> pd.DataFrame:
        for column, wanted in labels.items():
            table = table[table[column].isin(wanted if isinstance(wanted, tuple) else (wanted,))]
        if "estimand" in table:
            table = table.assign(estimand=table["estimand"].map(_named))
        return table

    return rows


def _named(estimand: str) -> str:
    return "delta (nat)" if estimand == "delta" else NAMES.get(estimand, estimand)


def _known(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a number, names of columns of the cells as words."""
    if not len(table):
        return table
    known = table[table["value"].notna()]
    return known.assign(**{c: known[c].str.replace("_", " ") for c in known if c == "property"})


def _several(table: pd.DataFrame) -> pd.DataFrame:
    """The vector's Cohen's d among families of several directions."""
    if not len(table):
        return table
    return table[(table["estimand"] == "cohens_d") & (table["n_directions"] > 1)]


def _in_units(table: pd.DataFrame) -> pd.DataFrame:
    """The changes in the measures' own units."""
    if not len(table):
        return table
    known = table[(table["estimand"] == "delta") & table["value"].notna()]
    return known.assign(measure=known["measure"].str.replace("_", " "))


def _methods(table: pd.DataFrame) -> pd.DataFrame:
    """The contrast in Cohen's d by every method that gives a number, with what is held fixed."""
    if "estimate" not in table:
        return table[:0]
    of = table[(table["outcome"] == "cohens_d") & table["estimate"].notna()]
    if not len(of):
        return of
    held = of["covariates"].str.partition(" and ")[2].replace({"": NONE, "scale": "size"})
    understated = of["diagnostics"].astype(str).str.startswith(contrast_effect.UNDERSTATED)
    warned = (", " + of["diagnostics"]).where(
        understated, "; " + of["reason"].astype(object).where(of["reason"].notna(), "")
    )
    return of.assign(covariates=held, warning=warned.where(warned != "; ", ""))


def _rivals(table: pd.DataFrame) -> pd.DataFrame:
    """The contrast in Cohen's d with each rival held fixed."""
    if "estimate" not in table:
        return table[:0]
    return table[(table["outcome"] == "cohens_d") & table["estimate"].notna()]


def _slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Slopes of Cohen's d and of delta, a column for each kind of size."""
    of = table[(table["method"] == comparisons.RANDOM_SLOPES) & table["value"].notna()]
    of = of[of["outcome"].isin(["cohens_d", "delta"])]
    units = of["outcome"].map({"cohens_d": "d", "delta": "delta (nat)"})
    sizes = of["size"].map({"n_params": "total", "n_active_params": "active"})
    return of.assign(size=units + ", " + sizes + " parameters")


def _over_models(table: pd.DataFrame) -> pd.DataFrame:
    """The changes over models from strength zero to the outermost strengths."""
    if not len(table):
        return table
    every = _of_every_model(table)
    every = every[every["low_strength"] == 0]
    size = every["high_strength"].abs()
    largest = size.groupby([every["concept"], every["direction"]]).transform("max")
    return _in_points(_with_strengths(every[size == largest]))


def _between_ends(table: pd.DataFrame) -> pd.DataFrame:
    """The changes over models of the match between the outermost strengths, and of validity."""
    if not len(table):
        return table
    every = _of_every_model(table)
    every = every[every["low_strength"] != 0]
    every = every[every["items"] != changes.OWN_MINUS_OTHER]
    every = _in_points(_with_strengths(every)).set_index(["concept", "direction"])
    match, valid = (every[every["outcome"] == name] for name in (paired.MATCH, paired.VALID))
    shown = {
        place: with_interval(row)
        for place, row in zip(valid.index, valid.to_dict("records"), strict=True)
    }
    return match.assign(validity=[shown[place] for place in match.index]).reset_index()


def _of_every_model(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over models; where there is one model, its own."""
    models = set(table["model"]) - {changes.EVERY, changes.EVERY_MODEL}
    if len(models) == 1:
        return table[table["model"].isin(models)]
    return table[table["model"] == changes.EVERY_MODEL]


def _in_points(table: pd.DataFrame) -> pd.DataFrame:
    """Shares as percentage points, and the number of models as a text."""
    shares = (
        *("value", "low", "high", "rate_low", "change_of_pairs"),
        *("loss_excluded", "change_excluded"),
    )
    points = {name: 100 * table[name] for name in shares}
    return table.assign(n=table["n"].map(str), corrected=np.nan, **points)


def _with_strengths(table: pd.DataFrame) -> pd.DataFrame:
    ends = ("low_strength", "high_strength")
    shown = {end: [signed(f"{s:+g}") if s else "0" for s in table[end]] for end in ends}
    low, high = (pd.Series(shown[end], table.index, dtype=str) for end in ends)
    return table.assign(strengths=low + " to " + high)


def _of_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Shares read alike, or as the other letter, of the sweep and of each concept's own vector."""
    table = table[(table["direction"] == "") | (table["direction"] == table["concept"])]
    pairs = table["reading"] + ", " + table["reading_other"]
    if pairs.nunique() > 1:
        table = table.assign(pair=pairs)
    misread = table["statistic"] == "misread"
    named = (
        "read as (" + table["read_as_other"] + "), of those read anew as (" + table["read_as"] + ")"
    )
    return table.assign(
        statistic=named.where(misread, table["statistic"]),
        direction=table["direction"].where(table["direction"] != "", "its own, every layer"),
    )


def _of_corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Corrected changes, what they are made of as texts."""
    if not len(table):
        return table
    return table.assign(
        n_matrix=table["n_matrix"].map(str), published=table["published"].map(decimals)
    )


def _of_all_models(table: pd.DataFrame) -> pd.DataFrame:
    """Agreement over the models of a concept; an upper bound is said to be one."""
    if not len(table):
        return table
    pooled = table[(table["model"] == "every model") & table["value"].notna()]
    bound = pooled["reason"].fillna("").str.startswith(generation.UPPER_BOUND)
    named = pooled["statistic"].where(~bound, pooled["statistic"] + " (an upper bound)")
    return pooled.assign(statistic=named)


def _with_p(table: pd.DataFrame) -> pd.DataFrame:
    """The questions that have an interval, with their p and Holm's within the family."""
    pairs = zip(table["p_value"], table["p_holm"], strict=True)
    shown = [f"{p_value(p)} ({p_value(holm)})" if p == p else NONE for p, holm in pairs]
    return table.assign(**{"p (Holm)": shown})[table["low"].notna()]


def _grades_by_margin(table: pd.DataFrame) -> pd.DataFrame:
    """The grades, a row for each question and a column for each factor of its margin."""
    named = table.assign(factor=[f"margin × {factor:g}" for factor in table["factor"]])
    wide = named.pivot(index="id", columns="factor", values="grade")
    return (
        wide.loc[list(dict.fromkeys(table["id"])), list(dict.fromkeys(named["factor"]))]
        .rename_axis(columns=None)
        .reset_index()
    )


def _claims(table: pd.DataFrame) -> pd.DataFrame:
    """The ledger with its numbers in the manner of print."""
    rows = table.to_dict("records")

    def shown(row: Mapping[str, Any], name: str) -> str:
        value = row[name]
        percent = value == value and "%" in row["published"]
        return signed(f"{value:.0%}") if percent else decimals(value)

    ends = [
        f"[{shown(row, 'low')}, {shown(row, 'high')}]" if row["low"] == row["low"] else NONE
        for row in rows
    ]
    balanced = [shown(row, "balanced") for row in rows]
    graded = table["question"].where(
        table["question"] == "", table["grade"] + ": " + table["question"]
    )
    return table.assign(balanced_shown=balanced, ends=ends, graded=graded)


def _of_design(row: Mapping[str, Any]) -> str:
    """The column that holds the number: models that are needed, else the power."""
    return "n_high" if row.get("kind") == "needed" else "power"


SWEPT, EFFECTS, AVERAGES = "What was swept", "Effects", "Averages"
ANSWERS, CONTRAST, VARIATION = "Answers", "The contrast", "What varies"
VERDICTS = "What may be said"
GROUPS = (VERDICTS, EFFECTS, AVERAGES, ANSWERS, CONTRAST, VARIATION, SWEPT)
"""Of the list of tables, in the order that a reader looks for them."""

ESTIMANDS, STEERS = "Effects of steering", "Does a vector steer"
DIRECTIONS = "Other directions"
INTERVALS, TRAINING = "Intervals and selection", "Training and size"
RANKINGS, DEPTH = "Concepts and models", "Depth"
AGREEMENT, RULES = "Agreement of logits and answers", "Verdicts"
CAPABILITY = "Capability and specificity"
SECTIONS = (
    *(ESTIMANDS, STEERS, DIRECTIONS, INTERVALS, TRAINING, RANKINGS, DEPTH, AGREEMENT),
    *(CAPABILITY, RULES),
)
"""Of the appendix, in the order that a reader meets them."""

TABLES: tuple[Table, ...] = (
    Table(
        "about_models",
        SWEPT,
        "the models that were swept, and what is known of them",
        lambda t: counts.about_models(t.study),
        printed=(
            Print(
                labels={
                    **{name: name for name in ("model", "family", "training", "architecture")},
                    **{"n_params": "parameters", "n_active_params": "active", "n_layers": "blocks"},
                    **{"layers_swept": "layers swept", "concepts_run": "concepts"},
                },
                rows=_with_sizes,
            ),
        ),
    ),
    Table(
        "about_concepts",
        SWEPT,
        "the concepts and their items",
        lambda t: counts.about_concepts(t.study),
        key=("concept",),
        value="n_items",
        printed=(
            Print(
                labels={
                    **{"concept": "concept", "n_items": "items"},
                    **{"n_valid_items": "of two scored choices", "models": "models"},
                }
            ),
        ),
    ),
    Table(
        "counts",
        SWEPT,
        "how many of everything",
        _counts,
        key=("statistic",),
    ),
    Table(
        "effects",
        EFFECTS,
        "each model and concept at its best layer: every estimand, interval, optimism; whether it "
        "steers at all, what is beside that layer, the largest effect with its sign, what one item "
        "changes",
        lambda t: effects.effects(t.study),
        key=("model", "concept"),
        every_interval=True,
        documented={
            ESTIMANDS: (estimands, *estimands.ESTIMANDS.values()),
            STEERS: (steers, steers.content_t),
            INTERVALS: (bootstrap, effects, influence, effects.influence_flag),
        },
    ),
    Table(
        "effects_long",
        EFFECTS,
        "the same with a row for each estimand",
        lambda t: effects.effects_long(t.study),
        documented={INTERVALS: (effects.effects_long,)},
    ),
    Table(
        "layer_effects",
        EFFECTS,
        "the effects at every layer",
        lambda t: effects.layer_effects(t.study),
    ),
    Table(
        "models",
        AVERAGES,
        "averages of each model and training",
        lambda t: averages.models(t.study),
        key=("model", "estimand", "concepts"),
        units="estimand",
        printed=(
            Print(
                labels={"model": "model", "training": "training"},
                across="estimand",
                rows=_where(concepts=averages.EVERY_CONCEPT),
            ),
        ),
        documented={INTERVALS: (means.model_mean, means.t_over_models)},
    ),
    Table(
        "concepts",
        AVERAGES,
        "averages of each concept",
        lambda t: averages.concepts(t.study),
        key=("concept", "estimand", "models", "statistic"),
        units="estimand",
        printed=(
            Print(
                labels={"concept": "concept"},
                across="estimand",
                rows=_where(statistic="mean", models=averages.EVERY_MODEL),
            ),
        ),
    ),
    Table(
        "depth",
        AVERAGES,
        "typical best depth of each model and training",
        lambda t: averages.depth(t.study),
        key=("group",),
        units="fraction of depth",
        printed=(Print(labels={"group": "group"}, value="best depth", over=True),),
        documented={
            DEPTH: (depth.best_depths, depth.depth_centroids, comparisons.depth_difference),
        },
    ),
    Table(
        "generation",
        ANSWERS,
        "generated answers of every layer and strength: valid, matching",
        lambda t: generation.generation(t.study),
    ),
    Table(
        "agreement",
        ANSWERS,
        "whether logits and generated answers agree",
        lambda t: agreement.agreement(t.study),
        key=("concept", "model", "statistic"),
        printed=(
            Print(
                labels={"concept": "concept", "statistic": "statistic"},
                value="value [interval]",
                over=True,
                rows=_of_all_models,
            ),
        ),
        documented={
            AGREEMENT: (
                *(curves, agreement.model_agreement, agreement.matched_minus_mismatched),
                *(agreement.agreement_against_effect, generation.expected_maximum),
                generation.best_generation_excess,
            ),
        },
    ),
    Table(
        "readings",
        ANSWERS,
        "who read the answers, and what follows from each reading",
        lambda t: readings.readings(t.study.cells),
        key=("concept", "model", "statistic", "reading", "read_as", "published_as", "form"),
        needs="readings",
        printed=(
            Print(rows=readings.confusion),
            Print(rows=readings.by_form, name="reading_forms"),
            Print(rows=readings.results, name="reading_results"),
        ),
        documented={AGREEMENT: (readings,)},
    ),
    Table(
        "changes",
        ANSWERS,
        "changes of rates of answers at every layer: valid, matching, with the pairs behind them",
        lambda t: changes.changes(t.study),
        needs="changes",
        documented={AGREEMENT: (paired,)},
    ),
    Table(
        "answer_models",
        ANSWERS,
        "changes of answers near the best layer by a binomial mixed model, beside those counted",
        lambda t: changes.answer_models(t.study),
        key=("concept", "model", "outcome", "statistic"),
        units="1",
        needs="answer models",
        printed=(
            Print(
                labels={"concept": "concept", "model": "model", "outcome": "outcome"},
                across="statistic",
                rows=_known,
            ),
        ),
        documented={AGREEMENT: (answer_model,)},
    ),
    Table(
        "readers",
        ANSWERS,
        "where two readers of the same answers differ",
        lambda t: readers.readers(t.study),
        key=("reading", "reading_other", "concept", "direction", "model", "statistic", "read_as"),
        units="1",
        needs="readers",
        printed=(
            Print(
                labels={
                    **{"pair": "readers", "concept": "concept"},
                    **{"direction": "vector", "model": "model"},
                },
                across="statistic",
                rows=_of_readers,
            ),
        ),
    ),
    Table(
        "corrected",
        ANSWERS,
        "published changes, corrected for the errors of the reader that read them",
        lambda t: readers.corrected(t.study),
        key=("concept", "model", "matrix_of"),
        units="1",
        needs="readers",
        printed=(
            Print(
                labels={
                    **{"concept": "concept", "model": "model", "published": "published change"},
                    **{"matrix_of": "errors taken from", "n_matrix": "items there"},
                },
                value="corrected change",
                rows=_of_corrected,
            ),
        ),
        documented={AGREEMENT: (readers, readers.corrected_change)},
    ),
    Table(
        "capability",
        ANSWERS,
        "changes of what is answered correctly, and the smallest margins for which no loss, and no "
        "change, is shown",
        lambda t: changes.capability(t.study),
        key=(
            "measure",
            "concept",
            "direction",
            "model",
            "low_strength",
            "high_strength",
            "statistic",
        ),
        units="1",
        needs="capability",
        printed=(
            Print(
                labels={
                    **{"concept": "questions", "direction": "vector"},
                    **{"strengths": "strengths", "n": "n"},
                },
                value="change of right answers, points",
                numbers={
                    "rate_low": "right before, %",
                    "loss_excluded": "no loss of more than",
                    "change_excluded": "no change of more than",
                },
                rows=_over_models,
            ),
        ),
        documented={CAPABILITY: (changes, paired.tango)},
    ),
    Table(
        "specificity",
        ANSWERS,
        "what vectors do to the answers on other concepts' items",
        lambda t: changes.specificity(t.study),
        key=("outcome", "concept", "direction", "model", "low_strength", "high_strength"),
        units="1",
        needs="specificity",
        printed=(
            Print(
                labels={
                    **{"direction": "vector", "concept": "items", "items": "whose"},
                    **{"strengths": "strengths", "n": "n"},
                    "validity": "change of valid answers, points",
                },
                value="change of the match of these, points",
                numbers={"change_of_pairs": "on items with both answers, points"},
                rows=_between_ends,
            ),
        ),
        documented={CAPABILITY: (changes.specificity,)},
    ),
    Table(
        "sensitivity",
        CONTRAST,
        "every headline without each model, concept and the invalid items",
        lambda t: sensitivity(t.study),
        key=("headline", "without", "left_out"),
    ),
    Table(
        "model_deviations",
        VARIATION,
        "is a model odd",
        lambda t: questions.model_deviations(t.study),
        key=("model",),
        value="estimate",
        units="1",
        printed=(
            Print(
                labels={"model": "model", "training": "training"},
                value="deviation, d",
                numbers={"probability_negative": "P(below zero)"},
                rows=lambda table: table if "estimate" in table else table[:0],
            ),
        ),
        documented={RANKINGS: (questions.model_deviations,)},
    ),
    Table(
        "difficulty",
        VARIATION,
        "is a concept hard",
        lambda t: questions.difficulty(t.study),
        key=("concept", "statistic"),
        units="1",
        printed=(Print(labels={"concept": "concept"}, across="statistic", rows=_known),),
        documented={RANKINGS: (questions.difficulty, questions.relative_to_others)},
    ),
    Table(
        "extraction",
        VARIATION,
        "does what the vector's extraction shows go with its effect",
        lambda t: questions.extraction(t.study),
        key=("property", "statistic"),
        units="1",
        printed=(
            Print(
                labels={"property": "property", "statistic": "statistic"},
                value="correlation with Cohen's d",
                numbers={"p_value": "p"},
                rows=_known,
            ),
        ),
        documented={RANKINGS: (questions.extraction,)},
    ),
    Table(
        "controls",
        EFFECTS,
        "the vector beside directions of equal norm",
        lambda t: directions.controls(t.study),
        needs="controls",
    ),
    Table(
        "ranks",
        EFFECTS,
        "the vector's rank among the directions of each family, and the band of these",
        lambda t: directions.ranks(t.study),
        key=("family", "model", "concept", "estimand"),
        value="own",
        units="estimand",
        needs="controls",
        printed=(
            Print(
                labels={"family": "directions", "model": "model", "concept": "concept"},
                numbers={
                    **{"own": "the vector, d", "lowest": "lowest direction, d"},
                    **{"highest": "highest direction, d", "rank_p": "p of its rank"},
                },
                rows=_several,
            ),
        ),
        documented={DIRECTIONS: (directions, directions.rank_p, directions.ranks)},
    ),
    Table(
        "letter",
        EFFECTS,
        "the letters' own direction, the positive control, and its share of the vector",
        lambda t: directions.letter(t.study),
        key=("model", "concept"),
        value="letter_shift",
        units="nat",
        needs="letter",
        printed=(
            Print(
                labels={"model": "model", "concept": "concept"},
                numbers={
                    "letter_shift": "its push towards (A), nats",
                    "own_letter_shift": "that of the vector there, nats",
                    "share": "its share of the vector",
                },
            ),
        ),
        documented={DIRECTIONS: (directions.letter,)},
    ),
    Table(
        "other_measures",
        EFFECTS,
        "what the same vectors do to the other measures of the cells",
        lambda t: other_measures.other_measures(t.study),
        key=("measure", "model", "concept", "estimand"),
        units="units",
        needs="other measures",
        printed=(
            Print(
                labels={
                    **{"measure": "measure", "model": "model", "concept": "concept"},
                    **{"compared": "strengths", "units": "unit"},
                },
                value="change",
                rows=_in_units,
            ),
        ),
    ),
    Table(
        "contrast_effect",
        CONTRAST,
        "the contrast by every method beside the others: what each takes as random, whether fits "
        "agree",
        lambda t: contrast_effect.contrast_effects(t.study, sampled=t.sampled),
        key=("outcome", "method", "random_effects", "covariates"),
        value="estimate",
        units="outcome",
        needs="contrast",
        printed=(
            Print(
                labels={
                    **{"method": "method", "random_effects": "takes as random"},
                    **{"covariates": "held fixed beside {by}"},
                },
                value="{minus}, d",
                suffix="warning",
                numbers={"p_value": "p", "probability_negative": "P(below zero)"},
                rows=_methods,
            ),
        ),
        documented={
            TRAINING: (
                *(posterior, contrast_effect, comparisons.training_gap, comparisons.permutation_p),
                *(slopes, predictive),
            ),
        },
    ),
    Table(
        "confounders",
        CONTRAST,
        "what goes with the contrast: correlations, and the contrast with each rival held fixed",
        lambda t: confounders.confounders(t.study),
        key=("outcome", "held"),
        value="estimate",
        units="outcome",
        needs="contrast",
        printed=(
            Print(
                labels={"held": "held fixed beside {by}", "separates": "no overlap of labels"},
                value="{minus}, d",
                numbers={"correlation": "r with {by}", "width_ratio": "width, times that of alone"},
                rows=_rivals,
            ),
        ),
        documented={TRAINING: (confounders, unequal)},
    ),
    Table(
        "scale_trends",
        VARIATION,
        "slopes on size",
        lambda t: comparisons.scale_trends(t.study),
        key=("outcome", "size", "concept", "method"),
        units="outcome",
        printed=(Print(labels={"concept": "concept"}, across="size", rows=_slopes, name="scale"),),
    ),
    Table(
        "variance_components",
        VARIATION,
        "how much models, concepts, cells and items vary",
        lambda t: components.variance_components(t.study, sampled=t.sampled),
        key=("outcome", "method", "component"),
        value="estimate",
        units="outcome",
    ),
    Table(
        "concordance",
        VARIATION,
        "what models' rankings of concepts have in common",
        lambda t: concordance.concordance(t.study),
        key=("estimand", "statistic", "model", "model_other"),
        units="1",
        documented={
            RANKINGS: (
                *(concordance.concept_share, concordance.concept_test),
                *(concordance.kendalls_w, concordance.rank_agreement),
            ),
        },
    ),
    Table(
        "multiverse",
        CONTRAST,
        "the contrast by every defensible way to compute it",
        lambda t: multiverse.specifications(t.study),
        needs="contrast",
    ),
    Table(
        "multiverse_summary",
        CONTRAST,
        "medians of these specifications with their joint test",
        lambda t: multiverse.multiverse_summary(t.study),
        key=("statistic",),
        units="1",
        needs="contrast",
    ),
    Table(
        "design",
        CONTRAST,
        "what sweeps of other sizes could find",
        lambda t: design.design_table(t.study),
        key=("outcome", "effect_from", "kind", "covariates"),
        value=_of_design,
        needs="contrast",
    ),
    Table(
        "leave_one_out",
        CONTRAST,
        "the contrast without each model and concept",
        lambda t: leave_one_out.leave_one_out(t.study),
        key=("outcome", "covariates", "without", "left_out"),
        value="estimate",
        units="outcome",
        needs="contrast",
    ),
    Table(
        "prior_sensitivity",
        CONTRAST,
        "the contrast under other priors",
        lambda t: leave_one_out.prior_sensitivity(t.study),
        needs="contrast",
    ),
    Table(
        "predictive_checks",
        VARIATION,
        "whether the hierarchical model fits",
        lambda t: predictive.predictive_checks(t.study),
        key=("outcome", "statistic"),
        value="observed",
        low="posterior_low",
        high="posterior_high",
        units="outcome",
    ),
    Table(
        "conclusions",
        VERDICTS,
        "one sentence a question, its grade and the numbers that chose it; headlines first",
        lambda t: conclusions_module.conclusions(t.questions),
        key=("id",),
        units="units",
        printed=(
            Print(
                labels={"id": "id", "grade": "grade", "sentence": "sentence"},
            ),
            Print(
                labels={"family": "family", "id": "id", "grade": "grade"},
                value="value [interval]",
                numbers={
                    **{"margin": "margin", "probability_claimed": "P(as claimed)"},
                    **{"probability_negligible": "P(negligible)", "p (Holm)": "p (Holm)"},
                },
                rows=_with_p,
                name="grades",
            ),
        ),
        documented={RULES: (grades, margins, conclusions_module, asked)},
    ),
    Table(
        "margins",
        VERDICTS,
        "the grades by margins half to twice as large",
        lambda t: conclusions_module.by_margin(t.questions),
        key=("id", "factor"),
        units="1",
        printed=(Print(rows=_grades_by_margin),),
    ),
    Table(
        "claims",
        VERDICTS,
        "each published claim: recomputed, balanced, interval, verdict, reason, the grade of its "
        "question",
        lambda t: ledger_module.ledger(t.study, t.claims, t["conclusions"]),
        key=("id",),
        value="recomputed",
        needs="claims",
        printed=(
            Print(
                labels={
                    **{name: name for name in ("id", "verdict", "claim", "published")},
                    **{"recomputed_as_printed": "recomputed", "balanced_shown": "balanced"},
                    **{"ends": "interval", "interval_over": "over"},
                    **{"graded": "what may be said", "reason": "reason"},
                },
                rows=_claims,
            ),
        ),
        documented={RULES: (ledger_module,)},
    ),
    Table(
        "multiplicity",
        VERDICTS,
        "families of tests, with Holm's correction",
        lambda t: multiplicity.families(t["conclusions"]),
        key=("family",),
        documented={RULES: (multiplicity, counts.counts_of_claims)},
    ),
)
"""Every table of a study, in the order of the analysis."""


def documented() -> dict[str, tuple[Documented, ...]]:
    """What the appendix documents, by section."""
    return {
        section: tuple(of for table in TABLES for of in table.documented.get(section, ()))
        for section in SECTIONS
    }


def listed() -> list[str]:
    """The list of tables in the README, a line each group."""
    lines = []
    for group in GROUPS:
        of = [table for table in TABLES if table.group == group]
        names = ", ".join(f"`{table.name}.csv`" for table in of)
        lines.append(f"| {names} | {'; '.join(table.what for table in of)} |")
    return lines

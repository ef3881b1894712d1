"""The post: a template and a study's numbers in, Markdown out whose every number can be traced.

A template cites a number by a name of `numbers.toml`, which gives its id in `numbers.json` and its
format. What it prints is marked, so that after rendering a digit outside a mark is one that
somebody typed: `render` refuses it, unless it is a label (a model, a section, a year). A number
that a study does not have is false in a template; printing it is refused too.
"""

import hashlib
import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import pandas as pd

from steercube.analysis.conclusions.grades import GRADES
from steercube.contrast import Contrast, read_attributes
from steercube.measures import Measure
from steercube.numerals import is_held, signed
from steercube.report.bibliography import Bibliography, read_bibliography
from steercube.report.printed import plain
from steercube.report.write import is_calibration_of
from steercube.schema import raise_if_any, read_json, read_text, read_toml

TEMPLATE, NUMBERS = "post.md.j2", "numbers.toml"
START, MIDDLE, END = "\ue000", "\ue001", "\ue002"
"""Around a cited number: START index MIDDLE text END. Private code points, in no text."""
OPEN, CLOSE = "\ue003", "\ue004"
"""Around a generated block, such as a table, whose numbers are traced to its file."""
TAGS = re.compile(r"^[ \t]*((?:\{%(?:(?!%\}).)*%\}[ \t]*)+)\n", re.MULTILINE)
"""A line of a template that holds only statements, and is dropped from the output."""
LITERATURE = "\ue005"
"""Placeholder of the list of cited works, which is filled in at the end."""
MARK = re.compile(f"{START}(\\d+){MIDDLE}(.*?){END}", re.DOTALL)
BLOCK = re.compile(f"{OPEN}.*?{CLOSE}", re.DOTALL)

WORDS = (
    *("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
TYPED = re.compile(rf"(?<![\w.])[−+-]?\d[\d,.]*%?|\b(?:{'|'.join(WORDS[2:])})\b", re.I)
"""What counts as a number that was typed: digits, and words from two to twelve."""
FIELD = re.compile(r"\{(\w+)\}")
LABELS = re.compile(r"^#+ \d+\.|\]\([^)]*\)|`[^`]*`|\b(?:19|20)\d\d\b", re.MULTILINE)
"""Digits that are no result: a section's, those of an address, of code, a year."""


@dataclass(frozen=True)
class Reference:
    """A name that a template may use: the id of a number, in which {fields} may be left open."""

    id: str
    format: str = ".2f"


@dataclass(frozen=True)
class Assets:
    """What the post of a study is written from: templates, references, literature.

    `templates` are texts by their path, the one to render first; the others are what it extends.
    """

    templates: dict[Path, str]
    references: dict[str, Reference]
    allowed: tuple[str, ...]
    bibliography: Bibliography


PACKAGED = Path(__file__).parent / "assets"
"""The template, references, literature and page that come with the package."""


def asset(folder: str | Path, name: str) -> Path:
    """The file `name` that posts are made with: the user's in `folder`, else the package's own."""
    own = Path(folder) / name
    return own if own.exists() or own.is_symlink() else PACKAGED / name


def read_assets(folder: str | Path, study: str = "") -> Assets:
    """`post.md.j2`, `numbers.toml` and `references.bib`: those in `folder`, else the package's.

    `<study>.post.md.j2` in `folder` extends the template, and `<study>.numbers.toml` the numbers.
    Raises ValueError that lists references no template uses, and names one uses without.
    """
    own = [p for p in [Path(folder) / f"{study}.{TEMPLATE}"] if study and p.exists()]
    paths = [*own, asset(folder, TEMPLATE)]
    numbers = [asset(folder, NUMBERS)]
    numbers += [p for p in [Path(folder) / f"{study}.{NUMBERS}"] if study and p.exists()]
    held: dict[str, Any] = {}
    declared: dict[str, Path] = {}
    for path in numbers:
        found = _numbers(path, held.get("allowed", []))
        held, declared = held | found, declared | dict.fromkeys(found, path)
    allowed = held.pop("allowed", [])
    assets = Assets(
        # In a comment a line is not written, but counts, so that an error names the right one.
        templates={path: TAGS.sub(r"\1{#\n#}", read_text(path)) for path in paths},
        references={name: Reference(**table) for name, table in held.items()},
        allowed=tuple(allowed),
        bibliography=read_bibliography(asset(folder, "references.bib")),
    )
    _require_declared(assets, declared)
    return assets


def _numbers(path: Path, allowed: list[str]) -> dict[str, Any]:
    """The tables of one numbers.toml, its `allowed` texts after those before it."""
    held = read_toml(path)
    more = held.pop("allowed", [])
    wrong = [problem for name, table in held.items() for problem in _table_problems(name, table)]
    if not isinstance(more, list) or not all(isinstance(text, str) for text in more):
        wrong.append("`allowed` is a list of texts")
    raise_if_any(wrong, what=str(path))
    return held | {"allowed": [*allowed, *more]}


def _require_declared(assets: Assets, declared: Mapping[str, Path]) -> None:
    """Refuse references that no template uses, and names that one uses without declaring them."""
    used: dict[str, Path] = {}
    defined = set(CONTEXT)
    for path, text in assets.templates.items():
        try:
            tree = jinja2.Environment().parse(text)
        except jinja2.TemplateError as error:
            raise ValueError(f"{path}{_said(error, [path])}") from error
        used |= dict.fromkeys(jinja2.meta.find_undeclared_variables(tree) - used.keys(), path)
        names = (node.name for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "store")
        defined |= {*names, *(macro.name for macro in tree.find_all(jinja2.nodes.Macro))}
    problems = [
        f"{declared[name]}: {name!r} is declared and not used: use it or delete it"
        for name in assets.references.keys() - used.keys()
    ]
    problems += [
        f"{path}: {name!r} is used and not declared in {NUMBERS}"
        for name, path in used.items()
        if name not in assets.references and name not in defined
    ]
    raise_if_any(sorted(problems), what="the template of posts")


def _table_problems(name: str, table: Any) -> list[str]:
    """What keeps a table of numbers.toml from being a reference."""
    if not isinstance(table, dict) or "id" not in table or not set(table) <= {"id", "format"}:
        return [f"{name!r} is {table!r}, not a table with `id` and, if need be, `format`"]
    if not all(isinstance(value, str) for value in table.values()):
        return [f"{name!r} has an `id` or a `format` that is no text"]
    try:
        format(0.5, table.get("format", ""))
    except ValueError:
        return [f"{name!r} has the format {table['format']!r}, which no number can be written in"]
    return []


def _said(error: BaseException, templates: Sequence[Path]) -> str:
    """The line of a template where an error arose, where that is known, and what it says."""
    names = {str(path) for path in templates} | {"<template>"}
    frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename in names]
    at = getattr(error, "lineno", None) or next(iter(frames[::-1]), None)
    return f"{f':{at}' if at else ''}: {type(error).__name__}: {error}"


def said_by_template(error: BaseException, templates: Sequence[Path] = ()) -> str:
    """The template and line where an error arose, where that is known, and what it says."""
    names = {str(path) for path in templates}
    files = [f.filename for f in traceback.extract_tb(error.__traceback__) if f.filename in names]
    return f"{Path(files[-1]).name if files else ''}{_said(error, templates)}"


@dataclass(frozen=True)
class Citation:
    """Where a printed number is from: its id in numbers.json and the table that holds it."""

    id: str
    table: str
    value: float | None


@dataclass
class Sources:
    """The numbers of one study, the citations made so far, and the problems met."""

    numbers: Mapping[str, Mapping[str, Any]]
    citations: list[Citation] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def mark(self, text: str, id: str, value: float | None = None) -> str:
        """The text as cited from `id`."""
        table = str(self.numbers[id]["table"]) if id in self.numbers else id
        self.citations.append(Citation(id, table, value))
        return f"{START}{len(self.citations) - 1}{MIDDLE}{signed(text)}{END}"

    def refuse(self, problem: str) -> str:
        """Note a problem and return a placeholder; a post with problems is never written."""
        self.problems.append(problem)
        return "?"


class Number:
    """One number as a template sees it. False where the study has no such number."""

    def __init__(self, sources: Sources, id: str, spec: str) -> None:
        self.sources, self.id, self.spec = sources, id, spec
        self.entry = sources.numbers.get(id, {})

    def __bool__(self) -> bool:
        return self.entry.get("value") is not None

    def __str__(self) -> str:
        return self._shown("value")

    def _shown(self, name: str, spec: str = "") -> str:
        value = self.entry.get(name)
        if value is None:
            why = self.entry.get("reason", "no table holds it")
            return self.sources.refuse(f"{self.id}: has no {name} ({why}); guard it with `if`")
        return self.sources.mark(_formatted(value, spec or self.spec), self.id, value)

    def __getattr__(self, name: str) -> Any:
        """A text of the number's row as it is; another value of the row formatted like its own."""
        value = self.entry.get(name)
        if name.startswith("_"):
            raise AttributeError(name)
        if isinstance(value, str):
            return self.sources.mark(value, self.id)
        return self._shown(name)

    @property
    def value(self) -> float:
        """The bare number, for comparisons; NaN where there is none."""
        return float(self.entry["value"]) if self else float("nan")

    @property
    def interval(self) -> str:
        """[low, high]"""
        if not self.has_interval:
            return self.sources.refuse(f"{self.id}: has no interval; guard it with `has_interval`")
        low, high = (_formatted(self.entry[end], self.spec) for end in ("low", "high"))
        return self.sources.mark(f"[{low}, {high}]", self.id)

    @property
    def full(self) -> str:
        """The value with its interval, where there is one.

        The corrected value, if known, stands beside one that no interval holds.
        """
        shown = str(self)
        held = is_held(self.value, self.bare("low"), self.bare("high"))
        if self and not held and self.entry.get("corrected") is not None:
            shown += f" (corrected {self.corrected})"
        return f"{shown} {self.interval}" if self.has_interval else shown

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return None not in (self.entry.get("low"), self.entry.get("high"))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.has_interval and self.entry["low"] * self.entry["high"] > 0

    @property
    def p(self) -> str:
        """p = 0.034"""
        return self._shown("p_value", ".3f")

    @property
    def in_words(self) -> str:
        """A small whole number as a word."""
        if not self:
            return str(self)
        n = int(self.value)
        word = WORDS[n] if 0 <= n < len(WORDS) else format(n, ",")
        return self.sources.mark(word, self.id, self.value)

    def said(self, name: str) -> str:
        """A text of the row for comparisons, such as its verdict; empty where there is none."""
        return str(self.entry.get(name) or "")

    def bare(self, name: str) -> float:
        """Another value of the row for comparisons; NaN where there is none."""
        value = self.entry.get(name)
        return float("nan") if value is None else float(value)

    def at(self, spec: str) -> "Number":
        """The same number in another format."""
        return Number(self.sources, self.id, spec)


def _formatted(value: float, spec: str) -> str:
    """As the format says; digits that matter, where it would print a zero that is none.

    >>> _formatted(0.004, ".2f"), _formatted(0.0, ".2f"), _formatted(-0.004, ".0%")
    ('0.004', '0.00', '0%')
    """
    text = format(value, spec)
    if text == "-0%":
        return "0%"
    if value and spec.endswith("f") and float(text.replace(",", "")) == 0:
        return format(value, "+.1g" if spec.startswith("+") else ".1g")
    return text


@dataclass(frozen=True)
class Results:
    """What a study's folder holds, as `analyze` wrote it."""

    study: str
    numbers: dict[str, dict[str, Any]]
    tables: dict[str, pd.DataFrame]
    printed: dict[str, str]
    figures: tuple[str, ...]
    settings: dict[str, Any]
    contrast: Contrast | None = None
    left_out: tuple[str, ...] = ()
    """Files in the folder that are not used, with the reason."""


def read_results(folder: str | Path) -> Results:
    """The results of one study.

    Raises FileNotFoundError where `analyze` has not run, ValueError where a file of it is missing.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise FileNotFoundError(f"{folder} holds no results; run `steercube analyze` first")
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("outputs"), dict):
        raise ValueError(f"{folder / 'manifest.json'}: lists no outputs; run `steercube analyze`")
    missing = [name for name in manifest["outputs"] if not (folder / name).is_file()]
    raise_if_any(
        [f"{name} is missing; run `steercube analyze`" for name in missing], what=str(folder)
    )
    numbers = read_json(folder / "numbers.json")
    if not isinstance(numbers, dict):
        raise ValueError(f"{folder / 'numbers.json'}: is no object of numbers by their ids")
    settings, simulated = manifest.get("settings", {}), folder / "calibration"
    left_out: tuple[str, ...] = ()
    if simulated.is_dir() and not is_calibration_of(simulated, settings):
        other = f"{simulated} is of other cells or another contrast, and left out"
        left_out = (f"{other}: run `steercube calibrate`",)
    else:
        numbers |= _coverage(simulated / "coverage.csv") | _operating(simulated / "operating.csv")
        numbers |= _graded(simulated / "grades.csv") | _operating(simulated / "answers.csv")
    results = Results(
        study=folder.name,
        numbers=numbers,
        tables={p.stem: read_table(p) for p in sorted((folder / "tables").glob("*.csv"))},
        printed={p.stem: read_text(p) for p in sorted((folder / "tables").glob("*.md"))},
        figures=tuple(p.stem for p in sorted((folder / "figures").glob("*.png"))),
        settings=settings,
        contrast=read_attributes(settings),
        left_out=left_out,
    )
    problems = [*_content_problems(results), *_figure_problems(folder / "figures")] or [
        f"{name} is not as it was written"
        for name, sha256 in manifest["outputs"].items()
        if _sha256(folder / name) != sha256
    ]
    problems += _edited_inputs(folder.parent, manifest.get("inputs", {}))
    raise_if_any([f"{problem}; run `steercube analyze`" for problem in problems], what=str(folder))
    return results


def _edited_inputs(paper: Path, inputs: Mapping[str, str]) -> list[str]:
    """Files beside the results, such as the ledger, that are no longer what they were made from."""
    return [
        f"{name} was edited after the results were made from it"
        for name, sha256 in inputs.items()
        if (paper / name).is_file() and _sha256(paper / name) != sha256
    ]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


OF_METHOD = ("method", "random_effects", "covariates")
TRUTH = ("training", "sd_model", "scale", "uneven")
USUAL = {"scale": 0.0, "uneven": 1.0}
"""Truths that a text does not mention: no slope on size, models that vary alike."""


def _coverage(path: Path) -> dict[str, dict[str, Any]]:
    """Shares of intervals that held the truth, by method and truth, where `calibrate` ran."""
    rows = _rows_of_calibration(path, OF_METHOD, (*TRUTH, "coverage", "n_simulations"))
    return dict(map(_covered, rows))


def _rows_of_calibration(
    path: Path, texts: Sequence[str], shares: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of a table of `calibrate` with these columns of text and of numbers; none without.

    Raises ValueError that names each column which is missing or holds text instead of numbers.
    """
    if not path.is_file():
        return []
    table = read_table(path)
    lacking = {*texts, *shares} - set(table)
    problems = [f"has no column {name!r}" for name in sorted(lacking)] or [
        f"holds text in {name!r}, where numbers belong"
        for name in shares
        if not pd.api.types.is_numeric_dtype(table[name])
    ]
    raise_if_any([f"{problem}; run `steercube calibrate`" for problem in problems], what=str(path))
    return table.to_dict("records")


OF_SIMULATION = ("statistic", "scenario", "measure")
TOLERANCE = 0.02
"""How far a share may be from its nominal one before a text says so."""


def _operating(path: Path) -> dict[str, dict[str, Any]]:
    """What intervals cover and tests reject in simulations, by statistic, scenario and measure."""
    rows = _rows_of_calibration(path, OF_SIMULATION, ("nominal", "achieved", "n_simulations"))
    return {
        "/".join(["operating", *(row[name] for name in OF_SIMULATION)]): {
            **{name: row[name] for name in OF_SIMULATION},
            "value": None if pd.isna(row["achieved"]) else row["achieved"],
            "nominal": None if pd.isna(row["nominal"]) else row["nominal"],
            "n": row["n_simulations"],
            "table": f"calibration/{path.name}",
        }
        for row in rows
    }


OF_GRADES = ("question", "design", "size", "more", "claim")


def _graded(path: Path) -> dict[str, dict[str, Any]]:
    """How often simulated claims are supported, by question, design, size and claim."""
    numbers = ("supported", "grade: contradicted", "sd_model", "n_simulations")
    rows = _rows_of_calibration(path, OF_GRADES, numbers)
    return {
        "/".join(["grades", *filter(None, (str(row[name]) for name in OF_GRADES))]): {
            **{name: str(row[name]) for name in OF_GRADES},
            "value": row["supported"],
            "contradicted": row["grade: contradicted"],
            "sd_model": None if pd.isna(row["sd_model"]) else row["sd_model"],
            "n": row["n_simulations"],
            "table": "calibration/grades.csv",
        }
        for row in rows
    }


def _off_nominal(sources: Sources) -> Callable[..., list[list["Number"]]]:
    """Shares of simulations of some statistics that are not what the interval or test promises.

    A list for each statistic and measure, of its scenarios.
    """

    def off_nominal(*statistics: str) -> list[list[Number]]:
        found: dict[tuple[str, str], list[Number]] = {}
        for id, entry in sources.numbers.items():
            if not id.startswith(("operating/", "coverage/")):
                continue
            if entry["statistic"] in statistics and _is_off(entry["value"], entry["nominal"]):
                of = found.setdefault((entry["statistic"], entry["measure"]), [])
                of.append(Number(sources, id, ".1%"))
        return list(found.values())

    return off_nominal


def _coverages(sources: Sources) -> Callable[[str], list["Number"]]:
    """How often the interval of one statistic held the truth in each simulation, in order."""

    def coverages(statistic: str) -> list[Number]:
        found = [
            (entry["value"], id)
            for id, entry in sources.numbers.items()
            if id.startswith(("operating/", "coverage/"))
            and (entry["statistic"], entry["measure"]) == (statistic, "coverage")
            and entry["value"] is not None
        ]
        return [Number(sources, id, ".1%") for _, id in sorted(found)]

    return coverages


def _is_off(share: float | None, nominal: float | None) -> bool:
    """Whether a share is further from its nominal one than TOLERANCE."""
    return share is not None and nominal is not None and round(abs(share - nominal), 9) > TOLERANCE


def _covered(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    truth = [f"{name} {row[name]:g}" for name in TRUTH]
    method = [row[name] for name in OF_METHOD]
    return "/".join(["coverage", *method, *truth]), {
        "statistic": f"training effect ({'; '.join(method)})",
        "scenario": ", ".join(
            f"{name} {row[name]:g}" for name in TRUTH if row[name] != USUAL.get(name)
        ),
        "measure": "coverage",
        "nominal": 0.95,
        "value": None if pd.isna(row["coverage"]) else row["coverage"],
        "sd_model": row["sd_model"],
        "n": row["n_simulations"],
        "table": "calibration/coverage.csv",
    }


OF_A_CURVE = ("model", "concept", "layer", "depth", "cohens_d", "cohens_d_low", "cohens_d_high")
COLUMNS = {
    "about_models": ("model", "family"),
    "about_concepts": ("concept",),
    "claims": ("id",),
    "conclusions": ("id", "family", "grade"),
    "effects": (*OF_A_CURVE, "n", "reason"),
    "layer_effects": OF_A_CURVE,
}
"""Columns that a post and its page are made from."""


def _content_problems(results: Results) -> Iterator[str]:
    """What a post needs and these results lack."""
    try:
        float(results.settings["confidence_level"])
    except (KeyError, TypeError, ValueError):
        yield "manifest.json has no number `confidence_level` in its settings"
    for name, columns in COLUMNS.items():
        table = results.tables.get(name)
        if table is None and name != "claims":
            yield f"tables/{name}.csv is missing"
        elif table is not None:
            for column in columns:
                if column not in table:
                    yield f"tables/{name}.csv has no column {column!r}"
                elif column in OF_A_CURVE[2:] and not pd.api.types.is_numeric_dtype(table[column]):
                    yield f"tables/{name}.csv holds text in {column!r}, where numbers belong"
    for id, entry in results.numbers.items():
        if not isinstance(entry, dict) or "table" not in entry:
            yield f"numbers.json: {id!r} is not an object that names its `table`"
        elif any(isinstance(entry.get(end), (str, dict, list)) for end in ("value", "low", "high")):
            yield f"numbers.json: {id!r} has a value or an end that is no number"


def _figure_problems(folder: Path) -> Iterator[str]:
    """Files in `figures/` that are not PNG or SVG; the page would embed them as they are."""
    for path in sorted(folder.glob("*.png")):
        if not path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
            yield f"figures/{path.name} is not a PNG image"
    for path in sorted(folder.glob("*.svg")):
        if "<svg" not in read_text(path):
            yield f"figures/{path.name} is not an SVG image"


NAMES = ("model", "concept", "family", "group", "one", "other", "left_out", "name")
"""Columns of names that a user chose, which are text whatever they look like."""
FLAGS = (
    *("steers", "steers_reason", "layer_flag", "direction_flag"),
    *("influential_item", "influence_flag"),
)
"""Columns of texts that may all be empty, which pandas would read as missing numbers."""


def read_table(path: Path) -> pd.DataFrame:
    """A table of results from CSV. Empty text is text, not missing; a file may have no columns.

    Raises ValueError with the line that is no row of it.
    """
    try:
        # A name stays one, be it `NA` or `007`; a missing number is an empty cell.
        table = pd.read_csv(
            path, dtype=dict.fromkeys((*NAMES, *FLAGS), str), keep_default_na=False, na_values=[""]
        )
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except ValueError as error:
        raise ValueError(f"{path}: is not a CSV table ({str(error).strip()})") from error
    texts = [c for c in table if not pd.api.types.is_numeric_dtype(table[c])]
    return table.fillna(dict.fromkeys(texts, ""))


@dataclass(frozen=True)
class Post:
    """A rendered post: `marked` Markdown, and what each mark cites."""

    marked: str
    citations: tuple[Citation, ...]

    @property
    def markdown(self) -> str:
        """The text without marks."""
        return without_marks(self.marked)


def without_marks(text: str) -> str:
    """The text that a reader sees."""
    return MARK.sub(r"\2", text)


OF_RENDERING = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError)
"""Errors of a template that uses something missing or uncomputable."""

CONTEXT = {
    *("study", "settings", "models", "concepts", "families", "claims", "conclusions"),
    *("conclusions_with", "questions_of", "grades", "conclusion"),
    *("table", "figure", "cite", "literature", "methods"),
    *("models_by", "concepts_by", "listed", "words", "flagged", "provenance", "off_nominal"),
    "coverages",
    *("contrast", "capital", "not_compared", "compared"),
    *("units", "layers_by"),
}
"""Names that every template may use, besides those in numbers.toml."""


def render(results: Results, assets: Assets, *, methods: str = "") -> Post:
    """The post of one study. Raises ValueError that lists every number without a source."""
    sources = Sources(results.numbers)
    context = _context(results, assets, sources, methods)
    try:
        text = _environment(assets).get_template(next(iter(assets.templates)).name).render(context)
    except OF_RENDERING as error:
        where = said_by_template(error, list(assets.templates))
        raise ValueError(f"the post of {results.study}: {where}") from error
    text = text.replace(LITERATURE, block(assets.bibliography.listed(text)))
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    labels = [*context["models"], *context["families"], results.study, *assets.allowed]
    labels += [context["compared"], context["units"], plain(results.settings.get("measured", ""))]
    labels += [name for concept in context["concepts"] for name in (concept, words(concept))]
    labels += [str(text) for text in (context["contrast"] or {}).values()]
    problems = [*sources.problems, *assets.bibliography.problems_of(text)]
    problems += [f"{number!r} was typed: ...{near}..." for number, near in typed(text, labels)]
    raise_if_any(problems, what=f"the post of {results.study}")
    return Post(text.replace(OPEN, "").replace(CLOSE, ""), tuple(sources.citations))


def effect_in_words(settings: Mapping[str, Any]) -> str:
    """The effect on an item's measure, by the strengths that were compared.

    >>> effect_in_words({"compared": "+4 minus -4"}), effect_in_words({"compared": "slope"})
    ('its mean at strength +4 minus that at −4', 'the slope of its mean over all strengths')
    """
    high, minus, low = signed(settings.get("compared", Measure("").compared)).partition(" minus ")
    return (
        f"its mean at strength {high} minus that at {low}"
        if minus
        else "the slope of its mean over all strengths"
    )


def units_in_words(settings: Mapping[str, Any]) -> str:
    """The unit of the measure that a study is about, as a text says it.

    >>> units_in_words({}), units_in_words({"units": "points"}), units_in_words({"units": "1"})
    ('nats', 'points', "the measure's own unit")
    """
    units = str(settings.get("units", "nat"))
    return {"nat": "nats", "1": "the measure's own unit"}.get(units, units)


def _selecting(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The measures that select the layers of the other measures, as words."""
    if "other_measures" not in tables:
        return []
    return sorted({words(str(name)) for name in tables["other_measures"]["layer_by"]})


def _environment(assets: Assets) -> jinja2.Environment:
    """Where templates find each other by the names of their files, and say theirs in an error."""
    by_name = {path.name: (text, str(path)) for path, text in assets.templates.items()}

    def load(name: str) -> tuple[str, str, None] | None:
        return (*by_name[name], None) if name in by_name else None

    loader = jinja2.FunctionLoader(load)
    return jinja2.Environment(undefined=jinja2.StrictUndefined, loader=loader)


def typed(text: str, labels: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Numbers of a marked text that are neither cited nor a label, with their surroundings."""
    bare = BLOCK.sub("", MARK.sub("", text))
    for label in sorted(labels, key=len, reverse=True):
        bare = re.sub(rf"(?<!\w){re.escape(label)}(?!\w)", "", bare)
    bare = LABELS.sub("", bare)
    for found in TYPED.finditer(bare):
        near = bare[max(0, found.start() - 30) : found.end() + 30]
        yield found.group(), " ".join(near.split())


def _context(results: Results, assets: Assets, sources: Sources, methods: str) -> dict[str, Any]:
    about, conclusions = results.tables["about_models"], results.tables["conclusions"]
    context: dict[str, Any] = {
        "study": results.study,
        "settings": results.settings,
        "provenance": lambda name: _block_of(provenance(results.settings, name)),
        "models": about["model"].astype(str).tolist(),
        "concepts": results.tables["about_concepts"]["concept"].tolist(),
        "families": sorted({plain(family) for family in about["family"]}),
        "claims": results.tables["claims"]["id"].tolist() if "claims" in results.tables else [],
        "conclusions": conclusions["id"].tolist(),
        "conclusions_with": lambda grades: conclusions["id"][
            conclusions["grade"].isin(grades)
        ].tolist(),
        "questions_of": lambda family: conclusions["id"][conclusions["family"] == family].tolist(),
        "grades": GRADES,
        "conclusion": lambda id: Number(sources, f"conclusions/{id}", ".2f"),
        "table": lambda name: block(results.printed[name]) if name in results.printed else "",
        "figure": lambda name, alt: _figure(results, name, alt),
        "cite": assets.bibliography.cite,
        "literature": LITERATURE,
        "methods": block(methods),
        "listed": listed,
        "words": words,
        "flagged": lambda column, flag: flagged(results.tables["effects"], column, flag),
        "off_nominal": _off_nominal(sources),
        "coverages": _coverages(sources),
        "contrast": contrast_words(results.contrast),
        "compared": effect_in_words(results.settings),
        "units": units_in_words(results.settings),
        "layers_by": _selecting(results.tables),
        "not_compared": not_compared(results.contrast, about),
        "capital": lambda text: text[:1].upper() + text[1:],
        "models_by": _order(sources, "models/{}/{}/every concept it ran"),
        "concepts_by": _order(sources, "concepts/{}/{}/every model that ran it/mean"),
    }
    fixed = {"by": "", "low": "", "high": "", "covariate": ""}
    if results.contrast:
        fixed = {name: getattr(results.contrast, name) for name in fixed}
    for name, reference in assets.references.items():
        context[name] = _named(sources, reference, fixed)
    return context


def contrast_words(contrast: Contrast | None) -> dict[str, str] | None:
    """The contrast as a template writes of it; None where nothing is compared."""
    if contrast is None:
        return None
    return {
        "by": contrast.by,
        "minus": contrast.minus,
        "held": contrast.held,
        "covariate": contrast.covariate,
        "low": contrast.named(contrast.low),
        "high": contrast.named(contrast.high),
        "low_models": contrast.models_of(contrast.low),
        "high_models": contrast.models_of(contrast.high),
    }


def not_compared(contrast: Contrast | None, about: pd.DataFrame) -> list[str]:
    """The models of neither label of the contrast."""
    if contrast is None:
        return []
    compared = about[contrast.by].isin([contrast.low, contrast.high])
    return about["model"][~compared].astype(str).tolist()


def _named(sources: Sources, reference: Reference, fixed: Mapping[str, str]) -> Any:
    """A number, or what gives one for the fields that are left open in its id."""
    open_fields = set(FIELD.findall(reference.id)) - set(fixed)
    if not open_fields:
        return Number(sources, reference.id.format(**fixed), reference.format)
    return lambda **of: Number(sources, reference.id.format(**fixed, **of), reference.format)


def _order(sources: Sources, pattern: str) -> Callable[[Sequence[str], str], list[str]]:
    """Names in the order of an average of theirs, smallest first; those without one left out."""

    def order(names: Sequence[str], estimand: str) -> list[str]:
        averages = {n: Number(sources, pattern.format(n, estimand), "") for n in names}
        return sorted((n for n in names if averages[n]), key=lambda n: averages[n].value)

    return order


def block(text: str) -> str:
    """A generated text, whose numbers are those of the file that it is made from."""
    return f"{OPEN}{text.strip()}{CLOSE}"


def _block_of(text: str) -> str:
    """The text as a block; nothing where there is none."""
    return block(text) if text else ""


def _figure(results: Results, name: str, alt: str) -> str:
    """The figure as Markdown, with the pages that it goes on to, where the study has it."""
    pages = [f for f in results.figures if re.fullmatch(rf"{name}(_\d+)?", f)]
    pages.sort(key=lambda page: int(page.removeprefix(name).lstrip("_") or 1))
    said, last = " ".join(str(alt).split()), len(pages)
    return "\n\n".join(
        f"![{said}{f' Part {number} of {last}.' if last > 1 else ''}](figures/{page}.png)"
        for number, page in enumerate(pages, start=1)
    )


def flagged(effects: pd.DataFrame, column: str, flag: str) -> list[str]:
    """The pairs whose `column` holds the flag, as a sentence names them; a concept of one model
    by its name alone."""
    some = effects[effects[column].str.split(", ").map(lambda flags: flag in flags)]
    pairs = zip(some["concept"].map(words), some["model"].map(str), strict=True)
    alone = effects["model"].nunique() == 1
    return [concept if alone else f"{concept} ({model})" for concept, model in pairs]


def provenance(settings: Mapping[str, Any], name: str) -> str:
    """An attribute of the sweep's file, on one line; empty where it has none."""
    lines = str(settings.get(name, "")).strip().split("\n")
    try:
        versions = json.loads(lines[0])
        shown = ", ".join(f"{package} {version}" for package, version in versions.items())
    except (ValueError, AttributeError):
        shown = lines[0]
    more = f" (the first of {len(lines)} lines)" if len(lines) > 1 else ""
    return plain(shown.removeprefix("Cells of: ") + more)


def words(name: object) -> str:
    """A name as a sentence has it."""
    return str(name).replace("_", " ")


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last

"""Malformed input of every kind: exit code 2 and one message that names the file and the rule."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from builders import ROOT, TRAINING, make_cube

from steercube import netcdf
from steercube.cells import as_cells, save_cells
from steercube.cells import groups_of as cell_groups
from steercube.cli import main
from steercube.contract import MODEL_VARIABLES, RESPONSES
from steercube.cube import as_cube, save_cube
from steercube.cube import groups_of as cube_groups
from steercube.measures import LOGIT_DIFF
from steercube.report.post import PACKAGED
from steercube.report.write import OF_A_CALIBRATION

TEXTS = ("model", *(name for name, v in MODEL_VARIABLES.items() if v.kind == "U"))
"""What xarray cannot write of no model."""
Prepare = Callable[["Made"], None]
Content = str | bytes


@dataclass(frozen=True)
class Made:
    """The folder of one case, and sound files to spoil."""

    folder: Path
    cube: xr.Dataset
    cells: xr.Dataset

    def write(self, files: Mapping[str, Content]) -> None:
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def paper(self) -> Path:
        """A folder that `steercube paper` makes a post of."""
        target = self.folder / "paper"
        shutil.copytree(PACKAGED, target)
        shutil.copytree(ROOT / "paper" / "smollm2", target / "mine")
        return target


@dataclass(frozen=True)
class Case:
    """Files, or what prepares them; the command; what its message must hold."""

    id: str
    files: Mapping[str, Content] | Prepare
    command: str
    named: tuple[str, ...]


def model_entry(name: str = "mine", **changes: str) -> str:
    """An entry of models.toml, its values as TOML; an empty one is left out."""
    facts = {
        "hf_id": '"made/mine"',
        "family": '"made-up"',
        "training": '"other"',
        "architecture": '"dense"',
        "n_layers": "5",
        "n_params": "1e6",
        "n_active_params": "1e6",
    } | changes
    lines = [f"{field} = {value}" for field, value in facts.items() if value]
    return "\n".join([f"[{json.dumps(name)}]", *lines, ""])


def question(split: str, i: int, **changes: object) -> str:
    entry = {
        "id": f"{split}/{i}",
        "split": split,
        "question": f"{split} {i} {'abcdefghij'[i] * 3} {'klmnopqrst'[i] * 4}?",
        "choices": {"A": "Yes I do", "B": "No never"},
        "matching": "AB"[i % 2],
    }
    return json.dumps(entry | changes)


def questions(*spoilt: str, splits: tuple[str, ...] = ("train", "eval")) -> str:
    """A sound concept file of eight lines, `spoilt` ones after them."""
    sound = [question(split, i) for split in splits for i in range(4)]
    return "\n".join([*sound, *spoilt, ""])


def claim(**changes: str) -> str:
    """A ledger of one claim, its values as TOML; an empty one is left out."""
    facts = {
        "id": '"a"',
        "section": '"1"',
        "text": '"it steers"',
        "published": '"1.0"',
        "statistic": '"model_mean"',
        "arguments": '{model = "small", estimand = "delta"}',
    } | changes
    lines = [f"{field} = {value}" for field, value in facts.items() if value]
    return "\n".join(['study = "mine"', "[[claim]]", *lines, ""])


def of_cube(
    change: Callable[[xr.Dataset], xr.Dataset], *groups: str, table: xr.Dataset | None = None
) -> Prepare:
    """A file with the right digest that breaks the contract, as xarray alone would write it.

    In `groups` of it, by default that of the logits, or with a table of responses beside them.
    """

    def prepare(made: Made) -> None:
        (made.folder / "data").mkdir()
        held = cube_groups(as_cube(made.cube)) | ({} if table is None else {RESPONSES: table})
        changed = {name: change(held[name]) for name in groups or (LOGIT_DIFF.name,)}
        netcdf.save(held | changed, made.folder / "data" / "mine.nc")

    return prepare


def of_cells(change: Callable[[xr.Dataset], xr.Dataset], *groups: str) -> Prepare:
    """The same of cells, by default in the root, which holds their attributes."""

    def prepare(made: Made) -> None:
        (made.folder / "data").mkdir()
        held = cell_groups(as_cells(made.cells))
        changed = {name: change(held[name]) for name in groups or (netcdf.ROOT,)}
        netcdf.save(held | changed, made.folder / "data" / "mine.cells.nc")

    return prepare


def truncated(made: Made) -> None:
    save_cube(made.cube, made.folder / "cut.nc")
    whole = (made.folder / "cut.nc").read_bytes()
    (made.folder / "cut.nc").write_bytes(whole[: len(whole) // 2])


def foreign(made: Made) -> None:
    made.cube.to_netcdf(made.folder / "foreign.nc", engine="netcdf4")


def altered(made: Made) -> None:
    sha = netcdf.digest(made.cube)
    changed = made.cube.assign_attrs({"title": "Another", netcdf.DIGEST: sha})
    changed.to_netcdf(made.folder / "altered.nc", engine="netcdf4")


def spoilt_paper(name: str, content: Content | Callable[[str], str]) -> Prepare:
    """A paper whose file `name` holds `content`, or what it gives of the sound text."""

    def prepare(made: Made) -> None:
        path = made.paper() / name
        path.parent.mkdir(exist_ok=True)
        if path.parent.name == "calibration":  # of these cells, or nobody reads it
            manifest = json.loads((path.parents[1] / "manifest.json").read_text())
            manifest["settings"] |= TRAINING.attributes
            (path.parents[1] / "manifest.json").write_text(json.dumps(manifest))
            of = {key: manifest["settings"][key] for key in OF_A_CALIBRATION}
            (path.parent / "manifest.json").write_text(json.dumps(of))
        made_of = content(path.read_text()) if callable(content) else content
        path.write_bytes(made_of if isinstance(made_of, bytes) else made_of.encode())

    return prepare


def changed_json(name: str, change: Callable[[dict], object]) -> Prepare:  # type: ignore[type-arg]
    def spoil(text: str) -> str:
        held = json.loads(text)
        change(held)
        return json.dumps(held)

    return spoilt_paper(name, spoil)


def folder(name: str) -> Prepare:
    return lambda made: (made.folder / name).mkdir(parents=True)


def two_ledgers(made: Made) -> None:
    made.write(
        {"data/mine.nc": "", "paper/claims.toml": claim(), "paper/more.claims.toml": claim()}
    )


def spaced(made: Made) -> None:
    made.write({"mein größtes Konzept/ehrlich keit.jsonl": questions("{")})


def text_in(column: str) -> Callable[[str], str]:
    """The table with a word in one row of that column."""

    def spoil(text: str) -> str:
        header, first, *rest = text.splitlines()
        cells = first.split(",")
        cells[header.split(",").index(column)] = "low"
        return "\n".join([header, ",".join(cells), *rest])

    return spoil


NOT_UTF8 = 'title = "caf\xe9"\n'.encode("latin-1")
DATA = {"data/mine.nc": ""}
"""Ledgers are read before any cube is."""
COLLECT = "collect --model mine --models models.toml --out mine.nc"
ENTRY = {"models.toml": model_entry()}
SOUND = {**ENTRY, "set/honesty.jsonl": questions()}
SWEEP = f"{COLLECT} --concept-set set"
IMPORT = "import-study --models models.toml --out mine.nc --from none"


def ledger(text: Content) -> Mapping[str, Content]:
    return {**DATA, "paper/claims.toml": text}


def models(text: Content) -> Mapping[str, Content]:
    return {"models.toml": text}


def concept(text: Content) -> Mapping[str, Content]:
    return {"honesty.jsonl": text}


CHECK = "check-concepts honesty.jsonl"
LEDGER = "paper/claims.toml"

CASES = (
    # Models
    Case("models: syntax", models("a = 1\n[b\n"), COLLECT, ("models.toml", "not TOML", "line 2")),
    Case("models: not UTF-8", models(NOT_UTF8), COLLECT, ("models.toml", "UTF-8", "line 1")),
    Case("models: empty", models(""), IMPORT, ("models.toml", "holds no model")),
    Case(
        "models: a missing file",
        {},
        COLLECT,
        ("models.toml", "no such file", "--models names another"),
    ),
    Case(
        "models: a folder",
        folder("models.toml"),
        COLLECT,
        ("models.toml", "is a folder, not a file"),
    ),
    Case(
        "models: unknown key",
        models(model_entry(colour='"red"')),
        COLLECT,
        ("models.toml", "'mine'", "unknown field 'colour'"),
    ),
    Case(
        "models: missing key",
        models(model_entry(n_layers="")),
        IMPORT,
        ("models.toml", "'mine'", "lacks 'n_layers'"),
    ),
    Case(
        "models: text for a number",
        models(model_entry(n_layers='"5"')),
        COLLECT,
        ("models.toml", "n_layers = '5'", "wrong type"),
    ),
    Case(
        "models: true for a number",
        models(model_entry(n_layers="true")),
        COLLECT,
        ("models.toml", "n_layers = True", "wrong type"),
    ),
    Case(
        "models: negative layers",
        models(model_entry(n_layers="-3")),
        COLLECT,
        ("models.toml", "n_layers = -3", "positive"),
    ),
    Case(
        "models: nan parameters",
        models(model_entry(n_params="nan")),
        COLLECT,
        ("models.toml", "n_params = nan", "finite"),
    ),
    Case(
        "models: a training that is no name",
        models(model_entry(training='"a/b"')),
        COLLECT,
        ("models.toml", "'mine'", "training = 'a/b' cannot be a name"),
    ),
    Case(
        "models: unknown architecture",
        models(model_entry(architecture='"magic"')),
        COLLECT,
        ("models.toml", "architecture = 'magic'", "none of dense"),
    ),
    Case(
        "models: no table", models("mine = 3\n"), COLLECT, ("models.toml", "'mine'", "not a table")
    ),
    Case(
        "models: nested too deep",
        models("a = " + "[" * 20_000),
        COLLECT,
        ("models.toml", "not TOML"),
    ),
    *(
        Case(
            f"models: a name that is {what}",
            models(model_entry(name)),
            COLLECT,
            ("models.toml", f"model {name!r} cannot be a name"),
        )
        for what, name in {
            "a way out": "../evil",
            "two folders": "a/b",
            "empty": "",
            "hidden": ".mine",
            "with NUL": "a\0b",
            "of Windows": "..\\evil",
            "too long": "m" * 300,
        }.items()
    ),
    Case(
        "models: a package that is none",
        models(model_entry(package='"a.b"')),
        COLLECT,
        ("models.toml", "package = 'a.b'"),
    ),
    Case("model: none of these", ENTRY, COLLECT.replace("mine", "yours", 1), ("'yours'", "mine")),
    Case(
        "model: empty",
        ENTRY,
        COLLECT.replace("--model mine", "--model="),
        ("''", "neither an entry"),
    ),
    Case(
        "model: a way out",
        ENTRY,
        COLLECT.replace("mine", "../evil", 1),
        ("'../evil'", "nor a folder"),
    ),
    Case(
        "model: a hidden folder",
        lambda made: made.write({**SOUND, ".evil/config.json": "{}"}),
        SWEEP.replace("mine", ".evil", 1),
        ("'.evil'", "models.toml"),
    ),
    # Claims
    Case("claims: syntax", ledger("a = 1\nb = \n"), "analyze", (LEDGER, "not TOML", "line 2")),
    Case("claims: not UTF-8", ledger(b"\n" + NOT_UTF8), "analyze", (LEDGER, "UTF-8", "line 2")),
    Case("claims: unknown key", ledger(claim(hue='"red"')), "analyze", (LEDGER, "claim a", "hue")),
    Case("claims: missing key", ledger(claim(text="")), "analyze", (LEDGER, "claim a", "'text'")),
    Case(
        "claims: half a contrast",
        ledger('study = "mine"\n[contrast]\nby = "training"\nhigh = "rl"\n'),
        "analyze",
        (LEDGER, "`low` is missing", "[contrast]"),
    ),
    Case(
        "claims: a contrast that is a text",
        ledger('study = "mine"\ncontrast = "training:base:rl"\n'),
        "analyze",
        (LEDGER, "write `by`, `low` and `high` in [contrast]"),
    ),
    Case(
        "claims: an unknown table",
        ledger('study = "mine"\n[[claims]]\n'),
        "analyze",
        (LEDGER, "`claims` is unknown"),
    ),
    Case(
        "claims: a number for text",
        ledger(claim(published="9.15")),
        "analyze",
        (LEDGER, "published = 9.15", "must be str"),
    ),
    Case(
        "claims: a list for a statistic",
        ledger(claim(statistic='["model_mean"]')),
        "analyze",
        (LEDGER, "claim a", "statistic", "must be str"),
    ),
    Case(
        "claims: entries that are no tables",
        ledger('study = "mine"\nclaim = [1, 2]\n'),
        "analyze",
        (LEDGER, "[[claim]]"),
    ),
    Case(
        "claims: unknown statistic",
        ledger(claim(statistic='"magic"')),
        "analyze",
        (LEDGER, "'magic' is none of", "model_mean"),
    ),
    Case(
        "claims: unknown estimand",
        ledger(claim(arguments='{model = "small", estimand = "luck"}')),
        "analyze",
        (LEDGER, "'luck' is none of"),
    ),
    Case(
        "claims: a list for an estimand",
        ledger(claim(arguments='{model = "small", estimand = ["delta"]}')),
        "analyze",
        (LEDGER, "estimand = ['delta']"),
    ),
    Case(
        "claims: text for a list",
        ledger(
            claim(arguments='{model = "small", estimand = "delta", concepts = "honesty"}'),
        ),
        "analyze",
        (LEDGER, "concepts = 'honesty' must be a list"),
    ),
    Case(
        "claims: unknown size",
        ledger(
            claim(
                statistic='"scale_slope"',
                arguments='{concept = "honesty", estimand = "delta", size = "n_heads"}',
            )
        ),
        "analyze",
        (LEDGER, "'n_heads' is none of n_params, n_active_params"),
    ),
    Case(
        "claims: unknown assertion",
        ledger(claim(asserts='"maybe"')),
        "analyze",
        (LEDGER, "asserts = 'maybe'", "difference, none"),
    ),
    Case(
        "claims: a range that falls",
        ledger(claim(published='"65-50%"')),
        "analyze",
        (LEDGER, "claim a", "'65-50%'", "ends below"),
    ),
    Case(
        "claims: an id twice",
        ledger(claim() + claim().removeprefix('study = "mine"\n')),
        "analyze",
        (LEDGER, "claim a: this id is used more than once"),
    ),
    Case(
        "claims: a study that is a number",
        ledger(claim().replace('"mine"', "3", 1)),
        "analyze",
        (LEDGER, "`study`"),
    ),
    Case(
        "claims: two ledgers of one study",
        two_ledgers,
        "analyze",
        ("claims.toml", "paper/more.claims.toml", "'mine'"),
    ),
    # Concepts
    Case("concept: bad JSON", concept(questions("{")), CHECK, ("honesty.jsonl:9", "not JSON")),
    Case(
        "concept: a missing field",
        concept(questions('{"id": "x"}')),
        CHECK,
        ("honesty.jsonl:9", "field 'question' is missing"),
    ),
    Case(
        "concept: a field twice",
        concept(questions(question("eval", 5)[:-1] + ', "matching": "A"}')),
        CHECK,
        ("honesty.jsonl:9", "matching appear more than once"),
    ),
    Case(
        "concept: a wrong letter",
        concept(questions(question("eval", 5, matching="C"))),
        CHECK,
        ("honesty.jsonl:9", "'C'", "A or B"),
    ),
    Case(
        "concept: three choices",
        {**ENTRY, **concept(questions(question("eval", 5, choices=dict.fromkeys("ABC", "x"))))},
        f"{COLLECT} --concepts honesty.jsonl",
        ("honesty.jsonl:9", "['A', 'B', 'C']", "exactly two"),
    ),
    Case(
        "concept: an unknown split",
        concept(questions(question("test", 5))),
        CHECK,
        ("honesty.jsonl:9", "split is 'test'", "'train', 'eval'"),
    ),
    Case(
        "concept: an id twice",
        {**ENTRY, **concept(questions(question("eval", 3)))},
        f"{COLLECT} --concepts honesty.jsonl",
        ("honesty.jsonl:9", "'eval/3'", "honesty.jsonl:8"),
    ),
    Case(
        "concept: a question twice",
        concept(questions(question("eval", 3, id="other"))),
        CHECK,
        ("honesty.jsonl:9", "repeats the question of honesty.jsonl:8"),
    ),
    Case(
        "concept: one split",
        {**ENTRY, **concept(questions(splits=("train",)))},
        f"{COLLECT} --concepts honesty.jsonl",
        ("honesty.jsonl", "no eval question"),
    ),
    Case("concept: an empty file", concept(""), CHECK, ("honesty.jsonl", "is empty")),
    Case(
        "concept: not UTF-8",
        concept(questions().encode() + b"\xff\xfe"),
        CHECK,
        ("honesty.jsonl", "UTF-8", "line 9"),
    ),
    Case("concept: a blank line", concept(questions("")), CHECK, ("honesty.jsonl:9", "is blank")),
    Case(
        "concept: half a surrogate pair",
        concept(questions(question("eval", 5, question="\ud800?"))),
        CHECK,
        ("honesty.jsonl:9", "surrogate"),
    ),
    Case(
        "concept: no object",
        concept(questions("[1]")),
        CHECK,
        ("honesty.jsonl:9", "[1]", "not an object"),
    ),
    Case(
        "concept: brackets without end",
        concept(questions("[" * 100_000)),
        CHECK,
        ("honesty.jsonl:9", "not JSON"),
    ),
    Case(
        "concept: a folder without files",
        folder("set"),
        "check-concepts set",
        ("set", "<concept>.jsonl"),
    ),
    Case(
        "concept: a spaced path that is there",
        spaced,
        "check-concepts mein|größtes|Konzept",
        ("mein größtes Konzept/ehrlich keit.jsonl:9",),
    ),
    Case(
        "concept: a spaced path that is not there",
        ENTRY,
        "check-concepts kein|größtes|Konzept",
        ("kein größtes Konzept", "neither a <concept>.jsonl file"),
    ),
    Case(
        "concept: none of the set",
        SOUND,
        f"{SWEEP} --concepts sloth",
        ("--concepts sloth", "honesty", "set"),
    ),
    Case("concept: an empty name", SOUND, f"{SWEEP} --concepts=", ("--concepts", "honesty")),
    *(
        Case(
            f"concept: a name that is {what}",
            {f"set/{name}.jsonl": questions()},
            "check-concepts set",
            ("set", f"concept {name!r} cannot be a name"),
        )
        for what, name in {
            "hidden": ".mine",
            "a way out": "..\\evil",
            "reserved": "study",
            "of two lines": "a\nb",
        }.items()
    ),
    # Cubes and cells
    Case("cube: an empty file", {"a.nc": ""}, "show a.nc", ("a.nc", "NetCDF4", "restore it")),
    Case("cube: text", {"a.nc": "hello\n" * 99}, "show a.nc", ("a.nc", "NetCDF4")),
    Case("cube: truncated", truncated, "show cut.nc", ("cut.nc", "truncated")),
    Case("cube: foreign", foreign, "show foreign.nc", ("foreign.nc", "not written by steercube")),
    Case("cube: altered", altered, "show altered.nc", ("altered.nc", "altered", "Restore")),
    Case("cube: no such file", {}, "show a.nc", ("a.nc", "no such file")),
    Case("cube: a folder", folder("data/mine.nc"), "analyze", ("data/mine.nc", "folder, not")),
    Case(
        "cube: an attribute that is a list",
        of_cube(lambda c: c.assign_attrs(schema_version=[1, 2]), netcdf.ROOT),
        "show data/mine.nc",
        ("data/mine.nc", "schema_version"),
    ),
    Case(
        "cube: wrong dims",
        of_cube(lambda c: c.assign(cell_status=c["cell_status"].isel(layer=0, drop=True))),
        "analyze",
        ("data/mine.nc", "logit_diff: 'cell_status' has dimensions"),
    ),
    Case(
        "cube: wrong dtype",
        of_cube(lambda c: c.assign(logit_diff=c["logit_diff"].fillna(0).astype(int))),
        "analyze",
        ("data/mine.nc", "'logit_diff' holds int64"),
    ),
    Case(
        "cube: layers that are text",
        of_cube(lambda c: c.assign_coords(layer=["a", "b", "c", "d"])),
        "analyze",
        ("data/mine.nc", "dimension 'layer' has labels"),
    ),
    Case(
        "cube: models that are numbers",
        of_cube(lambda c: c.assign_coords(model=[1, 2, 3]), netcdf.ROOT, "logit_diff"),
        "show data/mine.nc",
        ("data/mine.nc", "dimension 'model' has labels"),
    ),
    Case(
        "cube: a coordinate missing",
        of_cube(lambda c: c.drop_vars("strength")),
        "show data/mine.nc",
        ("data/mine.nc", "'strength' has no labels"),
    ),
    Case(
        "cube: no model",
        of_cube(
            lambda c: c.isel(model=slice(0)).drop_vars(TEXTS, errors="ignore"),
            *(netcdf.ROOT, "logit_diff"),
        ),
        "show data/mine.nc",
        ("data/mine.nc", "'model' is empty"),
    ),
    Case(
        "cube: a model without facts",
        of_cube(lambda c: c.isel(model=slice(2)), netcdf.ROOT),
        "analyze",
        ("data/mine.nc", "logit_diff: the file's root has no model 'large'"),
    ),
    Case(
        "cube: a grid without its measure",
        of_cube(lambda c: c.drop_vars("logit_diff")),
        "analyze",
        ("data/mine.nc", "logit_diff: variable 'logit_diff' is missing"),
    ),
    Case(
        "cube: a measure of no kind",
        of_cube(
            lambda c: c.assign(logit_diff=c["logit_diff"].assign_attrs(kind="odd", compare="x"))
        ),
        "show data/mine.nc",
        ("data/mine.nc", "'kind' of 'logit_diff' is 'odd'", "'compare' of 'logit_diff' is 'x'"),
    ),
    Case(
        "cube: a newer contract",
        of_cube(lambda c: c.assign_attrs(schema_version=99), netcdf.ROOT),
        "analyze",
        ("data/mine.nc", "schema_version 99", "this steercube reads 2"),
    ),
    Case(
        "cube: a model that leads out",
        of_cube(
            lambda c: c.assign_coords(model=["../evil", "middle", "large"]),
            *(netcdf.ROOT, "logit_diff"),
        ),
        "analyze",
        ("data/mine.nc", "model '../evil' cannot be a name"),
    ),
    Case(
        "cube: an endless strength",
        of_cube(lambda c: c.assign_coords(strength=[-1.0, 0.0, np.inf])),
        "show data/mine.nc",
        ("data/mine.nc", "'strength'", "not finite"),
    ),
    Case(
        "cube: a text without its model",
        of_cube(lambda c: c, table=xr.Dataset({"text": ("response", ["(A)"])})),
        "show data/mine.nc",
        ("data/mine.nc", "responses: variable 'model' is missing"),
    ),
    Case(
        "cells: another contract",
        of_cells(lambda c: c.assign_attrs(cells_version=0)),
        "analyze",
        ("data/mine.cells.nc", "cells_version 0", "steercube analyze"),
    ),
    Case(
        "cells: as a cube",
        lambda made: (
            (made.folder / "data").mkdir()
            or save_cells(made.cells, made.folder / "data" / "mine.nc")
        ),
        "analyze",
        ("data/mine.nc", "holds cells", ".cells.nc"),
    ),
    Case(
        "cells: a level that is text",
        of_cells(lambda c: c.assign_attrs(confidence_level="high")),
        "show data/mine.cells.nc",
        ("data/mine.cells.nc", "'confidence_level' is 'high'", "between 0 and 1"),
    ),
    Case(
        "cells: a concept that leads out",
        of_cells(lambda c: c.assign_coords(concept=["..", "humour"]), "logit_diff"),
        "analyze",
        ("data/mine.cells.nc", "concept '..' cannot be a name"),
    ),
    # The paper
    Case(
        "paper: manifest syntax",
        spoilt_paper("mine/manifest.json", '{\n"outputs": \n'),
        "paper",
        ("mine/manifest.json", "not JSON", "line 3"),
    ),
    Case(
        "paper: manifest without outputs",
        spoilt_paper("mine/manifest.json", "[]"),
        "paper",
        ("mine/manifest.json", "lists no outputs", "steercube analyze"),
    ),
    Case(
        "paper: manifest without settings",
        changed_json("mine/manifest.json", lambda held: held.pop("settings")),
        "paper",
        ("mine", "manifest.json", "confidence_level"),
    ),
    Case(
        "paper: an output missing",
        changed_json("mine/manifest.json", lambda held: held["outputs"].update({"x.csv": ""})),
        "paper",
        ("mine", "x.csv is missing", "steercube analyze"),
    ),
    Case(
        "paper: numbers syntax",
        spoilt_paper("mine/numbers.json", '{\n"a": {"value": 1,}\n}'),
        "paper",
        ("mine/numbers.json", "not JSON", "line 2"),
    ),
    Case(
        "paper: numbers as a list",
        spoilt_paper("mine/numbers.json", "[1]"),
        "paper",
        ("mine/numbers.json", "no object"),
    ),
    Case(
        "paper: a number that is text",
        changed_json("mine/numbers.json", lambda held: held["counts/models"].update(value="one")),
        "paper",
        ("numbers.json", "'counts/models'", "no number"),
    ),
    Case(
        "paper: a table that is none",
        spoilt_paper("mine/tables/effects.csv", "a,b\n1,2\n1,2,3\n"),
        "paper",
        ("tables/effects.csv", "CSV", "line 3"),
    ),
    Case(
        "paper: a table without a column",
        spoilt_paper("mine/tables/about_models.csv", "family\nllama\n"),
        "paper",
        ("tables/about_models.csv", "no column 'model'"),
    ),
    Case(
        "paper: coverage without a column",
        spoilt_paper("mine/calibration/coverage.csv", "method,coverage\nbootstrap,0.95\n"),
        "paper",
        ("calibration/coverage.csv", "no column 'sd_model'", "steercube calibrate"),
    ),
    Case(
        "paper: coverage in words",
        spoilt_paper(
            "mine/calibration/coverage.csv",
            "training,sd_model,scale,uneven,method,random_effects,covariates,coverage,"
            "n_simulations\n"
            "0,0.3,0,1,bootstrap,items,training,high,9\n",
        ),
        "paper",
        ("calibration/coverage.csv", "text in 'coverage'", "steercube calibrate"),
    ),
    Case(
        "paper: text among numbers",
        spoilt_paper("mine/tables/layer_effects.csv", text_in("cohens_d")),
        "paper",
        ("tables/layer_effects.csv", "holds text in 'cohens_d'"),
    ),
    Case(
        "paper: an empty table",
        spoilt_paper("mine/tables/conclusions.csv", ""),
        "paper",
        ("tables/conclusions.csv", "no column 'id'"),
    ),
    Case(
        "paper: a figure that is none",
        spoilt_paper("mine/figures/layer_curves.png", "no image"),
        "paper",
        ("figures/layer_curves.png", "not a PNG"),
    ),
    Case(
        "paper: template syntax",
        spoilt_paper("post.md.j2", lambda text: "{% if study %}\nx\n{% for %}\n" + text),
        "paper",
        ("post.md.j2:3", "TemplateSyntaxError"),
    ),
    Case(
        "paper: an attribute that is not there",
        spoilt_paper(
            "post.md.j2", lambda text: "{% if study %}\n{% endif %}\n{{ study.x.y }}\n" + text
        ),
        "paper",
        ("post of mine", "post.md.j2:3", "UndefinedError"),
    ),
    Case(
        "paper: a sum of a text",
        spoilt_paper("post.md.j2", lambda text: text + "\n{{ 1 + study }}\n"),
        "paper",
        ("post of mine", "post.md.j2:", "TypeError"),
    ),
    Case(
        "paper: template not UTF-8",
        spoilt_paper("post.md.j2", NOT_UTF8),
        "paper",
        ("post.md.j2", "UTF-8", "line 1"),
    ),
    Case(
        "paper: syntax of a study's own template",
        spoilt_paper("mine.post.md.j2", '{% extends "post.md.j2" %}\n{% for %}\n'),
        "paper",
        ("mine.post.md.j2:2", "TemplateSyntaxError"),
    ),
    Case(
        "paper: a study's own template that extends nothing there",
        spoilt_paper("mine.post.md.j2", '{% extends "letter.md.j2" %}\n'),
        "paper",
        ("post of mine", "mine.post.md.j2:1", "letter.md.j2"),
    ),
    Case(
        "paper: an attribute that a study's own template lacks",
        spoilt_paper(
            "mine.post.md.j2",
            '{% extends "post.md.j2" %}\n{% block title %}\n{{ study.x.y }}\n{% endblock %}\n',
        ),
        "paper",
        ("post of mine", "mine.post.md.j2:3", "UndefinedError"),
    ),
    Case(
        "paper: syntax of a study's own references",
        spoilt_paper("mine.numbers.toml", "[a]\nid = \n"),
        "paper",
        ("mine.numbers.toml", "not TOML", "line 2"),
    ),
    Case(
        "paper: an own reference without id",
        spoilt_paper("mine.numbers.toml", "[idle]\nformat = '.2f'\n"),
        "paper",
        ("mine.numbers.toml", "'idle'", "`id`"),
    ),
    Case(
        "paper: page syntax",
        spoilt_paper("page/page.html.j2", "<html>\n{% if %}\n"),
        "paper",
        ("page/page.html.j2:2", "TemplateSyntaxError"),
    ),
    Case(
        "paper: references syntax",
        spoilt_paper("numbers.toml", "[a]\nid = \n"),
        "paper",
        ("numbers.toml", "not TOML", "line 2"),
    ),
    Case(
        "paper: a reference without id",
        spoilt_paper("numbers.toml", lambda text: text + "\n[idle]\nformat = '.2f'\n"),
        "paper",
        ("numbers.toml", "'idle'", "`id`"),
    ),
    Case(
        "paper: a format that is none",
        spoilt_paper("numbers.toml", lambda text: text + "\n[idle]\nid = 'a'\nformat = '.2q'\n"),
        "paper",
        ("numbers.toml", "'idle'", "'.2q'"),
    ),
    Case(
        "paper: literature that is cut off",
        spoilt_paper(
            "references.bib", lambda text: text + "@article{cut, title = {C}, title = {D}}"
        ),
        "paper",
        ("references.bib", "line "),
    ),
    Case(
        "paper: literature without a year",
        spoilt_paper("references.bib", lambda text: text + "\n@article{cut, title = {C}}"),
        "paper",
        ("references.bib", "'cut' lacks year"),
    ),
    Case("paper: nothing there", {}, "paper", ("paper", "steercube analyze")),
    Case("paper: another study", lambda made: made.paper(), "paper ../x", ("'../x'", "['mine']")),
    # What collect is asked for
    Case("collect: no endless strength", SOUND, f"{SWEEP} --strengths=inf", ("inf", "finite")),
    Case("collect: strength 0 alone", SOUND, f"{SWEEP} --strengths=0", ("strengths", "not 0")),
    Case("collect: positions", SOUND, f"{SWEEP} --positions some", ("'some'", "answer")),
    Case("collect: convention", SOUND, f"{SWEEP} --convention odd", ("'odd'", "study")),
    Case("collect: controls", SOUND, f"{SWEEP} --controls luck", ("'luck'", "random")),
    Case(
        "collect: a control twice",
        SOUND,
        f"{SWEEP} --controls random,random",
        ("controls = ('random', 'random')", "no control twice"),
    ),
    Case("collect: outcomes", SOUND, f"{SWEEP} --outcomes text", ("'text'", "generation")),
    Case("collect: dtype", SOUND, f"{SWEEP} --dtype int4", ("--dtype int4", "float32")),
    Case("collect: pairs", SOUND, f"{SWEEP} --pairs -5", ("n_pairs = -5", "at least 2")),
    Case("collect: items", SOUND, f"{SWEEP} --items 0", ("n_items = 0", "at least 2")),
    Case("collect: chunk", SOUND, f"{SWEEP} --chunk 0", ("chunk = 0", "at least 1")),
    Case("collect: rows", SOUND, f"{SWEEP} --max-rows -1", ("max_rows = -1",)),
    Case("collect: seed", SOUND, f"{SWEEP} --seed -1", ("seed = -1", "at least 0")),
    Case(
        "collect: tokens without generation",
        SOUND,
        f"{SWEEP} --max-new-tokens 8",
        ("--max-new-tokens", "add --outcomes logit,generation"),
    ),
    Case(
        "collect: a temperature below 0",
        SOUND,
        f"{SWEEP} --outcomes generation --temperature -1",
        ("temperature = -1.0",),
    ),
    Case(
        "collect: strengths to generate at",
        SOUND,
        f"{SWEEP} --outcomes generation --generation-strengths=5",
        ("generation_strengths = (5.0,)", "strengths that are swept"),
    ),
    Case(
        "collect: out in no folder",
        SOUND,
        SWEEP.replace("mine.nc", "none/mine.nc"),
        ("--out none/mine.nc", "folder that exists"),
    ),
    Case(
        "collect: out is no .nc",
        SOUND,
        SWEEP.replace("mine.nc", "mine.csv"),
        ("--out mine.csv", ".nc file"),
    ),
    Case(
        "collect: out is a file of cells",
        SOUND,
        SWEEP.replace("mine.nc", "mine.cells.nc"),
        ("--out mine.cells.nc", "cannot name a cube"),
    ),
    Case(
        "collect: layers out of range",
        SOUND,
        f"{SWEEP} --layers 3,9",
        ("'3,9'", "5 blocks"),
    ),
    Case("collect: layers reversed", SOUND, f"{SWEEP} --layers 4:1", ("'4:1'", "5 blocks")),
    Case("collect: layers of text", SOUND, f"{SWEEP} --layers last", ("'last'", "all, 12,18,24")),
    Case(
        "collect: layers to generate at",
        SOUND,
        f"{SWEEP} --outcomes generation --generation-layers 5",
        ("'5'", "5 blocks"),
    ),
    Case(
        "collect: a folder that holds no model",
        lambda made: made.write({**SOUND, "weights/config.json": "{"}),
        "collect --model weights --models models.toml --concepts set --out mine.nc",
        ("weights", "cannot be loaded as a model"),
    ),
    Case(
        "consolidate: nothing collected",
        {},
        "consolidate --out mine.nc",
        ("mine.shards", "nothing was collected"),
    ),
    # The other commands
    Case("analyze: nothing there", {}, "analyze", ("data", "import-study")),
    Case("analyze: another study", DATA, "analyze ../evil", ("'../evil'", "['mine']")),
    Case(
        "analyze: results into a file",
        {**DATA, "paper": "x"},
        "analyze",
        ("paper is a file",),
    ),
    Case("calibrate: nothing there", {}, "calibrate mine", ("data/mine.cells.nc", "no such file")),
    Case("calibrate: a way out", {}, "calibrate ../evil", ("'../evil'", "cannot be a name")),
    Case(
        "calibrate: no simulation",
        {},
        "calibrate qwen3 --data {root}/data --contrast training:distilled:rl --simulations 0",
        ("at least one simulation",),
    ),
    Case(
        "calibrate: three models",
        of_cells(lambda c: c),
        "calibrate mine --contrast training:distilled:rl --simulations 1",
        ("mine cannot be calibrated", "need 4 models"),
    ),
    Case("reproduce: nothing there", {}, "reproduce", ("paper", "no results")),
    Case(
        "import: no such folder",
        ENTRY,
        IMPORT,
        ("none", "no such folder"),
    ),
    Case(
        "import: an incomplete folder",
        {**ENTRY, "part/data/corrigible/x.json": "{}"},
        IMPORT.replace("none", "part"),
        ("part", "is missing from part"),
    ),
    Case(
        "import: out in no folder",
        ENTRY,
        IMPORT.replace("mine.nc", "none/mine.nc"),
        ("--out none/mine.nc",),
    ),
    # What a newcomer writes
    Case(
        "collect: two strengths that are one",
        SOUND,
        f"{SWEEP} --strengths -1,1,1.0000001",
        ("strengths = 1.0, 1.0000001", "keep one of them"),
    ),
    Case(
        "collect: a single pair",
        {**ENTRY, "set/honesty.jsonl": question("train", 0) + "\n" + questions(splits=("eval",))},
        SWEEP,
        ("set/honesty.jsonl", "has 1 train question", "at least 2"),
    ),
    Case(
        "collect: a single item",
        {**ENTRY, "set/honesty.jsonl": questions(question("eval", 0), splits=("train",))},
        SWEEP,
        ("set/honesty.jsonl", "has 1 eval question", "at least 2"),
    ),
    Case(
        "collect: nearly a model", ENTRY, COLLECT.replace("mine", "mien", 1), ("did you", "'mine'")
    ),
    Case(
        "collect: entries that are not there",
        {},
        "collect --model 8b --out mine.nc",
        ("data/models.toml does not exist", "--models names another"),
    ),
    Case(
        "collect: nearly a concept",
        SOUND,
        f"{SWEEP} --concepts honestly",
        ("none of honesty", "did you mean 'honesty'?"),
    ),
    Case("collect: no set", ENTRY, COLLECT, ("{cwd}/data/concepts is not there", "--concepts")),
    Case(
        "collect: a set's path", ENTRY, f"{COLLECT} --concepts sets/", ("{cwd}/sets is not there",)
    ),
    Case(
        "collect: nearly a dtype", SOUND, f"{SWEEP} --dtype bfloat", ("did you mean 'bfloat16'?",)
    ),
    Case("collect: nearly all", SOUND, f"{SWEEP} --positions al", ("did you mean 'all'?",)),
    Case("collect: nearly logit", SOUND, f"{SWEEP} --outcomes logits", ("did you mean 'logit'?",)),
    Case("collect: nearly a control", SOUND, f"{SWEEP} --controls randon", ("mean 'random'?",)),
    Case("collect: nearly a convention", SOUND, f"{SWEEP} --convention sam", ("mean 'same'?",)),
    Case(
        "collect: an empty folder",
        folder("weights"),
        "collect --model weights --out mine.nc",
        ("holds no model", "config.json", "{cwd}/weights"),
    ),
    Case(
        "collect: two GGUF files",
        {"weights/a.gguf": "", "weights/b.gguf": ""},
        "collect --model weights --out mine.nc",
        ("holds 2 GGUF files", "weights/a.gguf"),
    ),
    Case(
        "collect: a file of weights",
        {"weights/model.safetensors": ""},
        "collect --model weights/model.safetensors --out mine.nc",
        ("is a file but not a .gguf file", "name the folder"),
    ),
    Case(
        "collect: a GGUF file that is none",
        {**SOUND, "weights.gguf": "no"},
        SWEEP.replace("mine", "weights.gguf", 1),
        ("cannot be loaded as a model", "GGUF"),
    ),
    Case("analyze: nowhere", {}, "analyze", ("{cwd}/data", "--data")),
    Case("analyze: a file", {"data": "x"}, "analyze", ("data is a file", "--data")),
    Case(
        "analyze: no contrast",
        DATA,
        "analyze --contrast training:rl",
        ("contrast 'training:rl'", "VARIABLE:LOW:HIGH", "training:base:instruct"),
    ),
    Case(
        "analyze: nearly a variable",
        of_cells(lambda c: c),
        "analyze --contrast trainings:distilled:rl",
        ("mine", "'trainings'", "did you mean 'training'?"),
    ),
    Case(
        "analyze: nearly a label",
        of_cells(lambda c: c),
        "analyze --contrast training:destilled:rl",
        ("mine", "'destilled'", "did you mean 'distilled'?"),
    ),
    Case(
        "calibrate: no contrast",
        of_cells(lambda c: c),
        "calibrate mine",
        ("mine", "has no contrast to calibrate", "--contrast"),
    ),
    Case("analyze: nearly a study", DATA, "analyze mien", ("--data", "did you mean 'mine'?")),
    Case(
        "calibrate: nearly a study",
        {"data/mine.cells.nc": ""},
        "calibrate mien",
        ("{cwd}/data has the cells of ['mine']", "did you mean 'mine'?"),
    ),
    Case(
        "show: nearly a file",
        {"data/mine.cells.nc": ""},
        "show data/mine.cell.nc",
        ("{cwd}/data has mine.cells.nc", "did you mean 'mine.cells.nc'?"),
    ),
    Case(
        "check-concepts: nothing there", {}, "check-concepts", ("{cwd}/data/concepts", "Name one")
    ),
    Case(
        "import: no models",
        {},
        "import-study --out mine.nc --from none",
        ("{cwd}/data/models.toml", "--models"),
    ),
    # Usage
    Case("usage: nearly a command", {}, "analyse", ("did you mean 'analyze'?",)),
    Case("usage: nearly an option", SOUND, f"{SWEEP} --strenghts 1", ("mean '--strengths'?",)),
    Case("usage: a spaced list", SOUND, f"{SWEEP} --strengths -1 0 1", ("'0', '1'", "-1,0,1")),
    Case("usage: a list with a letter", SOUND, f"{SWEEP} --strengths -1,a", ("'-1,a'", "-1,0,1")),
    Case("usage: strengths", SOUND, f"{SWEEP} --strengths=a,b", ("--strengths",)),
    Case("usage: a strength twice", SOUND, f"{SWEEP} --strengths=-1,1,1", ("once",)),
    Case("usage: pairs", SOUND, f"{SWEEP} --pairs many", ("--pairs", "'many'")),
    Case("usage: no command", {}, "", ("command",)),
    Case("usage: an unknown command", {}, "fly", ("'fly'",)),
    Case("usage: no model", {}, "collect --out mine.nc", ("--model",)),
)


@pytest.fixture(scope="module")
def sound_cube() -> xr.Dataset:
    return make_cube(np.random.default_rng(1))


@pytest.fixture
def prepared(
    request: pytest.FixtureRequest,
    sound_cube: xr.Dataset,
    cells: xr.Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Case:
    """The case with its files made, in its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEERCUBE_STUDY_DIR", raising=False)
    case: Case = request.param
    made = Made(tmp_path, sound_cube, cells)
    if callable(case.files):
        case.files(made)
    else:
        made.write(case.files)
    return case


def arguments(case: Case) -> list[str]:
    """Its words, in which `|` stands for a space."""
    return [word.replace("|", " ") for word in case.command.format(root=ROOT).split()]


BEGINS = re.compile(r"steercube( [a-z-]+)?: ")


def run(words: list[str]) -> int:
    """The exit code, whether `main` returns it or argparse exits with it."""
    try:
        return main(words)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize("prepared", CASES, indirect=True, ids=lambda case: case.id)
def test_one_message_says_what_is_wrong_and_where(
    prepared: Case,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[str], Any],
) -> None:
    code = run(arguments(prepared))
    said = capsys.readouterr().err
    fault("malformed input").tried(prepared.id, silently_wrong=code == 0)
    assert code == 2
    assert "Traceback" not in said
    begins = BEGINS.match(said)
    assert begins
    assert sum(BEGINS.match(line) is not None for line in said.splitlines()) == 1
    assert "usage: " not in said, "a list of all options in front of what is wrong"
    for name in prepared.named:
        assert name.replace("{cwd}", str(Path.cwd())) in said
    assert len(said[begins.end() :].split()) >= 4, "more than the name of an exception"


def test_debug_raises_what_was_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[str], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.toml").write_text("[")
    with pytest.raises(ValueError, match=r"models\.toml: is not TOML") as raised:
        main(["--debug", *COLLECT.split()])
    assert raised.value.__cause__ is not None
    fault("malformed input").tried("with --debug")


def test_the_table_is_large() -> None:
    assert len({case.id for case in CASES}) == len(CASES) >= 60
    assert sys.getrecursionlimit() < 20_000, "so that nesting is too deep"

"""Cubes and cells from Python: open, save and merge them, and make one from a table."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from steercube.cells import Cells, open_cells, save_cells
from steercube.contract import Model
from steercube.cube import Cube, as_cube, open_cube, save_cube
from steercube.from_table import checked_rows, measure_cube, read_rows
from steercube.measures import Measure
from steercube.merging import merge_cubes
from steercube.models import MODELS, read_facts
from steercube.netcdf import ROOT, load_groups
from steercube.replacing import require_no_loss
from steercube.schema import name_violations, raise_if_any
from steercube.words import did_you_mean

__all__ = ["add_measure", "merge", "open", "save"]


def open(path: str | Path) -> Any:
    """The cube, or the cells, in a file: in memory, verified and checked.

    `cube["logit_diff"]` is a Dataset (model, concept, layer, strength, sample), and
    `cube.steercube` has its statistics. The vectors of a sweep (`mine.vectors.nc`) are a Dataset
    (model, concept, direction, layer, hidden), without the random ones, norms and cosines; choose a
    model and a concept for `sc.steer`.

    Raises FileNotFoundError, and ValueError that lists every rule that the file breaks, or says
    that it is damaged.
    """
    file = Path(path)
    if not file.exists():
        beside = sorted(one.name for one in file.absolute().parent.glob("*.nc"))
        raise FileNotFoundError(
            f"{file}: no such file ({file.absolute().parent} has {', '.join(beside) or 'no .nc'})"
            f"{did_you_mean(file.name, beside)}"
        )
    root = load_groups(file)[ROOT]
    if "vector" in root:
        return root
    return open_cells(file) if "cells_version" in root.attrs else open_cube(file)


def save(what: Cube | Cells | xr.Dataset, path: str | Path) -> None:
    """Write a cube or cells, whole or not at all, after checking every rule of their contract.

    A single grid, such as `cube["logit_diff"]`, becomes a cube of one measure. Raises ValueError
    that lists every rule that is broken, and for a cube that would replace values it does not hold.
    """
    if isinstance(what, Cells):
        save_cells(what, path)
        return
    if not isinstance(what, Cube | xr.Dataset):
        raise TypeError(f"{type(what).__name__} is neither a cube, nor cells, nor a grid of a cube")
    cube = as_cube(what)
    require_no_loss(Path(path), cube)
    save_cube(cube, path)


def merge(*cubes: Cube | xr.Dataset) -> Cube:
    """One cube with every value of `cubes`: other models, concepts, layers or measures.

    Raises ValueError where two hold the same value and disagree, or were collected with other
    settings.
    """
    return merge_cubes(cubes)


def add_measure(
    table: pd.DataFrame | str | Path,
    name: str,
    *,
    to: Cube | None = None,
    models: Mapping[str, Mapping[str, Any] | Model] | str | Path = MODELS,
    **record: Any,
) -> Cube:
    """A cube with a measure from a table of values: a judge's score, numbers from elsewhere.

    - `table`: a DataFrame, or a CSV or JSONL file, with the columns `model`, `concept`, `item`,
      `strength` and `value`, and where they apply `layer`, `direction`, `repeat` and `letter`.
    - `name`: the measure, such as "judge_score".
    - `to`: the cube that holds the models and items; its measures are kept beside the new one.
    - `models`: without `to`, facts by the model's name, of which `n_layers` and `n_params` are
      needed: {"mine": {"n_layers": 32, "n_params": 8e9, "training": "sft"}}; or a file of entries.
    - all other options are the fields of `steercube.measures.Measure`: `kind`, `units`, `words`,
      `toward`, `layer_by`, `compare`.

    Raises ValueError that lists every unusable column, row, label or option.
    """
    known = {field.name for field in fields(Measure)} - {"name", "columns"}
    raise_if_any(
        [f"no option is called {n!r}{did_you_mean(n, known)}" for n in record if n not in known]
        + name_violations("measure", [name]),
        what="sc.add_measure",
    )
    if isinstance(table, pd.DataFrame):
        rows, source = checked_rows(table, what="the table"), "a DataFrame"
    else:
        rows, source = read_rows(table), str(table)
    facts = {} if to is not None else _facts_of(models)
    return measure_cube(rows, Measure(name, **record), beside=to, models=facts, source=source)


def _facts_of(models: Mapping[str, Mapping[str, Any] | Model] | str | Path) -> dict[str, Model]:
    """Facts of models by name; those that do not matter to the analysis may be left out."""
    if isinstance(models, str | Path):
        return read_facts(models)
    names = [field.name for field in fields(Model) if field.name != "name"]
    problems, found = [], {}
    for name, given in models.items():
        if isinstance(given, Model):
            found[name] = given
            continue
        wrong = [
            f"model {name!r} has the unknown fact {fact!r}{did_you_mean(fact, names)}"
            for fact in given
            if fact not in names
        ]
        wrong += [
            f"model {name!r} lacks {fact!r}" for fact in ("n_layers", "n_params")
            if fact not in given
        ]  # fmt: skip
        problems += wrong
        if not wrong:
            assumed = {"training": "other", "architecture": "dense", "family": "not recorded",
                       "hf_id": name, "n_active_params": float(given["n_params"])}  # fmt: skip
            found[name] = Model(**{"name": name, **assumed, **given})
    raise_if_any(problems, what="models")
    return found

"""A readable summary of a cube: its models, concepts and layers, and what is missing."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from steercube.contract import (
    RESPONSES,
    SCORED_LETTERS,
    STATUS,
    UNKNOWN,
    UNSTEERED_STRENGTH,
    measure_name,
)
from steercube.cube import Cube, as_cube, name_cells, status_of
from steercube.measures import LOGIT_DIFF, Measure

HOW = ("positions_steered", "layer_convention")
"""Attributes that say how a cube was collected."""


def _width(facts: xr.Dataset) -> int:
    """Of the column of models: their longest name, and some space."""
    return max([12, *(2 + len(str(model)) for model in facts["model"].values)])


def summarise_cube(cube: Cube | xr.Dataset) -> str:
    """Readable summary: models, concepts and, for each grid, its layers and missing cells."""
    cube = as_cube(cube)
    facts = cube.labels
    width = _width(facts)
    lines = [f"{cube.attrs.get('title', 'A steering cube')}"]
    positions, convention = (cube.attrs.get(name, UNKNOWN) for name in HOW)
    if {positions, convention} != {UNKNOWN}:
        lines.append(f"  steered at {positions}; {convention}")
    lines += ["", f"  {'model':<{width}}{'training':<11}{'blocks':>7}"]
    for model in facts["model"].values:
        of = facts.sel(model=model)
        lines.append(f"  {model:<{width}}{of['training'].item():<11}{of['n_layers'].item():>7}")
    lines += ["", f"  {'concept':<28}{'items':>6}{'valid':>7}"]
    for concept in facts["concept"].values if "item_id" in facts else ():
        of = facts.sel(concept=concept)
        n_items = int((of["item_id"] != "").sum())
        lines.append(f"  {concept:<28}{n_items:>6}{int(of['item_valid'].sum()):>7}")
    for path, grid in cube.grids.items():
        lines += ["", *_grid_lines(path, grid, cube.measures[measure_name(path)], width)]
    if LOGIT_DIFF.name in cube:
        lines += _one_letter_lines(cube[LOGIT_DIFF.name])
    if RESPONSES in cube:
        lines += ["", f"  {cube[RESPONSES].sizes['response']} generated responses with their text"]
    return "\n".join(lines)


def _grid_lines(path: str, grid: xr.Dataset, measure: Measure, width: int) -> Iterator[str]:
    strengths = ", ".join(f"{s:+g}" for s in grid["strength"].values)
    units = "" if measure.units == "1" else f" ({measure.units})"
    yield f"  {path}{units} at strengths {strengths}"
    if "direction" in grid.dims:
        yield f"    {grid.sizes['direction']} direction(s), such as {grid['direction'].values[0]}"
    status = status_of(grid, measure.name)
    for model in grid["model"].values:
        complete = status.sel(model=model) == STATUS["complete"]
        swept = "layer not recorded"
        if "layer" in grid.dims:
            layers = grid["layer"].values[complete.any([d for d in complete.dims if d != "layer"])]
            span = f"{layers.min()}-{layers.max()} ({len(layers)})" if len(layers) else "none"
            swept = f"layers {span}"
        yield f"    {model:<{width}}{swept:<24}{int(complete.sum())} complete cells"
    yield from _missing_lines(path, status)
    if "generation_valid" in grid:
        share = float(grid["generation_valid"].mean())
        yield f"    answers are valid in {share:.0%} of cells and items"
    if "generation_logit_apart" in grid:
        apart = float(grid["generation_logit_apart"].max())
        yield f"    the first generated position is within {apart:.1g} nat of the logit sweep"


def _missing_lines(path: str, status: xr.DataArray) -> Iterator[str]:
    """Lines on failed cells, and on pairs of the grid's models and concepts that were not run."""
    for name in ("failed", "nonfinite"):
        if (broken := status == STATUS[name]).any():
            yield f"    {name}: {name_cells(broken)}"
    if "direction" in status.dims:
        return
    unrun = (status != STATUS["complete"]).all([d for d in status.dims if d == "layer"])
    for model in status["model"].values:
        concepts = status["concept"].values[unrun.sel(model=model).values]
        if len(concepts):
            yield f"    never run with {path}: {model} x {', '.join(concepts)}"
    if not unrun.any():
        yield "    no model x concept is missing"


def _one_letter_lines(grid: xr.Dataset) -> list[str]:
    """Warnings for models that prefer one letter in every item of a concept without steering."""
    if UNSTEERED_STRENGTH not in grid["strength"].values or "letter" not in grid.coords:
        return []
    every = grid["logit_diff"].sel(strength=UNSTEERED_STRENGTH)
    unsteered = every.max([d for d in every.dims if d == "layer"])  # the same at every one swept
    lines = []
    for concept in grid["concept"].values:
        letters = grid["letter"].sel(concept=concept)
        scored = letters.isin(SCORED_LETTERS)
        matches_a = (letters == SCORED_LETTERS[0]).where(scored)
        for model in grid["model"].values:
            diff = unsteered.sel(model=model, concept=concept).where(scored)
            known = diff.notnull()
            chooses_a = ((diff > 0) == (matches_a == 1)).values[known.values]
            if len(chooses_a) and len(np.unique(letters.values[known.values])) > 1:
                share = chooses_a.mean()
                if share in (0, 1):
                    letter = SCORED_LETTERS[0 if share else 1]
                    lines.append(
                        f"  warning: {model} prefers ({letter}) in all {len(chooses_a)} items of "
                        f"{concept} without steering; an effect there may be a letter bias"
                    )
    return lines

"""Stage one: `cells(cube)` reduces the samples of a cube to the statistics of its cells.

Every measure with samples is reduced alike: estimands at every layer and, at the layer with the
largest effect, their optimism and interval over items. Generated answers, of which some are not
valid, become rates and curves beside the logits' (`steercube.analysis.per_cell.responses`).
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import binomtest

from steercube import __version__, netcdf
from steercube.analysis.per_cell.answer_model import models_of
from steercube.analysis.per_cell.bootstrap import (
    CONFIDENCE_LEVEL,
    N_RESAMPLES,
    N_SPLITS,
    SelectedCell,
    centroid,
    error_covariance,
    half_weights,
    resample_weights,
    select_and_estimate,
)
from steercube.analysis.per_cell.changes import changes
from steercube.analysis.per_cell.estimands import (
    BASELINE,
    ESTIMANDS,
    UNITS,
    Array,
    Estimand,
    Samples,
)
from steercube.analysis.per_cell.influence import most_influential
from steercube.analysis.per_cell.readers import readers
from steercube.analysis.per_cell.readings import distinct_responses, reading_audit
from steercube.analysis.per_cell.responses import (
    MIN_LAYERS,
    Answers,
    agreement_over_items,
    best_layer,
    generation_curve,
    item_agreement,
    logit_curve,
    split_half_reliability,
)
from steercube.analysis.per_cell.steers import sign_flip_test
from steercube.cells import (
    ANSWER_MODELS,
    CHANGES,
    CURVE_VARIABLES,
    DIRECTION_VARIABLES,
    GENERATION_VARIABLES,
    LAYER_VARIABLES,
    OF_CONCEPTS,
    OF_THE_VECTOR,
    PROVENANCE,
    RATE_VARIABLES,
    READERS,
    REASONS,
    SCHEMA_VERSION,
    SELECTED_VARIABLES,
    Cells,
    cells_of,
    record_table,
)
from steercube.contract import (
    CELL_STATUS,
    DEPTH,
    MIN_ITEMS,
    MODEL_VARIABLES,
    RESPONSES,
    SCORED_LETTERS,
    STATUS,
    VECTORS,
    measure_name,
    own_name,
    variables_of,
)
from steercube.cube import Cube, as_cube, check_cube, groups_of, status_of
from steercube.labels import spread, with_depth, with_facts
from steercube.measures import (
    CELL,
    GENERATION_MATCH,
    GENERATION_RATE,
    LOGIT_DIFF,
    PUBLISHED,
    READ,
    Measure,
    estimands_of,
    measure_of,
)
from steercube.streams import SEED, stream

N_NEAR = 2
"""Swept layers on either side of the best whose answers are modelled together."""
N_FLIPS = 2_000
"""Random swaps of +1 and -1, for the null distribution of the best layer of generated answers."""

QUANTILES = np.round(np.linspace(0, 1, 21), 2)
BY_LETTER = ("within_letter_d", "content_shift", "letter_shift")
BOUNDED = {"cliffs_delta": (-1.0, 1.0)}
"""Smallest and largest value of an estimand, at which its interval ends."""


@dataclass(frozen=True)
class Resampling:
    """How often items are resampled, from which seed, and the level of the intervals."""

    n_resamples: int
    seed: int
    confidence_level: float


def cells(
    cube: Cube | xr.Dataset,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = SEED,
    confidence_level: float = CONFIDENCE_LEVEL,
    measure: str = LOGIT_DIFF.name,
    report: Callable[[str], None] = lambda line: None,
) -> Cells:
    """Statistics of every cell of every measure of `cube`, as the cells' contract defines them.

    Items are ordered by id and each concept has its own named random stream, so the result depends
    neither on the order of items nor on which other concepts, measures or directions the cube
    holds. A measure whose compared strengths were not swept is left out. Raises ValueError where
    the cube breaks its contract, or that measure is `measure`, which conclusions are about.
    """
    cube = as_cube(cube)
    check_cube(cube)
    if measure in cube:
        _require_strengths(cube[measure], cube.measures[measure])
    resampling = Resampling(n_resamples, seed, confidence_level)
    tables: dict[str, xr.Dataset] = {}
    for name, record in cube.measures.items():
        if is_reducible(cube, name) and not lacking(cube[name], record):
            source = _source(cube, record)
            tables |= cells_of(_reduce_measure(source, resampling, report), name)
    for path in cube.grids:
        name, _, family = path.partition("/")
        if family and "sample" in cube[path].dims and name != GENERATION_MATCH.name:
            grid = _with_layer(cube[path])
            # A family may compare other strengths than the concepts' own vectors.
            record = measure_of(name, grid[name].attrs)
            tables[path] = _reduce_directions(grid, cube.get(name), record, family)
    if {GENERATION_MATCH.name, GENERATION_RATE.name} & set(cube):
        tables |= cells_of(_reduce_generation(cube, resampling))
    tables |= _records(cube, confidence_level)
    if vectors := _of_the_vectors(cube):
        tables[VECTORS] = vectors
    return Cells(tables, _provenance(cube, resampling))


def _records(cube: Cube, level: float) -> dict[str, xr.Dataset]:
    """The tables in RECORDS that these answers allow."""
    binary = {
        path: (_with_layer(grid), record)
        for path, grid in cube.grids.items()
        if (record := cube.measures[measure_name(path)]).kind == "binary" and "sample" in grid.dims
    }
    found = {
        CHANGES: [changes(grid, record, level) for grid, record in binary.values()],
        READERS: [readers(grid) for grid, _ in binary.values() if "reading" in grid.dims],
        ANSWER_MODELS: [_answer_models(cube, level)]
        if {LOGIT_DIFF.name, GENERATION_MATCH.name} <= set(cube)
        else [],
    }
    return {
        path: record_table(path, pd.concat(rows))
        for path, rows in found.items()
        if sum(map(len, rows))
    }


def _answer_models(cube: Cube, level: float) -> pd.DataFrame:
    """Mixed models of the answers near the layer where the logits of the same items move most."""
    flat = _side_by_side(cube)
    ends = list(cube.measures[LOGIT_DIFF.name].ends(flat["strength"].values.tolist()))
    repeats = _repeats(cube)
    rows = []
    for model, concept in product(flat["model"].values, flat["concept"].values):
        part = flat.sel(model=model, concept=concept).reindex(strength=ends)
        near = _near_best(part)
        if near is not None:
            found = models_of(near, int(repeats.sel(model=model)), level)
            rows += [{"model": model, "concept": concept} | row for row in found]
    return pd.DataFrame(rows)


def _near_best(part: xr.Dataset) -> xr.Dataset | None:
    """Answers within N_NEAR swept layers of that with the largest delta of the logits, if any.

    `part` is of one model and concept, at the compared strengths.
    """
    known = part["generation_valid"].notnull().any("sample").all("strength").values
    shift = part["logit_diff"].isel(strength=1) - part["logit_diff"].isel(strength=0)
    delta = shift.where(part["generation_valid"].notnull().all("strength")).mean("sample").values
    layers = np.flatnonzero(known & np.isfinite(delta))
    if not len(layers):
        return None
    best = int(delta[layers].argmax())
    return part.isel(layer=layers[max(0, best - N_NEAR) : best + N_NEAR + 1])


def is_reducible(cube: Cube, name: str) -> bool:
    """Whether a measure has values of single items for the concepts' own vectors.

    Generated answers become rates and curves instead, since some answers are not valid.
    """
    return name in cube and name != GENERATION_MATCH.name and "sample" in cube[name].dims


def lacking(grid: xr.Dataset, measure: Measure) -> str:
    """The compared strengths that the grid was not swept with."""
    swept = grid["strength"].values.tolist()
    return ", ".join(f"{s:+g}" for s in measure.ends(swept) if s not in swept)


@dataclass(frozen=True)
class _Source:
    """The grid of a measure, and that of the measure whose effect selects its layers."""

    grid: xr.Dataset
    measure: Measure
    by: "_Source | None" = None


def _source(cube: Cube, measure: Measure) -> _Source:
    """The samples of a measure, and of the one that selects its layers.

    Where the cube has no samples of the latter, the measure selects its own layers.
    """
    by = cube.measures.get(measure.layer_by)
    usable = by is not None and is_reducible(cube, by.name) and not lacking(cube[by.name], by)
    if by is None or not usable or by.name == measure.name:
        return _Source(_with_layer(cube[measure.name]), replace(measure, layer_by=measure.name))
    return _Source(
        _with_layer(cube[measure.name]), measure, _Source(_with_layer(cube[by.name]), by)
    )


NO_LAYER = -1
"""Label of `layer` in the cells of a grid without that dimension."""


def _with_layer(grid: xr.Dataset) -> xr.Dataset:
    if "layer" in grid.dims:
        return grid
    placed = {
        name: array.expand_dims(layer=[NO_LAYER])
        for name, array in grid.data_vars.items()
        if "strength" in array.dims or name == "cell_status"
    }
    unknown = np.full((grid.sizes["model"], 1), np.nan)
    return grid.assign(placed).assign_coords(depth=(("model", "layer"), unknown))


def _require_strengths(grid: xr.Dataset, measure: Measure) -> None:
    if absent := lacking(grid, measure):
        swept = grid["strength"].values.tolist()
        low, high = measure.ends(swept)
        raise ValueError(
            f"{measure.name} has the strengths {swept}; effects compare {high:+g} with {low:+g}, "
            f"and it lacks {absent}. Compare other strengths (--compare), or collect the model "
            "again with these in --strengths, into another --out."
        )


def _reduce_measure(
    source: _Source, resampling: Resampling, report: Callable[[str], None]
) -> xr.Dataset:
    """A view with the cells of the concepts' own vectors in one measure."""
    out = _blank_cells(source.grid, source.measure)
    counted = _items(source.grid, source.measure)
    for concept in source.grid["concept"].values:
        report(f"resampling {concept} ({source.measure.name})")
        _reduce_concept(out, _of_concept(source, concept, counted), resampling)
    return out.assign_coords(_coordinates(source.grid, source.measure, counted))


def _items(grid: xr.Dataset, measure: Measure) -> xr.DataArray:
    """Mask (concept, sample) of the items that are used: those finite in every complete cell.

    All models of a concept use the same items, so that they can be resampled jointly.
    """
    complete = status_of(grid, measure.name) == STATUS["complete"]
    finite: xr.DataArray = xr.apply_ufunc(np.isfinite, grid[measure.name])
    every = [dim for dim in finite.dims if dim not in ("concept", "sample")]
    return (grid["item_id"] != "") & (finite | ~complete).all(every)


def _of_concept(source: _Source, concept: str, counted: xr.DataArray) -> _Source:
    """The samples of one concept, of the items in the mask `counted`, ordered by id."""
    grid = source.grid.sel(concept=concept)
    grid = grid.isel(sample=np.flatnonzero(counted.sel(concept=concept))).sortby("item_id")
    by = source.by and replace(source.by, grid=_same_items(source.by.grid, grid))
    return replace(source, grid=grid, by=by)


def _same_items(other: xr.Dataset, grid: xr.Dataset) -> xr.Dataset:
    """`other` at the concept, items and layers of `grid`; without any layer if it lacks an item."""
    concept, layers = grid["concept"].item(), grid["layer"].values
    other = other.isel(layer=np.flatnonzero(np.isin(other["layer"].values, layers)))
    if concept not in other.indexes["concept"]:
        return other.isel(layer=[], concept=0)
    other = other.sel(concept=concept)
    other = other.isel(sample=np.flatnonzero(other["item_id"] != ""))
    where = pd.Index(other["item_id"].values).get_indexer(grid["item_id"].values)
    return other.isel(sample=where) if (where >= 0).all() else other.isel(layer=[])


def _blank_cells(grid: xr.Dataset, measure: Measure) -> xr.Dataset:
    """A view with labels and reasons, such as not_run, but no statistics yet."""
    out = xr.Dataset(
        coords={
            **{dim: grid[dim].values for dim in ("model", "concept", "layer", "strength")},
            "estimand": list(estimands_of(measure)),
            "model_other": grid["model"].values,
            "strength_other": grid["strength"].values,
            "quantile": QUANTILES,
        }
    )
    for name, variable in (LAYER_VARIABLES | SELECTED_VARIABLES).items():
        out[name] = variable.full(out.sizes)
    item = out["selected_influential_item"]
    out["selected_influential_item"] = item.astype(grid["item_id"].dtype)
    status = status_of(grid, measure.name).transpose(*CELL).values
    reason = np.zeros_like(status)
    for name, flag in STATUS.items():
        reason[status == flag] = REASONS.get(name, REASONS["defined"])
    out["reason"][:] = reason
    out["selected_reason"][:] = np.where(
        (reason == REASONS["defined"]).any(2), REASONS["defined"], reason.max(2)
    )
    out["selection_frequency"][:] = 0.0
    out["estimate"].attrs = measure.attrs | {"measure": measure.name}
    return out


def _coordinates(
    grid: xr.Dataset, measure: Measure, counted: xr.DataArray
) -> dict[str, tuple[tuple[str, ...], Array, dict[str, Any]]]:
    values = {name: grid[name] for name in MODEL_VARIABLES}
    values["depth"] = grid["depth"].transpose("model", "layer")
    values["n_items"] = counted.sum("sample")
    values["n_valid_items"] = (counted & grid["item_valid"]).sum("sample")
    units = [UNITS[name].replace("nat", measure.units) for name in estimands_of(measure)]
    values["estimand_units"] = xr.DataArray(units)
    contract = MODEL_VARIABLES | {"depth": DEPTH} | OF_CONCEPTS
    return {
        name: (variable.dims, values[name].values, variable.attrs)
        for name, variable in contract.items()
    }


def _reduce_concept(out: xr.Dataset, source: _Source, resampling: Resampling) -> None:
    grid, measure = source.grid, source.measure
    concept, n_items = grid["concept"].item(), grid.sizes["sample"]
    runs = {}
    for model in grid["model"].values:
        run = _run(grid.sel(model=model), measure)
        if len(run.layers):
            at = {"model": model, "concept": concept}
            _describe_strengths(out, run, at)
            _describe_layers(out, run, at)
            runs[model] = run
    if not runs:
        return
    if n_items < MIN_ITEMS:
        too_few = {"concept": concept, "model": list(runs)}
        out["selected_reason"].loc[too_few] = REASONS["too_few_items"]
        return
    if source.by is not None:
        runs = _selected_by(out, runs, source.by, concept)
    seed, level = resampling.seed, resampling.confidence_level
    select = partial(
        _select,
        estimands={name: ESTIMANDS[name] for name in estimands_of(measure)},
        n_resamples=resampling.n_resamples,
        confidence_level=level,
    )
    selected = select(runs, rng=stream(f"items of {concept}", seed=seed))
    for model, run in runs.items():
        at = {"model": model, "concept": concept}
        _record_selected(out, run, selected[model], at, level)
        _record_influence(out, run, selected[model].layer, at, grid["item_id"].values)
        if source.by is None:
            _record_steering(out, run, at, seed)
    _record_covariance(out, "selected_covariance", selected, concept)
    _record_depths(out, runs, selected, concept)
    valid = grid["item_valid"].values
    if valid.sum() < MIN_ITEMS:
        return
    if not valid.all():
        runs = {model: _among(run, valid) for model, run in runs.items()}
        selected = select(runs, rng=stream(f"valid items of {concept}", seed=seed))
        _describe_valid_layers(out, runs, concept)
    _record_valid(out, runs, selected, concept)


def _selected_by(
    out: xr.Dataset, runs: Mapping[str, "_Run"], by: _Source, concept: str
) -> dict[str, "_Run"]:
    """The runs, at layers where the selecting measure is complete too, with its samples.

    Models without such a layer are left out, with the reason no_selection.
    """
    found = {}
    for model, run in runs.items():
        held = by.grid.isel(model=np.flatnonzero(by.grid["model"] == model))
        other = _run(held.squeeze("model"), by.measure) if held.sizes["model"] else None
        both = np.intersect1d(run.layers, other.layers if other else [])
        if other is None or not len(both):
            at = {"model": model, "concept": concept}
            out["selected_reason"].loc[at] = REASONS["no_selection"]
            continue
        own, others = (np.searchsorted(one.layers, both) for one in (run, other))
        found[model] = _Run(
            run.layers[own],
            run.depth[own],
            replace(run.samples, values=run.samples.values[own]),
            replace(other.samples, values=other.samples.values[others]),
        )
    return found


def _select(
    runs: Mapping[str, "_Run"],
    *,
    estimands: Mapping[str, Estimand],
    n_resamples: int,
    confidence_level: float,
    rng: np.random.Generator,
) -> dict[str, SelectedCell]:
    """Selected layer and effects of each model; the models share the resamples of the items."""
    if not runs:
        return {}
    n_items = len(next(iter(runs.values())).samples.letter)
    select = partial(
        select_and_estimate,
        resamples=resample_weights(n_items, n_resamples, rng),
        halves=half_weights(n_items, N_SPLITS, rng),
        estimands=estimands,
        confidence_level=confidence_level,
    )
    with ThreadPoolExecutor() as pool:
        every = list(runs.values())
        chosen = list(pool.map(select, [r.samples for r in every], [r.selecting for r in every]))
    return dict(zip(runs, chosen, strict=True))


class _Run(NamedTuple):
    """The complete layers of one (model, concept), their depths and their samples.

    `selecting` are the samples of the measure that selects the layer; None for this measure.
    """

    layers: Array
    depth: Array
    samples: Samples
    selecting: Samples | None = None


def _run(grid: xr.Dataset, measure: Measure) -> _Run:
    """The complete layers of one model on one concept."""
    status = status_of(grid.expand_dims("model"), measure.name).isel(model=0)
    grid = grid.isel(layer=np.flatnonzero(status == STATUS["complete"]))
    values = grid[measure.name].transpose("layer", "strength", "sample").values.astype(float)
    letters = grid["letter"].values if "letter" in grid.coords else np.full(values.shape[-1], "")
    samples = Samples(values, grid["strength"].values, letters, measure.compare)
    return _Run(grid["layer"].values, grid["depth"].values, samples)


def _among(run: _Run, items: Array) -> _Run:
    """The run restricted to some of its items."""

    def kept(samples: Samples) -> Samples:
        return replace(samples, values=samples.values[..., items], letter=samples.letter[items])

    selecting = run.selecting and kept(run.selecting)
    return run._replace(samples=kept(run.samples), selecting=selecting)


def _describe_strengths(out: xr.Dataset, run: _Run, at: Mapping[str, str]) -> None:
    """Mean, sd, correlation and quantiles over items at every layer and strength."""
    where = {**at, "layer": run.layers}
    values = run.samples.values
    out["mean"].loc[where] = values.mean(axis=-1)
    out["sd"].loc[where] = values.std(axis=-1, ddof=1) if values.shape[-1] > 1 else np.nan
    residual = values - values.mean(axis=-1, keepdims=True)
    cross = np.einsum("lsi,lti->lst", residual, residual)
    norm = np.sqrt(np.einsum("lss->ls", cross))
    with np.errstate(divide="ignore", invalid="ignore"):
        out["correlation"].loc[where] = cross / (norm[:, :, None] * norm[:, None, :])
    out["quantiles"].loc[where] = np.moveaxis(np.quantile(values, QUANTILES, axis=-1), 0, -1)


def _describe_layers(out: xr.Dataset, run: _Run, at: Mapping[str, str]) -> None:
    """Every estimand at every layer, or why it is undefined there."""
    where = {**at, "layer": run.layers}
    ones = np.ones(len(run.samples.letter))
    effects = {
        name: ESTIMANDS[name](run.samples, ones) for name in map(str, out["estimand"].values)
    }
    value = np.stack([effect.value for effect in effects.values()])
    se = np.stack([effect.se for effect in effects.values()])
    reason = np.stack([_reason(name, run.samples, *effect) for name, effect in effects.items()])
    has_value = np.isfinite(value) & ~np.isin(reason, _WITHOUT_VALUE)
    out["estimate"].loc[where] = np.where(has_value, value, np.nan)
    out["standard_error"].loc[where] = np.where(reason == REASONS["defined"], se, np.nan)
    out["reason"].loc[where] = reason


def _reduce_directions(
    grid: xr.Dataset, own: xr.Dataset | None, measure: Measure, family: str
) -> xr.Dataset:
    """Every estimand at every layer, for each direction of a family.

    If the cube has the measure's grid `own`, the first direction is <family>/own: the concept's own
    vector on the same items and at the same layers, to compare the others with.
    """
    given = list(map(str, grid["direction"].values))
    names = [own_name(family), *given] if own is not None else given
    labels, estimands = {dim: grid[dim].values for dim in CELL}, estimands_of(measure)
    out = xr.Dataset(coords={"direction": names, "estimand": estimands} | labels)
    for held, variable in DIRECTION_VARIABLES.items():
        out[held] = variable.full(out.sizes)
    out["other_estimate"].attrs |= measure.attrs | {"measure": measure.name}
    counted = _items(grid, measure)
    for model, concept in product(labels["model"], labels["concept"]):
        of_pair = grid.sel(concept=concept).isel(
            sample=np.flatnonzero(counted.sel(concept=concept))
        )
        of_pair = of_pair.sortby("item_id").sel(model=model)
        parts = {name: of_pair.sel(direction=name) for name in given}
        if own is not None and model in own.indexes["model"]:
            parts[names[0]] = _same_items(_with_layer(own).sel(model=model), of_pair)
        for name, part in parts.items():
            run = _run(part, measure)
            if len(run.layers) and len(run.samples.letter):
                at = {"direction": name, "model": model, "concept": concept, "layer": run.layers}
                values, errors = _values(run, estimands)
                out["other_estimate"].loc[at] = values
                out["other_standard_error"].loc[at] = errors
    facts = {name: grid[name].variable for name in MODEL_VARIABLES}
    return out.assign_coords(facts | {"depth": grid["depth"].variable})


def _values(run: _Run, estimands: list[str]) -> tuple[Array, Array]:
    """Each estimand at each layer of the run, and its standard error; NaN where undefined."""
    found = []
    for name in estimands:
        value, se = ESTIMANDS[name](run.samples, np.ones(len(run.samples.letter)))
        reason = _reason(name, run.samples, value, se)
        has_value = np.isfinite(value) & ~np.isin(reason, _WITHOUT_VALUE)
        defined = reason == REASONS["defined"]
        found.append((np.where(has_value, value, np.nan), np.where(defined, se, np.nan)))
    values, errors = zip(*found, strict=True)
    return np.stack(values), np.stack(errors)


_WITHOUT_VALUE = [REASONS[name] for name in ("too_few_items", "no_baseline", "one_letter")]


def _reason(name: str, samples: Samples, value: Array, se: Array) -> Array:
    """Why an estimand of these items is undefined, for each layer; 0 where it is defined."""
    letters = [(samples.letter == letter).sum() for letter in SCORED_LETTERS]
    if len(samples.letter) < MIN_ITEMS:
        return np.full(value.shape, REASONS["too_few_items"])
    if name in BY_LETTER and min(letters) < 2:
        return np.full(value.shape, REASONS["one_letter"])
    if name == "glass_delta_baseline" and not (samples.strengths == BASELINE).any():
        return np.full(value.shape, REASONS["no_baseline"])
    defined = np.isfinite(value) & (se > 0)
    return np.where(defined, REASONS["defined"], REASONS["zero_variance"])


def _describe_valid_layers(out: xr.Dataset, runs: Mapping[str, _Run], concept: str) -> None:
    """Every estimand at every layer over valid items, where it is defined over all items."""
    for model, run in runs.items():
        where = {"model": model, "concept": concept, "layer": run.layers}
        ones = np.ones(len(run.samples.letter))
        names = map(str, out["estimand"].values)
        value = np.stack([ESTIMANDS[name](run.samples, ones).value for name in names])
        has_value = out["estimate"].loc[where].notnull().values & np.isfinite(value)
        out["valid_estimate"].loc[where] = np.where(has_value, value, np.nan)


def _record_valid(
    out: xr.Dataset, runs: Mapping[str, _Run], selected: Mapping[str, SelectedCell], concept: str
) -> None:
    for model, run in runs.items():
        at = {"model": model, "concept": concept}
        chosen = selected[model]
        effects = list(chosen.effects.values())
        out["valid_selected_layer"].loc[at] = run.layers[chosen.layer]
        out["valid_selected_estimate"].loc[at] = [effect.apparent for effect in effects]
        out["valid_selected_optimism"].loc[at] = [effect.optimism for effect in effects]
    _record_covariance(out, "valid_selected_covariance", selected, concept)


def _record_selected(
    out: xr.Dataset,
    run: _Run,
    chosen: SelectedCell,
    at: Mapping[str, str],
    confidence_level: float,
) -> None:
    layer = run.layers[chosen.layer]
    at_layer = out[["estimate", "standard_error", "reason"]].sel({**at, "layer": layer})
    effects = list(chosen.effects.values())
    low, high = (np.array([getattr(effect, end) for effect in effects]) for end in ("low", "high"))
    # A share near 0 or 1 has no usable standard error, so its interval is Wilson's, which ignores
    # the selection of the layer.
    for share in np.flatnonzero(out["estimand"].values == "anti_steerable_share"):
        low[share], high[share] = _wilson(
            at_layer["estimate"].values[share], len(run.samples.letter), confidence_level
        )
    for name, bounds in BOUNDED.items():
        bounded = out["estimand"].values == name
        low[bounded], high[bounded] = (
            np.clip(low[bounded], *bounds),
            np.clip(high[bounded], *bounds),
        )
    reason = at_layer["reason"].values
    unstable = (reason == REASONS["defined"]) & ~np.isfinite(low)
    out["selected_layer"].loc[at] = layer
    out["selection_frequency"].loc[{**at, "layer": run.layers}] = chosen.frequency
    fields = {
        "selected_estimate": at_layer["estimate"].values,
        "selected_se": at_layer["standard_error"].values,
        "selected_optimism": [effect.optimism for effect in effects],
        "selected_low": low,
        "selected_high": high,
        "selected_split_half": [effect.split_half for effect in effects],
        "selected_reason": np.where(unstable, REASONS["unstable"], reason),
    }
    for name, values in fields.items():
        out[name].loc[at] = values


def _record_influence(
    out: xr.Dataset, run: _Run, layer: int, at: Mapping[str, str], items: Array
) -> None:
    """What leaving out one of the `items` (ids) changes of Cohen's d at the selected layer."""
    found = most_influential(replace(run.samples, values=run.samples.values[layer]))
    if found is not None:
        out["selected_influence"].loc[at] = found.change
        out["selected_influential_item"].loc[at] = items[found.item]


def _record_steering(out: xr.Dataset, run: _Run, at: Mapping[str, str], seed: int) -> None:
    rng = stream(f"signs of {at['model']} on {at['concept']}", seed=seed)
    tested = sign_flip_test(run.samples, rng)
    out["steers_p"].loc[at] = tested.p
    out["steers_other_way_p"].loc[at] = tested.p_other_way


def _wilson(share: float, n_items: int, confidence_level: float) -> tuple[float, float]:
    count = binomtest(round(share * n_items), n_items)
    interval = count.proportion_ci(confidence_level, method="wilson")
    return interval.low, interval.high


def _record_covariance(
    out: xr.Dataset, name: str, selected: Mapping[str, SelectedCell], concept: str
) -> None:
    models = out["model"].values
    out[name].loc[{"concept": concept}] = np.stack(
        [
            error_covariance(
                [selected[m].effects[name].error if m in selected else None for m in models]
            )
            for name in map(str, out["estimand"].values)
        ]
    )


def _record_depths(
    out: xr.Dataset, runs: Mapping[str, _Run], selected: Mapping[str, SelectedCell], concept: str
) -> None:
    """Covariance over items of the selected depth and of the depth centroid."""
    models = out["model"].values
    places: dict[str, Callable[[_Run, SelectedCell], Array]] = {
        "selected_depth_covariance": lambda run, choice: run.depth[choice.chosen],
        "depth_centroid_covariance": lambda run, choice: centroid(choice.delta, run.depth),
    }
    for name, place in places.items():
        drawn = [place(runs[m], selected[m]) if m in selected else None for m in models]
        out[name].loc[{"concept": concept}] = error_covariance(drawn)


def _side_by_side(cube: Cube) -> xr.Dataset:
    """One dataset of the logits and generated answers of the concepts' own vectors.

    Its labels are those of all of them. Variables of the published reading of answers have names
    that begin with `published_`.
    """
    grids = {
        name: _with_layer(cube[name])
        for name in (LOGIT_DIFF.name, GENERATION_MATCH.name, GENERATION_RATE.name)
        if name in cube
    }
    swept = {
        dim: {x for grid in grids.values() if dim in grid.dims for x in grid[dim].values.tolist()}
        for dim in ("model", "concept", "layer", "strength")
    }
    named = ("model", "concept")
    facts = cube.labels
    facts = facts.sel({dim: [x for x in facts[dim].values if x in swept[dim]] for dim in named})
    labels: dict[Any, Any] = {dim: facts[dim].values for dim in facts.dims}
    labels |= {dim: sorted(swept[dim]) for dim in ("layer", "strength")}
    whole = facts.assign_coords(labels)
    for name, grid in grids.items():
        contract = variables_of(
            cube.measures[name], [d for d in map(str, grid[name].dims) if d != "reading"]
        )
        readings = {"": grid}
        if "reading" in grid.dims:
            names = grid["reading"].values.tolist()
            counted = READ if READ in names else names[0]
            readings = {"": grid.sel(reading=counted)}
            if PUBLISHED in names and counted != PUBLISHED:
                readings["published_"] = grid.sel(reading=PUBLISHED)
        for beginning, part in readings.items():
            for held in set(contract) & set(part.data_vars):
                if held == "cell_status" and name != LOGIT_DIFF.name:
                    continue
                own = held.replace("generation_", beginning) if beginning else held
                if not beginning or "sample" in part[held].dims:
                    whole[own] = spread(part, held, contract[held], whole)
    if "cell_status" not in whole:
        whole["cell_status"] = CELL_STATUS.full(whole.sizes) + STATUS["not_run"]
    return whole.assign_coords(with_depth(whole)["depth"].coords)


def _reduce_generation(cube: Cube, resampling: Resampling) -> xr.Dataset:
    """Generation rates, published or counted from responses, and statistics of their curves."""
    flat = _side_by_side(cube)
    by = next(iter(cube.measures.values()))
    ends = cube.measures.get(LOGIT_DIFF.name, by).ends(flat["strength"].values.tolist())
    out = xr.Dataset(coords={dim: flat[dim].values for dim in (*CELL, "strength")})
    for name in RATE_VARIABLES:
        if name in flat:
            out[name] = flat[name].transpose(*RATE_VARIABLES[name].dims).reset_coords(drop=True)
    if "generation_valid" in flat:
        _count_responses(out, flat, _repeats(cube))
    facts = {name: flat[name].variable for name in MODEL_VARIABLES}
    if "generation_rate" not in out:
        return out.assign_coords(facts)
    for name, variable in CURVE_VARIABLES.items():
        out[name] = variable.full(out.sizes)
    out["answered_delta"] = GENERATION_VARIABLES["answered_delta"].full(out.sizes)
    for concept in flat["concept"].values if LOGIT_DIFF.name in flat else ():
        of_concept = flat.sel(concept=concept).sortby("item_id")
        of_concept = of_concept.isel(sample=np.flatnonzero(of_concept["item_id"] != ""))
        for model in flat["model"].values:
            _reduce_curves(
                out,
                of_concept.sel(model=model),
                ends=ends,
                n_resamples=resampling.n_resamples,
                rng=stream(f"curves of {concept}", seed=resampling.seed),
                confidence_level=resampling.confidence_level,
            )
    responses = cube.get(RESPONSES)
    audit = reading_audit(
        flat,
        responses,
        ends=ends,
        n_resamples=resampling.n_resamples,
        seed=resampling.seed,
        confidence_level=resampling.confidence_level,
    )
    out = out.merge(distinct_responses(flat, responses)).merge(audit)
    return out.assign_coords(facts)


def _count_responses(out: xr.Dataset, cube: xr.Dataset, repeats: xr.DataArray) -> None:
    valid = cube["generation_valid"].astype(float)
    matching = (valid * cube["generation_match"]).fillna(0).where(valid.notnull())
    answered = valid.notnull().any("sample")
    n_valid = valid.sum("sample")
    counted = {
        "response_match_rate": matching.sum("sample") / n_valid.where(n_valid > 0),
        "response_valid_rate": valid.mean("sample"),
        "n_responses": valid.notnull().sum("sample").where(answered) * repeats,
    }
    if "published_valid" in cube:
        counted["published_response_match_rate"] = cube["published_match"].mean("sample")
        alike = (cube["published_valid"] == valid) & (
            (cube["published_match"] == cube["generation_match"]) | (valid == 0)
        )
        every = ("layer", "strength", "sample")
        counted["responses_read_alike"] = alike.where(valid.notnull()).mean(every)
    for name, values in counted.items():
        variable = GENERATION_VARIABLES[name]
        out[name] = (
            values.astype(float).transpose(*variable.dims).assign_attrs(variable.attrs)
        ).reset_coords(drop=True)
    rate = out["response_match_rate"].assign_attrs(RATE_VARIABLES["generation_rate"].attrs)
    published = out.get("generation_rate", rate)
    has_published = published.notnull().any(("layer", "strength"))
    out["generation_rate"] = published.where(has_published, rate).assign_attrs(rate.attrs)


def _repeats(cube: Cube) -> xr.DataArray:
    """Number of responses per item at each layer and strength, dims (model,)."""
    models = cube.labels["model"].values
    if RESPONSES not in cube or "repeat" not in cube[RESPONSES]:
        return xr.DataArray(np.ones(len(models)), coords={"model": models}, dims="model")
    of_model = cube[RESPONSES]["model"].values[:, None] == models
    repeat = np.where(of_model, cube[RESPONSES]["repeat"].values[:, None], 0)
    return xr.DataArray(1 + repeat.max(axis=0), coords={"model": models}, dims="model")


def _reduce_curves(
    out: xr.Dataset,
    cube: xr.Dataset,
    *,
    ends: tuple[float, float],
    n_resamples: int,
    rng: np.random.Generator,
    confidence_level: float,
) -> None:
    """Reliability of both curves and their agreement, for one model and concept.

    Over the items with responses, or over all items where only rates are known. `rng` depends on
    the concept alone, so models with the same items share their resamples.
    """
    at = {"model": cube["model"].item(), "concept": cube["concept"].item()}
    if not set(ends) <= set(cube["strength"].values.tolist()):
        return
    cube = cube.sel(strength=list(ends))
    has_rate = out["generation_rate"].sel(at).sel(strength=list(ends)).notnull().all("strength")
    swept = np.flatnonzero((cube["cell_status"] == STATUS["complete"]) & has_rate)
    cube = cube.isel(layer=swept)
    answers = _answers(cube)
    if answers is not None:
        cube = cube.isel(sample=np.flatnonzero(np.isfinite(answers.valid).all(axis=(0, 1))))
        answers = _answers(cube)
    n_items = cube.sizes["sample"]
    if answers is not None:
        out["n_response_items"].loc[at] = n_items
    if len(swept) < MIN_LAYERS or n_items < MIN_ITEMS:
        return
    resamples = resample_weights(n_items, n_resamples, rng)
    halves = half_weights(n_items, N_SPLITS, rng)
    flips = rng.choice([-1.0, 1.0], (N_FLIPS, n_items))
    values = cube["logit_diff"].transpose("strength", "layer", "sample").astype(float)
    shift = values.isel(strength=1).values - values.isel(strength=0).values
    statistics = {
        "logit_reliability": split_half_reliability(
            logit_curve(shift, halves), logit_curve(shift, 1 - halves)
        )
    }
    if answers is not None:
        where = {**at, "layer": cube["layer"].values}
        out["answered_delta"].loc[where] = logit_curve(shift, np.ones(n_items))
        agreement = agreement_over_items(answers, shift, resamples, confidence_level)
        statistics |= {
            "response_r": agreement.r,
            "response_r_low": agreement.low,
            "response_r_high": agreement.high,
            "response_z_error": agreement.z_error,
            "noise_free_r": agreement.noise_free,
            "noise_free_r_low": agreement.noise_free_low,
            "noise_free_r_high": agreement.noise_free_high,
            "response_reliability": split_half_reliability(
                generation_curve(answers, halves), generation_curve(answers, 1 - halves)
            ),
        }
        layer = int(logit_curve(shift, np.ones(n_items)).argmax())
        of_items = item_agreement(answers, shift, cube["letter"].values, layer)
        statistics |= {
            "item_r": of_items.r,
            "item_r_layer": float(cube["layer"].values[layer]),
            "n_items_both": of_items.n_items,
            "n_items_changed": of_items.n_changed,
        }
        best = best_layer(answers, resamples, halves, flips)
        if best is not None:
            statistics |= {
                "best_response_layer": float(cube["layer"].values[best.index]),
                "best_response_delta": best.value,
                "best_response_null": best.expected_under_null,
                "best_response_p": best.p_value,
                "best_response_split_half": best.split_half,
                "best_response_error": best.error,
            }
    for name, value in statistics.items():
        out[name].loc[at] = value


def _answers(cube: xr.Dataset) -> Answers | None:
    """Valid and matching shares at the compared strengths; None if no item has them."""
    if "generation_valid" not in cube or not cube["generation_valid"].notnull().any():
        return None
    order = ("strength", "layer", "sample")
    return Answers(
        valid=cube["generation_valid"].transpose(*order).values.astype(float),
        match=cube["generation_match"].transpose(*order).values.astype(float),
    )


def _of_the_vectors(cube: Cube) -> xr.Dataset:
    """The variables in OF_THE_VECTOR, dims (model, concept, layer); empty if there are none."""
    held = [
        cube[path][[name for name in OF_THE_VECTOR if name in cube[path]]]
        for path in (VECTORS, LOGIT_DIFF.name, GENERATION_MATCH.name)
        if path in cube
    ]
    held = [part.reset_coords(drop=True) for part in held if part.data_vars]
    if not held:
        return xr.Dataset()
    whole = xr.merge(held, join="outer").transpose(*CELL)
    return with_facts(whole, cube.labels)


def _provenance(cube: Cube, resampling: Resampling) -> dict[str, Any]:
    return {
        "title": f"Cells of: {cube.attrs['title']}",
        "source": cube.attrs["source"],
        **{name: cube.attrs[name] for name in PROVENANCE if name in cube.attrs},
        "history": f"{cube.attrs['history']}\nreduced to cells by steercube {__version__}",
        "Conventions": "CF-1.11, ACDD-1.3",
        "cells_version": SCHEMA_VERSION,
        "cube_sha256": netcdf.digest(groups_of(cube)),
        "seed": resampling.seed,
        "n_resamples": resampling.n_resamples,
        "confidence_level": resampling.confidence_level,
    }

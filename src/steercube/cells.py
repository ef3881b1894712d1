"""Contract 2, the cells: the statistics of every (model, concept, layer), without a sample.

Stage one (`steercube.analysis.per_cell.reduce`) makes them from a cube; stage two (tables, claims,
figures) reads them and nothing else. They are small and hold no item's text or value, so a
repository can publish them even for a sweep whose samples it may not redistribute.

The dimension `estimand` holds all estimands (`cells.estimate.sel(estimand="cohens_d")`); each is
defined by the function of its name in `steercube.analysis.per_cell.estimands`. Variables that
begin with `selected_` are at the layer with the largest delta.
"""

from pathlib import Path

import numpy as np
import xarray as xr

from steercube import netcdf
from steercube.cube import (
    ARCHITECTURES,
    BOUNDS,
    CELL,
    LABELS,
    MODEL_VARIABLES,
    RATE_VARIABLES,
    RECEIPT_VARIABLES,
    ROUNDING,
    VECTOR_VARIABLES,
    out_of_bounds,
)
from steercube.schema import (
    Variable,
    attribute_violations,
    name_violations,
    raise_if_any,
    require_version,
    structure_violations,
)

SCHEMA_VERSION = 1
DIMS = (
    *("model", "concept", "layer", "strength", "estimand"),
    *("model_other", "strength_other", "quantile"),
)
LABEL_KINDS = {
    **{dim: LABELS.get(dim, "U") for dim in DIMS},
    **{"strength_other": "f", "quantile": "f"},
}
REASONS = {
    "defined": 0,
    "not_applicable": 1,
    "not_run": 2,
    "failed": 3,
    "nonfinite": 4,
    "too_few_items": 5,
    "zero_variance": 6,
    "no_baseline": 7,
    "one_letter": 8,
    "unstable": 9,
    "not_recorded": 10,
}
"""Why a statistic or its interval is NaN; `unstable`: it is undefined in over 1% of resamples;
`not_recorded`: the cells in the file lack its estimand."""
ESTIMAND_UNITS = {
    "delta": "nat",
    "cohens_d": "1",
    "hedges_g": "1",
    "glass_delta_negative": "1",
    "glass_delta_baseline": "1",
    "d_z": "1",
    "within_letter_d": "1",
    "content_shift": "nat",
    "letter_shift": "nat",
    "steerability_slope": "nat per unit strength",
    "anti_steerable_share": "1",
}
"""Labels of the dimension `estimand`, with units. A file may lack some of them; `open_cells` adds
the missing ones as NaN."""

PAIR = ("estimand", "model", "concept")
BETWEEN_MODELS = ("estimand", "concept", "model", "model_other")

COORDINATES = MODEL_VARIABLES | {
    "n_items": Variable(("concept",), "i", "number of items", "1"),
    "n_valid_items": Variable(("concept",), "i", "number of valid items", "1"),
    "estimand_units": Variable(("estimand",), "U", "units of each estimand"),
}
LAYER_VARIABLES = {
    "estimate": Variable(("estimand", *CELL), "f", "estimate"),
    "standard_error": Variable(("estimand", *CELL), "f", "its standard error over items"),
    "reason": Variable(("estimand", *CELL), "i", "why it is NaN", flags=REASONS, dtype="int8"),
    "mean": Variable((*CELL, "strength"), "f", "mean logit difference", "nat"),
    "sd": Variable((*CELL, "strength"), "f", "sd of the logit differences", "nat"),
    "correlation": Variable(
        (*CELL, "strength", "strength_other"), "f", "correlation over items", "1", dtype="float32"
    ),
    "quantiles": Variable(
        (*CELL, "strength", "quantile"),
        "f",
        "quantiles of the logit differences",
        "nat",
        dtype="float32",
    ),
    "selection_frequency": Variable(CELL, "f", "share of resamples that select the layer", "1"),
}
SELECTED_VARIABLES = {
    "selected_layer": Variable(
        ("model", "concept"),
        "f",
        "layer with the largest delta; if NaN see selected_reason",
    ),
    "selected_estimate": Variable(PAIR, "f", "estimate at the selected layer (apparent)"),
    "selected_se": Variable(PAIR, "f", "its standard error over items"),
    "selected_optimism": Variable(PAIR, "f", "what selection and small samples add to it (Efron)"),
    "selected_low": Variable(PAIR, "f", "lower end of its interval over items"),
    "selected_high": Variable(PAIR, "f", "upper end of its interval over items"),
    "selected_split_half": Variable(
        PAIR, "f", "selected on one half of the items, estimated on the other half, of n / 2"
    ),
    "selected_reason": Variable(PAIR, "i", "why the interval is NaN", flags=REASONS, dtype="int8"),
    "selected_covariance": Variable(
        BETWEEN_MODELS,
        "f",
        "sampling covariance of selected effects between models, items resampled jointly",
    ),
    "valid_selected_layer": Variable(
        ("model", "concept"), "f", "layer with the largest delta over the valid items alone"
    ),
    "valid_selected_estimate": Variable(PAIR, "f", "estimate there, over the valid items alone"),
    "valid_selected_optimism": Variable(
        PAIR, "f", "what selection and small samples add to it (Efron)", required=False
    ),
    "valid_selected_covariance": Variable(
        BETWEEN_MODELS, "f", "its sampling covariance, as selected_covariance", required=False
    ),
    "valid_estimate": Variable(
        ("estimand", *CELL),
        "f",
        "estimate of every layer over the valid items alone, in concepts where some are not",
        required=False,
    ),
    "selected_depth_covariance": Variable(
        BETWEEN_MODELS[1:],
        "f",
        "sampling covariance of the selected layers' depths, items resampled jointly",
        "1",
        required=False,
    ),
    "depth_centroid_covariance": Variable(
        BETWEEN_MODELS[1:],
        "f",
        "sampling covariance of the depth centroids, items resampled jointly",
        "1",
        required=False,
    ),
    "steers_p": Variable(
        ("model", "concept"),
        "f",
        "one-sided p-value of any layer's content shift, by random signs of the items",
        "1",
        required=False,
    ),
    "steers_other_way_p": Variable(
        ("model", "concept"), "f", "the same of a shift the other way", "1", required=False
    ),
}
GENERATION_VARIABLES = RATE_VARIABLES | {
    "response_match_rate": Variable(
        (*CELL, "strength"), "f", "share of matching among valid responses", "1", required=False
    ),
    "response_valid_rate": Variable(
        (*CELL, "strength"), "f", "share of valid responses", "1", required=False
    ),
    "n_responses": Variable((*CELL, "strength"), "f", "responses", "1", required=False),
    "answered_delta": Variable(
        CELL, "f", "delta of the logits over the items with responses", "nat", required=False
    ),
    "published_response_match_rate": Variable(
        (*CELL, "strength"),
        "f",
        "share of matching among valid responses, as the study read them",
        "1",
        required=False,
    ),
    "responses_read_alike": Variable(
        ("model", "concept"),
        "f",
        "share of responses that the study and answer_of read alike",
        "1",
        required=False,
    ),
}
"""`generation_rate` is the published rate, or the responses' rate where none was published."""
CURVE_VARIABLES = {
    name: Variable(("model", "concept"), "f", meaning, "1", required=False)
    for name, meaning in {
        "logit_reliability": "split-half reliability of the logit curve, at layers with rates",
        "response_reliability": "split-half reliability of the responses' curve",
        "response_r": "r of the logit curve and the responses' curve",
        "response_r_low": "lower end of its interval over items",
        "response_r_high": "upper end of its interval over items",
        "response_z_error": "error of its Fisher z over items",
        "noise_free_r": "r of both curves less the items' noise",
        "noise_free_r_low": "lower end of its interval over items",
        "noise_free_r_high": "upper end of its interval over items",
        "n_response_items": "items with responses",
        "best_response_layer": "layer with the largest delta of the responses",
        "best_response_delta": "that delta (apparent)",
        "best_response_null": "its expectation with +1 and -1 exchanged for random items",
        "best_response_p": "share of such exchanges that reach it",
        "best_response_split_half": "selected on half of the items, estimated on the other half",
    }.items()
}
DISTINCT_RESPONSES = "n_distinct_responses"
READINGS = PUBLISHED, READ_ANEW = "published", "read anew"
LETTERS_READ = ("A", "B", "none")
_OF_READING = ("model", "concept", "reading")
READING_VARIABLES = {
    DISTINCT_RESPONSES: Variable(
        ("model", "concept"),
        "f",
        "responses, an unsteered one that stands for every layer counted once",
        "1",
        required=False,
    ),
    "n_readings": Variable(
        ("model", "concept", "answer_form", "read_as", "published_as"),
        "f",
        "responses by their form, the letter read anew and the letter of the published reading",
        "1",
        required=False,
    ),
} | {
    name: Variable(_OF_READING, "f", meaning, "1", required=False)
    for name, meaning in {
        "reading_best_delta": "largest delta of the responses over layers (apparent)",
        "reading_best_layer": "its layer",
        "reading_held_out_delta": "layer selected on some of the items, delta of the others",
        "reading_r": "r of the logit curve and the responses' curve",
        "reading_r_low": "lower end of its interval over items",
        "reading_r_high": "upper end of its interval over items",
    }.items()
}
"""The study's own readings of its responses compared with `steercube.answers`; computed in
`steercube.analysis.per_cell.readings`."""
CONTROL_VARIABLES = {
    "estimate_random": Variable(
        ("estimand", *CELL), "f", "estimate for a random direction of equal norm", required=False
    ),
    "estimate_shuffled": Variable(
        ("estimand", *CELL), "f", "estimate for the shuffled pairs' vector", required=False
    ),
}
ITEM_FITS = (
    "REML, items crossed",
    "MixedLM, without items",
    "MixedLM, items crossed",
    "NUTS, items",
)
ITEM_TERMS = (
    *("intercept", "training", "scale"),
    *("sd_model", "sd_concept", "sd_cell", "sd_item", "sd_residual"),
)
_FITTED = ("item_fit", "item_term")
ITEM_FIT_VARIABLES = {
    "item_fit_value": Variable(_FITTED, "f", "estimate of the model of items", required=False),
    "item_fit_low": Variable(_FITTED, "f", "lower end of its interval", required=False),
    "item_fit_high": Variable(_FITTED, "f", "upper end of its interval", required=False),
    "item_fit_diagnostics": Variable(
        _FITTED[:1], "U", "whether it converged, and where", required=False
    ),
    "item_fit_of": Variable((), "U", "models, trainings, concepts and terms of it", required=False),
    "item_fit_problem": Variable(_FITTED[:1], "U", "why it must not be used", required=False),
}
"""Fits of Cohen's d at the selected layers, item by item:
`steercube.analysis.over_models.item_fits`."""

_REPORTS = ("item_fit_diagnostics", "item_fit_problem")

OF_OPTIMISERS = 5e-3
"""Relative tolerance for results of an optimiser or a sampler."""

OF_THE_VECTOR = VECTOR_VARIABLES | {
    name: RECEIPT_VARIABLES[name] for name in ("added_over_residual", "generation_logit_apart")
}
"""Variables copied unchanged from the cube."""
VARIABLES = (
    COORDINATES
    | LAYER_VARIABLES
    | SELECTED_VARIABLES
    | GENERATION_VARIABLES
    | CURVE_VARIABLES
    | READING_VARIABLES
    | CONTROL_VARIABLES
    | ITEM_FIT_VARIABLES
    | OF_THE_VECTOR
)
ATTRIBUTES = {
    "cells_version": "which contract this is",
    "title": "what the cube holds",
    "source": "where its samples come from",
    "cube_sha256": "content of the cube that they were reduced from",
    "seed": "seed of the resampling",
    "n_resamples": "bootstrap resamples",
    "confidence_level": "of every interval",
}

PROVENANCE = ("history", "layer_convention", "positions_steered", "read_token", "dtype", "versions")
"""Attributes copied from the cube, where it has them."""


def check_cells(cells: xr.Dataset, *, what: str = "the cells") -> None:
    """Raise one ValueError that lists every rule of the contract that `cells` breaks."""
    require_version(
        cells,
        "cells_version",
        SCHEMA_VERSION,
        what=what,
        remedy="make it again from its cube with `steercube analyze`",
    )
    problems = attribute_violations(cells.attrs, ATTRIBUTES)
    problems += structure_violations(cells, VARIABLES, index_dims=LABEL_KINDS)
    problems += [f"dimension {dim!r} is empty" for dim in CELL if cells.sizes.get(dim) == 0]
    if not problems:
        problems = _value_problems(cells)
    raise_if_any(problems, what=what)


def _value_problems(cells: xr.Dataset) -> list[str]:
    problems = [
        problem
        for dim in ("model", "concept")
        for problem in name_violations(dim, map(str, cells[dim].values))
    ]
    level = cells.attrs["confidence_level"]
    if not isinstance(level, float) or not 0 < level < 1:
        problems.append(f"attribute 'confidence_level' is {level!r}; it must be between 0 and 1")
    for name in ("seed", "n_resamples"):
        if not isinstance(cells.attrs[name], int) or cells.attrs[name] < 0:
            problems.append(f"attribute {name!r} is {cells.attrs[name]!r}, not an integer from 0")
    problems += _unmet_needs(cells)
    problems += out_of_bounds(
        (cells[name], *bounds) for name, bounds in CELL_BOUNDS.items() if name in cells.variables
    )
    if (cells["n_valid_items"] > cells["n_items"]).any():
        problems.append("'n_valid_items' is above 'n_items' for some concept")
    unexplained = cells["estimate"].isnull() & (cells["reason"] == REASONS["defined"])
    if unexplained.any():
        problems.append(f"'estimate' is NaN without a reason at {int(unexplained.sum())} place(s)")
    silent = cells["selected_estimate"].isnull() & (cells["selected_reason"] == 0)
    if silent.any():
        problems.append(f"'selected_estimate' is NaN without a reason, {int(silent.sum())} time(s)")
    if (cells["standard_error"] <= 0).any():
        problems.append("'standard_error' must be positive or NaN")
    if (cells["selected_low"] >= cells["selected_high"]).any():
        problems.append("an interval has no width: 'selected_low' must be below 'selected_high'")
    shares = cells["selection_frequency"].sum("layer")
    chosen = cells["selected_layer"].notnull()
    if not np.allclose(shares.where(chosen, 1), 1):
        problems.append("'selection_frequency' must sum to 1 over layers wherever one is selected")
    return problems


SHARES = (
    *("selection_frequency", "response_match_rate", "response_valid_rate"),
    *("published_response_match_rate", "responses_read_alike"),
    *("best_response_p",),
)
CELL_BOUNDS = (
    BOUNDS
    | dict.fromkeys(SHARES, (-ROUNDING, 1 + ROUNDING))
    | dict.fromkeys(("correlation", "response_r"), (-1 - ROUNDING, 1 + ROUNDING))
    | dict.fromkeys(("sd", "n_responses", "n_items", "n_valid_items"), (0, np.inf))
)
"""Bounds of each statistic (low, high), widened for rounding where it can matter."""

NEEDED = {"estimand": ("cohens_d", "delta"), "strength": (-1, 1), "quantile": (0.5,)}
"""Labels that the conclusions need."""
SAME_LABELS = {"model_other": "model", "strength_other": "strength"}


def _unmet_needs(cells: xr.Dataset) -> list[str]:
    """Missing labels that conclusions need, and values from which none can be drawn."""
    problems = [
        f"dimension {dim!r} has no label {label!r}"
        for dim, labels in NEEDED.items()
        for label in labels
        if label not in cells[dim].values
    ]
    problems += [
        f"dimension {other!r} must have the labels of {dim!r}, in the same order"
        for other, dim in SAME_LABELS.items()
        if cells[other].values.tolist() != cells[dim].values.tolist()
    ]
    if not ((cells["n_params"] > 0) & (cells["n_params"] < np.inf)).all():
        problems.append("'n_params' must be positive and finite for every model")
    if np.isinf(cells["estimate"]).any():
        problems.append("'estimate' has infinite values; use NaN, with a reason, where undefined")
    problems += [
        f"{name!r} holds {unknown}; it may hold {REASONS}"
        for name in ("reason", "selected_reason")
        if (unknown := sorted(set(np.unique(cells[name]).tolist()) - set(REASONS.values())))
    ]
    selected = cells["selected_layer"].values
    strays = sorted(set(selected[np.isfinite(selected)]) - set(cells["layer"].values.tolist()))
    if strays:
        problems.append(f"'selected_layer' holds {strays}, which are not layers of these cells")
    if wrong := sorted(set(map(str, cells["architecture"].values)) - set(ARCHITECTURES)):
        problems.append(f"'architecture' holds {wrong}; it may hold {', '.join(ARCHITECTURES)}")
    return problems + name_violations("training", sorted(set(map(str, cells["training"].values))))


def save_cells(cells: xr.Dataset, path: str | Path) -> str:
    """Check the cells, write them whole or not at all, and return the SHA-256 of the content."""
    check_cells(cells)
    return netcdf.save(cells, path)


def open_cells(path: str | Path) -> xr.Dataset:
    """The cells in `path`, checked; an estimand they lack is added as NaN with `not_recorded`.

    Raises ValueError with every violation, FileNotFoundError.
    """
    cells = netcdf.load(path)
    check_cells(cells, what=str(path))
    return with_every_estimand(cells)


def with_every_estimand(cells: xr.Dataset) -> xr.Dataset:
    """The cells with every estimand of ESTIMAND_UNITS; `cells` itself if none is missing.

    Some are missing if they were not kept, or if an older steercube reduced the cube.
    """
    lacking = [name for name in ESTIMAND_UNITS if name not in cells.indexes["estimand"]]
    if not lacking:
        return cells
    grown = cells.reindex(
        estimand=[*cells.indexes["estimand"], *lacking],
        fill_value={
            **dict.fromkeys(("reason", "selected_reason"), REASONS["not_recorded"]),
            "estimand_units": "",
        },
    )
    units = [*cells["estimand_units"].values, *(ESTIMAND_UNITS[name] for name in lacking)]
    units_variable = ("estimand", np.array(units, dtype=str), cells["estimand_units"].attrs)
    return grown.assign_coords(estimand_units=units_variable)


def unrecorded_estimands(cells: xr.Dataset) -> list[str]:
    """The estimands that `with_every_estimand` added."""
    recorded = (cells["reason"] != REASONS["not_recorded"]).any(CELL)
    return [str(name) for name in cells["estimand"].values[~recorded.values]]


def compare_cells(
    new: xr.Dataset, old: xr.Dataset, *, rtol: float = 1e-6, atol: float = 1e-9
) -> list[str]:
    """Variables in which two sets of cells differ beyond rounding, one line each.

    The tolerance only allows for another processor's order of summation. Fits of single items may
    differ by OF_OPTIMISERS, because an optimiser or a sampler made them; their reports are ignored.
    """
    names = (set(new.variables) | set(old.variables)) - set(_REPORTS)
    lines = []
    for name in sorted(map(str, names)):
        if name not in new.variables or name not in old.variables:
            lines.append(f"{name}: only in the {'new' if name in new.variables else 'old'} cells")
            continue
        a, b = new[name], old[name]
        if a.dims != b.dims or a.shape != b.shape:
            lines.append(f"{name}: {dict(a.sizes)} now, {dict(b.sizes)} before")
        elif a.dtype.kind == "f":
            relative = OF_OPTIMISERS if str(name) in ITEM_FIT_VARIABLES else rtol
            differs = ~np.isclose(a.values, b.values, rtol=relative, atol=atol, equal_nan=True)
            if differs.any():
                largest = np.nanmax(np.abs(a.values - b.values)[differs], initial=0.0)
                lines.append(f"{name}: {differs.sum()} value(s) differ, by up to {largest:.3g}")
        elif (a.values != b.values).any():
            lines.append(f"{name}: {int((a.values != b.values).sum())} value(s) differ")
    return lines


def summarise_cells(cells: xr.Dataset) -> str:
    """Readable summary: Cohen's d at the best layer of every model and concept."""
    table = cells["selected_estimate"].sel(estimand="cohens_d").to_pandas().round(2)
    return (
        f"{cells.attrs.get('title', 'Cells')}\n"
        f"  {cells.attrs['n_resamples']} resamples, seed {cells.attrs['seed']}, "
        f"{cells.attrs['confidence_level']:.0%} intervals, {cells.sizes['estimand']} estimands\n\n"
        "  Cohen's d at the best layer\n\n" + table.T.to_string(na_rep="-")
    )

"""The cells: the statistics of every (model, concept, layer) of a cube, without a sample.

Stage one (`steercube.analysis.per_cell.reduce`) makes them from a cube; stage two (tables, claims,
figures) reads them and nothing else. They are small and hold no item's text or value (but the id of
the item that moves an effect most), so a repository can publish them even for a sweep whose samples
it may not redistribute.

Cells are grids, one for each measure (`cells["logit_diff"]`) and one for each family of other
directions (`cells["logit_diff/random"]`), and the tables in TABLES; a file holds them as that of a
cube does. `view` puts one measure and all tables into a single Dataset, which stage two works with.

The dimension `estimand` holds all estimands (`view["estimate"].sel(estimand="cohens_d")`); each is
defined by the function of its name in `steercube.analysis.per_cell.estimands`. Variables that
begin with `selected_` are at the layer with the largest delta of the measure `layer_by`.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from steercube import netcdf
from steercube.contract import (
    ARCHITECTURES,
    BOUNDS,
    DEPTH,
    LABELS,
    MODEL_VARIABLES,
    ROUNDING,
    VECTOR_VARIABLES,
    VECTORS,
    own_name,
)
from steercube.cube import out_of_bounds
from steercube.labels import spread, with_depth
from steercube.measures import (
    CELL,
    ESTIMAND_UNITS,
    GENERATION_MATCH,
    GENERATION_RATE,
    LOGIT_DIFF,
    NEEDED_ESTIMANDS,
    PUBLISHED,
    READ,
    RECEIPTS,
    measure_of,
)
from steercube.schema import (
    Grids,
    Variable,
    attribute_violations,
    group_violations,
    has_version,
    name_violations,
    raise_if_any,
    require_version,
    structure_violations,
)

__all__ = [
    "Cells",
    "as_cells",
    "check_cells",
    "compare_cells",
    "compared_strengths",
    "open_cells",
    "save_cells",
]

SCHEMA_VERSION = 2
REMEDY = "make it again from its cube with `steercube analyze`"
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
    "no_selection": 11,
}
"""Why a statistic or its interval is NaN; `unstable`: it is undefined in over 1% of resamples;
`not_recorded`: the cells in the file lack its estimand; `no_selection`: the measure that selects
the layer lacks the items, or every layer, of this one."""
PAIR = ("estimand", "model", "concept")
BETWEEN_MODELS = ("estimand", "concept", "model", "model_other")

OF_CONCEPTS = {
    "n_items": Variable(("concept",), "i", "number of items", "1"),
    "n_valid_items": Variable(("concept",), "i", "number of valid items", "1"),
    "estimand_units": Variable(("estimand",), "U", "units of each estimand"),
}
COORDINATES = MODEL_VARIABLES | {"depth": DEPTH} | OF_CONCEPTS
LAYER_VARIABLES = {
    "estimate": Variable(("estimand", *CELL), "f", "estimate"),
    "standard_error": Variable(("estimand", *CELL), "f", "its standard error over items"),
    "reason": Variable(("estimand", *CELL), "i", "why it is NaN", flags=REASONS, dtype="int8"),
    "mean": Variable((*CELL, "strength"), "f", "mean over items", "nat"),
    "sd": Variable((*CELL, "strength"), "f", "standard deviation over items", "nat"),
    "correlation": Variable(
        (*CELL, "strength", "strength_other"), "f", "correlation over items", "1", dtype="float32"
    ),
    "quantiles": Variable(
        (*CELL, "strength", "quantile"),
        "f",
        "quantiles over items",
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
    "selected_influence": Variable(
        ("model", "concept"),
        "f",
        "change of Cohen's d at the selected layer without the item that changes it most",
        "1",
        required=False,
    ),
    "selected_influential_item": Variable(
        ("model", "concept"), "U", "id of that item", required=False
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
RATE_VARIABLES = {
    "generation_rate": Variable(
        (*CELL, "strength"), "f", GENERATION_RATE.words, "1", required=False
    ),
    **GENERATION_RATE.columns,
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
        "best_response_error": "error of the largest delta over items",
        "item_r": "r over items, within letters, of the logits' shift with the answers' change",
        "item_r_layer": "layer with the largest delta of the logits over the items with responses",
        "n_items_both": "items whose answers at both strengths are valid there",
        "n_items_changed": "of these, items whose answer changes",
    }.items()
}
DISTINCT_RESPONSES = "n_distinct_responses"
READINGS = PUBLISHED, READ
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
DIRECTION_VARIABLES = {
    "other_estimate": Variable(
        ("direction", "estimand", *CELL),
        "f",
        "estimate for a direction that is not the concept's",
        required=False,
    ),
    "other_standard_error": Variable(
        ("direction", "estimand", *CELL),
        "f",
        "its standard error over items",
        required=False,
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
    "added_over_residual": RECEIPTS["added_over_residual"],
    "generation_logit_apart": GENERATION_MATCH.columns["generation_logit_apart"],
}
"""Variables copied unchanged from the cube."""
VARIABLES = (
    COORDINATES
    | LAYER_VARIABLES
    | SELECTED_VARIABLES
    | GENERATION_VARIABLES
    | CURVE_VARIABLES
    | READING_VARIABLES
    | DIRECTION_VARIABLES
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


CHANGES, READERS, ANSWER_MODELS = "changes", "readers", "answer_models"
_TEXTS = {
    "measure": "the measure",
    "outcome": "whether answers are valid, or whether valid ones match",
    "reading": "who read the answers; empty where nobody had to",
    "concept": "the items that were asked",
    "direction": "the vector that was added; empty for the concept's own",
    "model": "the model",
}
CHANGE_VARIABLES = {
    name: Variable((CHANGES,), "U", meaning) for name, meaning in _TEXTS.items()
} | {
    name: Variable((CHANGES,), "f", meaning, units)
    for name, (meaning, units) in {
        "layer": ("steered layer; -1 where it is not recorded", ""),
        "low_strength": ("strength from which the rate changes", "1"),
        "high_strength": ("strength to which it changes", "1"),
        "n_items": ("items with an answer that counts", "1"),
        "n_low": ("answers that count at the low strength, an item's repeats as one", "1"),
        "n_high": ("the same at the high strength", "1"),
        "n_pairs": ("items with answers that count at both", "1"),
        "n_rise": ("of these, those that match more at the high strength", "1"),
        "n_fall": ("those that match less", "1"),
        "rate_low": ("rate at the low strength", "1"),
        "rate_high": ("rate at the high strength", "1"),
        "change": ("rate at the high strength minus that at the low one", "1"),
        "change_of_pairs": ("change on the items with answers at both alone", "1"),
        "change_low": ("lower end of its interval over items", "1"),
        "change_high": ("upper end of its interval over items", "1"),
        "shared_variance": (
            "mean covariance over items with other models' changes, without layers",
            "1",
        ),
    }.items()
}
"""Changes of the rates of binary measures, one after the other: `per_cell.changes`."""
READER_VARIABLES = {
    name: Variable((READERS,), "U", meaning)
    for name, meaning in {
        **{name: _TEXTS[name] for name in ("model", "concept", "direction")},
        "reading": "one reader",
        "reading_other": "another reader of the same answers",
        "letter": "letter of the matching answer",
        "read_as": "letter that the one read, or none",
        "read_as_other": "letter that the other read, or none",
    }.items()
} | {
    name: Variable((READERS,), "f", meaning, "1")
    for name, meaning in {
        "n": "answers that were read so",
        "n_items": "items that all answers of this model, concept and direction are to",
    }.items()
}
"""Confusion matrices of any two readers of the same answers: `per_cell.readers`."""
ANSWER_MODEL_VARIABLES = {
    name: Variable((ANSWER_MODELS,), "U", meaning)
    for name, meaning in {
        **{name: _TEXTS[name] for name in ("model", "concept", "outcome")},
        "reason": "why there is no fit",
    }.items()
} | {
    name: Variable((ANSWER_MODELS,), "f", meaning, "1")
    for name, meaning in {
        **{"first_layer": "first layer of the fit", "last_layer": "last layer of the fit"},
        **{"n_fitted_layers": "how many these are", "n_items": "its items"},
        "log_odds_ratio": "log odds ratio of the strengths for an item of no change of its own",
        "log_odds_ratio_low": "lower end of its interval over items",
        "log_odds_ratio_high": "upper end of its interval over items",
        "average_change": "change of the rate over items, by the model",
        "average_change_low": "lower end of its interval over items",
        "average_change_high": "upper end of its interval over items",
        "sd_item": "sd of items, log odds",
        "sd_item_change": "sd of items' changes, log odds",
        "change": "change of the rate at these layers, as counted",
        "change_low": "lower end of its interval over items, these layers taken as repeats",
        "change_high": "upper end of its interval over items",
    }.items()
}
"""Binomial mixed models of the answers near the best layer: `per_cell.answer_model`."""
RECORDS = {
    CHANGES: CHANGE_VARIABLES,
    READERS: READER_VARIABLES,
    ANSWER_MODELS: ANSWER_MODEL_VARIABLES,
}
"""Tables of records, which a view does not hold, and their variables."""

GENERATION, ITEM_FITTED = "generation", "item_fits"
TABLES: dict[str, Mapping[str, Variable]] = {
    GENERATION: GENERATION_VARIABLES | CURVE_VARIABLES | READING_VARIABLES,
    VECTORS: OF_THE_VECTOR,
    ITEM_FITTED: ITEM_FIT_VARIABLES,
}
"""The tables beside the grids, and the variables of each."""
OF_A_MEASURE = OF_CONCEPTS | LAYER_VARIABLES | SELECTED_VARIABLES
"""The variables of the grid of a measure."""
SELECTED_OVER_ITEMS = (
    *("selected_layer", "selected_estimate", "selected_optimism", "selected_covariance"),
    "estimate",
)
LABELLED = {
    "items": ({"all": "", "valid": "valid_"}, SELECTED_OVER_ITEMS),
    "reading": ({READ: "", PUBLISHED: "published_"}, ("response_match_rate",)),
}
"""Dimensions of the file that a view lacks: it has a variable for each label instead, named with
the beginning given here. By dimension: the beginnings by label, and the variables."""


class Cells(Grids):
    """Statistics by path: a measure, measure/family for other directions, or one of TABLES."""

    def __repr__(self) -> str:
        return summarise_cells(self)

    @property
    def measures(self) -> list[str]:
        """Names of the measures with cells of the concepts' own vectors, `logit_diff` first."""
        tables = {*TABLES, *RECORDS}
        names = [path for path in self if path not in tables and "/" not in path]
        return sorted(names, key=lambda name: (name != LOGIT_DIFF.name, name))

    @cached_property
    def facts(self) -> xr.Dataset:
        """Facts of the models, in the order of their size where the tables differ in them."""
        parts = [ds for ds in self.values() if "model" in ds.indexes]
        frames = [ds[list(MODEL_VARIABLES)].to_dataframe()[list(MODEL_VARIABLES)] for ds in parts]
        whole = xr.Dataset.from_dataframe(
            pd.concat(frames).loc[lambda frame: ~frame.index.duplicated()]
        )
        if any(not ds.indexes["model"].equals(parts[0].indexes["model"]) for ds in parts):
            whole = whole.sortby("n_params")
        return whole.assign(
            {name: whole[name].assign_attrs(v.attrs) for name, v in MODEL_VARIABLES.items()}
        )

    def view(self, measure: str = LOGIT_DIFF.name) -> xr.Dataset:
        """One dataset of a measure's cells, those of its other directions, and all tables.

        Its labels are those of all of them; values that one lacks are NaN, with a `reason`.
        Raises KeyError if the cells lack the measure.
        """
        tables = [_side_by_side(self[path]) for path in (measure, *TABLES) if path in self]
        others = [self[path] for path in self if path.startswith(f"{measure}/")]
        labels = {
            dim: _ordered(dim, [ds.indexes[dim] for ds in tables if dim in ds.indexes])
            for dim in dict.fromkeys(str(d) for ds in tables for d in ds.indexes)
        }
        labels["model"] = [m for m in self.facts["model"].values if m in set(labels["model"])]
        if "model_other" in labels:
            labels["model_other"] = labels["model"]
        if "strength_other" in labels:
            labels["strength_other"] = labels["strength"]
        if others:
            labels["direction"] = [d for ds in others for d in ds["direction"].values]
        whole = xr.Dataset(coords=labels).assign_attrs(self.attrs)
        for name, variable in VARIABLES.items():
            if name in DIRECTION_VARIABLES and all(name in ds for ds in others) and others:
                whole[name] = spread(
                    xr.concat(others, "direction", join="outer"), name, variable, whole
                )
            for ds in tables:
                if name in ds:
                    whole[name] = spread(ds, name, variable, whole).assign_attrs(variable.attrs)
        whole["estimate"].attrs = self[measure]["estimate"].attrs
        for name in ("mean", "sd", "quantiles"):
            if name in whole:
                whole[name].attrs["units"] = whole["estimate"].attrs.get("units", "nat")
        facts = self.facts.sel(model=labels["model"])
        whole = whole.assign_coords({name: facts[name].variable for name in MODEL_VARIABLES})
        return _explained(with_depth(whole).set_coords([n for n in OF_CONCEPTS if n in whole]))


def compared_strengths(view: xr.Dataset) -> tuple[float, float]:
    """The strengths, low and high, that the effects of a view of one measure compare."""
    measure = measure_of("estimate", view["estimate"].attrs)
    return measure.ends(view["strength"].values.tolist())


def _ordered(dim: str, labels: list[pd.Index]) -> list[Any]:
    """All labels of some tables: in their order where they agree, else sorted."""
    if all(index.equals(labels[0]) for index in labels):
        return list(labels[0])
    return sorted(set().union(*map(set, labels)))


def _side_by_side(table: xr.Dataset) -> xr.Dataset:
    """The table with a variable for each label of a dimension in LABELLED."""
    for dim, (beginnings, names) in LABELLED.items():
        for name in names if dim in table.dims else ():
            if name in table and dim in table[name].dims:
                parts = {
                    f"{beginning}{name}": table[name].sel({dim: label}, drop=True)
                    for label, beginning in beginnings.items()
                    if label in table[dim].values
                }
                table = table.drop_vars(name).assign(parts)
    return table.drop_vars("items", errors="ignore")


def _explained(view: xr.Dataset) -> xr.Dataset:
    """The view with `reason` not_applicable, and selection_frequency 0, where there is no cell."""
    if "reason" not in view:
        return view
    reason, frequency = view["reason"], view["selection_frequency"]
    lacking = (view["layer"] >= view["n_layers"]) & (reason == REASONS["not_run"])
    explained = reason.where(~lacking, REASONS["not_applicable"]).transpose(*reason.dims)
    return view.assign(
        reason=explained.astype("int8").assign_attrs(reason.attrs),
        selection_frequency=frequency.fillna(0.0).assign_attrs(frequency.attrs),
    )


def cells_of(flat: xr.Dataset, measure: str = LOGIT_DIFF.name) -> Cells:
    """The cells in a view of `measure`; each table keeps only the labels at which it has values."""
    tables = {}
    for path, variables in {measure: OF_A_MEASURE, **TABLES}.items():
        held = [name for name in variables if name in flat.variables]
        if not set(held) - OF_CONCEPTS.keys():
            continue
        table = flat[held].reset_coords()
        table = _stacked(_own_labels(table[held], path))
        tables[path] = _with_facts(table, flat[list(MODEL_VARIABLES)])
    return Cells(tables, flat.attrs)


def _own_labels(table: xr.Dataset, path: str) -> xr.Dataset:
    """The table without the models, concepts and layers at which it has no value."""
    needed = [d for d in table.indexes if any(d in table[n].dims for n in table.data_vars)]
    table = table.drop_vars([d for d in table.indexes if d not in needed])
    if path == ITEM_FITTED:
        return table
    masks = [table[n].notnull() for n in table.data_vars if table[n].dtype.kind == "f"]
    if "reason" in table:
        unrun = table["reason"].isin([REASONS["not_run"], REASONS["not_applicable"]])
        masks = [~unrun.all("estimand")]
    for dim in ("model", "concept", "layer"):
        if dim in table.dims:
            held = [m.any([d for d in m.dims if d != dim]) for m in masks if dim in m.dims]
            where = np.flatnonzero(np.any(held, axis=0))
            table = table.isel({dim: where}) if len(where) else table
    if "model_other" in table.dims:
        table = table.sel(model_other=table["model"].values)
    return table


def _stacked(table: xr.Dataset) -> xr.Dataset:
    """The table with the dimensions in LABELLED; the inverse of `_side_by_side`."""
    for dim, (beginnings, names) in LABELLED.items():
        for name in names:
            parts = [f"{beginning}{name}" for beginning in beginnings.values()]
            if all(part in table for part in parts):
                joint = xr.concat([table[part] for part in parts], dim=dim)
                joint = joint.assign_coords({dim: list(beginnings)}).assign_attrs(table[name].attrs)
                table = table.drop_vars(parts).assign({name: joint})
    return table


def as_cells(given: Cells | xr.Dataset) -> Cells:
    """Cells unchanged; a view of one measure as the cells that it was made from."""
    if isinstance(given, Cells):
        return given
    return cells_of(given, str(given["estimate"].attrs.get("measure", LOGIT_DIFF.name)))


def check_cells(cells: Cells | xr.Dataset, *, what: str = "the cells") -> None:
    """Raise one ValueError that lists every rule of the contract that `cells` breaks, if any.

    `cells` may be a view of one measure; `what` names them in the message.
    """
    require_version(
        cells,
        "cells_version",
        SCHEMA_VERSION,
        what=what,
        remedy=REMEDY,
    )
    problems = attribute_violations(cells.attrs, ATTRIBUTES)
    if isinstance(cells, xr.Dataset):
        problems += _view_problems(cells)
    else:
        if not set(cells) - {VECTORS, ITEM_FITTED}:
            problems.append("they hold no measure")
        unlike = [f"{path}: {line}" for path in cells for line in _table_problems(path, cells)]
        problems += unlike
        for measure in cells.measures if not unlike else ():
            problems += [f"{measure}: {line}" for line in _view_problems(cells.view(measure))]
    raise_if_any(problems, what=what)


def _table_problems(path: str, cells: Cells) -> list[str]:
    """Violations of one table that would keep `view` from working: names, dims and kinds."""
    if path in RECORDS:
        lines = structure_violations(cells[path], RECORDS[path], index_dims={})
        return lines or _record_problems(cells[path], RECORDS[path], cells.facts["model"].values)
    table = _side_by_side(cells[path])
    held = {name: replace(v, required=False) for name, v in VARIABLES.items() if name in table}
    if path in cells.measures:
        held |= {"estimate": VARIABLES["estimate"]}
    kinds = {dim: LABEL_KINDS[dim] for dim in CELL if dim in table.dims}
    return structure_violations(table, held, index_dims=kinds)


COUNTS = ("n", "n_items", "n_low", "n_high", "n_pairs", "n_rise", "n_fall")
WITHIN = {
    **dict.fromkeys(COUNTS, (0.0, np.inf)),
    **dict.fromkeys(("rate_low", "rate_high"), (0.0, 1.0)),
    **dict.fromkeys(("change", "change_low", "change_high"), (-1.0, 1.0)),
}
"""Smallest and largest value of numbers in a table of records."""
NEVER_MISSING = ("layer", "low_strength", "high_strength", "n", "n_items", "n_rise", "n_fall")


def _record_problems(
    table: xr.Dataset, variables: Mapping[str, Variable], models: np.ndarray
) -> list[str]:
    """Missing numbers, numbers out of bounds and labels that mean nothing in a table of records."""
    problems = [
        f"{name!r} is missing in {n} row(s)"
        for name in NEVER_MISSING
        if name in variables and (n := int(table[name].isnull().sum()))
    ]
    problems += out_of_bounds(
        (table[name], low - ROUNDING, high + ROUNDING)
        for name, (low, high) in WITHIN.items()
        if name in variables
    )
    letters = set(LETTERS_READ)
    known = {"model": set(map(str, models)), "read_as": letters, "read_as_other": letters}
    for name, labels in known.items():
        if name in variables and (strays := sorted(set(map(str, table[name].values)) - labels)):
            problems.append(f"{name!r} holds {strays[0]!r}; there are {', '.join(sorted(labels))}")
    return problems


def _view_problems(view: xr.Dataset) -> list[str]:
    problems = structure_violations(view, VARIABLES, index_dims=LABEL_KINDS)
    problems += [f"dimension {dim!r} is empty" for dim in CELL if view.sizes.get(dim) == 0]
    settings = {"confidence_level", "seed", "n_resamples"} <= set(view.attrs)
    return problems or (_value_problems(view) if settings else [])


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
    *("selection_frequency", "generation_rate", "response_match_rate", "response_valid_rate"),
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

NEEDED = {"estimand": NEEDED_ESTIMANDS, "quantile": (0.5,)}
"""Labels that the conclusions need."""
SAME_LABELS = {"model_other": "model", "strength_other": "strength"}


def _unmet_needs(cells: xr.Dataset) -> list[str]:
    """Missing labels that conclusions need, and values from which none can be drawn."""
    compare = measure_of("estimate", cells["estimate"].attrs).compare
    needed = NEEDED | ({} if isinstance(compare, str) else {"strength": compare})
    problems = [
        f"dimension {dim!r} has no label {label!r}"
        for dim, labels in needed.items()
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


def save_cells(cells: Cells | xr.Dataset, path: str | Path) -> str:
    """Check the cells, write them whole or not at all, and return the SHA-256 of the content."""
    check_cells(cells)
    return netcdf.save(groups_of(as_cells(cells)), path)


def groups_of(cells: Cells) -> dict[str, xr.Dataset]:
    """The groups of a file of cells: facts and attributes in the root, and one for each table."""
    facts = [*MODEL_VARIABLES, "depth"]
    tables = {
        path: table.drop_vars([] if path in RECORDS else facts, errors="ignore").drop_attrs(
            deep=False
        )
        for path, table in cells.items()
    }
    return {netcdf.ROOT: cells.facts.assign_attrs(cells.attrs), **tables}


def open_cells(path: str | Path) -> Cells:
    """The cells in `path`, in memory, verified and checked.

    A file of version 1 is read as the same cells in version 2. Raises FileNotFoundError, and
    ValueError that lists every rule of the contract that the cells break.
    """
    groups = netcdf.load_groups(path)
    root = groups.pop(netcdf.ROOT)
    if has_version(root, "cells_version", 1):
        from steercube.version_1 import cells_of_version_1

        cells = cells_of_version_1(root, what=str(path))
    else:
        require_version(root, "cells_version", SCHEMA_VERSION, what=str(path), remedy=REMEDY)
        problems = group_violations(root, groups, MODEL_VARIABLES, label_kinds=LABEL_KINDS)
        raise_if_any(problems, what=str(path))
        cells = Cells({name: _with_facts(ds, root) for name, ds in groups.items()}, root.attrs)
    check_cells(cells, what=str(path))
    return cells


def _with_facts(table: xr.Dataset, facts: xr.Dataset) -> xr.Dataset:
    """The table with the facts of its models and concepts, and the depth of its layers."""
    if "model" not in table.indexes:
        return table
    facts = facts.sel(model=table.indexes["model"])
    table = table.assign_coords({name: facts[name].variable for name in MODEL_VARIABLES})
    table = with_depth(table)
    return table.set_coords([name for name in OF_CONCEPTS if name in table])


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
    new: Cells | xr.Dataset,
    old: Cells | xr.Dataset,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
) -> list[str]:
    """Variables in which two sets of cells, or views, differ beyond rounding, one line each.

    The tolerance only allows for another processor's order of summation. Fits of single items may
    differ by OF_OPTIMISERS, because an optimiser or a sampler made them; their reports are ignored.
    """
    if isinstance(new, xr.Dataset) and isinstance(old, xr.Dataset):
        return _compare_views(new, old, rtol=rtol, atol=atol)
    new, old = as_cells(new), as_cells(old)
    lines = [
        f"{measure}: only in the {'new' if measure in new else 'old'} cells"
        for measure in sorted(set(new.measures) ^ set(old.measures))
    ]
    for path in RECORDS:
        if path in new or path in old:
            lines += [f"{path}: {line}" for line in _compare_records(new, old, path, rtol, atol)]
    shown = {*new.measures} & {*old.measures}
    for path in sorted({p for cells in (new, old) for p in cells if "/" in p}):
        if path not in new or path not in old:
            lines.append(f"{path}: only in the {'new' if path in new else 'old'} cells")
        elif path.partition("/")[0] not in shown:
            found = _compare_views(new[path], old[path], rtol=rtol, atol=atol)
            lines += [f"{path}: {line}" for line in found]
    for measure in new.measures:
        if measure in old:
            found = _compare_views(new.view(measure), old.view(measure), rtol=rtol, atol=atol)
            lines += [f"{measure}: {line}" if len(new.measures) > 1 else line for line in found]
    return lines


def _compare_records(new: Cells, old: Cells, path: str, rtol: float, atol: float) -> list[str]:
    if not (path in new and path in old):
        return [f"only in the {'new' if path in new else 'old'} cells"]
    n_new, n_old = (len(cells[path][path]) for cells in (new, old))
    if n_new != n_old:
        return [f"{n_new} rows now, {n_old} before"]
    return _compare_views(new[path], old[path], rtol=rtol, atol=atol)


def _compare_views(new: xr.Dataset, old: xr.Dataset, *, rtol: float, atol: float) -> list[str]:
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


def summarise_cells(cells: Cells | xr.Dataset) -> str:
    """Readable summary: the effect at the best layer of every model and concept, by measure."""
    cells = as_cells(cells)
    lines = [
        f"{cells.attrs.get('title', 'Cells')}",
        f"  {cells.attrs['n_resamples']} resamples, seed {cells.attrs['seed']}, "
        f"{cells.attrs['confidence_level']:.0%} intervals",
    ]
    for measure in cells.measures:
        table = cells.view(measure)["selected_estimate"].sel(estimand="cohens_d").to_pandas()
        lines += [
            "",
            f"  {measure}: Cohen's d at the best layer",
            "",
            table.round(2).T.to_string(na_rep="-"),
        ]
    families = [path for path in cells if "/" in path]
    lines += [""] if families else []
    for path in families:
        lines.append(f"  {path}: {len(directions_of(cells[path], path))} direction(s)")
    return "\n".join(lines)


def record_table(path: str, rows: pd.DataFrame) -> xr.Dataset:
    """The rows of a table in RECORDS as a Dataset, its texts and numbers as the contract says."""
    return xr.Dataset(
        {
            name: (
                variable.dims,
                rows[name].to_numpy(dtype=str if variable.kind == "U" else float),
                variable.attrs,
            )
            for name, variable in RECORDS[path].items()
        }
    )


def samples_sha256(cells: Cells, measure: str) -> str:
    """SHA-256 of the means and sds of a measure's samples, whatever else the cells hold."""
    table = cells[measure]
    order = (*CELL, "strength")
    values = {name: (order, table[name].transpose(*order).values) for name in ("mean", "sd")}
    return netcdf.digest(xr.Dataset(values, {dim: table[dim].values for dim in order}))


def directions_of(table: xr.Dataset, path: str) -> list[str]:
    """Names of the directions in the cells of a family, without the concept's own vector."""
    own = own_name(path.partition("/")[2])
    return [d for d in map(str, table["direction"].values) if d != own]

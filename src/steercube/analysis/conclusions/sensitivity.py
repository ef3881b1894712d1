"""Does a headline hang on one model, one concept or a few bad items? Each recomputed without it."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import xarray as xr

from steercube.analysis.agreement.agreement import model_agreement
from steercube.analysis.agreement.generation import layer_curves
from steercube.analysis.over_models.concordance import concept_share
from steercube.analysis.over_models.contrasts import scale_slope, training_gap
from steercube.analysis.over_models.depth import depth_difference
from steercube.analysis.over_models.means import concept_mean, mean_over_models, swept_models
from steercube.estimate import Estimate

Headline = Callable[[xr.Dataset], Estimate]


def headlines(cells: xr.Dataset) -> dict[str, Headline]:
    """The statistics over all concepts that a study's conclusions rest on, by name."""
    return {
        "mean cohens_d": partial(mean_over_models, estimand="cohens_d"),
        "training gap in cohens_d": partial(training_gap, estimand="cohens_d"),
        "training gap in within_letter_d": partial(training_gap, estimand="within_letter_d"),
        "training gap in delta": partial(training_gap, estimand="delta"),
        "depth difference": depth_difference,
        "concept share in cohens_d": partial(concept_share, estimand="cohens_d"),
    }


def headlines_of_concept(cells: xr.Dataset, concept: str) -> dict[str, Headline]:
    """Those about one concept, which no other concept can change."""
    found: dict[str, Headline] = {
        f"cohens_d of {concept}": partial(concept_mean, estimand="cohens_d", concept=concept),
        f"scale slope of {concept}": partial(scale_slope, estimand="cohens_d", concept=concept),
    }
    if layer_curves(cells, concept=concept, models=None):
        found[f"agreement on {concept}"] = partial(model_agreement, concept=concept)
    return found


def without(cells: xr.Dataset) -> Iterator[tuple[str, str, xr.Dataset]]:
    """(kind, what, cells without it) for nothing, each model, each concept, and invalid items."""
    yield "nothing", "", cells
    for model in swept_models(cells):
        others = [m for m in cells["model"].values if m != model]
        if others:
            yield "model", model, cells.sel(model=others, model_other=others)
    for concept in map(str, cells["concept"].values):
        others = [c for c in cells["concept"].values if c != concept]
        if others:
            yield "concept", concept, cells.sel(concept=others)
    if (cells["n_valid_items"] < cells["n_items"]).any():
        yield "invalid items", "", without_invalid_items(cells)


def without_invalid_items(cells: xr.Dataset) -> xr.Dataset:
    """Cells whose best layers and effects use the valid items alone.

    Cells made before these kept the error of valid items have no interval over items where some
    items are invalid, and those of the depths are the errors of all items.
    """
    all_valid = cells["n_valid_items"] == cells["n_items"]
    kept = {
        f"selected_{name}": cells[f"valid_selected_{name}"]
        if f"valid_selected_{name}" in cells
        else cells[f"selected_{name}"].where(all_valid)
        for name in ("layer", "estimate", "optimism", "covariance")
    }
    if "valid_estimate" in cells:
        kept["estimate"] = cells["estimate"].where(all_valid, cells["valid_estimate"])
    return cells.assign(kept | {"n_items": cells["n_valid_items"]})


def sensitivity(cells: xr.Dataset) -> list[tuple[dict[str, str], Estimate]]:
    """Every headline with every part left out in turn, labels and estimate; the whole first."""
    every = headlines(cells)
    of_concepts: dict[str, Headline] = {}
    for concept in map(str, cells["concept"].values):
        of_concepts |= headlines_of_concept(cells, concept)
    rows = []
    for kind, what, part in without(cells):
        for name, headline in (every if kind == "concept" else every | of_concepts).items():
            estimate = headline(part)
            if kind == "nothing" or np.isfinite(estimate.value):
                rows.append(({"headline": name, "without": kind, "left_out": what}, estimate))
    return rows

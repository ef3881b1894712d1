r"""The item-level model at the selected layers, which needs the samples of the cube.

    y_mci = shift_mci / sd_mc = mu + b_contrast x + b_scale log10(params)
            + u_model + v_concept + w_cell + item_ci + residual,

where shift is logit_diff at +1 minus at -1 and sd_mc the pooled sd of its cell, so that the mean of
a cell is its Cohen's d. Items are crossed with models, as an item may be hard for all of them. This
checks the model of cells, in which the covariance over items is known and the fit exact; here it is
estimated, with one residual sd for all cells and the cells' own sds held fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from steercube.analysis.over_models.cell_effects import predictors_of
from steercube.analysis.view import Study


@dataclass(frozen=True)
class ItemShifts:
    """Standardised shifts, one row per item of a cell, with the groups and predictors of each row.

    `value` (row,), minus the optimism of its cell; `index` by sd name (row,), numbered from 0
    without gaps; `predictors` by term (row,), centred over models.
    """

    value: np.ndarray
    index: dict[str, np.ndarray]
    predictors: dict[str, np.ndarray]
    n_models: int

    def design(self, terms: Sequence[str]) -> np.ndarray:
        """Intercept and terms of each row, dims (row, coefficient)."""
        return np.column_stack([np.ones(len(self.value)), *(self.predictors[t] for t in terms)])


def item_shifts(grid: xr.Dataset, study: Study) -> ItemShifts:
    """Every item of every cell at its selected layer; cells without an optimism are left out.

    `grid` holds the samples that the study's cells were reduced from.
    """
    cells, measure = study.cells, study.measure
    ends = measure.ends(grid["strength"].values.tolist())
    holding = study.contrast.holding if study.contrast else "n_params"
    predictors = predictors_of(study, study.compared, holding)
    rows: list[tuple[np.ndarray, int, int, np.ndarray]] = []
    first_item = 0
    for c, concept in enumerate(study.concepts):
        present = np.flatnonzero(grid["item_id"].sel(concept=concept) != "")
        of_concept = grid[measure.name].sel(concept=concept).isel(sample=present)
        for m, model in enumerate(study.compared):
            cell = {"model": model, "concept": concept}
            optimism = float(cells["selected_optimism"].sel(cell | {"estimand": "cohens_d"}))
            if np.isfinite(optimism):
                at = of_concept.sel(model=model, layer=float(cells["selected_layer"].sel(cell)))
                low, high = (at.sel(strength=s).values.astype(float) for s in ends)
                known = np.isfinite(low) & np.isfinite(high)
                low, high = low[known], high[known]
                pooled = np.sqrt((low.var(ddof=1) + high.var(ddof=1)) / 2)
                shift = (high - low) / pooled - optimism
                rows.append((shift, m, c, first_item + np.flatnonzero(known)))
        first_item += len(present)
    sizes = [len(shift) for shift, *_ in rows]
    model_of = np.repeat([m for _, m, _, _ in rows], sizes)
    groups: dict[str, np.ndarray] = {
        "sd_model": model_of,
        "sd_concept": np.repeat([c for _, _, c, _ in rows], sizes),
        "sd_cell": np.repeat(np.arange(len(rows)), sizes),
        "sd_item": np.concatenate([item for *_, item in rows]),
    }
    return ItemShifts(
        value=np.concatenate([shift for shift, *_ in rows]),
        index={name: np.unique(group, return_inverse=True)[1] for name, group in groups.items()},
        predictors={term: values[model_of] for term, values in predictors.items()},
        n_models=len(np.unique(model_of)),
    )

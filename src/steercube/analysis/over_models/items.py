r"""The model of single items at the selected layers: what only the cube can say.

    y_mci = shift_mci / sd_mc = mu + b_training x + b_scale log10(params)
            + u_model + v_concept + w_cell + item_ci + residual,

shift being logit_diff at +1 minus at -1 and sd_mc the pooled sd of its cell, so that the mean of a
cell is its Cohen's d. Items cross with models: the same item is hard for all of them. It checks the
model of cells from another side: there the items' covariance is known and the model exact, here it
is estimated, with one residual sd for all cells and the cells' own sds held fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from steercube.analysis.over_models.posterior import compared_models, predictors_of
from steercube.analysis.per_cell.estimands import NEGATIVE, POSITIVE


@dataclass(frozen=True)
class ItemShifts:
    """One row an item of a cell: standardised shift, and the groups and predictors of the row.

    `value` (row,), less the optimism of its cell; `index` by sd name (row,), numbered from 0
    without a gap; `predictors` by term (row,), centred over models.
    """

    value: np.ndarray
    index: dict[str, np.ndarray]
    predictors: dict[str, np.ndarray]
    n_models: int

    def design(self, terms: Sequence[str]) -> np.ndarray:
        """Intercept and terms of each row, dims (row, coefficient)."""
        return np.column_stack([np.ones(len(self.value)), *(self.predictors[t] for t in terms)])


def item_shifts(cube: xr.Dataset, cells: xr.Dataset) -> ItemShifts:
    """Every item of every cell at its selected layer; cells without an optimism are left out."""
    models, concepts = compared_models(cells), [str(c) for c in cells["concept"].values]
    predictors = predictors_of(cells, models)
    rows: list[tuple[np.ndarray, int, int, np.ndarray]] = []
    first_item = 0
    for c, name in enumerate(concepts):
        of_concept = cube.sel(concept=name).isel(
            sample=np.flatnonzero(cube["item_id"].sel(concept=name) != "")
        )
        n_items = of_concept.sizes["sample"]
        for m, name_of_model in enumerate(models):
            cell = {"model": name_of_model, "concept": name}
            optimism = float(cells["selected_optimism"].sel(cell | {"estimand": "cohens_d"}))
            if np.isfinite(optimism):
                layer = float(cells["selected_layer"].sel(cell))
                at = of_concept["logit_diff"].sel(model=name_of_model, layer=layer)
                low, high = (at.sel(strength=s).values.astype(float) for s in (NEGATIVE, POSITIVE))
                pooled = np.sqrt((low.var(ddof=1) + high.var(ddof=1)) / 2)
                shift = (high - low) / pooled - optimism
                rows.append((shift, m, c, first_item + np.arange(n_items)))
        first_item += n_items
    sizes = [len(shift) for shift, *_ in rows]
    model = np.repeat([m for _, m, _, _ in rows], sizes)
    groups: dict[str, np.ndarray] = {
        "sd_model": model,
        "sd_concept": np.repeat([c for _, _, c, _ in rows], sizes),
        "sd_cell": np.repeat(np.arange(len(rows)), sizes),
        "sd_item": np.concatenate([item for *_, item in rows]),
    }
    return ItemShifts(
        value=np.concatenate([shift for shift, *_ in rows]),
        index={name: np.unique(group, return_inverse=True)[1] for name, group in groups.items()},
        predictors={term: values[model] for term, values in predictors.items()},
        n_models=len(np.unique(model)),
    )

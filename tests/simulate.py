"""Sweeps drawn from the study's own cells as the truth, with its shape.

Number of items, layers, means, standard deviations, the correlation of the two strengths, and how
much of the spread is a preference for a letter are the study's; items are drawn anew by
`steercube.analysis.simulated.sweeps.draw`.
"""

import numpy as np
import xarray as xr

from steercube.analysis.simulated.sweeps import Truth


def truths(cells: xr.Dataset) -> dict[str, dict[str, Truth]]:
    """The truth of every (concept, model) that was swept."""
    found: dict[str, dict[str, Truth]] = {}
    for concept in cells["concept"].values:
        for model in cells["model"].values:
            cell = cells.sel(concept=concept, model=model)
            if np.isfinite(cell["selected_layer"]):
                found.setdefault(str(concept), {})[str(model)] = _truth(cell)
    return found


def _truth(cell: xr.Dataset) -> Truth:
    cell = cell.isel(layer=np.flatnonzero(cell["mean"].sel(strength=1).notnull()))
    estimate = cell["estimate"]
    total = estimate.sel(estimand="delta") / estimate.sel(estimand="cohens_d")
    within = estimate.sel(estimand="content_shift") / estimate.sel(estimand="within_letter_d")
    letter = np.sqrt(np.clip(1 - (within / total) ** 2, 0, 0.95))
    return Truth(
        positive=cell["mean"].sel(strength=1).values,
        negative=cell["mean"].sel(strength=-1).values,
        sd_positive=cell["sd"].sel(strength=1).values,
        sd_negative=cell["sd"].sel(strength=-1).values,
        correlation=cell["correlation"].sel(strength=1, strength_other=-1).values,
        letter=letter.values,
    )

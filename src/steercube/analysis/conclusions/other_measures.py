"""The table of the measures other than the one that the conclusions are about."""

from typing import Any

import numpy as np

from steercube.analysis.view import Study
from steercube.cells import REASONS
from steercube.estimate import Estimate
from steercube.measures import measure_of

SHOWN = ("delta", "cohens_d")


def other_measures(study: Study) -> list[tuple[dict[str, Any], Estimate]]:
    """The effect of the concept's vector in every other measure, for each model and concept.

    A row holds labels and an estimate with its interval over items, in `units`. The effect is at
    the layer selected by the measure `layer_by` in the record, often that of the conclusions, which
    shows what the same vector at the same layer does to something else. `compared` are the
    strengths compared, in words.
    """
    rows = []
    for name in study.others:
        cells = study.others[name]
        measure = measure_of(name, cells["estimate"].attrs)
        for estimand in SHOWN:
            of_estimand = cells.sel(estimand=estimand)
            for model in map(str, cells["model"].values):
                for concept in map(str, cells["concept"].values):
                    cell = of_estimand.sel(model=model, concept=concept)
                    labels = {
                        "measure": name,
                        "model": model,
                        "concept": concept,
                        "estimand": estimand,
                        "layer": float(cell["selected_layer"]),
                        "layer_by": measure.layer_by or name,
                        "compared": measure.compared,
                        "units": str(cell["estimand_units"].item()),
                    }
                    rows.append((labels, _selected(cell)))
    return rows


def _selected(cell: Any) -> Estimate:
    value, optimism = float(cell["selected_estimate"]), float(cell["selected_optimism"])
    if not np.isfinite(value):
        reasons = {code: name for name, code in REASONS.items()}
        return Estimate.undefined(reasons[int(cell["selected_reason"])].replace("_", " "))
    return Estimate(
        value=value,
        low=float(cell["selected_low"]),
        high=float(cell["selected_high"]),
        over="items",
        n=int(cell["n_items"]),
        corrected=value - optimism,
    )

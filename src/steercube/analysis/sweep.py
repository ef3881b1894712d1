"""What was swept: the models, the concepts, and how many of everything."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.averages import HIGH, LOW, best_effects, swept_models
from steercube.cells import CONTROL_VARIABLES

FACTS = ("family", "training", "architecture", "n_params", "n_active_params", "n_layers")


def about_models(cells: xr.Dataset) -> pd.DataFrame:
    """The swept models in order of size, their facts, and how many layers and concepts were run."""
    run = cells["estimate"].sel(estimand="delta").notnull()
    rows = []
    for model in swept_models(cells):
        of, ran = cells.sel(model=model), run.sel(model=model)
        rows.append(
            {"model": model}
            | {name: of[name].item() for name in FACTS}
            | {
                "layers_swept": int(ran.any("concept").sum()),
                "concepts_run": int(ran.any("layer").sum()),
            }
        )
    return pd.DataFrame(rows)


def about_concepts(cells: xr.Dataset) -> pd.DataFrame:
    """Concepts with their items, those of them with a scored answer, and the models that ran it."""
    ran = best_effects(cells, "delta").notnull().sum("model")
    return pd.DataFrame(
        {
            "concept": cells["concept"].values,
            "n_items": cells["n_items"].values,
            "n_valid_items": cells["n_valid_items"].values,
            "models": ran.values,
        }
    )


def counts(cells: xr.Dataset) -> pd.DataFrame:
    """How many of what there is, by name: whole numbers that a text needs."""
    d = best_effects(cells, "cohens_d")
    low = best_effects(cells, "cohens_d", field="selected_low")
    run = cells["estimate"].sel(estimand="delta").notnull()
    training = cells["training"].sel(model=swept_models(cells)).values
    depth = cells["depth"].where(run.any("concept")).sel(model=swept_models(cells))
    found: dict[str, Any] = {
        "models": len(training),
        "concepts": int(d.notnull().any("model").sum()),
        "pairs": int(d.notnull().sum()),
        "pairs not run": int(d.isnull().sum()),
        "pairs with an interval above zero": int((low > 0).sum()),
        "items": int(cells["n_items"].sum()),
        "invalid items": int((cells["n_items"] - cells["n_valid_items"]).sum()),
        "layers swept": int(run.any("concept").sum()),
        "effects": int(run.sum()),
        "resamples": int(cells.attrs["n_resamples"]),
        "confidence level": float(cells.attrs["confidence_level"]),
        "shallowest swept depth": float(depth.min()),
        "deepest swept depth": float(depth.max()),
        "fewest items": int(cells["n_items"].min()),
        "most items": int(cells["n_items"].max()),
        "smallest model": float(cells["n_params"].sel(model=swept_models(cells)).min()),
        "largest model": float(cells["n_params"].sel(model=swept_models(cells)).max()),
        "families": len(set(cells["family"].sel(model=swept_models(cells)).values)),
        "largest effect": float(d.max()),
        "smallest effect": float(d.min()),
    }
    found |= {f"{name} models": int(np.sum(training == name)) for name in (LOW, HIGH)}
    if "n_responses" in cells:
        found["responses"] = int(cells["n_responses"].sum())
    found["control directions"] = sum(name in cells for name in CONTROL_VARIABLES)
    return pd.DataFrame({"statistic": list(found), "value": list(found.values())})


def counts_of_claims(claims: pd.DataFrame) -> pd.DataFrame:
    """How many claims there are, match to the printed digits, and stand without an objection."""
    found = {
        "claims": len(claims),
        "claims that match": int(claims["matches"].sum()),
        "claims without objection": int((claims["verdict"] == "reproduced").sum()),
    }
    return pd.DataFrame({"statistic": list(found), "value": list(found.values())})

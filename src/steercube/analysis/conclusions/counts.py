"""What was swept: the models, the concepts, and how many of everything."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.conclusions.selection import LAST_BLOCK, MORE_OTHER_WAY, OPEN, OTHER_WAY
from steercube.analysis.over_models.means import HIGH, LOW, best_effects, swept_models
from steercube.analysis.per_cell.steers import UNKNOWN, YES
from steercube.cells import CONTROL_VARIABLES, DISTINCT_RESPONSES

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
    """Concepts, their items, how many of these are of two scored choices, and who ran them."""
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
    optimism = best_effects(cells, "cohens_d", field="selected_optimism")
    run = cells["estimate"].sel(estimand="delta").notnull()
    training = cells["training"].sel(model=swept_models(cells)).values
    depth = cells["depth"].where(run.any("concept")).sel(model=swept_models(cells))
    found: dict[str, Any] = {
        "models": len(training),
        "concepts": int(d.notnull().any("model").sum()),
        "pairs": int(d.notnull().sum()),
        "pairs not run": int(d.isnull().sum()),
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
        "largest effect, corrected": float((d - optimism).max()),
        "smallest effect, corrected": float((d - optimism).min()),
    }
    found |= {f"{name} models": int(np.sum(training == name)) for name in (LOW, HIGH)}
    if "generation_rate" in cells:
        rate = cells["generation_rate"].sel(model=swept_models(cells))
        answered = rate.notnull().any(("layer", "strength"))
        found["pairs with generated answers"] = int((answered & d.notnull()).sum())
    if DISTINCT_RESPONSES in cells:
        found["responses"] = int(cells[DISTINCT_RESPONSES].sum())
    for name in CONTROL_VARIABLES:
        found[f"{name.removeprefix('estimate_')} direction"] = int(name in cells)
    return pd.DataFrame({"statistic": list(found), "value": list(found.values())})


def counts_of_pairs(effects: pd.DataFrame) -> pd.DataFrame:
    """How many pairs steer, and at how many the sweep may have missed the best layer.

    `effects` is the table of that name.
    """
    verdicts = effects["steers"].value_counts()
    flags = effects["layer_flag"].str.split(", ").explode()
    found: dict[str, float] = {
        "pairs that steer": int(verdicts.get(YES, 0)),
        "pairs: not tested for steering": int(verdicts.get(UNKNOWN, 0)),
        "smallest corrected p of steering": float(effects["p_steers_holm"].min()),
        "largest corrected p of steering": float(effects["p_steers_holm"].max()),
        "pairs with an open best layer": int(flags.isin(OPEN).groupby(level=0).any().sum()),
    }
    found |= {f"pairs: {flag}": int((flags == flag).sum()) for flag in (*OPEN, LAST_BLOCK)}
    found |= {
        f"pairs: {flag}": int((effects["direction_flag"] == flag).sum())
        for flag in (OTHER_WAY, MORE_OTHER_WAY)
    }
    return pd.DataFrame({"statistic": list(found), "value": list(found.values())})


def counts_of_claims(claims: pd.DataFrame) -> pd.DataFrame:
    """How many claims were printed how, how many of each kind are met, and how many stand.

    A number is met to its last digit, an approximate one (~ or a range) to within one unit of that,
    a qualitative claim (a sign, or that nothing differs) by its own test. Interpretive is a claim
    that something differs, rises or agrees, whether it was printed with a number or not.
    """
    manner, unobjected = claims["printed_as"], claims["verdict"] == "reproduced"
    number, approximate = manner == "number", manner == "approximate"
    qualitative, interpretive = manner == "qualitative", claims["is_interpretive"]
    found = {
        "claims": len(claims),
        "printed numbers": int(number.sum()),
        "printed numbers met to the digit": int((number & claims["matches"]).sum()),
        "approximate numbers": int(approximate.sum()),
        "approximate numbers met within a unit": int((approximate & claims["matches"]).sum()),
        "qualitative claims": int(qualitative.sum()),
        "qualitative claims that pass their test": int((qualitative & claims["passes_test"]).sum()),
        "interpretive claims": int(interpretive.sum()),
        "interpretive claims without objection": int((interpretive & unobjected).sum()),
        "claims without objection": int(unobjected.sum()),
    }
    return pd.DataFrame({"statistic": list(found), "value": list(found.values())})

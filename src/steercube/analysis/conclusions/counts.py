"""What was swept: the models, the concepts, and how many of everything."""

from typing import Any

import numpy as np
import pandas as pd

from steercube.analysis.conclusions.effects import (
    FEW_ITEMS,
    LAST_BLOCK,
    MORE_OTHER_WAY,
    ONE_ITEM,
    OPEN,
    OTHER_WAY,
)
from steercube.analysis.conclusions.grades import EVERY_SUPPORT, GRADES
from steercube.analysis.per_cell.steers import UNKNOWN, YES
from steercube.analysis.view import Study
from steercube.cells import DISTINCT_RESPONSES
from steercube.contract import family_of, own_name

SIZES = ("n_params", "n_active_params")
FACTS = ("family", "training", "architecture", "n_params", "n_active_params", "n_layers")


def about_models(study: Study) -> pd.DataFrame:
    """The swept models in order of size, their facts, and how many layers and concepts were run."""
    run = study.cells["estimate"].sel(estimand="delta").notnull()
    compared_by = [study.contrast.by] if study.contrast else []
    rows = []
    for model in study.models:
        of, ran = study.cells.sel(model=model), run.sel(model=model)
        rows.append(
            {"model": model}
            | {name: of[name].item() for name in dict.fromkeys((*FACTS, *compared_by))}
            | {
                "layers_swept": int(ran.any("concept").sum()),
                "concepts_run": int(ran.any("layer").sum()),
            }
        )
    return pd.DataFrame(rows)


def about_concepts(study: Study) -> pd.DataFrame:
    """Concepts, their items, how many of these are of two scored choices, and who ran them."""
    return pd.DataFrame(
        {
            "concept": study.concepts,
            "n_items": study.cells["n_items"].values,
            "n_valid_items": study.cells["n_valid_items"].values,
            "models": study.best("delta").notnull().sum("model").values,
        }
    )


def counts(study: Study) -> pd.DataFrame:
    """How many of what there is, by name: whole numbers that a text needs."""
    cells = study.cells
    d = study.best("cohens_d")
    corrected = d - study.best("cohens_d", of="selected_optimism")
    run = cells["estimate"].sel(estimand="delta").notnull()
    depth = cells["depth"].where(run.any("concept")).sel(model=study.models)
    size = study.facts("n_params")
    found: dict[str, Any] = {
        "models": len(study.models),
        "concepts": int(d.notnull().any("model").sum()),
        "pairs": int(d.notnull().sum()),
        "pairs not run": int(d.isnull().sum()),
        "items": int(cells["n_items"].sum()),
        "invalid items": int((cells["n_items"] - cells["n_valid_items"]).sum()),
        "layers swept": int(run.any("concept").sum()),
        "effects": int(run.sum()),
        "resamples": int(cells.attrs["n_resamples"]),
        "confidence level": study.level,
        "shallowest swept depth": float(depth.min()),
        "deepest swept depth": float(depth.max()),
        "fewest items": int(cells["n_items"].min()),
        "most items": int(cells["n_items"].max()),
        "smallest model": float(size.min()),
        "largest model": float(size.max()),
        "families": len(set(study.facts("family"))),
        "largest effect": float(d.max()),
        "smallest effect": float(d.min()),
        "largest effect, corrected": float(corrected.max()),
        "smallest effect, corrected": float(corrected.min()),
    }
    if study.contrast is not None:
        labels = study.facts(study.contrast.by)
        for label in (study.contrast.low, study.contrast.high):
            found[f"{label} models"] = int(np.sum(labels == label))
    if "generation_rate" in cells:
        answered = cells["generation_rate"].sel(model=study.models).notnull()
        pairs = answered.any(("layer", "strength")) & d.notnull()
        found["pairs with generated answers"] = int(pairs.sum())
    if DISTINCT_RESPONSES in cells:
        found["responses"] = int(cells[DISTINCT_RESPONSES].sum())
    others = cells["direction"].values if "direction" in cells.indexes else ()
    for family in ("random", "shuffled"):
        drawn = [d for d in map(str, others) if family_of(d) == family and d != own_name(family)]
        found[f"{family} direction"] = len(drawn)
    return pd.DataFrame({"statistic": list(found), "value": list(found.values())})


def counts_of_pairs(effects: pd.DataFrame) -> pd.DataFrame:
    """How many pairs steer, may miss their best layer, or rest on a few items.

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
    found |= {
        f"pairs: {flag}": int((effects["influence_flag"] == flag).sum())
        for flag in (ONE_ITEM, FEW_ITEMS)
    }
    return pd.DataFrame({"statistic": list(found), "value": list(found.values())})


def counts_of_claims(claims: pd.DataFrame) -> pd.DataFrame:
    """How many claims were printed how, how many of each kind are met, and how many hold.

    A number is met to its last digit, an approximate one (~ or a range) to within one unit of that.
    Interpretive is a claim that something differs, rises or agrees, or that nothing does, whether
    it was printed with a number or not; it holds if its question's grade is one of support.
    """
    manner, unremarked = claims["printed_as"], claims["verdict"] == "reproduced"
    number, approximate = manner == "number", manner == "approximate"
    interpretive, grade = claims["is_interpretive"], claims["grade"]
    found = {
        "claims": len(claims),
        "printed numbers": int(number.sum()),
        "printed numbers met to the digit": int((number & claims["matches"]).sum()),
        "approximate numbers": int(approximate.sum()),
        "approximate numbers met within a unit": int((approximate & claims["matches"]).sum()),
        "qualitative claims": int((manner == "qualitative").sum()),
        "interpretive claims": int(interpretive.sum()),
        "interpretive claims that are supported": int(grade.isin(EVERY_SUPPORT).sum()),
        "claims reproduced without a remark": int(unremarked.sum()),
    }
    found |= {f"interpretive claims: {name}": int((grade == name).sum()) for name in GRADES}
    return pd.DataFrame({"statistic": list(found), "value": list(found.values())})

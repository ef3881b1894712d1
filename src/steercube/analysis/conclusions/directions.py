"""The concept's vector compared with other directions: random, shuffled, that of the letters.

All are treated alike: each is swept on the same items and at the same layers, and its effect is
taken at the layer where its own delta is largest.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.view import Study
from steercube.contract import LETTER, family_of, own_name

RANKED = ("delta", "cohens_d")
"""Estimands in which the vector is compared with other directions."""


def rank_p(own: float, others: np.ndarray) -> float:
    """One-sided p-value of a vector's effect among those of k directions.

    (1 + number of directions with at least its effect) / (1 + k): uniform over its k + 1 values if
    the vector is no different from them (Phipson & Smyth 2010, eq. 2). So p = 0.05 needs at least
    19 directions. NaN if the effect is not finite or there are no directions.

    >>> rank_p(3.0, np.array([1.0, 2.0, 4.0]))
    0.5
    """
    if not np.isfinite(own) or not len(others):
        return np.nan
    return float((1 + (others >= own).sum()) / (1 + len(others)))


def ranks(study: Study) -> pd.DataFrame:
    """The rank of each concept's vector among the directions of every family, except the letters'.

    A row for each model, concept, family and estimand (delta in nats, Cohen's d). `own` is the
    effect of the vector; `lowest`, `median` and `highest` are those of the `n_directions` others.
    `rank_p` is the p-value. If the vector is no different from k others, its effect lies between
    their lowest and highest with probability (k - 1) / (k + 1), the `band_level`.
    """
    rows = []
    for at, family, effects in _effects_of_families(study):
        for estimand in RANKED:
            own, *others = effects[estimand]
            drawn = np.array(others)[np.isfinite(others)]
            if np.isfinite(own) and len(drawn):
                rows.append(
                    {
                        **at,
                        "family": family,
                        "estimand": estimand,
                        "own": own,
                        "lowest": drawn.min(),
                        "median": float(np.median(drawn)),
                        "highest": drawn.max(),
                        "n_directions": len(drawn),
                        "band_level": (len(drawn) - 1) / (len(drawn) + 1),
                        "rank_p": rank_p(own, drawn),
                    }
                )
    return pd.DataFrame(rows)


def letter(study: Study) -> pd.DataFrame:
    """The effect of the direction of the letters, a positive control, and its share of the vector.

    The direction is the mean residual stream at (A) minus that at (B), and must push every item
    towards one letter: (A), or (B) where the model avoids a letter that it has just said. A row for
    each model and concept: `letter_shift` is that push, in nats towards (A), at the `layer` where
    it is largest in absolute value, and `own_letter_shift` that of the concept's vector there.
    `cosine` is between the two directions at the vector's best layer, `vectors_layer`; its square
    is the `share` of the vector that lies along the letters.
    """
    cells, rows = study.cells, []
    shifts = cells["other_estimate"].sel(estimand="letter_shift")
    for at in _pairs(study):
        both = shifts.sel(at).sel(direction=[LETTER, own_name(LETTER)])
        both = both.isel(layer=np.flatnonzero(both.sel(direction=LETTER).notnull()))
        if not both.sizes["layer"]:
            continue
        there = both.isel(layer=int(abs(both.sel(direction=LETTER)).argmax("layer")))
        row = {
            **at,
            "layer": int(there["layer"]),
            "letter_shift": there.sel(direction=LETTER).item(),
            "own_letter_shift": there.sel(direction=own_name(LETTER)).item(),
        }
        best = float(cells["selected_layer"].sel(at))
        if "letter_cosine" in cells and np.isfinite(best):
            cosine = float(cells["letter_cosine"].sel(at).sel(layer=best))
            row |= {"vectors_layer": int(best), "cosine": cosine, "share": cosine**2}
        rows.append(row)
    return pd.DataFrame(rows)


def controls(study: Study) -> pd.DataFrame:
    """The effect of every direction, with a row for each model, concept and direction.

    The concept's vector is the direction `concept`. `best_...` is at the layer where the
    direction's own delta is largest, so that a control is selected as the vector is;
    `..._at_vectors_layer` is at the vector's best layer, NaN where the control was not swept there.
    These are point estimates (delta in nats); the interval of the vector's effect is in the table
    `effects`.
    """
    cells = study.cells
    directions = {"concept": cells["estimate"]} | {
        _name_in_table(cells, name): cells["other_estimate"].sel(direction=name)
        for name in map(str, cells["direction"].values)
        if name != own_name(family_of(name))
    }
    rows = []
    for at in _pairs(study):
        layer = float(cells["selected_layer"].sel(at))
        for direction, estimates in directions.items():
            of_layers = _with_effect(estimates.sel(at))
            if np.isfinite(layer) and of_layers.sizes["layer"]:
                rows.append({**at, "direction": direction} | _control(of_layers, layer))
    return pd.DataFrame(rows)


def _pairs(study: Study) -> Iterator[dict[str, str]]:
    """The labels of every swept model and concept."""
    for model in study.models:
        for concept in study.concepts:
            yield {"model": model, "concept": concept}


def _effects_of_families(
    study: Study,
) -> Iterator[tuple[dict[str, str], str, dict[str, list[float]]]]:
    """Of each pair and family, by estimand, the effects: first the concept's vector's."""
    cells = study.cells
    names = list(map(str, cells["direction"].values))
    for at in _pairs(study):
        for family in dict.fromkeys(map(family_of, names)):
            if family == LETTER:
                continue
            drawn = [
                cells["other_estimate"].sel(direction=name).sel(at)
                for name in names
                if family_of(name) == family and name != own_name(family)
            ]
            every = _at_common_layers([_own(cells, family, drawn).sel(at), *drawn])
            best = [_best(_with_effect(of_layers)) for of_layers in every]
            yield at, family, {name: [one[name] for one in best] for name in RANKED}


def _at_common_layers(every: list[xr.DataArray]) -> list[xr.DataArray]:
    """Estimates at the layers where all that have a delta anywhere have one.

    A direction whose logits are not finite at a layer would otherwise choose among fewer.
    """
    known = [of_layers.sel(estimand="delta", drop=True).notnull() for of_layers in every]
    common = np.all([one.values for one in known if one.any()] or [known[0].values], axis=0)
    return [of_layers.isel(layer=np.flatnonzero(common)) for of_layers in every]


def _own(cells: xr.Dataset, family: str, drawn: list[xr.DataArray]) -> xr.DataArray:
    """Estimates of the concept's vector on the items and at the layers of the family.

    Cells of version 1 lack them: there, estimates over all items, at these layers.
    """
    if own_name(family) in cells.indexes["direction"]:
        return cells["other_estimate"].sel(direction=own_name(family))
    swept = xr.concat(drawn, "direction").notnull().any("direction")
    return cells["estimate"].where(swept)


def _with_effect(of_layers: xr.DataArray) -> xr.DataArray:
    """Estimates (estimand, layer) at the layers that have a delta."""
    return of_layers.isel(layer=np.flatnonzero(of_layers.sel(estimand="delta").notnull()))


def _best(of_layers: xr.DataArray) -> dict[str, float]:
    """Every ranked estimand at the layer with the largest delta."""
    if not of_layers.sizes["layer"]:
        return dict.fromkeys(RANKED, np.nan)
    best = of_layers.isel(layer=int(of_layers.sel(estimand="delta").argmax("layer")))
    return {name: best.sel(estimand=name).item() for name in RANKED}


def _name_in_table(cells: xr.Dataset, direction: str) -> str:
    """The name of a direction, or its family's if it is the only one of it."""
    family = family_of(direction)
    names = map(str, cells["direction"].values)
    of_family = [d for d in names if family_of(d) == family and d != own_name(family)]
    return family if len(of_family) == 1 else direction


def _control(of_layers: xr.DataArray, layer: float) -> dict[str, Any]:
    best = of_layers["layer"][int(of_layers.sel(estimand="delta").argmax("layer"))]
    row: dict[str, Any] = {}
    for estimand in RANKED:
        of_estimand = of_layers.sel(estimand=estimand)
        there = of_estimand.reindex(layer=[layer]).item()
        row |= {
            f"{estimand}_at_vectors_layer": there,
            f"best_{estimand}": of_estimand.sel(layer=best).item(),
        }
    return row | {"vectors_layer": int(layer), "best_layer": int(best)}

r"""Two readings of the same responses: how a study read them, and how `steercube.answers` does.

A rate of generated answers is only as good as the reader that found the letter in each text. Where
a cube holds a published reading beside its responses, `reading_audit` counts who read what and says
what the difference does to the two results that rest on it: the largest change over layers, and its
correlation with the logits. The largest change is also given as held out: a random fifth of the
items selects the layer, the change is measured on the others, and the mean of 5,000 such splits is
taken. The other reader is not the truth either; what settles a disagreement is the form of the
response, which is why misread answers are counted by form.

Wrong for: rates that were published without their responses. Nothing can be said of those.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.agreement.generation import MIN_ITEMS, MIN_LAYERS
from steercube.analysis.per_cell.bootstrap import resample_weights
from steercube.analysis.per_cell.estimands import NEGATIVE, POSITIVE
from steercube.analysis.per_cell.responses import (
    Answers,
    agreement_over_items,
    generation_curve,
    held_out_change,
)
from steercube.answers import ANOTHER_FORM, FORMS, WITHOUT_CHOICE, form_of
from steercube.cells import (
    DISTINCT_RESPONSES,
    LETTERS_READ,
    PUBLISHED,
    READ_ANEW,
    READING_VARIABLES,
    READINGS,
)
from steercube.cube import CELL, STATUS, UNSTEERED
from steercube.streams import stream

Array = np.ndarray
Row = dict[str, Any]

A, B, NONE = LETTERS_READ
SELECTING_SHARE = 0.2
"""Share of the items that select the layer; the change is measured on the rest."""
N_SELECTIONS = 5_000
"""Random parts of the items that select; the error of their mean is 0.0006 in the study."""
OF_READING = {PUBLISHED: "published", READ_ANEW: "generation"}
"""Prefix of the variables of the cube that hold each reading."""
PLACE = (*CELL, "strength", "sample")


def distinct_responses(cube: xr.Dataset) -> xr.Dataset:
    """How many responses each (model, concept) has, one that stands for every layer counted once.

    Empty for a cube that does not hold its responses one by one.
    """
    if "response_model" not in cube:
        return xr.Dataset()
    made = pd.crosstab(cube["response_model"].values, cube["response_concept"].values)
    made = made.reindex(index=cube["model"].values, columns=cube["concept"].values, fill_value=0)
    variable = READING_VARIABLES[DISTINCT_RESPONSES]
    return xr.Dataset({DISTINCT_RESPONSES: (variable.dims, made.to_numpy(float), variable.attrs)})


def reading_audit(
    cube: xr.Dataset, *, n_resamples: int, seed: int, confidence_level: float
) -> xr.Dataset:
    """Counts and results of both readings, by READING_VARIABLES of the cells' contract.

    Empty for a cube without a published reading of single responses.
    """
    read = _responses_read(cube)
    if read.empty:
        return xr.Dataset()
    labels = {
        "model": cube["model"].values,
        "concept": cube["concept"].values,
        "answer_form": list(FORMS),
        "read_as": list(LETTERS_READ),
        "published_as": list(LETTERS_READ),
        "reading": list(READINGS),
    }
    out = xr.Dataset(coords=labels)
    for name, variable in READING_VARIABLES.items():
        if name != DISTINCT_RESPONSES:
            out[name] = variable.full(out.sizes)
    for (model, concept), of_cell in read.groupby(["model", "concept"]):
        cell = {"model": model, "concept": concept}
        counts = of_cell.groupby(["answer_form", "read_as", "published_as"]).size()
        every = pd.MultiIndex.from_product([FORMS, LETTERS_READ, LETTERS_READ])
        shape = (len(FORMS), len(LETTERS_READ), len(LETTERS_READ))
        out["n_readings"].loc[cell] = counts.reindex(every, fill_value=0).to_numpy().reshape(shape)
        one = cube.sel(cell).sortby("item_id")
        for reading in READINGS:
            # The stream of the curves, so that r read anew has the interval that it has there.
            rng = stream(f"curves of {concept}", seed=seed)
            results = _results(one, OF_READING[reading], n_resamples, rng, confidence_level)
            for name, value in results.items():
                out[name].loc[{**cell, "reading": reading}] = value
    return out


def _responses_read(cube: xr.Dataset) -> pd.DataFrame:
    """One row a response that both readers saw: its cell, form, and the letter each read."""
    if not {"published_valid", "published_match", "generation_valid"} <= set(cube):
        return pd.DataFrame()
    letters = {
        name: _letter_read(cube, prefix)
        for name, prefix in {"published_as": "published", "read_as": "generation"}.items()
    }
    rows = xr.Dataset(letters).to_dataframe().reset_index()
    rows = rows[(rows["read_as"] != "") & (rows["published_as"] != "")]
    rows = rows[[*PLACE, *letters]]
    if "response_text" not in cube:
        chosen = rows["read_as"] != NONE
        return rows.assign(answer_form=np.where(chosen, ANOTHER_FORM, WITHOUT_CHOICE))
    texts = _responses(cube)
    if not len(rows):
        return rows
    # A response that stands for every layer is counted at the first one.
    first = rows.groupby(["model", "concept"], as_index=False)["layer"].min()
    first = texts[["model", "concept"]].merge(first, how="left")["layer"]
    texts["layer"] = texts["layer"].where(texts["layer"] != UNSTEERED, first)
    return texts.merge(rows, on=list(PLACE), how="inner")


def _letter_read(cube: xr.Dataset, prefix: str) -> xr.DataArray:
    """The letter of each response by one reading; NONE for no choice, "" where there is no reading.

    An item that was asked several times holds shares instead of one reading, and has none either.
    """
    valid, match = (cube[f"{prefix}_{name}"] for name in ("valid", "match"))
    other = cube["letter"].copy(data=np.where(cube["letter"] == A, B, A))
    letter = cube["letter"].where(match == 1, other.where(match == 0, ""))
    letter = letter.where(valid == 1, "").where(valid != 0, NONE)
    return letter.reset_coords(drop=True)


def _responses(cube: xr.Dataset) -> pd.DataFrame:
    """Where each response belongs, and its form."""
    at = {name: cube[f"response_{name}"].values for name in PLACE}
    return pd.DataFrame(at | {"answer_form": list(map(form_of, cube["response_text"].values))})


def _results(
    cube: xr.Dataset, prefix: str, n_resamples: int, rng: np.random.Generator, level: float
) -> dict[str, float]:
    """Largest change over layers and its correlation with the logits, by one reading.

    `cube` is of one model and concept. Both readings are given equal resamples, by equal streams.
    """
    ends = cube.sel(strength=[NEGATIVE, POSITIVE])
    known = ends["generation_valid"].notnull() & ends["published_valid"].notnull()
    layers = np.flatnonzero(known.any(("strength", "sample")))
    ends, known = ends.isel(layer=layers), known.isel(layer=layers)
    items = np.flatnonzero(known.all(("strength", "layer")))
    if len(layers) < MIN_LAYERS or len(items) < MIN_ITEMS:
        return {}
    ends = ends.isel(sample=items)
    resamples = resample_weights(len(items), n_resamples, rng)
    answers = _answers(ends, prefix)
    curve = generation_curve(answers, np.ones(len(items)))
    if not np.isfinite(curve).all():
        return {}
    found = {
        "reading_best_delta": float(curve.max()),
        "reading_best_layer": float(ends["layer"].values[curve.argmax()]),
        "reading_held_out_delta": held_out_change(answers, _selecting(len(items), rng)),
    }
    swept = ends.isel(layer=np.flatnonzero(ends["cell_status"] == STATUS["complete"]))
    if swept.sizes["layer"] < MIN_LAYERS:
        return found
    values = swept["logit_diff"].transpose("strength", "layer", "sample").values.astype(float)
    agreement = agreement_over_items(
        _answers(swept, prefix), values[1] - values[0], resamples, level
    )
    return found | {
        "reading_r": agreement.r,
        "reading_r_low": agreement.low,
        "reading_r_high": agreement.high,
    }


def _answers(cube: xr.Dataset, prefix: str) -> Answers:
    order = ("strength", "layer", "sample")
    valid, match = (
        cube[f"{prefix}_{name}"].transpose(*order).values.astype(float)
        for name in ("valid", "match")
    )
    return Answers(valid, match)


def _selecting(n_items: int, rng: np.random.Generator) -> Array:
    """1 for a random SELECTING_SHARE of the items in each split, dims (split, item)."""
    order = rng.permuted(np.tile(np.arange(n_items), (N_SELECTIONS, 1)), axis=1)
    return (order < max(1, round(SELECTING_SHARE * n_items))).astype(float)


RESULTS = {
    "reading_best_delta": "best change",
    "reading_held_out_delta": "best change, held out",
    "reading_best_layer": "layer of the best change",
    "reading_r": "r with the logits",
}
"""Results of a reading, by the name of their variable, as the table names them."""


def readings(cells: xr.Dataset) -> pd.DataFrame:
    """Who read what, and what follows: one row a count or a result, for each (model, concept).

    `responses` are the counts of the confusion matrix, over all forms of responses and for each;
    `with a choice` those in which a reader found a letter; `misread` those in which both found one
    and not the same, in all and by the letter that was read anew. `n` is what a count is out of.
    """
    if "n_readings" not in cells:
        return pd.DataFrame()
    rows: list[Row] = []
    for model in map(str, cells["model"].values):
        for concept in map(str, cells["concept"].values):
            at = {"model": model, "concept": concept}
            if cells["n_readings"].sel(at).notnull().any():
                found = [*_count_rows(cells.sel(at)), *_result_rows(cells.sel(at))]
                rows += [{"concept": concept, "model": model} | row for row in found]
    table = pd.DataFrame(rows)
    labels = ["reading", "read_as", "published_as", "form", "interval_over"]
    return table.fillna(dict.fromkeys(labels, "")) if len(table) else table


def _count_rows(cell: xr.Dataset) -> Iterator[Row]:
    counts = cell["n_readings"]
    n = int(counts.sum())
    yield {"statistic": "responses", "value": n, "n": n}
    for reading, letter in {PUBLISHED: "published_as", READ_ANEW: "read_as"}.items():
        value = counts.sel({letter: [A, B]}).sum()
        yield {"statistic": "with a choice", "reading": reading, "value": int(value), "n": n}
    of_letters = counts.sum("answer_form")
    yield from _matrix_rows(of_letters)
    yield _misread(of_letters)
    for letter in (A, B):
        yield {"read_as": letter} | _misread(of_letters.sel(read_as=[letter]))
    for form in FORMS:
        yield from ({"form": form} | row for row in _matrix_rows(counts.sel(answer_form=form)))


def _matrix_rows(counts: xr.DataArray) -> Iterator[Row]:
    """The confusion matrix, without letters that were not read anew in any response."""
    for read_as in LETTERS_READ:
        of = counts.sel(read_as=read_as)
        for published_as in LETTERS_READ if of.sum() else ():
            labels = {"statistic": "responses", "read_as": read_as, "published_as": published_as}
            yield labels | {"value": int(of.sel(published_as=published_as)), "n": int(of.sum())}


def _misread(counts: xr.DataArray) -> Row:
    """Responses in which the published reader found the other letter, of those with a letter."""
    letters = [letter for letter in counts["read_as"].values if letter != NONE]
    other = {A: B, B: A}
    value = sum(int(counts.sel(read_as=one, published_as=other[one])) for one in letters)
    n = int(counts.sel(read_as=letters).sum())
    return {"statistic": "misread", "value": value, "n": n, "share": value / n if n else np.nan}


def _result_rows(cell: xr.Dataset) -> Iterator[Row]:
    for variable, name in RESULTS.items():
        for reading in READINGS:
            of = cell.sel(reading=reading)
            row: Row = {"statistic": name, "reading": reading, "value": float(of[variable])}
            if variable == "reading_r":
                row |= {"low": float(of["reading_r_low"]), "high": float(of["reading_r_high"])}
                row |= {"interval_over": "items"}
            if np.isfinite(row["value"]):
                yield row

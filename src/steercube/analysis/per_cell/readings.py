r"""Two readings of the same responses: as a study published them, and by `steercube.answers`.

A rate of generated answers is only as good as the parser that reads a letter from each text. Where
a cube holds a published reading beside its responses, `reading_audit` counts what each reading gave
and computes the two results that depend on it: the largest change over layers, and the correlation
with the logits. The largest change is also given held out: a random fifth of the items selects the
layer, the change is measured on the others, averaged over 5,000 such splits. Neither reading is the
truth; the form of a response decides who is right, so misread answers are counted by form.

Wrong for: rates that were published without their responses, which cannot be read again.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from steercube.analysis.per_cell.bootstrap import resample_weights
from steercube.analysis.per_cell.responses import (
    MIN_LAYERS,
    Answers,
    agreement_over_items,
    generation_curve,
    held_out_change,
)
from steercube.answers import ANOTHER_FORM, FORMS, WITHOUT_CHOICE, form_of
from steercube.cells import (
    DISTINCT_RESPONSES,
    LETTERS_READ,
    READING_VARIABLES,
    READINGS,
)
from steercube.contract import MIN_ITEMS, STATUS, UNSTEERED
from steercube.measures import CELL, PUBLISHED, READ
from steercube.numerals import with_interval
from steercube.streams import stream

Array = np.ndarray
Row = dict[str, Any]

A, B, NONE = LETTERS_READ
SELECTING_SHARE = 0.2
"""Share of the items that select the layer; the change is measured on the rest."""
N_SELECTIONS = 5_000
"""Random splits of the items; the error of their mean is 0.0006 in the study."""
OF_READING = {PUBLISHED: "published", READ: "generation"}
"""Prefix of the cube's variables that hold each reading."""
PLACE = (*CELL, "strength", "sample")


def distinct_responses(flat: xr.Dataset, responses: xr.Dataset | None) -> xr.Dataset:
    """Number of responses of each (model, concept) of `flat`; one shared by layers counts once.

    Empty without single responses. Those of other directions than the concept's own do not count.
    """
    if responses is None:
        return xr.Dataset()
    responses = of_own_vectors(responses)
    n = pd.crosstab(responses["model"].values, responses["concept"].values)
    n = n.reindex(index=flat["model"].values, columns=flat["concept"].values, fill_value=0)
    variable = READING_VARIABLES[DISTINCT_RESPONSES]
    return xr.Dataset({DISTINCT_RESPONSES: (variable.dims, n.to_numpy(float), variable.attrs)})


def of_own_vectors(responses: xr.Dataset) -> xr.Dataset:
    """The responses to the concepts' own vectors."""
    if "direction" not in responses:
        return responses
    return responses.isel(response=np.flatnonzero(responses["direction"].values == ""))


def reading_audit(
    cube: xr.Dataset,
    responses: xr.Dataset | None,
    *,
    ends: tuple[float, float] = (-1.0, 1.0),
    n_resamples: int,
    seed: int,
    confidence_level: float,
) -> xr.Dataset:
    """Counts and results of both readings: the READING_VARIABLES of the cells' contract.

    `ends` are the compared strengths, low and high. Empty for a cube without a published reading of
    single responses.
    """
    read = _responses_read(cube, responses)
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
    for (model, concept), of_pair in read.groupby(["model", "concept"]):
        at = {"model": model, "concept": concept}
        counts = of_pair.groupby(["answer_form", "read_as", "published_as"]).size()
        every = pd.MultiIndex.from_product([FORMS, LETTERS_READ, LETTERS_READ])
        shape = (len(FORMS), len(LETTERS_READ), len(LETTERS_READ))
        out["n_readings"].loc[at] = counts.reindex(every, fill_value=0).to_numpy().reshape(shape)
        samples = cube.sel(at).reindex(strength=list(ends)).sortby("item_id")
        for reading in READINGS:
            # The stream of `reduce._reduce_curves`, so that r has the same interval in both.
            rng = stream(f"curves of {concept}", seed=seed)
            results = _results(samples, OF_READING[reading], n_resamples, rng, confidence_level)
            for name, value in results.items():
                out[name].loc[{**at, "reading": reading}] = value
    return out


def _responses_read(cube: xr.Dataset, responses: xr.Dataset | None) -> pd.DataFrame:
    """One row per response that both readers read: its cell, form, and the letter of each."""
    if not {"published_valid", "published_match", "generation_valid"} <= set(cube):
        return pd.DataFrame()
    letters = {
        name: _letter_read(cube, prefix)
        for name, prefix in {"published_as": "published", "read_as": "generation"}.items()
    }
    rows = xr.Dataset(letters).to_dataframe().reset_index()
    rows = rows[(rows["read_as"] != "") & (rows["published_as"] != "")]
    rows = rows[[*PLACE, *letters]]
    if responses is None:
        chosen = rows["read_as"] != NONE
        return rows.assign(answer_form=np.where(chosen, ANOTHER_FORM, WITHOUT_CHOICE))
    texts = _forms(of_own_vectors(responses))
    if not len(rows):
        return rows
    # A response shared by all layers is counted at the first one.
    first = rows.groupby(["model", "concept"], as_index=False)["layer"].min()
    first = texts[["model", "concept"]].merge(first, how="left")["layer"]
    texts["layer"] = texts["layer"].where(texts["layer"] != UNSTEERED, first)
    return texts.merge(rows, on=list(PLACE), how="inner")


def _letter_read(cube: xr.Dataset, prefix: str) -> xr.DataArray:
    """The letter of each response by one reading; NONE for no choice, "" without a reading.

    Repeated samples of an item leave shares rather than one reading, so these are "" too.
    """
    valid, match = (cube[f"{prefix}_{name}"] for name in ("valid", "match"))
    other = cube["letter"].copy(data=np.where(cube["letter"] == A, B, A))
    letter = cube["letter"].where(match == 1, other.where(match == 0, ""))
    letter = letter.where(valid == 1, "").where(valid != 0, NONE)
    return letter.reset_coords(drop=True)


def _forms(responses: xr.Dataset) -> pd.DataFrame:
    """Model, concept, layer, strength and sample of each response, and its form."""
    at = {name: responses[name].values for name in PLACE}
    return pd.DataFrame(at | {"answer_form": list(map(form_of, responses["text"].values))})


def _results(
    cube: xr.Dataset, prefix: str, n_resamples: int, rng: np.random.Generator, level: float
) -> dict[str, float]:
    """Largest change over layers and its correlation with the logits, by one reading.

    `cube` has one model, one concept and the two compared strengths. Both readings get the same
    resamples, from equal streams.
    """
    known = cube["generation_valid"].notnull() & cube["published_valid"].notnull()
    layers = np.flatnonzero(known.any(("strength", "sample")))
    cube, known = cube.isel(layer=layers), known.isel(layer=layers)
    items = np.flatnonzero(known.all(("strength", "layer")))
    if len(layers) < MIN_LAYERS or len(items) < MIN_ITEMS:
        return {}
    cube = cube.isel(sample=items)
    resamples = resample_weights(len(items), n_resamples, rng)
    answers = _answers(cube, prefix)
    curve = generation_curve(answers, np.ones(len(items)))
    if not np.isfinite(curve).all():
        return {}
    best = {
        "reading_best_delta": float(curve.max()),
        "reading_best_layer": float(cube["layer"].values[curve.argmax()]),
        "reading_held_out_delta": held_out_change(answers, _selecting_items(len(items), rng)),
    }
    swept = cube.isel(layer=np.flatnonzero(cube["cell_status"] == STATUS["complete"]))
    if swept.sizes["layer"] < MIN_LAYERS:
        return best
    values = swept["logit_diff"].transpose("strength", "layer", "sample").values.astype(float)
    agreement = agreement_over_items(
        _answers(swept, prefix), values[1] - values[0], resamples, level
    )
    return best | {
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


def _selecting_items(n_items: int, rng: np.random.Generator) -> Array:
    """1 for a random SELECTING_SHARE of the items in each split, dims (split, item)."""
    order = rng.permuted(np.tile(np.arange(n_items), (N_SELECTIONS, 1)), axis=1)
    return (order < max(1, round(SELECTING_SHARE * n_items))).astype(float)


RESULTS = {
    "reading_best_delta": "best change",
    "reading_held_out_delta": "best change, held out",
    "reading_best_layer": "layer of the best change",
    "reading_r": "r with the logits",
}
"""Variables of the cells with a reading's results, and their names in the table."""


def readings(cells: xr.Dataset) -> pd.DataFrame:
    """Counts and results of both readings of each (model, concept), one per row.

    `responses` are the counts of the confusion matrix, over all forms of a response and for each;
    `with a choice` those in which a reading has a letter; `misread` those in which both have one
    and differ, in all and by the letter read anew. `n` is the total that a count is part of.
    """
    if "n_readings" not in cells:
        return pd.DataFrame()
    rows: list[Row] = []
    for model in map(str, cells["model"].values):
        for concept in map(str, cells["concept"].values):
            at = {"model": model, "concept": concept}
            if cells["n_readings"].sel(at).notnull().any():
                audit = [*_count_rows(cells.sel(at)), *_result_rows(cells.sel(at))]
                rows += [{"concept": concept, "model": model} | row for row in audit]
    table = pd.DataFrame(rows)
    labels = ["reading", "read_as", "published_as", "form", "interval_over"]
    return table.fillna(dict.fromkeys(labels, "")) if len(table) else table


def _count_rows(cell: xr.Dataset) -> Iterator[Row]:
    counts = cell["n_readings"]
    n = int(counts.sum())
    yield {"statistic": "responses", "value": n, "n": n}
    for reading, letter in {PUBLISHED: "published_as", READ: "read_as"}.items():
        value = counts.sel({letter: [A, B]}).sum()
        yield {"statistic": "with a choice", "reading": reading, "value": int(value), "n": n}
    by_letter = counts.sum("answer_form")
    yield from _matrix_rows(by_letter)
    yield _misread(by_letter)
    for letter in (A, B):
        yield {"read_as": letter} | _misread(by_letter.sel(read_as=[letter]))
    for form in FORMS:
        yield from ({"form": form} | row for row in _matrix_rows(counts.sel(answer_form=form)))


def _matrix_rows(counts: xr.DataArray) -> Iterator[Row]:
    """The confusion matrix, without letters that `steercube.answers` never read."""
    for read_as in LETTERS_READ:
        row = counts.sel(read_as=read_as)
        for published_as in LETTERS_READ if row.sum() else ():
            labels = {"statistic": "responses", "read_as": read_as, "published_as": published_as}
            yield labels | {"value": int(row.sel(published_as=published_as)), "n": int(row.sum())}


def _misread(counts: xr.DataArray) -> Row:
    """Responses published as the other letter, out of those read anew as a letter."""
    letters = [letter for letter in counts["read_as"].values if letter != NONE]
    other = {A: B, B: A}
    value = sum(int(counts.sel(read_as=one, published_as=other[one])) for one in letters)
    n = int(counts.sel(read_as=letters).sum())
    return {"statistic": "misread", "value": value, "n": n, "share": value / n if n else np.nan}


def _result_rows(cell: xr.Dataset) -> Iterator[Row]:
    for variable, name in RESULTS.items():
        for reading in READINGS:
            data = cell.sel(reading=reading)
            row: Row = {"statistic": name, "reading": reading, "value": float(data[variable])}
            if variable == "reading_r":
                row |= {"low": float(data["reading_r_low"]), "high": float(data["reading_r_high"])}
                row |= {"interval_over": "items"}
            if np.isfinite(row["value"]):
                yield row


def confusion(table: pd.DataFrame) -> pd.DataFrame:
    """Counts of responses by the letter read anew (rows) and the published letter (columns)."""
    return _published_across(table[table["form"] == ""], [])


def by_form(table: pd.DataFrame) -> pd.DataFrame:
    """The counts of `confusion` for each form of a response."""
    counted = table[table["form"] != ""]
    return _published_across(counted, ["form"]).rename(columns={"form": "form of the response"})


def _published_across(table: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    counted = table[(table["statistic"] == "responses") & (table["read_as"] != "")]
    counts = counted.assign(
        read_as=counted["read_as"].map(_option),
        published_as="published: " + counted["published_as"].map(_option),
        value=counted["value"].map("{:,.0f}".format),
    )
    rows = ["concept", "model", *labels, "read_as"]
    wide = _across(counts, rows, "published_as", "value")
    return wide.rename(columns={"read_as": "read anew"})


def _option(letter: str) -> str:
    return "no choice" if letter == NONE else f"({letter})"


def results(table: pd.DataFrame) -> pd.DataFrame:
    """Results of each reading of the same responses, one column per reading."""
    chosen = table[(table["reading"] != "") & (table["statistic"] != "with a choice")]
    chosen = chosen[chosen["statistic"] != "layer of the best change"]
    shown = chosen.assign(shown=[with_interval(row) for row in chosen.to_dict("records")])
    names = {"statistic": "result", "published": "published reading"}
    return _across(shown, ["concept", "model", "statistic"], "reading", "shown").rename(
        columns=names
    )


def _across(table: pd.DataFrame, labels: list[str], columns: str, values: str) -> pd.DataFrame:
    """The table with one row per set of `labels` and one column per value of `columns`."""
    wide = table.pivot_table(
        index=labels, columns=columns, values=values, aggfunc="first", sort=False
    )
    return wide.rename_axis(columns=None).reset_index()

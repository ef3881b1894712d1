r"""Changes of rates between two strengths, on the same items: intervals that know the pairing.

A rate is the share of answers that match among those that are valid, or the share that is valid.
With $v_i^s$ the share of item i's answers at strength s that is valid and $m_i^s$ the share of
those that match, $g^s = \sum_i v_i^s m_i^s / \sum_i v_i^s$, and the change is $g^h - g^l$. An
item's part in its error is $e_i = v_i^h (m_i^h - g^h) / N^h - v_i^l (m_i^l - g^l) / N^l$ with
$N^s = \sum_i v_i^s$, and the variance $V = \sum_i e_i^2$.

- One answer to each item: the score interval of Tango (1998, Stat. Med. 17), of the items that
  match only at the high strength (b) and only at the low one (c). Where an item is valid at one
  strength alone it is no pair; b and c are then those of n pairs with the same change and variance,
  n the harmonic mean of $N^l$ and $N^h$. Without such items this is Tango's interval itself.
- Repeats: Wilson's intervals of both rates, squared and added with the correlation of their errors
  (Newcombe 1998, Stat. Med. 17, method 10, with his correction of that correlation), each of as
  many answers as have the rate's variance. Items carry their repeats along.

In simulations of 20 to 200 items (`calibration/answers.csv`) both cover 93 to 97%, and more where
rates are so near 0 or 1 that few items change at all. A percentile bootstrap of items, the usual
rival for repeats, covers hardly less, but has no width where no item changes.

What it is wrong for: the best of many layers, whose change is too large; for that see `best_layer`
in `steercube.analysis.per_cell.responses`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import xarray as xr

from steercube.cells import CHANGE_VARIABLES
from steercube.estimate import normal_quantile
from steercube.measures import GENERATION_MATCH, Measure

Array = np.ndarray
N_HALVINGS = 60
"""Bisections of an end of an interval, which leave it known to 2^-60."""


@dataclass(frozen=True)
class Rate:
    """A rate, the answers and the items that it rests on, dims (...), and the items' errors."""

    value: Array
    n: Array
    n_items: Array
    error: Array


def rate(valid: Array, match: Array) -> Rate:
    """The rate of matching among valid answers, from shares of each item, dims (..., item).

    NaN where nothing is valid; `match` may be NaN where `valid` is 0.
    """
    match = np.where(valid > 0, match, 0.0)
    n = valid.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (valid * match).sum(axis=-1) / n
        error = valid * (match - value[..., None]) / n[..., None]
    return Rate(value, n, (valid > 0).sum(axis=-1), error)


def change_interval(
    low: Rate, high: Rate, level: float, *, repeated: bool = False
) -> tuple[Array, Array]:
    """The interval of the change from the rate `low` to the rate `high`, of the same items.

    With `repeated` that for several answers to an item. NaN where a rate is.
    """
    ends = (_squared_and_added if repeated else _matched_score)(low, high, level)
    known = np.isfinite(low.value) & np.isfinite(high.value)
    return np.where(known, ends[0], np.nan), np.where(known, ends[1], np.nan)


def _matched_score(low: Rate, high: Rate, level: float) -> tuple[Array, Array]:
    """Tango's interval of as many pairs, discordant as often, as have this change and variance."""
    change = high.value - low.value
    variance = ((high.error - low.error) ** 2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = 2 / (1 / low.n + 1 / high.n)
    discordant = np.clip(n * variance + change**2, np.abs(change), 1.0)
    return tango(n * (discordant + change) / 2, n * (discordant - change) / 2, n, level)


def tango(only_high: Array, only_low: Array, n: Array, level: float) -> tuple[Array, Array]:
    r"""Tango's score interval of a change of paired shares, (b - c) / n.

    Of n pairs b match only at the high strength and c only at the low one. An end t solves
    $(b - c - n t)^2 = z^2 n (2 q + t (1 - t))$, q the share of pairs that match only at the low
    strength, most likely under a change t: the larger root of
    $2 n q^2 + ((2 n - b + c) t - b - c) q - c t (1 - t) = 0$. Source: Tango 1998, eq. 3.
    """
    z = normal_quantile(level)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = (only_high - only_low) / n

    def is_within(t: Array) -> Array:
        """Whether the change observed is no more than z errors from t."""
        linear = (2 * n - only_high + only_low) * t - only_high - only_low
        root = np.sqrt(np.maximum(linear**2 + 8 * n * only_low * t * (1 - t), 0.0))
        q = (root - linear) / (4 * n)
        variance = n * np.maximum(2 * q + t * (1 - t), 0.0)
        within: Array = (only_high - only_low - n * t) ** 2 <= z**2 * variance
        return within

    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (_last_within(is_within, change, np.full_like(change, end)) for end in (-1, 1))
    return low, high


def _last_within(is_within: Callable[[Array], Array], inside: Array, outside: Array) -> Array:
    """Where, between a point inside and one outside, `is_within` ceases to hold."""
    for _ in range(N_HALVINGS):
        middle = (inside + outside) / 2
        within = is_within(middle)
        inside, outside = np.where(within, middle, inside), np.where(within, outside, middle)
    return inside


def _squared_and_added(low: Rate, high: Rate, level: float) -> tuple[Array, Array]:
    """Newcombe's interval of the change, from those of both rates and their errors' correlation."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = (low.error * high.error).sum(axis=-1)
        r = shared / np.sqrt((low.error**2).sum(axis=-1) * (high.error**2).sum(axis=-1))
        spread = low.value * (1 - low.value) * high.value * (1 - high.value)
        # Newcombe's correction: without it items that all stay as they are leave no width.
        r = np.where(r > 0, np.maximum(r - 1 / (2 * low.n_items * np.sqrt(spread)), 0.0), r)
    r = np.where(np.isfinite(r), r, 0.0)
    below_low, above_low = _reach(low, level)
    below_high, above_high = _reach(high, level)

    def together(one: Array, other: Array) -> Array:
        return np.sqrt(np.maximum(one**2 - 2 * r * one * other + other**2, 0.0))

    change = high.value - low.value
    return change - together(below_high, above_low), change + together(above_high, below_low)


def _reach(of: Rate, level: float) -> tuple[Array, Array]:
    """How far Wilson's interval of a rate reaches below and above it.

    Its n is that of single answers with the rate's variance; the items, where they do not vary.
    """
    variance = (of.error**2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.where(variance > 0, of.value * (1 - of.value) / variance, of.n_items)
        z = normal_quantile(level)
        centre = (of.value + z**2 / (2 * n)) / (1 + z**2 / n)
        half = np.sqrt(of.value * (1 - of.value) / n + z**2 / (4 * n**2)) * z / (1 + z**2 / n)
    return of.value - np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1) - of.value


VALID, MATCH = "valid", "match"
"""Outcomes of an answer: whether it makes a valid choice, and whether a valid one matches."""


def changes(grid: xr.Dataset, measure: Measure, level: float) -> pd.DataFrame:
    """Changes of every rate in the grid of a binary measure, a row of CHANGE_VARIABLES for each.

    `grid` has the dimension `layer` (`reduce.NO_LAYER` where none is recorded). Every strength is
    compared with 0, and the two compared strengths, or else the outermost, with each other. Of
    generated answers there are two outcomes, validity and the match of valid ones, over the items
    of two scored choices; of other measures the match alone.
    """
    swept = grid["strength"].values.tolist()
    ends = measure.ends(swept) if set(measure.ends(swept)) <= set(swept) else (swept[0], swept[-1])
    unsteered = [(0.0, strength) for strength in swept if strength and 0.0 in swept]
    is_answer = measure.name == GENERATION_MATCH.name
    rows = []
    for labels, of_concept in _parts(grid, only_valid=is_answer):
        for pair in dict.fromkeys([*unsteered, ends]):
            match, valid, asked = _shares(of_concept, measure.name, pair)
            outcomes = {VALID: (asked, valid)} if is_answer else {}
            for outcome, shares in (outcomes | {MATCH: (valid, match)}).items():
                at = labels | dict(zip(("low_strength", "high_strength"), pair, strict=True))
                found = _rows(of_concept, *shares, level)
                rows.append(found.assign(**at, measure=measure.name, outcome=outcome))
    table = pd.concat(rows) if rows else pd.DataFrame(columns=list(CHANGE_VARIABLES))
    return table[list(CHANGE_VARIABLES)]


def _parts(grid: xr.Dataset, *, only_valid: bool) -> Iterator[tuple[dict[str, str], xr.Dataset]]:
    """The items of each reading, direction and concept, with these labels; "" where it has none."""
    named = {
        d: grid[d].values.tolist() if d in grid.dims else [""] for d in ("reading", "direction")
    }
    for reading, direction, concept in product(*named.values(), grid["concept"].values.tolist()):
        labels = {"reading": reading, "direction": direction, "concept": concept}
        part = grid.sel({dim: x for dim, x in labels.items() if dim in grid.dims})
        kept = part["item_id"] != ""
        if only_valid:
            kept = kept & part["item_valid"]
        yield labels, part.isel(sample=np.flatnonzero(kept)).sortby("item_id")


def _shares(part: xr.Dataset, name: str, pair: tuple[float, float]) -> tuple[Array, Array, Array]:
    """Shares that match, that are valid, and 1 if asked, dims (strength, model, layer, item).

    An item that lacks a value at either strength counts at neither.
    """
    order = ("strength", "model", "layer", "sample")
    of_pair = part.sel(strength=list(pair)).transpose(*order, ...)
    match = of_pair[name].transpose(*order).values.astype(float)
    if "generation_valid" in part:
        valid = of_pair["generation_valid"].transpose(*order).values.astype(float)
    else:
        valid = np.where(np.isfinite(match), 1.0, np.nan)
    asked = np.broadcast_to(np.isfinite(valid).all(axis=0), valid.shape)
    return match, np.where(asked, valid, 0.0), asked.astype(float)


def _rows(part: xr.Dataset, valid: Array, match: Array, level: float) -> pd.DataFrame:
    """The change of each model and layer where any item was asked, with what it rests on."""
    low, high = (rate(v, m) for v, m in zip(valid, match, strict=True))
    whole = np.isin(np.where(valid > 0, match, 0.0), (0, 1)) & np.isin(valid, (0, 1))
    ends = change_interval(low, high, level, repeated=not whole.all())
    both = (valid > 0).all(axis=0)
    change = np.where(both, match[1] - match[0], 0.0)
    error = high.error - low.error
    columns = {
        "n_items": (valid > 0).any(axis=0).sum(axis=-1),
        **{"n_low": low.n, "n_high": high.n, "n_pairs": both.sum(axis=-1)},
        **{"n_rise": (change > 0).sum(axis=-1), "n_fall": (change < 0).sum(axis=-1)},
        **{"rate_low": low.value, "rate_high": high.value, "change": high.value - low.value},
        "change_of_pairs": change.sum(axis=-1)
        / np.where(both.any(axis=-1), both.sum(axis=-1), np.nan),
        **{"change_low": ends[0], "change_high": ends[1]},
        "shared_variance": _shared(error),
    }
    place = {d: part[d].values for d in ("model", "layer")}
    index = pd.MultiIndex.from_product(place.values(), names=list(place))
    flat = pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index)
    return flat[flat["n_items"] > 0].reset_index()


def _shared(error: Array) -> Array:
    """Mean covariance over items of a model's change with the other models', dims (model, layer).

    NaN where layers are recorded, as those of two models are not the same, and for a lone model.
    """
    n_models, n_layers, _ = error.shape
    # A model in which no item changes shows no error, which is not to have none: it is left out.
    ran = np.isfinite(error).all(axis=(1, 2)) & (error != 0).any(axis=(1, 2))
    if n_layers > 1 or ran.sum() < 2:
        return np.full((n_models, n_layers), np.nan)
    covariance = np.einsum("mli,nli->mnl", error[ran], error[ran])
    others = ~np.eye(int(ran.sum()), dtype=bool)
    shared = np.full((n_models, n_layers), np.nan)
    shared[ran] = (covariance * others[..., None]).sum(axis=1) / (ran.sum() - 1)
    return shared

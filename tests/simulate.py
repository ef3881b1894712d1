"""Sweeps drawn from a known truth, with the shape of the study: what coverage is measured on.

The truth is the study's own cells: number of items, layers, means, standard deviations, the
correlation of the two strengths, and how much of the spread is a preference for a letter. Items
are drawn anew: letters at random, noise that models of a concept partly share and that is strongly
correlated between neighbouring layers, as it is in the study.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr

from steercube.analysis.effects import Samples

NEIGHBOURS = 0.95
"""Correlation of one item's noise between neighbouring layers."""


class Truth(NamedTuple):
    """One (model, concept): its true parameters, each over (layer,)."""

    positive: np.ndarray
    negative: np.ndarray
    sd_positive: np.ndarray
    sd_negative: np.ndarray
    correlation: np.ndarray
    letter: np.ndarray

    @property
    def cohens_d(self) -> np.ndarray:
        pooled = np.sqrt((self.sd_positive**2 + self.sd_negative**2) / 2)
        return (self.positive - self.negative) / pooled


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


def draw(models: dict[str, Truth], n_items: int, rng: np.random.Generator) -> dict[str, Samples]:
    """Samples of one concept's items for all its models, layers along the first dim."""
    letter = np.where(rng.random(n_items) < 0.5, "A", "B")
    sign = np.where(letter == "A", 1.0, -1.0)
    longest = max(len(truth.positive) for truth in models.values())
    shared = [_noise(longest, n_items, rng) for _ in range(2)]
    drawn = {}
    for model, truth in models.items():
        n_layers = len(truth.positive)
        one, two = (
            np.sqrt(0.5) * common[:n_layers] + np.sqrt(0.5) * _noise(n_layers, n_items, rng)
            for common in shared
        )
        r = truth.correlation[:, None]
        b = truth.letter[:, None]
        negative, positive = (
            b * sign + np.sqrt(1 - b**2) * z for z in (one, r * one + np.sqrt(1 - r**2) * two)
        )
        values = np.stack(
            [
                truth.negative[:, None] + truth.sd_negative[:, None] * negative,
                truth.positive[:, None] + truth.sd_positive[:, None] * positive,
            ],
            axis=1,
        )
        drawn[model] = Samples(values, np.array([-1.0, 1.0]), letter)
    return drawn


def _noise(n_layers: int, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """Standard normal noise (layer, item), first-order autoregressive over layers."""
    noise = rng.normal(size=(n_layers, n_items))
    for layer in range(1, n_layers):
        noise[layer] = NEIGHBOURS * noise[layer - 1] + np.sqrt(1 - NEIGHBOURS**2) * noise[layer]
    return noise

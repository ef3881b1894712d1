r"""Sums and determinants of the hierarchical likelihood, without inverting its covariance.

With $W = [X, Z_{model}, y]$ and $V_0 = S + sd_{concept}^2 Z Z^T + sd_{cell}^2 I$, Z the indicator
of concepts, the likelihood depends only on $G = W^T V_0^{-1} W$ and $\log |V_0|$. Concepts share
no items, so V_0 has a block for each, $S_c + sd_{concept}^2 1 1^T + sd_{cell}^2 I$. With the
eigenvectors of $S_c$, computed once, sd_cell adds to the eigenvalues, and sd_concept is a rank-one
update (Sherman-Morrison). `integrate_models` then adds $sd_{model}^2$, for many values at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steercube.analysis.over_models.cell_effects import CellEffects


class Block(NamedTuple):
    """One concept: eigenvalues (cell,) of S_c; W (cell, column) and 1 (cell,) in its eigenbasis."""

    values: np.ndarray
    w: np.ndarray
    one: np.ndarray


def blocks_of(effects: CellEffects, w: np.ndarray) -> list[Block]:
    """The block of every concept, for the columns `w` (cell, column)."""
    blocks = []
    for concept in np.unique(effects.concept):
        cells = np.flatnonzero(effects.concept == concept)
        values, vectors = np.linalg.eigh(effects.covariance[np.ix_(cells, cells)])
        blocks.append(Block(values, vectors.T @ w[cells], vectors.sum(axis=0)))
    return blocks


def grams(
    blocks: list[Block], sd_concept: np.ndarray, sd_cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """G (concept sd, cell sd, column, column) and log|V_0| (concept sd, cell sd).

    Raises LinAlgError where V_0 is singular, as for cells without any error if sd_cell is 0.
    """
    n_columns = blocks[0].w.shape[1]
    gram = np.zeros((len(sd_concept), len(sd_cell), n_columns, n_columns))
    log_det = np.zeros((len(sd_concept), len(sd_cell)))
    for block in blocks:
        variance = block.values + sd_cell[:, None] ** 2
        if not (variance > 0).all():
            raise np.linalg.LinAlgError("V_0 is singular: cells without any error, and sd_cell 0")
        scaled = block.w / np.sqrt(variance)[..., None]
        one = block.one / np.sqrt(variance)
        along = np.einsum("jc,jca->ja", one, scaled)
        length = np.einsum("jc,jc->j", one, one)
        grown = sd_concept[:, None] ** 2 * length
        share = sd_concept[:, None] ** 2 / (1 + grown)
        gram += scaled.swapaxes(-1, -2) @ scaled
        gram -= share[..., None, None] * (along[:, :, None] * along[:, None, :])
        log_det += np.log(variance).sum(axis=-1) + np.log1p(grown)
    return gram, log_det


class OfModels(NamedTuple):
    r"""G with the models' levels u, of variance s^2 = sd_model^2, integrated out.

    With the eigenvectors E and eigenvalues g of $G_{uu}$, and $h = s^2 / (1 + g s^2)$: `turned` E
    (concept sd, cell sd, model, model), `shrunk` h (model sd, concept sd, cell sd, model),
    `of_models` $R = E^T G_{u \cdot}$ (concept sd, cell sd, model, column) for the slopes and y,
    `gram` $G - R^T h R$ (..., column, column), which is $[X, y]^T V^{-1} [X, y]$ of the whole
    covariance V, and `log_det` of V, (model sd, concept sd, cell sd).
    """

    turned: np.ndarray
    shrunk: np.ndarray
    of_models: np.ndarray
    gram: np.ndarray
    log_det: np.ndarray


def integrate_models(
    gram: np.ndarray, log_det: np.ndarray, sd_model: np.ndarray, n_slopes: int
) -> OfModels:
    """G of slopes and y with the models' levels integrated out, for each sd_model (model sd,)."""
    n_models = gram.shape[-1] - n_slopes - 1
    kept = np.r_[:n_slopes, n_slopes + n_models]
    models = np.arange(n_slopes, n_slopes + n_models)
    g, turned = np.linalg.eigh(gram[..., models[:, None], models])
    of_models = turned.swapaxes(-1, -2) @ gram[..., models[:, None], kept]
    variance = sd_model[:, None, None, None] ** 2
    shrunk = variance / (1 + g * variance)
    removed = np.einsum("kjma,ikjm,kjmb->ikjab", of_models, shrunk, of_models, optimize=True)
    return OfModels(
        turned=turned,
        shrunk=shrunk,
        of_models=of_models,
        gram=gram[..., kept[:, None], kept] - removed,
        log_det=log_det + np.log1p(g * variance).sum(axis=-1),
    )


def columns(effects: CellEffects, terms: Sequence[str]) -> np.ndarray:
    """W = [X, Z_model, y], dims (cell, column); with a `spread`, each model's column is scaled."""
    of_model = np.diag(effects.spread or np.ones(len(effects.models)))[effects.model]
    return np.column_stack([effects.design(terms), of_model, effects.value])

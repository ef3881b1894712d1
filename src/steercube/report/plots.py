"""Plots of a study in a notebook: one panel, in axes of your own if you give some."""

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from steercube.analysis.view import Study
from steercube.report.figures import (
    DEPTH,
    best_quantiles,
    draw_heat_map,
    draw_layer_curves,
    draw_violins,
    halves_of,
    model_labels,
    name_models,
    values_of,
    why_missing,
)
from steercube.report.marks import notes_of_heat_map
from steercube.report.style import SMALL, STYLE, name_of
from steercube.words import did_you_mean

Tables = Mapping[str, pd.DataFrame]


def heatmap(study: Study, tables: Tables, ax: Axes | None = None) -> Axes:
    """Cohen's d at the best layer, concept by model, with its interval over items in every cell."""
    effects = tables["effects"]
    labels = model_labels(study)
    n_concepts = effects["concept"].nunique()
    figure = _figure(ax, max(5.0, 1.4 + 1.1 * len(labels)), 1.8 + 0.6 * n_concepts)
    with mpl.rc_context(STYLE):
        ax = ax or figure.subplots()
        width = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted()).width
        draw_heat_map(ax, effects, labels, width / len(labels))
        notes = [
            f"Cohen's d at the best layer, {study.level:.0%} over items",
            *notes_of_heat_map(effects),
        ]
        ax.set_title("\n".join(notes), loc="left")
    return ax


def layers(study: Study, tables: Tables, concept: str | None = None, ax: Axes | None = None) -> Any:
    """Cohen's d over the depth of the steered layer, with pointwise intervals, by model."""

    def draw(ax: Axes, concept: str) -> None:
        of_layers = tables["layer_effects"]
        of = of_layers[of_layers["concept"] == concept]
        labels = {m: label for m, label in model_labels(study).items() if m in set(of["model"])}
        best = study.cells["selected_layer"].sel(concept=concept)
        draw_layer_curves(ax, of, labels, best={m: float(best.sel(model=m)) for m in labels})
        ax.set_xlabel(f"depth of the steered layer ({DEPTH})")
        ax.set_ylabel(f"Cohen's d, {study.level:.0%} pointwise")
        lines, _ = ax.get_legend_handles_labels()
        ax.legend(lines, [one.line for one in labels.values()], fontsize=SMALL, frameon=False,
                  title="marker: best layer", title_fontsize=SMALL)  # fmt: skip

    return _panels(study, draw, concept, ax)


def items(study: Study, tables: Tables, concept: str | None = None, ax: Axes | None = None) -> Any:
    """How items are distributed at the best layer, at the two compared strengths; by model."""
    quantiles, labels = best_quantiles(study), model_labels(study)
    missing = why_missing(tables["effects"])

    def draw(ax: Axes, concept: str) -> None:
        by_model = quantiles.get(concept, {})
        draw_violins(ax, by_model, labels, {m: missing.get((concept, m), "") for m in labels})
        name_models(ax.yaxis, labels)
        ax.set_ylim(len(labels) - 0.4, -0.6)
        ax.set_xlabel(values_of(study.measure))
        strengths = sorted({s for of in by_model.values() for s in of})
        ax.legend(
            handles=halves_of(strengths),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.17),
            ncols=2,
            fontsize=SMALL,
            frameon=False,
        )

    return _panels(study, draw, concept, ax)


def _panels(
    study: Study, draw: Callable[[Axes, str], None], concept: str | None, ax: Axes | None
) -> Any:
    """The axes of one concept's panel; without a concept, an array of axes, one for each."""
    if concept is not None and concept not in study.concepts:
        raise ValueError(
            f"concept {concept!r} is none of {', '.join(study.concepts)}"
            f"{did_you_mean(concept, study.concepts)}"
        )
    concepts = study.concepts if concept is None else [concept]
    if ax is not None and len(concepts) > 1:
        raise ValueError(f"ax holds one panel: name the concept, one of {', '.join(concepts)}")
    rows = -(-len(concepts) // 2)
    single = len(concepts) == 1
    figure = _figure(ax, *((6.0, 3.4) if single else (11.0, 3.0 * rows)))
    with mpl.rc_context(STYLE):
        if single:
            own = ax or figure.subplots()
            draw(own, concepts[0])
            own.set_title(name_of(concepts[0]), loc="left")
            return own
        axes = figure.subplots(rows, 2, squeeze=False)
        for panel, one in zip(axes.flat, concepts, strict=False):
            draw(panel, one)
            panel.set_title(name_of(one), loc="left")
        for unused in axes.flat[len(concepts) :]:
            unused.set_visible(False)
        return np.array(axes.flat[: len(concepts)])


def _figure(ax: Any, width: float, height: float) -> Any:
    """The figure of `ax`, else a new one, which a notebook shows.

    It is made outside of any style: the first figure of a session turns on a notebook's display of
    figures, which the end of a style would turn off again.
    """
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"ax must be matplotlib axes, not {type(ax).__name__}")
    if ax is not None:
        return ax.figure
    return plt.figure(figsize=(width, height), layout="constrained")

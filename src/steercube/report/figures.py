"""The figures of a study: `<name>(plain data) -> Figure`, and `draw` that hands them their data.

Those of the models of training and scale are in `steercube.report.model_figures`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import stats

from steercube.analysis.agreement.agreement import MEAN_R
from steercube.analysis.agreement.curves import scaled
from steercube.analysis.agreement.generation import generation_delta, is_counted, layer_curves
from steercube.analysis.conclusions.claims import read_printed
from steercube.analysis.conclusions.tables import R_EVERY_RESPONSE, R_OVER_LAYERS
from steercube.analysis.over_models.means import swept_models
from steercube.report.marks import FULL_COLOUR, holds_zero, marks, meanings, notes_of_heat_map
from steercube.report.model_figures import draw_models
from steercube.report.style import (
    GENERATION_COLOUR,
    INTERVAL_COLOURS,
    OTHER_COLOUR,
    PUBLISHED_COLOUR,
    RESPONSES_COLOUR,
    SMALL,
    STRENGTH_COLOURS,
    STYLE,
    TEXT,
    TITLE,
    TRAINING_COLOURS,
    TRAINING_NAMES,
    WIDTH,
    blank_figure,
    drop_unused,
    inches_of,
    legend_of,
    name_of,
    signed,
    title_of,
    wrapped,
)

DEPTH = "layer / number of layers"
MARKERS = "osD^vPX*<>"
DASHES = ("-", "--", ":", "-.")
LINE = 0.16
"""Inches of a line of a title."""
NO_BREAK = "\N{NO-BREAK SPACE}"


def draw(cells: xr.Dataset, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Every figure that the study has the data for, by file name."""
    with mpl.rc_context(STYLE):
        models = _model_labels(cells)
        figures = {
            "effect_size_heatmap": effect_size_heatmap(tables["effects"], models),
            "best_layer_violins": best_layer_violins(
                _best_quantiles(cells),
                models,
                _missing(tables["effects"]),
                _marks(tables["effects"]),
                meanings(tables["effects"]),
            ),
            "depth_by_training": depth_by_training(tables["effects"], tables["depth"], models),
            "layer_curves": logit_layer_curves(tables["layer_effects"], models),
        }
        curves = _curves(cells, tables["layer_effects"])
        if curves:
            figures["layer_curves_gen_vs_logit"] = layer_curves_gen_vs_logit(
                curves, models, _agreements(tables["agreement"])
            )
        figures |= draw_models(tables)
        if "claims" in tables and len(numeric := _numeric(tables["claims"])):
            figures["claims"] = claims(numeric)
    return figures


@dataclass(frozen=True)
class ModelLabel:
    """How a model is shown: its training decides the colour, its name is always printed."""

    name: str
    training: str

    @property
    def colour(self) -> str:
        """Colour of its training."""
        return TRAINING_COLOURS.get(self.training, OTHER_COLOUR)

    @property
    def text(self) -> str:
        """Name and training, on two lines."""
        return f"{self.name}\n{TRAINING_NAMES.get(self.training, self.training)}"

    @property
    def line(self) -> str:
        """The same on one line, which may be broken between them."""
        name, training = self.text.split("\n")
        return f"{name}, {training.replace(' ', NO_BREAK)}"


ModelLabels = dict[str, ModelLabel]


def _model_labels(cells: xr.Dataset) -> ModelLabels:
    """Swept models in order of size."""
    training = cells["training"]
    return {m: ModelLabel(m, training.sel(model=m).item()) for m in swept_models(cells)}


def _name_models(axis: Axis, models: ModelLabels, inches: float = WIDTH) -> None:
    """Names in so much space each, upright where they do not fit."""
    names = [label.text for label in models.values()]
    broken = ["\n".join(wrapped(line, inches, SMALL) for line in n.split("\n")) for n in names]
    fit = all(inches_of(name, SMALL) <= inches for name in broken)
    axis.set_ticks(range(len(models)), broken if fit else names, fontsize=SMALL,
                   rotation=0 if fit else 90)  # fmt: skip
    for tick, label in zip(axis.get_ticklabels(), models.values(), strict=True):
        tick.set_color(label.colour)


def effect_size_heatmap(effects: pd.DataFrame, models: ModelLabels) -> Figure:
    """Cohen's d at the best layer, concept by model, with its interval in every cell."""
    concepts = list(dict.fromkeys(effects["concept"]))
    table = effects.pivot_table(
        index="concept", columns="model", values="cohens_d", dropna=False
    ).reindex(index=concepts, columns=list(models))
    cell = effects.set_index(["concept", "model"])
    width = min(WIDTH, max(4.2, 1.4 + 0.95 * len(models)))
    of_cell = (width - 1.4) / len(models)
    notes = notes_of_heat_map(effects)
    height = 1.9 + LINE * len(notes) + (0.55 if of_cell > 0.8 else 0.7) * len(concepts)
    figure, axes = blank_figure(width, height)
    ax = axes[0, 0]
    finite = table.to_numpy(dtype=float)
    image = ax.imshow(finite, cmap="cividis", vmin=0.0, vmax=FULL_COLOUR, aspect="auto")
    for row, concept in enumerate(concepts):
        for column, model in enumerate(models):
            text = _readable_on(image.to_rgba(finite[row, column]))
            of = cell.loc[(concept, model)]
            if np.isfinite(of["cohens_d"]) and holds_zero(of):
                ax.add_patch(_hatching(column, row))
            _write_cell(ax, column, row, of, text, of_cell)
    _name_models(ax.xaxis, models, of_cell - 0.06)
    ax.set_yticks(range(len(concepts)), [wrapped(name_of(c), 1.1, SMALL) for c in concepts])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xlabel("model, in order of size" if len(models) > 1 else "model")
    beyond = "max" if np.nanmax(finite, initial=0.0) > FULL_COLOUR else "neither"
    bar = figure.colorbar(
        image, ax=ax, location="bottom", aspect=50, fraction=0.05, pad=0.02, extend=beyond
    )
    bar.set_label("Cohen's d (pooled sd)")
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    title = "Effect of steering from −1 to +1 at the best layer,\nwith 95% interval over items"
    title_of(figure, "\n".join([title, *notes]))
    return figure


def _hatching(x: int, y: int) -> Rectangle:
    """Thin lines over the corners of a cell, which leave its numbers readable."""
    return Rectangle(
        (x - 0.5, y - 0.5), 1, 1, fill=False, hatch="/", linewidth=0, edgecolor="#8a8a8a"
    )


def _readable_on(rgba: tuple[float, ...]) -> str:
    """Black or white, whichever contrasts more with the colour (WCAG 2 relative luminance)."""
    linear = np.asarray(rgba[:3]) ** 2.2
    return "black" if linear @ [0.2126, 0.7152, 0.0722] > 0.18 else "white"


def _write_cell(ax: Axes, x: int, y: int, row: pd.Series, colour: str, inches: float) -> None:
    d = row["cohens_d"]
    if not np.isfinite(d):
        why = wrapped(row["reason"].replace("_", " ") or "–", inches, SMALL)
        ax.text(x, y, why, ha="center", va="center", color=OTHER_COLOUR, fontsize=SMALL)
        return
    shown = " ".join([signed(f"{d:.2f}"), marks(row)]).rstrip()
    ax.text(x, y, shown, ha="center", va="bottom", color=colour, fontsize=TITLE + 1)
    low, high = row["cohens_d_low"], row["cohens_d_high"]
    shown = signed(f"{low:.2f} to {high:.2f}") if np.isfinite(low) else "no interval"
    ax.text(x, y + 0.08, wrapped(shown, inches - 0.06, SMALL), ha="center", va="top",
            color=colour, fontsize=SMALL)  # fmt: skip


Quantiles = dict[str, dict[str, dict[float, np.ndarray]]]


def _best_quantiles(cells: xr.Dataset) -> Quantiles:
    """Quantiles of the logit differences at the best layer, by concept, model and strength."""
    found: Quantiles = {}
    for concept in map(str, cells["concept"].values):
        for model in swept_models(cells):
            layer = float(cells["selected_layer"].sel(model=model, concept=concept))
            if np.isfinite(layer):
                at = cells["quantiles"].sel(model=model, concept=concept, layer=layer)
                found.setdefault(concept, {})[model] = {
                    s: at.sel(strength=s).values.astype(float) for s in (-1.0, 1.0)
                }
    return found


def _missing(effects: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Why a (concept, model) has no effect, in words."""
    absent = effects[effects["cohens_d"].isna()]
    return {
        (row["concept"], row["model"]): row["reason"].replace("_", " ")
        for _, row in absent.iterrows()
    }


def _marks(effects: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The marks of each (concept, model)."""
    return {(row["concept"], row["model"]): marks(row) for row in effects.to_dict("records")}


def best_layer_violins(
    quantiles: Quantiles,
    models: ModelLabels,
    missing: Mapping[tuple[str, str], str],
    marked: Mapping[tuple[str, str], str],
    notes: Sequence[str] = (),
) -> Figure:
    """Distribution over items at strengths -1 and +1, the two halves of each violin.

    Each half is scaled to its own largest density, so widths compare within a half alone. `marked`
    are marks at the right edge, `notes` what they mean.
    """
    columns = min(2, len(quantiles))
    rows = -(-len(quantiles) // columns)
    figure, axes = blank_figure(
        4.2 if columns == 1 else WIDTH,
        1.1 + LINE * len(notes) + (0.55 + 0.32 * len(models)) * rows,
        nrows=rows,
        ncols=columns,
        sharey=True,
    )
    for ax, (concept, by_model) in zip(axes.flat, quantiles.items(), strict=False):
        _draw_violins(ax, by_model, models, {m: missing.get((concept, m), "") for m in models})
        for y, model in enumerate(models):
            ax.text(0.99, y - 0.1, marked[concept, model], ha="right", va="bottom", fontsize=SMALL,
                    transform=ax.get_yaxis_transform())  # fmt: skip
        ax.set_title(name_of(concept), loc="left")
    drop_unused(axes)
    for ax in axes[:, 0]:
        _name_models(ax.yaxis, models)
    axes[0, 0].set_ylim(len(models) - 0.4, -0.6)
    figure.supxlabel("logit difference, matching − other (nats)", fontsize=TEXT)
    halves = {1.0: "strength +1 (upper half)", -1.0: "strength −1 (lower half)"}
    patches = [mpl.patches.Patch(color=STRENGTH_COLOURS[s], label=t) for s, t in halves.items()]
    title = ["Items at the best layer; bars: median and quartiles", *notes]
    legend_of(figure, patches, title="\n".join(title))
    return figure


def _draw_violins(
    ax: Axes,
    by_model: Mapping[str, Mapping[float, np.ndarray]],
    models: ModelLabels,
    missing: Mapping[str, str],
) -> None:
    ax.axvline(0, color="#999999", linewidth=0.8, zorder=0)
    for y, model in enumerate(models):
        for strength, values in by_model.get(model, {}).items():
            _half_violin(ax, y, values, strength)
        if model not in by_model:
            ax.text(0.5, y, missing[model], ha="center", va="center", fontsize=SMALL,
                    color=OTHER_COLOUR, transform=ax.get_yaxis_transform(),
                    bbox={"color": "white", "pad": 1})  # fmt: skip


def _half_violin(ax: Axes, y: float, quantiles: np.ndarray, strength: float) -> None:
    """One side of a violin from the quantiles: a kernel density of the quantile function."""
    side = 1 if strength < 0 else -1
    points = np.interp(np.linspace(0, 1, 201), np.linspace(0, 1, len(quantiles)), quantiles)
    colour = STRENGTH_COLOURS[strength]
    if np.ptp(points) > 0:
        grid = np.linspace(points.min(), points.max(), 120)
        density = stats.gaussian_kde(points)(grid)
        width = 0.42 * density / density.max()
        ax.fill_between(grid, y, y + side * width, color=colour, linewidth=0, alpha=0.9)
    low, middle, high = np.quantile(points, [0.25, 0.5, 0.75])
    ax.plot([low, high], [y + side * 0.1] * 2, color="black", linewidth=1.4)
    ax.plot(middle, y + side * 0.1, "o", color="white", markeredgecolor="black", markersize=3.2)


class ScaledCurves(NamedTuple):
    """Both measures over depth, scaled to [0, 1]; `margin` is the logit curve's half interval.

    `responses` is the curve counted from every response, where `generation` is a published one.
    """

    depth: np.ndarray
    logit: np.ndarray
    margin: np.ndarray
    generation: np.ndarray
    responses: np.ndarray | None = None


CurvesByCell = dict[str, dict[str, ScaledCurves]]


def _curves(cells: xr.Dataset, layer_effects: pd.DataFrame) -> CurvesByCell:
    """Scaled curves by concept and swept model, where a layer has both measures."""
    found: CurvesByCell = {}
    if "generation_delta" not in layer_effects:
        return found
    for concept in map(str, cells["concept"].values):
        curves = layer_curves(cells, concept=concept, models=swept_models(cells))
        for model, (logit, generation) in curves.items():
            of = layer_effects.query("model == @model and concept == @concept")
            of = of.dropna(subset=["delta", "generation_delta"])
            margin = (of["delta_high"] - of["delta"]).to_numpy()
            found.setdefault(concept, {})[model] = ScaledCurves(
                depth=of["depth"].to_numpy(),
                logit=_scaled_or_flat(logit),
                margin=margin / (np.ptp(logit) or 1.0),
                generation=_scaled_or_flat(generation),
                responses=_responses(cells, concept, model, of["layer"].to_numpy()),
            )
    return found


def _responses(
    cells: xr.Dataset, concept: str, model: str, layers: np.ndarray
) -> np.ndarray | None:
    if "response_match_rate" not in cells or is_counted(cells, model, concept):
        return None
    counted = generation_delta(
        cells.sel(model=model, concept=concept, layer=layers), "response_match_rate"
    )
    return _scaled_or_flat(counted.values) if np.isfinite(counted.values).all() else None


def _scaled_or_flat(curve: np.ndarray) -> np.ndarray:
    """A curve that does not move stays in the middle."""
    return scaled(curve) if np.ptp(curve) > 0 else np.full(len(curve), 0.5)


Agreements = dict[tuple[str, str, str], Any]
"""Rows of the table of agreement by concept, model and statistic."""


def _agreements(agreement: pd.DataFrame) -> Agreements:
    keys = ["concept", "model", "statistic"]
    rows = agreement.to_dict("records")
    return {(row[keys[0]], row[keys[1]], row[keys[2]]): row for row in rows}


def _with_range(row: Mapping[str, Any]) -> str:
    """r with its interval, or r alone; the interval is never broken over lines."""
    shown = f"{row['value']:.2f}"
    if np.isfinite(row["low"]):
        shown += f" [{row['low']:.2f},{NO_BREAK}{row['high']:.2f}]"
    return signed(shown)


def layer_curves_gen_vs_logit(
    curves: CurvesByCell, models: ModelLabels, agreements: Agreements
) -> Figure:
    """Scaled delta of both measures over depth, a panel for each concept and model.

    Over each panel stands r of its curves, over each concept r in a model of the kind, both with
    their interval.
    """
    shown = [model for model in models if any(model in by_model for by_model in curves.values())]
    if len(shown) == 1:
        return _curves_of_one_model(curves, shown[0], models, agreements)
    columns = min(6, len(shown))
    lines = -(-len(shown) // columns)
    inches = (WIDTH - 0.6) / columns - 0.1
    height = min(1.4, max(0.8, 0.8 * inches))
    notes = {
        concept: {m: _r_of_panel(agreements, concept, m, inches) for m in by_model}
        for concept, by_model in curves.items()
    }
    n_notes = {concept: max(map(_n_lines, of.values())) for concept, of in notes.items()}
    names = {m: wrapped(models[m].line, inches, SMALL) for m in shown}
    n_names = max(map(_n_lines, names.values()))
    figure, axes = blank_figure(
        WIDTH,
        1.1 + lines * sum(height + 0.14 * (n + n_names + 1) + 0.15 for n in n_notes.values()),
        nrows=len(curves) * lines,
        ncols=columns,
        sharey=True,
        sharex=True,
    )
    for number, (concept, by_model) in enumerate(curves.items()):
        panels = axes[number * lines : (number + 1) * lines].flat
        at = {m: ax for m, ax in zip(shown, panels, strict=False) if m in by_model}
        for model, ax in at.items():
            _draw_curves(ax, by_model[model])
            offset = _offset(n_notes[concept])
            _write_over(ax, names[model], offset, color=models[model].colour)
            _write_over(ax, notes[concept][model], offset, va="top")
        top = 3 + _offset(n_notes[concept] + n_names)
        _write_over(next(iter(at.values())), _with_mean_r(agreements, concept), top, TITLE)
    return _with_curve_labels(figure, axes, inches)


def _n_lines(text: str) -> int:
    return text.count("\n") + 1


def _offset(n_lines: int) -> float:
    """Points above a panel that so many lines of its heading take."""
    return 3 + 1.25 * SMALL * n_lines


def _write_over(ax: Axes, text: str, offset: float, size: float = SMALL, **how: Any) -> None:
    """Text so many points above the panel; it may be wider."""
    written = ax.annotate(text, (0, 1), (0, offset), xycoords="axes fraction", fontsize=size,
                          textcoords="offset points", **{"va": "bottom"} | how)  # fmt: skip
    # The layout would push the next column away from it; an empty title keeps room above alone.
    written.set_in_layout(False)
    ax.set_title(" ", loc="left", fontsize=size, pad=offset)


def _with_mean_r(agreements: Agreements, concept: str) -> str:
    mean = agreements[concept, "every model", MEAN_R]
    name = name_of(concept)
    return f"{name}, mean r {_with_range(mean)}" if mean["interval_over"] == "models" else name


def _curves_of_one_model(
    curves: CurvesByCell, model: str, models: ModelLabels, agreements: Agreements
) -> Figure:
    """The same, concepts side by side."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    width = 4.2 if columns == 1 else WIDTH
    inches = (width - 0.6) / columns - 0.1
    notes = {concept: _r_of_panel(agreements, concept, model, inches) for concept in curves}
    n_notes = max(map(_n_lines, notes.values()))
    figure, axes = blank_figure(width, 1.2 + 2.0 * rows, nrows=rows, ncols=columns, sharey=True,
                                sharex=True)  # fmt: skip
    for ax, (concept, by_model) in zip(axes.flat, curves.items(), strict=False):
        _draw_curves(ax, by_model[model])
        offset = _offset(n_notes)
        _write_over(ax, notes[concept], offset, va="top")
        ax.set_title(wrapped(name_of(concept), inches, TEXT), fontsize=TEXT, loc="left",
                     pad=offset + 3)  # fmt: skip
    return _with_curve_labels(figure, axes, inches, models[model].line)


def _r_of_panel(agreements: Agreements, concept: str, model: str, inches: float) -> str:
    """r of the curves, and of every response where that is another, in lines that fit."""
    own = agreements[concept, model, R_OVER_LAYERS]
    every = agreements.get((concept, model, R_EVERY_RESPONSE))
    shown = [f"r {_with_range(own)}" if np.isfinite(own["value"]) else "a curve is flat"]
    shown += [f"all: {_with_range(every)}"] if every else []
    return "\n".join(wrapped(line, inches, SMALL) for line in shown)


def _with_curve_labels(
    figure: Figure, axes: np.ndarray, inches: float, title: str | None = None
) -> Figure:
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        handles |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    drop_unused(axes)
    ax = axes[0, 0]
    ax.set_ylim(-0.08, 1.12)
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(max(2, int(inches / 0.4))))
    ax.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
    figure.supxlabel(f"depth of the steered layer ({DEPTH})", fontsize=TEXT)
    figure.supylabel("delta, scaled to [0, 1] within each curve", fontsize=TEXT)
    legend_of(figure, list(handles.values()), title=title)
    return figure


def _draw_curves(ax: Axes, of: ScaledCurves) -> None:
    ax.fill_between(of.depth, of.logit - of.margin, of.logit + of.margin, color="black",
                    alpha=0.15, linewidth=0, label="95% interval of the logit curve")  # fmt: skip
    ax.plot(of.depth, of.logit, color="black", linewidth=1.5, label="logit")
    ax.plot(of.depth, of.generation, color=GENERATION_COLOUR, linewidth=1.2, marker="o",
            markersize=2.6, label="generation")  # fmt: skip
    if of.responses is not None:
        ax.plot(of.depth, of.responses, color=RESPONSES_COLOUR, linewidth=1.4, linestyle="--",
                label="generation, all answers read again")  # fmt: skip


def logit_layer_curves(layer_effects: pd.DataFrame, models: ModelLabels) -> Figure:
    """Cohen's d over depth with its pointwise interval; each model has a marker of its own.

    As SVG what belongs to the model in place m has an id that begins with curve-m-.
    """
    concepts = list(dict.fromkeys(layer_effects["concept"]))
    columns = min(2, len(concepts))
    rows = -(-len(concepts) // columns)
    figure, axes = blank_figure(
        4.2 if columns == 1 else WIDTH, 1.1 + 2.0 * rows, nrows=rows, ncols=columns, sharex=True
    )
    for panel, (ax, concept) in enumerate(zip(axes.flat, concepts, strict=False)):
        for number, (model, label) in enumerate(models.items()):
            of = layer_effects.query("model == @model and concept == @concept")
            name = f"curve-{number}-{panel}"
            ax.plot(of["depth"], of["cohens_d"], linestyle=DASHES[number % 4], linewidth=1.3,
                    marker=MARKERS[number % len(MARKERS)], markevery=(number, 6), markersize=3.5,
                    color=label.colour, label=model, gid=name)  # fmt: skip
            ax.fill_between(of["depth"], of["cohens_d_low"], of["cohens_d_high"],
                            color=label.colour, alpha=0.15, linewidth=0,
                            gid=f"{name}-band")  # fmt: skip
        ax.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        ax.set_title(name_of(concept), loc="left")
    drop_unused(axes)
    figure.supxlabel(f"depth of the steered layer ({DEPTH})", fontsize=TEXT)
    figure.supylabel("Cohen's d (pooled sd), 95% pointwise", fontsize=TEXT)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    legend_of(figure, handles)
    return figure


def depth_by_training(effects: pd.DataFrame, depth: pd.DataFrame, models: ModelLabels) -> Figure:
    """Best depth of every concept, its selection interval, and each model's typical depth."""
    concepts = list(dict.fromkeys(effects["concept"]))
    marks = dict(zip(concepts, MARKERS * 9, strict=False))
    figure, axes = blank_figure(WIDTH, 1.9 + 0.6 * len(models))
    ax = axes[0, 0]
    typical = depth.set_index("group")
    for row, (model, label) in enumerate(models.items()):
        of_model = effects[effects["model"] == model].set_index("concept")
        _draw_depths(ax, row, of_model, marks, label.colour)
        ax.plot([typical.loc[model, "value"]] * 2, [row - 0.38, row + 0.38], color="black",
                linewidth=1.8, zorder=1)  # fmt: skip
    shapes = [
        mpl.lines.Line2D([], [], marker=m, color=OTHER_COLOUR, linestyle="", label=name_of(c))
        for c, m in marks.items()
    ]
    bar = mpl.lines.Line2D([], [], color="black", linewidth=1.8, label="typical (mean of concepts)")
    legend_of(figure, [*shapes, bar, *_draw_bands(ax, typical)], where="lower")
    _name_models(ax.yaxis, models)
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.set_xlim(min(0.3, effects[["depth", "depth_low"]].min(axis=None) - 0.03), 1.0)
    ax.set_xlabel(f"depth of the best layer ({DEPTH})")
    title_of(figure, "Where steering works best; lines: 95% of resampled selections")
    return figure


def _draw_depths(
    ax: Axes, row: int, of_model: pd.DataFrame, marks: Mapping[str, str], colour: str
) -> None:
    offsets = np.linspace(-0.28, 0.28, len(marks)) if len(marks) > 1 else [0.0]
    for offset, (concept, marker) in zip(offsets, marks.items(), strict=True):
        cell = of_model.loc[concept]
        ax.plot([cell["depth_low"], cell["depth_high"]], [row + offset] * 2, color=colour,
                linewidth=1.0, alpha=0.6)  # fmt: skip
        ax.plot(cell["depth"], row + offset, marker, color=colour, markersize=5,
                markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip


def _draw_bands(ax: Axes, typical: pd.DataFrame) -> list[Artist]:
    """The interval of each training's mean; stripes tell full RL from distilled without hue."""
    bands: list[Artist] = []
    for training, name in TRAINING_NAMES.items():
        group = f"{training} models"
        if group in typical.index and np.isfinite(typical.loc[group, "low"]):
            colour = mpl.colors.to_rgba(TRAINING_COLOURS[training], 0.14)
            stripes: dict[str, Any] = (
                {"hatch": "////", "edgecolor": colour} if training == "rl" else {}
            )
            low, high = typical.loc[group, ["low", "high"]]
            bands.append(ax.axvspan(low, high, facecolor=colour, linewidth=0, zorder=0, **stripes,
                                    label=f"mean of {name} models, 95%"))  # fmt: skip
    return bands


def _numeric(table: pd.DataFrame) -> pd.DataFrame:
    """Claims of a number, not of a direction alone."""
    return table[[not read_printed(text).direction for text in table["published"]]]


def claims(table: pd.DataFrame) -> Figure:
    """Published value, recomputed value and its interval of every claim, by what they measure."""
    panels = {kind: table[table["quantity"] == kind] for kind in dict.fromkeys(table["quantity"])}
    heights = [len(rows) + 0.4 for rows in panels.values()]
    figure, axes = blank_figure(WIDTH, 0.6 + 0.155 * sum(heights) + 0.5 * len(panels),
                                nrows=len(panels), gridspec_kw={"height_ratios": heights},
                                )  # fmt: skip
    for ax, (kind, rows) in zip(axes[:, 0], panels.items(), strict=True):
        for y, (_, row) in enumerate(rows.iterrows()):
            _draw_claim(ax, y, row)
        ax.set_yticks(range(len(rows)), rows["id"])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel(_with_units(kind))
        ax.grid(axis="x", color="#E5E5E5")
        ax.set_axisbelow(True)
    legend_of(figure, _claim_marks(table))
    return figure


def _with_units(quantity: str) -> str:
    units = " (pooled sd)" if quantity.endswith("average Cohen's d") else ""
    return signed(quantity.replace("(nat)", "(nats)") + units)


def _claim_marks(table: pd.DataFrame) -> list[Artist]:
    over = dict.fromkeys(table.loc[table["low"].notna(), "interval_over"])
    return [
        mpl.lines.Line2D([], [], marker="D", color=PUBLISHED_COLOUR, linestyle="",
                         fillstyle="none", label="published"),
        mpl.patches.Patch(color=PUBLISHED_COLOUR, alpha=0.35, label="published range"),
        mpl.lines.Line2D([], [], marker="|", color="black", linestyle="", markersize=9,
                         label="recomputed"),
        *(mpl.lines.Line2D([], [], **_line_of(o), label=f"95%, over {o}") for o in over),
    ]  # fmt: skip


def _line_of(over: str) -> dict[str, Any]:
    """How an interval is drawn: thick where the models are given."""
    colour = INTERVAL_COLOURS.get(over, OTHER_COLOUR)
    return {"color": colour, "linewidth": 3.0 if over == "items" else 1.4}


def _draw_claim(ax: Axes, y: int, row: pd.Series) -> None:
    printed = read_printed(row["published"])
    if np.isfinite(row["low"]):
        ax.plot([row["low"], row["high"]], [y, y], zorder=1, **_line_of(row["interval_over"]))
    if printed.low == printed.high:
        ax.plot(printed.low, y, "D", color=PUBLISHED_COLOUR, markersize=5, fillstyle="none",
                zorder=3)  # fmt: skip
    else:
        ax.plot([printed.low, printed.high], [y, y], color=PUBLISHED_COLOUR, linewidth=6,
                alpha=0.35, zorder=0, solid_capstyle="butt")  # fmt: skip
    ax.plot(row["recomputed"], y, "|", color="black", markersize=9, zorder=2)

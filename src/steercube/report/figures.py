"""The figures of a study: `<name>(plain data) -> Figure`, and `draw` that hands them their data.

Those of the models of training and scale are in `steercube.report.model_figures`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from scipy import stats

from steercube.analysis.agreement import MEAN_R
from steercube.analysis.averages import swept_models
from steercube.analysis.claims import read_printed
from steercube.analysis.curves import scaled
from steercube.analysis.generation import generation_delta, is_counted, layer_curves
from steercube.analysis.tables import R_EVERY_RESPONSE, R_OVER_LAYERS
from steercube.report.model_figures import draw_models
from steercube.report.style import (
    GENERATION_COLOUR,
    INTERVAL_COLOURS,
    OTHER_COLOUR,
    PUBLISHED_COLOUR,
    RESPONSES_COLOUR,
    STRENGTH_COLOURS,
    STYLE,
    TRAINING_COLOURS,
    TRAINING_NAMES,
    WIDTH,
    blank_figure,
    name_of,
)


def draw(cells: xr.Dataset, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Every figure that the study has the data for, by file name."""
    with mpl.rc_context(STYLE):
        models = _model_labels(cells)
        figures = {
            "effect_size_heatmap": effect_size_heatmap(tables["effects"], models),
            "best_layer_violins": best_layer_violins(
                _best_quantiles(cells), models, _missing(tables["effects"])
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


ModelLabels = dict[str, ModelLabel]


def _model_labels(cells: xr.Dataset) -> ModelLabels:
    """Swept models in order of size."""
    training = cells["training"]
    return {m: ModelLabel(m, training.sel(model=m).item()) for m in swept_models(cells)}


def _name_models(axis: Axis, models: ModelLabels, fontsize: float = 9.0) -> None:
    axis.set_ticks(range(len(models)), [label.text for label in models.values()], fontsize=fontsize)
    for tick, label in zip(axis.get_ticklabels(), models.values(), strict=True):
        tick.set_color(label.colour)


def effect_size_heatmap(effects: pd.DataFrame, models: ModelLabels) -> Figure:
    """Cohen's d at the best layer, concept by model, with its interval in every cell."""
    concepts = list(dict.fromkeys(effects["concept"]))
    table = effects.pivot_table(
        index="concept", columns="model", values="cohens_d", dropna=False
    ).reindex(index=concepts, columns=list(models))
    cell = effects.set_index(["concept", "model"])
    figure, axes = blank_figure(
        max(6.2, 2.4 + 0.95 * len(models)), max(2.8, 1.6 + 0.62 * len(concepts))
    )
    ax = axes[0, 0]
    finite = table.to_numpy(dtype=float)
    top = np.nanmax(finite) if np.isfinite(finite).any() else 1.0
    image = ax.imshow(finite, cmap="cividis", vmin=min(0.0, np.nanmin(finite)), vmax=top,
                      aspect="auto")  # fmt: skip
    for row, concept in enumerate(concepts):
        for column, model in enumerate(models):
            text = _readable_on(image.to_rgba(finite[row, column]))
            _write_cell(ax, column, row, cell.loc[(concept, model)], text)
    _name_models(ax.xaxis, models)
    ax.set_yticks(range(len(concepts)), [name_of(c) for c in concepts])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xlabel("model, in order of size" if len(models) > 1 else "model")
    bar = figure.colorbar(image, ax=ax, pad=0.02, fraction=0.05)
    bar.set_label("Cohen's d (pooled sd)")
    bar.outline.set_visible(False)
    ax.set_title(
        "Effect of steering from −1 to +1 at the best layer,\nwith 95% interval over items",
        loc="left",
    )
    return figure


def _readable_on(rgba: tuple[float, ...]) -> str:
    """Black or white, whichever contrasts more with the colour (WCAG 2 relative luminance)."""
    linear = np.asarray(rgba[:3]) ** 2.2
    return "black" if linear @ [0.2126, 0.7152, 0.0722] > 0.18 else "white"


def _write_cell(ax: Axes, x: int, y: int, row: pd.Series, colour: str) -> None:
    d = row["cohens_d"]
    if not np.isfinite(d):
        ax.text(x, y, row["reason"].replace("_", " ") or "–", ha="center", va="center",
                color="#555555", fontsize=8)  # fmt: skip
        return
    ax.text(x, y - 0.13, f"{d:.2f}", ha="center", va="center", color=colour, fontsize=10)
    low, high = row["cohens_d_low"], row["cohens_d_high"]
    shown = f"{low:.2f} to {high:.2f}" if np.isfinite(low) else "no interval"
    ax.text(x, y + 0.24, shown, ha="center", va="center", color=colour, fontsize=7.5)


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


def best_layer_violins(
    quantiles: Quantiles, models: ModelLabels, missing: Mapping[tuple[str, str], str]
) -> Figure:
    """Distribution over items at strengths -1 and +1, the two halves of each violin.

    Each half is scaled to its own largest density, so widths compare within a half alone.
    """
    columns = min(2, len(quantiles))
    rows = -(-len(quantiles) // columns)
    figure, axes = blank_figure(
        max(5.4, WIDTH * columns / 2), 1.0 + 2.3 * rows, nrows=rows, ncols=columns
    )
    for ax, (concept, by_model) in zip(axes.flat, quantiles.items(), strict=False):
        ax.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        for x, model in enumerate(models):
            for strength, values in by_model.get(model, {}).items():
                _half_violin(ax, x, values, strength)
            if model not in by_model:
                why = missing.get((concept, model), "")
                ax.text(x, 0, why, ha="center", va="bottom", fontsize=7.5, color="#555555",
                        rotation=90)  # fmt: skip
        ax.set_title(name_of(concept), loc="left")
        ax.set_xlim(-0.6, len(models) - 0.4)
        _name_models(ax.xaxis, models, fontsize=7.5)
    for ax in axes.flat[len(quantiles) :]:
        ax.set_visible(False)
    figure.supylabel("logit difference, matching − other (nats)", fontsize=9)
    patches = [
        mpl.patches.Patch(color=STRENGTH_COLOURS[s], label=f"strength {s:+.0f}".replace("-", "−"))
        for s in (-1.0, 1.0)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("Items at the best layer; bars: median and quartiles", x=0.01, ha="left",
                    fontsize=9.5)  # fmt: skip
    return figure


def _half_violin(ax: Axes, x: float, quantiles: np.ndarray, strength: float) -> None:
    """One side of a violin from the quantiles: a kernel density of the quantile function."""
    side = -1 if strength < 0 else 1
    points = np.interp(np.linspace(0, 1, 201), np.linspace(0, 1, len(quantiles)), quantiles)
    colour = STRENGTH_COLOURS[strength]
    if np.ptp(points) > 0:
        grid = np.linspace(points.min(), points.max(), 120)
        density = stats.gaussian_kde(points)(grid)
        width = 0.42 * density / density.max()
        ax.fill_betweenx(grid, x, x + side * width, color=colour, linewidth=0, alpha=0.9)
    low, middle, high = np.quantile(points, [0.25, 0.5, 0.75])
    ax.plot([x + side * 0.06] * 2, [low, high], color="black", linewidth=1.6)
    ax.plot(x + side * 0.06, middle, "o", color="white", markeredgecolor="black", markersize=3.6)


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
    """r with its interval, or r alone."""
    shown = f"{row['value']:.2f}"
    if np.isfinite(row["low"]):
        shown += f" [{row['low']:.2f}, {row['high']:.2f}]"
    return shown.replace("-", "−")


def layer_curves_gen_vs_logit(
    curves: CurvesByCell, models: ModelLabels, agreements: Agreements
) -> Figure:
    """Scaled delta of both measures over depth, a panel for each concept and model.

    Over each panel stands r of its curves, under each concept r in a model of the kind, both with
    their interval.
    """
    columns = [model for model in models if any(model in by_model for by_model in curves.values())]
    if len(columns) == 1:
        return _curves_of_one_model(curves, columns[0], models, agreements)
    figure, axes = blank_figure(
        max(5.4, 1.2 + 1.75 * len(columns)),
        max(2.9, 1.1 + 1.75 * len(curves)),
        nrows=len(curves),
        ncols=len(columns),
        sharey=True,
        sharex=True,
    )
    for line, (concept, by_model) in zip(axes, curves.items(), strict=True):
        for ax, model in zip(line, columns, strict=True):
            if model not in by_model:
                ax.set_visible(False)
                continue
            _draw_curves(ax, by_model[model])
            ax.set_title(_r_of_panel(agreements, concept, model), fontsize=7.5, loc="right", pad=2)
        mean = agreements[concept, "every model", MEAN_R]
        shown = f"mean r {_with_range(mean)}" if mean["interval_over"] == "models" else ""
        line[0].set_ylabel(f"{name_of(concept)}\n{shown}".strip(), fontsize=8.5)
    for ax, model in zip(axes[0], columns, strict=True):
        ax.annotate(models[model].text.replace("\n", ", "), (0, 1), (0, 22), fontsize=8.5,
                    xycoords="axes fraction", textcoords="offset points",
                    color=models[model].colour)  # fmt: skip
    return _with_curve_labels(figure)


def _curves_of_one_model(
    curves: CurvesByCell, model: str, models: ModelLabels, agreements: Agreements
) -> Figure:
    """The same, concepts side by side."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = blank_figure(max(5.4, 0.8 + 2.5 * columns), 1.5 + 2.0 * rows, nrows=rows,
                           ncols=columns, sharey=True, sharex=True)  # fmt: skip
    for ax, (concept, by_model) in zip(axes.flat, curves.items(), strict=False):
        _draw_curves(ax, by_model[model])
        shown = f"{name_of(concept)}\n{_r_of_panel(agreements, concept, model)}"
        ax.set_title(shown, fontsize=8.5, loc="left", pad=3)
    for ax in axes.flat[len(curves) :]:
        ax.set_visible(False)
    return _with_curve_labels(figure, of=f"{models[model].text.replace(chr(10), ', ')}: ")


def _r_of_panel(agreements: Agreements, concept: str, model: str) -> str:
    """r of the curves, and of every response where that is another."""
    own = agreements[concept, model, R_OVER_LAYERS]
    every = agreements.get((concept, model, R_EVERY_RESPONSE))
    shown = f"r {_with_range(own)}" if np.isfinite(own["value"]) else "a curve is flat"
    return shown + (f"\nall answers {_with_range(every)}" if every else "")


def _with_curve_labels(figure: Figure, of: str = "") -> Figure:
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        handles |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    figure.supxlabel(f"{of}depth of the steered layer (layer / number of layers)", fontsize=9)
    figure.supylabel("delta, scaled to [0, 1] within each curve", fontsize=9)
    narrow = figure.get_figwidth() < 7
    figure.legend(handles.values(), handles.keys(), loc="outside upper center",
                  ncols=2 if narrow else 4, frameon=False)  # fmt: skip
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
    ax.set_ylim(-0.08, 1.12)


def logit_layer_curves(layer_effects: pd.DataFrame, models: ModelLabels) -> Figure:
    """Cohen's d over depth with its pointwise interval."""
    concepts = list(dict.fromkeys(layer_effects["concept"]))
    columns = min(3, len(concepts))
    rows = -(-len(concepts) // columns)
    figure, axes = blank_figure(
        max(5.4, 2.7 * columns), 1.1 + 2.1 * rows, nrows=rows, ncols=columns, sharex=True
    )
    for ax, concept in zip(axes.flat, concepts, strict=False):
        for number, (model, label) in enumerate(models.items()):
            of = layer_effects.query("model == @model and concept == @concept")
            style = ["-", "--", ":", "-."][number % 4]
            ax.plot(of["depth"], of["cohens_d"], style, color=label.colour, label=model)
            ax.fill_between(of["depth"], of["cohens_d_low"], of["cohens_d_high"],
                            color=label.colour, alpha=0.15, linewidth=0)  # fmt: skip
        ax.axhline(0, color="#999999", linewidth=0.8, zorder=0)
        ax.set_title(name_of(concept), loc="left")
    for ax in axes.flat[len(concepts) :]:
        ax.set_visible(False)
    figure.supxlabel("depth of the steered layer (layer / number of layers)", fontsize=9)
    figure.supylabel("Cohen's d (pooled sd), 95% pointwise", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def depth_by_training(effects: pd.DataFrame, depth: pd.DataFrame, models: ModelLabels) -> Figure:
    """Best depth of every concept, its selection interval, and each model's typical depth."""
    concepts = list(dict.fromkeys(effects["concept"]))
    markers = "osD^vPX*<>"
    figure, axes = blank_figure(WIDTH * 0.85, 1.8 + 0.55 * len(models))
    ax = axes[0, 0]
    typical = depth.set_index("group")
    for row, (model, label) in enumerate(models.items()):
        of_model = effects[effects["model"] == model].set_index("concept")
        offsets = np.linspace(-0.28, 0.28, len(concepts)) if len(concepts) > 1 else [0.0]
        for offset, concept, marker in zip(offsets, concepts, markers * 9, strict=False):
            cell = of_model.loc[concept]
            ax.plot([cell["depth_low"], cell["depth_high"]], [row + offset] * 2,
                    color=label.colour, linewidth=1.0, alpha=0.6)  # fmt: skip
            ax.plot(cell["depth"], row + offset, marker, color=label.colour, markersize=5,
                    markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
        ax.plot([typical.loc[model, "value"]] * 2, [row - 0.38, row + 0.38], color="black",
                linewidth=1.8, zorder=1)  # fmt: skip
    for training, name in TRAINING_NAMES.items():
        group = f"{training} models"
        if group in typical.index and np.isfinite(typical.loc[group, "low"]):
            ax.axvspan(typical.loc[group, "low"], typical.loc[group, "high"], alpha=0.12,
                       color=TRAINING_COLOURS[training], linewidth=0, label=f"{name}: mean of "
                       "models, 95% interval")  # fmt: skip
    shapes = [
        mpl.lines.Line2D([], [], marker=m, color=OTHER_COLOUR, linestyle="", label=name_of(c))
        for c, m in zip(concepts, markers * 9, strict=False)
    ]
    bar = mpl.lines.Line2D([], [], color="black", linewidth=1.8, label="typical (mean of concepts)")
    bands, _ = ax.get_legend_handles_labels()
    figure.legend(handles=[*shapes, bar, *bands], loc="outside lower center", ncols=3,
                  frameon=False, fontsize=8)  # fmt: skip
    _name_models(ax.yaxis, models)
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.set_xlim(min(0.3, effects[["depth", "depth_low"]].min(axis=None) - 0.03), 1.0)
    ax.set_xlabel("depth of the best layer (layer / number of layers)")
    ax.set_title("Where steering works best; lines: 95% of resampled selections", loc="left")
    return figure


def _numeric(table: pd.DataFrame) -> pd.DataFrame:
    """Claims of a number, not of a direction alone."""
    return table[[not read_printed(text).direction for text in table["published"]]]


def claims(table: pd.DataFrame) -> Figure:
    """Published value, recomputed value and its interval of every claim, by what they measure."""
    panels = {kind: table[table["quantity"] == kind] for kind in dict.fromkeys(table["quantity"])}
    heights = [len(rows) + 1.2 for rows in panels.values()]
    figure, axes = blank_figure(WIDTH * 0.9, 1.0 + 0.235 * sum(heights), nrows=len(panels),
                           gridspec_kw={"height_ratios": heights})  # fmt: skip
    for ax, (kind, rows) in zip(axes[:, 0], panels.items(), strict=True):
        for y, (_, row) in enumerate(rows.iterrows()):
            _draw_claim(ax, y, row)
        ax.set_yticks(range(len(rows)), rows["id"])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_title(kind, loc="left", fontsize=9)
        ax.grid(axis="x", color="#E5E5E5")
        ax.set_axisbelow(True)
    marks = [
        mpl.lines.Line2D([], [], marker="D", color=PUBLISHED_COLOUR, linestyle="",
                         fillstyle="none", label="published"),
        mpl.patches.Patch(color=PUBLISHED_COLOUR, alpha=0.35, label="published range"),
        mpl.lines.Line2D([], [], marker="|", color="black", linestyle="", markersize=9,
                         label="recomputed"),
        *(
            mpl.lines.Line2D([], [], color=colour, linewidth=2, label=f"95%, over {over}")
            for over, colour in INTERVAL_COLOURS.items()
        ),
    ]  # fmt: skip
    figure.legend(handles=marks, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    return figure


def _draw_claim(ax: Axes, y: int, row: pd.Series) -> None:
    printed = read_printed(row["published"])
    colour = INTERVAL_COLOURS.get(row["interval_over"], OTHER_COLOUR)
    if np.isfinite(row["low"]):
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2, zorder=1)
    if printed.low == printed.high:
        ax.plot(printed.low, y, "D", color=PUBLISHED_COLOUR, markersize=5, fillstyle="none",
                zorder=3)  # fmt: skip
    else:
        ax.plot([printed.low, printed.high], [y, y], color=PUBLISHED_COLOUR, linewidth=6,
                alpha=0.35, zorder=0, solid_capstyle="butt")  # fmt: skip
    ax.plot(row["recomputed"], y, "|", color="black", markersize=9, zorder=2)

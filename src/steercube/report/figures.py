"""The figures of effects: `<name>(plain data) -> Figure`, and `draw`, which gathers their data.

Figures of the models over models are in `steercube.report.model_figures`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy import stats

from steercube.analysis.agreement.agreement import MEAN_R, R_EVERY_RESPONSE, R_OVER_LAYERS
from steercube.analysis.agreement.curves import scaled
from steercube.analysis.agreement.generation import generation_delta, is_counted, layer_curves
from steercube.analysis.view import Study
from steercube.cells import compared_strengths
from steercube.contrast import Contrast
from steercube.measures import LOGIT_DIFF, Measure
from steercube.numerals import signed
from steercube.report.marks import FULL_COLOUR, holds_zero, marks, meanings, notes_of_heat_map
from steercube.report.model_figures import draw_models
from steercube.report.style import (
    GENERATION_COLOUR,
    HIGH_COLOUR,
    LOW_COLOUR,
    OTHER_COLOUR,
    RESPONSES_COLOUR,
    SMALL,
    STRENGTH_COLOURS,
    STYLE,
    TEXT,
    TITLE,
    WIDTH,
    blank_figure,
    drop_unused,
    inches_of,
    legend_of,
    name_of,
    title_of,
    wrapped,
)

DEPTH = "layer / number of layers"
MARKERS = "osD^vPX*<>"
DASHES = ("-", "--", ":", "-.")
LINE = 0.16
"""Height of one line of a title, inches."""
NO_BREAK = "\N{NO-BREAK SPACE}"


def draw(study: Study, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Every figure that the study has the data for, by file name.

    One that would hold too many models or concepts to be read goes on as `<name>_2` and so on.
    """
    with mpl.rc_context(STYLE):
        swept = _swept(study, tables)
        figures: dict[str, Figure] = {}
        for name, (make, n_models, n_concepts) in FIGURES.items():
            pages = [swept.only(*page) for page in swept.pages(n_models, n_concepts)]
            drawn = [figure for page in pages if (figure := make(page)) is not None]
            names = [name, *(f"{name}_{number}" for number in range(2, len(drawn) + 1))]
            figures |= dict(zip(names, drawn, strict=False))
        return figures | draw_models(tables, study.contrast)


@dataclass(frozen=True)
class Swept:
    """What the figures of effects are drawn from: labels of models, tables, curves by concept."""

    models: "ModelLabels"
    concepts: list[str]
    effects: pd.DataFrame
    layer_effects: pd.DataFrame
    depth: pd.DataFrame
    quantiles: "Quantiles"
    curves: "CurvesByCell"
    agreements: "Agreements"
    contrast: Contrast | None
    measure: Measure

    def pages(self, n_models: int, n_concepts: int) -> Iterator[tuple[list[str], list[str]]]:
        """Models and concepts of each page, so many at most, in parts of about equal size."""
        for concepts in _in_parts(self.concepts, n_concepts):
            for models in _in_parts(list(self.models), n_models):
                yield models, concepts

    def only(self, models: Sequence[str], concepts: Sequence[str]) -> "Swept":
        """The same of some of the models and concepts."""
        effects, layers = (
            table[table["model"].isin(models) & table["concept"].isin(concepts)]
            for table in (self.effects, self.layer_effects)
        )
        curves = {c: {m: of[m] for m in of if m in models} for c, of in self.curves.items()}
        return replace(
            self,
            models={m: label for m, label in self.models.items() if m in models},
            concepts=list(concepts),
            effects=effects,
            layer_effects=layers,
            quantiles={
                c: {m: of[m] for m in of if m in models}
                for c, of in self.quantiles.items()
                if c in concepts
            },
            curves={c: of for c, of in curves.items() if c in concepts and of},
        )


def _in_parts(names: list[str], most: int) -> list[list[str]]:
    """The names split into parts of at most `most`, as few as possible and about equal."""
    n_parts = max(1, -(-len(names) // most))
    return [part.tolist() for part in np.array_split(np.array(names, dtype=object), n_parts)]


def _swept(study: Study, tables: Mapping[str, pd.DataFrame]) -> Swept:
    curves = _curves(study, tables["layer_effects"])
    return Swept(
        models=model_labels(study),
        concepts=list(dict.fromkeys(tables["effects"]["concept"])),
        effects=tables["effects"],
        layer_effects=tables["layer_effects"],
        depth=tables["depth"],
        quantiles=best_quantiles(study),
        curves=curves,
        agreements=_agreements(tables["agreement"]) if curves else {},
        contrast=study.contrast,
        measure=study.measure,
    )


def _violins(of: Swept) -> Figure | None:
    if not of.quantiles:
        return None
    missing, marked = why_missing(of.effects), _marks(of.effects)
    return best_layer_violins(
        of.quantiles, of.models, missing, marked, meanings(of.effects), measure=of.measure
    )


FIGURES: dict[str, tuple[Callable[[Swept], Figure | None], int, int]] = {
    "effect_size_heatmap": (
        lambda of: effect_size_heatmap(of.effects, of.models, of.measure),
        8,
        12,
    ),
    "best_layer_violins": (_violins, 16, 6),
    "depth_by_label": (
        lambda of: depth_by_label(of.effects, of.depth, of.models, of.contrast),
        12,
        9,
    ),
    "layer_curves": (lambda of: logit_layer_curves(of.layer_effects, of.models), 8, 8),
    "layer_curves_gen_vs_logit": (
        lambda of: (
            layer_curves_gen_vs_logit(of.curves, of.models, of.agreements) if of.curves else None
        ),
        18,
        6,
    ),
}
"""How each is drawn, and how many models and concepts a page of it holds at most."""


@dataclass(frozen=True)
class ModelLabel:
    """How a model is shown: its label decides the colour, its name is always printed."""

    name: str
    label: str
    number: int
    colour: str = OTHER_COLOUR

    @property
    def text(self) -> str:
        """Name and label, on two lines."""
        return f"{self.name}\n{self.label}"

    @property
    def line(self) -> str:
        """The same on one line, which may be broken between them."""
        return f"{self.name}, {self.label.replace(' ', NO_BREAK)}"


ModelLabels = dict[str, ModelLabel]


def model_labels(study: Study) -> ModelLabels:
    """Swept models in order of size, with their label in the contrast, else their training."""
    contrast = study.contrast
    if contrast is None:
        training = enumerate(zip(study.models, study.facts("training"), strict=True))
        return {model: ModelLabel(model, str(of), at) for at, (model, of) in training}
    colours = {contrast.low: LOW_COLOUR, contrast.high: HIGH_COLOUR}
    labels = map(str, study.facts(contrast.by))
    return {
        model: ModelLabel(model, contrast.named(of), at, colours.get(of, OTHER_COLOUR))
        for at, (model, of) in enumerate(zip(study.models, labels, strict=True))
    }


def name_models(axis: Axis, models: ModelLabels, inches: float = WIDTH) -> None:
    """Tick labels with `inches` of space each, rotated where they do not fit."""
    names = [label.text for label in models.values()]
    broken = ["\n".join(wrapped(line, inches, SMALL) for line in n.split("\n")) for n in names]
    fit = all(inches_of(name, SMALL) <= inches for name in broken)
    axis.set_ticks(range(len(models)), broken if fit else names, fontsize=SMALL,
                   rotation=0 if fit else 90)  # fmt: skip
    for tick, label in zip(axis.get_ticklabels(), models.values(), strict=True):
        tick.set_color(label.colour)


def effect_size_heatmap(
    effects: pd.DataFrame, models: ModelLabels, measure: Measure = LOGIT_DIFF
) -> Figure:
    """Cohen's d at the best layer, concept by model, with its interval in every cell."""
    concepts = list(dict.fromkeys(effects["concept"]))
    width = min(WIDTH, max(4.2, 1.4 + 0.95 * len(models)))
    of_cell = (width - 1.4) / len(models)
    notes = notes_of_heat_map(effects)
    names = [wrapped(name_of(c), 1.1, SMALL) for c in concepts]
    rows = [max(0.55 if of_cell > 0.8 else 0.7, 0.14 * _n_lines(name) + 0.1) for name in names]
    height = 1.9 + LINE * len(notes) + max(rows) * len(concepts)
    figure, axes = blank_figure(width, height)
    draw_heat_map(axes[0, 0], effects, models, of_cell)
    title = f"Effect of steering{_span(measure)} at the best layer,\nwith 95% interval over items"
    title_of(figure, "\n".join([title, *notes]))
    return figure


def draw_heat_map(ax: Axes, effects: pd.DataFrame, models: ModelLabels, of_cell: float) -> None:
    """Cohen's d of `effects`, concept by model, in axes whose cells are `of_cell` inches wide."""
    concepts = list(dict.fromkeys(effects["concept"]))
    table = effects.pivot_table(
        index="concept", columns="model", values="cohens_d", dropna=False
    ).reindex(index=concepts, columns=list(models))
    cell = effects.set_index(["concept", "model"])
    finite = table.to_numpy(dtype=float)
    image = ax.imshow(finite, cmap="cividis", vmin=0.0, vmax=FULL_COLOUR, aspect="auto")
    for row, concept in enumerate(concepts):
        for column, model in enumerate(models):
            text = _readable_on(image.to_rgba(finite[row, column]))
            of = cell.loc[(concept, model)]
            if np.isfinite(of["cohens_d"]) and holds_zero(of):
                ax.add_patch(_hatching(column, row))
            _write_cell(ax, column, row, of, text, of_cell)
    name_models(ax.xaxis, models, of_cell - 0.06)
    ax.set_yticks(range(len(concepts)), [wrapped(name_of(c), 1.1, SMALL) for c in concepts])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xlabel("model, in order of size" if len(models) > 1 else "model")
    beyond = "max" if np.nanmax(finite, initial=0.0) > FULL_COLOUR else "neither"
    bar = ax.figure.colorbar(
        image, ax=ax, location="bottom", aspect=50, fraction=0.05, pad=0.02, extend=beyond
    )
    bar.set_label("Cohen's d (pooled sd)")
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def _span(measure: Measure) -> str:
    """From which strength to which, in words; empty for a slope over all."""
    if isinstance(measure.compare, str):
        return ""
    low, high = measure.compare
    return signed(f" from {low:+g} to {high:+g}")


def _hatching(x: int, y: int) -> Rectangle:
    """Thin diagonal lines over a cell that leave its numbers readable."""
    return Rectangle(
        (x - 0.5, y - 0.5), 1, 1, fill=False, hatch="/", linewidth=0, edgecolor="#8a8a8a"
    )


def _readable_on(rgba: Any) -> str:
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


def best_quantiles(study: Study) -> Quantiles:
    """Quantiles of the logit differences at the best layer, by concept, model and strength."""
    cells, ends = study.cells, compared_strengths(study.cells)
    found: Quantiles = {}
    for concept in study.concepts:
        for model in study.models:
            layer = float(cells["selected_layer"].sel(model=model, concept=concept))
            if np.isfinite(layer):
                at = cells["quantiles"].sel(model=model, concept=concept, layer=layer)
                found.setdefault(concept, {})[model] = {
                    s: at.sel(strength=s).values.astype(float) for s in ends
                }
    return found


def why_missing(effects: pd.DataFrame) -> dict[tuple[str, str], str]:
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
    *,
    measure: Measure = LOGIT_DIFF,
) -> Figure:
    """Distribution over items at the compared strengths, the two halves of each violin.

    Each half is scaled to its own largest density, so widths compare within a half alone. `marked`
    are marks at the right edge, `notes` what they mean.
    """
    columns = min(2, len(quantiles))
    rows = -(-len(quantiles) // columns)
    titles = _titles(quantiles, columns)
    height = 0.55 + LINE * (max(map(_n_lines, titles)) - 1) + 0.32 * len(models)
    figure, axes = blank_figure(
        4.2 if columns == 1 else WIDTH,
        1.1 + LINE * len(notes) + height * rows,
        nrows=rows,
        ncols=columns,
        sharey=True,
    )
    panels = zip(axes.flat, titles, quantiles.items(), strict=False)
    for ax, title_of_panel, (concept, by_model) in panels:
        draw_violins(ax, by_model, models, {m: missing.get((concept, m), "") for m in models})
        for y, model in enumerate(models):
            ax.text(0.99, y - 0.1, marked[concept, model], ha="right", va="bottom", fontsize=SMALL,
                    transform=ax.get_yaxis_transform())  # fmt: skip
        ax.set_title(title_of_panel, loc="left")
    drop_unused(axes)
    for ax in axes[:, 0]:
        name_models(ax.yaxis, models)
    axes[0, 0].set_ylim(len(models) - 0.4, -0.6)
    figure.supxlabel(values_of(measure), fontsize=TEXT)
    strengths = sorted({s for of in quantiles.values() for one in of.values() for s in one})
    patches = halves_of(strengths)
    title = ["Items at the best layer; bars: median and quartiles", *notes]
    legend_of(figure, patches, title="\n".join(title))
    return figure


def values_of(measure: Measure) -> str:
    """What an axis of a measure's values is called."""
    if measure.name == LOGIT_DIFF.name:
        return "logit difference, matching − other (nats)"
    return measure.words + (f" ({measure.units})" if measure.units != "1" else "")


def halves_of(strengths: Sequence[float]) -> list[Patch]:
    """What the two halves of a violin show, for a legend."""
    halves = zip(("lower", "upper"), STRENGTH_COLOURS, strengths, strict=False)
    return [
        Patch(color=colour, label=signed(f"strength {strength:+g} ({half} half)"))
        for half, colour, strength in halves
    ][::-1]


def _titles(concepts: Iterable[str], columns: int) -> list[str]:
    """Names of concepts, wrapped to the width of a panel."""
    inches = 3.0 if columns == 1 else 2.4
    return [wrapped(name_of(concept), inches, TITLE) for concept in concepts]


def draw_violins(
    ax: Axes,
    by_model: Mapping[str, Mapping[float, np.ndarray]],
    models: ModelLabels,
    missing: Mapping[str, str],
) -> None:
    """A violin for each model; `missing` says why a model has none."""
    ax.axvline(0, color="#999999", linewidth=0.8, zorder=0)
    for y, model in enumerate(models):
        halves = sorted(by_model.get(model, {}).items())
        for side, colour, (_, values) in zip((1, -1), STRENGTH_COLOURS, halves, strict=False):
            _half_violin(ax, y, values, side, colour)
        if model not in by_model:
            ax.text(0.5, y, missing[model], ha="center", va="center", fontsize=SMALL,
                    color=OTHER_COLOUR, transform=ax.get_yaxis_transform(),
                    bbox={"color": "white", "pad": 1})  # fmt: skip


def _half_violin(ax: Axes, y: float, quantiles: np.ndarray, side: int, colour: str) -> None:
    """One side of a violin: a kernel density of points drawn from the quantiles."""
    points = np.interp(np.linspace(0, 1, 201), np.linspace(0, 1, len(quantiles)), quantiles)
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


def _curves(study: Study, layer_effects: pd.DataFrame) -> CurvesByCell:
    """Scaled curves by concept and swept model, where a layer has both measures."""
    found: CurvesByCell = {}
    if "generation_delta" not in layer_effects:
        return found
    for concept in study.concepts:
        curves = layer_curves(study, concept=concept, models=study.models)
        for model, (logit, generation) in curves.items():
            of = layer_effects.query("model == @model and concept == @concept")
            of = of.dropna(subset=["delta", "generation_delta"])
            margin = (of["delta_high"] - of["delta"]).to_numpy()
            found.setdefault(concept, {})[model] = ScaledCurves(
                depth=of["depth"].to_numpy(),
                logit=_scaled_or_flat(logit),
                margin=margin / (np.ptp(logit) or 1.0),
                generation=_scaled_or_flat(generation),
                responses=_responses(study, concept, model, of["layer"].to_numpy()),
            )
    return found


def _responses(study: Study, concept: str, model: str, layers: np.ndarray) -> np.ndarray | None:
    if "response_match_rate" not in study.cells or is_counted(study, model, concept):
        return None
    counted = generation_delta(
        study.cells.sel(model=model, concept=concept, layer=layers), "response_match_rate"
    )
    return _scaled_or_flat(counted.values) if np.isfinite(counted.values).all() else None


def _scaled_or_flat(curve: np.ndarray) -> np.ndarray:
    """The curve scaled to [0, 1]; 0.5 everywhere for a flat one."""
    return scaled(curve) if np.ptp(curve) > 0 else np.full(len(curve), 0.5)


Agreements = dict[tuple[str, str, str], Any]
"""Rows of the table of agreement by concept, model and statistic."""


def _agreements(agreement: pd.DataFrame) -> Agreements:
    keys = ["concept", "model", "statistic"]
    rows = agreement.to_dict("records")
    return {(row[keys[0]], row[keys[1]], row[keys[2]]): row for row in rows}


def _with_range(row: Mapping[str, Any]) -> str:
    """r with its interval, which is never broken over lines, or r alone."""
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
    heads = {c: wrapped(_with_mean_r(agreements, c), WIDTH - 0.7, TITLE) for c in curves}
    n_over = {c: n_notes[c] + n_names + _n_lines(heads[c]) for c in curves}
    figure, axes = blank_figure(
        WIDTH,
        1.1 + lines * sum(height + 0.14 * n + 0.15 for n in n_over.values()),
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
        _write_over(next(iter(at.values())), heads[concept], top, TITLE)
    return _with_curve_labels(figure, axes, inches)


def _n_lines(text: str) -> int:
    return text.count("\n") + 1


def _offset(n_lines: int) -> float:
    """Height of `n_lines` of a panel's heading, points."""
    return 3 + 1.25 * SMALL * n_lines


def _write_over(ax: Axes, text: str, offset: float, size: float = SMALL, **how: Any) -> None:
    """Text `offset` points above the panel, which may be wider than the panel."""
    written = ax.annotate(text, (0, 1), (0, offset), xycoords="axes fraction", fontsize=size,
                          textcoords="offset points", **{"va": "bottom"} | how)  # fmt: skip
    # The layout would push the next column away from it; an empty title keeps room above alone.
    written.set_in_layout(False)
    room = 1 if how.get("va") == "top" else _n_lines(text)
    ax.set_title("\n".join([" "] * room), loc="left", fontsize=size, pad=offset)


def _with_mean_r(agreements: Agreements, concept: str) -> str:
    mean = agreements[concept, "every model", MEAN_R]
    name = name_of(concept)
    return f"{name}, mean r {_with_range(mean)}" if mean["interval_over"] == "models" else name


def _curves_of_one_model(
    curves: CurvesByCell, model: str, models: ModelLabels, agreements: Agreements
) -> Figure:
    """The same figure for a single model, concepts side by side."""
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
    """r of the curves and, where it differs, r of every response, wrapped to the panel."""
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
    titles = _titles(concepts, columns)
    height = 2.0 + LINE * (max(map(_n_lines, titles)) - 1)
    figure, axes = blank_figure(
        4.2 if columns == 1 else WIDTH, 1.1 + height * rows, nrows=rows, ncols=columns, sharex=True
    )
    for panel, (ax, concept) in enumerate(zip(axes.flat, concepts, strict=False)):
        of_concept = layer_effects[layer_effects["concept"] == concept]
        draw_layer_curves(ax, of_concept, models, gid=f"-{panel}")
        ax.set_title(titles[panel], loc="left")
    drop_unused(axes)
    figure.supxlabel(f"depth of the steered layer ({DEPTH})", fontsize=TEXT)
    figure.supylabel("Cohen's d (pooled sd), 95% pointwise", fontsize=TEXT)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    legend_of(figure, handles)
    return figure


def draw_layer_curves(
    ax: Axes,
    of_concept: pd.DataFrame,
    models: ModelLabels,
    *,
    gid: str = "",
    best: Mapping[str, float] | None = None,
) -> None:
    """The curves of one concept's `layer_effects`; `gid` ends the ids of their parts.

    Markers stand at the `best` layer of each model; without it here and there, to tell models
    apart.
    """
    for number, (model, label) in enumerate(models.items()):
        of = of_concept[of_concept["model"] == model]
        name = f"curve-{label.number}{gid}"
        marked: Any = (number, 6)
        if best is not None:
            marked = np.flatnonzero(of["layer"].to_numpy() == best[model]).tolist()
        ax.plot(of["depth"], of["cohens_d"], linestyle=DASHES[number % 4], linewidth=1.3,
                marker=MARKERS[number % len(MARKERS)], markevery=marked, markersize=3.5,
                color=label.colour, label=model, gid=name)  # fmt: skip
        ax.fill_between(of["depth"], of["cohens_d_low"], of["cohens_d_high"],
                        color=label.colour, alpha=0.15, linewidth=0,
                        gid=f"{name}-band")  # fmt: skip
    ax.axhline(0, color="#999999", linewidth=0.8, zorder=0)


def depth_by_label(
    effects: pd.DataFrame,
    depth: pd.DataFrame,
    models: ModelLabels,
    contrast: Contrast | None = None,
) -> Figure:
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
    legend_of(figure, [*shapes, bar, *_draw_bands(ax, typical, contrast)], where="lower")
    name_models(ax.yaxis, models)
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


def _draw_bands(ax: Axes, typical: pd.DataFrame, contrast: Contrast | None) -> list[Artist]:
    """The interval of each label's mean; stripes distinguish the two without hue."""
    if contrast is None:
        return []
    bands: list[Artist] = []
    stripes: dict[str, Any] = {"hatch": "////"}
    for label, hue, how in (
        (contrast.low, LOW_COLOUR, {}),
        (contrast.high, HIGH_COLOUR, stripes),
    ):
        group = f"{label} models"
        if group in typical.index and np.isfinite(typical.loc[group, "low"]):
            colour = mpl.colors.to_rgba(hue, 0.14)
            how = how | {"edgecolor": colour} if how else how
            low, high = typical.loc[group, ["low", "high"]]
            name = f"mean of {contrast.named(label)} models, 95%"
            band = ax.axvspan(low, high, facecolor=colour, linewidth=0, zorder=0, label=name, **how)
            bands.append(band)
    return bands

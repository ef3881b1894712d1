"""What all figures share: colours, fonts, width, an empty figure, and text that fits.

Colours: a sequential map that is even in lightness (cividis), and two hues apart in lightness
for the two labels of a contrast (Okabe & Ito 2008), so nothing is shown by hue alone.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

LOW_COLOUR, HIGH_COLOUR = "#0072B2", "#D55E00"
"""Colours of the two labels that are compared."""
OTHER_COLOUR = "#555555"
STRENGTH_COLOURS = ("#56B4E9", "#E69F00")
"""Colours of the low and the high one of the compared strengths."""
INTERVAL_COLOURS = {"items": "#009E73", "models": "#999999"}
PUBLISHED_COLOUR = "#CC79A7"
GENERATION_COLOUR = "#CC79A7"
RESPONSES_COLOUR = "#0072B2"

WIDTH = 6.5
"""Inches of text across an A4 or letter page: a wider figure, and its letters, would be shrunk."""
TITLE, TEXT, SMALL = 9.0, 8.5, 8.0
"""Font sizes, points; no text is smaller."""
FONT = "DejaVu Sans"
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": TEXT,
    "axes.titlesize": TITLE,
    "axes.labelsize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}


def name_of(concept: str) -> str:
    """The name of a concept in a title."""
    return concept.replace("_", " ")


@cache
def inches_of(text: str, size: float) -> float:
    """Width of the longest line at a font size of `size` points."""
    font = FontProperties(family=FONT)
    lines = [line for line in text.split("\n") if line.strip()]
    widths = [TextPath((0, 0), line, size=size, prop=font).get_extents().width for line in lines]
    return max(widths, default=0.0) / 72


def wrapped(text: str, inches: float, size: float) -> str:
    """The text wrapped after spaces and hyphens; a word that is too long is not broken."""
    first, *others = re.findall(r"[^ -]*[ -]?", text)
    lines = [first]
    for word in others:
        longer = lines[-1] + word
        if inches_of(longer, size) <= inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(line.rstrip(" ") for line in lines)


def shortened(text: str, inches: float, size: float) -> str:
    """The text on one line that fits, its middle left out where it must be."""
    kept = len(text)
    shown = text
    while inches_of(shown, size) > inches and kept > 2:
        kept -= 1
        shown = f"{text[: kept - kept // 3]}…{text[len(text) - kept // 3 :]}"
    return shown


def blank_figure(width: float, height: float, **grid: object) -> tuple[Figure, np.ndarray]:
    """A figure outside pyplot, which keeps no state between calls, and its axes (row, column)."""
    figure = Figure(figsize=(min(width, WIDTH), height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(squeeze=False, **grid)  # type: ignore[call-overload]
    for ax in axes.flat:
        # Ticks that are made when the figure is saved no longer see the style.
        ax.tick_params(labelsize=SMALL)
    return figure, axes


def drop_unused(axes: np.ndarray) -> None:
    """Hide panels without data, and label the ticks of the lowest panel left in each column."""
    for column in axes.T:
        used = [ax for ax in column if ax.has_data()]
        for ax in column:
            ax.set_visible(ax in used)
        if used:
            used[-1].tick_params(labelbottom=True)


def title_of(figure: Figure, text: str) -> None:
    """The title of the whole figure, from its left edge."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=TITLE)


def legend_of(
    figure: Figure,
    handles: Sequence[Any],
    *,
    where: Literal["upper", "lower"] = "upper",
    title: str | None = None,
) -> None:
    """The legend of the whole figure, outside its axes, in as many columns as fit."""
    widest = max(inches_of(str(handle.get_label()), SMALL) for handle in handles)
    fitting = max(1, int((figure.get_figwidth() - 0.1) // (widest + 0.6)))
    rows = -(-len(handles) // fitting)
    figure.legend(
        handles=handles,
        loc="outside upper center" if where == "upper" else "outside lower center",
        fontsize=SMALL,
        ncols=-(-len(handles) // rows),
        frameon=False,
        title=title,
        title_fontsize=TITLE,
    )

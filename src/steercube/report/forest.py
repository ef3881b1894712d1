"""One way to draw a list of intervals: a name a line, its value and its interval on it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from steercube.report.style import SMALL

GREY = "#DDDDDD"
"""Of what was called negligible beforehand, or what chance allows."""


@dataclass(frozen=True)
class Interval:
    """One line of a forest: where it stands, its ends and value, and how each is drawn."""

    y: float
    value: float
    low: float = np.nan
    high: float = np.nan
    line: Mapping[str, Any] = field(default_factory=dict)
    mark: Mapping[str, Any] = field(default_factory=dict)


def forest(
    ax: Axes,
    intervals: Iterable[Interval],
    names: Sequence[str],
    *,
    bands: Iterable[tuple[float, float]] = (),
    zero: bool = False,
    bold: Collection[str] = (),
    **ticks: Any,
) -> None:
    """Draw the intervals on their lines, the names at the left; `bands` are grey in the back."""
    for low, high in bands:
        ax.axvspan(low, high, color=GREY, linewidth=0, zorder=0)
    if zero:
        ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    for of in intervals:
        if np.isfinite(of.low):
            ax.plot([of.low, of.high], [of.y, of.y], **of.line)
        if of.mark:
            ax.plot(of.value, of.y, linestyle="", **of.mark)
    ax.set_yticks(range(len(names)), names, **{"fontsize": SMALL} | ticks)
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in bold else "normal")
    ax.set_ylim(len(names) - 0.5, -0.5)

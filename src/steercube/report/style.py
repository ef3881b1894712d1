"""What all figures share: colours, letters, width, and an empty figure.

Colours: a sequential map that is even in lightness (cividis), and two hues apart in lightness
for the trainings (Okabe & Ito 2008), so nothing is told by hue alone.
"""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TRAINING_COLOURS = {"distilled": "#0072B2", "rl": "#D55E00"}
OTHER_COLOUR = "#555555"
STRENGTH_COLOURS = {-1.0: "#56B4E9", 1.0: "#E69F00"}
INTERVAL_COLOURS = {"items": "#009E73", "models": "#999999"}
PUBLISHED_COLOUR = "#CC79A7"
GENERATION_COLOUR = "#CC79A7"
RESPONSES_COLOUR = "#0072B2"
TRAINING_NAMES = {"distilled": "distilled", "rl": "full RL"}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}
WIDTH = 8.0
"""Inches: a post's column, so that letters of 9 points stay readable in it."""


def name_of(concept: str) -> str:
    """A concept as a title says it."""
    return concept.replace("_", " ")


def blank_figure(width: float, height: float, **grid: object) -> tuple[Figure, np.ndarray]:
    """A figure outside pyplot, which keeps no state between calls, and its axes (row, column)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(squeeze=False, **grid)  # type: ignore[call-overload]
    return figure, axes

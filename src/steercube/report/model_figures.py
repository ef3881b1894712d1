"""Figures of the models of training and scale: methods side by side, specifications, designs."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from steercube.analysis.calibration import N_INTENDED, TRUTH
from steercube.analysis.design import POWER
from steercube.analysis.effects import NAMES
from steercube.analysis.hierarchy import OUTCOMES
from steercube.analysis.multiverse import CHOICES, DISTINCT
from steercube.analysis.training import ALONE, BOTH, CONCEPTS, GRID, ITEMS, PERMUTATION
from steercube.report.style import OTHER_COLOUR, STYLE, WIDTH, blank_figure

RANDOM_COLOURS = {ITEMS: "#009E73", CONCEPTS: "#E69F00"}
MODELS_COLOUR = "#333333"
EFFECT_COLOURS = ("#56B4E9", "#0072B2", "#D55E00", "#E69F00")
PLACES = {"best_depth": "depth of the best layer", "depth_centroid": "depth centroid"}
N_BINS = 240

Tables = Mapping[str, pd.DataFrame]


def draw_models(tables: Tables) -> dict[str, Figure]:
    """Those that the tables have data for, by file name."""
    figures = {}
    effects = tables["training_effect"]
    if effects["low"].notna().any():
        figures["training_effect"] = training_effect(effects)
    if "effect" in tables["multiverse"]:
        summary = tables["multiverse_summary"]
        figures["specification_curve"] = specification_curve(
            tables["multiverse"], summary[summary["statistic"] == DISTINCT].iloc[0]
        )
    if "type_m" in tables["design"]:
        figures["design"] = design(tables["design"])
    checks = tables["predictive_checks"]
    if "found" in checks:
        figures["posterior_checks"] = posterior_checks(checks.dropna(subset="found"))
    return figures


def outcome_name(outcome: str) -> str:
    """An outcome as a title says it."""
    return NAMES.get(outcome, PLACES.get(outcome, outcome))


def _units_of(outcome: str) -> str:
    units = OUTCOMES[outcome].units
    return "" if units == "1" else units.replace("nat", "nats")


def training_effect(effects: pd.DataFrame) -> Figure:
    """b_training and its interval by every method; grey: what was called negligible beforehand.

    The first outcome, which every method fits, has the whole width; the others stand in pairs.
    """
    shown = effects[effects["estimate"].notna() & (effects["method"] != PERMUTATION)]
    shown = shown.assign(key=[_method(row) for _, row in shown.iterrows()])
    outcomes = list(dict.fromkeys(shown["outcome"]))
    methods = {o: list(dict.fromkeys(shown[shown["outcome"] == o]["key"])) for o in outcomes}
    lines = [outcomes[:1], *(outcomes[i : i + 2] for i in range(1, len(outcomes), 2))]
    heights = [0.55 + 0.19 * max(len(methods[o]) for o in line) for line in lines]
    figure = Figure(figsize=(WIDTH, 0.7 + sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(lines), 2, height_ratios=heights)
    for at, line in enumerate(lines):
        for column, outcome in enumerate(line):
            ax = figure.add_subplot(grid[at, :] if at == 0 else grid[at, column])
            _draw_methods(ax, outcome, shown[shown["outcome"] == outcome], methods[outcome])
            if column:
                ax.set_yticklabels([])
    figure.supxlabel(
        f"full RL minus distilled, with {shown['level'].iloc[0]:.0%} interval (hierarchical: "
        "credible, else confidence)",
        fontsize=9,
    )
    handles = [
        mpl.lines.Line2D([], [], color=colour, marker="o", markersize=4, label=label)
        for colour, label in (
            (RANDOM_COLOURS[ITEMS], "random: items"),
            (RANDOM_COLOURS[CONCEPTS], "items, concepts"),
            (MODELS_COLOUR, "models too"),
        )
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    FigureCanvasAgg(figure)
    return figure


def _draw_methods(ax: Axes, outcome: str, rows: pd.DataFrame, methods: Sequence[str]) -> None:
    negligible = rows["negligible"].iloc[0]
    ax.axvspan(-negligible, negligible, color="#DDDDDD", linewidth=0, zorder=0)
    ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    for _, row in rows.iterrows():
        _draw_interval(ax, methods.index(row["key"]), row)
    ax.set_yticks(range(len(methods)), methods, fontsize=8)
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == f"{GRID}: {BOTH}" else "normal")
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.set_title(outcome_name(outcome), loc="left")
    ax.set_xlabel(_units_of(outcome), fontsize=8)


def _method(row: pd.Series) -> str:
    if row["method"] == "bootstrap":
        return f"bootstrap: {row['takes_as_random']}"
    return f"{row['method']}: {row['adjusted']}"


def _draw_interval(ax: Axes, y: int, row: pd.Series) -> None:
    colour = RANDOM_COLOURS.get(row["takes_as_random"], MODELS_COLOUR)
    width = 2.6 if row["method"] == GRID and row["adjusted"] == BOTH else 1.4
    ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=width)
    ax.plot(row["estimate"], y, "o", color=colour, markersize=4)


def specification_curve(table: pd.DataFrame, median: pd.Series) -> Figure:
    """Every specification in order of effect, and which choices lie where in that order.

    Below, each line is one choice; dark where the specifications of that rank have it more often
    than the others of its group.
    """
    options = [
        (choice, str(option))
        for choice in CHOICES
        if table[choice].nunique() > 1
        for option in table.groupby(choice)["effect"].mean().sort_values().index
    ]
    figure, axes = blank_figure(
        WIDTH,
        2.6 + 0.19 * len(options),
        nrows=2,
        sharex=True,
        gridspec_kw={"height_ratios": [2.2, 0.19 * len(options) + 0.2]},
    )
    ax, below = axes[:, 0]
    rank = np.arange(len(table)) / max(len(table) - 1, 1) * 100
    ax.plot(rank, table["effect"] * 100, color=MODELS_COLOUR, linewidth=1.6)
    ax.axhline(0, color="#888888", linewidth=0.8)
    value = 100 * median["value"]
    ax.axhline(value, color="#D55E00", linewidth=1, linestyle="--")
    ax.set_title(
        f"{len(table):,} specifications, median {value:.0f}%\np = {median['p_value']:.2f} over "
        f"every giving of the training labels (least possible {median['least_p']:.2f})".replace(
            "-", "−"
        ),
        loc="left",
    )
    ax.set_ylabel("full RL minus distilled,\n% of the mean effect")
    n_bins = min(N_BINS, len(table))
    bins = np.minimum((np.arange(len(table)) * n_bins) // len(table), n_bins - 1)
    sizes = np.bincount(bins, minlength=n_bins)
    image = np.array(
        [
            np.bincount(bins, weights=(table[c] == o).to_numpy(float), minlength=n_bins) / sizes
            / (table[c] == o).mean()
            for c, o in options
        ]
    )  # fmt: skip
    below.imshow(image, aspect="auto", cmap="Greys", vmin=0, vmax=3, interpolation="nearest",
                 extent=(0, 100, len(options) - 0.5, -0.5))  # fmt: skip
    below.set_yticks(range(len(options)), [_option(c, o) for c, o in options], fontsize=7.5)
    for at in range(1, len(options)):
        if options[at][0] != options[at - 1][0]:
            below.axhline(at - 0.5, color="#AAAAAA", linewidth=0.8)
    below.set_xlabel("rank of the specification, % (dark: the choice is more frequent there)")
    return figure


def _option(choice: str, option: str) -> str:
    name = NAMES.get(option, option).replace("_", " ")
    return f"{choice}: {name}"


def design(table: pd.DataFrame) -> Figure:
    """Power, and exaggeration of what is significant, by the number of models of each training."""
    errors = table[(table["kind"] == "errors") & table["power"].notna()]
    outcomes = [o for o in ("cohens_d", "best_depth") if o in set(errors["outcome"])]
    other = next(c for c in errors if c.startswith("n_") and c not in _NOT_MODELS)
    figure, axes = blank_figure(WIDTH, 0.7 + 2.5 * len(outcomes), nrows=len(outcomes), ncols=2)
    for (ax, exaggeration), outcome in zip(axes, outcomes, strict=True):
        of = errors[errors["outcome"] == outcome]
        of = of[
            (of["n_concepts"] == of["n_concepts"].iloc[0])
            & (of["n_items"] == of["n_items"].iloc[0])
        ]
        own = (of[other].iloc[0], of["n_other"].iloc[0])
        for colour, (source, rows) in zip(
            EFFECT_COLOURS, of.groupby("effect_is", sort=False), strict=False
        ):
            plain = rows[rows["adjusted"] == ALONE]
            balanced = plain[plain[other] == plain["n_other"]]
            size = f"{rows['effect'].iloc[0]:.3g} ({source})"
            for panel, column in ((ax, "power"), (exaggeration, "type_m")):
                panel.plot(balanced["n_other"], balanced[column], "o-", color=colour, label=size,
                           markersize=3.5)  # fmt: skip
                here = rows[(rows[other] == own[0]) & (rows["n_other"] == own[1])]
                for adjusted, filling in ((ALONE, "full"), (BOTH, "none")):
                    star = here[here["adjusted"] == adjusted][column]
                    panel.plot([np.mean(own)] * len(star), star, "*", color=colour, markersize=9,
                               fillstyle=filling)  # fmt: skip
        for panel in (ax, exaggeration):
            panel.set_xscale("log")
            counts = sorted({int(n) for n in of["n_other"] if n > 2})
            panel.set_xticks(counts, [f"{n}" for n in counts])
            panel.minorticks_off()
        ax.axhline(POWER, color="#888888", linewidth=0.8, linestyle="--")
        ax.set_ylim(0, 1.02)
        ax.set_ylabel("power")
        exaggeration.axhline(1, color="#888888", linewidth=0.8)
        exaggeration.set_ylabel("type M: exaggeration\nof a significant estimate")
        ax.set_title(outcome_name(outcome), loc="left")
        title = f"true difference, {_units_of(outcome)}".rstrip(", ")
        exaggeration.legend(frameon=False, fontsize=7.5, title=title, title_fontsize=8)
    figure.supxlabel(
        "models of each training (star: this study's design; hollow: with size held fixed)",
        fontsize=9,
    )
    return figure


_NOT_MODELS = {"n_other", "n_concepts", "n_items"}


def posterior_checks(checks: pd.DataFrame) -> Figure:
    """What prior and posterior expect of new models and concepts, and what was found."""
    outcomes = list(dict.fromkeys(checks["outcome"]))
    statistics = list(dict.fromkeys(checks["statistic"]))
    columns = min(3, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure, axes = blank_figure(
        WIDTH, 0.9 + rows * (0.7 + 0.2 * len(statistics)), nrows=rows, ncols=columns, sharey=True
    )
    for ax, outcome in zip(axes.flat, outcomes, strict=False):
        of = checks[checks["outcome"] == outcome].set_index("statistic")
        for y, name in enumerate(statistics):
            row = of.loc[name]
            ax.plot([row["prior_low"], row["prior_high"]], [y, y], color="#CCCCCC", linewidth=4,
                    solid_capstyle="butt", label="prior")  # fmt: skip
            ax.plot([row["posterior_low"], row["posterior_high"]], [y, y], color="#0072B2",
                    linewidth=1.8, label="posterior")  # fmt: skip
            ax.plot(row["found"], y, "D", color="#D55E00", markersize=4, label="found")
        low, high = of["posterior_low"].min(), of["posterior_high"].max()
        ax.set_xlim(low - 0.25 * (high - low), high + 0.25 * (high - low))
        ax.set_title(outcome_name(outcome), loc="left", fontsize=8.5)
        ax.set_xlabel(_units_of(outcome), fontsize=8)
    for ax in axes.flat[len(outcomes) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(statistics)), statistics, fontsize=8)
    axes[0, 0].set_ylim(len(statistics) - 0.5, -0.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[:3], labels[:3], loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel("95% of what is drawn for new models and concepts (prior cut at the panel)",
                     fontsize=9)  # fmt: skip
    return figure


def draw_calibration(tables: Tables) -> Figure:
    """Coverage of every method's interval, and the ranks of simulation-based calibration."""
    coverage = tables["coverage"].dropna(subset="coverage")
    coverage = coverage.assign(key=[_method(row) for _, row in coverage.iterrows()])
    methods = list(dict.fromkeys(coverage["key"]))
    parameters = list(tables["sbc"]["parameter"])
    with mpl.rc_context(STYLE):
        figure, axes = blank_figure(WIDTH, 2.2 + 0.4 * len(methods), ncols=2,
                                    gridspec_kw={"width_ratios": [1.6, 1]})  # fmt: skip
        ax, ranks = axes[0]
        ax.axvspan(93, 97, color="#DDDDDD", linewidth=0, zorder=0)
        scenarios = list(coverage.groupby(TRUTH, sort=False))
        for at, (truth, rows) in enumerate(scenarios):
            y = [methods.index(k) + 0.1 * (at - (len(scenarios) - 1) / 2) for k in rows["key"]]
            margin = 196 * rows["standard_error"]
            intended = at < N_INTENDED
            colours = EFFECT_COLOURS if intended else (OTHER_COLOUR,)
            ax.errorbar(100 * rows["coverage"], y, xerr=margin, fmt="osD^vPX*"[at], linewidth=1,
                        color=colours[at % len(colours)], markersize=3.5, label=_scenario(truth),
                        fillstyle="full" if intended else "none")  # fmt: skip
        ax.set_yticks(range(len(methods)), methods, fontsize=8)
        ax.set_ylim(len(methods) - 0.4, -0.6)
        ax.set_xlabel("coverage of b_training, % (nominal 95)")
        figure.legend(frameon=False, fontsize=7.5, loc="outside upper center", ncols=2)
        _draw_ranks(ranks, tables["sbc"], parameters)
    return figure


def _scenario(truth: tuple[float, ...]) -> str:
    training, sd_model, scale, uneven = truth
    said = f"b {training:g}, sd_model {sd_model:g}"
    said += f", b_scale {scale:g}" if scale else ""
    said += f", {uneven:g} times that for full RL" if uneven != 1 else ""
    return said.replace("-", "−")


def _draw_ranks(ax: Axes, sbc: pd.DataFrame, parameters: Sequence[str]) -> None:
    """Counts of ranks in bins, each parameter on its own line, with what chance allows."""
    bins = [c for c in sbc if c.startswith("bin_")]
    for at, (_, row) in enumerate(sbc.iterrows()):
        counts = row[bins].to_numpy(float)
        expected = row["n_simulations"] / len(bins)
        margin = 2 * np.sqrt(expected * (1 - 1 / len(bins))) / expected
        ax.fill_between([0, 1], at + 0.35 * (-margin), at + 0.35 * margin, color="#DDDDDD",
                        linewidth=0)  # fmt: skip
        centres = (np.arange(len(bins)) + 0.5) / len(bins)
        ax.plot(centres, at - 0.35 * (counts / expected - 1), color=MODELS_COLOUR, linewidth=1,
                drawstyle="steps-mid")  # fmt: skip
    ax.set_yticks(range(len(parameters)), parameters, fontsize=8)
    ax.set_ylim(len(parameters) - 0.4, -0.6)
    ax.set_xlabel("rank of the truth in\nits posterior (grey: 95%)")

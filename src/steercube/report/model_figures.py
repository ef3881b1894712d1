"""Figures of the models of training and scale: methods side by side, specifications, designs."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steercube.analysis.over_models.design import POWER
from steercube.analysis.over_models.multiverse import CHOICES, DISTINCT
from steercube.analysis.over_models.posterior import OUTCOMES
from steercube.analysis.over_models.training import (
    ALONE,
    BOTH,
    CONCEPTS,
    GRID,
    ITEMS,
    PERMUTATION,
    UNDERSTATED,
)
from steercube.analysis.per_cell.estimands import NAMES
from steercube.analysis.simulated.calibration import N_INTENDED, TRUTH
from steercube.analysis.simulated.operating import COVERAGE, FALSE_ALARMS
from steercube.analysis.simulated.operating import POWER as POWER_OF_A_TEST
from steercube.report.style import (
    OTHER_COLOUR,
    SMALL,
    STYLE,
    TEXT,
    WIDTH,
    blank_figure,
    drop_unused,
    legend_of,
    signed,
    title_of,
)

RANDOM_MARKS = {ITEMS: ("#009E73", "s"), CONCEPTS: ("#E69F00", "D")}
MODELS_COLOUR = "#333333"
MODELS_MARK = (MODELS_COLOUR, "o")
EFFECT_COLOURS = ("#56B4E9", "#0072B2", "#D55E00", "#E69F00")
EFFECT_STYLES = ("o-", "s--", "D:", "^-.")
PLACES = {"best_depth": "depth of the best layer", "depth_centroid": "depth centroid"}
SDS = {"cohens_d": "pooled sd", "within_letter_d": "sd within letters"}
"""What stands for the unit of an outcome that has none."""
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
    return SDS.get(outcome, OUTCOMES[outcome].units.replace("nat", "nats"))


def training_effect(effects: pd.DataFrame) -> Figure:
    """b_training and its interval by every method; grey: what was called negligible beforehand.

    The first outcome, which every method fits, has the whole width; the others stand in pairs.
    """
    shown = effects[effects["estimate"].notna() & (effects["method"] != PERMUTATION)]
    shown = shown.assign(key=[_method(row) for _, row in shown.iterrows()])
    outcomes = list(dict.fromkeys(shown["outcome"]))
    lines = [outcomes[:1], *(outcomes[i : i + 2] for i in range(1, len(outcomes), 2))]
    methods = [list(dict.fromkeys(shown["key"][shown["outcome"].isin(line)])) for line in lines]
    heights = [0.17 * len(of_line) for of_line in methods]
    figure, axes = blank_figure(
        WIDTH,
        1.0 + sum(heights) + 0.65 * len(lines),
        nrows=len(lines),
        ncols=2,
        sharey="row",
        gridspec_kw={"height_ratios": heights},
    )
    axes[0, 0].set_subplotspec(axes[0, 0].get_gridspec()[0, :])
    for panels, line, of_line in zip(axes, lines, methods, strict=True):
        for ax, outcome in zip(panels, line, strict=False):
            _draw_methods(ax, outcome, shown[shown["outcome"] == outcome], of_line)
    drop_unused(axes)
    _say_what_intervals_are(figure, f"{shown['level'].iloc[0]:.0%}")
    return figure


def _say_what_intervals_are(figure: Figure, level: str) -> None:
    figure.supxlabel(
        f"full RL minus distilled, with {level} interval (hierarchical and NUTS: credible, else "
        "confidence)\n+ scale, + number of blocks: with that held fixed",
        fontsize=TEXT,
    )
    marks = (
        (RANDOM_MARKS[ITEMS], "random: items"),
        (RANDOM_MARKS[CONCEPTS], "items, concepts"),
        (MODELS_MARK, "models too"),
    )
    handles = [
        mpl.lines.Line2D([], [], color=colour, marker=marker, markersize=4, label=label)
        for (colour, marker), label in marks
    ]
    legend_of(figure, handles)


def _draw_methods(ax: Axes, outcome: str, rows: pd.DataFrame, methods: Sequence[str]) -> None:
    negligible = rows["negligible"].iloc[0]
    ax.axvspan(-negligible, negligible, color="#DDDDDD", linewidth=0, zorder=0)
    ax.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    for _, row in rows.iterrows():
        _draw_interval(ax, methods.index(row["key"]), row)
    ax.set_yticks(range(len(methods)), methods, fontsize=SMALL)
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == PRIMARY else "normal")
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.set_title(outcome_name(outcome), loc="left")
    ax.set_xlabel(_units_of(outcome), fontsize=SMALL)


def _method(row: pd.Series) -> str:
    """A method in few words: what it takes as random, or what it holds fixed beside training."""
    if row["method"] == "bootstrap":
        warned = str(row.get("diagnostics")).startswith(UNDERSTATED)
        return f"bootstrap: {row['takes_as_random']}" + (" (understated)" if warned else "")
    return _adjusting(row["method"], row["adjusted"])


def _adjusting(method: str, adjusted: str) -> str:
    return method + adjusted.removeprefix(ALONE).replace(" and ", " + ")


PRIMARY = _adjusting(GRID, BOTH)


def _draw_interval(ax: Axes, y: int, row: pd.Series) -> None:
    colour, marker = RANDOM_MARKS.get(row["takes_as_random"], MODELS_MARK)
    width = 2.6 if row["key"] == PRIMARY else 1.4
    ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=width)
    ax.plot(row["estimate"], y, marker, color=colour, markersize=4)


def specification_curve(table: pd.DataFrame, median: pd.Series) -> Figure:
    """Every specification in order of effect, and which choices lie where in that order.

    Below, each line is one option of a choice; dark where the specifications of that rank have it
    more often than the others of its group.
    """
    options = {
        choice: [str(o) for o in table.groupby(choice)["effect"].mean().sort_values().index]
        for choice in CHOICES
        if table[choice].nunique() > 1
    }
    n_lines = sum(len(of_choice) + 1 for of_choice in options.values())
    figure, axes = blank_figure(
        WIDTH,
        2.8 + 0.165 * n_lines,
        nrows=2,
        sharex=True,
        gridspec_kw={"height_ratios": [1.8, 0.165 * n_lines]},
    )
    _draw_effects(axes[0, 0], table["effect"], 100 * median["value"])
    _draw_options(axes[1, 0], table, options)
    title_of(
        figure,
        signed(
            f"{len(table):,} specifications, median {100 * median['value']:.0f}% (dashed)\n"
            f"p = {median['p_value']:.2f} over every giving of the training labels (least possible "
            f"{median['least_p']:.2f})"
        ),
    )
    return figure


def _draw_effects(ax: Axes, effect: pd.Series, median: float) -> None:
    rank = np.arange(len(effect)) / max(len(effect) - 1, 1) * 100
    ax.plot(rank, effect * 100, color=MODELS_COLOUR, linewidth=1.6)
    ax.axhline(0, color="#888888", linewidth=0.8)
    ax.axhline(median, color="#D55E00", linewidth=1, linestyle="--")
    ax.set_ylabel("full RL minus distilled,\n% of the mean effect")


def _draw_options(ax: Axes, table: pd.DataFrame, options: Mapping[str, Sequence[str]]) -> None:
    """One band a choice, a line of it an option; the choice's name stands over its band."""
    top = 0
    ticks: dict[int, str] = {}
    for choice, of_choice in options.items():
        ax.text(0, top, choice, va="center", fontsize=SMALL, fontweight="bold")
        ax.imshow(_shares(table[choice].astype(str), of_choice), aspect="auto", cmap="Greys",
                  vmin=0, vmax=3, interpolation="nearest",
                  extent=(0, 100, top + len(of_choice) + 0.5, top + 0.5))  # fmt: skip
        ticks |= {top + 1 + at: _option(option) for at, option in enumerate(of_choice)}
        top += len(of_choice) + 1
    ax.set_ylim(top - 0.5, -0.5)
    ax.set_yticks(list(ticks), list(ticks.values()), fontsize=SMALL)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("rank of the specification, %\n(dark: the option is more frequent there)")


def _shares(chosen: pd.Series, options: Sequence[str]) -> np.ndarray:
    """How many times as often as overall an option is chosen, dims (option, bin of ranks)."""
    n_bins = min(N_BINS, len(chosen))
    bins = np.minimum((np.arange(len(chosen)) * n_bins) // len(chosen), n_bins - 1)
    sizes = np.bincount(bins, minlength=n_bins)
    has = [(chosen == option).to_numpy(float) for option in options]
    return np.array(
        [np.bincount(bins, weights=h, minlength=n_bins) / sizes / h.mean() for h in has]
    )


def _option(option: str) -> str:
    return signed(NAMES[option]) if option in NAMES else option.replace("_", " ")


def design(table: pd.DataFrame) -> Figure:
    """Power, and exaggeration of what is significant, by the number of models of each training."""
    errors = table[(table["kind"] == "errors") & table["power"].notna()]
    outcomes = [o for o in ("cohens_d", "best_depth") if o in set(errors["outcome"])]
    other = next(c for c in errors if c.startswith("n_") and c not in _NOT_MODELS)
    figure, axes = blank_figure(WIDTH, 0.6 + 2.9 * len(outcomes), nrows=len(outcomes), ncols=2)
    for panels, outcome in zip(axes, outcomes, strict=True):
        of = errors[errors["outcome"] == outcome]
        own_size = (of["n_concepts"] == of["n_concepts"].iloc[0]) & (
            of["n_items"] == of["n_items"].iloc[0]
        )
        _draw_errors(panels, outcome, of[own_size], other)
    figure.supxlabel(
        "models of each training (star: this study's design; hollow: with size held fixed)",
        fontsize=TEXT,
    )
    return figure


def _draw_errors(panels: np.ndarray, outcome: str, of: pd.DataFrame, other: str) -> None:
    power, exaggeration = panels
    own = (of[other].iloc[0], of["n_other"].iloc[0])
    for colour, style, (source, rows) in zip(
        EFFECT_COLOURS, EFFECT_STYLES, of.groupby("effect_is", sort=False), strict=False
    ):
        plain = rows[rows["adjusted"] == ALONE]
        balanced = plain[plain[other] == plain["n_other"]]
        here = rows[(rows[other] == own[0]) & (rows["n_other"] == own[1])]
        size = f"{rows['effect'].iloc[0]:.3g} ({source})"
        for panel, column in ((power, "power"), (exaggeration, "type_m")):
            panel.plot(balanced["n_other"], balanced[column], style, color=colour, label=size,
                       markersize=3.5, linewidth=1.3)  # fmt: skip
            for adjusted, filling in ((ALONE, "full"), (BOTH, "none")):
                star = here[here["adjusted"] == adjusted][column]
                panel.plot([np.mean(own)] * len(star), star, "*", color=colour, markersize=9,
                           fillstyle=filling)  # fmt: skip
    for panel in panels:
        panel.set_xscale("log")
        counts = sorted({int(n) for n in of["n_other"] if n > 2})
        panel.set_xticks(counts, [f"{n}" for n in counts])
        panel.minorticks_off()
    power.axhline(POWER, color="#888888", linewidth=0.8, linestyle="--")
    power.set_ylim(0, 1.02)
    power.set_ylabel("power (probability)")
    exaggeration.axhline(1, color="#888888", linewidth=0.8)
    exaggeration.set_ylabel("type M: exaggeration of\na significant estimate (ratio)")
    _name_effects(power, f"{outcome_name(outcome)}, true difference ({_units_of(outcome)})")


def _name_effects(ax: Axes, title: str) -> None:
    """A legend between the panel and its title, which alone makes room: it may be wider."""
    legend = ax.legend(frameon=False, fontsize=SMALL, loc="lower left", borderaxespad=0,
                       bbox_to_anchor=(0, 1.02), borderpad=0)  # fmt: skip
    legend.set_in_layout(False)
    ax.set_title(title, loc="left", pad=6 + 1.6 * SMALL * len(legend.get_texts()))


_NOT_MODELS = {"n_other", "n_concepts", "n_items"}


def posterior_checks(checks: pd.DataFrame) -> Figure:
    """What prior and posterior expect of new models and concepts, and what was found."""
    outcomes = list(dict.fromkeys(checks["outcome"]))
    statistics = list(dict.fromkeys(checks["statistic"]))
    columns = min(3, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure, axes = blank_figure(
        WIDTH, 1.0 + rows * (0.7 + 0.2 * len(statistics)), nrows=rows, ncols=columns, sharey=True
    )
    for ax, outcome in zip(axes.flat, outcomes, strict=False):
        _draw_checks(ax, outcome, checks[checks["outcome"] == outcome].set_index("statistic"),
                     statistics)  # fmt: skip
    drop_unused(axes)
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(statistics)), statistics, fontsize=SMALL)
    axes[0, 0].set_ylim(len(statistics) - 0.5, -0.5)
    legend_of(figure, axes[0, 0].get_legend_handles_labels()[0][:3])
    figure.supxlabel("95% of what is drawn for new models and concepts (prior cut at the panel)",
                     fontsize=TEXT)  # fmt: skip
    return figure


def _draw_checks(ax: Axes, outcome: str, of: pd.DataFrame, statistics: Sequence[str]) -> None:
    for y, name in enumerate(statistics):
        row = of.loc[name]
        ax.plot([row["prior_low"], row["prior_high"]], [y, y], color="#CCCCCC", linewidth=4,
                solid_capstyle="butt", label="prior")  # fmt: skip
        ax.plot([row["posterior_low"], row["posterior_high"]], [y, y], color="#0072B2",
                linewidth=1.8, label="posterior")  # fmt: skip
        ax.plot(row["found"], y, "D", color="#D55E00", markersize=4, linestyle="", label="found")
    low, high = of["posterior_low"].min(), of["posterior_high"].max()
    ax.set_xlim(low - 0.25 * (high - low), high + 0.25 * (high - low))
    ax.set_title(outcome_name(outcome), loc="left")
    ax.set_xlabel(_units_of(outcome), fontsize=SMALL)


def draw_calibrations(tables: Tables) -> dict[str, Figure]:
    """The figures of a calibration whose tables there are, by file name."""
    figures = {}
    if {"coverage", "sbc"} <= set(tables):
        figures["calibration"] = draw_calibration(tables)
    if "operating" in tables:
        figures["operating"] = draw_operating(tables["operating"])
    return figures


OPERATING_MARKS = {
    COVERAGE: ("coverage (should be 95)", "o", "#0072B2"),
    FALSE_ALARMS: ("false alarms (should be 5)", "s", "#D55E00"),
    POWER_OF_A_TEST: ("power", "^", OTHER_COLOUR),
}


def draw_operating(table: pd.DataFrame) -> Figure:
    """What each statistic's interval covers, or its test rejects, a line a scenario."""
    statistics = list(dict.fromkeys(table["statistic"]))
    labels: list[str] = []
    marks = {}
    with mpl.rc_context(STYLE):
        figure, axes = blank_figure(WIDTH, 1.2 + 0.21 * (len(table) + len(statistics)))
        ax = axes[0, 0]
        for band in ((3, 7), (93, 97)):
            ax.axvspan(*band, color="#DDDDDD", linewidth=0, zorder=0)
        for statistic in statistics:
            labels.append(statistic)
            for _, row in table[table["statistic"] == statistic].iterrows():
                label, mark, colour = OPERATING_MARKS[row["measure"]]
                marks[label] = ax.errorbar(
                    100 * row["achieved"], len(labels), xerr=196 * row["standard_error"],
                    fmt=mark, color=colour, markersize=3.5, linewidth=1, label=label)  # fmt: skip
                labels.append(signed(str(row["scenario"])))
        ax.set_yticks(range(len(labels)), labels, fontsize=SMALL)
        for text in ax.get_yticklabels():
            if text.get_text() in statistics:
                text.set_fontweight("bold")
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(labels) - 0.4, -0.6)
        ax.set_xlim(-3, 103)
        ax.set_xlabel("of simulations, %, with twice the Monte Carlo error")
        legend_of(figure, list(marks.values()))
    return figure


def draw_calibration(tables: Tables) -> Figure:
    """Coverage of every method's interval, and the ranks of simulation-based calibration."""
    coverage = tables["coverage"].dropna(subset="coverage")
    coverage = coverage.assign(key=[_method(row) for _, row in coverage.iterrows()])
    methods = list(dict.fromkeys(coverage["key"]))
    with mpl.rc_context(STYLE):
        figure, axes = blank_figure(WIDTH, 2.3 + 0.4 * len(methods), ncols=2,
                                    gridspec_kw={"width_ratios": [1.3, 1]})  # fmt: skip
        ax, ranks = axes[0]
        ax.axvspan(93, 97, color="#DDDDDD", linewidth=0, zorder=0)
        scenarios = list(coverage.groupby(TRUTH, sort=False))
        marks = []
        for at, (truth, rows) in enumerate(scenarios):
            y = [methods.index(k) + 0.1 * (at - (len(scenarios) - 1) / 2) for k in rows["key"]]
            margin = 196 * rows["standard_error"]
            intended = at < N_INTENDED
            colours = EFFECT_COLOURS if intended else (OTHER_COLOUR,)
            marks.append(
                ax.errorbar(100 * rows["coverage"], y, xerr=margin, fmt="osD^vPX*"[at],
                            linewidth=1, color=colours[at % len(colours)], markersize=3.5,
                            label=_scenario(truth), fillstyle="full" if intended else "none")
            )  # fmt: skip
        ax.set_yticks(range(len(methods)), methods, fontsize=SMALL)
        ax.set_ylim(len(methods) - 0.4, -0.6)
        ax.set_xlabel("coverage of b_training, %\n(nominal 95)")
        legend_of(figure, marks)
        _draw_ranks(ranks, tables["sbc"], list(tables["sbc"]["parameter"]))
    return figure


def _scenario(truth: tuple[float, ...]) -> str:
    training, sd_model, scale, uneven = truth
    said = f"b {training:g}, sd_model {sd_model:g}"
    said += f", b_scale {scale:g}" if scale else ""
    said += f", {uneven:g} times that for full RL" if uneven != 1 else ""
    return signed(said)


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
    ax.set_yticks(range(len(parameters)), parameters, fontsize=SMALL)
    ax.set_ylim(len(parameters) - 0.4, -0.6)
    ax.set_xlabel("rank of the truth\nin its posterior\n(fraction; grey: 95%)")

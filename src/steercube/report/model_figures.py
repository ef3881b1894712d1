"""Figures of the models over models: forests of intervals, the specification curve, designs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steercube.analysis.conclusions.published import read_printed
from steercube.analysis.over_models.cell_effects import OUTCOMES
from steercube.analysis.over_models.contrast_effect import (
    CONCEPTS,
    EXACT,
    ITEMS,
    PERMUTATION,
    UNDERSTATED,
    covariates,
)
from steercube.analysis.over_models.design import POWER
from steercube.analysis.over_models.multiverse import CHOICES, DISTINCT
from steercube.analysis.per_cell.estimands import NAMES
from steercube.analysis.simulated.calibration import N_INTENDED, TRUTH
from steercube.analysis.simulated.operating import COVERAGE, FALSE_ALARMS
from steercube.analysis.simulated.operating import POWER as POWER_OF_A_TEST
from steercube.contrast import Contrast
from steercube.numerals import decimals, signed
from steercube.report.forest import GREY, Interval, forest
from steercube.report.style import (
    INTERVAL_COLOURS,
    OTHER_COLOUR,
    PUBLISHED_COLOUR,
    SMALL,
    STYLE,
    TEXT,
    WIDTH,
    blank_figure,
    drop_unused,
    legend_of,
    shortened,
    title_of,
)

RANDOM_MARKS = {ITEMS: ("#009E73", "s"), CONCEPTS: ("#E69F00", "D")}
MODELS_COLOUR = "#333333"
MODELS_MARK = (MODELS_COLOUR, "o")
EFFECT_COLOURS = ("#56B4E9", "#0072B2", "#D55E00", "#E69F00")
EFFECT_STYLES = ("o-", "s--", "D:", "^-.")
PLACES = {"best_depth": "depth of the best layer", "depth_centroid": "depth centroid"}
SDS = {"cohens_d": "pooled sd", "within_letter_d": "sd within letters"}
"""Axis label of an outcome without a unit."""
N_BINS = 240

Tables = Mapping[str, pd.DataFrame]


def draw_models(tables: Tables, contrast: Contrast | None) -> dict[str, Figure]:
    """The figures that the tables have data for, by file name."""
    figures = {}
    if contrast is not None:
        effects = tables["contrast_effect"]
        if effects["low"].notna().any():
            figures["contrast_effect"] = contrast_effect(effects, contrast)
        if "effect" in tables["multiverse"]:
            summary = tables["multiverse_summary"]
            median = summary[summary["statistic"] == DISTINCT].iloc[0]
            figures["specification_curve"] = specification_curve(
                tables["multiverse"], median, contrast
            )
        if "type_m" in tables["design"]:
            figures["design"] = design(tables["design"], contrast)
    checks = tables["predictive_checks"]
    if "observed" in checks:
        figures["posterior_checks"] = posterior_checks(checks.dropna(subset="observed"))
    if "claims" in tables and len(numeric := _numeric(tables["claims"])):
        figures["claims"] = claims(numeric)
    return figures


def outcome_name(outcome: str) -> str:
    """The name of an outcome in a title."""
    return NAMES.get(outcome, PLACES.get(outcome, outcome))


def _units_of(outcome: str) -> str:
    return SDS.get(outcome, OUTCOMES[outcome].units.replace("nat", "nats"))


def contrast_effect(effects: pd.DataFrame, contrast: Contrast) -> Figure:
    """b_contrast and its interval by every method; grey: what was called negligible beforehand.

    The first outcome, which every method fits, has the whole width; the others stand in pairs.
    """
    shown = effects[effects["estimate"].notna() & (effects["method"] != PERMUTATION)]
    shown = shown.assign(key=[_method(row, contrast.by) for _, row in shown.iterrows()])
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
    primary = _adjusting(EXACT, covariates(contrast, ("contrast", "scale")), contrast.by)
    for panels, line, of_line in zip(axes, lines, methods, strict=True):
        for ax, outcome in zip(panels, line, strict=False):
            of = shown[shown["outcome"] == outcome]
            rope = of["rope"].iloc[0]
            forest(ax, _intervals(of, of_line, primary), of_line, bands=[(-rope, rope)], zero=True,
                   bold=[primary])  # fmt: skip
            ax.set_title(outcome_name(outcome), loc="left")
            ax.set_xlabel(_units_of(outcome), fontsize=SMALL)
    drop_unused(axes)
    _say_what_intervals_are(figure, f"{shown['level'].iloc[0]:.0%}", contrast)
    return figure


def _say_what_intervals_are(figure: Figure, level: str, contrast: Contrast) -> None:
    figure.supxlabel(
        f"{contrast.minus}, with {level} interval (hierarchical and NUTS: credible, else "
        "confidence)\n+ scale: with that held fixed; grey: what counts as small",
        fontsize=TEXT,
    )
    marks = (
        (RANDOM_MARKS[ITEMS], "random: items"),
        (RANDOM_MARKS[CONCEPTS], "items, concepts"),
        (MODELS_MARK, "models too"),
    )
    legend_of(
        figure,
        [
            Line2D([], [], color=colour, marker=marker, markersize=4, label=label)
            for (colour, marker), label in marks
        ],
    )


def _method(row: pd.Series, by: str) -> str:
    """Short name of a method: what it takes as random, or what it holds fixed."""
    if row["method"] == "bootstrap":
        warned = str(row.get("diagnostics")).startswith(UNDERSTATED)
        return f"bootstrap: {row['random_effects']}" + (" (understated)" if warned else "")
    return _adjusting(row["method"], row["covariates"], by)


def _adjusting(method: str, held: str, by: str) -> str:
    return method + held.removeprefix(by).replace(" and ", " + ")


def _intervals(rows: pd.DataFrame, methods: Sequence[str], primary: str) -> Iterator[Interval]:
    for row in rows.to_dict("records"):
        colour, marker = RANDOM_MARKS.get(row["random_effects"], MODELS_MARK)
        width = 2.6 if row["key"] == primary else 1.4
        yield Interval(
            methods.index(row["key"]),
            row["estimate"],
            row["low"],
            row["high"],
            line={"color": colour, "linewidth": width},
            mark={"color": colour, "marker": marker, "markersize": 4},
        )


def specification_curve(table: pd.DataFrame, median: pd.Series, contrast: Contrast) -> Figure:
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
    _draw_effects(axes[0, 0], table["effect"], 100 * median["value"], contrast)
    _draw_options(axes[1, 0], table, options)
    title_of(
        figure,
        signed(
            f"{len(table):,} specifications, median {100 * median['value']:.0f}% (dashed)\n"
            f"p = {decimals(median['p_value'])} over every assignment of the {contrast.by} labels "
            f"(least possible {decimals(median['smallest_p'])})"
        ),
    )
    return figure


def _draw_effects(ax: Axes, effect: pd.Series, median: float, contrast: Contrast) -> None:
    rank = np.arange(len(effect)) / max(len(effect) - 1, 1) * 100
    ax.plot(rank, effect * 100, color=MODELS_COLOUR, linewidth=1.6)
    ax.axhline(0, color="#888888", linewidth=0.8)
    ax.axhline(median, color="#D55E00", linewidth=1, linestyle="--")
    ax.set_ylabel(f"{contrast.minus},\n% of the mean effect")


def _draw_options(ax: Axes, table: pd.DataFrame, options: Mapping[str, Sequence[str]]) -> None:
    """A band for each choice with a line for each of its options, under the choice's name."""
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
    name = signed(NAMES[option]) if option in NAMES else option.replace("_", " ")
    return shortened(name, 2.4, SMALL)


def design(table: pd.DataFrame, contrast: Contrast) -> Figure:
    """Power, and exaggeration of what is significant, by the number of models of each label."""
    errors = table[(table["kind"] == "errors") & table["power"].notna()]
    outcomes = [o for o in ("cohens_d", "best_depth") if o in set(errors["outcome"])]
    figure, axes = blank_figure(WIDTH, 0.6 + 2.9 * len(outcomes), nrows=len(outcomes), ncols=2)
    for panels, outcome in zip(axes, outcomes, strict=True):
        of = errors[errors["outcome"] == outcome]
        own_size = (of["n_concepts"] == of["n_concepts"].iloc[0]) & (
            of["n_items"] == of["n_items"].iloc[0]
        )
        _draw_errors(panels, outcome, of[own_size], contrast.by)
    figure.supxlabel(
        f"models of each {contrast.by} (star: this study's design; hollow: with "
        f"{contrast.held} held fixed)",
        fontsize=TEXT,
    )
    return figure


def _draw_errors(panels: np.ndarray, outcome: str, of: pd.DataFrame, by: str) -> None:
    power, exaggeration = panels
    own = (of["n_high"].iloc[0], of["n_low"].iloc[0])
    for colour, style, (source, rows) in zip(
        EFFECT_COLOURS, EFFECT_STYLES, of.groupby("effect_from", sort=False), strict=False
    ):
        plain = rows[rows["covariates"] == by]
        balanced = plain[plain["n_high"] == plain["n_low"]]
        here = rows[(rows["n_high"] == own[0]) & (rows["n_low"] == own[1])]
        size = f"{rows['effect'].iloc[0]:.3g} ({source})"
        for panel, column in ((power, "power"), (exaggeration, "type_m")):
            panel.plot(balanced["n_low"], balanced[column], style, color=colour, label=size,
                       markersize=3.5, linewidth=1.3)  # fmt: skip
            for is_plain, filling in ((True, "full"), (False, "none")):
                star = here[(here["covariates"] == by) == is_plain][column]
                panel.plot([np.mean(own)] * len(star), star, "*", color=colour, markersize=9,
                           fillstyle=filling)  # fmt: skip
    for panel in panels:
        panel.set_xscale("log")
        counts = sorted({int(n) for n in of["n_low"] if n > 2})
        panel.set_xticks(counts, [f"{n}" for n in counts])
        panel.minorticks_off()
    power.axhline(POWER, color="#888888", linewidth=0.8, linestyle="--")
    power.set_ylim(0, 1.02)
    power.set_ylabel("power (probability)")
    exaggeration.axhline(1, color="#888888", linewidth=0.8)
    exaggeration.set_ylabel("type M: exaggeration of\na significant estimate (ratio)")
    _name_effects(power, f"{outcome_name(outcome)}, true difference ({_units_of(outcome)})")


def _name_effects(ax: Axes, title: str) -> None:
    """A legend between the panel and its title; the title's padding makes room for it."""
    legend = ax.legend(frameon=False, fontsize=SMALL, loc="lower left", borderaxespad=0,
                       bbox_to_anchor=(0, 1.02), borderpad=0)  # fmt: skip
    legend.set_in_layout(False)
    ax.set_title(title, loc="left", pad=6 + 1.6 * SMALL * len(legend.get_texts()))


def posterior_checks(checks: pd.DataFrame) -> Figure:
    """What prior and posterior expect of new models and concepts, and what was observed."""
    outcomes = list(dict.fromkeys(checks["outcome"]))
    statistics = list(dict.fromkeys(checks["statistic"]))
    columns = min(3, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure, axes = blank_figure(
        WIDTH, 1.0 + rows * (0.7 + 0.2 * len(statistics)), nrows=rows, ncols=columns, sharey=True
    )
    for ax, outcome in zip(axes.flat, outcomes, strict=False):
        of = checks[checks["outcome"] == outcome].set_index("statistic").loc[statistics]
        forest(ax, _checked(of), statistics)
        low, high = of["posterior_low"].min(), of["posterior_high"].max()
        ax.set_xlim(low - 0.25 * (high - low), high + 0.25 * (high - low))
        ax.set_title(outcome_name(outcome), loc="left")
        ax.set_xlabel(_units_of(outcome), fontsize=SMALL)
    drop_unused(axes)
    handles = [Line2D([], [], **how, label=name) for name, how in CHECKED.items()]
    legend_of(figure, handles)
    figure.supxlabel("95% of what is drawn for new models and concepts (prior cut at the panel)",
                     fontsize=TEXT)  # fmt: skip
    return figure


CHECKED: dict[str, dict[str, Any]] = {
    "prior": {"color": "#CCCCCC", "linewidth": 4, "solid_capstyle": "butt"},
    "posterior": {"color": "#0072B2", "linewidth": 1.8},
    "observed": {"color": "#D55E00", "marker": "D", "markersize": 4, "linestyle": ""},
}


def _checked(of: pd.DataFrame) -> Iterator[Interval]:
    mark = {name: how for name, how in CHECKED["observed"].items() if name != "linestyle"}
    for y, row in enumerate(of.to_dict("records")):
        for kind in ("prior", "posterior"):
            ends = row[f"{kind}_low"], row[f"{kind}_high"]
            shown = mark if kind == "posterior" else {}
            yield Interval(y, row["observed"], *ends, line=CHECKED[kind], mark=shown)


def _numeric(table: pd.DataFrame) -> pd.DataFrame:
    """Claims of a number rather than a direction."""
    return table[[not read_printed(text).direction for text in table["published"]]]


def claims(table: pd.DataFrame) -> Figure:
    """Published value, recomputed value and its interval of every claim, by what they measure."""
    panels = {kind: table[table["quantity"] == kind] for kind in dict.fromkeys(table["quantity"])}
    heights = [len(rows) + 0.4 for rows in panels.values()]
    figure, axes = blank_figure(WIDTH, 0.6 + 0.155 * sum(heights) + 0.5 * len(panels),
                                nrows=len(panels), gridspec_kw={"height_ratios": heights},
                                )  # fmt: skip
    for ax, (kind, rows) in zip(axes[:, 0], panels.items(), strict=True):
        intervals = [of for y, row in enumerate(rows.to_dict("records")) for of in _claim(y, row)]
        forest(ax, intervals, list(rows["id"]))
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel(_with_units(kind))
        ax.grid(axis="x", color="#E5E5E5")
        ax.set_axisbelow(True)
    legend_of(figure, _claim_marks(table))
    return figure


def _with_units(quantity: str) -> str:
    units = " (pooled sd)" if quantity.endswith("average Cohen's d") else ""
    return signed(quantity.replace("(nat)", "(nats)") + units)


RECOMPUTED: dict[str, Any] = {"marker": "|", "color": "black", "markersize": 9}
PUBLISHED: dict[str, Any] = {"marker": "D", "color": PUBLISHED_COLOUR, "fillstyle": "none"}


def _claim(y: int, row: Mapping[str, Any]) -> Iterator[Interval]:
    """The published value or range, then the recomputed value with its interval."""
    printed = read_printed(row["published"])
    if printed.low == printed.high:
        yield Interval(y, printed.low, mark=PUBLISHED | {"markersize": 5, "zorder": 3})
    else:
        band = {"color": PUBLISHED_COLOUR, "linewidth": 6, "alpha": 0.35, "zorder": 0}
        yield Interval(y, np.nan, printed.low, printed.high,
                       line=band | {"solid_capstyle": "butt"})  # fmt: skip
    yield Interval(
        y,
        row["recomputed"],
        row["low"],
        row["high"],
        line=_line_of(row["interval_over"]) | {"zorder": 1},
        mark=RECOMPUTED | {"zorder": 2},
    )


def _claim_marks(table: pd.DataFrame) -> list[Artist]:
    over = dict.fromkeys(table.loc[table["low"].notna(), "interval_over"])
    return [
        Line2D([], [], **PUBLISHED, linestyle="", label="published"),
        mpl.patches.Patch(color=PUBLISHED_COLOUR, alpha=0.35, label="published range"),
        Line2D([], [], **RECOMPUTED, linestyle="", label="recomputed"),
        *(Line2D([], [], **_line_of(o), label=f"95%, over {o}") for o in over),
    ]


def _line_of(over: str) -> dict[str, Any]:
    """How an interval is drawn: thick if it is over items, thin if over models."""
    colour = INTERVAL_COLOURS.get(over, OTHER_COLOUR)
    return {"color": colour, "linewidth": 3.0 if over == "items" else 1.4}


def draw_calibrations(tables: Tables, contrast: Contrast) -> dict[str, Figure]:
    """The figures of a calibration that the tables have data for, by file name."""
    figures = {}
    with mpl.rc_context(STYLE):
        if {"coverage", "sbc"} <= set(tables):
            figures["calibration"] = calibration(tables, contrast)
        if "operating" in tables:
            figures["operating"] = operating(tables["operating"])
    return figures


OPERATING_MARKS = {
    COVERAGE: ("coverage (should be 95)", "o", "#0072B2"),
    FALSE_ALARMS: ("false alarms (should be 5)", "s", "#D55E00"),
    POWER_OF_A_TEST: ("power", "^", OTHER_COLOUR),
}


def _simulated(
    y: float, row: Mapping[str, Any], share: str, marker: str, colour: str, filling: str = "full"
) -> Interval:
    """A share of simulations, %, with twice its Monte Carlo error."""
    value, margin = 100 * row[share], 196 * row["standard_error"]
    mark = {"marker": marker, "color": colour, "markersize": 3.5, "fillstyle": filling}
    return Interval(y, value, value - margin, value + margin,
                    line={"color": colour, "linewidth": 1}, mark=mark)  # fmt: skip


def operating(table: pd.DataFrame) -> Figure:
    """What each statistic's interval covers, or its test rejects, a line a scenario."""
    statistics = list(dict.fromkeys(table["statistic"]))
    names: list[str] = []
    intervals = []
    for statistic in statistics:
        names.append(statistic)
        for row in table[table["statistic"] == statistic].to_dict("records"):
            _, marker, colour = OPERATING_MARKS[row["measure"]]
            intervals.append(_simulated(len(names), row, "achieved", marker, colour))
            names.append(signed(str(row["scenario"])))
    figure, axes = blank_figure(WIDTH, 1.2 + 0.21 * (len(table) + len(statistics)))
    ax = axes[0, 0]
    forest(ax, intervals, names, bands=[(3, 7), (93, 97)], bold=statistics)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(-3, 103)
    ax.set_xlabel("of simulations, %\n(with twice the Monte Carlo error)")
    used = [OPERATING_MARKS[measure] for measure in dict.fromkeys(table["measure"])]
    legend_of(
        figure,
        [Line2D([], [], color=c, marker=m, markersize=3.5, label=label) for label, m, c in used],
    )
    return figure


def calibration(tables: Tables, contrast: Contrast) -> Figure:
    """Coverage of every method's interval, and the ranks of simulation-based calibration."""
    coverage = tables["coverage"].dropna(subset="coverage")
    coverage = coverage.assign(key=[_method(row, contrast.by) for _, row in coverage.iterrows()])
    methods = list(dict.fromkeys(coverage["key"]))
    figure, axes = blank_figure(WIDTH, 2.3 + 0.4 * len(methods), ncols=2,
                                gridspec_kw={"width_ratios": [1.3, 1]})  # fmt: skip
    ax, ranks = axes[0]
    scenarios = list(coverage.groupby(TRUTH, sort=False))
    intervals: list[Interval] = []
    handles = []
    for at, (truth, rows) in enumerate(scenarios):
        intended = at < N_INTENDED
        colours = EFFECT_COLOURS if intended else (OTHER_COLOUR,)
        how: Any = "osD^vPX*p"[at % 9], colours[at % len(colours)], "full" if intended else "none"
        aside = 0.8 / len(scenarios) * (at - (len(scenarios) - 1) / 2)
        intervals += [
            _simulated(methods.index(row["key"]) + aside, row, "coverage", *how)
            for row in rows.to_dict("records")
        ]
        handles.append(Line2D([], [], marker=how[0], color=how[1], fillstyle=how[2],
                              markersize=3.5, label=_scenario(truth, contrast)))  # fmt: skip
    forest(ax, intervals, methods, bands=[(93, 97)])
    ax.set_ylim(len(methods) - 0.4, -0.6)
    ax.set_xlabel("coverage of b_contrast, %\n(nominal 95)")
    legend_of(figure, handles)
    _draw_ranks(ranks, tables["sbc"], list(tables["sbc"]["parameter"]))
    return figure


def _scenario(truth: tuple[float, ...], contrast: Contrast) -> str:
    training, sd_model, scale, uneven = truth
    said = f"b {training:g}, sd_model {sd_model:g}"
    said += f", b_scale {scale:g}" if scale else ""
    said += f", {uneven:g} times that for {contrast.named(contrast.high)}" if uneven != 1 else ""
    return signed(said)


def _draw_ranks(ax: Axes, sbc: pd.DataFrame, parameters: Sequence[str]) -> None:
    """Counts of ranks in bins, a line for each parameter, with the 95% range under uniformity."""
    bins = [c for c in sbc if c.startswith("bin_")]
    for at, (_, row) in enumerate(sbc.iterrows()):
        counts = row[bins].to_numpy(float)
        expected = row["n_simulations"] / len(bins)
        margin = 2 * np.sqrt(expected * (1 - 1 / len(bins))) / expected
        ax.fill_between([0, 1], at + 0.35 * (-margin), at + 0.35 * margin, color=GREY,
                        linewidth=0)  # fmt: skip
        centres = (np.arange(len(bins)) + 0.5) / len(bins)
        ax.plot(centres, at - 0.35 * (counts / expected - 1), color=MODELS_COLOUR, linewidth=1,
                drawstyle="steps-mid")  # fmt: skip
    ax.set_yticks(range(len(parameters)), parameters, fontsize=SMALL)
    ax.set_ylim(len(parameters) - 0.4, -0.6)
    ax.set_xlabel("rank of the truth\nin its posterior\n(fraction; grey: 95%)")

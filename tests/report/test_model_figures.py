from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from builders import TRAINING
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from steercube.analysis.over_models.multiverse import CHOICES
from steercube.report.model_figures import (
    calibration,
    contrast_effect,
    design,
    draw_calibrations,
    draw_models,
    operating,
    posterior_checks,
    specification_curve,
)


def marks_of(ax: Axes) -> list[Line2D]:
    """Values, which are drawn without a line; intervals have one."""
    return [line for line in ax.lines if line.get_linestyle() == "None"]


def test_every_interval_is_drawn_and_a_failed_fit_is_not(
    study_tables: dict[str, pd.DataFrame],
) -> None:
    table = study_tables["contrast_effect"].copy()
    figure = contrast_effect(table, TRAINING)
    primary = table[
        (table["outcome"] == "cohens_d") & (table["covariates"] == "training and scale")
    ]
    drawn = [np.asarray(line.get_xdata()).tolist() for line in figure.axes[0].lines]
    for _, row in primary[primary["low"].notna()].iterrows():
        assert [row["low"], row["high"]] in drawn
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert "hierarchical, exact + scale" in names
    table.loc[table["method"] == "REML, cells", ["estimate", "low", "high"]] = np.nan
    names = [t.get_text() for t in contrast_effect(table, TRAINING).axes[0].get_yticklabels()]
    assert not [name for name in names if name.startswith("REML, cells")]


def test_the_curve_is_the_table_in_order(study_tables: dict[str, pd.DataFrame]) -> None:
    table = study_tables["multiverse"]
    median = study_tables["multiverse_summary"].iloc[0]
    figure = specification_curve(table, median, TRAINING)
    curve, choices = figure.axes
    assert np.asarray(curve.lines[0].get_ydata()).tolist() == pytest.approx(
        (100 * table["effect"]).tolist()
    )
    n_options = sum(table[c].nunique() for c in CHOICES)
    assert len(choices.get_yticks()) == n_options
    assert f"{len(table):,} specifications" in figure.get_suptitle()
    assert [text.get_text() for text in choices.texts] == list(CHOICES)


def test_power_is_drawn_for_each_size_of_effect(study_tables: dict[str, pd.DataFrame]) -> None:
    power = design(study_tables["design"], TRAINING).axes[0]
    of = study_tables["design"]
    of = of[(of["outcome"] == "cohens_d") & (of["kind"] == "errors") & (of["n_concepts"] == 6)]
    of = of[(of["effect_from"] == "small") & (of["n_high"] == of["n_low"])]
    expected = of[of["n_items"] == of["n_items"].min()]["power"].tolist()
    assert np.asarray(power.lines[0].get_ydata()).tolist() == pytest.approx(expected)


def test_what_was_observed_is_drawn_among_what_was_drawn(
    study_tables: dict[str, pd.DataFrame],
) -> None:
    checks = study_tables["predictive_checks"]
    panel = posterior_checks(checks).axes[0]
    of = checks[checks["outcome"] == "cohens_d"]
    assert [line.get_xdata()[0] for line in marks_of(panel)] == of["observed"].tolist()
    drawn = [np.asarray(line.get_xdata()).tolist() for line in panel.lines]
    for _, row in of.iterrows():
        assert [row["prior_low"], row["prior_high"]] in drawn
        assert [row["posterior_low"], row["posterior_high"]] in drawn


def test_one_training_has_fewer_figures(study_tables: dict[str, pd.DataFrame]) -> None:
    reason = pd.DataFrame([{"reason": "one training"}])
    unfit = {
        "contrast_effect": study_tables["contrast_effect"].assign(low=np.nan),
        **dict.fromkeys(("multiverse", "multiverse_summary", "design"), reason),
        "predictive_checks": study_tables["predictive_checks"],
    }
    assert set(draw_models(unfit, TRAINING)) == {"posterior_checks"}


OPERATING = pd.DataFrame(
    [
        {"statistic": s, "scenario": f"sd {sd}", "measure": m, "nominal": n, "achieved": a,
         "standard_error": 0.01, "n_simulations": 500}
        for s, m, n, a in (
            ("common ranking", "false alarms", 0.05, 0.06),
            ("common ranking", "power", np.nan, 0.8),
            ("slope", "coverage", 0.95, 0.9),
        )
        for sd in (0.1, 0.2)
    ]
)  # fmt: skip


def test_every_statistic_and_scenario_has_a_line() -> None:
    figure = operating(OPERATING)
    figure.canvas.draw()
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["common ranking", *["sd 0.1", "sd 0.2"] * 2, "slope", "sd 0.1", "sd 0.2"]
    shown = sorted(float(line.get_xdata()[0]) for line in marks_of(figure.axes[0]))
    assert shown == sorted(100 * OPERATING["achieved"])


def test_only_figures_with_their_tables_are_drawn() -> None:
    assert set(draw_calibrations({"operating": OPERATING}, TRAINING)) == {"operating"}
    assert draw_calibrations({"coverage": pd.DataFrame()}, TRAINING) == {}


def test_calibration_shows_every_method_without_overlaps() -> None:
    methods = [("bootstrap", "items", "training"), ("REML, cells", "models", "training")]
    rows = [
        {"training": b, "sd_model": s, "scale": 0.0, "uneven": 1.0, "method": m,
         "random_effects": t, "covariates": a, "coverage": 0.9, "standard_error": 0.01}
        for b, s in ((0.0, 0.15), (-0.3, 0.3)) for m, t, a in methods
    ]  # fmt: skip
    bins = {f"bin_{i}": 5 for i in range(1, 21)}
    sbc = pd.DataFrame(
        [{"parameter": p, "p_value": 0.5, "n_simulations": 100} | bins for p in ("b", "scale")]
    )
    figure = calibration({"coverage": pd.DataFrame(rows), "sbc": sbc}, TRAINING)
    figure.canvas.draw()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        "bootstrap: items",
        "REML, cells",
    ]
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    assert not any(one.overlaps(two) for one, two in combinations(boxes, 2))

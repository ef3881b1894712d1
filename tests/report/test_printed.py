import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import TRAINING, study_of

from steercube.analysis.agreement.generation import UPPER_BOUND
from steercube.analysis.conclusions.tables import TABLES, conclude
from steercube.contrast import Contrast
from steercube.report.printed import markdown, printed, printed_tables

pytestmark = pytest.mark.usefixtures("few_priors")


def shown_as(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table as the text prints it in its first form."""
    entry = next(entry for entry in TABLES if entry.name == name)
    return printed(table, entry, entry.printed[0], TRAINING)


def rows(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]


def test_models_stand_in_order_with_intervals(study_tables: dict[str, pd.DataFrame]) -> None:
    shown = rows(printed_tables(study_tables, TRAINING)["models"])
    assert shown[0][:4] == ["model", "training", "delta (nat)", "Cohen's d"]
    assert [row[0] for row in shown[2:5]] == ["4B", "8B", "14B"]
    value = study_tables["models"].iloc[0]
    assert shown[2][2] == f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def test_the_ledger_shows_published_recomputed_balanced_interval_and_verdict(
    study_tables: dict[str, pd.DataFrame],
) -> None:
    shown = rows(printed_tables(study_tables, TRAINING)["claims"])
    assert len(shown) == 2 + len(study_tables["claims"])
    by_id = {row[0]: dict(zip(shown[0], row, strict=True)) for row in shown[2:]}
    rl = by_id["d-rl"]
    assert (rl["published"], rl["recomputed"], rl["verdict"]) == ("0.97", "0.97", "reproduced, but")
    claim = study_tables["claims"].set_index("id").loc["d-rl"]
    assert rl["interval"] == f"[{claim['low']:.2f}, {claim['high']:.2f}]"
    assert rl["balanced"] == f"{claim['balanced']:.2f}"


def test_a_cell_that_is_not_known_is_a_dash(study_tables: dict[str, pd.DataFrame]) -> None:
    shown = rows(printed_tables(study_tables, TRAINING)["difficulty"])
    assert all(len(row) == len(shown[0]) for row in shown)
    assert not any(cell in ("nan", "") for row in shown for cell in row)


def test_tables_without_rows_are_left_out(cells: xr.Dataset) -> None:
    one = cells.sel(model=["small"], model_other=["small"])
    made = set(printed_tables(conclude(study_of(one)), TRAINING))
    assert not {"contrast_effect", "scale", "model_deviations", "claims"} & made
    assert {"about_models", "models", "conclusions"} <= made


def test_a_value_that_no_interval_holds_has_the_corrected_one_beside_it() -> None:
    rows = [
        {"value": 0.5, "low": 0.1, "high": 0.9, "corrected": 0.4, "model": "inside"},
        {"value": 0.5, "low": -0.3, "high": 0.2, "corrected": -0.1, "model": "outside"},
        {"value": 0.5, "low": np.nan, "high": np.nan, "corrected": -0.1, "model": "none"},
        {"value": 0.5, "low": np.nan, "high": np.nan, "corrected": np.nan, "model": "unknown"},
    ]
    labels = {"training": "rl", "estimand": "cohens_d", "concepts": "every concept it ran"}
    shown = shown_as("models", pd.DataFrame([labels | row for row in rows]))
    shown = shown.set_index("model")["Cohen's d"]
    assert shown.to_dict() == {
        "inside": "0.50 [0.10, 0.90]",
        "outside": "0.50 (corrected −0.10) [−0.30, 0.20]",
        "none": "0.50 (corrected −0.10)",
        "unknown": "0.50",
    }


@pytest.mark.parametrize(
    ("reason", "said"), [(UPPER_BOUND, " (an upper bound)"), ("", "")], ids=["a bound", "none"]
)
def test_an_excess_over_a_null_from_rates_is_called_an_upper_bound(
    study_tables: dict[str, pd.DataFrame], reason: str, said: str
) -> None:
    name = "mean best generation delta less its null"
    table = study_tables["agreement"]
    table = table.assign(reason=table["reason"].where(table["statistic"] != name, reason))
    shown = shown_as("agreement", table).set_index(["concept", "statistic"])["value [interval]"]
    of_excess = shown[shown.index.get_level_values("statistic") == name + said]
    assert of_excess.index.get_level_values("concept").tolist() == [
        *("corrigible", "self_awareness", "sycophancy")
    ]
    assert of_excess.str.fullmatch(r"\S+ \[\S+, \S+\]").all()


def test_a_p_stands_beside_the_one_for_its_family(study_tables: dict[str, pd.DataFrame]) -> None:
    table = study_tables["conclusions"]
    shown = rows(printed_tables(study_tables, TRAINING)["grades"])
    ranking = table.set_index("id").loc["ranking"]
    expected = f"{ranking['p_value']:.1g} ({ranking['p_holm']:.3f})"
    assert next(row for row in shown if row[1] == "ranking")[-1] == expected
    assert len(shown) - 2 == table["low"].notna().sum()


def test_a_heading_names_the_contrast(small_tables: dict[str, pd.DataFrame]) -> None:
    header = rows(printed_tables(small_tables, TRAINING)["contrast_effect"])[0]
    assert header == [
        *("method", "takes as random", "held fixed beside training"),
        *("full RL minus distilled, d", "p", "P(below zero)"),
    ]
    other = Contrast("family", "old", "new")
    header = rows(printed_tables(small_tables, other)["contrast_effect"])[0]
    assert header[2:4] == ["held fixed beside family", "new minus old, d"]


def test_every_form_is_printed_under_its_own_name(every_table: dict[str, pd.DataFrame]) -> None:
    """But for what the study has no row of: properties of its vectors."""
    names = {form.name or table.name for table in TABLES for form in table.printed}
    assert set(printed_tables(every_table, TRAINING)) == names - {"extraction"}


def test_texts_of_a_table_are_no_markdown() -> None:
    text = markdown(pd.DataFrame({"a": ["x | y", None], "b": ["![p](q)", "<i>"]}))
    assert text == "| a | b |\n| --- | --- |\n| x \\| y | \\![p\\](q) |\n|  | \\<i> |\n"

import pandas as pd
import pytest
import xarray as xr
from builders import study_of

from steercube.report.figures import draw
from steercube.report.marks import marks, meanings

ROWS = [
    ({"steers": "yes", "layer_flag": "", "direction_flag": ""}, ""),
    ({"steers": "no", "layer_flag": "", "direction_flag": ""}, "○"),
    ({"steers": "unknown", "layer_flag": "last block", "direction_flag": ""}, ""),
    ({"steers": "yes", "layer_flag": "first swept", "direction_flag": ""}, "†"),
    ({"steers": "yes", "layer_flag": "last block, beside a gap", "direction_flag": ""}, "†"),
    ({"steers": "no", "layer_flag": "", "direction_flag": "moves more the other way"}, "○‡"),
    ({"steers": "no", "layer_flag": "last swept", "direction_flag": "steers the other way"}, "○†‡"),
    ({"cohens_d": 1.0}, ""),
]


@pytest.mark.parametrize(("row", "expected"), ROWS)
def test_a_row_has_its_marks(row: dict[str, str], expected: str) -> None:
    """None of a table of before these columns."""
    assert marks(row) == expected


def test_only_marks_that_are_used_are_explained() -> None:
    assert meanings(pd.DataFrame([row for row, _ in ROWS[:3]])) == [
        "○ does not steer, by a test over layers"
    ]
    assert [text[0] for text in meanings(pd.DataFrame([row for row, _ in ROWS[:7]]))] == list("○†‡")
    assert meanings(pd.DataFrame([ROWS[0][0], ROWS[-1][0]])) == []


def test_figures_show_them_and_what_they_mean(
    cells: xr.Dataset, small_tables: dict[str, pd.DataFrame]
) -> None:
    """Beside the right cell and nowhere else; and nothing of them where there is none."""
    effects = small_tables["effects"].assign(steers="yes", layer_flag="", direction_flag="")
    row = effects.index[(effects["model"] == "large") & (effects["concept"] == "humour")]
    marked = effects.copy()
    marked.loc[row, ["steers", "layer_flag"]] = ["no", "last swept"]
    for table, expected in ((effects, ""), (marked, "○†")):
        figures = draw(study_of(cells), small_tables | {"effects": table})
        heat = figures["effect_size_heatmap"]
        shown = [text.get_text() for text in heat.axes[0].texts]
        d = effects.loc[row, "cohens_d"].item()
        assert f"{d:.2f} {expected}".rstrip() in shown
        assert sum("†" in text for text in shown) == len(expected[1:])
        assert ("best layer at an end of the sweep" in heat.get_suptitle()) == (expected != "")
        violins = figures["best_layer_violins"]
        edge = [text.get_text() for ax in violins.axes for text in ax.texts if text.get_text()]
        assert edge == ([expected] if expected else [])
        legend = violins.legends[0].get_title().get_text()
        assert ("does not steer" in legend) == (expected != "")

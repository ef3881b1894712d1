"""Small marks beside an effect, and what they mean: in the heat map, its page and the violins.

A mark says what the colour and the number do not: that a test over layers does not find steering,
that the sweep has an open end beside the best layer, that the vector does more the other way.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd

from steercube.analysis.conclusions.effects import MORE_OTHER_WAY, OPEN, OTHER_WAY
from steercube.analysis.per_cell.steers import NO

NOT_STEERED, OPEN_END, AWAY = "○", "†", "‡"
MEANINGS = {
    NOT_STEERED: "does not steer, by a test over layers",
    OPEN_END: "best layer at an end of the sweep or beside a gap",
    AWAY: "largest effect the other way",
}


def marks(row: Mapping[str, Any]) -> str:
    """The marks of one row of the table of effects, in the order of MEANINGS.

    A table of before these columns has none, and an effect that was not tested is not marked.
    """
    holds = {
        NOT_STEERED: row.get("steers") == NO,
        OPEN_END: bool(set(str(row.get("layer_flag", "")).split(", ")) & set(OPEN)),
        AWAY: row.get("direction_flag") in (OTHER_WAY, MORE_OTHER_WAY),
    }
    return "".join(mark for mark, applies in holds.items() if applies)


def meanings(effects: pd.DataFrame) -> list[str]:
    """Each mark that any row has, with its meaning."""
    used = "".join(marks(row) for row in effects.to_dict("records"))
    return [f"{mark} {said}" for mark, said in MEANINGS.items() if mark in used]


FULL_COLOUR = 2.0
"""Cohen's d of the brightest colour, the same in every study so that colours compare."""
HATCHED = "hatched: the interval holds zero"


def shade(d: float) -> tuple[float, float, float, float]:
    """The colour of an effect: the darkest at 0 and below."""
    red, green, blue, opaque = mpl.colormaps["cividis"](min(max(0.0, d / FULL_COLOUR), 1.0))
    return red, green, blue, opaque


def holds_zero(row: Mapping[str, Any]) -> bool:
    """Whether an effect's interval does not exclude zero; True where it has none."""
    return not (row["cohens_d_low"] > 0 or row["cohens_d_high"] < 0)


def notes_of_heat_map(effects: pd.DataFrame) -> list[str]:
    """What the hatching and the marks of a heat map mean, where it has any."""
    run = effects[effects["cohens_d"].notna()]
    hatched = any(holds_zero(row) for row in run.to_dict("records"))
    return [*([HATCHED] if hatched else []), *meanings(effects)]

"""One number with what is known of its error: the type that tables, claims and figures share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, or the reason why there is none.

    `low` and `high` bound the confidence interval, over what `over` names: "items" means that
    models and concepts are held fixed, "models" that the claim is about other models of the kind.
    `n` counts those units. `corrected` is the value less its selection optimism. `p_value` is of
    the hypothesis of no effect, where that is tested. A NaN has its `reason`.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    over: str = ""
    n: int = 0
    corrected: float = np.nan
    p_value: float = np.nan
    span: tuple[float, float] = (np.nan, np.nan)
    """Smallest and largest member, where the value averages members that matter by themselves."""
    expected_under_null: float = np.nan
    reason: str = ""

    @classmethod
    def undefined(cls, reason: str) -> "Estimate":
        """No number, and why."""
        return cls(value=np.nan, reason=reason)

    @classmethod
    def around(
        cls,
        centre: float,
        half_width: float,
        *,
        through: Callable[[Any], Any] = float,
        **fields: Any,
    ) -> "Estimate":
        """The interval from g(centre - half_width) to g(centre + half_width), g = `through`.

        The value is g(centre) unless `fields` give another, such as one with its optimism.

        >>> Estimate.around(0.0, 1.0, through=np.exp, n=3).value
        1.0
        """
        ends = {
            "value": float(through(centre)),
            "low": float(through(centre - half_width)),
            "high": float(through(centre + half_width)),
        }
        return cls(**ends | fields)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval exists and lies on one side of zero."""
        return bool(self.low > 0 or self.high < 0)


def t_quantile(level: float, df: int) -> float:
    """The t that a share `level` of Student's distribution lies within; NaN without df."""
    return float(stats.t.ppf((1 + level) / 2, df)) if df > 0 else np.nan


def normal_quantile(level: float) -> float:
    """The z that a share `level` of the standard normal distribution lies within."""
    return float(stats.norm.ppf((1 + level) / 2))


def percentile_ends(draws: np.ndarray, level: float) -> tuple[float, float]:
    """The percentile interval of finite draws (draw,): their (1 - level) / 2 quantiles."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


SIGNIFICANT = 0.05
"""p-values above this are no evidence against chance."""

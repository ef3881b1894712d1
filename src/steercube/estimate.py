"""One number with what is known of its error: the type that tables, claims and figures share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from scipy import stats


class Known(Protocol):
    """What is known of a number: a posterior, or a confidence distribution."""

    def ends(self, level: float) -> tuple[float, float]:
        """The ends of its interval of this level."""

    def below(self, value: float) -> float:
        """The probability that it is below `value`."""


@dataclass(frozen=True)
class Student:
    r"""$g(c + s T)$, T Student's t with `df` degrees of freedom: `centre` c, `scale` s.

    The posterior of a mean under a flat prior, and its confidence distribution: the interval of
    every level is its own. g is `through`, one of `INVERSES`.
    """

    centre: float
    scale: float
    df: int
    through: Callable[[Any], Any] = float

    def ends(self, level: float) -> tuple[float, float]:
        """The ends of the interval of this level."""
        half = t_quantile(level, self.df) * self.scale
        return float(self.through(self.centre - half)), float(self.through(self.centre + half))

    def below(self, value: float) -> float:
        """The probability that the number is below `value`."""
        at = INVERSES[self.through](value)
        if not self.scale:
            return float(self.centre < at)
        return float(stats.t.cdf((at - self.centre) / self.scale, self.df))


INVERSES: dict[Callable[[Any], Any], Callable[[Any], Any]] = {float: float, np.tanh: np.arctanh}
"""Of the functions that an interval is computed through."""


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
    known: Known | None = field(default=None, compare=False, repr=False)
    """What the interval comes from, where intervals of other levels are needed too."""

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

    @classmethod
    def of(cls, known: Known, level: float, **fields: Any) -> "Estimate":
        """The interval of one level of what is known; the value is its middle unless given."""
        low, high = known.ends(level)
        if "value" not in fields:
            fields["value"] = known.ends(0.0)[0]
        return cls(low=low, high=high, known=known, **fields)

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

"""What an analysis says: the types that conclusions, tables and figures share."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """One number with what is known of its error.

    `low` and `high` bound the confidence interval, over what `over` names: "items" says that
    models and concepts are held fixed, "models" that other models of the kind are meant. `n`
    counts those units. `corrected` is the value less its selection optimism. `p_value` is of the
    hypothesis of no effect, where one is tested. A NaN has its `reason`.
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

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval exists and lies on one side of zero."""
        return bool(self.low > 0 or self.high < 0)

"""Published values as they were printed, and whether a recomputed one is the same."""

import re
from dataclasses import dataclass

import numpy as np

from steercube.estimate import Estimate

MOST_DIGITS = 40
"""Characters of a published value."""


@dataclass(frozen=True)
class Printed:
    """A published value as printed: ends of a range (equal for a number), digits, manner."""

    low: float
    high: float
    decimals: int
    percent: bool = False
    approximate: bool = False
    direction: str = ""

    @property
    def manner(self) -> str:
        """How precisely it is printed: as a number, an approximate one (~ or a range), or a sign.

        >>> read_printed("9.15").manner, read_printed("~7.5").manner, read_printed("+").manner
        ('number', 'approximate', 'qualitative')
        """
        if self.direction:
            return "qualitative"
        return "approximate" if self.approximate or self.low != self.high else "number"

    @property
    def unit(self) -> float:
        """One unit of the last printed digit."""
        return 10.0**-self.decimals / (100 if self.percent else 1)

    def units(self, value: float) -> int:
        """`value` rounded to the digits printed, as a whole number of their last unit."""
        return round(value / self.unit)

    def show(self, value: float) -> str:
        """`value` as it would be printed.

        >>> read_printed("7%").show(0.0667)
        '7%'
        """
        if not np.isfinite(value):
            return ""
        if self.direction:
            return f"{value:+.2f}"
        shown = f"{value * (100 if self.percent else 1):.{self.decimals}f}"
        return shown + ("%" if self.percent else "")


def read_printed(text: str) -> Printed:
    """What a printed value says: "9.15", "~7.5", "7%", "50-65%", or a direction "+", "-", "0".

    >>> read_printed("50-65%").low
    0.5
    """
    if text in ("+", "-", "0"):
        return Printed(np.nan, np.nan, 0, direction=text)
    found = re.fullmatch(r"(~?)(-?\d+(?:\.(\d+))?)(?:-(\d+(?:\.\d+)?))?(%?)", text, re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is no printed value; write 9.15, ~7.5, 7%, 50-65%, +, - or 0")
    tilde, first, digits, last, percent = found.groups()
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:MOST_DIGITS]}... has more digits than a number that is printed")
    scale = 100 if percent else 1
    low, high = float(first) / scale, float(last or first) / scale
    if high < low:
        raise ValueError(f"{text!r} is a range that ends below its beginning")
    return Printed(low, high, len(digits or ""), percent=bool(percent), approximate=bool(tilde))


def matches(printed: Printed, estimate: Estimate) -> bool:
    """Whether the recomputed value is the printed one, to the digits printed.

    A range must hold every member as rounded; an approximate number may be off by one unit of its
    last digit; a direction needs the sign. "0" prints no number that could be met.
    """
    if not np.isfinite(estimate.value):
        return False
    if printed.direction:
        sign = {"+": 1, "-": -1}.get(printed.direction)
        return bool(np.sign(estimate.value) == sign)
    if printed.low != printed.high:
        low, high = (printed.units(end) for end in estimate.span)
        return printed.units(printed.low) <= low and high <= printed.units(printed.high)
    if printed.approximate:
        return abs(estimate.value - printed.low) <= printed.unit
    return printed.show(estimate.value) == printed.show(printed.low)

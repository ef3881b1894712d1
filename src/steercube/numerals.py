"""Numbers as a text prints them: decimals, intervals, p-values, and minus signs that are one."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

NONE = "–"
HYPHEN = re.compile(r"(?<![\w\u2013-])-(?=\d)")
"""A minus sign that was typed as a hyphen."""


def signed(text: str) -> str:
    """The text with minus signs where hyphens stand for them.

    >>> signed("-0.2, half-normal, 50-65")
    '−0.2, half-normal, 50-65'
    """
    return HYPHEN.sub("−", text)


ROUNDING = 1e-12
"""Numbers that are smaller are the rounding errors of a sum."""


def decimals(value: float) -> str:
    """Two decimals, more where two would show nothing, a minus sign that is one.

    What rounding leaves of zero is zero.

    >>> decimals(-0.25), decimals(0.0031), decimals(-1e-17), decimals(float("nan"))
    ('−0.25', '0.0031', '0.00', '–')
    """
    if not np.isfinite(value):
        return NONE
    if abs(value) < ROUNDING:
        value = 0.0
    text = f"{value:.2f}"
    if float(text) == 0 and value != 0:
        text = f"{value:.2g}"
    return signed(text)


def p_value(value: float) -> str:
    """A p-value to three decimals, or the digit that matters of a smaller one.

    >>> p_value(0.0666), p_value(0.0005)
    ('0.067', '0.0005')
    """
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def with_interval(row: Mapping[str, Any], value: str = "value") -> str:
    """0.97 [0.54, 1.35], with the corrected value beside one that no interval holds."""
    shown, corrected = decimals(row[value]), row.get("corrected", np.nan)
    if not is_held(row[value], row["low"], row["high"]) and np.isfinite(corrected):
        shown += f" (corrected {decimals(corrected)})"
    if not np.isfinite(row["low"]):
        return shown
    return f"{shown} [{decimals(row['low'])}, {decimals(row['high'])}]"


def is_held(value: float, low: float, high: float) -> bool:
    """Whether a value lies in its interval; False where there is none.

    The value of a selected layer may lie outside, because its interval is about the effect less the
    optimism of the selection.
    """
    return bool(low <= value <= high)

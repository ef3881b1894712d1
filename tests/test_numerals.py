import numpy as np
import pytest

from steercube.numerals import decimals, is_held, p_value, signed, with_interval


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.25", "−0.25"),
        ("[-1, -0.5]", "[−1, −0.5]"),
        ("30B-A3B", "30B-A3B"),
        ("full-RL", "full-RL"),
        ("50-65%", "50-65%"),
        ("p=-3", "p=−3"),
    ],
)
def test_only_a_minus_becomes_one(text: str, shown: str) -> None:
    assert signed(text) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(-0.25, "−0.25"), (0.004, "0.004"), (-0.004, "−0.004"), (0.0, "0.00"), (np.nan, "–")],
)
def test_decimals_are_two_or_those_that_show_something(value: float, shown: str) -> None:
    assert decimals(value) == shown


def test_a_small_p_keeps_the_digit_that_matters() -> None:
    assert [p_value(p) for p in (0.5, 0.001, 0.00095, 3e-6)] == [
        "0.500",
        "0.001",
        "0.0009",
        "3e-06",
    ]


def test_the_corrected_value_stands_beside_one_that_no_interval_holds() -> None:
    row = {"value": 0.5, "low": -0.3, "high": 0.2, "corrected": -0.1}
    assert with_interval(row) == "0.50 (corrected −0.10) [−0.30, 0.20]"
    assert with_interval(row | {"high": 0.5}) == "0.50 [−0.30, 0.50]"
    assert with_interval(row | {"low": np.nan}) == "0.50 (corrected −0.10)"
    assert with_interval({"estimate": 0.5, "low": 0.1, "high": 0.9}, "estimate") == (
        "0.50 [0.10, 0.90]"
    )


def test_ends_of_an_interval_hold_a_value_and_no_interval_holds_none() -> None:
    assert is_held(0.2, 0.2, 0.3)
    assert not is_held(0.1, 0.2, 0.3)
    assert not is_held(0.1, np.nan, np.nan)

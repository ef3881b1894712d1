import numpy as np
import pytest

from steercube.analysis.conclusions.published import matches, read_printed
from steercube.estimate import Estimate


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("9.15", 9.1452, True),
        ("9.15", 9.1449, False),
        ("0.38", 0.3749, False),
        ("-0.06", -0.0626, True),
        ("7%", 0.0673, True),
        ("7%", 0.064, False),
        ("~7.5", 7.57, True),
        ("~7.5", 7.61, False),
        ("+", 0.2, True),
        ("-", 0.2, False),
    ],
)
def test_matching_to_the_printed_digits(text: str, value: float, expected: bool) -> None:
    assert matches(read_printed(text), Estimate(value)) is expected


@pytest.mark.parametrize(
    ("span", "expected"), [((0.574, 0.611), True), ((0.574, 0.654), True), ((0.49, 0.6), False)]
)
def test_a_range_holds_its_members_as_rounded(span: tuple[float, float], expected: bool) -> None:
    assert matches(read_printed("50-65%"), Estimate(0.6, span=span)) is expected


def test_every_whole_percent_is_within_a_range_that_ends_with_it() -> None:
    for percent in range(2, 100):
        printed = read_printed(f"1-{percent}%")
        assert matches(printed, Estimate(0.0, span=(0.01, percent / 100)))
        assert not matches(printed, Estimate(0.0, span=(0.01, (percent + 1) / 100)))


def test_no_difference_prints_no_number_that_could_be_met() -> None:
    assert not matches(read_printed("0"), Estimate(0.0, low=-0.1, high=0.1))
    assert not matches(read_printed("0.4"), Estimate(np.nan))

import numpy as np
import pytest

from steercube.analysis.margins import DEPTH, LOG_ODDS, STANDARDISED


def test_a_standardised_effect_is_a_log_odds_ratio_by_the_logistic_distribution() -> None:
    """Its sd is pi over root three, which is what turns an effect in sds into log odds."""
    draws = np.random.default_rng(0).logistic(size=400_000)
    assert LOG_ODDS.small == pytest.approx(STANDARDISED.small * draws.std(), rel=0.01)


def test_sizes_are_in_the_same_ratio_in_every_unit() -> None:
    assert DEPTH.small == pytest.approx(2 / 40)
    for of in (LOG_ODDS, DEPTH):
        assert of.medium / of.small == pytest.approx(STANDARDISED.medium / STANDARDISED.small)
        assert of.large / of.small == pytest.approx(STANDARDISED.large / STANDARDISED.small)

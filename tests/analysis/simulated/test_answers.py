import numpy as np
import pandas as pd
import pytest

from steercube.analysis.simulated.answers import (
    SIMULATED,
    Asked,
    Moved,
    Swept,
    answers_coverage,
)
from steercube.analysis.simulated.keeping import made_anew


@pytest.mark.slow
def test_every_interval_has_a_row_for_each_scenario() -> None:
    lines: list[str] = []
    table = answers_coverage(
        n_simulations=12, seed=1, map_scenarios=map, keep=made_anew, report=lines.append
    )
    assert len(lines) == len(SIMULATED)
    assert not table.duplicated(["statistic", "scenario"]).any()
    assert table["statistic"].nunique() == 9
    assert table["achieved"].between(0.5, 1).all()
    assert (table["nominal"] == 0.95).all()


def test_the_same_seed_gives_the_same_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    from steercube.analysis.simulated import answers

    few = tuple((simulate, scenarios[:1], times) for simulate, scenarios, times in SIMULATED[:1])
    monkeypatch.setattr(answers, "SIMULATED", few)
    options = {"seed": 5, "map_scenarios": map, "keep": made_anew, "report": lambda line: None}
    one, other = (answers_coverage(n_simulations=40, **options) for _ in range(2))
    pd.testing.assert_frame_equal(one, other)


def test_rates_are_those_asked_for(rng: np.random.Generator) -> None:
    scenario = Asked(200, 0.3, 0.6, 0.8, valid=(0.5, 0.9), valid_by_trait=0.0)
    low, high = scenario.rates(400, rng)
    assert low.value.mean() == pytest.approx(0.3, abs=0.01)
    assert high.value.mean() == pytest.approx(0.6, abs=0.01)
    assert low.n.mean() / 200 == pytest.approx(0.5, abs=0.01)
    assert scenario.truth(rng) == pytest.approx(0.3)


def test_validity_by_trait_changes_the_rate_among_valid_answers(rng: np.random.Generator) -> None:
    by_trait = Asked(100, 0.5, 0.5, 0.6, valid=(0.5, 0.9), valid_by_trait=0.5)
    assert by_trait.truth(rng) < -0.05


def test_answers_that_follow_the_logits_agree_with_them(rng: np.random.Generator) -> None:
    r = {follows: Moved(5_000, follows, 2.0).r(rng) for follows in (0.0, 1.0)}
    assert abs(r[0.0]) < 0.05
    assert r[1.0] > 0.4


def test_an_effect_peaks_at_the_middle_layer(rng: np.random.Generator) -> None:
    answers = Swept(4_000, 21, 1.0).answers(rng)
    change = answers.match[1].mean(axis=-1) - answers.match[0].mean(axis=-1)
    assert abs(int(change.argmax()) - 10) <= 1
    assert change[0] < 0.3 * change.max()

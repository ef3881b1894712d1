from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from builders import make_cube, make_model, reduce_to_cells, study_of
from scipy import stats

from steercube.analysis.conclusions import changes
from steercube.analysis.conclusions.changes import (
    EVERY,
    EVERY_MODEL,
    OWN_MINUS_OTHER,
    capability,
    specificity,
)
from steercube.analysis.view import Study
from steercube.cells import CHANGE_VARIABLES, CHANGES


def row(**values: object) -> dict[str, object]:
    usual = {
        **{"measure": "correct", "outcome": "match", "reading": "", "concept": "sums"},
        **{"direction": "honesty", "model": "4B", "layer": -1.0},
        **{"low_strength": 0.0, "high_strength": 1.0, "n_items": 200.0, "n_pairs": 200.0},
        **{"n_low": 200.0, "n_high": 200.0, "n_rise": 3.0, "n_fall": 9.0},
        **{"rate_low": 0.9, "rate_high": 0.87, "change": -0.03, "change_of_pairs": -0.03},
        **{"change_low": -0.07, "change_high": 0.005, "shared_variance": 0.0},
    }
    return usual | values


@pytest.fixture
def study(rng: np.random.Generator) -> Study:
    cube = make_cube(rng, models=(make_model("4B"),), n_items={"honesty": 12})
    return study_of(reduce_to_cells(cube, n_resamples=50))


def holding(study: Study, *rows: dict[str, object]) -> Study:
    table = pd.DataFrame(rows)
    assert set(table) == set(CHANGE_VARIABLES)
    return replace(study, records={CHANGES: table})


def test_margins_are_the_ends_of_the_interval(study: Study) -> None:
    (labels, estimate), *_ = capability(holding(study, row()))
    assert labels["loss_excluded"] == 0.07
    assert labels["change_excluded"] == 0.07
    gain = row(change_low=0.01, change_high=0.2)
    (labels, _), *_ = capability(holding(study, gain))
    assert (labels["loss_excluded"], labels["change_excluded"]) == (0.0, 0.2)
    assert estimate.p_value == pytest.approx(stats.binomtest(3, 12).pvalue)


def test_over_models_it_is_t_and_what_the_items_share(study: Study) -> None:
    values = [-0.03, -0.01, 0.01]
    rows = [row(model=f"m{i}", change=x, shared_variance=1e-4) for i, x in enumerate(values)]
    found = [e for labels, e in capability(holding(study, *rows)) if labels["model"] == EVERY_MODEL]
    t, z = stats.t.ppf(0.975, 2), stats.norm.ppf(0.975)
    half = np.sqrt(t**2 * 0.02**2 / 3 + z**2 * 1e-4)
    assert found[0].value == pytest.approx(-0.01)
    assert (found[0].low, found[0].high) == pytest.approx((-0.01 - half, -0.01 + half))
    assert (found[0].over, found[0].n) == ("models", 3)


def test_the_summary_counts_single_models_from_strength_zero(study: Study) -> None:
    rows = [
        row(model="a", n_rise=0.0, n_fall=12.0),
        row(model="b", n_rise=5.0, n_fall=5.0),
        row(model="a", low_strength=-1.0, n_rise=0.0, n_fall=20.0),
    ]
    summary = {
        labels["statistic"]: estimate.value
        for labels, estimate in capability(holding(study, *rows))
        if labels["model"] == EVERY
    }
    assert summary[changes.TESTED] == 2
    assert summary[changes.BELOW] == 1
    of_12, of_10 = (
        sum(stats.binom.pmf(k, n, 0.5) for k in range(n + 1) if stats.binomtest(k, n).pvalue < 0.05)
        for n in (12, 10)
    )
    assert summary[changes.BY_CHANCE] == pytest.approx(of_12 + of_10)
    assert summary[changes.TOO_FEW] == 0
    assert summary[changes.EXCLUDING] == 0
    assert summary[changes.SMALLEST] == pytest.approx(2 * 2 * 0.5**12)


def test_a_change_without_a_valid_answer_has_its_reason(study: Study) -> None:
    nothing = dict.fromkeys(("change", "change_low", "change_high", "rate_high"), np.nan)
    (labels, estimate), (_, over), *_ = capability(holding(study, row(**nothing)))
    assert "valid" in estimate.reason
    assert np.isnan(estimate.p_value)
    assert np.isnan(labels["loss_excluded"])
    assert over.reason


def test_items_are_the_vectors_own_or_others(study: Study) -> None:
    answers = {"measure": "generation_match", "reading": "read anew"}
    rows = [row(**answers, concept=concept) for concept in ("honesty", "humour")]
    found = specificity(holding(study, *rows, row(), row(**answers, layer=3.0)))
    whose = {labels["concept"]: labels["items"] for labels, _ in found}
    assert whose == {"honesty": "own", "humour": "other", OWN_MINUS_OTHER: OWN_MINUS_OTHER}


def test_own_minus_other_is_within_models(study: Study) -> None:
    answers = {"measure": "generation_match", "reading": "read anew"}
    changes_of = {"honesty": (0.3, 0.5), "humour": (0.1, 0.2), "sums": (-0.1, 0.0)}
    rows = [
        row(**answers, concept=concept, model=f"m{i}", change=change)
        for concept, of in changes_of.items()
        for i, change in enumerate(of)
    ]
    few = row(**answers, concept="humour", model="m2", change=0.9, n_low=4.0)
    found = [
        estimate
        for labels, estimate in specificity(holding(study, *rows, few))
        if labels["items"] == OWN_MINUS_OTHER
    ]
    assert [e.value for e in found] == [pytest.approx((0.3 + 0.4) / 2)]
    assert found[0].n == 2


def test_models_with_a_few_answers_are_left_out_over_models(study: Study) -> None:
    answers = {"measure": "generation_match", "reading": "read anew"}
    rows = [row(**answers, model="a"), row(**answers, model="b", n_high=9.0, change=0.9)]
    over = [e for labels, e in specificity(holding(study, *rows)) if labels["model"] == EVERY_MODEL]
    assert over[0].n == 1
    assert over[0].value == -0.03


def test_each_table_has_its_own_changes(study: Study) -> None:
    answers = {"measure": "generation_match", "reading": "read anew"}
    full = holding(study, row(), row(**answers), row(**answers, layer=3.0))
    assert [changes.holds(full, name) for name in changes.CHOSEN] == [True] * 3
    assert len(changes.changes(full)) == 1
    assert not changes.holds(study, "changes")

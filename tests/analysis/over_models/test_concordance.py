from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from builders import make_effects, study_of
from scipy import optimize, stats

from steercube.analysis.over_models import concordance
from steercube.analysis.over_models.cell_effects import CellEffects, cell_effects
from steercube.analysis.over_models.concordance import (
    WITHIN,
    concept_share,
    concept_share_of_all,
    concept_test,
    concordance_of_ranks,
    kendalls_tau,
    kendalls_w,
    pairwise_concordance,
    rank_agreement,
    share_of_variance,
)
from steercube.analysis.over_models.means import root_of
from steercube.analysis.over_models.posterior import SDS, Posterior, fit


def with_effects(cells: xr.Dataset, table: np.ndarray, estimand: str = "cohens_d") -> xr.Dataset:
    """The cells with (model, concept) effects put in their place."""
    effects = cells["selected_estimate"].transpose("estimand", "model", "concept").copy(deep=True)
    effects.loc[estimand] = table
    return cells.assign(selected_estimate=effects)


def quiet(cells: xr.Dataset) -> xr.Dataset:
    """The cells with hardly any sampling error."""
    return cells.assign(selected_covariance=cells["selected_covariance"] * 1e-6)


def drawn(
    effects: CellEffects, rng: np.random.Generator, *, sd_concept: float, sd_cell: float
) -> CellEffects:
    """Cells of the same design from the hierarchical model, models that differ by 0.3."""
    n = len(effects.value)
    sd = {"model": 0.3, "concept": sd_concept, "cell": sd_cell}
    index = {"model": effects.model, "concept": effects.concept, "cell": np.arange(n)}
    value = 1 + sum(sd[name] * rng.normal(size=n)[index[name]] for name in sd)
    return replace(effects, value=value + root_of(effects.covariance) @ rng.normal(size=n))


@pytest.mark.parametrize("sd_cell", [0.25, 0.1, 0.03])
def test_the_test_keeps_its_level_and_has_power(study_cells: xr.Dataset, sd_cell: float) -> None:
    """In the study's design: 250 tables without a common part, 5% with a standard error of 1.4%.

    The control has the study's sd between concepts.
    """
    effects, rng = cell_effects(study_of(study_cells)), np.random.default_rng(20)

    def rejected(sd_concept: float, n: int) -> float:
        p = [
            concept_test(
                drawn(effects, rng, sd_concept=sd_concept, sd_cell=sd_cell), rng, n_draws=99
            ).p_value
            for _ in range(n)
        ]
        return float(np.mean(np.array(p) <= 0.05))

    assert rejected(0.0, 250) <= 0.05 + 2.5 * 0.014
    assert rejected(0.38, 40) >= 0.75


def test_the_likelihood_ratio_is_that_of_an_optimiser(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the model with a level for each model, by the definition of a restricted likelihood.

    On a fine grid; a coarse one misses a little of either maximum, alike for data and null.
    """
    monkeypatch.setattr(concordance, "N_GRID", 200)
    effects = make_effects(rng)
    effects = replace(effects, value=effects.value + 0.2 * effects.concept)
    x = np.eye(6)[effects.model]
    z = np.eye(5)[effects.concept]

    def minus_log_likelihood(sds: np.ndarray) -> float:
        concept, cell = sds
        v = effects.covariance + concept**2 * z @ z.T + cell**2 * np.eye(len(z))
        inverse = np.linalg.inv(v)
        precision = x.T @ inverse @ x
        residual = effects.value - x @ np.linalg.solve(precision, x.T @ inverse @ effects.value)
        log_det = np.linalg.slogdet(v)[1] + np.linalg.slogdet(precision)[1]
        return float(0.5 * (log_det + residual @ inverse @ residual))

    bounds = [(0, None)] * 2
    both = optimize.minimize(minus_log_likelihood, [0.3, 0.2], bounds=bounds).fun
    without = optimize.minimize(minus_log_likelihood, [0.0, 0.2], bounds=[(0, 0), (0, None)])
    found = concept_test(effects, rng, n_draws=9)
    assert found.statistic > 1
    assert found.statistic == pytest.approx(2 * (without.fun - both), abs=0.01)
    assert found.sd_cell == pytest.approx(without.x[1], abs=0.01)


def test_levels_of_models_do_not_matter_to_the_test(rng: np.random.Generator) -> None:
    effects = make_effects(rng)
    moved = replace(effects, value=effects.value + 10 * rng.normal(size=6)[effects.model])
    one, two = (concept_test(e, np.random.default_rng(1), n_draws=99) for e in (effects, moved))
    assert two.statistic == pytest.approx(one.statistic)
    assert two.p_value == one.p_value
    concepts = replace(effects, value=effects.value + rng.normal(size=5)[effects.concept])
    other = concept_test(concepts, rng, n_draws=9)
    assert abs(other.statistic - one.statistic) > 1


def test_agreement_in_error_alone_is_no_agreement(six: xr.Dataset) -> None:
    """Equal effects whose item error all models share rank alike by chance: p must not be small.

    The same table with little error is the control.
    """
    order = np.tile([0.0, 0.1, 0.2], (6, 1)) + 1e-3 * np.random.default_rng(0).normal(size=(6, 3))
    cells = with_effects(six, order)
    shared = xr.full_like(cells["selected_covariance"], 1.0) + 1e-6 * (
        cells["model"] == cells["model_other"]
    )
    found = concept_share(study_of(cells.assign(selected_covariance=shared)), estimand="cohens_d")
    assert found.p_value > 0.05
    assert concept_share(study_of(quiet(cells)), estimand="cohens_d").p_value < 0.01


def test_a_missing_cell_takes_no_other_with_it(study_cells: xr.Dataset) -> None:
    study = study_of(study_cells)
    whole = concept_share(study, estimand="cohens_d")
    assert whole.n == 35
    assert concordance_of_ranks(study, estimand="cohens_d").n == 6


def ends(posterior: Posterior, among: Sequence[str]) -> tuple[float, float, float]:
    """Lower end, median and upper end of the share of sd_concept."""
    known = share_of_variance(posterior, "sd_concept", among)
    low, high = known.ends(0.95)
    return low, known.ends(0.0)[0], high


def test_the_share_is_that_of_many_concepts() -> None:
    """sd_concept 0.3, sd_cell 0.2, sd_model 0.2: their true shares lie in narrow intervals."""
    effects = make_effects(np.random.default_rng(4), n_models=8, n_concepts=25)
    posterior = fit(effects, terms=())
    for among, true in ((WITHIN, 0.09 / 0.13), (SDS, 0.09 / 0.17)):
        low, middle, high = ends(posterior, among)
        assert low < true < high
        assert low < middle < high < low + 0.45


@pytest.mark.parametrize("among", [WITHIN, SDS])
def test_a_finer_grid_gives_the_same_share(study_cells: xr.Dataset, among: tuple[str, ...]) -> None:
    effects = cell_effects(study_of(study_cells))
    coarse, fine = (ends(fit(effects, n_nodes=n), among) for n in (20, 30))
    assert coarse == pytest.approx(fine, abs=2e-3)


def test_the_share_agrees_with_draws_from_the_posterior(study_cells: xr.Dataset) -> None:
    """The cumulative sums over a fine grid are the same as draws of its nodes, to their step."""
    posterior = fit(cell_effects(study_of(study_cells)), n_nodes=30)
    nodes = np.random.default_rng(0).choice(len(posterior.weight), 40_000, p=posterior.weight)
    concept, cell = (posterior.sds[name][nodes] ** 2 for name in WITHIN)
    expected = np.quantile(concept / (concept + cell), [0.025, 0.5, 0.975])
    assert ends(posterior, WITHIN) == pytest.approx(tuple(expected), abs=0.03)
    under = share_of_variance(posterior, "sd_concept", WITHIN).below(expected[1])
    assert under == pytest.approx(0.5, abs=0.03)


def test_w_is_friedmans_chi_square() -> None:
    table = np.random.default_rng(0).normal(size=(5, 4))
    chi2 = stats.friedmanchisquare(*table.T).statistic
    assert kendalls_w(table) == pytest.approx(chi2 / (5 * 3))


def test_w_of_one_ranking_is_one_and_of_opposite_rankings_zero() -> None:
    up = np.arange(4.0)
    assert kendalls_w(np.stack([up, up * 2, up - 9])) == pytest.approx(1)
    assert kendalls_w(np.stack([up, -up])) == pytest.approx(0)


def test_w_and_tau_use_the_columns_that_a_pair_has(rng: np.random.Generator) -> None:
    table = rng.normal(size=(4, 6))
    table[0, 2] = table[3, 5] = np.nan
    rho, tau = [], []
    for i, j in combinations(range(4), 2):
        both = np.isfinite(table[i]) & np.isfinite(table[j])
        rho.append(stats.spearmanr(table[i, both], table[j, both]).statistic)
        tau.append(stats.kendalltau(table[i, both], table[j, both]).statistic)
        assert kendalls_tau(table[i], table[j]) == pytest.approx(tau[-1])
    assert kendalls_w(table) == pytest.approx((1 + 3 * np.mean(rho)) / 4)


def test_w_and_tau_say_why_they_have_no_interval(six: xr.Dataset) -> None:
    study = study_of(six)
    found = [concordance_of_ranks(study, estimand="cohens_d")]
    found += [tau for _, tau in pairwise_concordance(study, estimand="cohens_d")]
    assert len(found) == 1 + 15 + 1
    for one in found:
        assert np.isfinite(one.value)
        assert np.isnan([one.low, one.high, one.p_value]).all()
        assert "describes" in one.reason


def test_a_model_that_ranks_the_other_way_is_found(study_cells: xr.Dataset) -> None:
    """Its correlation is -1, the others' near 1; without error each p says as much."""
    effects = cell_effects(study_of(study_cells))
    models = study_cells["model"].values.tolist()
    odd = effects.models[2]
    table = study_cells["selected_estimate"].sel(estimand="cohens_d", drop=True)
    up = xr.DataArray(np.arange(6.0), dims="concept")
    is_odd = xr.DataArray([model == odd for model in models], dims="model")
    noise = 0.1 * np.random.default_rng(5).normal(size=(len(models), 6))
    table = (xr.where(is_odd, -up, up) + noise).where(table.notnull())
    cells = quiet(with_effects(study_cells, table.transpose("model", "concept").values))
    optimism = xr.zeros_like(cells["selected_optimism"])
    exact = study_of(cells.assign(selected_optimism=optimism))
    found = dict(rank_agreement(exact, estimand="cohens_d"))
    assert found[odd].value == pytest.approx(-1)
    assert found[odd].p_value > 0.9
    for model, other in found.items():
        if model != odd:
            assert other.value > 0.8
            assert other.p_value < 0.1


def test_one_model_and_unknown_estimands_say_why(six: xr.Dataset) -> None:
    study = study_of(six)
    one = six.sel(model=["a"], model_other=["a"])
    for found in (
        concept_share(study_of(one), estimand="cohens_d"),
        concept_share_of_all(study_of(one), estimand="cohens_d"),
        concordance_of_ranks(study_of(one), estimand="cohens_d"),
        rank_agreement(study_of(one), estimand="cohens_d")[0][1],
        pairwise_concordance(study_of(one), estimand="cohens_d")[0][1],
        concept_share(study, estimand="cohens_d", concepts=["one", "two"]),
    ):
        assert np.isnan(found.value)
        assert "two models that ran the same three concepts" in found.reason
    assert "no priors" in concept_share(study, estimand="letter_shift").reason


def test_errors_know_how_many_items_their_covariance_is_from(rng: np.random.Generator) -> None:
    """Known, they have it; from n items for m models, (n - 1) / (n - m - 2) of it, with wide tails.

    As concepts share no item, those of two concepts are independent.
    """
    effects = make_effects(rng, n_models=4, n_concepts=3)
    m = np.bincount(effects.concept)[0]
    known, few = (
        concordance._errors(replace(effects, n_items=n_items), 40_000, rng)
        for n_items in ((), (14, 14, 14))
    )
    cells = np.flatnonzero(effects.concept == 0)
    s = effects.covariance[np.ix_(cells, cells)]
    np.testing.assert_allclose(np.cov(known[:, cells].T), s, rtol=0.1, atol=5e-4)
    ratio = np.trace(np.cov(few[:, cells].T)) / np.trace(s)
    assert ratio == pytest.approx(13 / (14 - m - 2), rel=0.1)
    assert stats.kurtosis(few[:, 0]) > 0.4 > abs(stats.kurtosis(known[:, 0]))
    other = np.flatnonzero(effects.concept == 1)[0]
    assert abs(np.corrcoef(few[:, 0], few[:, other])[0, 1]) < 0.03


def test_without_the_model_that_lacks_a_concept_w_is_friedmans(study_cells: xr.Dataset) -> None:
    """Recomputed from the bare table: 0.81 of five models on six concepts, and p stays small."""
    others = [m for m in study_cells["model"].values if m != "235B-A22B"]
    cells = study_cells.sel(model=others, model_other=others)
    table = cells["selected_estimate"].sel(estimand="cohens_d").values
    table = table[np.isfinite(table).all(axis=1)]
    assert table.shape == (5, 6)
    w = stats.friedmanchisquare(*table.T).statistic / (5 * 5)
    assert w == pytest.approx(0.81, abs=0.005)
    assert concordance_of_ranks(study_of(cells), estimand="cohens_d").value == pytest.approx(w)
    assert concept_share(study_of(cells), estimand="cohens_d").p_value < 0.005

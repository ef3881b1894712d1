import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import study_of

from steercube.analysis.over_models.means import model_means
from steercube.analysis.over_models.multiverse import (
    CHOICES,
    CROSSED,
    DISTINCT,
    LAYERS,
    SAME_DEPTH,
    Multiverse,
    multiverse,
)


@pytest.fixture(scope="module")
def of_study(study_cells: xr.Dataset) -> Multiverse:
    return multiverse(study_of(study_cells))


def choose(table: pd.DataFrame, **choice: str) -> float:
    default = {"items": "all", "concepts": "all", "models": "all", "aggregation": "mean"}
    for name, option in (default | choice).items():
        table = table[table[name] == option]
    assert len(table) == 1
    return float(table["effect"].iloc[0])


def test_there_are_thousands_all_different(of_study: Multiverse) -> None:
    assert len(of_study.table) > 1_000
    assert of_study.table["effect"].is_monotonic_increasing
    same = ["denominator", "layer", "models", "aggregation", "effect"]
    assert of_study.table.duplicated(same).mean() < 0.01


def test_the_published_specification_is_among_them(
    of_study: Multiverse, study_cells: xr.Dataset
) -> None:
    effect = choose(of_study.table, denominator="cohens_d", layer="largest delta")
    means = model_means(study_of(study_cells), estimand="cohens_d").value
    rl = study_cells["training"].sel(model=means["model"]).values == "rl"
    expected = (means.values[rl].mean() - means.values[~rl].mean()) / means.values.mean()
    assert effect == pytest.approx(expected, abs=1e-6)


def test_size_held_fixed_is_least_squares(of_study: Multiverse, study_cells: xr.Dataset) -> None:
    effect = choose(of_study.table, denominator="cohens_d", layer="largest delta",
                    aggregation="mean, size held fixed")  # fmt: skip
    means = model_means(study_of(study_cells), estimand="cohens_d").value
    rl = (study_cells["training"].sel(model=means["model"]).values == "rl").astype(float)
    size = np.log10(study_cells["n_params"].sel(model=means["model"]).values)
    design = np.column_stack([np.ones(6), rl, size])
    b = np.linalg.lstsq(design, means.values, rcond=None)[0][1]
    assert effect == pytest.approx(b / means.values.mean(), abs=1e-6)


def test_the_test_is_exact_over_fifteen_ways(of_study: Multiverse) -> None:
    for median in of_study.medians.values():
        assert median.smallest_p == pytest.approx(1 / 15)
        assert median.p_value * 15 == pytest.approx(round(median.p_value * 15))
        assert median.p_value >= median.smallest_p
    distinct = of_study.medians[DISTINCT]
    assert distinct.n == len(of_study.table) < of_study.medians[CROSSED].n
    assert distinct.value == pytest.approx(of_study.table["effect"].median(), abs=1e-6)


def test_the_same_depth_for_all_stands_apart(of_study: Multiverse) -> None:
    """It measures where full RL steers best, not how well; the table is without it."""
    assert set(of_study.table["layer"]) == set(LAYERS)
    apart = of_study.medians[f"median, {SAME_DEPTH}"].value
    assert apart < 2 * of_study.medians[DISTINCT].value


def test_shares_of_variance_are_shares(of_study: Multiverse) -> None:
    assert set(of_study.shares) == {*CHOICES, "interplay"}
    assert sum(of_study.shares.values()) == pytest.approx(1)
    assert all(share >= -1e-9 for share in of_study.shares.values())


def with_gap(six: xr.Dataset, gap: float, rng: np.random.Generator) -> xr.Dataset:
    """Full RL models steer `gap` less, in every estimand and layer."""
    factor = xr.where(six["training"] == "rl", 1 - gap, 1.0) * (
        1 + 0.02 * xr.DataArray(rng.normal(size=6), dims="model")
    )
    names = ["estimate", "selected_estimate", "selected_optimism"]
    names += ["valid_selected_estimate", "valid_selected_optimism"]
    flat = {n: xr.ones_like(six[n]).where(six[n].notnull()) * factor for n in names}
    return six.assign({n: 0 * v if n.endswith("optimism") else v for n, v in flat.items()})


def test_a_gap_in_all_specifications_has_the_least_p(
    six: xr.Dataset, rng: np.random.Generator
) -> None:
    found = multiverse(study_of(with_gap(six, 0.5, rng)))
    for name in (DISTINCT, CROSSED):
        assert found.medians[name].p_value == pytest.approx(1 / 15)
        assert found.medians[name].value == pytest.approx(-0.5 / (1 - 0.5 / 3), abs=0.1)


@pytest.mark.slow
def test_the_ps_of_no_gap_are_flat(six: xr.Dataset) -> None:
    """60 draws without a gap: p under 0.3 in 27% of ways; binomial, false alarms 1 in 1,000."""
    small = six.sel(concept=["one"])
    ps = []
    for seed in range(60):
        without = study_of(with_gap(small, 0.0, np.random.default_rng(seed)))
        ps.append(multiverse(without).medians[DISTINCT].p_value)
    assert 0.08 < np.mean(np.array(ps) < 0.3) < 0.48


def test_one_training_has_no_multiverse(six: xr.Dataset) -> None:
    one = six.sel(model=list("abcd"), model_other=list("abcd"))
    study = study_of(one)
    found = multiverse(study)
    assert found.reason == study.needs_contrast
    assert not len(found.table)

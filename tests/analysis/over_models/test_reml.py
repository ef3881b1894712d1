from dataclasses import replace

import numpy as np
import pytest
from builders import make_effects
from scipy import optimize

from steercube.analysis.over_models.cell_effects import TERMS
from steercube.analysis.over_models.reml import reml_of_cells, reml_of_items


def rows(rng: np.random.Generator, n_models: int = 5, n_items: int = 30) -> dict[str, np.ndarray]:
    """Items crossed with models, one cell lacking."""
    item = np.tile(np.arange(n_items), n_models)
    model = np.repeat(np.arange(n_models), n_items)
    kept = ~((item > 20) & (model == 2))
    return {"sd_item": item[kept], "sd_model": model[kept]}


def test_one_way_is_the_analysis_of_variance(rng: np.random.Generator) -> None:
    """Balanced groups: sd^2 = (MS between - MS within) / n, exactly."""
    group = np.repeat(np.arange(8), 10)
    y = rng.normal(size=80) + 2 * rng.normal(size=8)[group]
    found = reml_of_items(y, np.ones((80, 1)), {"sd_item": group, "sd_none": 0 * group}, terms=())
    means = y.reshape(8, 10).mean(axis=1)
    within = y.reshape(8, 10).var(axis=1, ddof=1).mean()
    between = 10 * means.var(ddof=1)
    assert found.sds["sd_residual"] == pytest.approx(np.sqrt(within), rel=1e-4)
    assert found.sds["sd_item"] == pytest.approx(np.sqrt((between - within) / 10), rel=1e-4)


def test_it_is_statsmodels_on_crossed_factors(rng: np.random.Generator) -> None:
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    index = rows(rng)
    n = len(index["sd_item"])
    x = np.column_stack([np.ones(n), (index["sd_model"] > 2).astype(float)])
    y = x @ [1.0, 0.5] + 0.4 * rng.normal(size=30)[index["sd_item"]]
    y = y + 0.3 * rng.normal(size=5)[index["sd_model"]] + 0.7 * rng.normal(size=n)
    ours = reml_of_items(y, x, index, terms=("training",))
    z = [np.eye(index[f].max() + 1)[index[f]] for f in index]
    labels = [[[f"{i}" for i in range(m.shape[1])]] for m in z]
    spec = VCSpec(list(index), labels, [[m] for m in z])
    theirs = MixedLM(y, x, groups=np.zeros(n), exog_vc=spec).fit(reml=True, method=["powell"])
    assert ours.log_likelihood == pytest.approx(theirs.llf, abs=1e-3)
    assert ours.coefficients["training"] == pytest.approx(theirs.fe_params[1], abs=1e-3)
    assert ours.standard_errors["training"] == pytest.approx(theirs.bse_fe[1], rel=0.01)


def test_no_known_error_is_a_residual(rng: np.random.Generator) -> None:
    """Cells with (almost) no sampling error: sd_cell is the residual of the model of rows."""
    effects = make_effects(rng)
    bare = replace(effects, covariance=1e-12 * np.eye(len(effects.value)))
    of_cells = reml_of_cells(bare, terms=TERMS)
    index = {"sd_model": effects.model, "sd_concept": effects.concept}
    of_rows = reml_of_items(effects.value, effects.design(TERMS), index, terms=TERMS)
    assert of_cells.log_likelihood == pytest.approx(of_rows.log_likelihood, abs=1e-5)
    assert of_cells.coefficients == pytest.approx(of_rows.coefficients, abs=1e-4)
    assert of_cells.standard_errors == pytest.approx(of_rows.standard_errors, abs=1e-4)
    assert of_cells.sds["sd_cell"] == pytest.approx(of_rows.sds["sd_residual"], abs=1e-4)


def test_it_is_the_largest_likelihood_from_anywhere(rng: np.random.Generator) -> None:
    effects = make_effects(rng)
    found = reml_of_cells(effects, terms=TERMS)
    x, y = effects.design(TERMS), effects.value

    def restricted(sds: np.ndarray) -> float:
        v = effects.covariance + sds[0] ** 2 * np.equal.outer(effects.model, effects.model)
        v = v + sds[1] ** 2 * np.equal.outer(effects.concept, effects.concept)
        v = v + sds[2] ** 2 * np.eye(len(y))
        inverse = np.linalg.inv(v)
        precision = x.T @ inverse @ x
        r = y - x @ np.linalg.solve(precision, x.T @ inverse @ y)
        log_det = np.linalg.slogdet(v)[1] + np.linalg.slogdet(precision)[1]
        return -0.5 * float((len(y) - 3) * np.log(2 * np.pi) + log_det + r @ inverse @ r)

    best = restricted(np.array(list(found.sds.values())))
    assert found.log_likelihood == pytest.approx(best, abs=1e-8)
    others = [
        -optimize.minimize(lambda s: -restricted(s), start, method="Powell",
                           bounds=[(0, 3)] * 3).fun
        for start in rng.uniform(0, 1, size=(5, 3))
    ]  # fmt: skip
    assert best >= max(others) - 1e-6


def test_a_variance_at_its_boundary_is_said(rng: np.random.Generator) -> None:
    effects = make_effects(rng, sd_model=0.0)
    flat = replace(effects, value=1.0 + 0.05 * rng.normal(size=len(effects.value)))
    assert "sd_model" in reml_of_cells(flat, terms=TERMS).at_boundary
    apart = make_effects(rng, sd_model=1.0)
    assert "sd_model" not in reml_of_cells(apart, terms=TERMS).at_boundary


def test_one_concept_has_only_models(rng: np.random.Generator) -> None:
    assert list(reml_of_cells(make_effects(rng, n_concepts=1), terms=TERMS).sds) == ["sd_model"]

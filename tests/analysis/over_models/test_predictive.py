from dataclasses import replace

import numpy as np
import pytest
from builders import make_effects

from steercube.analysis.over_models.posterior import PRIOR, fit
from steercube.analysis.over_models.predictive import (
    checks,
    posterior_draws,
    prior_draws,
    statistics,
)


def test_statistics_of_a_full_table(rng: np.random.Generator) -> None:
    effects = make_effects(rng, n_models=3, n_concepts=4)
    kept = effects.only(np.flatnonzero(effects.concept < 3))
    y = kept.value.reshape(3, 3)
    found = statistics(kept, kept.value)
    assert found["mean"] == pytest.approx(y.mean())
    assert found["sd of model means"] == pytest.approx(y.mean(axis=0).std())
    assert found["sd of concept means"] == pytest.approx(y.mean(axis=1).std())
    rest = y - y.mean(axis=0) - y.mean(axis=1)[:, None] + y.mean()
    assert found["sd of what is left"] == pytest.approx(rest.std())


def test_prior_draws_have_the_priors_spread(rng: np.random.Generator) -> None:
    posterior = fit(make_effects(rng), prior=replace(PRIOR, cauchy=False))
    drawn = prior_draws(posterior, rng)
    assert drawn.mean(axis=1).std() == pytest.approx(posterior.prior.intercept, rel=0.05)


def test_posterior_draws_lie_around_the_data(rng: np.random.Generator) -> None:
    posterior = fit(make_effects(rng))
    drawn = posterior_draws(posterior, rng).mean(axis=1)
    assert drawn.mean() == pytest.approx(posterior.effects.value.mean(), abs=0.15)
    assert drawn.std() < 0.5


def test_data_of_the_model_pass_and_an_outlier_is_caught(rng: np.random.Generator) -> None:
    effects = make_effects(rng, n_models=8, n_concepts=9, sd_model=0.1)
    rows = {r["statistic"]: r for r in checks(fit(effects), rng, level=0.95)}
    assert all(row["p_value"] > 0.01 for row in rows.values())
    assert all(row["prior_low"] < row["prior_high"] for row in rows.values())
    value = effects.value.copy()
    value[3] += 3.0
    odd = fit(replace(effects, value=value))
    rows = {r["statistic"]: r for r in checks(odd, rng, level=0.95)}
    assert rows["largest of what is left"]["p_value"] < 0.01

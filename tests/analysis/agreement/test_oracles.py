"""The pooled agreement against metafor; tests/oracles/README.md says how its numbers were made."""

import numpy as np
import pytest
import xarray as xr
from builders import study_of
from oracles.frozen import DATA, LEVEL, THEIRS

from steercube.analysis.agreement import agreement
from steercube.estimate import Estimate


def pooled(monkeypatch: pytest.MonkeyPatch, swept: xr.Dataset, which: str) -> Estimate:
    """`model_agreement` of the simulated z and their errors, in place of those of curves."""
    z, error = np.array(DATA["fisher"]["z"][which]), np.array(DATA["fisher"]["error"])
    names = [f"model {m}" for m in range(len(z))]
    monkeypatch.setattr(agreement, "_z_of_models", lambda *_: (names, z, error))
    study = study_of(swept)
    assert study.level == LEVEL
    return agreement.model_agreement(study, concept="honesty")


@pytest.mark.parametrize("which", ["unlike", "alike"])
def test_pooled_agreement_is_metafors(
    monkeypatch: pytest.MonkeyPatch, swept: xr.Dataset, which: str
) -> None:
    """rma(z, sei, method = "PM", test = "adhoc"): Knapp's factor, never under 1, and t with 6 df.

    statsmodels stops Paule & Mandel's iteration where Q is within 1e-5 of its degrees of freedom.
    """
    theirs, ours = THEIRS["fisher"][which]["adhoc"], pooled(monkeypatch, swept, which)
    assert ours.value == pytest.approx(theirs["value"], abs=1e-7)
    assert (ours.low, ours.high) == pytest.approx((theirs["low"], theirs["high"]), abs=1e-7)


def test_models_that_differ_less_than_their_errors_narrow_nothing(
    monkeypatch: pytest.MonkeyPatch, swept: xr.Dataset
) -> None:
    """The positive control: with its factor as it is ("knha"), metafor's interval is a third."""
    theirs, ours = THEIRS["fisher"]["alike"]["knha"], pooled(monkeypatch, swept, "alike")
    assert ours.low < theirs["low"] - 0.1
    assert ours.high > theirs["high"] + 0.05

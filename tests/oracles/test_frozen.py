import hashlib

import numpy as np
from oracles.frozen import DATA, FOLDER, THEIRS, frozen_effects
from oracles.simulate import N_CONCEPTS, N_MODELS, NOT_RUN, simulate


def leaves(value: object) -> list[object]:
    """Every number and text of nested lists and records, in order."""
    if isinstance(value, dict):
        return [leaf for name in sorted(value) for leaf in leaves(value[name])]
    if isinstance(value, list | np.ndarray):
        return [leaf for one in value for leaf in leaves(one)]
    return [value]


def test_the_data_are_what_their_script_draws() -> None:
    """To the last decimal but one: processors differ in the last bit of what is then rounded."""
    for kept, drawn in zip(leaves(DATA), leaves(simulate()), strict=True):
        assert kept == drawn or abs(kept - drawn) < 2e-5  # type: ignore[operator]


def test_the_oracles_read_these_data() -> None:
    found = hashlib.md5((FOLDER / "data.json").read_bytes(), usedforsecurity=False).hexdigest()
    assert found == THEIRS["data_md5"], "run oracles.R again"
    assert {"R", "lme4", "metafor"} <= set(THEIRS["versions"])


def test_the_cells_are_those_that_ran_with_a_covariance_in_blocks() -> None:
    effects = frozen_effects("equal")
    ran = set(zip(effects.model.tolist(), effects.concept.tolist(), strict=True))
    assert len(ran) == len(effects.value) == N_MODELS * N_CONCEPTS - len(NOT_RUN)
    assert not ran & set(NOT_RUN)
    same = np.equal.outer(effects.concept, effects.concept)
    assert (effects.covariance[~same] == 0).all()
    assert (np.linalg.eigvalsh(effects.covariance) > 0).all()

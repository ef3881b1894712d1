"""Small data sets in the shape of a study, drawn from models with known parameters.

`python tests/oracles/simulate.py` writes `data.json`, which `oracles.R` reads. No number is of a
real study. The spreads are large beside the errors, so that no estimate is at its boundary.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).with_name("data.json")
SEED, SEED_OF_ANSWERS = 7, 14
DECIMALS = 5
N_MODELS, N_CONCEPTS = 8, 6
NOT_RUN = ((0, 2), (3, 5), (4, 0), (6, 2), (7, 4))
"""(model, concept)."""


def simulate() -> dict[str, Any]:
    """Every data set by name, rounded to DECIMALS."""
    rng = np.random.default_rng(SEED)
    drawn = {"cells": _cells(rng), "groups": _groups(rng), "held": _held(rng), "fisher": _fisher()}
    return drawn | {"answers": _answers(np.random.default_rng(SEED_OF_ANSWERS))}


def _cells(rng: np.random.Generator) -> dict[str, Any]:
    """Three outcomes of the same cells, by what their models and concepts have of their own.

    All have known sampling errors, the covariance of each concept's models; no two concepts share
    an error. `equal` and `unequal` have intercepts of models and concepts and deviations of cells,
    and the models of one label of `unequal` vary three times as much; in `slopes` the slope on size
    differs by concept.
    """
    concept, model = np.array(
        [(c, m) for c in range(N_CONCEPTS) for m in range(N_MODELS) if (m, c) not in NOT_RUN]
    ).T
    is_high = np.array([0, 0, 1, 0, 1, 0, 1, 1])
    log_size = _rounded(np.log10(np.geomspace(0.5, 70, N_MODELS) * rng.uniform(0.6, 1.6, N_MODELS)))
    errors = rng.normal(size=(N_CONCEPTS, N_MODELS, N_MODELS + 4))
    covariance = _rounded(0.02 * (0.8 * errors @ errors.swapaxes(1, 2) / (N_MODELS + 4) + 0.3))
    high, size = is_high - is_high.mean(), log_size - log_size.mean()
    noise = rng.multivariate_normal(np.zeros(N_MODELS), np.eye(N_MODELS), N_CONCEPTS)
    error = np.einsum("cmn,cn->cm", np.linalg.cholesky(covariance), noise)[concept, model]
    u, v, w = (rng.normal(size=n) for n in (N_MODELS, N_CONCEPTS, len(model)))
    rest = 0.8 + 0.4 * v[concept] + 0.15 * w + error
    spread = np.where(is_high, 0.75, 0.25)
    slope = 0.3 + 0.35 * rng.normal(size=N_CONCEPTS)
    return {
        "model": model.tolist(),
        "concept": concept.tolist(),
        "is_high": is_high.tolist(),
        "log_size": log_size.tolist(),
        "covariance": covariance.tolist(),
        "value": {
            "equal": _rounded(rest + (0.3 * u + 0.4 * high - 0.2 * size)[model]).tolist(),
            "unequal": _rounded(rest + (spread * u + 0.4 * high - 0.2 * size)[model]).tolist(),
            "slopes": _rounded(rest + 0.3 * u[model] + slope[concept] * size[model]).tolist(),
        },
    }


def _groups(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Means of models with one of two labels: two of six, and five of eleven."""
    marked = [np.arange(6) >= 4, np.arange(11) % 2 == 1]
    return [
        {
            "value": _rounded(1 + 0.2 * of + np.where(of, 0.6, 0.3) * rng.normal(size=len(of))),
            "marked": of.tolist(),
        }
        for of in marked
    ]


def _held(rng: np.random.Generator) -> dict[str, Any]:
    """Means of models with one of two labels, and one of three that is held fixed."""
    is_high = [0, 0, 1, 1, 0, 1, 1, 0, 1, 0]
    held = ["a", "a", "a", "b", "b", "b", "c", "c", "c", "b"]
    of_held = {"a": 0.0, "b": 0.5, "c": -0.4}
    value = 0.7 + 0.5 * np.array(is_high) + [of_held[label] for label in held]
    value += 0.3 * rng.normal(size=len(value))
    return {"value": _rounded(value).tolist(), "is_high": is_high, "held": held}


def _fisher() -> dict[str, Any]:
    """Fisher's z of seven models with their errors: more unlike than these explain, and less."""
    error = np.array([0.15, 0.22, 0.3, 0.18, 0.4, 0.25, 0.2])
    normal = np.array([0.9, -1.4, 0.3, 1.1, -0.6, -0.2, 0.5])
    unlike, alike = 0.6 + 0.45 * normal, 0.6 + 0.4 * error * normal
    return {
        "error": error.tolist(),
        "z": {"unlike": _rounded(unlike).tolist(), "alike": _rounded(alike).tolist()},
    }


def _answers(rng: np.random.Generator) -> dict[str, Any]:
    """Successes of trials of items at layers and two strengths, dims (strength, layer, item).

    `one` has one answer at each of five layers, `repeats` three of fewer items at one layer, some
    without a valid answer, and in `alike` no item changes otherwise than the rest.
    """
    return {
        "one": _counts(rng, sd_change=1.2, trials=np.ones((2, 5, 60), int)),
        "repeats": _counts(rng, sd_change=1.5, trials=rng.integers(0, 4, (2, 1, 40))),
        "alike": _counts(rng, sd_change=0.0, trials=np.full((2, 3, 40), 2)),
    }


def _counts(rng: np.random.Generator, *, sd_change: float, trials: np.ndarray) -> dict[str, Any]:
    high = np.array([-0.5, 0.5])[:, None, None]
    u, w = rng.normal(size=(2, trials.shape[2]))
    of_layers = np.linspace(-0.5, 0.5, trials.shape[1])[:, None] if trials.shape[1] > 1 else 0.0
    predictor = 0.6 + 0.9 * high + of_layers + 1.3 * u + sd_change * w * high
    successes = rng.binomial(trials, 1 / (1 + np.exp(-predictor)))
    return {"successes": successes.tolist(), "trials": trials.tolist()}


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values, DECIMALS)


if __name__ == "__main__":
    text = json.dumps(simulate(), default=lambda array: array.tolist())
    DATA.write_text(text.replace('], "', '],\n"').replace("]], [[", "]],\n[[") + "\n")

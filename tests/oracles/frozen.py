"""The simulated data, and what other packages found in them (see README.md beside this file)."""

import json
from pathlib import Path

import numpy as np

from steercube.analysis.over_models.cell_effects import CellEffects

FOLDER = Path(__file__).parent
DATA, THEIRS = (json.loads((FOLDER / name).read_text()) for name in ("data.json", "oracles.json"))
LEVEL: float = THEIRS["level"]


def frozen_effects(outcome: str, *, known_errors: bool = True) -> CellEffects:
    """One outcome of the simulated cells; without `known_errors` all error is that of cells."""
    cells = DATA["cells"]
    model, concept = np.array(cells["model"]), np.array(cells["concept"])
    of_concepts = np.array(cells["covariance"])
    within = of_concepts[concept[:, None], model[:, None], model]
    covariance = np.where(np.equal.outer(concept, concept), within, 0.0)
    predictors = {"contrast": np.array(cells["is_high"]), "scale": np.array(cells["log_size"])}
    return CellEffects(
        outcome="cohens_d",
        value=np.array(cells["value"][outcome]),
        covariance=covariance if known_errors else np.zeros_like(covariance),
        model=model,
        concept=concept,
        models=tuple("abcdefgh"),
        concepts=tuple(f"concept {c}" for c in range(len(of_concepts))),
        predictors={name: values - values.mean() for name, values in predictors.items()},
    )

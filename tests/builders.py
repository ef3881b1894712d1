"""Small cubes with a known answer, and where the study's files are."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from steercube.analysis.over_models.cell_effects import CellEffects
from steercube.analysis.per_cell import reduce
from steercube.analysis.view import Study
from steercube.cells import open_cells
from steercube.contract import RESPONSES, STATUS, Item, Model
from steercube.contrast import Contrast
from steercube.cube import Cube, blank_grid
from steercube.measures import LOGIT_DIFF, Measure
from steercube.version_1 import cube_of

ROOT = Path(__file__).parents[1]
STUDY = ROOT / os.environ.get("STEERCUBE_STUDY_DIR", "no-such-folder")

needs_study = pytest.mark.skipif(
    not (STUDY / "results").is_dir(),
    reason="the study's files are not here; set STEERCUBE_STUDY_DIR to the folder that holds them",
)

TRAINING = Contrast("training", "distilled", "rl", {"rl": "full RL"})
"""What the published study compares, and what made-up cubes do."""


def study_of(cells: xr.Dataset, contrast: Contrast | None = TRAINING) -> Study:
    return Study(cells, contrast)


ATTRIBUTES = {
    "title": "A made-up sweep",
    "source": "tests",
    "history": "made by tests",
    "layer_convention": "read and added at the output of block L",
    "positions_steered": "every position",
    "read_token": "(A and (B",
    "dtype": "float32",
    "seed": "0",
    "versions": "none",
    "inputs_sha256": "{}",
}


def make_model(name: str, training: str = "distilled", **facts: object) -> Model:
    given: dict[str, object] = {
        "n_layers": 12,
        "n_params": 1e9,
        "n_active_params": 1e9,
        "architecture": "dense",
        "family": "made-up",
        "hf_id": f"made/{name}",
    }
    return Model(name=name, training=training, **(given | facts))


MODELS = (
    make_model("small", n_params=1e9, n_layers=8),
    make_model("middle", n_params=4e9, n_layers=10),
    make_model("large", "rl", n_params=30e9, n_layers=12),
)
N_ITEMS = {"honesty": 24, "humour": 30}
LAYERS = (3, 4, 5, 6)
STRENGTHS = (-1.0, 0.0, 1.0)


def make_items(concept: str, n: int) -> list[Item]:
    return [Item(f"{concept}/{i:03d}", "AB"[i % 2]) for i in range(n)]


def make_cube(
    rng: np.random.Generator,
    *,
    models: tuple[Model, ...] = MODELS,
    n_items: dict[str, int] = N_ITEMS,
    layers: tuple[int, ...] = LAYERS,
    strengths: tuple[float, ...] = STRENGTHS,
) -> xr.Dataset:
    """Every cell complete; the effect peaks at the third layer and differs between models."""
    items = {concept: make_items(concept, n) for concept, n in n_items.items()}
    cube = blank_grid(models, items, layers=layers, strengths=strengths, attrs=ATTRIBUTES)
    bump = np.exp(-((np.arange(len(layers)) - 2.0) ** 2))
    for m, model in enumerate(models):
        for c, (concept, n) in enumerate(n_items.items()):
            base = rng.normal(size=n)
            for at, layer in enumerate(layers):
                if layer >= model.n_layers:
                    continue
                for s in strengths:
                    noise = rng.normal(scale=0.5, size=n) if s else 0.0
                    value = base + s * (0.5 + 0.3 * m + 0.2 * c) * bump[at] + noise
                    fill(cube, model.name, concept, layer, s, value)
                cube["cell_status"].loc[model.name, concept, layer] = STATUS["complete"]
    return cube


def grid_beside(cube: xr.Dataset, measure: Measure, **variables: Any) -> xr.Dataset:
    """A grid of another measure, with the labels and facts of the grid."""
    grid = cube.drop_vars(list(cube.data_vars)).assign(variables)
    for name in variables:
        grid[name].attrs = measure.columns[name].attrs if name in measure.columns else {}
    grid[measure.name].attrs = measure.attrs
    return grid


def with_responses(cube: xr.Dataset, **told: Any) -> Cube:
    """The cube with responses, by the columns of their table; a single value is said of all."""
    n = max(np.size(values) for values in told.values())
    columns = {name: ("response", np.resize(values, n)) for name, values in told.items()}
    return Cube({LOGIT_DIFF.name: cube, RESPONSES: xr.Dataset(columns)})


def with_answers(flat: xr.Dataset) -> Cube:
    """The cube of logits and generated answers that stand side by side in one dataset."""
    return cube_of(flat)


def reduce_to_cells(cube: Cube | xr.Dataset, **options: int) -> xr.Dataset:
    """The logits' cells of a cube, beside what is known of generated answers."""
    flat = isinstance(cube, xr.Dataset) and any("generation" in str(name) for name in cube)
    return reduce.cells(with_answers(cube) if flat else cube, **options).view()


def open_view(path: Path) -> xr.Dataset:
    """The logits' cells in a file, beside what is known of generated answers."""
    return open_cells(path).view()


def fill(
    cube: xr.Dataset, model: str, concept: str, layer: int, strength: float, value: np.ndarray
) -> None:
    """Write logit differences, and log-probabilities that have them."""
    at = {
        "model": model,
        "concept": concept,
        "layer": layer,
        "strength": strength,
        "sample": np.arange(len(value)),
    }
    value = np.asarray(value, dtype="float32")
    cube["logit_diff"].loc[at] = value
    cube["logprob_matching"].loc[at] = np.minimum(value, 0) - 3
    cube["logprob_other"].loc[at] = -np.maximum(value, 0) - 3


SIX_MODELS = (
    make_model("a", n_params=4e9, n_layers=10),
    make_model("b", n_params=8e9, n_layers=10),
    make_model("c", n_params=14e9, n_layers=11),
    make_model("d", n_params=30e9, n_active_params=3e9, n_layers=12, architecture="moe"),
    make_model("e", "rl", n_params=32e9, n_layers=14),
    make_model("f", "rl", n_params=235e9, n_active_params=22e9, n_layers=20, architecture="moe"),
)
"""As many of each training, architecture and size as the study has."""


def with_controls(cube: xr.Dataset, rng: np.random.Generator) -> Cube:
    """The cube with a random direction that moves nothing on average, strength 0 as it is."""
    values = cube["logit_diff"]
    noise = values.copy(data=rng.normal(scale=0.05, size=values.shape).astype("float32"))
    still = values.sel(strength=0.0, drop=True) + noise.where(cube["strength"] != 0, 0)
    control = cube[["logit_diff", "cell_status"]].assign(logit_diff=still.transpose(*values.dims))
    control["logit_diff"].attrs = LOGIT_DIFF.attrs
    grids = {"logit_diff": cube, "logit_diff/random": control.expand_dims(direction=["random/0"])}
    return Cube(grids)


def make_effects(
    rng: np.random.Generator,
    *,
    n_models: int = 6,
    n_concepts: int = 5,
    training: float = 0.0,
    sd_model: float = 0.2,
    outcome: str = "cohens_d",
) -> CellEffects:
    """Cells of the hierarchical model: two full-RL models, the largest, and one cell never run."""
    model = np.tile(np.arange(n_models), n_concepts)
    concept = np.repeat(np.arange(n_concepts), n_models)
    kept = np.arange(len(model)) != len(model) - 1
    model, concept = model[kept], concept[kept]
    block = 0.03 * (0.7 * np.eye(n_models) + 0.3)
    same = concept[:, None] == concept
    covariance = np.where(same, block[model[:, None], model], 0.0)
    is_rl = (np.arange(n_models) >= n_models - 2).astype(float)
    size = np.log10(np.linspace(1, 40, n_models) * rng.uniform(0.5, 2, n_models))
    x = is_rl - is_rl.mean()
    value = (
        1.0
        + training * x[model]
        + sd_model * rng.normal(size=n_models)[model]
        + 0.3 * rng.normal(size=n_concepts)[concept]
        + 0.2 * rng.normal(size=len(model))
        + np.linalg.cholesky(covariance) @ rng.normal(size=len(model))
    )
    return CellEffects(
        outcome=outcome,
        value=value,
        covariance=covariance,
        model=model,
        concept=concept,
        models=tuple("abcdefghij"[:n_models]),
        concepts=tuple(f"concept {c}" for c in range(n_concepts)),
        predictors={"contrast": x, "scale": size - size.mean()},
    )

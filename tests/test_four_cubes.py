"""Four cubes of kinds that no measure of a letter's logits can stand for, from file to cells."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import MODELS, N_ITEMS, STUDY, make_cube, make_model, needs_study

from steercube.analysis.conclusions.tables import conclude
from steercube.analysis.per_cell.reduce import cells
from steercube.analysis.view import Study
from steercube.cells import compare_cells, open_cells, save_cells
from steercube.cube import Cube, as_cube, grid_of, open_cube, save_cube
from steercube.from_table import measure_cube
from steercube.measures import LOGIT_DIFF, Measure
from steercube.merging import merge_cubes

FEW = 200
NAMES = [model.name for model in MODELS]


def rows_of(
    rng: np.random.Generator,
    effect: Callable[[str, str], float],
    *,
    directions: list[str],
    strengths: tuple[float, ...] = (-1.0, 0.0, 1.0),
    layers: tuple[int, ...] = (3, 5),
    n_items: dict[str, int] = N_ITEMS,
    sd: float = 0.1,
) -> pd.DataFrame:
    """An item's base, plus strength x effect(direction, concept), plus noise where steered."""
    base = {concept: rng.normal(size=n) for concept, n in n_items.items()}
    every = [
        (direction, model, concept, layer, strength, sample)
        for direction in directions
        for model in NAMES
        for concept, n in n_items.items()
        for layer in layers or (-1,)
        for strength in strengths
        for sample in range(n)
    ]
    columns = ["direction", "model", "concept", "layer", "strength", "sample"]
    rows = pd.DataFrame(every, columns=columns)
    effects = {(d, c): effect(d, c) for d in directions for c in n_items}
    mean = [base[c][i] + s * effects[d, c] for d, _, c, _, s, i in every]
    noise = np.where(rows["strength"] == 0, 0.0, rng.normal(scale=sd, size=len(rows)))
    rows["value"] = np.array(mean) + noise
    return rows if layers else rows.drop(columns="layer")


def many_directions(rng: np.random.Generator) -> Cube:
    """20 random and 19 shuffled directions, which do nothing, at fewer layers and items."""
    own, grids = make_cube(rng), {}
    unsteered = own["logit_diff"].sel(strength=0, layer=3).to_series()
    for family, k in {"random": 20, "shuffled": 19}.items():
        rows = rows_of(
            rng,
            lambda direction, concept: 0.0,
            directions=[f"{family}/{i}" for i in range(k)],
            n_items={"honesty": 20, "humour": 24},
        ).rename(columns={"value": "logit_diff"})
        at = rows["strength"] == 0
        keys = list(rows.loc[at, ["model", "concept", "sample"]].itertuples(index=False, name=None))
        rows.loc[at, "logit_diff"] = unsteered.loc[keys].to_numpy()
        grids[f"logit_diff/{family}"] = grid_of(rows, LOGIT_DIFF, facts=as_cube(own).labels)
    return as_cube(own).with_tables(grids)


JUDGE = Measure(
    "judge_score",
    units="points",
    words="judge's score of the answer, 0 to 10",
    toward="more of the behaviour",
)


def judged(rng: np.random.Generator) -> Cube:
    """A judge's score of answers, 5 + 1.5 x strength, of items that have no letters."""
    n_items = {"poems": 25}
    rows = rows_of(rng, lambda *_: 1.5, directions=[""], n_items=n_items, sd=0.5)
    rows["value"] = (5 + rows["value"]).clip(0, 10)
    return measure_cube(with_ids(rows), JUDGE, models={m.name: m for m in MODELS})


CORRECT = Measure(
    "correct",
    kind="binary",
    words="the answer is correct",
    toward="a correct answer",
    compare=(-0.25, 0.25),
)


def capability(rng: np.random.Generator) -> Cube:
    """Answers right or wrong under two concepts' vectors: one takes 0.4 away over the range."""
    lost = {"honesty": 0.0, "humour": 0.4}
    strengths = (-0.25, -0.1, 0.0, 0.1, 0.25)
    rows = rows_of(
        rng,
        lambda direction, concept: 0.0,
        directions=list(lost),
        strengths=strengths,
        layers=(),
        n_items={"gsm8k": 200},
    )
    right = 0.5 - rows["direction"].map(lost) * rows["strength"] / 0.5
    rows["value"] = (rng.random(len(rows)) < right).astype(float)
    unsteered = rows[(rows["strength"] == 0) & (rows["direction"] == "honesty")]
    rows = pd.concat([rows[rows["strength"] != 0], unsteered.assign(direction="")])
    return measure_cube(with_ids(rows), CORRECT, models={m.name: m for m in MODELS})


def across(rng: np.random.Generator) -> Cube:
    """Each concept's vector on every concept's items: 1 on its own, 0.25 on another's."""
    rows = rows_of(rng, lambda d, c: 1.0 if d == c else 0.25, directions=list(N_ITEMS))
    measure = Measure("score", units="points")
    return measure_cube(with_ids(rows), measure, models={m.name: m for m in MODELS})


def with_ids(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as a table of a user's has them: items by id."""
    ids = rows["concept"] + "/" + rows["sample"].map("{:03d}".format)
    return rows.assign(item=ids).drop(columns="sample")


CUBES = {f.__name__: f for f in (many_directions, judged, capability, across)}


@pytest.fixture(params=CUBES, scope="module")
def cube(request: pytest.FixtureRequest) -> Cube:
    return CUBES[request.param](np.random.default_rng(11))


def same(one: Cube, two: Cube) -> bool:
    return list(one) == list(two) and all(one[path].equals(two[path]) for path in one)


def test_it_survives_its_file(cube: Cube, tmp_path: Path) -> None:
    save_cube(cube, tmp_path / "x.nc")
    assert same(open_cube(tmp_path / "x.nc"), cube)


def test_its_models_are_merged_into_it(cube: Cube) -> None:
    parts = [cube.sel(model=[name]) for name in NAMES]
    merged = merge_cubes(parts)
    assert same(cube.with_attrs(merged.attrs), merged)


def test_its_cells_survive_their_file_and_are_shown(cube: Cube, tmp_path: Path) -> None:
    reduced = cells(cube, n_resamples=FEW)
    save_cells(reduced, tmp_path / "x.cells.nc")
    opened = open_cells(tmp_path / "x.cells.nc")
    assert compare_cells(opened, reduced) == []
    for path in cube.grids:
        assert path in str(cube)
        assert path in str(opened)


def test_padded_nowhere(cube: Cube) -> None:
    for path, grid in cube.grids.items():
        values = grid[path.partition("/")[0]]
        for dim in set(values.dims) - {"sample"}:
            others = [d for d in values.dims if d != dim]
            assert values.notnull().any(others).all(), (path, dim)


def test_a_vector_that_works_ranks_first_among_directions_that_do_not() -> None:
    reduced = cells(many_directions(np.random.default_rng(1)), n_resamples=FEW)
    ranks = conclude(Study.of(reduced), only=["ranks"])["ranks"]
    assert set(ranks["family"]) == {"random", "shuffled"}
    k = ranks["family"].map({"random": 20, "shuffled": 19})
    assert (ranks["n_directions"] == k).all()
    np.testing.assert_allclose(ranks["rank_p"], 1 / (k + 1))
    assert (ranks["own"] > ranks["highest"]).all()


def test_the_own_vector_is_compared_on_the_directions_own_items_and_layers() -> None:
    cube = many_directions(np.random.default_rng(1))
    family = cells(cube, n_resamples=FEW)["logit_diff/random"]
    own = family["other_estimate"].sel(direction="random/own", estimand="delta", concept="honesty")
    values = cube["logit_diff"]["logit_diff"].sel(concept="honesty", layer=[3, 5])
    first = values.isel(sample=slice(20))
    wanted = (first.sel(strength=1.0) - first.sel(strength=-1.0)).mean("sample")
    np.testing.assert_allclose(own.sel(layer=[3, 5]), wanted.transpose(*own.dims), rtol=1e-5)


def test_a_judges_score_is_reduced_as_any_measure_is() -> None:
    view = cells(judged(np.random.default_rng(2)), n_resamples=FEW).view("judge_score")
    delta = view["selected_estimate"].sel(estimand="delta")
    np.testing.assert_allclose(delta, 3.0, atol=0.4)
    assert view["estimand_units"].sel(estimand="delta").item() == "points"
    by_letter = view["selected_reason"].sel(estimand="within_letter_d")
    assert (by_letter == 8).all()  # one_letter: there are none


def test_lost_capability_is_found_where_it_is_lost_and_not_elsewhere() -> None:
    reduced = cells(capability(np.random.default_rng(3)), n_resamples=FEW)
    for direction, lost in {"honesty": 0.0, "humour": -0.4}.items():
        table = reduced[f"correct/{direction}"].sel(direction=direction, estimand="delta")
        error = table["other_standard_error"]
        assert (abs(table["other_estimate"] - lost) < 4 * error).all()
        assert (error < 0.06).all()


def test_a_vector_on_other_concepts_items_has_its_own_place() -> None:
    cube = across(np.random.default_rng(4))
    assert set(cube.grids) == {"score", "score/honesty", "score/humour"}
    reduced = cells(cube, n_resamples=FEW)
    own = reduced.view("score")["selected_estimate"].sel(estimand="delta")
    np.testing.assert_allclose(own, 2.0, atol=0.15)
    for direction, other in {"honesty": "humour", "humour": "honesty"}.items():
        table = reduced[f"score/{direction}"]["other_estimate"]
        assert table["concept"].values.tolist() == [other]
        found = table.sel(direction=direction, estimand="delta", concept=other)
        np.testing.assert_allclose(found, 0.5, atol=0.15)


CAPABILITY = STUDY / "results/capability_eval/evaluated"


@needs_study
@pytest.mark.skipif(not CAPABILITY.is_dir(), reason="the capability runs are not there")
def test_the_studys_capability_runs_are_such_a_cube(tmp_path: Path) -> None:
    raw = pd.concat(
        pd.read_csv(path).assign(file=path.name) for path in CAPABILITY.glob("gsm8k_*.csv")
    )
    named = raw["file"].str.extract(r"^(\w+?)_(sycophancy|neutral|awareness).*Qwen3_([\d.]+B)_")
    numbers = {text: i for i, text in enumerate(sorted(raw["prompt"].unique()))}
    rows = pd.DataFrame(
        {
            **{"concept": named[0], "direction": named[1], "model": named[2]},
            "item": raw["prompt"].map(numbers).map("question {:03d}".format),
            **{"strength": raw["strength"], "value": raw["correct"].astype(float)},
        }
    )
    models = {
        name: make_model(name, n_params=i * 1e9) for i, name in enumerate(set(rows["model"]), 1)
    }
    cube = measure_cube(rows, replace(CORRECT, compare="slope"), models=models)
    save_cube(cube, tmp_path / "x.nc")
    for direction in ("sycophancy", "neutral", "awareness"):
        grid = open_cube(tmp_path / "x.nc")[f"correct/{direction}"]["correct"]
        assert grid.sizes["sample"] == 200
        assert "layer" not in grid.dims
        ours = grid.sel(direction=direction, concept="gsm8k").mean("sample").to_series()
        of = rows[rows["direction"] == direction]
        theirs = of.groupby(["model", "strength"])["value"].mean()
        np.testing.assert_allclose(ours.loc[theirs.index], theirs, rtol=1e-6)
    slopes = cells(cube, n_resamples=FEW)["correct/awareness"]["other_estimate"]
    assert np.isfinite(slopes.sel(direction="awareness", estimand="delta")).all()

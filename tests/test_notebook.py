"""What a notebook sees: a study's tables, plots and posterior, and `.steercube`."""

import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import SIX_MODELS, make_cube, reduce_to_cells, study_of, with_controls
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from steercube.analysis.conclusions.tables import conclude
from steercube.analyze import analyze
from steercube.cells import as_cells
from steercube.contrast import parse_contrast
from steercube.cube import as_cube
from steercube.files import add_measure, save
from steercube.notebook import Study, study

CONTRAST = "training:distilled:rl"


@pytest.fixture(autouse=True)
def _no_windows() -> None:
    mpl.use("agg")


@pytest.fixture(scope="module")
def six() -> xr.Dataset:
    rng = np.random.default_rng(11)
    cube = make_cube(rng, models=SIX_MODELS, n_items={"honesty": 30, "humour": 30})
    return reduce_to_cells(cube, n_resamples=100)


@pytest.fixture(scope="module")
def made(six: xr.Dataset) -> Study:
    return study(six, contrast=CONTRAST)


@pytest.mark.slow
def test_tables_are_those_of_the_command_line(six: xr.Dataset, made: Study) -> None:
    wanted = conclude(
        study_of(six, parse_contrast(CONTRAST)), only=["effects", "contrast_effect", "conclusions"]
    )
    for name, table in wanted.items():
        pd.testing.assert_frame_equal(made.table(name), table)
    pd.testing.assert_frame_equal(made.table("training_effect"), wanted["contrast_effect"])
    assert "contrast_effect" in made.tables
    pd.testing.assert_frame_equal(made.effects(), made.table("effects_long"))
    assert set(made.effects("cohens_d")["estimand"]) == {"cohens_d"}


@pytest.mark.slow
def test_a_cube_a_file_a_grid_and_cells_are_the_same_study(tmp_path: Path) -> None:
    cube = make_cube(np.random.default_rng(1))
    cells = reduce_to_cells(cube)
    save(cube, tmp_path / "mine.nc")
    save(as_cells(cells), tmp_path / "mine.cells.nc")
    wanted = study(cells).effects()
    for source in (
        *(cube, as_cube(cube), as_cells(cells), tmp_path / "mine.nc"),
        str(tmp_path / "mine.cells.nc"),
    ):
        pd.testing.assert_frame_equal(study(source).effects(), wanted)
    for of in (cube, as_cube(cube), as_cells(cells), cells):
        pd.testing.assert_frame_equal(of.steercube.effects(), wanted)
        assert of.steercube is of.steercube
        with pytest.raises(ValueError, match="which needs a contrast"):
            of.steercube.table("training_effect")


def test_nothing_is_reduced_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a notebook's completion, which looks at attributes, does not wait for a minute."""
    from steercube import notebook

    monkeypatch.setattr(notebook, "cells_from_cube", lambda *_, **__: pytest.fail("reduced"))
    cube = make_cube(np.random.default_rng(1))
    found = study(cube, contrast=CONTRAST)
    assert "3 models x 2 concepts" in repr(found)
    assert "effects()" in repr(found.plot) + repr(found)
    assert {"effects", "table", "plot", "without", "to_datatree"} <= set(dir(found))


@pytest.mark.slow
def test_without_a_model_is_the_study_of_the_others(six: xr.Dataset, made: Study) -> None:
    left = made.without(model="b")
    others = [m for m in six["model"].values if m != "b"]
    kept = six.sel(model=others, model_other=others)
    pd.testing.assert_frame_equal(
        left.table("training_effect"), study(kept, contrast=CONTRAST).table("training_effect")
    )
    assert left.models == [m for m in made.models if m != "b"]
    again = made.without(model=["b"], concept="humour")
    assert (again.models, again.concepts) == (left.models, ["honesty"])
    assert made.among(concept="honesty").concepts == ["honesty"]
    with pytest.raises(ValueError, match=r"model 'B' is none of .*did you mean 'b'"):
        made.without(model="B")


def test_an_effect_is_the_estimand_at_every_layer(six: xr.Dataset, made: Study) -> None:
    found = made.effect("delta")
    assert found.dims == ("model", "concept", "layer")
    assert found.attrs["units"] == "nat"
    best = made.best_layer()
    at = found.sel(layer=best)
    interval = made.interval("delta")
    np.testing.assert_allclose(interval["value"].values, at.values)
    np.testing.assert_array_equal(interval["layer"].values, best.values)
    np.testing.assert_allclose(interval["corrected"], interval["value"] - interval["optimism"])
    frame = made.to_frame()
    one = frame[(frame["estimand"] == "delta") & (frame["model"] == "b")]
    assert len(one) == found.sel(model="b").notnull().sum()
    with pytest.raises(ValueError, match=r"estimand 'cohen_d' is none of .*; did you mean"):
        made.effect("cohen_d")


def test_another_measure_and_other_strengths() -> None:
    cube = as_cube(make_cube(np.random.default_rng(2), strengths=(-2.0, -1.0, 0.0, 1.0, 2.0)))
    twice = study(cube, compare=(-2, 2)).effects("delta")["value"]
    once = study(cube).effects("delta")["value"]
    assert (twice > 1.5 * once).all()
    with pytest.raises(ValueError, match="needs the cube"):
        study(as_cells(reduce_to_cells(cube)), compare=(-2, 2))
    with pytest.raises(ValueError, match="none of logit_diff"):
        study(cube, measure="logit_dif")


def test_a_contrast_that_no_model_has_is_refused_at_once(six: xr.Dataset) -> None:
    cube = make_cube(np.random.default_rng(1))
    for source in (cube, six):
        with pytest.raises(ValueError, match="base"):
            study(source, contrast="training:base:rl")
    with pytest.raises(ValueError, match="write VARIABLE:LOW:HIGH"):
        study(six, contrast="training")


@pytest.mark.parametrize("name", ["heatmap", "layers", "items"])
def test_a_plot_is_drawn_in_the_axes_it_is_given(made: Study, name: str) -> None:
    figure = Figure()
    ax = figure.subplots()
    given = {} if name == "heatmap" else {"concept": "humour"}
    assert getattr(made.plot, name)(ax=ax, **given) is ax
    figure.canvas.draw()
    assert ax.has_data()
    own = getattr(made.plot, name)(**given)
    assert own.figure.number in plt.get_fignums()
    plt.close("all")


def test_markers_stand_at_the_best_layers(made: Study) -> None:
    ax = made.plot.layers("humour", ax=Figure().subplots())
    depth = made.effect().depth
    best = made.best_layer().sel(concept="humour")
    for model, line in zip(made.models, ax.get_lines(), strict=False):
        (at,) = line.get_markevery()
        wanted = float(depth.sel(model=model, layer=best.sel(model=model)))
        assert line.get_xdata()[at] == pytest.approx(wanted)


def test_without_a_concept_there_is_a_panel_for_each(made: Study) -> None:
    axes = made.plot.layers()
    assert [ax.get_title(loc="left") for ax in axes] == ["honesty", "humour"]
    plt.close("all")
    with pytest.raises(ValueError, match="ax holds one panel: name the concept"):
        made.plot.items(ax=Figure().subplots())
    with pytest.raises(ValueError, match="concept 'humor' is none of honesty, humour"):
        made.plot.items("humor")


def test_other_directions_and_a_ledger_are_there_where_the_study_has_them(
    made: Study, rng: np.random.Generator
) -> None:
    with pytest.raises(ValueError, match="table 'ranks' needs controls"):
        made.table("ranks")
    with pytest.raises(
        ValueError, match=r"'efects' is none of the tables, .*did you mean 'effects'"
    ):
        made.table("efects")
    found = study(with_controls(make_cube(rng), rng))
    assert len(found.table("ranks"))


def test_a_posterior_comes_as_the_installed_arviz_has_it(made: Study) -> None:
    found = made.posterior()
    assert "contrast" in found.summary().index
    assert "contrast" in repr(found)
    draws = found.to_arviz(n_draws=50).posterior
    assert dict(draws.sizes) == {"chain": 4, "draw": 50}
    again = made.posterior().to_arviz(n_draws=50).posterior
    np.testing.assert_array_equal(draws["contrast"], again["contrast"])
    with pytest.raises(ValueError, match="no posterior of the contrast: it needs models of"):
        made.among(model="a").posterior()
    with pytest.raises(ValueError, match="no posterior of cohens_d"):
        made.among(model="a").comparing(None).posterior()
    with pytest.raises(ValueError, match="outcome 'cohens' is none of"):
        made.posterior("cohens")


def test_without_arviz_draws_are_a_tree(made: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from steercube.analysis.over_models import nuts

    monkeypatch.setattr(nuts, "find_spec", lambda name: None)
    tree = made.posterior().to_arviz(n_draws=20)
    assert isinstance(tree, xr.DataTree)
    assert dict(tree["posterior"].sizes) == {"chain": 4, "draw": 20}


def test_with_arviz_of_version_one_draws_are_a_tree(
    made: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has no InferenceData."""
    later = types.ModuleType("arviz")
    later.__spec__ = ModuleSpec("arviz", None)
    monkeypatch.setitem(sys.modules, "arviz", later)
    tree = made.posterior().to_arviz(n_draws=20)
    assert isinstance(tree, xr.DataTree)
    assert set(tree.children) == {"posterior"}


def test_the_tree_can_be_saved(made: Study, tmp_path: Path) -> None:
    tree = made.to_datatree(("effects_long", "effects", "conclusions"))
    tree.to_netcdf(tmp_path / "tree.nc")
    with xr.open_datatree(tmp_path / "tree.nc") as saved:
        xr.testing.assert_allclose(
            saved["/cells/logit_diff"]["estimate"], tree["/cells/logit_diff"]["estimate"]
        )
        assert saved["/tables/conclusions"]["grade"].dtype.kind in "OUT"


def test_a_part_of_a_study_keeps_its_plots_directions_and_other_measures(
    rng: np.random.Generator,
) -> None:
    cube = with_controls(make_cube(rng), rng)
    rows = cube["logit_diff"]["logit_diff"].to_series().dropna().rename("value").reset_index()
    ids = cube["logit_diff"]["item_id"].to_series().to_dict()
    rows["item"] = [ids[key] for key in zip(rows["concept"], rows["sample"], strict=True)]
    both = add_measure(rows.drop(columns="sample"), "judge", to=cube)
    whole = study(both)
    left = whole.without(model="small")
    assert left.plot.items("humour").has_data()
    plt.close("all")
    for name in ("ranks", "other_measures", "effects_long"):
        table = whole.table(name)
        wanted = table[table["model"] != "small"].reset_index(drop=True)
        pd.testing.assert_frame_equal(left.table(name), wanted)
    assert set(left.to_datatree()["/cells"].children) == {"logit_diff", "judge"}
    assert "2 models x 2 concepts" in repr(left)


@pytest.mark.slow
def test_a_study_of_a_cube_has_the_fits_of_single_items_too(tmp_path: Path) -> None:
    """So that its tables are those that `analyze` writes, row by row."""
    cube = make_cube(np.random.default_rng(11), models=SIX_MODELS)
    (tmp_path / "data").mkdir()
    save(cube, tmp_path / "data" / "mine.nc")
    analyze(tmp_path / "data", tmp_path / "paper", contrast=parse_contrast(CONTRAST), nuts=False,
            report=lambda line: None)  # fmt: skip
    found = study(cube, contrast=CONTRAST)
    for name in ("contrast_effect", "variance_components", "effects_long"):
        written = pd.read_csv(tmp_path / "paper" / "mine" / "tables" / f"{name}.csv")
        assert len(found.table(name)) == len(written)
        column = "value" if "value" in written else "estimate"
        np.testing.assert_allclose(
            found.table(name)[column].astype(float), written[column], rtol=1e-6, equal_nan=True
        )


def test_what_is_left_of_a_study_must_be_something(made: Study) -> None:
    with pytest.raises(ValueError, match="no model is left"):
        made.among(model=[])
    with pytest.raises(ValueError, match="no concept is left"):
        made.without(concept=["honesty", "humour"])
    assert made.among(model=["a", "a"]).models == ["a"]
    assert made.comparing(None).contrast is None
    assert "contrast_effect" not in made.comparing(None).tables


def test_strengths_that_were_not_swept_are_refused() -> None:
    cube = make_cube(np.random.default_rng(2), strengths=(-4.0, 0.0, 4.0))
    with pytest.raises(ValueError, match=r"compare others, as sc.study\(cube, compare=\(-4, 4\)\)"):
        study(cube).effects()
    with pytest.raises(ValueError, match="so -3, \\+3 is missing"):
        study(cube, compare=(-3, 3))
    assert hasattr(cube, "steercube")
    assert len(study(cube, compare=(-4, 4)).effects("delta"))
    for compare in (4, (1, 2, 3)):
        with pytest.raises(ValueError, match="give two strengths"):
            study(cube, compare=compare)  # type: ignore[arg-type]


def test_other_kinds_of_objects_are_refused_by_name(made: Study) -> None:
    with pytest.raises(ValueError, match="these are steering vectors"):
        study(xr.Dataset({"vector": ("layer", np.zeros(3))}))
    with pytest.raises(TypeError, match="not NoneType"):
        study(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Study is neither a cube, nor cells"):
        save(made, "mine.nc")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ax must be matplotlib axes, not str"):
        made.plot.heatmap("delta")
    with pytest.raises(FileNotFoundError, match=r"nope\.toml: no such file"):
        study(made.cells, claims="nope.toml")


def test_labels_that_a_cube_lacks_are_refused_by_name() -> None:
    cube = as_cube(make_cube(np.random.default_rng(2)))
    with pytest.raises(KeyError, match="'logitdiff' is none of logit_diff; did you mean"):
        cube["logitdiff"]
    with pytest.raises(KeyError, match="concept 'humor' is none of honesty, humour"):
        cube.sel(concept="humor")


def test_rows_of_every_layer_say_why_a_number_is_missing(made: Study) -> None:
    frame = made.to_frame()
    assert (frame["reason"] == "")[frame["value"].notna()].any()
    assert (frame.loc[frame["value"].isna(), "reason"] != "").all()

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import make_cube, make_model, reduce_to_cells, study_of
from matplotlib.figure import Figure

from steercube.analysis.conclusions.tables import Tables, conclude
from steercube.contrast import Contrast
from steercube.report.figures import _curves, _readable_on, best_quantiles, draw, model_labels
from steercube.report.style import HIGH_COLOUR, LOW_COLOUR, OTHER_COLOUR

pytestmark = pytest.mark.usefixtures("few_priors")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.fixture(scope="module")
def study_figures(
    study_cells: xr.Dataset, study_tables: dict[str, pd.DataFrame]
) -> dict[str, Figure]:
    return draw(study_of(study_cells), study_tables)


def test_the_study_has_every_figure(study_figures: dict[str, Figure]) -> None:
    assert set(study_figures) == {
        "effect_size_heatmap",
        "best_layer_violins",
        "layer_curves",
        "layer_curves_gen_vs_logit",
        "depth_by_label",
        "claims",
        *("contrast_effect", "specification_curve", "design", "posterior_checks"),
    }


def test_the_heatmap_holds_every_effect_with_its_interval(
    study_figures: dict[str, Figure], study_cells: xr.Dataset
) -> None:
    figure = study_figures["effect_size_heatmap"]
    at = study_cells.sel(estimand="cohens_d", model="8B", concept="corrigible")
    low, high = float(at["selected_low"]), float(at["selected_high"])
    assert f"{float(at['selected_estimate']):.2f}" in texts(figure)
    assert f"{low:.2f} to {high:.2f}" in texts(figure)
    assert texts(figure).count("not run") == 1
    names = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert names[0] == "4B\ndistilled"
    assert names[-1] == "235B-A22B\nfull RL"


def test_violins_get_the_quantiles_of_the_best_layer(study_cells: xr.Dataset) -> None:
    quantiles = best_quantiles(study_of(study_cells))
    assert set(quantiles["sycophancy"]) == {"4B", "8B", "14B", "30B-A3B", "32B"}
    middle = quantiles["corrigible"]["4B"][1.0][10]
    layer = float(study_cells["selected_layer"].sel(model="4B", concept="corrigible"))
    at = {"model": "4B", "concept": "corrigible", "layer": layer, "strength": 1.0}
    assert middle == float(study_cells["quantiles"].sel({**at, "quantile": 0.5}))


def test_curves_are_scaled_and_cover_the_dense_models(
    study_cells: xr.Dataset, study_tables: dict[str, pd.DataFrame]
) -> None:
    curves = _curves(study_of(study_cells), study_tables["layer_effects"])
    assert set(curves) == {"corrigible", "self_awareness", "sycophancy"}
    assert list(curves["corrigible"]) == ["4B", "8B", "14B", "32B"]
    for curve in curves["sycophancy"].values():
        assert (curve.logit.min(), curve.logit.max()) == (0, 1)
        assert (curve.generation.min(), curve.generation.max()) == (0, 1)
        assert (curve.margin > 0).all()
    counted = curves["self_awareness"]["32B"].responses
    assert counted is not None
    assert (counted.min(), counted.max()) == (0, 1)
    assert curves["corrigible"]["32B"].responses is None


def test_every_panel_says_how_alike_its_curves_are(
    study_figures: dict[str, Figure], study_tables: dict[str, pd.DataFrame]
) -> None:
    agreement = study_tables["agreement"].set_index(["concept", "model", "statistic"])
    row = agreement.loc[("self_awareness", "14B", "r over layers, every response")]
    panels = study_figures["layer_curves_gen_vs_logit"].axes
    notes = [[" ".join(text.get_text().split()) for text in ax.texts] for ax in panels]
    assert len(notes) == 12
    shown = f"all: {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    of_panel = next(texts for texts in notes if any(shown in text for text in texts))
    assert "14B, distilled" in of_panel


@pytest.mark.parametrize(
    "labels",
    [
        {"model": ["large"], "model_other": ["large"]},
        {"concept": ["humour"]},
        {"model": ["large"], "model_other": ["large"], "concept": ["humour"]},
    ],
    ids=["one model", "one concept", "one of each"],
)
def test_small_studies_are_drawn(labels: dict[str, list[str]], cells: xr.Dataset) -> None:
    part = study_of(cells.sel(labels))
    for figure in draw(part, Tables(part)).values():
        figure.canvas.draw()


def test_text_is_readable_on_its_cell() -> None:
    assert _readable_on((0.0, 0.13, 0.31, 1.0)) == "white"
    assert _readable_on((1.0, 0.91, 0.27, 1.0)) == "black"


def test_a_best_layer_early_in_the_network_is_shown(cells: xr.Dataset) -> None:
    early = cells.assign_coords(n_layers=cells["n_layers"] * 20, depth=cells["depth"] / 20)
    study = study_of(early)
    figure = draw(study, Tables(study))["depth_by_label"]
    low, _ = figure.axes[0].get_xlim()
    assert low < float((early["selected_layer"] / early["n_layers"]).min())


def models_of(figures: dict[str, Figure]) -> list[str]:
    return [text.get_text() for text in figures["effect_size_heatmap"].axes[0].get_xticklabels()]


@pytest.mark.slow
def test_models_have_the_labels_of_the_contrast(six: xr.Dataset) -> None:
    """In its words, and its low and high colour; those of a third label have neither."""
    third = ["sft", "distilled", "distilled", "distilled", "rl", "rl"]
    study = study_of(six.assign_coords(training=("model", third)))
    assert models_of(draw(study, Tables(study)))[::3] == ["a\nsft", "d\ndistilled"]
    assert [model.colour for model in model_labels(study).values()] == [
        *(OTHER_COLOUR, LOW_COLOUR, LOW_COLOUR, LOW_COLOUR, HIGH_COLOUR, HIGH_COLOUR)
    ]
    contrast = Contrast("architecture", "dense", "moe", {"moe": "a mixture"})
    study = study_of(six, contrast)
    figures = draw(study, Tables(study))
    assert models_of(figures)[2:4] == ["c\ndense", "d\na mixture"]
    assert "a mixture minus dense" in figures["contrast_effect"].get_supxlabel()


@pytest.mark.slow
def test_without_a_contrast_models_are_shown_and_not_compared(six: xr.Dataset) -> None:
    study = study_of(six, None)
    figures = draw(study, Tables(study))
    assert not {"contrast_effect", "specification_curve", "design"} & set(figures)
    assert {"effect_size_heatmap", "depth_by_label", "posterior_checks"} <= set(figures)
    assert models_of(figures)[3:5] == ["d\ndistilled", "e\nrl"]
    (legend,) = figures["depth_by_label"].legends
    assert not [text for text in legend.get_texts() if "mean of" in text.get_text().split(" (")[0]]
    of_contrast = draw(study_of(six), Tables(study_of(six)))["depth_by_label"].legends[0]
    assert [t.get_text() for t in of_contrast.get_texts()][-2:] == [
        "mean of distilled models, 95%",
        "mean of full RL models, 95%",
    ]


def test_figures_of_many_models_go_on_over_pages() -> None:
    models = [make_model(f"model {at}", n_params=1e9 * 2**at) for at in range(9)]
    cube = make_cube(np.random.default_rng(1), models=tuple(models), n_items={"honesty": 12})
    study = study_of(reduce_to_cells(cube, n_resamples=20), None)
    made = draw(study, conclude(study))
    assert "effect_size_heatmap_2" in made
    assert "effect_size_heatmap_3" not in made
    names = [
        tick.get_text().split("\n")[0]
        for name in ("effect_size_heatmap", "effect_size_heatmap_2")
        for tick in made[name].axes[0].get_xticklabels()
    ]
    assert names == [model.name for model in models]
    # A script switches a model off by its place among all models, on whatever page it is.
    ids = {line.get_gid() for line in made["layer_curves_2"].axes[0].lines}
    assert "curve-8-0" in ids
    assert "curve-0-0" not in ids

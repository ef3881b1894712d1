"""Every figure in print, at the width of a column: what its letters must do to be read."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import TRAINING, make_cube, make_model, reduce_to_cells, study_of
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from steercube.analysis.agreement.agreement import MEAN_R, R_EVERY_RESPONSE, R_OVER_LAYERS
from steercube.analysis.conclusions import tables
from steercube.analysis.over_models import leave_one_out
from steercube.analysis.simulated.calibration import SCENARIOS
from steercube.report.figures import draw
from steercube.report.model_figures import calibration
from steercube.report.style import blank_figure

COLUMN = 6.5
POINTS = 8.0
SLACK = 1.0
"""Pixels at 100 dpi by which boxes may meet: they hold more than the ink."""
UNIT = re.compile(
    r"\bnats\b|\bsd\b|fraction|layer / number of layers|%|\[0, 1\]|share|probability|ratio|"
    r"correlation r|models of each training"
)
MODELS = ("Qwen3-4B", "Qwen3-8B", "Qwen3-14B", "Qwen3-30B-A3B", "Qwen3-32B", "Qwen3-235B-A22B")
CONCEPTS = (
    "coordinate_other_versions",
    "power_seeking_inclination",
    "self_awareness_training_architecture",
    "survival_instinct",
    "wealth_seeking_inclination",
    "corrigible_less_helpful_objective",
)
Tables = dict[str, pd.DataFrame]


MANY_MODELS = tuple(f"Qwen3-{at}B-reasoning" for at in range(1, 21))
LONG = [
    f"refuses_to_be_corrected_by_its_operators_who_have_the_authority_to_{i:02d}" for i in range(14)
]


def cells_of(names: Sequence[str], concepts: Sequence[str]) -> xr.Dataset:
    """Cells of these models, the last of them with full RL, and concepts, over six layers."""
    models = tuple(
        make_model(name, "rl" if at > 3 else "distilled", n_params=4e9 * 1.4**at)
        for at, name in enumerate(names)
    )
    layers, n_items = tuple(range(3, 9)), dict.fromkeys(concepts, 12)
    cube = make_cube(np.random.default_rng(5), models=models, n_items=n_items, layers=layers)
    return reduce_to_cells(cube, n_resamples=20)


def crowded_cells() -> xr.Dataset:
    """Six models and six concepts with long names, all generated, two models' answers read anew."""
    rng = np.random.default_rng(5)
    cells = cells_of(MODELS, CONCEPTS)
    dims = ("model", "concept", "layer", "strength")
    rates = rng.uniform(size=(2, *(cells.sizes[d] for d in dims)))
    rates[1, :-2] = np.nan
    return cells.assign(generation_rate=(dims, rates[0]), response_match_rate=(dims, rates[1]))


def widest_agreements() -> pd.DataFrame:
    r = {"value": -0.88, "low": -0.98, "high": -0.58, "interval_over": "models"}
    statistics = dict.fromkeys(MODELS, (R_OVER_LAYERS, R_EVERY_RESPONSE))
    statistics |= dict.fromkeys(MODELS[:-2], (R_OVER_LAYERS,)) | {"every model": (MEAN_R,)}
    return pd.DataFrame(
        [
            {"concept": concept, "model": model, "statistic": statistic} | r
            for concept in CONCEPTS
            for model, of_model in statistics.items()
            for statistic in of_model
        ]
    )


def many(study_tables: Tables, names: Sequence[str], concepts: Sequence[str]) -> dict[str, Figure]:
    """The figures of effects of so many models and concepts, over pages."""
    study = study_of(cells_of(names, concepts))
    own = tables.conclude(study, only=["effects", "layer_effects", "depth", "agreement"])
    return draw(study, study_tables | own)


def crowded(study_tables: Tables) -> dict[str, Figure]:
    study = study_of(crowded_cells())
    multiverse = study_tables["multiverse"]
    longer = zip(multiverse["concepts"].unique(), CONCEPTS, strict=False)
    own = tables.conclude(study, only=["effects", "layer_effects", "depth"]) | {
        "agreement": widest_agreements(),
        "multiverse": multiverse.replace(
            {"concepts": {shorter: f"without {name}" for shorter, name in longer}}
        ),
    }
    return draw(study, study_tables | own) | {"calibration": of_calibration(study_tables)}


def of_calibration(study_tables: Tables) -> Figure:
    effects = study_tables["contrast_effect"].query("outcome == 'cohens_d' and low == low")
    labels = effects[["method", "random_effects", "covariates"]].to_dict("records")
    coverage = [
        asdict(scenario) | of | {"coverage": 0.9, "standard_error": 0.01}
        for scenario in SCENARIOS
        for of in labels
    ]
    bins = {f"bin_{i}": 5 for i in range(1, 21)}
    names = ("intercept", "contrast", "scale", "sd_model", "sd_concept", "sd_cell")
    sbc = [{"parameter": name, "p_value": 0.5, "n_simulations": 100} | bins for name in names]
    simulated = {"coverage": pd.DataFrame(coverage), "sbc": pd.DataFrame(sbc)}
    return calibration(simulated, TRAINING)


class Drawn:
    """A figure as it is saved: every text on the canvas, ticks' labels within the view too."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        found: dict[int, Text] = {}
        put = Text.draw

        def noted(text: Text, renderer: object) -> None:
            if text.get_visible() and text.get_text().strip():
                found[id(text)] = text
            put(text, renderer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Text, "draw", noted)
            figure.canvas.draw()
        self.texts = list(found.values())
        self.boxes = [(text.get_text(), text.get_window_extent()) for text in self.texts]
        self.panels = [ax for ax in figure.axes if ax.get_visible()]
        self.whole = {"x": figure._supxlabel, "y": figure._supylabel}


def too_wide(drawn: Drawn) -> list[str]:
    width = drawn.figure.get_figwidth()
    return [f"{width} inches"] if width > COLUMN else []


def small(drawn: Drawn) -> list[str]:
    return [text.get_text() for text in drawn.texts if text.get_fontsize() < POINTS]


def overlapping(drawn: Drawn) -> list[str]:
    boxes = [(text, box.padded(-SLACK / 2)) for text, box in drawn.boxes]
    return [
        f"{a!r} and {b!r}" for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)
    ]


def cut_off(drawn: Drawn) -> list[str]:
    canvas = drawn.figure.bbox.padded(SLACK)
    corners = [(text, canvas.containsx, canvas.containsy, box) for text, box in drawn.boxes]
    return [
        text
        for text, has_x, has_y, box in corners
        if not (has_x(box.x0) and has_x(box.x1) and has_y(box.y0) and has_y(box.y1))
    ]


def on_data(drawn: Drawn) -> list[str]:
    """Legends, and titles and labels of the whole figure, that lie on a panel."""
    legends = [*drawn.figure.legends, *(ax.get_legend() for ax in drawn.panels)]
    parts = [*legends, drawn.figure._suptitle, *drawn.whole.values()]
    panels = [ax.get_window_extent().padded(-SLACK) for ax in drawn.panels]
    found = [part for part in parts if part is not None
             and any(part.get_window_extent().overlaps(panel) for panel in panels)]  # fmt: skip
    return [str(part) for part in found]


def without_unit(drawn: Drawn) -> list[str]:
    """Axes whose ticks are numbers and whose label, or the figure's, names no unit."""
    shown = {id(text) for text in drawn.texts}
    found = []
    for ax in drawn.panels:
        for axis in (ax.xaxis, ax.yaxis):
            ticks = [t.get_text() for t in tick_labels(axis) if id(t) in shown]
            shared = drawn.whole[axis.axis_name]
            label = f"{axis.label.get_text()} {shared.get_text() if shared else ''}"
            if ticks and all(map(is_number, ticks)) and not UNIT.search(label):
                found.append(f"{axis.axis_name} of {ax.get_title(loc='left')!r}: {label!r}")
    return found


def tick_labels(axis: Axis) -> list[Text]:
    return [label for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)]


def is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[−-]?\d+(\.\d+)?", text))


CHECKS = (too_wide, small, overlapping, cut_off, on_data, without_unit)
Check = Callable[[Drawn], list[str]]


@pytest.fixture(
    scope="module",
    params=[
        *("the study", "six models and concepts", "one model", "one of each", "logits alone"),
        *("twenty models", "fourteen long names"),
    ],
)
def figures(
    request: pytest.FixtureRequest,
    study_cells: xr.Dataset,
    study_tables: Tables,
    cells: xr.Dataset,
) -> dict[str, Drawn]:
    one = {"model": ["4B"], "model_other": ["4B"]}
    parts = {
        "one model": study_cells.sel(one),
        "one of each": study_cells.sel(one | {"concept": ["self_awareness"]}),
        "logits alone": cells,
    }
    if request.param == "six models and concepts":
        made = crowded(study_tables)
    elif request.param == "twenty models":
        made = many(study_tables, MANY_MODELS, CONCEPTS[:3])
    elif request.param == "fourteen long names":
        made = many(study_tables, MODELS, LONG)
    elif request.param == "the study":
        made = draw(study_of(study_cells), study_tables)
    else:
        with pytest.MonkeyPatch.context() as patch:
            few = {name: of[-1:] for name, of in leave_one_out.PRIOR_SCALES.items()}
            patch.setattr(leave_one_out, "PRIOR_SCALES", few)
            study = study_of(parts[request.param])
            made = draw(study, tables.Tables(study))
    with_answers = {"the study", "six models and concepts", "one model", "one of each"}
    assert ("layer_curves_gen_vs_logit" in made) == (request.param in with_answers)
    return {name: Drawn(figure) for name, figure in made.items()}


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_figures_hold_up_at_column_width(figures: dict[str, Drawn], check: Check) -> None:
    assert not {name: found for name, drawn in figures.items() if (found := check(drawn))}


def figure_with(flaw: str) -> Figure:
    figure, axes = blank_figure(4, 3)
    if flaw == "too_wide":
        figure.set_figwidth(7)
    ax = axes[0, 0]
    ax.plot([0, 1], label="a curve")
    ax.set_xlabel("depth (fraction)")
    ax.set_ylabel("effect" if flaw == "without_unit" else "effect (nats)")
    ax.text(0.5, 0.2, "one label")
    if flaw == "overlapping":
        ax.text(0.55, 0.22, "another")
    if flaw == "small":
        ax.tick_params(labelsize=7)
    if flaw == "cut_off":
        ax.set_title("a title that is longer than the figure is wide " * 2)
    if flaw == "on_data":
        ax.legend()
    return figure


@pytest.mark.parametrize("check", CHECKS)
def test_each_check_finds_its_own_flaw_alone(check: Check) -> None:
    assert not check(Drawn(figure_with("none")))
    drawn = Drawn(figure_with(check.__name__))
    assert [c.__name__ for c in CHECKS if c(drawn)] == [check.__name__]

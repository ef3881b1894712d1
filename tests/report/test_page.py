import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, TRAINING, make_cube, make_model, reduce_to_cells, study_of

from steercube.analysis.conclusions.tables import conclude
from steercube.report.figures import ModelLabel, draw, effect_size_heatmap
from steercube.report.methods import methods
from steercube.report.page import _heat_cell, page
from steercube.report.post import Results, read_assets, read_results, render
from steercube.report.write import write_study

pytestmark = pytest.mark.usefixtures("few_priors")

HOSTILE = "![x](https://example.org/y.png) <b>"
MODELS = (
    make_model('4B & "co"', family=HOSTILE, n_params=4e9),
    make_model("8B", "rl", n_params=8e9),
)


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


def results_of(cells: xr.Dataset, folder: Path) -> Results:
    """What is read back of a study with its tables and figures."""
    study = study_of(cells)
    tables = conclude(study)
    settings = {"source": "https://example.org/x at 1", "confidence_level": "0.95"}
    write_study(
        folder,
        tables,
        draw(study, tables),
        inputs={},
        settings=settings | TRAINING.attributes,
        contrast=TRAINING,
    )
    return read_results(folder)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a small study whose first model has a name that would break it."""
    folder = tmp_path_factory.mktemp("paper") / "mine"
    cube = make_cube(np.random.default_rng(4), models=MODELS)
    results = results_of(reduce_to_cells(cube, n_resamples=100), folder)
    post = render(results, read_assets(ROOT / "paper"), methods=methods())
    return page(post, results, folder, ROOT / "paper")


def test_nothing_is_fetched(html: str) -> None:
    elements = Elements(html)
    sources = [a.get("src") for tag in ("img", "script", "iframe") for a in elements.of(tag)]
    assert all(s is None or s.startswith("data:") for s in sources)
    assert [a["href"] for a in elements.of("link")] == ["data:,"]
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    policy = [a["content"] for a in elements.of("meta") if "http-equiv" in a]
    assert policy
    assert str(policy[0]).startswith("default-src 'none'")


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(html: str) -> None:
    elements = Elements(html)
    ids = Counter(attrs["id"] for _, attrs in elements.found if attrs.get("id"))
    assert [id for id, n in ids.items() if n > 1] == []
    within = [str(a["href"])[1:] for a in elements.of("a") if str(a["href"]).startswith("#")]
    assert len(within) > 15
    assert set(within) <= set(map(str, ids))


def test_every_figure_is_described(html: str) -> None:
    elements = Elements(html)
    assert all(len(a["alt"] or "") > 20 for a in elements.of("img"))
    figures = [a for a in elements.of("svg") if "role" in a]
    assert len(figures) == 1
    assert all(len(a["aria-label"] or "") > 20 for a in figures)
    assert len(elements.of("figcaption")) == len(elements.of("figure"))


def test_cited_numbers_name_their_table(html: str) -> None:
    elements = Elements(html)
    assert len(elements.of("data")) > 25
    assert all("(tables/" in str(a["title"]) for a in elements.of("data"))
    assert not re.search("[\ue000-\ue004]", html)


def test_what_a_cell_shows_is_in_the_tables(html: str) -> None:
    text = re.search(r'id="data">(.*?)</script>', html)
    assert text
    data = json.loads(text.group(1))
    assert data["models"] == ['4B & "co"', "8B"]
    cell = data["cells"]["8B|humour"]
    assert cell["cohens_d_low"] < cell["cohens_d"] < cell["cohens_d_high"]
    assert len(cell["curve"]["layer"]) == len(cell["curve"]["cohens_d"]) == 4
    assert (
        cell["cohens_d"] == cell["curve"]["cohens_d"][cell["curve"]["layer"].index(cell["layer"])]
    )


def heat_map(cells: xr.Dataset, folder: Path) -> tuple[str, dict[str, dict[str, str]]]:
    """The heat map of the page of these cells, and what its script knows of each cell."""
    results = results_of(cells, folder)
    post = render(results, read_assets(ROOT / "paper"), methods=methods())
    html = page(post, results, folder, ROOT / "paper")
    data = re.search(r'id="data">(.*?)</script>', html)
    figure = re.search(r'<figure id="effect_size_heatmap">.*?</figure>', html, re.DOTALL)
    assert data
    assert figure
    return figure.group(), json.loads(data.group(1))["cells"]


def test_a_cell_that_does_not_steer_is_marked_and_said_to(
    cells: xr.Dataset, tmp_path: Path
) -> None:
    part = cells.sel(model=["large"], model_other=["large"])
    p = xr.DataArray([[0.5, 0.001]], dims=("model", "concept"))
    marked, of_cells = heat_map(part.assign(steers_p=p), tmp_path / "a")
    d = part["selected_estimate"].sel(estimand="cohens_d", model="large")
    assert f">{float(d.sel(concept='honesty')):.2f} ○<small>" in marked
    assert f">{float(d.sel(concept='humour')):.2f}<small>" in marked
    assert '<p class="marks">○ does not steer, by a test over layers</p>' in marked
    assert of_cells["large|honesty"]["notes"] == "does not steer"
    assert of_cells["large|humour"]["notes"] == "steers"
    old, of_old = heat_map(part.drop_vars(["steers_p", "steers_other_way_p"]), tmp_path / "b")
    assert "○" not in old
    assert '<p class="marks">' not in old
    assert of_old["large|honesty"]["notes"] == ""


def test_names_cannot_break_the_page(html: str) -> None:
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "4B &amp; &quot;co&quot;" in html


def test_texts_of_a_cube_are_no_markdown(html: str) -> None:
    assert "![x](https://example.org/y.png)" in html
    assert not any(str(a.get("src", "")).startswith("http") for a in Elements(html).of("img"))


def test_each_model_has_its_curves(html: str) -> None:
    groups = [str(a["id"]) for a in Elements(html).of("g") if str(a.get("id")).startswith("curve-")]
    assert {id.rsplit("-band")[0] for id in groups} == {
        f"curve-{m}-{c}" for m in (0, 1) for c in (0, 1)
    }


def test_equations_are_drawn_without_a_network(html: str) -> None:
    assert html.count("<math") > 15
    assert "$" not in re.sub(r"<(script|style).*?</\1>|<code>.*?</code>", "", html, flags=re.DOTALL)


def test_committed_pages_are_small_enough() -> None:
    pages = sorted((ROOT / "paper").glob("*/post.html"))
    assert [p.parent.name for p in pages] == ["qwen3", "smollm2"]
    assert all(p.stat().st_size < 6e6 for p in pages)


def test_the_committed_post_is_that_of_the_committed_results() -> None:
    for folder in (ROOT / "paper" / "qwen3", ROOT / "paper" / "smollm2"):
        own_assets = read_assets(ROOT / "paper", folder.name)
        post = render(read_results(folder), own_assets, methods=methods())
        assert post.markdown == (folder / "post.md").read_text()


@pytest.mark.parametrize(
    ("low", "high", "hatched"), [(0.01, 0.05, False), (-0.01, 0.05, True), (np.nan, np.nan, True)]
)
def test_a_small_effect_is_dark_and_hatched_where_it_may_be_none(
    low: float, high: float, hatched: bool, small_tables: dict[str, pd.DataFrame]
) -> None:
    """Colours run from 0 to a fixed d, in the page and in the figure."""
    effects = (
        small_tables["effects"]
        .iloc[:1]
        .assign(cohens_d=0.03, cohens_d_low=low, cohens_d_high=high, steers="no")
    )
    cell = _heat_cell(effects.iloc[0].to_dict())
    assert f"background-color:{mpl.colors.to_hex(mpl.colormaps['cividis'](0.015))}" in cell
    assert ('class="zero"' in cell) == hatched
    assert (">0.01 to 0.05<" in cell) == (low > 0)
    label = ModelLabel(str(effects["model"].iloc[0]), "distilled", 0)
    figure = effect_size_heatmap(effects, {label.name: label})
    (image,) = figure.axes[0].images
    assert image.get_clim() == (0.0, 2.0)
    assert bool(figure.axes[0].patches) == hatched
    assert ("hatched: the interval holds zero" in figure.get_suptitle()) == hatched


def test_what_was_not_run_says_so_in_the_heat_map(small_tables: dict[str, pd.DataFrame]) -> None:
    row = small_tables["effects"].iloc[0].to_dict() | {"cohens_d": np.nan, "reason": "not_run"}
    assert _heat_cell(row) == '<td class="empty">not run</td>'


def test_the_verdict_stands_second_and_its_reason_is_opened() -> None:
    html = (ROOT / "paper" / "qwen3" / "post.html").read_text()
    ledger = html[html.index("<th>published</th>") - 400 :]
    assert re.search(r"<th>id</th>\s*<th>verdict</th>\s*<th>claim</th>", ledger)
    assert ledger.count("<details><summary>") > 20

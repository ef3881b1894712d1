import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, TRAINING, fill, make_cube, make_model, reduce_to_cells, study_of

from steercube.analysis.agreement.generation import UPPER_BOUND
from steercube.analysis.conclusions.tables import conclude
from steercube.analysis.over_models.contrast_effect import MODELS
from steercube.analyze import write_conclusions
from steercube.cli import main
from steercube.contrast import Contrast
from steercube.numerals import signed
from steercube.report.post import (
    PACKAGED,
    Assets,
    Reference,
    Results,
    provenance,
    read_assets,
    read_results,
    render,
    typed,
)
from steercube.report.printed import printed_tables
from steercube.report.write import write_study

pytestmark = pytest.mark.usefixtures("few_priors")

NEEDED = ("about_models", "about_concepts", "effects", "layer_effects", "conclusions")
"""Tables without which there is no post."""
SETTINGS = {"source": "https://example.org/sweep at 1", "confidence_level": "0.95"}


def results_of(tables: dict[str, pd.DataFrame], folder: Path) -> Results:
    """What is read back of these tables, without figures."""
    folder.parent.mkdir(exist_ok=True)
    settings = SETTINGS | TRAINING.attributes
    write_study(folder, tables, {}, inputs={}, settings=settings, contrast=TRAINING)
    (folder / "figures").mkdir(exist_ok=True)
    return read_results(folder)


@pytest.fixture(scope="module")
def assets() -> Assets:
    """What the post of any study is written from."""
    return read_assets(ROOT / "paper")


@pytest.fixture(scope="module")
def own_assets() -> Assets:
    """What that of the published study is, which has a template and numbers of its own."""
    return read_assets(ROOT / "paper", "qwen3")


@pytest.fixture(scope="module")
def of_study(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The committed results, but for their calibration."""
    return read_results(copied(tmp_path_factory.mktemp("study"), without="calibration"))


def copied(folder: Path, *, without: str = "nothing") -> Path:
    """The committed results of the study in a folder of their own."""
    ignored = shutil.ignore_patterns("posteriors", without)
    return Path(shutil.copytree(ROOT / "paper" / "qwen3", folder / "qwen3", ignore=ignored))


def test_the_study_has_a_post_of_nine_sections(of_study: Results, own_assets: Assets) -> None:
    text = render(of_study, own_assets, methods="Definitions.").markdown
    assert re.findall(r"^## (\d)\.", text, re.MULTILINE) == [str(n) for n in range(1, 10)]
    for heading in ("The claims ledger", "Definitions", "References"):
        assert heading in text
    assert "Definitions." in text


def test_the_committed_posts_cite_every_reference_and_every_work() -> None:
    """What no committed post says is not known to work."""
    cited: set[str] = set()
    works: set[str] = set()
    references: dict[str, Reference] = {}
    for study in ("qwen3", "smollm2"):
        assets = read_assets(ROOT / "paper", study)
        post = render(read_results(ROOT / "paper" / study), assets)
        cited |= {citation.id for citation in post.citations}
        cited |= set(re.findall(r"\(#ref-(\w+)\)", post.markdown))
        works |= set(assets.bibliography.works)
        references |= assets.references
    assert works <= cited
    for name, reference in references.items():
        pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(reference.id))
        assert any(re.fullmatch(pattern, id) for id in cited), f"no post cites {name}"


def test_what_it_says_is_what_the_table_holds(of_study: Results, own_assets: Assets) -> None:
    text = " ".join(render(of_study, own_assets).markdown.split())
    gap = of_study.numbers["sensitivity/training gap in cohens_d/nothing"]
    shown = [f"{gap[name]:.0%}".replace("-", "−") for name in ("value", "low", "high")]
    assert (
        f"the share is {shown[0]} with an interval over models of [{shown[1]}, {shown[2]}]" in text
    )
    for sentence in of_study.tables["conclusions"]["sentence"]:
        assert " ".join(signed(sentence).split()) in text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It fell by 7% then.", ["7%"]),
        ("In all three models", ["three"]),
        ("d is −0.25 here", ["−0.25"]),
        ("Of 4B and 14B only 4B", []),
        ("## 3. What was swept\n\nRimsky et al. 2023, `x[0]`, [a](figures/a1.png)", []),
        ("4B2 models", ["4"]),
    ],
    ids=["percentage", "word", "minus", "model names", "labels", "no model's name"],
)
def test_numbers_that_were_typed_are_found(text: str, found: list[str]) -> None:
    assert [number for number, _ in typed(text, ["4B", "14B"])] == found


def longer(assets: Assets, more: str) -> Assets:
    """The same with something added to the template."""
    ((path, text),) = assets.templates.items()
    return replace(assets, templates={path: text + more})


def test_a_typed_number_is_refused(of_study: Results, assets: Assets) -> None:
    changed = longer(assets, "\nIt is 0.123 lower.\n")
    with pytest.raises(ValueError, match=r"'0\.123' was typed: .*It is 0\.123 lower"):
        render(of_study, changed)


def test_a_number_that_is_not_there_is_refused_by_name(of_study: Results, assets: Assets) -> None:
    changed = longer(assets, "\n{{ claim(id='nothing-of-the-kind') }}\n")
    with pytest.raises(ValueError, match="claims/nothing-of-the-kind: has no value"):
        render(of_study, changed)


def override(folder: Path, name: str, more: str) -> None:
    """The package's own file in the user's folder, with something added."""
    (folder / name).write_text((PACKAGED / name).read_text() + more)


def test_a_users_file_takes_the_place_of_the_packages(tmp_path: Path, assets: Assets) -> None:
    assert read_assets(tmp_path) == assets
    override(tmp_path, "post.md.j2", "My own last words.")
    (text,) = assets.templates.values()
    changed = {tmp_path / "post.md.j2": text + "My own last words."}
    assert read_assets(tmp_path) == replace(assets, templates=changed)


def test_a_folder_anywhere_is_enough_for_a_post(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no clone: committed results, copied to a folder that holds nothing else."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "paper" / "smollm2", elsewhere / "smollm2")
    for name in ("post.md", "post.html"):
        (elsewhere / "smollm2" / name).unlink()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["paper", "--paper", str(elsewhere)]) == 0
    assert (elsewhere / "smollm2" / "post.md").read_text().startswith("# Steering smollm2")
    assert "<h1" in (elsewhere / "smollm2" / "post.html").read_text()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_reference_that_is_not_used_is_refused(tmp_path: Path) -> None:
    override(tmp_path, "numbers.toml", '\n[idle]\nid = "counts/models"\n')
    with pytest.raises(ValueError, match="'idle' is declared and not used"):
        read_assets(tmp_path)


def test_a_name_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    override(tmp_path, "post.md.j2", "{{ nowhere }}")
    with pytest.raises(ValueError, match="'nowhere' is used and not declared"):
        read_assets(tmp_path)


def own_post(folder: Path, template: str, numbers: str = "") -> None:
    """A template and numbers of the study `mine` alone, in the user's folder."""
    (folder / "mine.post.md.j2").write_text('{% extends "post.md.j2" %}\n' + template)
    if numbers:
        (folder / "mine.numbers.toml").write_text(numbers)


OWN_TITLE = "{% block title %}\n# My {{ swept }} models\n{% endblock %}\n"
OWN_NUMBER = '[swept]\nid = "counts/models"\nformat = ".0f"\n'


@pytest.mark.slow
def test_a_study_has_a_template_and_numbers_of_its_own(
    cells: xr.Dataset, assets: Assets, tmp_path: Path
) -> None:
    """They fill blocks of the others' template; other studies beside it keep that."""
    for name in ("mine", "other"):
        results_of(conclude(study_of(cells)), tmp_path / name)
    own_post(tmp_path, OWN_TITLE, OWN_NUMBER)
    assert main(["paper", "--paper", str(tmp_path)]) == 0
    mine, other = ((tmp_path / name / "post.md").read_text() for name in ("mine", "other"))
    assert mine.startswith("# My 3 models\n")
    assert other.startswith("# Steering small, middle and large")
    assert mine.split("\n", 1)[1].replace("mine", "other") == other.split("\n", 1)[1]
    own = read_assets(tmp_path, "mine")
    assert list(own.templates) == [tmp_path / "mine.post.md.j2", *assets.templates]
    assert own.references.keys() - assets.references.keys() == {"swept"}
    assert read_assets(tmp_path, "other") == read_assets(tmp_path) == assets


def test_a_studys_own_texts_are_allowed_beside_the_others(tmp_path: Path, assets: Assets) -> None:
    own_post(tmp_path, "", 'allowed = ["12 rooms"]\n')
    assert read_assets(tmp_path, "mine").allowed == (*assets.allowed, "12 rooms")


@pytest.mark.parametrize(
    ("template", "numbers", "said", "file"),
    [
        ("{% block title %}{{ nowhere }}{% endblock %}", "", "'nowhere' is used", "post.md.j2"),
        ("{% block title %}{{ nowhere }}{% endblock %}\n" + OWN_TITLE.replace("title", "story"),
         OWN_NUMBER, "'nowhere' is used", "post.md.j2"),
        ("", OWN_NUMBER, "'swept' is declared and not used", "numbers.toml"),
    ],
    ids=["an unknown name", "another is declared", "an unused one"],
)  # fmt: skip
def test_what_a_studys_own_files_lack_is_said_of_them(
    template: str, numbers: str, said: str, file: str, tmp_path: Path
) -> None:
    """Not of the package's, which are as they should be and out of the user's hands."""
    own_post(tmp_path, template, numbers)
    with pytest.raises(ValueError, match=said) as error:
        read_assets(tmp_path, "mine")
    assert str(tmp_path / f"mine.{file}") in str(error.value)
    assert str(PACKAGED) not in str(error.value)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("\n{% block title %}\n{{ 1 + study }}\n{% endblock %}", "mine.post.md.j2:4: TypeError"),
        ("\n{% block title %}\n{% endfor %}", "mine.post.md.j2:4: TemplateSyntaxError"),
    ],
    ids=["while it is rendered", "while it is read"],
)
def test_an_error_in_a_studys_own_template_is_said_with_its_line(
    template: str, said: str, cells: xr.Dataset, tmp_path: Path
) -> None:
    results = results_of(conclude(study_of(cells), only=NEEDED), tmp_path / "mine")
    own_post(tmp_path, template)
    with pytest.raises(ValueError, match=re.escape(said)):
        render(results, read_assets(tmp_path, "mine"))


@pytest.mark.slow
def test_a_study_without_a_contrast_has_a_post_that_compares_nothing(
    six: xr.Dataset, assets: Assets, tmp_path: Path
) -> None:
    tables = conclude(study_of(six, None))
    write_study(tmp_path / "mine", tables, {}, inputs={}, settings=SETTINGS)
    (tmp_path / "mine" / "figures").mkdir(exist_ok=True)
    results = read_results(tmp_path / "mine")
    assert results.contrast is None
    text = said(render(results, assets).markdown)
    with_one = said(render(results_of(conclude(study_of(six)), tmp_path / "its"), assets).markdown)
    of_a_contrast = "The interval depends on what one lets vary"
    assert of_a_contrast in with_one
    assert of_a_contrast not in text
    assert "full RL" in with_one
    assert "full RL" not in text
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", text.lower())


@pytest.mark.slow
def test_a_post_speaks_of_the_contrast_that_was_asked_for(
    six: xr.Dataset, assets: Assets, tmp_path: Path
) -> None:
    contrast = Contrast("architecture", "dense", "moe", {"moe": "mixture of experts"})
    tables = conclude(study_of(six, contrast))
    settings = SETTINGS | contrast.attributes
    write_study(tmp_path / "mine", tables, {}, inputs={}, settings=settings, contrast=contrast)
    (tmp_path / "mine" / "figures").mkdir(exist_ok=True)
    results = read_results(tmp_path / "mine")
    assert results.contrast == contrast
    text = said(render(results, assets).markdown)
    assert "mixture of experts minus dense" in text
    assert "full RL" not in text
    primary = "contrast_effect/cohens_d/hierarchical, exact/items, concepts, models/architecture"
    number = results.numbers[f"{primary} and scale"]
    shown = f"{number['value']:.2f} [{number['low']:.2f}, {number['high']:.2f}]"
    assert shown.replace("-", "−") in text


ONE_CONCEPT = {"honesty": 24}
TWO_ALIKE = (make_model("first", n_params=1e9), make_model("second", n_params=3e9))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "n_items", "says"),
    [
        (TWO_ALIKE[:1], {"honesty": 24, "humour": 30}, "cannot be asked"),
        (TWO_ALIKE[:1], ONE_CONCEPT, "With one concept there is nothing to compare it with"),
        (TWO_ALIKE, ONE_CONCEPT, "cannot be asked"),
        (
            (*TWO_ALIKE, make_model("third", "rl", n_params=9e9)),
            {"honesty": 24, "humour": 30, "hope": 22, "humility": 20, "haste": 26},
            "The interval depends on what one lets vary",
        ),
    ],
    ids=["one model", "one of each", "two of one training", "a contrast of three"],
)
def test_any_cube_has_a_post_that_says_what_it_cannot(
    models: tuple[object, ...], n_items: dict[str, int], says: str, assets: Assets, tmp_path: Path
) -> None:
    cube = make_cube(np.random.default_rng(2), models=models, n_items=n_items)  # type: ignore[arg-type]
    cells = reduce_to_cells(cube, n_resamples=100)
    results = results_of(conclude(study_of(cells)), tmp_path / "mine")
    text = render(results, assets).markdown
    assert says in text
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", text.lower())
    assert "ledger" not in text


def test_one_value_of_the_cube_changes_number_interval_and_sentence(
    assets: Assets, tmp_path: Path
) -> None:
    cube = make_cube(np.random.default_rng(2), models=TWO_ALIKE[:1], n_items={"honesty": 24})
    texts = []
    for extra in (0.0, -400.0):
        changed = cube.copy(deep=True)
        at = {"model": "first", "concept": "honesty", "sample": 3, "strength": 1.0}
        for name in ("logit_diff", "logprob_matching"):
            changed[name].loc[at] = changed[name].loc[at] + extra
        tables = conclude(study_of(reduce_to_cells(changed, n_resamples=100)))
        results = results_of(tables, tmp_path / f"s{extra:.0f}" / "mine")
        number = results.numbers["models/first/cohens_d/every concept it ran"]
        texts.append((render(results, assets).markdown, number))
    (before, a), (after, b) = texts
    assert (a["value"], a["low"]) != (b["value"], b["low"])
    assert f"{a['value']:.2f} [{a['low']:.2f}, {a['high']:.2f}]" in before
    assert f"{b['low']:.2f}".replace("-", "−") in after
    assert "By that test the only pair of model and concept steers" in before
    assert "By that test the only pair of model and concept does not steer" in after
    assert "Here steering hardly works" in after
    assert "Here steering hardly works" not in before


def small_post(cells: xr.Dataset, assets: Assets, folder: Path) -> str:
    return " ".join(render(results_of(conclude(study_of(cells)), folder), assets).markdown.split())


@pytest.mark.parametrize(
    ("p", "says"),
    [
        ([0.001, 0.001], "By a test over all layers all 2 pairs of model and concept steer."),
        ([0.001, 0.2], "By a test over all layers one of 2 pairs of model and concept steers."),
        ([0.03, 0.2], "By a test over all layers none of 2 pairs of model and concept steers."),
        ([0.03, np.nan], "one of 2 pairs of model and concept steers; one could not be tested."),
    ],
    ids=["both", "one", "none", "one of those tested"],
)
def test_the_headline_is_that_of_the_test(
    p: list[float], says: str, cells: xr.Dataset, assets: Assets, tmp_path: Path
) -> None:
    """Every interval of these lies above zero."""
    part = cells.sel(model=["large"], model_other=["large"])
    told = part.assign(steers_p=(("model", "concept"), [p]))
    assert (told["selected_low"].sel(estimand="cohens_d") > 0).all()
    text = small_post(told, assets, tmp_path / "mine")
    assert says.replace("concept steer.", "concept that were run steer.") in text
    smallest = min(np.array(p) * [2, 1] if np.isfinite(p[1]) else p[:1])
    if "all 2" not in says:
        assert f"the smallest corrected p is {smallest:.2g}" in text


def test_cells_without_the_test_say_that_it_was_not_made(
    cells: xr.Dataset, assets: Assets, tmp_path: Path
) -> None:
    part = cells.sel(model=["large"], model_other=["large"])
    old = part.drop_vars(["steers_p", "steers_other_way_p"])
    text = small_post(old, assets, tmp_path / "old")
    assert "Whether a pair steers was not tested; effects.csv says why." in text
    assert "test over all layers" not in text
    assert "hardly works" not in text
    assert "Whether a pair steers was not tested" not in small_post(part, assets, tmp_path / "new")


def one_pair(shift: dict[int, float]) -> xr.Dataset:
    """Cells of a model of 12 blocks and two concepts: `wit`, whose items move by so much at each
    layer that was run, and `zeal`, whose items move at the third of them."""
    concepts = ("wit", "zeal")
    rng = np.random.default_rng(6)
    model = make_model("one", n_layers=12)
    cube = make_cube(rng, models=(model,), n_items=dict.fromkeys(concepts, 40), layers=tuple(shift))
    for concept in concepts:
        for at, (layer, moved) in enumerate(shift.items()):
            by = moved if concept == "wit" else float(at == 2)
            for strength in (-1.0, 1.0):
                noise = 0.1 * rng.normal(size=40)
                fill(cube, "one", concept, layer, strength, strength * by / 2 + noise)
    return reduce_to_cells(cube, n_resamples=50)


SENTENCES = {
    "open": "nothing was run, so that a larger effect may lie beyond",
    "last block": "is the network's last block, beyond which there is none",
    "other way": "away from the matching answer",
}
UP, PEAK = [0, 0, 0, 0.1, 0.3, 0.5, 1.0], [0, 0.2, 0.5, 1.0, 0.5, 0.2, 0]


@pytest.mark.parametrize(
    ("layers", "shift", "sentence", "says"),
    [
        (range(3, 10), UP[::-1], "open", "first swept: wit."),
        (range(3, 10), UP, "open", "last swept: wit."),
        ([2, 3, 4, 5, 9, 10, 11], PEAK, "open", "beside a gap: wit."),
        (range(5, 12), UP, "last block", "The best layer of wit is"),
        (
            range(3, 10),
            [-0.5, -0.5, -0.5, -1.0, -0.5, 0, -0.5],
            "other way",
            "the same test, turned round, says that it is no chance: wit.",
        ),
        (range(3, 10), PEAK, "", ""),
    ],
    ids=["first", "last", "gap", "last block", "other way", "none of these"],
)
def test_best_layers_that_say_less_than_they_seem_to_are_named(
    layers: list[int],
    shift: list[float],
    sentence: str,
    says: str,
    assets: Assets,
    tmp_path: Path,
) -> None:
    cells = one_pair(dict(zip(layers, shift, strict=True)))
    text = small_post(cells, assets, tmp_path / "mine")
    assert says in text
    assert {name for name, of in SENTENCES.items() if of in text} == {sentence} - {""}


def said(text: str) -> str:
    return " ".join(text.split())


def test_a_post_says_of_its_sweep_only_what_the_cube_says(assets: Assets, tmp_path: Path) -> None:
    cube = make_cube(np.random.default_rng(2), models=TWO_ALIKE[:1], n_items=ONE_CONCEPT)
    cells = reduce_to_cells(
        cube.assign_attrs(title="By hand", layer_convention="added at block 3 of 4", versions="{}"),
        n_resamples=50,
    )
    folder = tmp_path / "mine"
    write_conclusions("mine", study_of(cells), tmp_path, report=lambda line: None)
    text = said(render(read_results(folder), assets).markdown)
    assert "what it holds: By hand;" in text
    assert "layers: added at block 3 of 4;" in text
    assert "collected with steercube" not in text
    assert "read and added" not in text
    kept = {"title", "source", "seed", "n_resamples", "confidence_level"}
    bare = {name: value for name, value in read_results(folder).settings.items() if name in kept}
    text = said(render(replace(read_results(folder), settings=bare), assets).markdown)
    assert "what it holds: By hand;" in text
    assert "layers:" not in text
    assert "software:" not in text


def test_the_versions_of_software_are_listed() -> None:
    settings = {"versions": '{"torch": "2.1", "numpy": "2.0"}', "source": "one\ntwo"}
    assert provenance(settings, "versions") == "torch 2.1, numpy 2.0"
    assert provenance(settings, "source") == "one (the first of 2 lines)"
    assert provenance(settings, "dtype") == ""


def test_a_misreading_is_told_with_its_counts_and_what_it_did(
    of_study: Results, own_assets: Assets
) -> None:
    of = "readings/self_awareness/32B"
    table = {"table": "tables/readings.csv"}
    counts = {
        "responses": (900, 900),
        "with a choice/published": (800, 900),
        "with a choice/read anew": (700, 900),
        "misread/A": (0, 300),
        "misread/B": (123, 400),
        "responses/B/A/Answer: (X) ...": (122, 122),
        "best change/published": (0.19, None),
        "best change/read anew": (0.49, None),
        "r with the logits/published": (0.28, None),
        "r with the logits/read anew": (0.38, None),
    }
    told = {f"{of}/{name}": table | {"value": v, "n": n} for name, (v, n) in counts.items()}
    told[f"{of}/misread/B"]["share"] = 123 / 400
    without = {id: n for id, n in of_study.numbers.items() if not id.startswith("readings/")}
    text = said(render(replace(of_study, numbers=without | told), own_assets).markdown)
    assert "Who read the answers" in text
    assert "Of the 400 that choose (B), it took 123 for (A); of the 300 that choose (A), 0" in text
    assert "`Answer: (B) No.` chooses (B) and was published as (A): 122 of the 122 of 32B" in text
    assert "changes 19% of the answers at its best layer; read anew, 49%" in text
    assert "The answers of 32B were misread: 123 of the 400 that choose (B)" in text
    assert "changes 49% of its answers where the > published reading has 19%" in text
    assert "These are all the responses of such a form" in text
    told[f"{of}/responses/B/A/Answer: (X) ..."]["n"] = 130
    text = said(render(replace(of_study, numbers=without | told), own_assets).markdown)
    assert "122 of the 130 of 32B" in text
    told[f"{of}/misread/B"]["share"] = 0.01
    assert "These are all the responses of such a form" not in text
    text = said(render(replace(of_study, numbers=without | told), own_assets).markdown)
    assert "The answers of 32B were misread" not in text
    text = said(render(replace(of_study, numbers=without), own_assets).markdown)
    assert "Who read the answers" not in text


def test_an_excess_is_printed_with_its_interval_and_as_a_bound(
    of_study: Results, own_assets: Assets
) -> None:
    id = "agreement/corrigible/every model/mean best generation delta less its null"
    numbers = json.loads(json.dumps(of_study.numbers))
    numbers[id] |= {"value": 0.29, "low": -0.02, "high": 0.6, "reason": UPPER_BOUND}
    text = said(render(replace(of_study, numbers=numbers), own_assets).markdown)
    assert "gives by itself is at most 29% [−2%, 60%]" in text
    assert "it is a lower bound" in text
    for number in numbers.values():
        number.pop("reason", None)
    text = said(render(replace(of_study, numbers=numbers), own_assets).markdown)
    assert "gives by itself is 29% [−2%, 60%]" in text
    assert "it is a lower bound" not in text


def test_the_first_table_of_the_study_stands_in_section_four(
    of_study: Results, own_assets: Assets
) -> None:
    text = render(of_study, own_assets).markdown
    section = text[text.index("## 4.") : text.index("## 5.")]
    for model, printed in {"4B": "9.15", "14B": "7.54", "8B": "6.03", "32B": "2.96"}.items():
        claim = of_study.numbers[f"claims/delta-{model.lower()}"]
        balanced = f"{claim['balanced']:.2f}"
        (row,) = re.findall(rf"^\| {model} \|[^|]*\| {re.escape(printed)} \|.*$", section, re.M)
        assert f"| {claim['value']:.2f} [{claim['low']:.2f}, {claim['high']:.2f}] |" in row
        assert row.endswith(f"| {balanced} |")
    assert "They leave out sycophancy" in section


def test_claims_are_counted_by_how_they_were_printed(of_study: Results, own_assets: Assets) -> None:
    counted = {
        "printed numbers": 26, "printed numbers met to the digit": 24, "approximate numbers": 4,
        "approximate numbers met within a unit": 3, "qualitative claims": 6,
        "interpretive claims": 11, "interpretive claims: supported": 4,
    }  # fmt: skip
    numbers = of_study.numbers | {
        f"counts/{name}": {"table": "tables/counts.csv", "value": n} for name, n in counted.items()
    }
    text = said(render(replace(of_study, numbers=numbers), own_assets).markdown)
    assert "Of 26 numbers that were published as such, 24 can be > repeated to the digit" in text
    assert "each judged by itself, four are *supported*" in text
    assert "Another 4 are approximate; 3 of these hold, those with a tilde" in text
    assert "Another 6 are qualitative, a sign or that nothing differs." in text
    nothing = {id: number | {"value": 0} for id, number in numbers.items() if id[7:] in counted}
    assert len(nothing) == len(counted)
    text = said(render(replace(of_study, numbers=numbers | nothing), own_assets).markdown)
    for absent in (
        "that were published as such",
        "are approximate;",
        "are qualitative,",
        "each judged by itself",
    ):
        assert absent not in text, absent


def test_coverage_is_cited_where_it_was_simulated(
    of_study: Results, own_assets: Assets, tmp_path: Path
) -> None:
    path = copied(tmp_path) / "calibration" / "coverage.csv"
    table = pd.read_csv(path)
    of_items = table.query("method == 'bootstrap' and random_effects == 'items'")
    shown = of_items.query("training == 0 and sd_model == 0.3")
    table.loc[shown.index, "coverage"] = 0.1234
    table.to_csv(path, index=False)
    text = " ".join(render(read_results(tmp_path / "qwen3"), own_assets).markdown.split())
    assert "the one over items alone held it 12% of the time" in text
    assert "How often does an interval hold the truth" not in render(of_study, own_assets).markdown


OPERATING = "statistic,scenario,measure,nominal,achieved,standard_error,n_simulations\n"


def test_what_a_simulation_does_not_keep_is_said_where_it_is_used(
    own_assets: Assets, tmp_path: Path
) -> None:
    """Shares within two points of the promised are not worth a sentence, nor is power."""
    path = copied(tmp_path) / "calibration" / "operating.csv"
    rows = {
        "deviation of a model,sd_model 0.3,coverage,0.95,{},0.01,400": ("0.912", "0.931"),
        "excess of generation,a useless one,false alarms,0.05,{},0.01,400": ("0.081", "0.069"),
        "deviation of a model,sd_model 9,power,,{},0.01,400": ("0.412", "0.412"),
    }
    held = "- training effect (hierarchical, exact; items, concepts, models; training and scale): "
    texts = []
    for at in (0, 1):
        path.write_text(OPERATING + "".join(f"{row.format(v[at])}\n" for row, v in rows.items()))
        texts.append(
            " ".join(render(read_results(tmp_path / "qwen3"), own_assets).markdown.split())
        )
    said = (
        "- deviation of a model: the interval held the truth in 91.2% (sd_model 0.3) instead of 95%"
    )
    assert said in texts[0]
    alarm = "- excess of generation: it was found, where there was none, in 8.1% (a useless one)"
    assert alarm in texts[0]
    assert "41.2%" not in texts[0]
    table = pd.read_csv(path.with_name("coverage.csv")).query(
        "method == 'hierarchical, exact' and covariates == 'training and scale'"
    )
    off = [f"{share:.1%}" for share in table["coverage"] if abs(share - 0.95) > 0.02]
    said = texts[0].partition(held)[2].partition(" instead of 95%")[0]
    assert [word for word in said.split() if word.endswith("%")] == off
    assert "- deviation of a model" not in texts[1]
    assert "- excess of generation" not in texts[1]
    path.write_text("statistic,scenario,measure,nominal\n")
    with pytest.raises(ValueError, match="has no column 'achieved'"):
        read_results(tmp_path / "qwen3")


@pytest.mark.parametrize("change", ["another cube", "another seed", "another contrast", "none"])
def test_a_calibration_of_other_cells_is_left_out_and_that_is_said(
    change: str, tmp_path: Path, own_assets: Assets, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(tmp_path)
    sound = "How often does an interval hold the truth"
    assert sound in render(read_results(folder), own_assets).markdown
    manifest = folder / "calibration" / "manifest.json"
    made_from = json.loads(manifest.read_text())
    if change == "none":
        manifest.unlink()
    else:
        other = {
            "another cube": {"samples_sha256": "0" * 64},
            "another seed": {"seed": 1},
            "another contrast": {"contrast": "training:rl:distilled"},
        }
        manifest.write_text(json.dumps(made_from | other[change]))
    assert sound not in render(read_results(folder), own_assets).markdown
    assert main(["paper", "--paper", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "calibration is of other cells or another contrast, and left out" in said
    assert "run `steercube calibrate`" in said


def test_results_that_were_edited_are_refused(tmp_path: Path) -> None:
    copied(tmp_path)
    for name in ("numbers.json", "tables/models.md", "tables/effects.csv"):
        path = tmp_path / "qwen3" / name
        sound = path.read_bytes()
        path.write_bytes(sound.replace(b"1", b"2"))
        with pytest.raises(ValueError, match=f"{name} is not as it was written"):
            read_results(tmp_path / "qwen3")
        path.write_bytes(sound)
    read_results(tmp_path / "qwen3")


def test_a_ledger_that_was_edited_since_is_refused(tmp_path: Path) -> None:
    """Its claims would be printed as they were."""
    folder = copied(tmp_path)
    shutil.copy(ROOT / "paper" / "claims.toml", tmp_path)
    read_results(folder)
    text = (tmp_path / "claims.toml").read_text()
    (tmp_path / "claims.toml").write_text(text.replace('published = "', 'published = "1', 1))
    with pytest.raises(ValueError, match=r"claims\.toml was edited after.*run `steercube analyze`"):
        read_results(folder)


@pytest.mark.slow
def test_a_name_stays_a_name(assets: Assets, tmp_path: Path) -> None:
    """Whatever CSV readers take it for; and its digits are no number that was typed."""
    models = [
        make_model(name, n_params=n * 1e9) for n, name in enumerate(("NA", "007", "None", "1e3"), 1)
    ]
    concepts = {"nan": 24, "2.50": 24, "top-5": 24, "rule_of_two": 24}
    cube = make_cube(np.random.default_rng(1), models=tuple(models), n_items=concepts)
    cells = reduce_to_cells(cube, n_resamples=20, report=lambda line: None)
    results = results_of(conclude(study_of(cells)), tmp_path / "mine")
    assert results.tables["about_models"]["model"].tolist() == ["NA", "007", "None", "1e3"]
    assert results.tables["about_concepts"]["concept"].tolist() == list(concepts)
    text = render(results, assets).markdown
    assert "Steering NA, 007, None and 1e3" in text
    assert "rule of two" in text


def test_results_that_are_not_whole_are_refused(of_study: Results, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="steercube analyze"):
        read_results(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"outputs": {"tables/x.csv": ""}}))
    with pytest.raises(ValueError, match=r"tables/x\.csv is missing"):
        read_results(tmp_path)


def test_a_threshold_that_is_crossed_changes_the_sentence(
    of_study: Results, own_assets: Assets
) -> None:
    numbers = json.loads(json.dumps(of_study.numbers))
    before = render(of_study, own_assets).markdown
    numbers["contrast_effect/cohens_d/bootstrap/items/training"]["high"] = 0.01
    after = render(replace(of_study, numbers=numbers), own_assets).markdown
    assert "an analysis that stops there reports an effect" in before
    assert "an analysis that stops there reports an effect" not in after
    assert "The interval includes zero whatever is taken as random" in after


def test_the_sentence_on_training_is_that_of_the_verdict(
    of_study: Results, own_assets: Assets
) -> None:
    """Where models are only resampled the interval may exclude zero; the verdict's does not."""
    resampled = "contrast_effect/cohens_d/bootstrap/items, concepts, models/training"
    exact = "contrast_effect/cohens_d/hierarchical, exact/items, concepts, models"
    said = "lies on one side of zero even with models, concepts and items all taken as random"
    for of, low, high, expected in (
        (resampled, -0.2, -0.1, False),
        (f"{exact}/training and scale", -0.4, -0.1, True),
    ):
        numbers = json.loads(json.dumps(of_study.numbers))
        numbers[of] |= {"low": low, "high": high}
        text = " ".join(render(replace(of_study, numbers=numbers), own_assets).markdown.split())
        assert (said in text) == expected
        assert ("−0.40, −0.10" in text) == expected


def test_what_is_too_narrow_says_so_wherever_it_is_printed(
    of_study: Results, own_assets: Assets, study_tables: dict[str, pd.DataFrame]
) -> None:
    text = " ".join(render(of_study, own_assets).markdown.split())
    assert "which understates how models differ, for of one training there are only two" in text
    table = study_tables["contrast_effect"].copy()
    resampled = (table["method"] == "bootstrap") & (table["random_effects"] == MODELS)
    note = "understates how models differ: 2 models of one training, resampled"
    table.loc[resampled, "diagnostics"] = note
    printed = printed_tables(study_tables | {"contrast_effect": table}, TRAINING)["contrast_effect"]
    assert printed.count(note) == 1


def test_a_reference_formats_its_number(of_study: Results, assets: Assets) -> None:
    shown = replace(
        assets,
        templates={Path("own"): "{{ x }}|{{ x.full }}|{{ x.at('+.1f') }}|{{ n.in_words }}"},
        references={
            "x": Reference("claims/d-gap-all", ".1%"),
            "n": Reference("counts/rl models", ".0f"),
        },
        bibliography=replace(assets.bibliography, works={}),
    )
    gap = of_study.numbers["claims/d-gap-all"]
    full = f"{gap['value']:.1%} [{gap['low']:.1%}, {gap['high']:.1%}]".replace("-", "−")
    assert render(of_study, shown).markdown.strip() == (
        f"{gap['value']:.1%}|{full}|{gap['value']:+.1f}|two"
    )

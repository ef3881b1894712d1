import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import ROOT, make_cube, make_model

from steercube.analysis.reduce import cells as reduce_to_cells
from steercube.analysis.tables import conclude
from steercube.cli import main
from steercube.report.post import (
    HYPHEN,
    PACKAGED,
    Assets,
    Reference,
    Results,
    read_assets,
    read_results,
    render,
    typed,
)
from steercube.report.write import write_study

pytestmark = pytest.mark.usefixtures("few_priors")

SETTINGS = {"source": "https://example.org/sweep at 1", "confidence_level": "0.95"}


def results_of(tables: dict[str, pd.DataFrame], folder: Path) -> Results:
    """What is read back of these tables, without figures."""
    folder.parent.mkdir(exist_ok=True)
    write_study(folder, tables, {}, inputs={}, settings=SETTINGS)
    (folder / "figures").mkdir(exist_ok=True)
    return read_results(folder)


@pytest.fixture(scope="module")
def assets() -> Assets:
    return read_assets(ROOT / "paper")


@pytest.fixture(scope="module")
def of_study(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The committed results, but for their calibration."""
    return read_results(copied(tmp_path_factory.mktemp("study"), without="calibration"))


def copied(folder: Path, *, without: str = "nothing") -> Path:
    """The committed results of the study in a folder of their own."""
    ignored = shutil.ignore_patterns("posteriors", without)
    return Path(shutil.copytree(ROOT / "paper" / "qwen3", folder / "qwen3", ignore=ignored))


def test_the_study_has_a_post_of_nine_sections(of_study: Results, assets: Assets) -> None:
    text = render(of_study, assets, methods="Definitions.").markdown
    assert re.findall(r"^## (\d)\.", text, re.MULTILINE) == [str(n) for n in range(1, 10)]
    for heading in ("The claims ledger", "Definitions", "References"):
        assert heading in text
    assert "Definitions." in text


def test_the_committed_posts_cite_every_reference_and_every_work(assets: Assets) -> None:
    """What no committed post says is not known to work."""
    cited: set[str] = set()
    for study in ("qwen3", "smollm2"):
        post = render(read_results(ROOT / "paper" / study), assets)
        cited |= {citation.id for citation in post.citations}
        cited |= set(re.findall(r"\(#ref-(\w+)\)", post.markdown))
    assert set(assets.bibliography.works) <= cited
    for name, reference in assets.references.items():
        pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(reference.id))
        assert any(re.fullmatch(pattern, id) for id in cited), f"no post cites {name}"


def test_what_it_says_is_what_the_table_holds(of_study: Results, assets: Assets) -> None:
    text = " ".join(render(of_study, assets).markdown.split())
    gap = of_study.numbers["sensitivity/training gap in cohens_d/nothing"]
    shown = [f"{gap[name]:.0%}".replace("-", "−") for name in ("value", "low", "high")]
    assert (
        f"the share is {shown[0]} with an interval over models of [{shown[1]}, {shown[2]}]" in text
    )
    for sentence in of_study.tables["conclusions"]["sentence"]:
        assert " ".join(HYPHEN.sub("−", sentence).split()) in text


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


def test_a_typed_number_is_refused(of_study: Results, assets: Assets) -> None:
    changed = replace(assets, template=assets.template + "\nIt is 0.123 lower.\n")
    with pytest.raises(ValueError, match=r"'0\.123' was typed: .*It is 0\.123 lower"):
        render(of_study, changed)


def test_a_number_that_is_not_there_is_refused_by_name(of_study: Results, assets: Assets) -> None:
    changed = replace(
        assets,
        template=assets.template + "\n{{ claim(id='nothing-of-the-kind') }}\n",
    )
    with pytest.raises(ValueError, match="claims/nothing-of-the-kind: has no value"):
        render(of_study, changed)


def override(folder: Path, name: str, more: str) -> None:
    """The package's own file in the user's folder, with something added."""
    (folder / name).write_text((PACKAGED / name).read_text() + more)


def test_a_users_file_takes_the_place_of_the_packages(tmp_path: Path, assets: Assets) -> None:
    assert read_assets(tmp_path) == assets
    override(tmp_path, "post.md.j2", "My own last words.")
    changed = read_assets(tmp_path)
    assert changed == replace(assets, template=assets.template + "My own last words.")


def test_a_folder_anywhere_is_enough_for_a_post(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no clone: committed results, copied to a folder that holds nothing else."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "paper" / "smollm2", elsewhere / "smollm2")
    (elsewhere / "smollm2" / "post.md").unlink()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["paper", "--paper", str(elsewhere)]) == 0
    for name in ("post.md", "post.html"):
        committed = ROOT / "paper" / "smollm2" / name
        assert (elsewhere / "smollm2" / name).read_bytes() == committed.read_bytes()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_reference_that_is_not_used_is_refused(tmp_path: Path) -> None:
    override(tmp_path, "numbers.toml", '\n[idle]\nid = "counts/models"\n')
    with pytest.raises(ValueError, match="'idle' is declared and not used"):
        read_assets(tmp_path)


def test_a_name_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    override(tmp_path, "post.md.j2", "{{ nowhere }}")
    with pytest.raises(ValueError, match="'nowhere' is used and not declared"):
        read_assets(tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.25", "−0.25"),
        ("[-1, -0.5]", "[−1, −0.5]"),
        ("30B-A3B", "30B-A3B"),
        ("full-RL", "full-RL"),
        ("50-65%", "50-65%"),
        ("p=-3", "p=−3"),
    ],
)
def test_only_a_minus_becomes_one(text: str, shown: str) -> None:
    assert HYPHEN.sub("−", text) == shown


ONE_CONCEPT = {"honesty": 24}
TWO_ALIKE = (make_model("first", n_params=1e9), make_model("second", n_params=3e9))


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
    results = results_of(conclude(cells), tmp_path / "mine")
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
        tables = conclude(reduce_to_cells(changed, n_resamples=100))
        results = results_of(tables, tmp_path / f"s{extra:.0f}" / "mine")
        number = results.numbers["models/first/cohens_d/every concept it ran"]
        texts.append((render(results, assets).markdown, number))
    (before, a), (after, b) = texts
    assert (a["value"], a["low"]) != (b["value"], b["low"])
    assert f"{a['value']:.2f} [{a['low']:.2f}, {a['high']:.2f}]" in before
    assert f"{b['low']:.2f}".replace("-", "−") in after
    assert "In all 1 pairs that were run the interval" in before
    assert "In 0 of 1 pairs the interval" in after
    assert "Here steering hardly works" in after
    assert "Here steering hardly works" not in before


def test_coverage_is_cited_where_it_was_simulated(
    of_study: Results, assets: Assets, tmp_path: Path
) -> None:
    path = copied(tmp_path) / "calibration" / "coverage.csv"
    table = pd.read_csv(path)
    of_items = table.query("method == 'bootstrap' and takes_as_random == 'items'")
    shown = of_items.query("training == 0 and sd_model == 0.3")
    table.loc[shown.index, "coverage"] = 0.1234
    table.to_csv(path, index=False)
    text = " ".join(render(read_results(tmp_path / "qwen3"), assets).markdown.split())
    assert "the one over items alone held it 12% of the time" in text
    assert "How often does an interval hold the truth" not in render(of_study, assets).markdown


OPERATING = "statistic,scenario,measure,nominal,achieved,standard_error,n_simulations\n"


def test_what_a_simulation_does_not_keep_is_said_where_it_is_used(
    assets: Assets, tmp_path: Path
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
        texts.append(" ".join(render(read_results(tmp_path / "qwen3"), assets).markdown.split()))
    said = (
        "- deviation of a model: the interval held the truth in 91.2% (sd_model 0.3) instead of 95%"
    )
    assert said in texts[0]
    alarm = "- excess of generation: it was found, where there was none, in 8.1% (a useless one)"
    assert alarm in texts[0]
    assert "41.2%" not in texts[0]
    assert held + "the interval held the truth in 99.2% (training 0, sd_model 0), 92.6%" in texts[0]
    assert "- deviation of a model" not in texts[1]
    assert "- excess of generation" not in texts[1]
    path.write_text("statistic,scenario,measure,nominal\n")
    with pytest.raises(ValueError, match="has no column 'achieved'"):
        read_results(tmp_path / "qwen3")


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


def test_a_name_stays_a_name(assets: Assets, tmp_path: Path) -> None:
    """Whatever CSV readers take it for; and its digits are no number that was typed."""
    models = [
        make_model(name, n_params=n * 1e9) for n, name in enumerate(("NA", "007", "None", "1e3"), 1)
    ]
    concepts = {"nan": 24, "2.50": 24, "top-5": 24, "rule_of_two": 24}
    cube = make_cube(np.random.default_rng(1), models=tuple(models), n_items=concepts)
    tables = conclude(reduce_to_cells(cube, n_resamples=20, report=lambda line: None))
    results = results_of(tables, tmp_path / "mine")
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
    of_study: Results, assets: Assets
) -> None:
    numbers = json.loads(json.dumps(of_study.numbers))
    before = render(of_study, assets).markdown
    numbers["training_effect/cohens_d/bootstrap/items/training"]["high"] = 0.01
    after = render(replace(of_study, numbers=numbers), assets).markdown
    assert "an analysis that stops there reports an effect" in before
    assert "an analysis that stops there reports an effect" not in after
    assert "The interval includes zero whatever is taken as random" in after


def test_a_reference_formats_its_number(of_study: Results, assets: Assets) -> None:
    shown = replace(
        assets,
        template="{{ x }}|{{ x.full }}|{{ x.at('+.1f') }}|{{ n.in_words }}",
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

"""No pickle, no code of others, no name that leaves its folder, no text that becomes HTML."""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from builders import (
    ROOT,
    TRAINING,
    make_cube,
    make_model,
    reduce_to_cells,
    study_of,
    with_responses,
)
from children import collected
from huggingface_hub import constants

from steercube.analysis.conclusions.tables import conclude
from steercube.collect.decoder import load
from steercube.cube import check_cube, open_cube
from steercube.models import Entry, Weights
from steercube.report.figures import draw
from steercube.report.page import page
from steercube.report.post import read_assets, read_results, render
from steercube.report.write import write_study

pytestmark = pytest.mark.usefixtures("few_priors")

SCRIPT = "<script>alert(1)"
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: p.name)
def test_no_source_loads_a_pickle_or_runs_text(path: Path, fault: Callable[[str], Any]) -> None:
    line = fault("code in data")
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in LOADERS]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] * ((node.module or "").split(".")[0] in LOADERS)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                found.append(node.func.id)
            for keyword in node.keywords:
                unsafe = keyword.arg in ("allow_pickle", "trust_remote_code")
                is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                found += [str(keyword.arg)] * (unsafe and not is_false)
    line.tried(path.name, silently_wrong=bool(found))


def test_a_models_own_code_is_not_run(tmp_path: Path, fault: Callable[[str], Any]) -> None:
    line = fault("code beside weights")
    folder = tiny.save("llama", tmp_path / "model")
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n"
    (folder / "modeling_own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    for change in (
        {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}},
        {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}, "model_type": "own"},
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        refused = False
        try:
            load(Entry("own", Weights(source=str(folder), dtype="float32")))
        except ValueError as error:
            refused = str(folder) in str(error)
        line.tried(str(change), silently_wrong=ran.exists())
        assert refused or "model_type" not in change


def test_pickled_weights_are_not_loaded(tmp_path: Path, fault: Callable[[str], Any]) -> None:
    line = fault("code in data")
    folder = tiny.save("llama", tmp_path / "model")
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (ran,))

    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load(Entry("pickled", Weights(source=str(folder), dtype="float32")))
    line.tried("pytorch_model.bin", silently_wrong=ran.exists())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the branch main of made/tiny name a commit, in a cache that stands for the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--made--tiny"

    def name(commit: str) -> None:
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        folder = repository / "snapshots" / commit
        if not folder.exists():
            tiny.save("llama", folder)
            made = tiny.model("llama")
            made.lm_head.weight.data[-1] += int(commit[0], 16)
            made.save_pretrained(folder)

    return name


def test_a_branch_that_moves_is_another_model(
    hub: Callable[[str], None], tmp_path: Path, fault: Callable[[str], Any]
) -> None:
    """The commit is written down, and nothing is added to what another commit gave."""
    line, of_branch = fault("a branch that moves"), Weights("made/tiny", dtype="float32")
    first, second = "1" * 40, "2" * 40
    hub(first)
    out = collected(tmp_path, load(Entry("mine", of_branch)))
    before = out.read_bytes()
    recorded = open_cube(out).labels["revision"].item()
    line.tried("recorded", silently_wrong=recorded != first)

    hub(second)
    moved = load(Entry("mine", of_branch))
    pinned = load(Entry("mine", replace(of_branch, revision=first)))
    same = torch.equal(moved.model.lm_head.weight, pinned.model.lm_head.weight)
    right = (moved.revision, pinned.revision) == (second, first) and not same
    line.tried("loaded", silently_wrong=not right)
    with pytest.raises(ValueError, match=f"revision.*{first}"):
        collected(tmp_path, moved)
    line.tried("gone on with", lost=out.read_bytes() != before)
    collected(tmp_path, pinned)
    line.tried("pinned", lost=open_cube(out).labels["revision"].item() != first)


def test_a_commit_that_is_not_known_is_refused(hub: Callable[[str], None]) -> None:
    hub("1" * 40)
    for weights in (Weights("made/other"), Weights("made/tiny", revision="v2")):
        with pytest.raises(ValueError, match=f"{weights.source}: no commit '{weights.revision}'"):
            load(Entry("mine", weights))
    with pytest.raises(ValueError, match="made/tiny: cannot be loaded"):
        load(Entry("mine", Weights("made/tiny", revision="3" * 40)))


def test_texts_of_a_cube_stay_text_on_the_page(tmp_path: Path, fault: Callable[[str], Any]) -> None:
    line = fault("HTML in a cube's texts")
    image = "![](https://example.org/a.png) [b](https://example.org) <https://example.org> a|b"
    models = (make_model("a", family=f"f{SCRIPT}{image}"), make_model("b", n_params=2e9))
    cube = make_cube(np.random.default_rng(1), models=models, n_items={"c": 24})
    cube.attrs |= {"title": SCRIPT, "source": f"https://example.org/{SCRIPT} x"}
    said = {"text": f"(A) {SCRIPT}</script>", "model": "b", "concept": "c", "layer": 3}
    told = with_responses(cube, strength=1.0, sample=cube["sample"].values, **said)
    study = study_of(reduce_to_cells(told, n_resamples=50))
    tables = conclude(study)
    settings = {"source": study.cells.attrs["source"], "confidence_level": "0.95"}
    settings |= TRAINING.attributes
    folder = tmp_path / "mine"
    figures = draw(study, tables)
    write_study(folder, tables, figures, inputs={}, settings=settings, contrast=TRAINING)
    results = read_results(folder)
    post = render(results, read_assets(ROOT / "paper"))
    html = page(post, results, folder, ROOT / "paper")
    line.tried("family, title, source, responses", silently_wrong="<script>alert" in html)
    active = re.search(r"<(a|img) [^>]*https://example\.org", html)
    line.tried("family as Markdown", silently_wrong=active is not None)
    assert "&lt;script&gt;alert(1)" in html
    assert html.count("<script") == 2


@pytest.mark.parametrize("name", [f"a{SCRIPT}", "a|b", "$x_$", "`a`", "[a](b)", "\ue000", "../a"])
def test_names_that_would_be_markup_are_refused(name: str, fault: Callable[[str], Any]) -> None:
    line = fault("HTML in a cube's texts")
    cube = make_cube(np.random.default_rng(1), models=(make_model("a"),), n_items={"c": 24})
    for dim in ("model", "concept"):
        with pytest.raises(ValueError, match="cannot be a name") as error:
            check_cube(cube.assign_coords({dim: [name]}))
        line.tried(f"{dim} {name!r}", silently_wrong=repr(name) not in str(error.value))

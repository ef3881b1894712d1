import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from builders import reduce_to_cells

from steercube.answers import READER, answer_of
from steercube.collect import answers as answers_module
from steercube.collect import plan as plan_module
from steercube.contract import UNSTEERED
from steercube.cube import open_cube

run = tiny.collected
HONESTY = {"honesty": tiny.CONCEPTS["honesty"]}


def test_every_response_is_in_the_cube_and_read(whole: Path) -> None:
    cube = open_cube(whole)
    responses, grid = cube["responses"], cube["generation_match"]
    assert responses.sizes["response"] == 2 * 8 * (1 + 2 * 3)
    at = {"model": "tiny-llama", "concept": "humour"}
    valid = grid["generation_valid"].sel(at)
    assert valid.sizes == {"layer": 2, "strength": 4, "sample": 8}
    assert valid["layer"].values.tolist() == [2, 3]
    assert valid.notnull().all()
    letters = grid["letter"].sel(concept="humour")
    assert np.unique(letters, return_counts=True)[1].tolist() == [4, 4]
    unsteered = responses["strength"].values == 0
    assert (responses["layer"].values[unsteered] == UNSTEERED).all()
    assert unsteered.sum() == 2 * 8
    for i in range(responses.sizes["response"]):
        row = responses.isel(response=i)
        found = grid["generation_valid"].sel(
            model="tiny-llama",
            concept=row["concept"].item(),
            layer=max(row["layer"].item(), 2),
            strength=row["strength"].item(),
            sample=row["sample"].item(),
        )
        assert found == (answer_of(row["text"].item()) != "")


def test_the_cube_says_how_answers_were_chosen_and_read(whole: Path) -> None:
    attrs = open_cube(whole)["generation_match"]["generation_match"].attrs
    settings = {"max_new_tokens": 5, "temperature": 0.0, "repeats": 1, "reader": READER}
    assert {name: attrs[name] for name in settings} == settings


@pytest.mark.slow
def test_answers_are_counted_by_item_and_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that finds (A) in every other text: shares of three answers, then rates."""
    monkeypatch.setattr(answers_module, "answer_of", lambda text: "A" if len(text) % 2 else "")
    plan = replace(tiny.PLAN, temperature=1.0, repeats=3, generation_samples=12)
    cube = open_cube(run(tmp_path, plan=plan))
    responses, grid = cube["responses"], cube["generation_match"]
    assert set(responses["repeat"].values) == {0, 1, 2}
    text = responses["text"].values
    assert len(set(text.tolist())) > 0.5 * len(text)
    at = {"concept": "humour", "layer": 3, "strength": 2.0}
    rows = np.logical_and.reduce([responses[name].values == value for name, value in at.items()])
    sample = responses["sample"].values[rows]
    counted = np.array([len(t) % 2 for t in text[rows]])
    cell = {"model": "tiny-llama", "concept": "humour", "layer": 3, "strength": 2.0}
    shares = [counted[sample == i].mean() for i in range(12)]
    np.testing.assert_allclose(grid["generation_valid"].sel(cell), shares)
    letter = grid["letter"].sel(concept="humour").values
    matches = (letter[sample] == "A") & (counted == 1)
    cells = reduce_to_cells(cube, n_resamples=20)
    rate = float(cells["response_match_rate"].sel(cell))
    assert rate == pytest.approx(matches.sum() / counted.sum(), abs=1e-6)
    assert float(cells["response_valid_rate"].sel(cell)) == pytest.approx(counted.mean(), abs=1e-6)
    assert float(cells["n_responses"].sel(cell)) == 36
    assert float(cells["generation_rate"].sel(cell)) == rate


def test_the_first_generated_position_is_the_logit_sweeps(tmp_path: Path) -> None:
    """Where `(A` is one token both are asked the same; else there is nothing to compare."""
    cube = open_cube(run(tmp_path, tiny.decoder(letters_joined=True)))
    grid = cube["generation_match"]
    assert grid["layer"].values.tolist() == [2, 3]
    assert (grid["generation_logit_apart"] < 1e-4).all()
    assert "of the logit sweep" in repr(cube)
    assert (grid["generation_positions_touched"] > 0).all()


def test_a_first_generated_position_of_other_logits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "MAX_ROUNDING", 0.0)
    with pytest.raises(ValueError, match="the two are not of the same model, vectors or prompts"):
        run(tmp_path, tiny.decoder(letters_joined=True), concepts=HONESTY)
    assert not (tmp_path / "mine.nc").exists()


def test_where_layers_were_not_swept_the_first_position_is_not_compared(tmp_path: Path) -> None:
    plan = replace(tiny.PLAN, layers="2", controls=())
    cube = open_cube(run(tmp_path, tiny.decoder(letters_joined=True), plan, concepts=HONESTY))
    apart = cube["generation_match"]["generation_logit_apart"]
    assert apart.sel(layer=2).notnull().all()
    assert apart.sel(layer=3).isnull().all()


def test_generation_that_changes_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "MIN_STRENGTH_GAP", 0.0)
    plan = replace(tiny.PLAN, strengths=(-1e-12, 1e-12), outcomes=("generation",))
    with pytest.raises(ValueError, match="no position was changed at strengths"):
        run(tmp_path, plan=plan)


def test_answers_whose_logits_are_no_numbers_are_no_answers(tmp_path: Path) -> None:
    plan = replace(tiny.PLAN, strengths=(-1.0, 1.0, 1e39), generation_strengths=(1.0, 1e39))
    with np.errstate(all="ignore"):
        cube = open_cube(run(tmp_path, plan=replace(plan, controls=())))
    responses = cube["responses"]
    finite, broken = responses["finite"].values, responses["strength"].values == 1e39
    assert not finite[broken].any()
    assert finite[~broken].all()
    assert set(responses["text"].values[broken]) == {""}
    valid = cube["generation_match"]["generation_valid"]
    assert valid.sel(strength=1e39).isnull().all()
    assert valid.sel(strength=1.0).notnull().any()


@pytest.mark.slow
def test_responses_of_other_settings_are_refused(whole: Path, tmp_path: Path) -> None:
    for other, said in (
        ({"max_new_tokens": 6}, "max_new_tokens: 5 there, 6 now"),
        ({"generation_layers": "1:3"}, "generation_layers: "),
        ({"temperature": 1.0}, "temperature: 0.0 there, 1.0 now"),
    ):
        with pytest.raises(ValueError, match=said):
            run(whole.parent, plan=replace(tiny.PLAN, **other), resume=True)
    shutil.copytree(whole.parent, tmp_path / "copy")
    third = {"pride": tiny.concept("pride")}
    decoder = tiny.decoder()
    decoder.blocks[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
    for other, said in (
        ({"max_new_tokens": 6}, "max_new_tokens is 5 in one and 6 in another"),
        ({"temperature": 1.0}, r"temperature is 0\.0 in one and 1\.0 in another"),
        ({"temperature": 1.0, "repeats": 2}, "repeats is 1 in one and 2 in another"),
        (
            {"generation_strengths": (-1.0, 1.0)},
            r"has the strengths \[-1\.0, 0\.0, 1\.0, 2\.0\] in one and \[-1\.0, 0\.0, 1\.0\] in",
        ),
    ):
        plan = replace(tiny.PLAN, **other)
        with pytest.raises(ValueError, match=f"honesty and tiny-llama x pride: .*{said}"):
            run(tmp_path / "copy", decoder, plan=plan, concepts=third)


@pytest.mark.slow
def test_answers_are_read_anew_whenever_a_cube_is_made(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards hold texts only, so a cube names the reader that read them, not an earlier one."""
    shutil.copytree(whole.parent, tmp_path / "copy")
    monkeypatch.setattr(answers_module, "READER", "steercube.answers 2")
    monkeypatch.setattr(answers_module, "answer_of", lambda text: "A")
    grid = open_cube(run(tmp_path / "copy", resume=True))["generation_match"]
    assert grid["generation_match"].attrs["reader"] == "steercube.answers 2"
    assert (grid["generation_match"] == (grid["letter"] == "A")).all()

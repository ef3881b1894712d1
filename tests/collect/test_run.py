"""Whole collections on tiny models: the cube, resuming, several processes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from builders import STUDY, needs_study, study_of
from children import FORK, HANGS, write_concepts
from tokenizers import normalizers

from steercube import netcdf
from steercube.analysis.conclusions.tables import conclude
from steercube.analysis.per_cell.reduce import cells as reduce_to_cells
from steercube.analyze import studies
from steercube.answers import answer_of
from steercube.cli import main
from steercube.collect import outcomes as outcomes_module
from steercube.collect import plan as plan_module
from steercube.collect import shards as shards_module
from steercube.collect import sweep as sweep_module
from steercube.collect import unit as unit_module
from steercube.collect.rank import Rank
from steercube.collect.readout import readout_of
from steercube.collect.run import collect, shards_of, write_cube
from steercube.collect.shards import held
from steercube.cube import UNSTEERED, open_cube
from steercube.progress import Stage

run = tiny.collected


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("whole"))


def test_the_cube_holds_what_the_plain_loop_gives(whole: Path) -> None:
    cube, of_vectors = open_cube(whole), netcdf.load(whole.with_name("mine.vectors.nc"))
    decoder = tiny.decoder()
    readout = readout_of(decoder.tokenizer)
    items = tiny.CONCEPTS["humour"].evaluation
    prompts = [readout.prompt(item.prompt) for item in items]
    answers = np.array([[readout.token(i.matching), readout.token(i.other)] for i in items])
    at = {"model": "tiny-llama", "concept": "humour"}
    for direction, name in {"concept": "logit_diff", "random": "logit_diff_random"}.items():
        vector = of_vectors["vector"].sel(at).sel(direction=direction, layer=3)
        cell = sweep_module.Cell(3, 2.0, torch.from_numpy(vector.values))
        plain = tiny.plain_loop(decoder, prompts, answers, [cell], "all")
        for strength, row in {0.0: plain[0], 2.0: plain[1]}.items():
            found = cube[name].sel(at).sel(layer=3, strength=strength)
            np.testing.assert_allclose(found, row[:, 0] - row[:, 1], atol=1e-4)


def test_the_cube_says_what_was_done(whole: Path) -> None:
    cube = open_cube(whole)
    assert cube["layer"].values.tolist() == [1, 2, 3, 4]
    assert cube["strength"].values.tolist() == [-1, 0, 1, 2]
    assert (cube["cell_status"] == 2).all()
    assert (cube["rows_touched"] == 12 * 3 * 3).all()
    assert (cube["added_over_residual"] > 0).all()
    for name in ("vector_norm", "residual_norm", "split_half_cosine", "pairwise_cosine"):
        assert cube[name].notnull().all()
    unsteered = cube.sel(strength=0.0)
    xr.testing.assert_allclose(unsteered["logit_diff"], unsteered["logit_diff_shuffled"])
    assert json.loads(cube.attrs["inputs_sha256"]) == {
        n: c.sha256 for n, c in tiny.CONCEPTS.items()
    }
    manifest = json.loads(whole.with_name("mine.manifest.json").read_text())
    assert manifest["content_sha256"]["mine.nc"] == cube.attrs["content_sha256"]
    assert len(manifest["shards"]) == 2 * (1 + 3 + 2)


def test_every_response_is_in_the_cube_and_read(whole: Path) -> None:
    cube = open_cube(whole)
    assert cube.sizes["response"] == 2 * 8 * (1 + 2 * 3)
    at = {"model": "tiny-llama", "concept": "humour"}
    valid = cube["generation_valid"].sel(at)
    asked = valid.notnull().any(("layer", "strength"))
    assert asked.sum() == 8
    assert np.unique(cube["letter"].sel(concept="humour")[asked.values], return_counts=True)[
        1
    ].tolist() == [4, 4]
    assert valid.sel(layer=[2, 3], sample=asked).notnull().all()
    assert valid.sel(layer=[1, 4]).isnull().all()
    unsteered = cube["response_strength"].values == 0
    assert (cube["response_layer"].values[unsteered] == UNSTEERED).all()
    assert unsteered.sum() == 2 * 8
    for i in range(cube.sizes["response"]):
        row = cube.isel(response=i)
        layer = max(int(row["response_layer"]), 2)
        cell = (
            valid
            if row["response_concept"] == "humour"
            else cube["generation_valid"].sel(model="tiny-llama", concept="honesty")
        )
        found = cell.sel(
            layer=layer, strength=row["response_strength"], sample=row["response_sample"]
        )
        assert found == (answer_of(row["response_text"].item()) != "")


def test_answers_are_counted_by_item_and_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that finds (A) in every other text: shares of three answers, then rates."""
    monkeypatch.setattr(shards_module, "answer_of", lambda text: "A" if len(text) % 2 else "")
    plan = replace(tiny.PLAN, temperature=1.0, repeats=3, generation_samples=12)
    cube = open_cube(run(tmp_path, plan=plan))
    assert set(cube["response_repeat"].values) == {0, 1, 2}
    text = cube["response_text"].values
    assert len(set(text.tolist())) > 0.5 * len(text)
    at = {"response_concept": "humour", "response_layer": 3, "response_strength": 2.0}
    rows = np.logical_and.reduce([cube[name].values == value for name, value in at.items()])
    sample = cube["response_sample"].values[rows]
    counted = np.array([len(t) % 2 for t in text[rows]])
    cell = {"model": "tiny-llama", "concept": "humour", "layer": 3, "strength": 2.0}
    shares = [counted[sample == i].mean() for i in range(12)]
    np.testing.assert_allclose(cube["generation_valid"].sel(cell), shares)
    letter = cube["letter"].sel(concept="humour").values
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
    apart = cube["generation_logit_apart"].sel(layer=[2, 3])
    assert (apart < 1e-4).all()
    assert "of the logit sweep" in repr(cube.steercube)
    assert cube["generation_positions_touched"].sel(layer=[2, 3]).notnull().all()


def test_generation_joins_a_sweep_that_is_there(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, plan=replace(tiny.PLAN, outcomes=("logit",)))
    assert "response_text" not in open_cube(tmp_path / "mine.nc")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("samples-*.nc")}
    out = run(tmp_path, plan=replace(tiny.PLAN, outcomes=("generation",)), resume=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert open_cube(out).identical(open_cube(whole))


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
    plan = replace(tiny.PLAN, max_new_tokens=6)
    decoder = tiny.decoder()
    decoder.blocks[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="max_new_tokens = 5 in tiny-llama x honesty"):
        run(tmp_path / "copy", decoder, plan=plan, concepts=third)


def test_a_cube_whose_responses_have_no_shards_is_not_replaced(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    folder = shards_of(tmp_path / "copy" / "mine.nc")
    next((folder / "tiny-llama" / "honesty").glob("generations-*")).unlink()
    third = {"pride": tiny.concept("pride")}
    plan = replace(tiny.PLAN, outcomes=("logit",))
    with pytest.raises(ValueError, match="tiny-llama x honesty has no generations among"):
        run(tmp_path / "copy", plan=plan, concepts=third)
    alone = tmp_path / "alone"
    alone.mkdir()
    only = replace(tiny.PLAN, outcomes=("generation",))
    out = run(alone, plan=only, concepts={"honesty": tiny.CONCEPTS["honesty"]})
    shutil.rmtree(shards_of(out))
    with pytest.raises(ValueError, match="tiny-llama x honesty has no generations among"):
        run(alone, plan=only, concepts=third)


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
    finite = xr.DataArray(cube["response_finite"].values, dims="response")
    broken = cube["response_strength"].values == 1e39
    assert not finite.values[broken].any()
    assert finite.values[~broken].all()
    assert set(cube["response_text"].values[broken]) == {""}
    asked = cube.sel(layer=[2, 3])["generation_valid"]
    assert asked.sel(strength=1e39).isnull().all()
    assert asked.sel(strength=1.0).notnull().any()


def test_a_model_that_cannot_be_decoded_together_is_refused_at_once(tmp_path: Path) -> None:
    decoder = tiny.decoder("gemma3")
    decoder.model.config.layer_types = ["linear_attention"] * 5
    decoder.blocks[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="--outcomes logit"):
        run(tmp_path, decoder)


def test_responses_alone_make_a_cube_that_says_so(tmp_path: Path) -> None:
    out = run(tmp_path, plan=replace(tiny.PLAN, outcomes=("generation",)))
    cube = open_cube(out)
    assert "never run with logits: tiny-llama" in repr(cube.steercube)
    with pytest.raises(ValueError, match="the cells hold no effect"):
        conclude(study_of(reduce_to_cells(cube, n_resamples=20)))


def test_the_cube_can_be_analysed(whole: Path) -> None:
    assert studies(whole.parent) == ["mine"]
    found = reduce_to_cells(open_cube(whole), n_resamples=50)
    assert found["estimate"].sel(estimand="cohens_d").notnull().all()


def test_a_finished_run_is_not_repeated(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "copy").rglob("samples-*.nc")}
    decoder = tiny.decoder()
    decoder.blocks[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
    out = run(tmp_path / "copy", decoder, resume=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert open_cube(out).identical(open_cube(whole))


def test_a_missing_and_a_damaged_shard_alone_are_made_again(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    shards = sorted((tmp_path / "copy").rglob("samples-*.nc"))
    shards[0].unlink()
    shards[4].write_bytes(shards[4].read_bytes()[:-200])
    before = {p: p.stat().st_mtime_ns for p in shards[1:] if p != shards[4]}
    out = run(tmp_path / "copy", resume=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert open_cube(out).identical(open_cube(whole))


def test_an_interrupted_run_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_saved = 0
    save = outcomes_module.save_shard

    def interrupted(*args: Any, **kwargs: Any) -> None:
        nonlocal n_saved
        n_saved += 1
        if n_saved == 2:
            raise KeyboardInterrupt
        save(*args, **kwargs)

    monkeypatch.setattr(outcomes_module, "save_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    assert len(list(tmp_path.rglob("samples-*.nc"))) == 1
    assert open_cube(run(tmp_path, resume=True)).identical(open_cube(whole))


def test_without_resume_earlier_shards_are_left_alone(whole: Path) -> None:
    with pytest.raises(ValueError, match="holds shards of an earlier run"):
        run(whole.parent)


def test_shards_of_other_settings_are_refused(whole: Path) -> None:
    for other, said in (
        (replace(tiny.PLAN, strengths=(-2.0, 2.0)), r"strengths: \[-1"),
        (replace(tiny.PLAN, positions="answer"), "positions: 'all' there, 'answer' now"),
        (replace(tiny.PLAN, convention="study"), "convention: 'same' there, 'study' now"),
    ):
        with pytest.raises(ValueError, match=said):
            run(whole.parent, plan=other, resume=True)
    with pytest.raises(ValueError, match="dtype: 'float32' there, 'bfloat16' now"):
        run(whole.parent, tiny.decoder(dtype=torch.bfloat16), resume=True)
    other = tiny.concept("envy").evaluation
    changed = {"honesty": replace(tiny.CONCEPTS["honesty"], evaluation=other)}
    with pytest.raises(ValueError, match="concept_sha256: "):
        run(whole.parent, concepts=changed, resume=True)


def test_one_name_is_one_model(tmp_path: Path) -> None:
    """Of one revision, number format and facts, in every concept, and items are of one concept."""
    honesty, humour = ({name: tiny.CONCEPTS[name]} for name in ("honesty", "humour"))
    ours = tiny.decoder()
    ours.blocks[0].register_forward_hook(lambda *_: None)
    first = run(tmp_path, ours, concepts=honesty)
    before = first.read_bytes()
    same_ids = {"humour": replace(tiny.CONCEPTS["honesty"], name="humour")}
    for decoder, concepts, said in (
        (replace(ours, revision="2" * 40), humour, "revision = .* in tiny-llama x honesty"),
        (tiny.decoder(dtype=torch.bfloat16), humour, "dtype = 'float32' in tiny-llama x honesty"),
        (
            replace(ours, facts=replace(ours.facts, training="rl")),
            humour,
            "training = 'rl' in tiny-llama x humour, 'other' in tiny-llama x honesty",
        ),
        (ours, same_ids, "item id 'honesty/eval/000' is in"),
    ):
        with pytest.raises(ValueError, match=said):
            run(tmp_path, decoder, concepts=concepts)
    edited = replace(ours, facts=replace(ours.facts, n_params=7e9))
    with pytest.raises(ValueError, match=r"n_params = 7000000000\.0 in tiny-llama x honesty"):
        run(tmp_path, edited, concepts=honesty, resume=True)
    assert first.read_bytes() == before


def test_consolidate_refuses_units_of_two_models_of_a_name(tmp_path: Path) -> None:
    """Two jobs that ran at once, and saw nothing of each other."""
    ours, copy = tiny.decoder(), tmp_path / "copy"
    theirs = replace(
        ours, revision="2" * 40, facts=replace(ours.facts, training="rl", revision="2" * 40)
    )
    copy.mkdir()
    run(tmp_path, ours, concepts={"honesty": tiny.CONCEPTS["honesty"]})
    run(copy, theirs, concepts={"humour": tiny.CONCEPTS["humour"]})
    shutil.copytree(
        copy / "mine.shards" / ours.name / "humour", tmp_path / "mine.shards" / ours.name / "humour"
    )
    with pytest.raises(ValueError) as error:
        write_cube(tmp_path / "mine.nc")
    for said in ("revision = ", "training = 'rl' in tiny-llama x humour, 'other' in"):
        assert said in str(error.value)


def test_a_model_folder_under_another_name_is_the_same_model(tmp_path: Path) -> None:
    """By the hash of its files, or the hub's commit: refused before anything is run."""
    for revision in ("files:" + "1" * 64, "2" * 40):
        folder = tmp_path / revision[:5]
        folder.mkdir()
        ours = replace(tiny.decoder(), revision=revision)
        out = run(folder, ours, concepts={"honesty": tiny.CONCEPTS["honesty"]})
        before = out.read_bytes()
        renamed = replace(ours, name="link", facts=replace(ours.facts, name="link"))
        half = tiny.decoder(dtype=torch.bfloat16)
        half = replace(half, name="link", revision=revision, facts=renamed.facts)
        for other in (renamed, half):
            other.blocks[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
            for options in ({}, {"resume": True}):
                with pytest.raises(
                    ValueError, match="models 'link' and 'tiny-llama' are the same weights"
                ):
                    run(folder, other, **options)
            other.blocks[0]._forward_hooks.clear()
        assert out.read_bytes() == before
    sound = replace(renamed, revision="3" * 40)
    assert open_cube(run(folder, sound, concepts={"honesty": tiny.CONCEPTS["honesty"]}))[
        "model"
    ].values.tolist() == ["link", "tiny-llama"]


def test_consolidate_refuses_one_model_under_two_names(tmp_path: Path) -> None:
    """Two jobs that ran at once, and saw nothing of each other."""
    ours = replace(tiny.decoder(), revision="files:" + "1" * 64)
    honesty = {"honesty": tiny.CONCEPTS["honesty"]}
    run(tmp_path, ours, concepts=honesty)
    (tmp_path / "apart").mkdir()
    link = replace(ours, name="link", facts=replace(ours.facts, name="link"))
    apart = shards_of(run(tmp_path / "apart", link, concepts=honesty))
    shutil.copytree(apart / "link", shards_of(tmp_path / "mine.nc") / "link")
    with pytest.raises(ValueError, match="models 'link' and 'tiny-llama' are the same weights"):
        write_cube(tmp_path / "mine.nc")


def test_shards_made_again_under_other_versions_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run goes on; its cube names every set of versions, as a merged cube does."""
    plan = replace(tiny.PLAN, outcomes=("logit",))
    honesty = {"honesty": tiny.CONCEPTS["honesty"]}
    out = run(tmp_path, plan=plan, concepts=honesty)
    (alone,) = open_cube(out).attrs["versions"].splitlines()
    earlier = unit_module.version
    monkeypatch.setattr(
        unit_module, "version", lambda name: "9.9" if name == "torch" else earlier(name)
    )
    next(tmp_path.rglob("samples-0000-*.nc")).unlink()
    run(tmp_path, plan=plan, concepts=honesty, resume=True)
    lines = [json.loads(line) for line in open_cube(out).attrs["versions"].splitlines()]
    assert lines == sorted([json.loads(alone), json.loads(alone) | {"torch": "9.9"}], key=str)
    manifest = json.loads(out.with_name("mine.manifest.json").read_text())
    assert "9.9" in manifest["attributes"]["versions"]


def test_a_cube_is_not_replaced_by_a_smaller_one(tmp_path: Path) -> None:
    out = run(tmp_path)
    before = out.read_bytes()
    shutil.move(tmp_path / "mine.shards", tmp_path / "away")
    fewer = {"honesty": tiny.CONCEPTS["honesty"], "humour": tiny.CONCEPTS["humour"]}
    for plan, said in (
        (replace(tiny.PLAN, layers="2:2"), "layers"),
        (replace(tiny.PLAN, strengths=(-1.0, 1.0)), "strengths"),
        (replace(tiny.PLAN, n_items=6), "items"),
    ):
        with pytest.raises(ValueError, match=rf"(?s)replacing .*mine\.nc.*{said}"):
            run(tmp_path, concepts=fewer, plan=plan)
    assert not list((tmp_path / "mine.shards").rglob("*.nc"))
    shutil.rmtree(tmp_path / "mine.shards", ignore_errors=True)
    shutil.move(tmp_path / "away", tmp_path / "mine.shards")
    shutil.rmtree(tmp_path / "mine.shards" / "tiny-llama" / "humour")
    with pytest.raises(ValueError, match="tiny-llama x humour"):
        write_cube(out)
    assert out.read_bytes() == before


def test_a_cube_with_notes_is_not_replaced(whole: Path, tmp_path: Path) -> None:
    """Neither the cube nor its vectors, by neither way to them, however the notes were saved."""
    shutil.copytree(whole.parent, tmp_path / "copy")
    out = tmp_path / "copy" / "mine.nc"
    write_cube(out, report=lambda line: None)
    beside = out.with_name("mine.vectors.nc")
    for path, ways in {
        out: (partial(write_cube, out), partial(run, out.parent, resume=True)),
        beside: (partial(write_cube, out),),
    }.items():
        sound = path.read_bytes()
        noted = netcdf.load(path).assign_attrs(note="mind the gap")
        for save, said in {
            netcdf.save: "its attribute 'note' would be lost",
            xr.Dataset.to_netcdf: "It is not replaced: move it away",
        }.items():
            save(noted, path)
            before = path.read_bytes()
            for way in ways:
                with pytest.raises(ValueError, match=said):
                    way()
            assert path.read_bytes() == before
        path.write_bytes(sound)


def test_the_remains_of_a_cube_are_replaced_with_a_word(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    out = tmp_path / "copy" / "mine.nc"
    out.write_bytes(out.read_bytes()[:5000])
    said: list[str] = []
    write_cube(out, report=said.append)
    assert f"{out}: cannot be read" in said[0]
    assert open_cube(out).identical(open_cube(whole))
    out.write_bytes(out.read_bytes()[:5000])
    run(out.parent, resume=True)
    assert open_cube(out).identical(open_cube(whole))


def test_a_cube_is_named_as_it_was_collected(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`z` would share the shards of `z.nc` and replace its manifest."""
    shutil.copytree(whole.parent, tmp_path / "copy")
    folder = tmp_path / "copy"
    before = {path: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}
    assert main(["consolidate", "--out", str(folder / "mine")]) == 2
    assert "name a .nc file in a folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"must end in \.nc; call it mine\.nc"):
        write_cube(folder / "mine")
    with pytest.raises(ValueError, match=r"must end in \.nc; call it mine\.nc"):
        collect(tiny.decoder(), tiny.CONCEPTS, tiny.PLAN, folder / "mine", resume=True)
    assert {path: path.read_bytes() for path in folder.glob("*") if path.is_file()} == before
    assert main(["consolidate", "--out", str(folder / "mine.nc")]) == 0


def test_units_of_other_settings_do_not_share_a_cube(whole: Path, tmp_path: Path) -> None:
    """Refused before anything is run; and by `consolidate`, where two jobs ran at once."""
    shutil.copytree(whole.parent, tmp_path / "copy")
    third = {"pride": tiny.concept("pride")}
    decoder = tiny.decoder()
    decoder.blocks[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
    for other in ({"positions": "answer"}, {"convention": "study"}, {"strengths": (-1.0, 1.0)}):
        with pytest.raises(ValueError, match=f"{next(iter(other))} = .* in tiny-llama x honesty"):
            run(tmp_path / "copy", decoder, replace(tiny.PLAN, **other), concepts=third)
    apart = tmp_path / "apart"
    apart.mkdir()
    run(apart, plan=replace(tiny.PLAN, positions="answer"), concepts=third)
    shutil.copytree(
        shards_of(apart / "mine.nc") / "tiny-llama" / "pride",
        shards_of(tmp_path / "copy" / "mine.nc") / "tiny-llama" / "pride",
    )
    with pytest.raises(ValueError, match="positions = 'answer' in tiny-llama x pride"):
        write_cube(tmp_path / "copy" / "mine.nc")


def test_concepts_with_and_without_controls_are_analysed_together(tmp_path: Path) -> None:
    run(tmp_path, concepts={"honesty": tiny.CONCEPTS["honesty"]})
    out = run(
        tmp_path, plan=replace(tiny.PLAN, controls=()), concepts={"humour": tiny.CONCEPTS["humour"]}
    )
    cells = reduce_to_cells(open_cube(out), n_resamples=20)
    assert cells["estimate_random"].sel(concept="humour").isnull().all()
    table = conclude(study_of(cells))["controls"]
    assert set(table[table["concept"] == "humour"]["direction"]) == {"concept"}


def test_another_tokenization_is_another_vector(tmp_path: Path) -> None:
    run(tmp_path)
    for path in tmp_path.rglob("samples-*.nc"):
        path.unlink()
    decoder = tiny.decoder()
    decoder.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="pairs_sha256: "):
        run(tmp_path, decoder, resume=True)


def test_what_a_kill_left_half_written_is_cleared_away(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    left = shards_of(tmp_path / "copy" / "mine.nc") / "tiny-llama" / "honesty" / ".x.nc.1.part"
    left.touch()
    run(tmp_path / "copy", resume=True)
    assert not left.exists()


def test_other_chunks_or_items_are_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"samples-0000-0004\.nc is not one of these"):
        run(whole.parent, plan=replace(tiny.PLAN, chunk=4), resume=True)
    with pytest.raises(ValueError, match="concept_sha256: "):
        run(whole.parent, plan=replace(tiny.PLAN, n_items=10), resume=True)


def test_models_and_concepts_meet_in_the_shards(whole: Path, tmp_path: Path) -> None:
    """As independent jobs would: one concept at a time, then another model."""
    for name in ("humour", "honesty"):
        out = run(tmp_path, concepts={name: tiny.CONCEPTS[name]})
    assert open_cube(out).identical(open_cube(whole))
    run(tmp_path, tiny.decoder("qwen3_moe"))
    both = open_cube(out)
    assert both.sizes["model"] == 2
    alone = open_cube(whole)["logit_diff"].squeeze("model", drop=True)
    xr.testing.assert_equal(both["logit_diff"].sel(model="tiny-llama", drop=True), alone)


def test_a_cube_whose_shards_are_gone_is_not_replaced(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole, tmp_path / "mine.nc")
    with pytest.raises(ValueError, match="tiny-llama x humour has no generations among its shards"):
        run(tmp_path, concepts={"honesty": tiny.CONCEPTS["honesty"]})
    assert open_cube(run(tmp_path)).identical(open_cube(whole))


def test_models_that_were_asked_other_items_make_no_cube(whole: Path, tmp_path: Path) -> None:
    """Whichever concept it is; refused at once, and by `consolidate` where two jobs ran at once."""
    changed = replace(tiny.CONCEPTS["humour"], evaluation=tiny.CONCEPTS["humour"].evaluation[:10])
    asked = tiny.CONCEPTS | {"humour": changed}
    shutil.copytree(whole.parent, tmp_path / "copy")
    said = r"concept_sha256 = .* in tiny-(llama|qwen3) x humour"
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "copy", tiny.decoder("qwen3"), concepts=asked)
    (tmp_path / "apart").mkdir()
    alone = run(tmp_path / "apart", tiny.decoder("qwen3"), concepts=asked)
    shutil.copytree(
        shards_of(alone) / "tiny-qwen3", shards_of(tmp_path / "copy" / "mine.nc") / "tiny-qwen3"
    )
    with pytest.raises(ValueError, match=said):
        write_cube(tmp_path / "copy" / "mine.nc")


def test_a_unit_that_is_not_finished_stays_out_of_the_cube(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    unit = shards_of(tmp_path / "copy" / "mine.nc") / "tiny-llama" / "humour"
    next(unit.glob("generations-*")).unlink()
    with pytest.raises(ValueError, match="tiny-llama x humour has no generations among its shards"):
        write_cube(tmp_path / "copy" / "mine.nc", report=lambda line: None)
    (tmp_path / "copy" / "mine.nc").unlink()
    write_cube(tmp_path / "copy" / "mine.nc", report=lambda line: None)
    cube = open_cube(tmp_path / "copy" / "mine.nc")
    assert set(cube["response_concept"].values) == {"honesty"}
    assert cube["logit_diff"].sel(concept="humour", layer=3).notnull().all()
    next(unit.glob("samples-0005*")).unlink()
    (tmp_path / "copy" / "mine.nc").unlink()
    write_cube(tmp_path / "copy" / "mine.nc", report=lambda line: None)
    assert open_cube(tmp_path / "copy" / "mine.nc")["concept"].values.tolist() == ["honesty"]


def test_hooks_that_do_nothing_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny.decoder()
    with torch.no_grad():
        for parameter in decoder.blocks[-1].parameters():
            parameter.zero_()
    # Every difference between the letters is taken out of the stream before it is read.
    for block in decoder.blocks:
        block.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    with pytest.raises(ValueError, match=r"tiny-llama x honesty: no logit moved at strength \+2"):
        run(tmp_path, decoder)
    assert not list(tmp_path.rglob("samples-*.nc"))


def test_two_collectors_of_one_unit_do_not_mix(tmp_path: Path) -> None:
    folder = shards_of(tmp_path / "mine.nc") / "tiny-llama" / "honesty"
    with held(folder), pytest.raises(BlockingIOError, match=f"is held by process {os.getpid()}"):
        run(tmp_path)


def test_two_ranks_share_the_samples(whole: Path, tmp_path: Path) -> None:
    """Rank 1 waits for the vectors of rank 0, and rank 0 for the samples of rank 1."""
    # A shard of rank 1's that was damaged since an earlier run: rank 0 has to wait for it.
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    for path in [*tmp_path.rglob("samples-*.nc"), *tmp_path.rglob("generations-*.nc")]:
        path.unlink() if "0000" in path.name else path.write_bytes(path.read_bytes()[:-200])
    options = {"resume": True}
    ranks = [
        FORK.Process(target=run, args=(tmp_path,), kwargs=options | {"rank": Rank(i, 2)})
        for i in (0, 1)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(HANGS)
        assert process.exitcode == 0
    assert open_cube(tmp_path / "mine.nc").identical(open_cube(whole))


@pytest.mark.slow
def test_accelerate_launches_two_processes(whole: Path, tmp_path: Path) -> None:
    """The README's command, on a saved model; the result is that of a single process."""
    model = tiny.save("llama", tmp_path / "tiny-llama")
    concepts = write_concepts(tmp_path / "concepts", tiny.CONCEPTS)
    arguments = [
        *("collect", "--model", str(model), "--dtype", "float32", "--models", "data/models.toml"),
        *("--concepts", str(concepts), "--layers", "1:4", "--strengths=-1,1,2", "--chunk", "5"),
        *("--controls", "random,shuffled", "--out"),
    ]
    assert main([*arguments, str(tmp_path / "one.nc")]) == 0
    single = open_cube(tmp_path / "one.nc")
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "-m", "steercube", *arguments, str(tmp_path / "two.nc")],
        capture_output=True, text=True, timeout=HANGS,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr[-2000:]
    merged = open_cube(tmp_path / "two.nc")
    # A launcher gives each process fewer threads, so sums are rounded otherwise.
    assert merged.attrs.keys() == single.attrs.keys()
    xr.testing.assert_allclose(merged, single, atol=1e-4)
    xr.testing.assert_allclose(
        merged["logit_diff"].drop_vars(["hf_id", "revision"]),
        open_cube(whole)["logit_diff"].drop_vars(["hf_id", "revision"]),
        atol=1e-4,
    )


@needs_study
def test_the_studys_own_sets_are_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERCUBE_STUDY_DIR", str(STUDY))
    model = tiny.save("qwen3", tmp_path / "tiny")
    out = tmp_path / "mine.nc"
    arguments = [
        *("collect", "--model", str(model), "--dtype", "float32", "--concept-set", "study"),
        *("--concepts", "sycophancy,corrigible", "--pairs", "6", "--items", "10"),
        *("--layers", "2,4", "--convention", "study", "--out", str(out)),
    ]
    assert main(arguments) == 0
    cube = open_cube(out)
    assert cube["concept"].values.tolist() == ["corrigible", "sycophancy"]
    assert (cube["cell_status"] == 2).all()
    sycophancy = cube.sel(concept="sycophancy")
    assert {"A", "B", "C"} <= set(sycophancy["letter"].values)
    assert not sycophancy["item_valid"].values[sycophancy["letter"].values == "C"].any()
    assert "read at the input of block L" in cube.attrs["layer_convention"]


def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "mine.nc")
    base = ["collect", "--models", "data/models.toml", "--out", out]
    for arguments, said in (
        ([*base, "--model", "9B"], "model '9B' is neither an entry (0.6B"),
        ([*base, "--model", "8B", "--concepts", "sloth"], "--concepts sloth: none of coordination"),
        ([*base, "--model", "8B", "--dtype", "int4"], "--dtype int4: is none of"),
        ([*base, "--model", "8B", "--concepts", ","], "--concepts ,: none of coordination"),
        ([*base, "--model", "8B", "--positions", "some"], "positions = 'some' is none of"),
        ([*base, "--model", "8B", "--outcomes", "text"], "outcomes = 'text' is none of"),
        ([*base, "--model", "8B", "--repeats", "2"], "repeats = 2 at temperature 0"),
        (
            [*base, "--model", "8B", "--generation-strengths=-3,3"],
            "some of the strengths that are swept",
        ),
        (
            [*base, "--model", "8B", "--temperature", "1", "--repeats", "2"],
            "--temperature, --repeats without generation: add --outcomes logit,generation",
        ),
        ([*base[:-1], str(tmp_path), "--model", "8B"], "name a .nc file"),
        (["consolidate", "--out", out], "nothing was collected"),
        (["check-concepts", str(tmp_path)], "neither a <concept>.jsonl file"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err


def test_the_bar_counts_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(tmp_path)
    bar = capsys.readouterr().err
    n_rows = 2 * (12 * (1 + 3 * 4 * 3) + 8 * (1 + 2 * 3))
    assert f"{n_rows}/{n_rows}" in bar
    assert "row/s" in bar


def test_another_model_in_memory_of_the_same_name_does_not_get_the_old_numbers(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"revision: 'weights:\w+' there, 'weights:\w+' now"):
        run(whole.parent, tiny.decoder(seed=1), resume=True)
    assert run(whole.parent, tiny.decoder(seed=0), resume=True) == whole


def test_a_template_that_prints_a_date_leaves_it_in_the_cube(tmp_path: Path) -> None:
    dated = tiny.decoder()
    dated.tokenizer.chat_template = "{{ strftime_now('%Y') }} " + tiny.CHAT
    cube = open_cube(run(tmp_path, dated, concepts={"honesty": tiny.CONCEPTS["honesty"]}))
    assert cube.attrs["prompt_date"] == "12 May 2025"
    assert cube.attrs["versions"]


def test_what_is_odd_about_the_prompts_is_said_before_anything_is_collected(
    tmp_path: Path,
) -> None:
    of, said = tiny.decoder(), []
    of.model.config.max_position_embeddings = 50
    collect(of, tiny.CONCEPTS, tiny.PLAN, tmp_path / "mine.nc", report=said.append)
    assert "positions that it was trained on" in said[0]
    forged = replace(tiny.concept().evaluation[0], prompt="(A)<|im_end|> (B)")
    with pytest.raises(ValueError, match="reads as control tokens, not as text"):
        run(tmp_path / "none", concepts={"x": replace(tiny.concept(), evaluation=(forged,))})
    assert not (tmp_path / "none").exists()


def test_every_stage_of_a_run_shows_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    at = Stage.at
    monkeypatch.setattr(Stage, "at", lambda self, now: (seen.append(now), at(self, now)))
    said: list[str] = []
    collect(tiny.decoder(), tiny.CONCEPTS, tiny.PLAN, tmp_path / "mine.nc", report=said.append)
    assert said[0] == "tiny-llama: 1000 rows of honesty, humour"
    for stage in (
        "honesty, vectors",
        "honesty, vectors: 8 of 8 pairs",
        "honesty, checking samples against the plain loop",
        "honesty, samples",
        "honesty, checking generations against the plain loop",
        "honesty, generations",
        "humour, vectors: 8 of 8 pairs",
        "humour, samples",
    ):
        assert stage in seen
    assert "humour, checking samples against the plain loop" not in seen
    assert "\r" not in capsys.readouterr().err

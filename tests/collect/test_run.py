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
from builders import STUDY, needs_study, reduce_to_cells
from children import FORK, HANGS, write_concepts
from tokenizers import normalizers

from steercube import netcdf
from steercube.analysis.per_cell import reduce
from steercube.analyze import primary, studies
from steercube.cli import main
from steercube.collect import outcomes as outcomes_module
from steercube.collect.rank import Rank
from steercube.collect.run import collect, shards_of, write_cube
from steercube.collect.shards import held
from steercube.contract import COSINES, NORMS, STATUS
from steercube.cube import check_cube, open_cube
from steercube.progress import Stage

run = tiny.collected


def test_the_cube_says_what_was_done(whole: Path) -> None:
    cube = open_cube(whole)
    of_logits = {"logit_diff", "logit_diff/random", "logit_diff/shuffled"}
    of_next_token = {"kl_unsteered", "answer_mass", "entropy"}
    assert cube.keys() == of_logits | of_next_token | {"generation_match", "responses", "vectors"}
    for path in of_logits:
        grid = cube[path]
        assert grid["layer"].values.tolist() == [1, 2, 3, 4]
        assert grid["strength"].values.tolist() == [-1, 0, 1, 2]
        assert (grid["cell_status"] == STATUS["complete"]).all()
    for name in (*NORMS, *COSINES):
        assert cube["vectors"][name].notnull().all()
    still = [cube[path]["logit_diff"].sel(strength=0.0) for path in sorted(of_logits)]
    xr.testing.assert_allclose(still[0], still[1].sel(direction="random/0", drop=True))
    xr.testing.assert_allclose(still[0], still[2].sel(direction="shuffled/0", drop=True))
    manifest = json.loads(whole.with_name("mine.manifest.json").read_text())
    assert manifest["content_sha256"]["mine.nc"] == cube.attrs["content_sha256"]
    assert len(manifest["shards"]) == 2 * (1 + 3 + 3 + 2)


def test_the_vectors_are_beside_the_cube(whole: Path) -> None:
    """The concept's own first, each as added at strength 1; random ones follow from seeds."""
    beside, cube = netcdf.load(whole.with_name("mine.vectors.nc")), open_cube(whole)
    assert beside["direction"].values.tolist() == ["own", "shuffled/0"]
    assert beside["vector"].notnull().all()
    lengths = np.sqrt((beside["vector"] ** 2).sum("hidden")).sel(layer=[1, 2, 3, 4])
    known = cube["vectors"]["vector_norm"].reset_coords(drop=True)
    xr.testing.assert_allclose(lengths, known.broadcast_like(lengths), rtol=1e-4)


@pytest.mark.slow
def test_generation_joins_a_sweep_that_is_there(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, plan=replace(tiny.PLAN, outcomes=("logit",)))
    assert not {"responses", "generation_match"} & open_cube(tmp_path / "mine.nc").keys()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("samples-*.nc")}
    out = run(tmp_path, plan=replace(tiny.PLAN, outcomes=("generation",)), resume=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert open_cube(out).identical(open_cube(whole))


def test_a_cube_whose_responses_have_no_shards_is_not_replaced(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    folder = shards_of(tmp_path / "copy" / "mine.nc")
    next((folder / "tiny-llama" / "honesty").glob("generations-*")).unlink()
    third = {"pride": tiny.concept("pride")}
    plan = replace(tiny.PLAN, outcomes=("logit",))
    with pytest.raises(ValueError, match="tiny-llama x honesty would have no generation_match"):
        run(tmp_path / "copy", plan=plan, concepts=third)
    alone = tmp_path / "alone"
    alone.mkdir()
    only = replace(tiny.PLAN, outcomes=("generation",))
    out = run(alone, plan=only, concepts={"honesty": tiny.CONCEPTS["honesty"]})
    shutil.rmtree(shards_of(out))
    with pytest.raises(ValueError, match="tiny-llama x honesty would have no generation_match"):
        run(alone, plan=only, concepts=third)


def test_a_model_that_cannot_be_decoded_together_is_refused_at_once(tmp_path: Path) -> None:
    decoder = tiny.decoder("gemma3")
    decoder.model.config.layer_types = ["linear_attention"] * 5
    decoder.blocks[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="--outcomes logit"):
        run(tmp_path, decoder)


def test_responses_alone_make_a_cube_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tmp_path, plan=replace(tiny.PLAN, outcomes=("generation",)))
    cube = open_cube(out)
    assert set(cube.grids) == {"generation_match"}
    assert "logit_diff" not in repr(cube)
    cells = reduce.cells(cube, n_resamples=20)
    with pytest.raises(ValueError, match="the cells hold no effect"):
        primary(cells)
    assert main(["analyze", "--data", str(tmp_path), "--paper", str(tmp_path / "paper")]) == 2
    assert "the cells hold no effect" in capsys.readouterr().err


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def without_a_seal(groups: dict[str, xr.Dataset], path: Path) -> None:
    """As anybody's script saves them."""
    for group, ds in groups.items():
        ds.to_netcdf(path, group=group or None, mode="a" if group else "w")


@pytest.mark.slow
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
        groups = netcdf.load_groups(path)
        noted = groups | {netcdf.ROOT: groups[netcdf.ROOT].assign_attrs(note="mind the gap")}
        for save, said in {
            netcdf.save: "its attribute 'note' would be lost",
            without_a_seal: "It is not replaced: move it away",
        }.items():
            save(noted, path)
            before = path.read_bytes()
            for way in ways:
                with pytest.raises(ValueError, match=said):
                    way()
            assert path.read_bytes() == before
        path.write_bytes(sound)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_cube_whose_shards_are_gone_is_not_replaced(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole, tmp_path / "mine.nc")
    with pytest.raises(ValueError, match="tiny-llama x humour would have no generation_match"):
        run(tmp_path, concepts={"honesty": tiny.CONCEPTS["honesty"]})
    assert open_cube(run(tmp_path)).identical(open_cube(whole))


def test_two_collectors_of_one_unit_do_not_mix(tmp_path: Path) -> None:
    folder = shards_of(tmp_path / "mine.nc") / "tiny-llama" / "honesty"
    with held(folder), pytest.raises(BlockingIOError, match=f"is held by process {os.getpid()}"):
        run(tmp_path)


@pytest.mark.slow
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
    assert merged.keys() == single.keys()
    here = open_cube(whole)
    for path, grid in merged.items():
        xr.testing.assert_allclose(grid, single[path], atol=1e-4)
        one, two = (ds.drop_vars(["hf_id", "revision"]) for ds in (grid, here[path]))
        xr.testing.assert_allclose(one, two, atol=1e-4)


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
    of_file = open_cube(out)
    cube = of_file["logit_diff"]
    assert cube["concept"].values.tolist() == ["corrigible", "sycophancy"]
    assert (cube["cell_status"] == 2).all()
    sycophancy = cube.sel(concept="sycophancy")
    assert {"A", "B", "C"} <= set(sycophancy["letter"].values)
    assert not sycophancy["item_valid"].values[sycophancy["letter"].values == "C"].any()
    assert "read at the input of block L" in of_file.attrs["layer_convention"]


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
    n_rows = 2 * (12 * (1 + 4 * 3) + 12 * (1 + 2 * 4 * 3) + 8 * (1 + 2 * 3))
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
    assert said[0] == "tiny-llama: 1024 rows of honesty, humour"
    for stage in (
        "honesty, vectors",
        "honesty, vectors: 8 of 8 pairs",
        "honesty, checking samples against the plain loop",
        "honesty, samples",
        "honesty, controls",
        "honesty, checking generations against the plain loop",
        "honesty, generations",
        "humour, vectors: 8 of 8 pairs",
        "humour, samples",
    ):
        assert stage in seen
    for checked in ("honesty, checking controls", "humour, checking samples"):
        assert f"{checked} against the plain loop" not in seen
    assert "\r" not in capsys.readouterr().err


def test_directions_at_layers_of_their_own_are_swept_and_said_not_to_be_compared(
    tmp_path: Path,
) -> None:
    """Their unsteered values must still be those of the concept's own grid."""
    said: list[str] = []
    plan = replace(
        tiny.PLAN, layers="1,3", control_layers="2,4", controls=("random",), outcomes=("logit",)
    )
    out = tmp_path / "mine.nc"
    collect(tiny.decoder(), tiny.CONCEPTS, plan, out, report=said.append)
    assert open_cube(out)["logit_diff/random"]["layer"].values.tolist() == [2, 4]
    assert any("other directions are swept at the layers 2, 4" in line for line in said)
    cube = open_cube(out)
    moved = cube["logit_diff/random"].copy(deep=True)
    moved["logit_diff"].loc[{"strength": 0.0}] += 1
    with pytest.raises(ValueError, match="differs from that of the concepts' own vectors"):
        check_cube(cube.with_tables({"logit_diff/random": moved}))

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import xarray as xr
from builders import reduce_to_cells, study_of

from steercube.analysis.conclusions.tables import conclude
from steercube.collect import unit as unit_module
from steercube.collect.consolidate import consolidate
from steercube.collect.run import shards_of, write_cube
from steercube.contract import CONTRACT
from steercube.cube import open_cube

run = tiny.collected
LOGITS = replace(tiny.PLAN, outcomes=("logit",))


def test_no_shards_are_no_cube(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no model x concept whose shards are all there"):
        consolidate(tmp_path)


def test_the_cube_says_what_it_is(whole: Path) -> None:
    attrs = open_cube(whole).attrs
    assert attrs["Conventions"] == CONTRACT["Conventions"]
    assert attrs["schema_version"] == 2
    inputs = {name: concept.sha256 for name, concept in tiny.CONCEPTS.items()}
    assert json.loads(attrs["inputs_sha256"]) == inputs


@pytest.mark.slow
def test_models_and_concepts_meet_in_the_shards(whole: Path, tmp_path: Path) -> None:
    """As independent jobs would: one concept at a time, then another model."""
    for name in ("humour", "honesty"):
        out = run(tmp_path, concepts={name: tiny.CONCEPTS[name]})
    assert open_cube(out).identical(open_cube(whole))
    run(tmp_path, tiny.decoder("qwen3_moe"))
    both = open_cube(out)
    assert both.labels.sizes["model"] == 2
    alone = open_cube(whole)
    assert both.keys() == alone.keys()
    for path in alone.grids:
        kept = both[path].sel(model=["tiny-llama"])
        xr.testing.assert_equal(kept.drop_vars("depth"), alone[path].drop_vars("depth"))


@pytest.mark.slow
def test_units_of_other_settings_do_not_share_a_cube(whole: Path, tmp_path: Path) -> None:
    """Refused before anything is run; and by `consolidate`, where two jobs ran at once."""
    shutil.copytree(whole.parent, tmp_path / "copy")
    third = {"pride": tiny.concept("pride")}
    decoder = tiny.decoder()
    decoder.blocks[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
    for other, said in (
        (
            {"positions": "answer"},
            "'positions_steered' is 'every position' in one and .the positions",
        ),
        ({"convention": "study"}, "'layer_convention' is 'vector read at the output of block L"),
        (
            {"strengths": (-1.0, 1.0)},
            r"logit_diff: has the strengths \[-1\.0, 0\.0, 1\.0, 2\.0\] in one and \[-1\.0, 0\.0,",
        ),
        ({"seed": 1}, r"'seed' is '\d+' in one and '1' in the other"),
    ):
        named = "tiny-llama x honesty and tiny-llama x pride: "
        with pytest.raises(ValueError, match=f"(?s)one cube with the shards in .*{named}{said}"):
            run(tmp_path / "copy", decoder, replace(tiny.PLAN, **other), concepts=third)
    apart = tmp_path / "apart"
    apart.mkdir()
    run(apart, plan=replace(tiny.PLAN, positions="answer"), concepts=third)
    shutil.copytree(
        shards_of(apart / "mine.nc") / "tiny-llama" / "pride",
        shards_of(tmp_path / "copy" / "mine.nc") / "tiny-llama" / "pride",
    )
    said = "tiny-llama x honesty and tiny-llama x pride: 'positions_steered' is 'every position' in"
    with pytest.raises(ValueError, match=said):
        write_cube(tmp_path / "copy" / "mine.nc")


@pytest.mark.slow
def test_units_of_two_versions_do_not_share_a_cube(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    third = {"pride": tiny.concept("pride")}
    ours = unit_module.__version__
    monkeypatch.setattr(unit_module, "__version__", "99.0")
    with pytest.raises(ValueError, match=f"'steercube' is '{ours}' in one and '99.0' in the other"):
        run(tmp_path / "copy", concepts=third)
    apart = tmp_path / "apart"
    apart.mkdir()
    alone = run(apart, concepts=third)
    shutil.copytree(
        shards_of(alone) / "tiny-llama" / "pride",
        shards_of(tmp_path / "copy" / "mine.nc") / "tiny-llama" / "pride",
    )
    with pytest.raises(ValueError, match=f"'steercube' is '{ours}' in one and '99.0' in the other"):
        write_cube(tmp_path / "copy" / "mine.nc")


@pytest.mark.slow
def test_weights_in_another_folder_are_the_same_by_their_revision(tmp_path: Path) -> None:
    ours = replace(tiny.decoder(), revision="files:" + "1" * 64)
    away = replace(ours, facts=replace(ours.facts, hf_id="/elsewhere/tiny"))
    run(tmp_path, ours, plan=LOGITS, concepts={"honesty": tiny.CONCEPTS["honesty"]})
    humour = {"humour": tiny.CONCEPTS["humour"]}
    assert open_cube(run(tmp_path, away, plan=LOGITS, concepts=humour)).labels.sizes == {
        "model": 1, "concept": 2, "sample": 12,
    }  # fmt: skip


@pytest.mark.slow
def test_one_name_is_one_model(tmp_path: Path) -> None:
    """Of one revision, number format and facts, in every concept, and items are of one concept."""
    honesty, humour = ({name: tiny.CONCEPTS[name]} for name in ("honesty", "humour"))
    ours = tiny.decoder()
    ours.blocks[0].register_forward_hook(lambda *_: None)
    first = run(tmp_path, ours, concepts=honesty)
    before = first.read_bytes()
    same_ids = {"humour": replace(tiny.CONCEPTS["honesty"], name="humour")}
    for decoder, concepts, said in (
        (
            replace(ours, revision="2" * 40),
            humour,
            rf"'revision' differs .* first at tiny-llama: weights:\w+ and {'2' * 40}",
        ),
        (
            tiny.decoder(dtype=torch.bfloat16),
            humour,
            "'dtype' is 'float32' in one and 'bfloat16' in the other",
        ),
        (
            replace(ours, facts=replace(ours.facts, training="rl")),
            humour,
            "'training' differs .* first at tiny-llama: other and rl",
        ),
        (ours, same_ids, r"'item_id' must be unique .* repeated: \['honesty/eval/000'"),
    ):
        decoder.blocks[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
        named = "tiny-llama x honesty and tiny-llama x humour: "
        with pytest.raises(ValueError, match=f"(?s){named}{said}"):
            run(tmp_path, decoder, concepts=concepts)
    edited = replace(ours, facts=replace(ours.facts, n_params=7e9))
    with pytest.raises(ValueError, match=r"'n_params' differs .*: [\d.]+ and 7000000000\.0"):
        run(tmp_path, edited, concepts=honesty, resume=True)
    assert first.read_bytes() == before


@pytest.mark.slow
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
    named = "tiny-llama x honesty and tiny-llama x humour: "
    for said in ("'revision' differs at 1 place", "'training' differs at 1 place"):
        assert named + said in str(error.value)
    assert "first at tiny-llama: other and rl" in str(error.value)


@pytest.mark.slow
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
    both = open_cube(run(folder, sound, concepts={"honesty": tiny.CONCEPTS["honesty"]}))
    assert both.labels["model"].values.tolist() == ["link", "tiny-llama"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_models_that_were_asked_other_items_make_no_cube(whole: Path, tmp_path: Path) -> None:
    """Whichever concept it is; refused at once, and by `consolidate` where two jobs ran at once."""
    changed = replace(tiny.CONCEPTS["humour"], evaluation=tiny.CONCEPTS["humour"].evaluation[:10])
    asked = tiny.CONCEPTS | {"humour": changed}
    shutil.copytree(whole.parent, tmp_path / "copy")
    said = r"tiny-llama x \w+ and tiny-qwen3 x humour: the input 'humour' is '\w+' in one and '\w+'"
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "copy", tiny.decoder("qwen3"), concepts=asked)
    (tmp_path / "apart").mkdir()
    alone = run(tmp_path / "apart", tiny.decoder("qwen3"), concepts=asked)
    shutil.copytree(
        shards_of(alone) / "tiny-qwen3", shards_of(tmp_path / "copy" / "mine.nc") / "tiny-qwen3"
    )
    with pytest.raises(ValueError, match=said):
        write_cube(tmp_path / "copy" / "mine.nc")


@pytest.mark.slow
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
    next(tmp_path.rglob("samples-0000.nc")).unlink()
    run(tmp_path, plan=plan, concepts=honesty, resume=True)
    lines = [json.loads(line) for line in open_cube(out).attrs["versions"].splitlines()]
    assert lines == sorted([json.loads(alone), json.loads(alone) | {"torch": "9.9"}], key=str)
    manifest = json.loads(out.with_name("mine.manifest.json").read_text())
    assert "9.9" in manifest["attributes"]["versions"]


@pytest.mark.slow
def test_a_unit_that_is_not_finished_stays_out_of_the_cube(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    unit = shards_of(tmp_path / "copy" / "mine.nc") / "tiny-llama" / "humour"
    next(unit.glob("generations-*")).unlink()
    with pytest.raises(ValueError, match="tiny-llama x humour would have no generation_match"):
        write_cube(tmp_path / "copy" / "mine.nc", report=lambda line: None)
    out, said = tmp_path / "copy" / "mine.nc", []
    out.unlink()
    write_cube(out, report=said.append)
    assert any(f"left out of the cube: {unit} does not have the generations of" in s for s in said)
    cube = open_cube(out)
    assert set(cube["responses"]["concept"].values) == {"honesty"}
    assert cube["generation_match"]["concept"].values.tolist() == ["honesty"]
    for path in ("logit_diff", "logit_diff/random", "logit_diff/shuffled"):
        assert cube[path]["logit_diff"].sel(concept="humour", layer=3).notnull().all()
    (unit / "controls-0001.nc").unlink()
    out.unlink()
    write_cube(out, report=lambda line: None)
    cube = open_cube(out)
    assert cube["logit_diff"]["concept"].values.tolist() == ["honesty", "humour"]
    assert cube["logit_diff/random"]["concept"].values.tolist() == ["honesty"]
    (unit / "samples-0001.nc").unlink()
    out.unlink()
    write_cube(out, report=lambda line: None)
    assert open_cube(out).labels["concept"].values.tolist() == ["honesty"]


def test_controls_whose_samples_are_not_finished_are_no_less_a_part(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    out = tmp_path / "copy" / "mine.nc"
    for name in tiny.CONCEPTS:
        (shards_of(out) / "tiny-llama" / name / "samples-0001.nc").unlink()
    out.unlink()
    write_cube(out, report=lambda line: None)
    cube, before = open_cube(out), open_cube(whole)
    of_samples = {"logit_diff", "kl_unsteered", "answer_mass", "entropy"}
    assert set(cube.grids) == set(before.grids) - of_samples
    for path in cube.grids:
        assert cube[path].drop_attrs(deep=False).identical(before[path].drop_attrs(deep=False))


def test_a_damaged_shard_of_another_unit_is_refused_before_anything_is_run(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    (tmp_path / "copy" / "mine.nc").unlink()
    damaged = (
        shards_of(tmp_path / "copy" / "mine.nc") / "tiny-llama" / "honesty" / "samples-0000.nc"
    )
    damaged.write_bytes(damaged.read_bytes()[:-200])
    decoder = tiny.decoder()
    decoder.blocks[0].register_forward_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=str(damaged)):
        run(tmp_path / "copy", decoder, concepts={"pride": tiny.concept("pride")})


def test_a_file_that_is_no_shard_is_refused_by_its_name(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent, tmp_path / "copy")
    (tmp_path / "copy" / "mine.nc").unlink()
    folder = shards_of(tmp_path / "copy" / "mine.nc") / "tiny-llama" / "honesty"
    shutil.copy(whole, folder / "generations-0000.nc")
    with pytest.raises(ValueError, match="is not the shard that its name says"):
        run(tmp_path / "copy", concepts={"pride": tiny.concept("pride")})


@pytest.mark.slow
def test_concepts_with_and_without_controls_are_analysed_together(tmp_path: Path) -> None:
    run(tmp_path, concepts={"honesty": tiny.CONCEPTS["honesty"]})
    out = run(
        tmp_path, plan=replace(tiny.PLAN, controls=()), concepts={"humour": tiny.CONCEPTS["humour"]}
    )
    cells = reduce_to_cells(open_cube(out), n_resamples=20)
    others = cells["other_estimate"].sel(estimand="cohens_d")
    drawn = {"random/own", "random/0", "shuffled/own", "shuffled/0"}
    assert set(others["direction"].values) == drawn
    assert others.sel(concept="humour").isnull().all()
    assert others.sel(concept="honesty").notnull().all()
    table = conclude(study_of(cells))["controls"]
    assert set(table[table["concept"] == "humour"]["direction"]) == {"concept"}

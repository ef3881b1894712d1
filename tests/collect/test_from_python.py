"""From Python as from the command line, on a model that is given back as it was."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr

from steercube.collect import from_python
from steercube.collect.from_python import extract, load, sweep
from steercube.collect.plan import Plan
from steercube.collect.run import collect
from steercube.cube import Cube, open_cube

CONCEPT = tiny.concept()
OPTIONS: dict[str, Any] = {
    **{"strengths": (-1, 1), "layers": "1:3", "generation_samples": 4, "max_new_tokens": 3},
    **{"chunk": 5, "generation_layers": "2"},
}


def quiet(line: str) -> None:
    pass


def from_command_line(folder: Path, decoder: Any, **options: Any) -> Cube:
    out = folder / "by-command.nc"
    plan = Plan(**{"outcomes": ("logit", "generation"), **OPTIONS, **options})
    collect(decoder, {CONCEPT.name: CONCEPT}, plan, out, report=quiet)
    return open_cube(out)


@pytest.mark.parametrize("positions", ["all", "answer"])
def test_numbers_are_those_of_the_command_line(positions: str, tmp_path: Path) -> None:
    """To the last bit, attributes and all, with controls and generated answers."""
    decoder = tiny.decoder()
    vectors = extract(decoder, CONCEPT, controls=("random:2", "letter"), n_pairs=6)
    cube = sweep(
        decoder,
        CONCEPT,
        vectors,
        measures=("logit", "generation"),
        positions=positions,
        report=quiet,
        **OPTIONS,
    )
    controls = {"controls": ("random:2", "letter"), "n_pairs": 6, "positions": positions}
    assert cube.identical(from_command_line(tmp_path, decoder, **controls))
    assert {"logit_diff/random", "logit_diff/letter", "generation_match"} <= cube.keys()


def test_without_vectors_they_are_extracted_first(tmp_path: Path) -> None:
    decoder = tiny.decoder()
    options = {"measures": ("logit", "generation"), "controls": "shuffled:2", **OPTIONS}
    cube = sweep(decoder, CONCEPT, report=quiet, **options)
    assert cube.identical(from_command_line(tmp_path, decoder, controls=("shuffled:2",)))


def test_a_vector_of_ones_own_is_swept_as_it_is() -> None:
    """Twice the vector at strength 1 is the vector at strength 2; nothing is said of its pairs."""
    decoder = tiny.decoder()
    vectors = extract(decoder, CONCEPT)
    own = vectors["vector"].sel(direction="own")
    twice = sweep(decoder, CONCEPT, 2 * own, strengths=(-1, 1), layers="2,3", report=quiet)
    usual = sweep(decoder, CONCEPT, vectors, strengths=(-2, 2), layers="2,3", report=quiet)
    np.testing.assert_allclose(
        twice["logit_diff"]["logit_diff"].values, usual["logit_diff"]["logit_diff"].values,
        atol=1e-5,
    )  # fmt: skip
    assert "split_half_cosine" not in twice["vectors"]
    assert "split_half_cosine" in usual["vectors"]
    np.testing.assert_allclose(
        twice["vectors"]["vector_norm"], 2 * usual["vectors"]["vector_norm"], rtol=1e-6
    )
    # A tensor, of any device and dtype, is as good.
    tensor = torch.from_numpy((2 * own).transpose("layer", "hidden").values)
    again = sweep(decoder, CONCEPT, tensor, strengths=(-1, 1), layers="2,3", report=quiet)
    assert again.identical(twice)


def test_a_changed_vector_is_not_taken_for_the_extracted_one() -> None:
    """Whether or not arithmetic keeps the attributes that say where it comes from."""
    decoder = tiny.decoder()
    vectors = extract(decoder, CONCEPT, controls=("random:2",))
    changed = vectors.assign(vector=vectors["vector"] * 3).assign_attrs(vectors.attrs)
    cube = sweep(decoder, CONCEPT, changed, layers="2", report=quiet)
    usual = sweep(decoder, CONCEPT, vectors, layers="2", report=quiet)
    assert "split_half_cosine" not in cube["vectors"]
    assert cube["logit_diff/random"]["direction"].values.tolist() == ["random/0", "random/1"]
    assert not np.allclose(cube["logit_diff"]["logit_diff"], usual["logit_diff"]["logit_diff"])


def test_other_directions_are_swept_beside_it(tmp_path: Path) -> None:
    decoder = tiny.decoder()
    vectors = extract(decoder, CONCEPT)
    values = np.random.default_rng(0).normal(size=tiny.HIDDEN)
    np.savez(tmp_path / "mine.npz", refusal=values)
    options: dict[str, Any] = {"layers": "2,3", "report": quiet}
    in_memory = sweep(decoder, CONCEPT, vectors, directions={"refusal": values}, **options)
    from_file = sweep(decoder, CONCEPT, vectors, directions=tmp_path / "mine.npz", **options)
    assert "logit_diff/refusal" in in_memory
    assert in_memory.identical(from_file)
    with pytest.raises(ValueError, match="direction 'refusal' has the shape"):
        sweep(decoder, CONCEPT, vectors, directions={"refusal": values[:3]}, **options)


def test_with_out_it_is_saved_and_goes_on(tmp_path: Path) -> None:
    decoder, out = tiny.decoder(), tmp_path / "mine.nc"
    vectors = extract(decoder, CONCEPT)
    first = sweep(decoder, CONCEPT, vectors, out=out, report=quiet, **OPTIONS)
    assert open_cube(out).identical(first)
    with pytest.raises(ValueError, match="holds shards of an earlier run"):
        sweep(decoder, CONCEPT, vectors, out=out, report=quiet, **OPTIONS)
    made = sorted(tmp_path.rglob("samples-*.nc"))
    made[0].unlink()
    times = {path: path.stat().st_mtime_ns for path in made[1:]}
    again = sweep(decoder, CONCEPT, vectors, out=out, resume=True, report=quiet, **OPTIONS)
    assert again.identical(first)
    assert {path: path.stat().st_mtime_ns for path in made[1:]} == times
    # Another concept joins the cube, as with the command.
    other = tiny.concept("humour")
    both = sweep(decoder, other, out=out, report=quiet, **OPTIONS)
    assert both["logit_diff"]["concept"].values.tolist() == ["honesty", "humour"]


def test_own_vectors_are_saved_and_resumed_too(tmp_path: Path) -> None:
    decoder, out = tiny.decoder(), tmp_path / "mine.nc"
    own = xr.DataArray(np.ones((5, tiny.HIDDEN)), dims=("layer", "hidden"))
    first = sweep(decoder, CONCEPT, own, out=out, report=quiet, layers="2")
    again = sweep(decoder, CONCEPT, own, out=out, report=quiet, layers="2", resume=True)
    assert first.identical(again)
    with pytest.raises(ValueError, match="own_sha256"):
        sweep(decoder, CONCEPT, 2 * own, out=out, report=quiet, layers="2", resume=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "peft"])
def test_the_model_is_given_back_as_it_was(kind: str) -> None:
    """Mode of every module, gradients, hooks, buffers; and it can still be trained."""
    model = tiny.tuned() if kind == "peft" else tiny.model(kind)
    model.train()
    frozen = next(tiny.blocks_of(model).children())
    frozen.eval()

    def state() -> list[Any]:
        return [
            (m.training, dict(m._buffers), len(m._forward_hooks), len(m._forward_pre_hooks),
             sorted(vars(m)), [p.requires_grad for p in m.parameters(recurse=False)])
            for m in model.modules()
        ]  # fmt: skip

    before = state()
    decoder = from_python.decoder(model, tiny.tokenizer(), name="mine", training="sft")
    assert decoder.facts.training == "sft"
    sweep(decoder, CONCEPT, layers="2,3", measures=("logit", "generation"), max_new_tokens=2,
          report=quiet)  # fmt: skip
    for one, other in zip(before, state(), strict=True):
        assert one[0] == other[0]
        assert all(one[1][name] is other[1][name] for name in one[1])
        assert one[2:] == other[2:]
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_tuned_model_is_another_model() -> None:
    """Its weights, adapter included, are what its revision is a hash of."""
    base = from_python.decoder(tiny.model("llama"), tiny.tokenizer(), name="mine")
    tuned = from_python.decoder(tiny.tuned(), tiny.tokenizer(), name="mine")
    assert base.revision != tuned.revision
    mine, its = (extract(one, CONCEPT)["vector"] for one in (base, tuned))
    assert not np.allclose(mine, its, atol=1e-3)


def test_a_model_is_named_after_its_config() -> None:
    model = tiny.model("llama")
    assert from_python.decoder(model, tiny.tokenizer()).name == "llama"
    model.config._name_or_path = "owner/Some-Model"
    assert from_python.decoder(model, tiny.tokenizer()).name == "Some-Model"


def test_a_model_is_loaded_from_a_folder(tmp_path: Path) -> None:
    decoder = load(str(tiny.save("llama", tmp_path / "small")), dtype="float32")
    assert (decoder.name, decoder.n_layers, decoder.model.training) == ("small", 5, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": (1,)}, "no option is called 'strength'; did you mean 'strengths'"),
        ({"controls": "random:3"}, r"the vectors were extracted with \(\)"),
        ({"measures": "logits"}, "outcomes = 'logits' is none of logit, generation"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    decoder = tiny.decoder()
    vectors = extract(decoder, CONCEPT)
    with pytest.raises(ValueError, match=message):
        sweep(decoder, CONCEPT, vectors, report=quiet, **options)


def test_vectors_that_cannot_be_the_concepts() -> None:
    decoder = tiny.decoder()
    vectors = extract(decoder, CONCEPT)
    with pytest.raises(ValueError, match="these are the vectors of 'honesty'"):
        sweep(decoder, tiny.concept("humour"), vectors, report=quiet)
    with pytest.raises(ValueError, match="has 3 layers of 32 values; the model has 5 blocks"):
        sweep(decoder, CONCEPT, vectors.sel(layer=[1, 2, 3]), report=quiet)
    renamed = vectors.assign_coords(direction=["other"])
    with pytest.raises(ValueError, match="has no direction 'own'"):
        sweep(decoder, CONCEPT, renamed, report=quiet)
    with pytest.raises(ValueError, match="has no dim 'layer'"):
        sweep(decoder, CONCEPT, np.ones(tiny.HIDDEN), report=quiet)


def test_the_signature_shows_every_option() -> None:
    shown = inspect.signature(sweep).parameters
    assert {"strengths", "layers", "positions", "measures", "chunk", "seed"} <= shown.keys()
    assert "options" not in shown
    assert "outcomes" not in shown
    assert shown["strengths"].default == Plan().strengths

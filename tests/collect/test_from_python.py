"""From Python as from the command line, on a model that is given back as it was."""

import inspect
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from steercube.collect import from_python
from steercube.collect.from_python import UNKNOWN, extract, load, sweep
from steercube.collect.plan import Plan
from steercube.collect.run import collect
from steercube.collect.steer import steer
from steercube.cube import Cube, open_cube
from steercube.files import open as open_file

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


@pytest.mark.slow
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
    xr.testing.assert_equal(again["logit_diff"], twice["logit_diff"])
    assert again.attrs["layer_convention"] == UNKNOWN


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
    with pytest.raises(ValueError, match=r"direction 'refusal': the vectors have the shape"):
        sweep(decoder, CONCEPT, vectors, directions={"refusal": values[:3]}, **options)


@pytest.mark.slow
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
        ({"strengths": "one"}, "strengths: 'one' is no number"),
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
    with pytest.raises(ValueError, match="needs one of each of its 5 blocks"):
        sweep(decoder, CONCEPT, vectors.sel(layer=[1, 2, 3]), report=quiet)
    renamed = vectors.assign_coords(direction=["other"])
    with pytest.raises(ValueError, match="no direction is 'own'"):
        sweep(decoder, CONCEPT, renamed, report=quiet)
    same = sweep(decoder, CONCEPT, np.ones(tiny.HIDDEN), layers="2", report=quiet)
    assert same["vectors"]["vector_norm"].values == pytest.approx(tiny.HIDDEN**0.5)


def test_the_signature_shows_every_option() -> None:
    shown = inspect.signature(sweep).parameters
    assert {"strengths", "layers", "positions", "measures", "chunk", "seed"} <= shown.keys()
    assert "options" not in shown
    assert "outcomes" not in shown
    assert shown["strengths"].default == Plan().strengths


@pytest.mark.slow
def test_own_directions_beside_extracted_vectors_are_the_command_lines(tmp_path: Path) -> None:
    decoder = tiny.decoder()
    values = np.random.default_rng(0).normal(size=tiny.HIDDEN)
    np.savez(tmp_path / "mine.npz", refusal=values)
    out = tmp_path / "by-command.nc"
    plan = Plan(layers="2,3", controls=("random:2",))
    collect(decoder, {CONCEPT.name: CONCEPT}, plan, out, directions=tmp_path / "mine.npz",
            report=quiet)  # fmt: skip
    vectors = extract(decoder, CONCEPT, controls="random:2")
    given = {"directions": {"refusal": values}, "layers": [2, 3], "report": quiet}
    for cube in (
        sweep(decoder, CONCEPT, vectors, **given),
        sweep(decoder, CONCEPT, controls=("random:2",), **given),
        sweep(decoder, CONCEPT, vectors, out=out, resume=True, **given),
    ):
        assert cube.identical(open_cube(out))


def test_a_direction_may_not_be_called_as_the_concept() -> None:
    decoder = tiny.decoder()
    with pytest.raises(ValueError, match="'honesty' is the name of the concept itself"):
        sweep(decoder, CONCEPT, directions={"honesty": np.ones(tiny.HIDDEN)}, report=quiet)


def test_labels_of_layers_count_not_their_order() -> None:
    decoder = tiny.decoder()
    vectors = extract(decoder, CONCEPT)
    turned = vectors.isel(layer=slice(None, None, -1))
    swapped = vectors.assign_coords(layer=[4, 3, 2, 1, 0])
    plain, same, other = (
        sweep(decoder, CONCEPT, of, layers="1,3", report=quiet) for of in (vectors, turned, swapped)
    )
    xr.testing.assert_equal(plain["logit_diff"]["logit_diff"], same["logit_diff"]["logit_diff"])
    assert not np.allclose(plain["logit_diff"]["logit_diff"], other["logit_diff"]["logit_diff"])
    assert "split_half_cosine" not in other["vectors"]


def test_vectors_of_another_model_concept_or_pairs_are_refused() -> None:
    """Also where only the DataArray is given, and where two concepts have one name."""
    decoder = tiny.decoder()
    other = from_python.decoder(tiny.model("llama", seed=1), tiny.tokenizer(), name=decoder.name)
    renamed = from_python.decoder(decoder.model, tiny.tokenizer(), name="another")
    humour = replace(tiny.concept("humour"), name="honesty")
    for vectors, message in (
        (extract(other, CONCEPT), "extracted from the revision"),
        (extract(renamed, CONCEPT)["vector"], "extracted from the model 'another'"),
        (extract(decoder, tiny.concept("humour"))["vector"], "the vectors of 'humour'"),
        (extract(decoder, humour), "from other pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep(decoder, CONCEPT, vectors, layers="2", report=quiet)


def test_what_is_recorded_of_a_vector_of_ones_own() -> None:
    decoder = tiny.decoder()
    studys = extract(decoder, CONCEPT, convention="study")
    bare = studys["vector"].drop_attrs().sel(direction="own")
    found = [sweep(decoder, CONCEPT, of, layers="2", report=quiet).attrs["layer_convention"]
             for of in (studys, studys["vector"], bare)]  # fmt: skip
    assert found[0] == found[1] == "vector read at the input of block L, added at its output"
    assert found[2] == UNKNOWN


def test_a_model_that_was_changed_is_refused_until_its_decoder_is_made_again() -> None:
    """By training, by casting, by another adapter: each would be taken for the same model."""
    model = tiny.model("llama")
    decoder = from_python.decoder(model, tiny.tokenizer(), name="mine")
    vectors = extract(decoder, CONCEPT)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    for run in (partial(extract, decoder, CONCEPT), partial(sweep, decoder, CONCEPT, vectors)):
        with pytest.raises(ValueError, match="were changed since this decoder was made"):
            run()
    again = from_python.decoder(model, tiny.tokenizer(), name="mine")
    with pytest.raises(ValueError, match="extracted from the revision"):
        sweep(again, CONCEPT, vectors, report=quiet)
    assert extract(again, CONCEPT)["vector"].shape == vectors["vector"].shape
    model.half()
    with pytest.raises(ValueError, match="weights, dtype or adapters were changed"):
        extract(again, CONCEPT)


def test_each_way_to_use_an_adapter_is_another_model() -> None:
    model = tiny.tuned()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter(
            "b", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, lora_alpha=64)
        )

    def decoder() -> Any:
        return from_python.decoder(model, tiny.tokenizer(), name="mine")

    first = decoder()
    with model.disable_adapter():
        without = decoder()
        with pytest.raises(ValueError, match="adapters were changed"):
            extract(first, CONCEPT)
    model.set_adapter("b")
    second = decoder()
    assert len({first.revision, without.revision, second.revision}) == 3
    for layer in model.modules():
        if hasattr(layer, "base_layer"):
            layer.scaling["b"] *= 2
    assert decoder().revision != second.revision


def test_a_rotary_embedding_that_grows_is_given_back_as_it_was() -> None:
    """Longer prompts than the model was made for change its buffers, and what it says of them."""
    shape = tiny.SHAPE | {"max_position_embeddings": 32}
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    torch.manual_seed(0)
    config = LlamaConfig(**shape, vocab_size=300, rope_parameters=rope)
    model = LlamaForCausalLM(config).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids).logits
    decoder = from_python.decoder(model, tiny.tokenizer(), name="mine")
    first, second = (sweep(decoder, CONCEPT, layers="2", report=quiet) for _ in range(2))
    assert first.identical(second)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


def test_the_model_is_given_back_after_an_error_too() -> None:
    model = tiny.model("llama").train()
    decoder = from_python.decoder(model, tiny.tokenizer(), name="mine")

    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    handle = tiny.blocks_of(model)[3].register_forward_hook(stop)
    for run in (extract, partial(sweep, layers="2", report=quiet)):
        with pytest.raises(KeyboardInterrupt):
            run(decoder, CONCEPT)
        assert all(module.training for module in model.modules())
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 1
        assert "forward" not in vars(model.get_output_embeddings())
    handle.remove()


def test_a_model_that_is_steered_is_not_swept() -> None:
    decoder = tiny.decoder()
    with (
        pytest.raises(ValueError, match="is being steered"),
        steer(decoder, np.ones(tiny.HIDDEN), layer=1),
    ):
        extract(decoder, CONCEPT)
    extract(decoder, CONCEPT)


@pytest.mark.slow
def test_one_of_something_and_lists_of_layers_will_do() -> None:
    decoder = tiny.decoder()
    wanted = sweep(decoder, CONCEPT, strengths=(2.0,), layers="2,3", report=quiet)
    for options in (
        {"strengths": 2, "layers": [2, 3]},
        {"strengths": np.int64(2), "layers": np.array([3, 2])},
        {"strengths": [0, 2], "layers": (2, 3), "measures": "logit"},
        {"strengths": "0,2", "layers": range(2, 4)},
    ):
        assert sweep(decoder, CONCEPT, report=quiet, **options).identical(wanted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: from_python.decoder(d, tiny.tokenizer()), "was given Decoder"),
        (lambda d: from_python.decoder(d.model, None), "and NoneType"),
        (lambda d: from_python.decoder(tiny.tokenizer(), d.model), "sc.decoder takes a loaded"),
        (lambda d: extract(d.model, CONCEPT), "is not a Decoder: sc.decoder"),
        (lambda d: extract(d, "honesty.jsonl"), "str is not a Concept"),
        (lambda d: sweep(CONCEPT, d), "Concept is not a Decoder"),
    ],
)
def test_other_kinds_of_objects_are_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(tiny.decoder())


def test_a_model_without_logits_and_labels_that_cannot_be_are_refused() -> None:
    model = tiny.model("llama")
    with pytest.raises(ValueError, match="has no output embedding"):
        from_python.decoder(model.model, tiny.tokenizer(), name="mine")
    with pytest.raises(ValueError, match="training '' cannot be a name"):
        from_python.decoder(model, tiny.tokenizer(), name="mine", training="")
    with pytest.raises(ValueError, match="dtype = 'fp16' is none of"):
        load("owner/name", dtype="fp16")


def test_lines_go_where_they_are_sent(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    sweep(tiny.decoder(), CONCEPT, layers="2", report=said.append)
    assert any("of the plain loop" in line for line in said)
    assert capsys.readouterr().out == ""


def test_a_decoder_prints_in_a_line() -> None:
    shown = repr(tiny.decoder())
    assert shown.startswith("Decoder 'tiny-llama': llama, 5 blocks of 32")
    assert len(shown.splitlines()) == 1


def test_vectors_from_a_file_are_still_of_their_model_and_concept(tmp_path: Path) -> None:
    decoder, out = tiny.decoder(), tmp_path / "mine.nc"
    cube = sweep(decoder, CONCEPT, layers="2", controls="letter", out=out, report=quiet)
    vectors = open_file(tmp_path / "mine.vectors.nc")
    again = sweep(decoder, CONCEPT, vectors, layers="2", report=quiet)
    for path in ("logit_diff", "logit_diff/letter"):
        xr.testing.assert_equal(again[path]["logit_diff"], cube[path]["logit_diff"])
    assert again.attrs["layer_convention"] == cube.attrs["layer_convention"]
    chosen = vectors.sel(model="tiny-llama", concept="honesty")
    other = from_python.decoder(decoder.model, tiny.tokenizer(), name="another")
    for of in (vectors, chosen, chosen["vector"]):
        with pytest.raises(ValueError, match="extracted from the model 'tiny-llama'"):
            sweep(other, CONCEPT, of, layers="2", report=quiet)
        with pytest.raises(ValueError, match="the vectors of 'honesty'"):
            sweep(decoder, tiny.concept("humour"), of, layers="2", report=quiet)


def test_one_direction_of_what_was_extracted_will_do() -> None:
    decoder = tiny.decoder()
    vectors = extract(decoder, CONCEPT, controls="random:2,letter")
    assert vectors["direction"].values.tolist() == ["own", "random/0", "random/1", "letter"]
    wanted = sweep(decoder, CONCEPT, vectors, layers="2", report=quiet)["logit_diff"]["logit_diff"]
    for part in (vectors.sel(direction="own"), vectors.sel(direction=["own"])):
        cube = sweep(decoder, CONCEPT, part, layers="2", report=quiet)
        assert "logit_diff/random" not in cube
        xr.testing.assert_equal(cube["logit_diff"]["logit_diff"], wanted)


def test_too_few_items_are_said_before_the_sweep() -> None:
    with pytest.warns(UserWarning, match="6 items are too few: effects need 10"):
        sweep(tiny.decoder(), CONCEPT, layers="2", n_items=6, report=quiet)

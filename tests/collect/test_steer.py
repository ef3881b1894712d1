"""`steer` against a ten-line hook, and the plain facts of what it touches."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr

from steercube.collect.from_python import extract
from steercube.collect.readout import readout_of
from steercube.collect.steer import steer

FIVE = ("llama", "qwen3_moe", "gemma3", "gpt2", "bloom")
AT = {1: 1.0, 3: -2.0}


def vectors(seed: int = 0) -> xr.DataArray:
    values = np.random.default_rng(seed).normal(size=(5, tiny.HIDDEN)).astype("float32")
    return xr.DataArray(values, dims=("layer", "hidden"))


def batch(*, side: str = "left", seed: int = 1) -> dict[str, torch.Tensor]:
    """Three prompts of unequal lengths, padded on one side, with their mask."""
    rows = [p.ids for p in tiny.prompts(np.random.default_rng(seed), n=3)]
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[at, where], mask[at, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


class PlainHooks:
    """What anyone would write: a forward hook on each block that adds its vector everywhere."""

    def __init__(self, model: Any) -> None:
        self.handles = []
        for layer, strength in AT.items():
            added = strength * torch.from_numpy(vectors().values[layer])

            def add(_module: Any, _args: Any, out: Any, added: torch.Tensor = added) -> Any:
                return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added

            self.handles.append(tiny.blocks_of(model)[layer].register_forward_hook(add))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("kind", FIVE)
def test_it_equals_a_plain_hook(kind: str, use_cache: bool) -> None:
    """Scores of every generated token, in a batch that is padded on the left."""
    decoder = tiny.decoder(kind)
    how = {
        **{"max_new_tokens": 6, "do_sample": False, "use_cache": use_cache, "pad_token_id": 0},
        **{"return_dict_in_generate": True, "output_logits": True, "eos_token_id": None},
    }
    with steer(decoder, vectors(), layer=list(AT), strength=AT) as steered:
        ours = decoder.model.generate(**batch(), **how)
    hooks = PlainHooks(decoder.model)
    theirs = decoder.model.generate(**batch(), **how)
    hooks.remove()
    plain = decoder.model.generate(**batch(), **how)
    assert torch.equal(ours.sequences, theirs.sequences)
    torch.testing.assert_close(
        torch.stack(ours.logits), torch.stack(theirs.logits), atol=1e-6, rtol=0
    )
    moved = (torch.stack(ours.logits)[0] - torch.stack(plain.logits)[0]).abs().max()
    assert moved > 0.1
    assert steered.to_frame()["passes"].to_dict() == {1: 6, 3: 6}


@pytest.mark.parametrize("kind", FIVE)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(kind: str, side: str) -> None:
    """Each row of a padded batch has the logits that its prompt has alone."""
    decoder, given = tiny.decoder(kind), batch(side=side)
    positions = (given["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    options = {} if kind == "bloom" else {"position_ids": positions}
    with torch.no_grad(), steer(decoder, vectors(), layer=[1, 3]) as steered:
        together = decoder.model(**given, **options).logits
    n_real = int(given["attention_mask"].sum())
    assert steered.to_frame()["positions"].to_dict() == {1: n_real, 3: n_real}
    for row, mask in enumerate(given["attention_mask"].bool()):
        with torch.no_grad(), steer(decoder, vectors(), layer=[1, 3]):
            alone = decoder.model(input_ids=given["input_ids"][row, mask][None]).logits[0]
        torch.testing.assert_close(together[row, mask], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_only_the_answer_is_steered(use_cache: bool) -> None:
    """As a sweep at the positions after the user's turn, in a batch of unequal prompts."""
    decoder = tiny.decoder()
    readout = readout_of(decoder.tokenizer)
    prompts = [readout.prompt(text) for text in ("Is it?", "Is it really so, and why?")]
    width = max(len(p.ids) for p in prompts)
    given = {
        "input_ids": torch.tensor([[0] * (width - len(p.ids)) + list(p.ids) for p in prompts]),
        "attention_mask": torch.tensor(
            [[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts]
        ),
    }
    how = {
        **{"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "use_cache": use_cache},
        **{"return_dict_in_generate": True, "output_logits": True, "eos_token_id": None},
    }
    with steer(decoder, vectors(), layer=2, strength=1.5, positions="answer") as steered:
        ours = decoder.model.generate(**given, **how)
    answers = [len(p.ids) - p.answer_start for p in prompts]
    passes = range(4)
    counted = sum(answers) + 2 * 3 if use_cache else sum(sum(answers) + 2 * n for n in passes)
    assert steered.to_frame().loc[2, "positions"] == counted
    vector = torch.from_numpy(vectors().values[2])
    for row, prompt in enumerate(prompts):
        ids = list(prompt.ids)
        for n, token in enumerate(ours.sequences[row, width:].tolist()):

            def add(_module: Any, _args: Any, out: Any, start: int = prompt.answer_start) -> Any:
                out = out.clone()
                out[:, start:] += 1.5 * vector
                return out

            handle = decoder.blocks[2].register_forward_hook(add)
            with torch.no_grad():
                logits = decoder.model(input_ids=torch.tensor([ids])).logits[0, -1]
            handle.remove()
            torch.testing.assert_close(ours.logits[n][row], logits, atol=1e-4, rtol=0)
            ids.append(token)


def test_the_model_is_left_as_it_was_given() -> None:
    decoder = tiny.decoder()
    decoder.model.train()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks)
             for module in decoder.model.modules()]  # fmt: skip
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(IndexError), steer(decoder, vectors(), layer=1):
        decoder.model(input_ids=ids + 1000)
    assert hooks == [
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in decoder.model.modules()
    ]
    assert decoder.model.training


def test_gradients_flow_through_it() -> None:
    model = tiny.model("llama")
    with steer(model, vectors(), layer=[0, 4]):
        model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    first = tiny.blocks_of(model)[0].self_attn.q_proj.weight.grad
    assert first is not None
    assert first.abs().sum() > 0


def test_a_peft_model_is_steered_under_generate() -> None:
    model = tiny.tuned()
    given = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    with steer(model, vectors(), layer=2) as steered:
        model.generate(**batch(), **given)
    n_real = int(batch()["attention_mask"].sum())
    assert steered.to_frame()["positions"].to_dict() == {2: n_real + 3}


def test_the_receipt_counts_what_changed() -> None:
    """A vector of zeros, and one too small for half precision, touch nothing."""
    decoder = tiny.decoder()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with steer(decoder, np.zeros(tiny.HIDDEN), layer=1) as nothing:
        assert "was not run" in repr(nothing)
        decoder.model(input_ids=ids)
    assert nothing.to_frame().loc[1, "positions"] == 0
    half = tiny.model("llama", dtype=torch.bfloat16)
    with steer(half, np.full(tiny.HIDDEN, 1e-6), layer=4) as lost:
        half(input_ids=ids)
    assert lost.to_frame().loc[4, "positions"] < 6
    with steer(decoder, vectors(), layer=1) as some:
        decoder.model(input_ids=ids)
    assert some.to_frame().loc[1, ["passes", "rows", "positions"]].tolist() == [1, 2, 6]
    assert "layer 1: 6 positions in 1 forward passes" in repr(some)


def test_an_extracted_direction_is_taken_by_name() -> None:
    decoder = tiny.decoder()
    found = extract(decoder, tiny.concept(), controls=("random:2",))
    ids = torch.tensor([[1, 2, 3]])
    outputs = {}
    for direction in ("own", "random/1"):
        with torch.no_grad(), steer(decoder, found, layer=2, direction=direction):
            outputs[direction] = decoder.model(input_ids=ids).logits
        raw = found["vector"].sel(direction=direction).values
        with torch.no_grad(), steer(decoder, torch.from_numpy(raw), layer=2):
            assert torch.equal(outputs[direction], decoder.model(input_ids=ids).logits)
    assert not torch.equal(outputs["own"], outputs["random/1"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": 5}, "layer 5 is not among the 5 blocks"),
        ({"layer": [1, 2], "strength": {1: 1.0}}, "layer 2 has no strength"),
        ({"layer": 1, "strength": {1: 1.0, 3: 1.0}}, "strength for layer 3"),
        ({"layer": 1, "strength": float("nan")}, "strength of layer 1 is not finite"),
        ({"layer": 1, "positions": "answers"}, "positions = 'answers' is none of all, answer"),
    ],
)
def test_what_cannot_be_steered_is_refused(given: dict[str, Any], message: str) -> None:
    decoder = tiny.decoder()
    with pytest.raises(ValueError, match=message), steer(decoder, vectors(), **given):
        pass


def test_vectors_that_do_not_fit_are_refused() -> None:
    decoder = tiny.decoder()
    with pytest.raises(ValueError, match=r"shape \(7,\)"), steer(decoder, np.ones(7), layer=1):
        pass
    found = extract(decoder, tiny.concept())
    with (
        pytest.raises(ValueError, match="direction 'own_' is none of own"),
        steer(decoder, found, layer=1, direction="own_"),
    ):
        pass


def test_an_answer_needs_a_users_turn() -> None:
    decoder = tiny.decoder()
    with (
        pytest.raises(ValueError, match="row 0 of this batch does not have the end"),
        steer(decoder, vectors(), layer=1, positions="answer"),
    ):
        decoder.model(input_ids=torch.tensor([[1, 2, 3]]))
    with (
        pytest.raises(ValueError, match="needs a tokenizer with a chat template"),
        steer(decoder.model, vectors(), layer=1, positions="answer"),
    ):
        pass

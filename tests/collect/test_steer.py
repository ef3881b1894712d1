"""`steer` against a ten-line hook, and the plain facts of what it touches."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from transformers import (
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)

from steercube.collect.decoder import decoder_of
from steercube.collect.from_python import extract
from steercube.collect.readout import readout_of, turns_of
from steercube.collect.steer import steer
from steercube.files import open as open_file

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
        ({"layer": 1, "strength": float("nan")}, "strength of layer 1 is nan"),
        ({"layer": 0.5}, "layer 0.5 is not among the 5 blocks"),
        ({"layer": []}, "no layer is given"),
        ({"layer": 1, "strength": [1.0]}, r"strength of layer 1 is \[1.0\]"),
        ({"layer": 1, "direction": "letter"}, "direction 'letter' is none of own"),
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
        pytest.raises(ValueError, match="row 0 of this batch does not end a user's turn"),
        steer(decoder, vectors(), layer=1, positions="answer"),
    ):
        decoder.model(input_ids=torch.tensor([[1, 2, 3]]))
    with (
        pytest.raises(ValueError, match="needs a tokenizer with a chat template"),
        steer(decoder.model, vectors(), layer=1, positions="answer"),
    ):
        pass


def chat(*texts: str, open_answer: bool = True) -> str:
    roles = ("user", "assistant")
    turns = [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]
    return tiny.tokenizer().apply_chat_template(
        turns, tokenize=False, add_generation_prompt=open_answer
    )


def ids_of(text: str) -> torch.Tensor:
    return torch.tensor([tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]])


def steered_positions(decoder: Any, run: Any) -> int:
    with steer(decoder, vectors(), layer=2, positions="answer") as steered:
        run()
    return int(steered.to_frame().loc[2, "positions"])


def test_a_prompt_in_the_cache_changes_nothing() -> None:
    """One's own prefix cache, a second turn on an old cache: only what follows the user's text."""
    decoder, first, second = tiny.decoder(), "Is it so?", "And why is it?"
    whole = ids_of(chat(first))
    want = steered_positions(decoder, lambda: decoder.model(whole))
    past = DynamicCache(config=decoder.model.config)
    decoder.model(whole[:, :10], past_key_values=past)
    run = partial(decoder.model, whole[:, 10:], past_key_values=past)
    assert steered_positions(decoder, run) == want
    two = ids_of(chat(first, "It is.", second))
    past = DynamicCache(config=decoder.model.config)
    n_first = whole.shape[1]

    def conversation() -> None:
        decoder.model(two[:, :n_first], past_key_values=past)
        decoder.model(two[:, n_first:], past_key_values=past)

    assert steered_positions(decoder, conversation) == 2 * want


def test_the_last_turn_counts_and_must_have_ended() -> None:
    decoder = tiny.decoder()
    one, two = (ids_of(chat(*texts)) for texts in (["Is it?"], ["Why?", "So.", "Is it?"]))
    alone = steered_positions(decoder, lambda: decoder.model(one))
    assert steered_positions(decoder, lambda: decoder.model(two)) == alone
    unended = ids_of(chat("Why?", "So.", "Is it?", open_answer=False))
    with pytest.raises(ValueError, match="does not end a user's turn"):
        steered_positions(decoder, lambda: decoder.model(unended))
    answered = ids_of(chat("Is it?", "It is so.", open_answer=False))
    text = chat("Is it?", "It is so.", open_answer=False)
    n_answer = len(ids_of(text[text.index("?") + 1 :])[0])
    assert steered_positions(decoder, lambda: decoder.model(answered)) == n_answer


def test_what_is_decoded_in_pieces_is_still_the_answer() -> None:
    """Prompt lookup runs several tokens of an answer at a time."""
    decoder, ids = tiny.decoder(), ids_of(chat("Is it so, is it so, is it so?"))
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with steer(decoder, vectors(), layer=2, positions="answer"):
        one_by_one = decoder.model.generate(ids, **how)
        in_pieces = decoder.model.generate(ids, prompt_lookup_num_tokens=3, **how)
    assert torch.equal(one_by_one, in_pieces)


def test_a_compiled_model_is_steered_too() -> None:
    """Also one that ran before, whose graph does not know of the hook."""
    decoder, ids = tiny.decoder(), torch.tensor([[1, 2, 3]])
    with torch.no_grad(), steer(decoder, vectors(), layer=2):
        wanted = decoder.model(ids).logits
    compiled = torch.compile(decoder.model, backend="eager")
    with torch.no_grad():
        before = compiled(ids).logits
        with steer(decoder, vectors(), layer=2):
            found = compiled(ids).logits
        after = compiled(ids).logits
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(before, after)
    assert (found - before).abs().max() > 0.1


def test_labels_of_layers_count_not_their_order() -> None:
    decoder, ids = tiny.decoder(), torch.tensor([[1, 2, 3]])
    labelled = vectors().assign_coords(layer=range(5))
    out = []
    for given in (labelled, labelled.isel(layer=slice(None, None, -1)), labelled.T):
        with torch.no_grad(), steer(decoder, given, layer=1):
            out.append(decoder.model(ids).logits)
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    with pytest.raises(ValueError, match="needs one of each"), steer(
        decoder, labelled.isel(layer=[0, 1]), layer=1
    ):  # fmt: skip
        pass


def test_the_vectors_of_a_sweep_are_taken_from_their_file(tmp_path: Path) -> None:
    decoder = tiny.decoder()
    out = tiny.collected(tmp_path, decoder)
    beside = open_file(out.with_name("mine.vectors.nc"))
    own = extract(decoder, tiny.CONCEPTS["honesty"])
    ids, found = torch.tensor([[1, 2, 3]]), []
    for given in (
        own,
        beside.sel(model="tiny-llama", concept="honesty"),
        beside.sel(concept=["honesty"]),
    ):
        with torch.no_grad(), steer(decoder, given, layer=2):
            found.append(decoder.model(ids).logits)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    with pytest.raises(ValueError, match="vectors of several: choose one"), steer(
        decoder, beside, layer=2
    ):  # fmt: skip
        pass


def test_a_mask_as_long_as_the_cache_will_be_is_read_where_the_pass_is() -> None:
    decoder, ids = tiny.decoder(), torch.tensor([[1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    cache = StaticCache(config=decoder.model.config, max_cache_len=8)
    with torch.no_grad(), steer(decoder, vectors(), layer=2) as steered:
        decoder.model(ids, attention_mask=mask, past_key_values=cache)
    assert steered.to_frame().loc[2, "positions"] == 4


def test_a_positional_mask_is_seen() -> None:
    decoder, given = tiny.decoder(), batch()
    with torch.no_grad(), steer(decoder, vectors(), layer=2) as steered:
        decoder.model(given["input_ids"], given["attention_mask"])
    assert steered.to_frame().loc[2, "positions"] == int(given["attention_mask"].sum())


def test_a_model_of_images_and_text_is_steered_after_the_users_turn() -> None:
    """Its text decoder is given embeddings; only the whole model sees token ids."""
    text = tiny.CONFIGS["gemma3"](**tiny.SHAPE, vocab_size=300)
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config=text.to_dict(), vision_config=sight, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config).eval()
    decoder = decoder_of(model, tiny.tokenizer(), name="sees")
    ids = ids_of(chat("Is it so?"))
    readout = readout_of(tiny.tokenizer()).prompt("Is it so?")
    found = steered_positions(decoder, lambda: model(input_ids=ids))
    assert found > 0
    assert found == ids.shape[1] - turns_of(tiny.tokenizer()).answer_start(ids[0].tolist())
    assert readout.answer_start == turns_of(tiny.tokenizer()).answer_start(list(readout.ids))


def test_a_vector_that_half_precision_cannot_hold_is_refused() -> None:
    half = tiny.model("llama", dtype=torch.float16)
    with (
        pytest.raises(ValueError, match=r"layer 1 is too large for torch\.float16"),
        steer(half, np.full(tiny.HIDDEN, 1e6), layer=1),
    ):
        half(torch.tensor([[1, 2, 3]]))
    with (
        pytest.raises(ValueError, match="not finite"),
        steer(half, np.full(tiny.HIDDEN, np.nan), layer=1),
    ):
        pass


def test_encoder_decoders_and_wrappers_are_refused() -> None:
    encoder_decoder = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    )
    for model in (encoder_decoder, torch.nn.DataParallel(tiny.model("llama"))):
        with (
            pytest.raises(ValueError, match="is not a decoder-only transformers model"),
            steer(model, np.ones(16), layer=1),
        ):
            pass


def test_the_receipt_says_how_large_the_vector_is() -> None:
    decoder, ids = tiny.decoder(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    kept: list[torch.Tensor] = []
    handle = decoder.blocks[2].register_forward_hook(lambda *given: kept.append(given[2].clone()))
    with torch.no_grad():
        decoder.model(ids)
    handle.remove()
    with torch.no_grad(), steer(decoder, vectors(), layer=2, strength=0.5) as steered:
        decoder.model(ids)
    ratio = 0.5 * np.linalg.norm(vectors().values[2]) / kept[0].norm(dim=-1).numpy()
    assert steered.to_frame().loc[2, "added_over_residual"] == pytest.approx(ratio.mean(), rel=1e-4)


def test_a_thinking_template_ends_the_turn_with_and_without_its_thought() -> None:
    """An answer under way may follow `<think></think>`, or nothing of the kind."""
    turns = turns_of(tiny.tokenizer())
    for options in ({"enable_thinking": False}, {}):
        text = tiny.tokenizer().apply_chat_template(
            [{"role": "user", "content": "Is it?"}], tokenize=False, add_generation_prompt=True,
            **options,
        )  # fmt: skip
        ids = ids_of(text)[0].tolist()
        assert turns.answer_start(ids) == len(ids_of(text[: text.index("?") + 1])[0])

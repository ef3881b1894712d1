"""Tiny random models of several architectures, tokenizers of two kinds, and the plain loop."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    BloomConfig,
    CodeGenConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    XGLMConfig,
)

from steercube.collect.decoder import Decoder, decoder_of
from steercube.collect.hooks import Cell
from steercube.collect.plan import Plan
from steercube.collect.readout import Prompt
from steercube.collect.run import collect
from steercube.concepts import Concept, Question

HIDDEN = 32
SHAPE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FEW_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
ALTERNATING = ["sliding_attention", "sliding_attention", "full_attention"] * 2
CONFIGS: dict[str, Any] = {
    "llama": lambda **shape: LlamaConfig(**shape),
    "qwen3": lambda **shape: Qwen3Config(**shape),
    "qwen3_moe": lambda **shape: Qwen3MoeConfig(**(EXPERTS | shape)),
    "gpt_oss": lambda **shape: GptOssConfig(
        **(FEW_EXPERTS | shape), sliding_window=8, layer_types=ALTERNATING[:5], rope_parameters=ROPE
    ),
    # Windows shorter than the prompts, so that what they hide matters.
    "gemma3": lambda **shape: Gemma3TextConfig(
        **shape, sliding_window=8, query_pre_attn_scalar=8, layer_types=ALTERNATING[:5]
    ),
    "mistral": lambda **shape: MistralConfig(**shape, sliding_window=8),
    "qwen2": lambda **shape: Qwen2Config(**shape),
}
OLDER: dict[str, Any] = {
    "gpt2": lambda **shape: GPT2Config(**shape),
    "gptj": lambda **shape: GPTJConfig(**shape, rotary_dim=4),
    "gpt_neo": lambda **shape: GPTNeoConfig(
        **shape,
        window_size=8,
        attention_types=[[["global"], 1], [["local"], shape["num_hidden_layers"] - 1]],
    ),
    "codegen": lambda **shape: CodeGenConfig(**shape, rotary_dim=4),
    "bloom": lambda **shape: BloomConfig(**shape),
    "mpt": lambda **shape: MptConfig(**shape, max_seq_len=shape["max_position_embeddings"]),
    "xglm": lambda **shape: XGLMConfig(**shape, ffn_dim=48),
    "opt": lambda **shape: OPTConfig(**shape, ffn_dim=48),
}
"""Made before Llama: positions are learned, computed or ALiBi's, and some blocks return tuples."""
CONFIGS |= OLDER
ARCHITECTURES = tuple(CONFIGS)

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def tokenizer(*, letters_joined: bool = False, chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte; with `letters_joined`, also `(A` and `(B` as in Qwen3's vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("(", "A"), ("(", "B")] if letters_joined else []
    words = [*alphabet, *("".join(pair) for pair in merges)]
    core = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    found = PreTrainedTokenizerFast(tokenizer_object=core)
    found.chat_template = CHAT if chat else None
    return found


def model(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **shape: int) -> Any:
    """A random model of five blocks, its weights large enough that steering moves its logits."""
    torch.manual_seed(seed)
    made = Auto.from_config(CONFIGS[kind](**(SHAPE | shape), vocab_size=300), dtype=dtype)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.25)
    return made.eval()


def tuned(kind: str = "llama") -> Any:
    """The model as PEFT holds it, with a LoRA adapter that changes what it computes."""
    options = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
    with warnings.catch_warnings():
        # peft 0.21 asks transformers in words that transformers 5.23 gives up.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model(kind), LoraConfig(**options))


def blocks_of(made: Any) -> Any:
    """The list of a model's decoder blocks, by the names that transformers gives it."""
    within = made.get_decoder()
    return next(
        getattr(within, name) for name in ("layers", "h", "blocks") if hasattr(within, name)
    )


def decoder(kind: str = "llama", **options: Any) -> Decoder:
    joined = options.pop("letters_joined", False)
    made = model(kind, **options).requires_grad_(False)
    return decoder_of(made, tokenizer(letters_joined=joined), name=f"tiny-{kind}")


def save(kind: str, folder: Path, **shape: int) -> Path:
    """The model and its tokenizer as a folder that any user could point at."""
    model(kind, **shape).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def concept(name: str = "honesty", *, n_pairs: int = 8, n_items: int = 12) -> Concept:
    def question(split: str, i: int) -> Question:
        letter = "AB"[i % 2]
        text = f"{name} {split} {i} {'why ' * (i % 5)}?\n\nChoices:\n (A) yes\n (B) no"
        return Question(f"{name}/{split}/{i:03d}", text, letter, "BA"[i % 2])

    return Concept(
        name,
        tuple(question("train", i) for i in range(n_pairs)),
        tuple(question("eval", i) for i in range(n_items)),
        source="tests",
    )


def prompts(rng: np.random.Generator, *, n: int = 6, vocabulary: int = 300) -> list[Prompt]:
    """Random ids of unequal lengths, some of them longer than the windows."""
    made = []
    for _ in range(n):
        length = int(rng.integers(9, 31))
        ids = tuple(rng.integers(0, vocabulary, length).tolist())
        made.append(Prompt(ids, answer_start=length - int(rng.integers(1, 5))))
    return made


def adding(cell: Cell, start: int) -> Callable[..., Any]:
    """A forward hook that adds the cell's vector from position `start` on, or at a lone token."""

    def add(_module: Any, _args: Any, output: Any) -> Any:
        hidden, *others = output if isinstance(output, tuple) else (output,)
        hidden = hidden.clone()
        hidden[:, start if hidden.shape[1] > 1 else 0 :] += cell.strength * cell.vector
        return (hidden, *others) if isinstance(output, tuple) else hidden

    return add


def plain_loop(
    of: Decoder,
    prompts: Sequence[Prompt],
    answers: np.ndarray,
    cells: Sequence[Cell],
    positions: str,
) -> np.ndarray:
    """(1 + cells, prompt, answer): one unpadded full forward for each cell and prompt."""
    blocks = blocks_of(of.model)
    out = np.zeros((1 + len(cells), *answers.shape))
    for row, cell in enumerate([None, *cells]):
        for column, prompt in enumerate(prompts):
            start = 0 if positions == "all" else prompt.answer_start
            handle = blocks[cell.layer].register_forward_hook(adding(cell, start)) if cell else None
            with torch.no_grad():
                logits = of.model(input_ids=torch.tensor([prompt.ids])).logits[0, -1]
            if handle:
                handle.remove()
            out[row, column] = logits.log_softmax(-1)[answers[column]].numpy()
    return out


CONCEPTS = {name: concept(name) for name in ("honesty", "humour")}
PLAN = Plan(
    layers="1:4",
    strengths=(-1.0, 1.0, 2.0),
    controls=("random", "shuffled"),
    chunk=5,
    outcomes=("logit", "generation"),
    generation_layers="2:3",
    generation_samples=8,
    max_new_tokens=5,
)


def collected(folder: Path, of: Decoder | None = None, plan: Plan = PLAN, **options: Any) -> Path:
    """The cube `mine.nc` in `folder`; here, because a process of its own can import this module."""
    out = folder / "mine.nc"
    concepts = options.pop("concepts", CONCEPTS)
    quiet = {"report": lambda line: None}
    collect(of or decoder(), concepts, plan, out, **(quiet | options))
    return out

"""Checks, before a run, that a model reads the prompts that were written.

An error would make every number wrong, so it ends the run before anything is collected. A warning
is about prompts that can be measured, but perhaps not as intended.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from steercube.collect.decoder import Decoder
from steercube.collect.readout import THOUGHTS, Prompt, Readout
from steercube.concepts import Concept, Question
from steercube.schema import raise_if_any


@dataclass(frozen=True)
class _ToCheck:
    """A question, its prompt for the readout, and how many tokens may follow it."""

    question: Question
    prompt: Prompt
    n_more: int

    @property
    def name(self) -> str:
        """The question's file and line where known, else its id."""
        return self.question.where or self.question.id

    @property
    def n_tokens(self) -> int:
        """The largest number of positions that may be run."""
        return len(self.prompt.ids) + self.n_more


def check_prompts(
    decoder: Decoder, readout: Readout, concepts: Iterable[Concept], *, n_new_tokens: int
) -> list[str]:
    """Warnings about the prompts of these concepts, one line each.

    `n_new_tokens` are generated after each evaluation item, 0 without generation.

    Raises ValueError that lists prompts with a control token in their text, with a token beyond
    the model's embedding, or that needs more positions than the model has.
    """
    prompts = [
        _ToCheck(question, readout.prompt(question.prompt), n_more)
        for concept in concepts
        for questions, n_more in ((concept.train, 1), (concept.evaluation, n_new_tokens))
        for question in questions
    ]
    problems = [
        *_control_tokens(decoder.tokenizer, prompts),
        *_unknown_tokens(decoder, prompts),
        *_beyond(_positions_of(decoder.model), prompts, "positions that the model has"),
    ]
    raise_if_any(problems, what=f"the prompts of {decoder.name}")
    rotary = getattr(decoder.model.config.get_text_config(), "max_position_embeddings", None)
    warnings = [
        *_beyond(rotary, prompts, "positions that it was trained on (max_position_embeddings)"),
        *_without_bos(decoder, prompts),
    ]
    return [f"warning: {decoder.name}: {warning}" for warning in warnings]


def _control_tokens(tokenizer: Any, prompts: Sequence[_ToCheck]) -> Iterator[str]:
    """Errors for texts that would end the user's turn, or open a thought, inside a question."""
    control = {str(token) for token in tokenizer.all_special_tokens}
    control |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    control |= {tag for pair in THOUGHTS.items() for tag in pair} & set(tokenizer.get_vocab())
    for one in prompts:
        if tokens := sorted(token for token in control if token and token in one.question.prompt):
            yield (
                f"{one.name}: its text holds {', '.join(map(repr, tokens))}, which the tokenizer "
                "reads as control tokens, not as text; reword it"
            )


def _unknown_tokens(decoder: Decoder, prompts: Sequence[_ToCheck]) -> Iterator[str]:
    """An error for token ids without a row in the embedding: the tokenizer is another model's."""
    rows = decoder.model.get_input_embeddings().num_embeddings
    largest = max(prompts, key=lambda one: max(one.prompt.ids))
    if max(largest.prompt.ids) >= rows:
        yield (
            f"{largest.name}: has the token {max(largest.prompt.ids)}, but the model's embedding "
            f"has {rows} rows and its tokenizer {len(decoder.tokenizer)} tokens: the tokenizer is "
            "another model's"
        )


def _beyond(limit: int | None, prompts: Sequence[_ToCheck], which: str) -> Iterator[str]:
    """A line on the prompts that need more than `limit` positions, if any, naming the longest."""
    too_long = [one for one in prompts if limit is not None and one.n_tokens > limit]
    if too_long:
        longest = max(too_long, key=lambda one: one.n_tokens)
        yield (
            f"{len(too_long)} prompt(s) need more than the {limit} {which}; the longest is "
            f"{longest.name} with {longest.n_tokens} tokens. Leave them out or shorten them"
        )


def _positions_of(model: Any) -> int | None:
    """How many positions a model has that keeps something for each of them; None with RoPE.

    A learned embedding (GPT-2), rotary angles in a table (GPT-J), a bias of fixed length (MPT).
    """
    words, decoder = model.get_input_embeddings(), model.get_decoder()
    learned = [
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Embedding) and module is not words and _is_position_table(name)
    ]
    computed = [len(b) for name, b in decoder.named_buffers() if _is_position_table(name)]
    lengths = [getattr(model.config.get_text_config(), name, None) for name in BIAS_LENGTHS]
    return min([*learned, *computed, *filter(None, lengths)], default=None)


def _is_position_table(name: str) -> bool:
    return name.split(".")[-1] in POSITION_TABLES


POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings", "embedding_positions")
"""What transformers calls a table of positions: GPT-2; OPT, BioGPT and GPT-J; BERT-like models."""
BIAS_LENGTHS = ("max_seq_len",)
"""What a config calls the length of a bias that is made for so many positions (MPT)."""


def _without_bos(decoder: Decoder, prompts: Sequence[_ToCheck]) -> Iterator[str]:
    """A warning where no prompt begins with BOS, with which all training texts may have begun."""
    bos = decoder.tokenizer.bos_token_id
    if bos is not None and all(one.prompt.ids[0] != bos for one in prompts):
        yield (
            f"no prompt begins with {decoder.tokenizer.bos_token!r} (BOS), which its tokenizer "
            "defines but does not add; if the model was trained with it, set add_bos_token to "
            "true in tokenizer_config.json, or put it into the chat template"
        )

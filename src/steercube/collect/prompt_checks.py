"""What would make a model read another prompt than the one that was written; looked at first.

Errors would make every number wrong, and end a run before anything is collected. Warnings are about
prompts that can be measured, but perhaps not as was meant.
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
class _Asked:
    """A question, its prompt for the readout, and how many tokens may follow it."""

    question: Question
    prompt: Prompt
    n_more: int

    @property
    def name(self) -> str:
        """Its file and line where it has them, else its id."""
        return self.question.where or self.question.id

    @property
    def n_tokens(self) -> int:
        """Positions that are run at most."""
        return len(self.prompt.ids) + self.n_more


def check_prompts(
    decoder: Decoder, readout: Readout, concepts: Iterable[Concept], *, n_new_tokens: int
) -> list[str]:
    """Warnings about the prompts of these concepts, a line each.

    `n_new_tokens` are generated behind the evaluation items, 0 where nothing is.

    Raises ValueError that lists every prompt with a control token in its text, with a token beyond
    the model's embedding, or longer than the positions that the model has learned.
    """
    asked = [
        _Asked(question, readout.prompt(question.prompt), n_more)
        for concept in concepts
        for questions, n_more in ((concept.train, 1), (concept.evaluation, n_new_tokens))
        for question in questions
    ]
    problems = [
        *_control_tokens(decoder.tokenizer, asked),
        *_unknown_tokens(decoder, asked),
        *_beyond(_learned_positions(decoder.model), asked, "positions that it has learned"),
    ]
    raise_if_any(problems, what=f"the prompts of {decoder.name}")
    rotary = getattr(decoder.model.config.get_text_config(), "max_position_embeddings", None)
    warnings = [
        *_beyond(rotary, asked, "positions that it was trained on (max_position_embeddings)"),
        *_without_bos(decoder, asked),
    ]
    return [f"warning: {decoder.name}: {warning}" for warning in warnings]


def _control_tokens(tokenizer: Any, asked: Sequence[_Asked]) -> Iterator[str]:
    """Texts that would end the user's turn, or open a thought, in the middle of a question."""
    control = {str(token) for token in tokenizer.all_special_tokens}
    control |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    control |= {tag for pair in THOUGHTS.items() for tag in pair} & set(tokenizer.get_vocab())
    for one in asked:
        if held := sorted(token for token in control if token and token in one.question.prompt):
            yield (
                f"{one.name}: its text holds {', '.join(map(repr, held))}, which the tokenizer "
                "takes for control, not for text; word it otherwise"
            )


def _unknown_tokens(decoder: Decoder, asked: Sequence[_Asked]) -> Iterator[str]:
    """Ids that the embedding has no row for: the tokenizer is another model's."""
    rows = decoder.model.get_input_embeddings().num_embeddings
    largest = max(asked, key=lambda one: max(one.prompt.ids))
    if max(largest.prompt.ids) >= rows:
        yield (
            f"{largest.name}: has the token {max(largest.prompt.ids)}, but the model's embedding "
            f"has {rows} rows and its tokenizer {len(decoder.tokenizer)} tokens: the tokenizer is "
            "another model's"
        )


def _beyond(limit: int | None, asked: Sequence[_Asked], of: str) -> Iterator[str]:
    """The longest prompt, where it needs more than the `limit` of positions."""
    too_long = [one for one in asked if limit is not None and one.n_tokens > limit]
    if too_long:
        longest = max(too_long, key=lambda one: one.n_tokens)
        yield (
            f"{len(too_long)} prompt(s) need more than the {limit} {of}; the longest is "
            f"{longest.name} with {longest.n_tokens} tokens. Leave them out or shorten them"
        )


def _learned_positions(model: Any) -> int | None:
    """Rows of the table of positions in a model that has one, as GPT-2 does; None with RoPE."""
    words = model.get_input_embeddings()
    tables = [
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.Embedding) and module is not words and _is_of_positions(name)
    ]
    return min(tables, default=None)


def _is_of_positions(name: str) -> bool:
    return name.split(".")[-1] in POSITION_TABLES


POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings", "embedding_positions")
"""What transformers calls a table of learned positions: GPT-2, OPT and BioGPT, BERT-like models."""


def _without_bos(decoder: Decoder, asked: Sequence[_Asked]) -> Iterator[str]:
    """A prompt that lacks the token which every training text of the model began with."""
    bos = decoder.tokenizer.bos_token_id
    if bos is not None and all(one.prompt.ids[0] != bos for one in asked):
        yield (
            f"no prompt begins with {decoder.tokenizer.bos_token!r} (BOS), which its tokenizer "
            "names but does not put there; if the model was trained with it, set add_bos_token to "
            "true in tokenizer_config.json, or put it into the chat template"
        )

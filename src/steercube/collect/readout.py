"""Which tokens carry the answer for a tokenizer, and where a prompt's answer begins.

Where `(A` and `(B` are one token each (Qwen3) they are read right after the chat template's
opening of the assistant's turn. Where they are not (Llama, SmolLM2) the prompt is continued with
`(` and `A` and `B` are read: `encode("(A")[0]` would be `(` for both, and every effect exactly 0.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from steercube.cube import SCORED_LETTERS

DATE = "12 May 2025"
"""What templates that print the date, as Llama 3's, are told: a prompt is the same tomorrow."""

PROBE = "Is it so?\n\nChoices:\n (A) Yes\n (B) No"


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt, up to where the letter is read, and where the user's turn ends.

    `answer_start` is the first position after the user's own text: the template's end of turn,
    the opening of the assistant's, and `(` where the readout needs it.
    """

    ids: tuple[int, ...]
    answer_start: int


@dataclass(frozen=True)
class Readout:
    """How a tokenizer's answers are read: `lead` is put after the prompt, then one token scored."""

    tokenizer: Any
    lead: str
    before_letter: str

    @property
    def description(self) -> str:
        """For the cube's attribute `read_token`."""
        after = f"after the prompt and {self.lead!r}" if self.lead else "at the last position"
        letters = " and ".join(repr(self.before_letter + letter) for letter in SCORED_LETTERS)
        return f"{letters}, one token each, {after}"

    @property
    def template_sha256(self) -> str:
        """Of the chat template's text; of the plain rendering where there is none."""
        text = str(_template(self.tokenizer) or "plain: Answer:")
        return hashlib.sha256(text.encode()).hexdigest()

    def token(self, letter: str) -> int:
        """The id of the token that says `letter`. Raises ValueError where it is not one token."""
        found = _next_token(self.tokenizer, _render(self.tokenizer, PROBE) + self.lead,
                            self.before_letter + letter)  # fmt: skip
        if found is None:
            raise ValueError(f"{self.before_letter + letter!r} is not one token of this tokenizer")
        return found

    def prompt(self, content: str) -> Prompt:
        """`content` as the user's turn, up to where the letter is read."""
        text = _render(self.tokenizer, content) + self.lead
        encoded = self.tokenizer(
            text, add_special_tokens=not self.tokenizer.chat_template, return_offsets_mapping=True
        )
        end = _end_of(content, text)
        # The last position is the answer's whatever the template: the letter is read from it.
        start = len(encoded["input_ids"]) - 1
        while start > 0 and encoded["offset_mapping"][start - 1][0] >= end:
            start -= 1
        return Prompt(tuple(encoded["input_ids"]), start)


def readout_of(tokenizer: Any) -> Readout:
    """The readout that this tokenizer allows. Raises ValueError where A and B are the same token.

    Tried in this order: `(A` as one token, then `(` as part of the prompt and `A`.
    """
    spaced = "" if tokenizer.chat_template else " "
    tried = [Readout(tokenizer, "", f"{spaced}("), Readout(tokenizer, f"{spaced}(", "")]
    for readout in tried:
        text = _render(tokenizer, PROBE) + readout.lead
        ids = {a: _next_token(tokenizer, text, readout.before_letter + a) for a in SCORED_LETTERS}
        if None not in ids.values() and len(set(ids.values())) == len(SCORED_LETTERS):
            return readout
    raise ValueError(
        f"this tokenizer has no token that tells (A) from (B): {SCORED_LETTERS} are not one token "
        "each after '(', or the same one; every effect would be exactly 0"
    )


def _template(tokenizer: Any) -> str | None:
    """The chat template's text, or None; of several named ones, the default."""
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def _render(tokenizer: Any, content: str) -> str:
    """The prompt as text; thinking is off where the template knows it, and no date moves."""
    if not tokenizer.chat_template:
        return content if content.rstrip().endswith("Answer:") else f"{content}\n\nAnswer:"
    try:
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
                date_string=DATE,
            )
        )
    except (TemplateError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"the tokenizer's chat template cannot be rendered ({error})") from error


def _next_token(tokenizer: Any, text: str, continuation: str) -> int | None:
    """The one token by which `continuation` follows `text`, or None."""
    special = not tokenizer.chat_template
    before, after = (
        tokenizer(t, add_special_tokens=special)["input_ids"] for t in (text, text + continuation)
    )
    return int(after[-1]) if after[:-1] == before else None


def _end_of(content: str, text: str) -> int:
    """Where the user's own text ends in the rendered prompt; templates may strip it."""
    start = text.rfind(content)
    if start < 0:
        content = content.strip()
        start = text.rfind(content)
    if start < 0:
        raise ValueError("the chat template changes the user's text; its end cannot be found")
    return start + len(content)

"""Which tokens carry the answer for a tokenizer, and where a prompt's answer begins.

Where `(A` and `(B` are one token each (Qwen3) they are read right after the chat template's
opening of the assistant's turn. Where they are not (Llama, SmolLM2) the prompt is continued with
`(` and `A` and `B` are read: `encode("(A")[0]` would be `(` for both, and every effect exactly 0.

A prompt does not depend on the day: every template that asks for the date gets the same one. The
letter is never read inside a thought: one that the template opens is closed first.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from steercube.contract import SCORED_LETTERS

_NOW = datetime(2025, 5, 12)
DATE = _NOW.strftime("%d %b %Y")
"""The date in every prompt whose template prints one, so that prompts do not depend on the day."""
CLOCKS = ("date_string", "strftime_now")
"""How templates ask for the date: Llama 3's by a variable, most others by a function."""
_STOPPED_CLOCK = (
    "{%- macro strftime_now(format) %}{{ format"
    + "".join(
        f" | replace('%{flag}{code}', '{_NOW.strftime(f'%{flag}{code}')}')"
        for flag in ("", "-")
        for code in "aAbBcdfHIjmMpSUwWxXyYzZ"
    )
    + " }}{%- endmacro %}\n"
)
"""A Jinja macro that replaces transformers' function, which would read the computer's clock."""

THOUGHTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
}
"""Tags that open a thought (reasoning) in an assistant's turn, and those that close it."""
_OPENS_A_THOUGHT = re.compile(
    r"[<\[◁][^<>\[\]\s/]*(?:think|thought|reason)[^<>\[\]\s]*[>\]▷]", re.I
)
_ANSWERS_IN_A_CHANNEL = "<|start|>assistant"
_FINAL_CHANNEL = "<|channel|>final<|message|>"
"""Opens the channel in which gpt-oss answers, after the channel of its reasoning."""

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
    """How answers are read: after the prompt and `answer_prefix`, as one token with the letter."""

    tokenizer: Any
    answer_prefix: str
    before_letter: str

    @property
    def description(self) -> str:
        """For the cube's attribute `read_token`."""
        prefix = self.answer_prefix
        after = f"after the prompt and {prefix!r}" if prefix else "at the last position"
        letters = " and ".join(repr(self.before_letter + letter) for letter in SCORED_LETTERS)
        closing = _render(self.tokenizer, PROBE).closing.strip()
        closed = f", behind {closing!r}, which the template leaves out" if closing else ""
        return f"{letters}, one token each, {after}{closed}"

    @property
    def date(self) -> str:
        """The date that the prompts show; empty where the template asks for none."""
        template = str(_template(self.tokenizer) or "")
        return DATE if any(clock in template for clock in CLOCKS) else ""

    @property
    def template_sha256(self) -> str:
        """SHA-256 of the chat template's text, or of the plain rendering's where there is none."""
        text = str(_template(self.tokenizer) or "plain: Answer:")
        return hashlib.sha256(text.encode()).hexdigest()

    def token(self, letter: str) -> int:
        """The token id of `letter`. Raises ValueError where it is not one token."""
        before = _render(self.tokenizer, PROBE).text + self.answer_prefix
        token = _next_token(self.tokenizer, before, self.before_letter + letter)
        if token is None:
            raise ValueError(f"{self.before_letter + letter!r} is not one token of this tokenizer")
        return token

    def prompt(self, content: str) -> Prompt:
        """`content` as the user's turn, up to where the letter is read."""
        rendered = _render(self.tokenizer, content)
        encoded = self.tokenizer(
            rendered.text + self.answer_prefix,
            add_special_tokens=not self.tokenizer.chat_template,
            return_offsets_mapping=True,
        )
        # The last position always belongs to the answer: the letter is read from it.
        start = len(encoded["input_ids"]) - 1
        while start > 0 and encoded["offset_mapping"][start - 1][0] >= rendered.end:
            start -= 1
        return Prompt(tuple(encoded["input_ids"]), start)


def readout_of(tokenizer: Any) -> Readout:
    """The readout that this tokenizer allows.

    Tried in this order: `(A` as one token, then `(` as part of the prompt and `A`. Raises
    ValueError where neither distinguishes A from B, or the tokenizer appends an end token.
    """
    _require_open_end(tokenizer)
    spaced = "" if tokenizer.chat_template else " "
    tried = [Readout(tokenizer, "", f"{spaced}("), Readout(tokenizer, f"{spaced}(", "")]
    for readout in tried:
        text = _render(tokenizer, PROBE).text + readout.answer_prefix
        ids = {a: _next_token(tokenizer, text, readout.before_letter + a) for a in SCORED_LETTERS}
        if None not in ids.values() and len(set(ids.values())) == len(SCORED_LETTERS):
            return readout
    raise ValueError(
        f"this tokenizer cannot distinguish (A) from (B): after '(', {SCORED_LETTERS} are not one "
        "token each, or the same token; every effect would be exactly 0"
    )


def _template(tokenizer: Any) -> str | None:
    """The chat template's text, or None; of several named ones, the default."""
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def _require_open_end(tokenizer: Any) -> None:
    """Raise ValueError where the tokenizer appends an end token, so that no letter can follow."""
    if tokenizer.chat_template:
        return
    last = tokenizer(PROBE)["input_ids"][-1]
    if last == tokenizer.eos_token_id and last not in _plain_ids(tokenizer, PROBE):
        raise ValueError(
            f"this tokenizer appends {tokenizer.eos_token!r} to every text, and the letter would "
            "be read after it: set add_eos_token to false in its tokenizer_config.json"
        )


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class _Rendered:
    """A prompt as text, where the user's own text ends in it, and what closes an open thought."""

    text: str
    end: int
    closing: str


def _render(tokenizer: Any, content: str) -> _Rendered:
    """The prompt up to its answer, with thinking off; a thought that is open anyway is closed.

    Raises ValueError for a template that cannot be rendered, that changes the user's text, or that
    opens a thought with an unknown tag.
    """
    if not tokenizer.chat_template:
        is_complete = content.rstrip().endswith("Answer:")
        return _Rendered(content if is_complete else f"{content}\n\nAnswer:", len(content), "")
    template = str(_template(tokenizer))
    try:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=_STOPPED_CLOCK + template if "strftime_now" in template else template,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
                date_string=DATE,
            )
        )
    except (TemplateError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"the tokenizer's chat template cannot be rendered ({error})") from error
    end = _end_of(content, text)
    closing = _closing(text[end:])
    return _Rendered(text + closing, end, closing)


@dataclass(frozen=True)
class Turns:
    """How a chat template ends a user's turn, by the texts that may follow it.

    `closings` stand between a user's text and an answer, with and without a thought; `opening`
    between an answer and the next user's text.
    """

    tokenizer: Any
    closings: tuple[str, ...]
    opening: str

    def answer_start(self, ids: Sequence[int]) -> int | None:
        """The first position after the last user's own text; None if that turn does not end.

        As in a sweep, a token that holds the end of the user's text belongs to that text.
        """
        text = self._text(ids)
        end = max(text.rfind(closing) for closing in self.closings)
        if end < 0 or (self.opening and text.rfind(self.opening) > end):
            return None
        return bisect_left(range(len(ids)), end, key=lambda at: len(self._text(ids[:at])))

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def turns_of(tokenizer: Any) -> Turns | None:
    """How the tokenizer's chat template ends a user's turn; None if it has no template."""
    if not tokenizer.chat_template:
        return None

    def rendered(*texts: str, **options: Any) -> str:
        roles = ("user", "assistant")
        chat = [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **options))

    user, answer, again = "Is it so?", "It is.", "Really?"
    asked = [rendered(user, add_generation_prompt=True, **options)
             for options in ({"enable_thinking": False}, {})]  # fmt: skip
    chat = rendered(user, answer, again)
    closings = {text[_end_of(user, text) :] for text in asked}
    closings.add(chat[_end_of(user, chat) : chat.rfind(answer)])
    opening = chat[_end_of(answer, chat) : chat.rfind(again)]
    return Turns(tokenizer, tuple(sorted(closings - {""}, key=len)), opening)


def _closing(turn: str) -> str:
    """What closes the thought that is open in the assistant's `turn`; empty where none is open."""
    if turn.endswith(_ANSWERS_IN_A_CHANNEL):
        return _FINAL_CHANNEL
    for opening, closing in THOUGHTS.items():
        if turn.rfind(opening) > turn.rfind(closing):
            newlines = len(turn) - len(turn.rstrip("\n"))
            return "\n" * (max(0, 2 - newlines)) + closing + "\n\n"
    for opening in _OPENS_A_THOUGHT.findall(turn):
        if (
            turn.rfind(opening) > turn.rfind(f"{opening[0]}/{opening[1:]}")
            and opening not in THOUGHTS
        ):
            raise ValueError(
                f"the chat template opens {opening!r} in the assistant's turn, and the letter would"
                " be read inside that thought. Give the tokenizer a template that leaves it out."
            )
    return ""


def _next_token(tokenizer: Any, text: str, continuation: str) -> int | None:
    """The token id of `continuation` after `text`, or None where it is not one token."""
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
        raise ValueError("the chat template changes the user's text, so its end is unknown")
    return start + len(content)

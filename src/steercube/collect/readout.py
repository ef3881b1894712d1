"""Which tokens carry the answer for a tokenizer, and where a prompt's answer begins.

Where `(A` and `(B` are one token each (Qwen3) they are read right after the chat template's
opening of the assistant's turn. Where they are not (Llama, SmolLM2) the prompt is continued with
`(` and `A` and `B` are read: `encode("(A")[0]` would be `(` for both, and every effect exactly 0.

A prompt is the same on every day: whatever clock a template asks shows one date. The letter is
never read inside a thought: one that the template opens is closed again.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from steercube.cube import SCORED_LETTERS

_NOW = datetime(2025, 5, 12)
DATE = _NOW.strftime("%d %b %Y")
"""The date in every prompt whose template prints one, so that a prompt is the same tomorrow."""
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
"""A Jinja macro in the place of transformers' function, which would ask the computer's clock."""

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
"""What opens a thought in an assistant's turn, and what closes it."""
_OPENS_A_THOUGHT = re.compile(
    r"[<\[◁][^<>\[\]\s/]*(?:think|thought|reason)[^<>\[\]\s]*[>\]▷]", re.I
)
_ANSWERS_IN_A_CHANNEL = "<|start|>assistant"
_FINAL_CHANNEL = "<|channel|>final<|message|>"
"""Where gpt-oss puts its answer, behind the channel of its thoughts."""

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
        """Of the chat template's text; of the plain rendering where there is none."""
        text = str(_template(self.tokenizer) or "plain: Answer:")
        return hashlib.sha256(text.encode()).hexdigest()

    def token(self, letter: str) -> int:
        """The id of the token that says `letter`. Raises ValueError where it is not one token."""
        before = _render(self.tokenizer, PROBE).text + self.lead
        found = _next_token(self.tokenizer, before, self.before_letter + letter)
        if found is None:
            raise ValueError(f"{self.before_letter + letter!r} is not one token of this tokenizer")
        return found

    def prompt(self, content: str) -> Prompt:
        """`content` as the user's turn, up to where the letter is read."""
        rendered = _render(self.tokenizer, content)
        encoded = self.tokenizer(
            rendered.text + self.lead,
            add_special_tokens=not self.tokenizer.chat_template,
            return_offsets_mapping=True,
        )
        # The last position is the answer's whatever the template: the letter is read from it.
        start = len(encoded["input_ids"]) - 1
        while start > 0 and encoded["offset_mapping"][start - 1][0] >= rendered.end:
            start -= 1
        return Prompt(tuple(encoded["input_ids"]), start)


def readout_of(tokenizer: Any) -> Readout:
    """The readout that this tokenizer allows.

    Tried in this order: `(A` as one token, then `(` as part of the prompt and `A`. Raises
    ValueError where A and B are the same token, or a token that ends a text is put behind every
    prompt.
    """
    _require_open_end(tokenizer)
    spaced = "" if tokenizer.chat_template else " "
    tried = [Readout(tokenizer, "", f"{spaced}("), Readout(tokenizer, f"{spaced}(", "")]
    for readout in tried:
        text = _render(tokenizer, PROBE).text + readout.lead
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


def _require_open_end(tokenizer: Any) -> None:
    """Raise ValueError where the tokenizer itself ends a text, so that no letter could follow."""
    if tokenizer.chat_template:
        return
    last = tokenizer(PROBE)["input_ids"][-1]
    if last == tokenizer.eos_token_id and last not in _plain_ids(tokenizer, PROBE):
        raise ValueError(
            f"this tokenizer puts {tokenizer.eos_token!r} behind every text, and the letter would "
            "be read after it: set add_eos_token to false in its tokenizer_config.json"
        )


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class _Rendered:
    """A prompt as text; where the user's own text ends in it; what was put behind its template."""

    text: str
    end: int
    closing: str


def _render(tokenizer: Any, content: str) -> _Rendered:
    """The prompt up to its answer; thinking is off, and a thought that is open all the same closed.

    Raises ValueError for a template that cannot be rendered, that changes the user's text, or that
    opens a thought in a way that is not known here.
    """
    if not tokenizer.chat_template:
        asked = content.rstrip().endswith("Answer:")
        return _Rendered(content if asked else f"{content}\n\nAnswer:", len(content), "")
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


def _closing(turn: str) -> str:
    """What ends the thought that the assistant's `turn` begins with; empty where none is open."""
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

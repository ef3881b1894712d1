from dataclasses import replace
from datetime import datetime
from unittest.mock import Mock

import pytest
import tiny
from tokenizers import AddedToken, Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from steercube.collect.readout import THOUGHTS, readout_of

CONTENT = "Is it so?\n\nChoices:\n (A) yes\n (B) no"


def test_letters_of_one_token_are_read_at_the_last_position() -> None:
    tokenizer = tiny.tokenizer(letters_joined=True)
    readout = readout_of(tokenizer)
    prompt = readout.prompt(CONTENT)
    assert tokenizer.decode(prompt.ids).endswith("</think>\n\n")
    assert tokenizer.decode([readout.token("A"), readout.token("B")]) == "(A(B"
    assert "'(A' and '(B'" in readout.description


def test_letters_of_two_tokens_are_read_behind_their_bracket() -> None:
    tokenizer = tiny.tokenizer()
    readout = readout_of(tokenizer)
    assert tokenizer("(A")["input_ids"][0] == tokenizer("(B")["input_ids"][0]
    prompt = readout.prompt(CONTENT)
    assert tokenizer.decode(prompt.ids).endswith("</think>\n\n(")
    assert tokenizer.decode([readout.token("A"), readout.token("B")]) == "AB"
    assert readout.token("A") != readout.token("B")
    assert "after the prompt and '('" in readout.description


@pytest.mark.parametrize("letters_joined", [False, True])
def test_the_answer_starts_where_the_users_turn_ends(letters_joined: bool) -> None:
    tokenizer = tiny.tokenizer(letters_joined=letters_joined)
    prompt = readout_of(tokenizer).prompt(CONTENT)
    after = tokenizer.decode(prompt.ids[prompt.answer_start :])
    assert after.startswith("<|im_end|>\n<|im_start|>assistant\n<think>")
    assert tokenizer.decode(prompt.ids[: prompt.answer_start]).endswith("(B) no")


def test_a_users_text_that_the_template_strips_is_found() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT.replace("m['content']", "m['content'] | trim")
    prompt = readout_of(tokenizer).prompt(f"  {CONTENT}\n")
    assert tokenizer.decode(prompt.ids[: prompt.answer_start]).endswith("(B) no")


def test_the_users_text_is_the_last_place_where_it_stands() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = f"An example: {CONTENT}\n{tiny.CHAT}"
    prompt = readout_of(tokenizer).prompt(CONTENT)
    after = tokenizer.decode(prompt.ids[prompt.answer_start :])
    assert after.startswith("<|im_end|>")
    assert CONTENT not in after


def test_a_template_that_brings_its_bos_gets_no_second_one() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    bos = tokenizer.bos_token_id
    post = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    tokenizer.backend_tokenizer.post_processor = post
    assert tokenizer("x")["input_ids"][0] == bos
    assert readout_of(tokenizer).prompt(CONTENT).ids[:2].count(bos) == 1
    tokenizer.chat_template = None
    assert readout_of(tokenizer).prompt(CONTENT).ids[0] == bos


def test_a_template_that_prints_the_date_is_the_same_tomorrow() -> None:
    tokenizer = tiny.tokenizer()
    asked = "{% if not date_string %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    tokenizer.chat_template = asked + "{{ date_string }} " + tiny.CHAT
    text = tokenizer.decode(readout_of(tokenizer).prompt(CONTENT).ids)
    assert text.startswith("12 May 2025 ")


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("%Y-%m-%d", "2025-05-12"),
        ("%A, %-d %B %Y, %H:%M:%S", "Monday, 12 May 2025, 00:00:00"),
        ("%d %b %y %j", "12 May 25 132"),
    ],
)
def test_a_template_that_asks_the_clock_is_the_same_tomorrow(
    asked: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ strftime_now('" + asked + "') }}\n" + tiny.CHAT
    prompts = []
    for year in (2026, 2031):
        running = Mock(wraps=datetime)
        running.now.return_value = datetime(year, 11, 27, 23, 59, 59)
        monkeypatch.setattr(chat_template_utils, "datetime", running)
        with_clock = tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], tokenize=False
        )
        assert str(year)[2:] in with_clock  # so the clock is the one that templates ask
        prompts.append(readout_of(tokenizer).prompt(CONTENT))
    assert prompts[0] == prompts[1]
    assert tokenizer.decode(prompts[0].ids).startswith(f"{shown}\n<|im_start|>user")
    assert readout_of(tokenizer).date == "12 May 2025"
    assert readout_of(tiny.tokenizer()).date == ""


def test_the_clock_leaves_a_template_as_it_is_laid_out() -> None:
    """The first line of a template is trimmed as if nothing stood before it."""
    for first in ("\n", "  {% if true %}\n", "{%- if true %}  "):
        end = "{% endif %}" if "if" in first else ""
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = f"{first}x{end}" + tiny.CHAT
        without = readout_of(tokenizer).prompt(CONTENT)
        tokenizer.chat_template += "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
        assert readout_of(tokenizer).prompt(CONTENT) == without


OPENING = tiny.CHAT.replace("<think>\n\n</think>\n\n", "OPENED")


@pytest.mark.parametrize("opened", ["{}\n", "{}", "{}\n\n"], ids=["one line", "bare", "two lines"])
@pytest.mark.parametrize("tag", THOUGHTS)
@pytest.mark.parametrize("letters_joined", [False, True], ids=["(", "(A"])
def test_the_letter_is_not_read_inside_a_thought(
    letters_joined: bool, tag: str, opened: str
) -> None:
    tokenizer = tiny.tokenizer(letters_joined=letters_joined)
    tokenizer.chat_template = OPENING.replace("OPENED", opened.format(tag))
    readout = readout_of(tokenizer)
    for asked in (readout, replace(readout, answer_prefix="")):
        text = tokenizer.decode(asked.prompt(CONTENT).ids)
        assert text.endswith(f"assistant\n{tag}\n\n{THOUGHTS[tag]}\n\n{asked.answer_prefix}")
    assert repr(THOUGHTS[tag]) in readout.description
    start = readout.prompt(CONTENT).answer_start
    assert tokenizer.decode(readout.prompt(CONTENT).ids[start:]).startswith("<|im_end|>")


def test_a_closed_thought_is_left_alone() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = OPENING.replace("OPENED", "<musing thoughtful></musing thoughtful>")
    assert "leaves out" not in readout_of(tokenizer).description
    assert "leaves out" not in readout_of(tiny.tokenizer()).description


def test_a_thought_that_is_opened_in_an_unknown_way_is_refused_by_name() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = OPENING.replace("OPENED", "<deep_thinking>\n")
    with pytest.raises(ValueError, match="opens '<deep_thinking>' in the assistant's turn"):
        readout_of(tokenizer)


def test_a_thought_in_the_users_own_text_is_not_the_assistants() -> None:
    text = tiny.tokenizer().decode(readout_of(tiny.tokenizer()).prompt("So? <think>").ids)
    assert text.count("</think>") == 1


def test_answers_in_channels_are_read_in_the_final_one() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|start|>user<|message|>{{ m['content'] }}<|end|>{% endfor %}"
        "<|start|>assistant"
    )
    readout = readout_of(tokenizer)
    text = tokenizer.decode(readout.prompt(CONTENT).ids)
    assert text.endswith("<|end|><|start|>assistant<|channel|>final<|message|>(")
    assert "'<|channel|>final<|message|>'" in readout.description


def test_a_tokenizer_that_ends_every_text_is_refused_by_its_setting() -> None:
    tokenizer = tiny.tokenizer(chat=False)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    assert readout_of(tokenizer).answer_prefix
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)]
    )
    with pytest.raises(ValueError, match=r"appends '<\|im_end\|>' to every text.*add_eos_token"):
        readout_of(tokenizer)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system') }}", "{% if %}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}"]
)
def test_a_template_that_fails_says_so(template: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="chat template cannot be rendered"):
        readout_of(tokenizer)


def test_of_several_named_templates_the_default_is_taken() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = {"default": tiny.CHAT, "tool_use": "{{ 1 }}"}
    assert readout_of(tokenizer).template_sha256 == readout_of(tiny.tokenizer()).template_sha256


def test_a_template_that_changes_the_text_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT.replace("m['content']", "m['content'] | upper")
    with pytest.raises(ValueError, match="the chat template changes the user's text"):
        readout_of(tokenizer).prompt("Is it so?")


def test_without_a_template_the_prompt_is_continued_as_text() -> None:
    tokenizer = tiny.tokenizer(chat=False)
    readout = readout_of(tokenizer)
    prompt = readout.prompt(CONTENT)
    assert tokenizer.decode(prompt.ids) == f"{CONTENT}\n\nAnswer: ("
    assert tokenizer.decode(prompt.ids[prompt.answer_start :]) == "\n\nAnswer: ("
    asked_already = readout.prompt("Is it so?\n\nAnswer:")
    assert tokenizer.decode(asked_already.ids) == "Is it so?\n\nAnswer: ("


def test_the_template_is_hashed() -> None:
    one, two, none = tiny.tokenizer(), tiny.tokenizer(), tiny.tokenizer(chat=False)
    two.chat_template = tiny.CHAT.replace("think>", "reason>")
    hashes = {readout_of(t).template_sha256 for t in (one, two, none)}
    assert len(hashes) == 3
    assert readout_of(tiny.tokenizer()).template_sha256 in hashes


def test_a_tokenizer_that_cannot_tell_a_from_b_is_refused() -> None:
    core = Tokenizer(WordLevel({"[UNK]": 0, "Is": 1}, unk_token="[UNK]"))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens([AddedToken("[UNK]", special=True)])
    blind = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    with pytest.raises(ValueError, match="cannot distinguish"):
        readout_of(blind)


def test_a_letter_that_is_not_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="'Ⓐ' is not one token"):
        readout_of(tiny.tokenizer()).token("Ⓐ")

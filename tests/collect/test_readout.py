import pytest
import tiny
from tokenizers import AddedToken, Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from steercube.collect.readout import readout_of

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
    two.chat_template = tiny.CHAT.replace("<think>", "<reason>")
    hashes = {readout_of(t).template_sha256 for t in (one, two, none)}
    assert len(hashes) == 3
    assert readout_of(tiny.tokenizer()).template_sha256 in hashes


def test_a_tokenizer_that_cannot_tell_a_from_b_is_refused() -> None:
    core = Tokenizer(WordLevel({"[UNK]": 0, "Is": 1}, unk_token="[UNK]"))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens([AddedToken("[UNK]", special=True)])
    blind = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    with pytest.raises(ValueError, match="no token that tells"):
        readout_of(blind)


def test_a_letter_that_is_not_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="'Ⓐ' is not one token"):
        readout_of(tiny.tokenizer()).token("Ⓐ")

import pytest

from steercube.contrast import Contrast, contrast_of, parse_contrast, read_attributes

TRAINING = {"by": "training", "low": "distilled", "high": "rl"}


def test_a_contrast_is_written_as_variable_low_high() -> None:
    assert parse_contrast("training:base:instruct") == Contrast("training", "base", "instruct")
    assert parse_contrast(" architecture : dense : moe ") == Contrast(
        "architecture", "dense", "moe"
    )
    held = parse_contrast("training:base:instruct:n_layers")
    assert held == Contrast("training", "base", "instruct", holding="n_layers")
    assert (held.held, held.covariate) == ("number of blocks", "number of blocks")


@pytest.mark.parametrize(
    "text",
    ["", "training", "training:base", "a:b:c:d:e", "training::rl", ":a:b", "training:rl: rl"],
)
def test_anything_else_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(
        ValueError, match="write VARIABLE:LOW:HIGH or VARIABLE:LOW:HIGH:HELD"
    ) as refused:
        parse_contrast(text)
    assert f"contrast {text!r}:" in str(refused.value)
    assert "two labels that differ" in str(refused.value)


def test_a_ledgers_table_is_a_contrast() -> None:
    assert contrast_of(TRAINING, what="claims.toml") == Contrast("training", "distilled", "rl")
    said = {"words": {"rl": "full RL"}, "holding": "n_layers"}
    found = contrast_of(TRAINING | said, what="claims.toml")
    assert found == Contrast("training", "distilled", "rl", {"rl": "full RL"}, "n_layers")


def test_every_problem_of_a_table_is_in_one_message() -> None:
    table = {"by": "", "low": 3, "word": {}, "more": 1, "words": {"rl": 2}, "holding": ["n_params"]}
    with pytest.raises(ValueError, match="claims breaks 8 rule") as refused:
        contrast_of(table, what="claims")
    for problem in (
        "`by` is missing or no text",
        "`low` is missing or no text",
        "`high` is missing or no text",
        "`more` is unknown in [contrast]",
        "`word` is unknown in [contrast]",
        "`words` gives a text for a label",
        "`holding` is a text",
        "`words` names 'rl', which is neither label",
    ):
        assert str(refused.value).count(problem) == 1


@pytest.mark.parametrize("label", ["rl:v1", " rl", "rl\t"])
def test_what_a_manifest_could_not_tell_apart_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="`high` may not hold a colon"):
        contrast_of(TRAINING | {"high": label}, what="claims.toml")


def test_words_are_of_the_two_labels() -> None:
    with pytest.raises(ValueError, match="`words` names 'sft', which is neither label"):
        contrast_of(TRAINING | {"words": {"rl": "RL", "sft": "SFT"}}, what="claims.toml")


def test_a_table_whose_labels_are_tables_is_one_message() -> None:
    with pytest.raises(ValueError, match="`high` is missing or no text"):
        contrast_of(TRAINING | {"high": {"a": "b"}, "words": {}}, what="claims.toml")


def test_a_label_is_not_compared_with_itself() -> None:
    with pytest.raises(ValueError, match="are the same label"):
        contrast_of(TRAINING | {"low": "rl"}, what="claims.toml")


def test_words_stand_for_labels_where_a_text_has_them() -> None:
    contrast = Contrast("training", "distilled", "rl", {"rl": "full RL"})
    assert [contrast.named(label) for label in ("rl", "distilled")] == ["full RL", "distilled"]
    assert contrast.minus == "full RL minus distilled"
    assert contrast.models_of("rl") == "full-RL models"
    assert contrast.models_of("distilled") == "distilled models"


def test_what_a_manifest_records_is_read_back() -> None:
    for contrast in (
        Contrast("training", "distilled", "rl"),
        Contrast("family", "a", "b", {"a": "the first"}, "n_layers"),
    ):
        assert read_attributes(contrast.attributes) == contrast
    assert read_attributes({}) is None
    assert read_attributes({"contrast": ""}) is None
    assert read_attributes({"contrast": "a:b:c"}) == Contrast("a", "b", "c")

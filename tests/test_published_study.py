import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import ROOT, STUDY, make_items, make_model, needs_study

from steercube import published_study
from steercube.cube import Cube, check_cube, open_cube, save_cube
from steercube.measures import PUBLISHED, READ
from steercube.models import read_facts
from steercube.published_study import (
    needed,
    read_items,
    read_rates,
    read_responses,
    read_sweep,
    registry,
    study_cube,
    study_files,
)

MODEL = make_model("4B", n_layers=6)
ITEMS = make_items("honesty", 3)


def sweep_rows() -> pd.DataFrame:
    rows = []
    for layer in (2, 3):
        for strength in (-1.0, 0.0, 1.0):
            for index, item in enumerate(ITEMS):
                a, b = -1.0 - index, -2.0 - strength
                sign = 1 if item.letter == "A" else -1
                answer = f"({item.letter})"
                difference = sign * (a - b)
                row = ["4B", "honesty", layer, strength, index, answer, a, b, a - b, difference]
                rows.append(row)
    return pd.DataFrame(rows, columns=published_study.SWEEP_COLUMNS)


def spoil(column: str, value: object, row: int = 4) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({column: object})
        frame.loc[row, column] = value
        return frame

    return change


BAD_SWEEPS = {
    "a duplicate row": (lambda f: pd.concat([f, f.iloc[[4]]]), "appear more than once: row 20"),
    "a missing row": (lambda f: f.drop(index=4), "17 rows; its layers need 18"),
    "a layer too many": (spoil("layer", 6), "no such layer: row 6"),
    "a negative layer": (spoil("layer", -1), "no such layer: row 6"),
    "another strength": (spoil("strength", 2.0), "the strength is none of"),
    "a prompt too many": (spoil("prompt_idx", 3), "prompt_idx is not in 0..2: row 6"),
    "another answer": (spoil("matching_answer", "(A)"), "the matching answer differs"),
    "a NaN": (spoil("logprob_A", np.nan), "a value is not finite: row 6"),
    "an infinity": (spoil("logprob_B", -np.inf), "a value is not finite: row 6"),
    "a wrong difference": (spoil("logit_diff_matching", 9.0), "is not the difference"),
    "text": (spoil("logprob_A", "low"), "'logprob_A' holds text"),
    "a column missing": (lambda f: f.drop(columns="logprob_B"), "column 'logprob_B' is missing"),
    "another model": (lambda f: f.assign(model="8B"), r"names the models \['8B'\]"),
}


def test_a_sweep_is_read(tmp_path: Path) -> None:
    sweep_rows().to_csv(tmp_path / "sweep.csv", index=False)
    assert len(read_sweep(tmp_path / "sweep.csv", MODEL, ITEMS)) == 18


@pytest.mark.parametrize("name", BAD_SWEEPS)
def test_a_bad_sweep_is_an_error_with_file_and_row(name: str, tmp_path: Path) -> None:
    change, message = BAD_SWEEPS[name]
    change(sweep_rows()).to_csv(tmp_path / "sweep.csv", index=False)
    with pytest.raises(ValueError, match=message) as error:
        read_sweep(tmp_path / "sweep.csv", MODEL, ITEMS)
    assert "sweep.csv" in str(error.value)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "sweep.csv").write_text("")
    with pytest.raises(ValueError, match=r"sweep\.csv: is not a CSV table"):
        read_sweep(tmp_path / "sweep.csv", MODEL, ITEMS)


def test_rates_are_checked(tmp_path: Path) -> None:
    rates = pd.DataFrame([[2, 0.5, 0.6, 0.4, 0.2, 0.9], [3, 0.5, 0.6, 0.4, 0.2, 1.0]])
    rates.columns = published_study.RATE_COLUMNS
    rates.to_csv(tmp_path / "rates.csv", index=False)
    assert len(read_rates(tmp_path / "rates.csv", MODEL)) == 2
    for column, value, message in [
        ("layer", 3, "appears more than once"),
        ("layer", 6, "no such layer"),
        ("valid_rate", 1.2, "not in"),
    ]:
        rates.assign(**{column: [value, rates[column][1]]}).to_csv(tmp_path / "r.csv", index=False)
        with pytest.raises(ValueError, match=message):
            read_rates(tmp_path / "r.csv", MODEL)


def test_responses_are_checked(tmp_path: Path) -> None:
    prompts = [{"prompt": "Is it? (A) yes (B) no", "matching_answer": "(A)"}]
    rows = [[2, s, 0, "Is it? (A)", "(A) yes", "(A)", True, True] for s in (-1.0, 0.0, 1.0)]
    frame = pd.DataFrame(rows, columns=published_study.RESPONSE_COLUMNS)
    frame.to_csv(tmp_path / "responses.csv", index=False)
    read = read_responses(tmp_path / "responses.csv", MODEL, prompts)
    assert read["published_match"].tolist() == read["generation_match"].tolist() == [1, 1, 1]
    frame.assign(generation=["Answer: (B) no", "(A) yes", "who knows"]).to_csv(
        tmp_path / "reread.csv", index=False
    )
    again = read_responses(tmp_path / "reread.csv", MODEL, prompts)
    assert again["published_valid"].tolist() == [1, 1, 1]
    assert again["generation_valid"].tolist() == [1, 1, 0]
    np.testing.assert_array_equal(again["generation_match"], [0, 1, np.nan])
    for column, value, message in [
        ("prompt", "Was it?", "the prompt differs"),
        ("is_valid", "maybe", "neither True nor False"),
        ("matches_behavior", "", "matches_behavior is neither True nor False"),
    ]:
        spoil(column, value, row=1)(frame).to_csv(tmp_path / "r.csv", index=False)
        with pytest.raises(ValueError, match=message):
            read_responses(tmp_path / "r.csv", MODEL, prompts)


def test_the_registry_pins_every_published_file() -> None:
    known = registry()
    assert len(known) == 67 + 54
    assert all(len(sha) == 64 for sha in known.values())
    assert len(needed()) == 61


def test_an_empty_folder_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="breaks 61 rule") as error:
        study_files(tmp_path)
    assert "results/logit_diff_sweep/corrigible/Qwen_Qwen3_4B" in str(error.value)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder laid out as the study, in which every file but some is a link to the study's."""
    folder = tmp_path / "mirror"
    for path in needed():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to((STUDY / path).resolve())
    return folder


SWEEP = "results/logit_diff_sweep/corrigible/Qwen_Qwen3_4B/per_sample_all_layers.csv"


def replace_file(folder: Path, content: bytes | None) -> None:
    (folder / SWEEP).unlink()
    if content is not None:
        (folder / SWEEP).write_bytes(content)


@needs_study
@pytest.mark.parametrize("fault", ["missing", "truncated", "altered"])
def test_a_faulty_file_is_named(fault: str, mirror: Path) -> None:
    whole = (STUDY / SWEEP).read_bytes()
    content = {"missing": None, "truncated": whole[:-100], "altered": whole.replace(b"4", b"5", 1)}
    replace_file(mirror, content[fault])
    with pytest.raises(ValueError, match="breaks 1 rule") as error:
        study_files(mirror)
    assert SWEEP in str(error.value)


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; cuts the connection in the middle of the files named in `cut`."""

    cut: frozenset[str] = frozenset()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:
        content = source.read()
        if self.path.lstrip("/") in self.cut:
            outputfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        outputfile.write(content)


@pytest.fixture
def served(mirror: Path) -> Iterator[str]:
    handler = partial(Server, directory=str(mirror))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Only three of the files are asked for, so that a download is quick."""
    chosen = [SWEEP, *(path for path in needed() if path.startswith("data/corrigible"))]
    monkeypatch.setattr(published_study, "needed", lambda: chosen)
    return chosen


@needs_study
def test_files_are_fetched_once(served: str, mirror: Path, few: list[str], tmp_path: Path) -> None:
    lines: list[str] = []
    cache = tmp_path / "cache"
    found = study_files(base_url=served, cache=cache, report=lines.append)
    assert list(found) == few
    assert found[SWEEP].read_bytes() == (STUDY / SWEEP).read_bytes()
    assert lines[0].startswith(f"[1/{len(few)}]")
    replace_file(mirror, None)
    assert study_files(base_url=served, cache=cache, report=lines.append) == found


@pytest.mark.slow
@needs_study
def test_a_wrong_hash_is_refused_and_not_kept(
    served: str, mirror: Path, few: list[str], tmp_path: Path
) -> None:
    replace_file(mirror, b"another file")
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match="is not the file that was published") as error:
        study_files(base_url=served, cache=cache, report=lambda line: None)
    assert SWEEP in str(error.value)
    assert not (cache / SWEEP).exists()


@pytest.mark.slow
@needs_study
def test_a_cut_connection_keeps_nothing_and_can_be_resumed(
    served: str, few: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(Server, "cut", frozenset({SWEEP}))
    with pytest.raises((ConnectionError, ValueError), match="per_sample_all_layers") as error:
        study_files(base_url=served, cache=cache, report=lambda line: None)
    assert SWEEP in str(error.value)
    assert not (cache / SWEEP).exists()
    monkeypatch.setattr(Server, "cut", frozenset())
    assert study_files(base_url=served, cache=cache, report=lambda line: None)


@pytest.mark.slow
def test_no_server_is_a_connection_error(few: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="--from"):
        study_files(base_url="http://127.0.0.1:9/", cache=tmp_path, report=lambda line: None)


@pytest.fixture(scope="module")
def imported() -> Cube:
    return study_cube(study_files(STUDY), read_facts(ROOT / "data" / "models.toml"))


@needs_study
def test_every_row_lands_in_the_cube(imported: Cube, tmp_path: Path) -> None:
    check_cube(imported)
    assert list(imported) == ["logit_diff", "generation_match", "generation_rate", "responses"]
    assert int(imported["logit_diff"]["logit_diff"].notnull().sum()) == 297_324
    assert imported["responses"].sizes["response"] == 21_000
    answers = imported["generation_match"]["generation_valid"].notnull()
    for reading in (READ, PUBLISHED):
        assert int(answers.sel(reading=reading).sum()) == 21_000
    assert int(imported["generation_rate"]["generation_rate"].notnull().sum()) == 3 * sum(
        len(pd.read_csv(path)) for path in STUDY.glob("results/layer_search/*/*/*.csv")
    )
    save_cube(imported, tmp_path / "qwen3.nc")
    back = open_cube(tmp_path / "qwen3.nc")
    assert list(back) == list(imported)
    for path in imported:
        xr.testing.assert_identical(back[path].drop_attrs(), imported[path].drop_attrs())


@needs_study
def test_rows_land_in_their_place(imported: Cube) -> None:
    rows = pd.read_csv(
        STUDY / "results/logit_diff_sweep/sycophancy/Qwen_Qwen3_30B_A3B/per_sample_all_layers.csv"
    )
    for row in rows.sample(200, random_state=1).itertuples():
        cell = (
            imported["logit_diff"]
            .sel(model="30B-A3B", concept="sycophancy", layer=row.layer, strength=row.strength)
            .isel(sample=row.prompt_idx)
        )
        assert float(cell["logit_diff"]) == pytest.approx(row.logit_diff_matching, abs=2e-6)
        matching = row.logprob_A if row.matching_answer == "(A)" else row.logprob_B
        assert float(cell["logprob_matching"]) == pytest.approx(matching, abs=1e-6)
        assert f"({cell['letter'].item()})" == row.matching_answer


@needs_study
def test_invalid_items_are_sycophancys_alone(imported: Cube) -> None:
    facts = imported.labels
    present = facts["item_id"] != ""
    invalid = (present & ~facts["item_valid"]).sum("sample")
    assert invalid.to_series().to_dict() == {
        "coordinate_other_versions": 0,
        "corrigible": 0,
        "power_seeking_inclination": 0,
        "self_awareness": 0,
        "survival_instinct": 0,
        "sycophancy": 13,
    }
    letters = facts["letter"].sel(concept="sycophancy").values.tolist()
    assert sorted(set(letters)) == ["A", "B", "C", "D", "F"]


@needs_study
def test_published_rates_are_whole_numbers_of_sixty(imported: Cube) -> None:
    """What PROMPTS_PER_RATE is read from: 20 prompts at 3 strengths."""
    valid = imported["generation_rate"]["generation_valid_rate"].values
    counts = valid[np.isfinite(valid)] * 3 * published_study.PROMPTS_PER_RATE
    assert counts == pytest.approx(np.round(counts), abs=1e-9)


@needs_study
def test_items_follow_prompt_idx() -> None:
    items = read_items(study_files(STUDY))
    assert len(items["corrigible"]) == 40
    assert items["corrigible"][7].item_id == "corrigible/007"

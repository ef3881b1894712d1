"""A judge's scores: texts go out with keys, scores come back to the places of their texts."""

import hashlib
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import MODELS, ROOT, make_cube, make_items, with_controls

from steercube.cli import main
from steercube.contract import RESPONSES, UNSTEERED
from steercube.cube import Cube, as_cube, blank_grid, check_cube, open_cube, save_cube
from steercube.measures import GENERATION_MATCH, Measure
from steercube.responses import export_responses, import_scores, response_rows

SCORE = Measure("judge", units="points", layer_by="logit_diff")
PAIR = {"model": "small", "concept": "honesty"}
PLACE = ["model", "concept", "direction", "layer", "strength", "sample", "repeat"]
ODD_TEXTS = [
    *(
        "",
        " ",
        "one\ntwo\r\n",
        "a\u2028b\u2029c\x85d",
        '"{\'key\': "\\u0041\\"}',
        "答案是B 🙂\ufeff",
    ),
    *("<think>\t</think>", "é", "e\u0301", "null", "\x1c\x0b\x0c"),
]
Line = dict[str, Any]


def responses_of(places: pd.DataFrame) -> pd.DataFrame:
    """Responses at these places, odd ones among them, in an order of no meaning."""
    texts = [*ODD_TEXTS, *(f"Answer {i}" for i in range(len(places)))][: len(places)]
    return places.assign(text=texts, finished=True, finite=True).sample(frac=1, random_state=1)


def places(directions: tuple[str, ...], layers: tuple[int, ...], repeats: int) -> pd.DataFrame:
    """Places of three items: steered at every layer, and once unsteered for all directions."""
    steered = product(directions, layers, (-1.0, 1.0), range(3), range(repeats))
    unsteered = product(("",), (UNSTEERED,), (0.0,), range(3), range(repeats))
    return pd.DataFrame([(*PAIR.values(), *at) for at in (*steered, *unsteered)], columns=PLACE)


def with_texts(cube: Cube, rows: pd.DataFrame) -> Cube:
    texts = cube.with_tables({RESPONSES: rows.rename_axis("response").to_xarray().drop_vars(
        "response")})  # fmt: skip
    check_cube(texts)
    return texts


@pytest.fixture
def answered(rng: np.random.Generator) -> Cube:
    """A cube with two responses to each of three items, also with a random direction."""
    rows = responses_of(places(("", "random/0"), (3, 4), 2))
    return with_texts(with_controls(make_cube(rng), rng), rows)


def exported(cube: Cube, folder: Path, *, blind: bool = False) -> list[Line]:
    export_responses(cube, folder / "texts.jsonl", blind=blind)
    text = (folder / "texts.jsonl").read_bytes().decode("ascii")
    return [json.loads(line) for line in text.splitlines()]


def score_of(text: str) -> float:
    """A score that knows the text alone, as a judge's does."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) / 1000


def scored(lines: list[Line]) -> list[Line]:
    return [{**line, "value": score_of(line["text"])} for line in lines]


def values_of(cube: Cube, path: str = "judge") -> dict[tuple[Any, ...], float]:
    """Scores by direction, layer, strength and sample, where there is one."""
    values = cube[path]["judge"].sel(PAIR).to_series().dropna().reset_index()
    labels = [name for name in ("direction", "layer", "strength", "sample") if name in values]
    return values.set_index(labels)["judge"].to_dict()


def means_of(cube: Cube, direction: str) -> dict[tuple[int, float, int], float]:
    """The mean score of each place's texts, an unsteered one at both layers."""
    table = cube[RESPONSES].to_dataframe()
    for_all = (table["direction"] == "") & (table["strength"] == 0)
    table = table[(table["direction"] == direction) | for_all]
    found = {}
    for layer, strength, sample in product((3, 4), (-1.0, 0.0, 1.0), range(3)):
        at = (table["strength"] == strength) & (table["sample"] == sample)
        at &= table["layer"].isin([layer, UNSTEERED])
        found[layer, strength, sample] = table.loc[at, "text"].map(score_of).mean()
    return found


@pytest.mark.parametrize("blind", [False, True], ids=["with labels", "blind"])
def test_scores_come_back_to_the_places_of_their_texts(
    blind: bool, answered: Cube, tmp_path: Path
) -> None:
    lines = scored(exported(answered, tmp_path, blind=blind))
    (tmp_path / "back.jsonl").write_text("\n".join(map(json.dumps, lines)))
    judged = import_scores(answered, tmp_path / "back.jsonl", SCORE)
    assert judged.measures["judge"].layer_by == "logit_diff"
    own, other = values_of(judged), values_of(judged, "judge/random")
    assert own == pytest.approx(means_of(answered, ""), rel=1e-6)
    wanted = {("random/0", *at): value for at, value in means_of(answered, "random/0").items()}
    assert other == pytest.approx(wanted, rel=1e-6)
    assert answered["logit_diff"].equals(judged["logit_diff"])


def test_labels_stand_beside_the_text(answered: Cube, tmp_path: Path) -> None:
    lines = exported(answered, tmp_path)
    assert len(lines) == answered[RESPONSES].sizes["response"]
    first, steered = lines[0], next(line for line in lines if line["direction"])
    assert first | {"key": "", "text": "", "text_sha256": ""} == {
        **{"key": "", **PAIR, "item": "honesty/000", "direction": "", "layer": None},
        **{"strength": 0.0, "repeat": 0, "letter": "A", "text": "", "text_sha256": ""},
        **{"finished": True, "finite": True},
    }
    assert (steered["direction"], steered["layer"], steered["strength"]) == ("random/0", 3, -1.0)
    table = answered[RESPONSES].to_dataframe()
    assert sorted(line["text"] for line in lines) == sorted(table["text"])
    for line in lines:
        assert line["text_sha256"] == hashlib.sha256(line["text"].encode()).hexdigest()


def test_a_blind_file_says_nothing_of_labels(answered: Cube, tmp_path: Path) -> None:
    open_lines = {line["key"]: line for line in response_rows(answered).to_dict("records")}
    lines = exported(answered, tmp_path, blind=True)
    assert {tuple(line) for line in lines} == {("key", "item", "text", "text_sha256")}
    strengths = [open_lines[line["key"]]["strength"] for line in lines]
    changes = np.count_nonzero(np.diff(strengths))
    # Sorted strengths change twice; in a random order of 54 about 28 times.
    assert 15 < changes < 45


def test_a_file_is_the_same_whatever_the_order_of_the_table(answered: Cube, tmp_path: Path) -> None:
    n = answered[RESPONSES].sizes["response"]
    turned = answered[RESPONSES].isel(response=np.arange(n)[::-1])
    for blind in (False, True):
        out = [tmp_path / f"{blind}-{i}.jsonl" for i in range(2)]
        for cube, path in zip((answered, answered.with_tables({RESPONSES: turned})), out,
                              strict=True):  # fmt: skip
            export_responses(cube, path, blind=blind)
        assert out[0].read_bytes() == out[1].read_bytes()
        export_responses(answered, out[0], blind=blind)


def test_repeats_that_are_not_numbered_have_keys_of_their_own(
    answered: Cube, tmp_path: Path
) -> None:
    unnumbered = answered.with_tables({RESPONSES: answered[RESPONSES].drop_vars("repeat")})
    rows = response_rows(unnumbered)
    assert rows["key"].is_unique
    assert set(rows["repeat"]) == {0, 1}
    lines = scored(exported(unnumbered, tmp_path))
    assert values_of(import_scores(unnumbered, lines, SCORE)) == pytest.approx(
        means_of(answered, ""), rel=1e-6
    )


def test_directions_without_layers_stand_beside_vectors_with_layers(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """Their responses have no layer; one of them has an unsteered response of its own."""
    items = {"honesty": make_items("honesty", 24)}
    grid = blank_grid(MODELS[:1], items, layers=[], strengths=[-1, 0, 1],
                      measure=GENERATION_MATCH, directions=["both/1", "both/2"])  # fmt: skip
    cube = as_cube(make_cube(rng)).with_tables(
        {"generation_match/both": grid.drop_vars("cell_status")}
    )
    bare = pd.concat(
        [
            places(("", ), (3, 4), 1),
            places(("both/1", "both/2"), (UNSTEERED,), 1).query("strength != 0"),
            places(("both/1",), (UNSTEERED,), 1).query("strength == 0").assign(direction="both/2"),
        ]
    )  # fmt: skip
    cube = with_texts(cube, responses_of(bare))
    lines = scored(exported(cube, tmp_path))
    assert {line["layer"] for line in lines if line["direction"]} == {None}
    judged = import_scores(cube, lines, SCORE)
    assert values_of(judged) == pytest.approx(means_of(cube, ""), rel=1e-6)
    scores = {(line["direction"], line["strength"], line["item"][-1]): line["value"]
              for line in lines if line["layer"] is None}  # fmt: skip
    wanted = {
        (direction, strength, i): scores[direction if of_own else "", strength, str(i)]
        for direction, strength, i in product(("both/1", "both/2"), (-1.0, 0.0, 1.0), range(3))
        for of_own in [strength != 0 or direction == "both/2"]
    }
    assert values_of(judged, "judge/both") == pytest.approx(wanted, rel=1e-6)
    own = values_of(judged)
    assert {own[layer, 0.0, 1] for layer in (3, 4)} == {np.float32(scores["", 0.0, "1"])}


def test_what_has_no_score_is_counted_and_left_missing(answered: Cube, tmp_path: Path) -> None:
    lines, said = scored(exported(answered, tmp_path)), []
    gone = [line for line in lines if line["item"] == "honesty/001" and line["layer"] == 3]
    kept = [{**line, "value": None} if line is gone[0] else line
            for line in lines if line not in gone[1:]]  # fmt: skip
    values = values_of(import_scores(answered, kept, SCORE, report=said.append))
    assert said == [f"46 of 54 responses have a score, {len(gone)} have none"]
    assert {at for at in means_of(answered, "") if at not in values} == {(3, -1.0, 1), (3, 1.0, 1)}


def test_what_is_no_answer_gets_no_score(answered: Cube, tmp_path: Path) -> None:
    table = answered[RESPONSES]
    broken = table.assign(finite=table["finite"] & ~(table["strength"] == 1))
    cube = answered.with_tables({RESPONSES: broken})
    values = values_of(import_scores(cube, scored(exported(cube, tmp_path)), SCORE))
    assert {strength for _, strength, _ in values} == {-1, 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line | {"text": line["text"] + " "}, "have another text than the cube's"),
        (lambda line: line | {"text_sha256": "0" * 64}, "have another text than the cube's"),
        (lambda line: line | {"text": "x", "text_sha256": None}, "have another text"),
        (lambda line: {"key": line["key"], "value": 1}, "have neither 'text_sha256' nor 'text'"),
        (lambda line: line | {"key": "0" * 16}, r"have a 'key' that no response.*line 3 \(0000"),
        (lambda line: line | {"key": ["a"]}, "have a 'key' that no response"),
        (lambda line: {"value": 1}, "have a 'key' that no response.*or none"),
        (lambda line: "cut off", "1 line\\(s\\) are not JSON objects: line 3"),
        (lambda line: line | {"value": "good"}, r"hold no number in 'value'.*has 'good'"),
        (lambda line: line | {"value": float("inf")}, "hold no number in 'value'"),
        (lambda line: line | {"value": 10**400}, "hold no number in 'value'"),
        (lambda line: line | {"value": 1.5}, r"have a score outside \[0, 1\].*has 1\.5"),
    ],
)
def test_lines_that_cannot_be_used_are_listed(
    change: Callable[[Line], Any], said: str, answered: Cube, tmp_path: Path
) -> None:
    lines = [{**line, "value": 1} for line in exported(answered, tmp_path)]
    lines[2] = change(lines[2])
    with pytest.raises(ValueError, match=f"(?s)the scores breaks 1 rule.*{said}"):
        import_scores(answered, lines, Measure("judge", kind="binary"))


def test_every_fault_is_in_one_message_with_its_first_lines(answered: Cube, tmp_path: Path) -> None:
    lines = scored(exported(answered, tmp_path))
    bad = [*lines, *lines[:5], {**lines[0], "key": "new"}]
    (tmp_path / "back.jsonl").write_text("\n".join(map(json.dumps, bad)) + "\n\n")
    with pytest.raises(ValueError, match="breaks 3 rule") as error:
        import_scores(answered, tmp_path / "back.jsonl", SCORE)
    assert "5 line(s) repeat the key of an earlier line (a response has one score): line 55 (" in (
        str(error.value)
    )
    assert [str(error.value).count(f"line {n}") for n in range(55, 62)] == [1, 1, 1, 0, 0, 1, 1]
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file"):
        import_scores(answered, tmp_path / "none.jsonl", SCORE)


def test_a_score_may_be_in_another_column_and_a_table(answered: Cube, tmp_path: Path) -> None:
    lines = exported(answered, tmp_path)
    table = pd.DataFrame(lines).assign(right=True)[["key", "text_sha256", "right"]]
    judged = import_scores(answered, table, Measure("judge", kind="binary"), column="right")
    assert set(values_of(judged).values()) == {1.0}
    with pytest.raises(ValueError, match=r"no line has 'rigth'.*did you mean 'right'"):
        import_scores(answered, table, SCORE, column="rigth")
    with pytest.raises(ValueError, match="holds no score of a response in the column 'right'"):
        import_scores(answered, table.assign(right=np.nan), SCORE, column="right")


def test_a_cube_without_responses_says_what_to_do(rng: np.random.Generator, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no responses, only logit_diff.*add-measure"):
        export_responses(as_cube(make_cube(rng)), tmp_path / "texts.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_file_with_anything_else_is_not_replaced(answered: Cube, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("scores of an afternoon")
    with pytest.raises(ValueError, match=r"replacing .*texts\.jsonl"):
        export_responses(answered, tmp_path / "texts.jsonl")
    assert (tmp_path / "texts.jsonl").read_text() == "scores of an afternoon"
    for path in ("texts.nc", "no/texts.jsonl"):
        with pytest.raises(ValueError, match=r"name a \.jsonl file in a folder that exists"):
            export_responses(answered, tmp_path / path)


def test_every_response_of_smollm2_is_scored_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cube = str(ROOT / "data" / "smollm2.nc")
    assert main(["responses", "export", cube, "--out", "texts.jsonl", "--blind"]) == 0
    lines = [json.loads(line) for line in Path("texts.jsonl").read_text().splitlines()]
    assert f"wrote texts.jsonl: {len(lines):,} responses" in capsys.readouterr().out
    back = [{"key": of["key"], "text": of["text"], "grade": len(of["text"])} for of in lines]
    Path("scored.jsonl").write_text("\n".join(map(json.dumps, back)))
    given = ["--to", cube, "--name", "length", "--column", "grade", "--units", "characters"]
    record = ["--compare", "-1:1", "--layer-by", "logit_diff"]
    words = ["responses", "import", "scored.jsonl", *given, *record]
    assert main([*words, "--out", "judged.nc"]) == 0
    assert "9,840 of 9,840 responses have a score, 0 have none" in capsys.readouterr().out
    judged = open_cube("judged.nc")
    lengths = judged["length"]["length"]
    assert lengths.sel(strength=0).std("layer").max() == 0
    both = judged["generation_match"]["generation_valid"].notnull() == lengths.notnull()
    assert both.all()
    assert (judged.measures["length"].units, judged.measures["length"].layer_by) == (
        *("characters", "logit_diff"),
    )
    Path("scored.jsonl").write_text("\n".join(map(json.dumps, back)).replace("(A)", "(B)", 1))
    assert main([*words, "--out", "again.nc"]) == 2
    assert "1 line(s) have another text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["responses"], "steercube responses: the following arguments are required"),
        (["responses", "exprot"], "invalid choice: 'exprot'"),
        (["responses", "export", "x.nc", "--out", "x", "--bilnd"], "did you mean '--blind'"),
        (["responses", "import", "x", "--nmae", "x"], "steercube responses import: "),
    ],
)
def test_a_misspelt_command_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_an_odd_text_survives_the_file_of_a_cube(answered: Cube, tmp_path: Path) -> None:
    save_cube(answered, tmp_path / "mine.nc")
    again = open_cube(tmp_path / "mine.nc")
    assert exported(again, tmp_path) == response_rows(answered).to_dict("records")


def test_a_concepts_vector_without_layers_keeps_its_own_grid(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """Though it is the concept's own vector: its responses are not those of any layer."""
    items = {"honesty": make_items("honesty", 24)}
    grid = blank_grid(MODELS[:1], items, layers=[], strengths=[-1, 0, 1],
                      measure=GENERATION_MATCH, directions=["honesty"])  # fmt: skip
    cube = as_cube(make_cube(rng)).with_tables(
        {"generation_match/honesty": grid.drop_vars("cell_status")}
    )
    steered = places(("honesty",), (UNSTEERED,), 1).query("strength != 0")
    bare = pd.concat([places(("",), (3, 4), 1), steered])
    cube = with_texts(cube, responses_of(bare))
    judged = import_scores(cube, scored(exported(cube, tmp_path)), SCORE)
    assert {path for path in judged if path.startswith("judge")} == {"judge", "judge/honesty"}
    assert judged["judge"]["layer"].values.tolist() == [3, 4]
    assert "layer" not in judged["judge/honesty"].dims

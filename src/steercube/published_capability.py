"""The published study's runs on GSM8K, TriviaQA and other behaviours' items, under steering.

Each file has the responses of one model to one set of questions, steered by one concept's vector at
five strengths, greedy, at a single layer that the file does not name. Strength 0 is one run for all
vectors. GSM8K and TriviaQA come with the study's own grading, which is taken as it is; answers to
behavioural items are read anew, and the study's reading stands beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd
import xarray as xr

from steercube.answers import answer_of
from steercube.contract import UNSTEERED, Item
from steercube.cube import grid_of
from steercube.measures import GENERATION_MATCH, PUBLISHED, READ, SLOPE, Measure
from steercube.schema import raise_if_any

FOLDER = "results/capability_eval/evaluated"
CONCEPT_OF_VECTOR = {
    "neutral_HHH": "corrigible",
    "awareness_text_model": "self_awareness",
    "sycophancy": "sycophancy",
}
CORRECT = Measure(
    "correct",
    kind="binary",
    words="share of questions answered correctly, by the study's own grading",
    toward="the right answer",
    compare=SLOPE,
)
BEHAVIORAL = "behavioral"
PLACE = ["model", "concept", "direction", "strength", "sample"]
COLUMNS = ["prompt", "generation", "strength", "repeat", "category"]
OF_GRADED = [*COLUMNS, "correct"]
OF_BEHAVIORAL = [*COLUMNS, "expected_matching", "is_valid", "matches_behavior"]
N_STRENGTHS = 5
FLAGS = {"True": 1.0, "False": 0.0}
FLAGGED = ("correct", "is_valid", "matches_behavior")


class Run(NamedTuple):
    """One file: the questions that were asked, the concept whose vector steered, and the model."""

    asked: str
    direction: str
    model: str


def runs(paths: Mapping[str, Path]) -> dict[Run, Path]:
    """The capability files among `paths`, by what each is a run of."""
    found = {}
    for path, local in paths.items():
        if PurePosixPath(path).match(f"{FOLDER}/*_evaluated.csv"):
            stem = PurePosixPath(path).stem.removesuffix("_evaluated")
            named, _, model = stem.partition("_Qwen_Qwen3_")
            asked, _, vector = named.partition("_")
            found[Run(asked, CONCEPT_OF_VECTOR[vector], model)] = local
    return found


def read_run(path: Path, run: Run) -> pd.DataFrame:
    """Checked rows of one file, one per (strength, question), with the labels of the run.

    Raises ValueError that lists its problems.
    """
    columns = OF_BEHAVIORAL if run.asked == BEHAVIORAL else OF_GRADED
    try:
        frame = pd.read_csv(path, keep_default_na=False)
    except ValueError as error:
        raise ValueError(f"{path}: is not a CSV table ({error})") from error
    raise_if_any(
        [f"column {name!r} is missing" for name in columns if name not in frame], what=str(path)
    )
    flags = {name: frame[name].astype(str).map(FLAGS) for name in FLAGGED if name in columns}
    # A published reading without a letter has no match to speak of.
    unread = flags.get("is_valid", pd.Series(1.0, frame.index)) == 0
    problems = [
        f"{name} is neither True nor False in {n} row(s)"
        for name, values in flags.items()
        if (n := int((values.isna() & ~(unread & (name == "matches_behavior"))).sum()))
    ]
    strengths = sorted(set(frame["strength"]))
    if len(strengths) != N_STRENGTHS or 0 not in strengths:
        problems.append(f"has the strengths {strengths}; there are {N_STRENGTHS}, one of them 0")
    asked = frame.groupby(["category", "prompt"]).agg(
        n=("strength", "size"), of=("strength", "nunique")
    )
    if (asked != len(strengths)).any(axis=None):
        problems.append("a question is not asked once at each strength")
    raise_if_any(problems, what=str(path))
    labels = {"model": run.model, "direction": run.direction}
    return frame[columns].rename(columns={"category": "concept"}).assign(**labels | flags)


def new_items(
    frames: Iterable[pd.DataFrame], known: Iterable[str]
) -> tuple[dict[str, list[Item]], dict[str, list[str]]]:
    """Items and prompts, by concept, of the sets of questions that are not among `known`."""
    items: dict[str, list[Item]] = {}
    prompts: dict[str, list[str]] = {}
    for frame in frames:
        for concept in set(frame["concept"]) - set(known) - set(items):
            first = frame[frame["concept"] == concept].drop_duplicates("prompt")
            letters = first.get("expected_matching", pd.Series("", first.index))
            items[concept] = [
                Item(f"{concept}/{i:03d}", letter.strip("()")) for i, letter in enumerate(letters)
            ]
            prompts[concept] = first["prompt"].tolist()
    return items, prompts


def placed(frame: pd.DataFrame, prompts: Mapping[str, Sequence[str]], *, what: str) -> pd.DataFrame:
    """The rows with the number (`sample`) of each question among its concept's `prompts`.

    Raises ValueError for a question that is not among them.
    """
    number = {(c, prompt): i for c, of in prompts.items() for i, prompt in enumerate(of)}
    sample = [number.get(key, -1) for key in zip(frame["concept"], frame["prompt"], strict=True)]
    lost = sample.count(-1)
    raise_if_any([f"{lost} prompt(s) differ from the evaluation set's"][:lost], what=what)
    return frame.assign(sample=sample)


def capability_grids(rows: pd.DataFrame, facts: xr.Dataset) -> dict[str, xr.Dataset]:
    """Grids of the runs, by path: one of each measure for each vector, without a layer."""
    grids = {}
    for direction, of_vector in rows.groupby("direction", sort=True):
        graded = of_vector["correct"].notna()
        for measure, of_measure in (
            (CORRECT, of_vector[graded]),
            (GENERATION_MATCH, both_readings(of_vector[~graded])),
        ):
            if len(of_measure):
                grid = grid_of(of_measure, measure, facts=facts)
                grids[f"{measure.name}/{direction}"] = grid
    return grids


def both_readings(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of an answers' grid: each response as read anew, and as the study read it."""
    answer = rows["generation"].map(answer_of)
    matches = (answer == rows["expected_matching"].str.strip("()")).astype(float)
    readings = {
        READ: (matches.where(answer != ""), (answer != "").astype(float)),
        PUBLISHED: (rows["matches_behavior"].where(rows["is_valid"] == 1), rows["is_valid"]),
    }
    return pd.concat(
        rows[PLACE].assign(reading=reading, generation_match=match, generation_valid=valid)
        for reading, (match, valid) in readings.items()
    )


def responses_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the table of responses: the answers to behavioural items."""
    behavioral = rows[rows["correct"].isna()]
    kept = behavioral[[*PLACE, "generation", "repeat"]].rename(columns={"generation": "text"})
    return kept.assign(layer=UNSTEERED)

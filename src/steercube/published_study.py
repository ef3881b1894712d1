"""Import the published study as a cube: fetch its files or read them from a folder, and check them.

The study's repository states no licence, so its files and the cube made from them are never
redistributed.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pooch
import requests
import xarray as xr

from steercube import __version__, published_capability
from steercube.answers import answer_of
from steercube.concepts import Concept, Question
from steercube.contract import CONTRACT, RESPONSE_VARIABLES, RESPONSES, SCORED_LETTERS, Item, Model
from steercube.cube import Cube, grid_of
from steercube.labels import facts_of
from steercube.measures import GENERATION_MATCH, GENERATION_RATE, LOGIT_DIFF, PUBLISHED, READ
from steercube.schema import raise_if_any

COMMIT = "a01cacb5d9637f1718c55053efce1cf9b29c5238"
BASE_URL = f"https://raw.githubusercontent.com/obayyub/steering/{COMMIT}/"
STRENGTHS = (-1.0, 0.0, 1.0)
CONCEPT_OF_GENERATION_FOLDER = {
    "corrigible_neutral_HHH": "corrigible",
    "self_awareness_text_model": "self_awareness",
    "sycophancy": "sycophancy",
}
CONCEPT_OF_RESPONSES = "self_awareness"
PROMPTS_PER_RATE = 20
"""Prompts per published rate: `valid_rate` x 3 strengths x 20 is a whole number in every row."""

SWEEP_COLUMNS = [
    *("model", "concept", "layer", "strength", "prompt_idx", "matching_answer"),
    *("logprob_A", "logprob_B", "logit_diff_AB", "logit_diff_matching"),
]
RATE_COLUMNS = ["layer", "baseline_rate", "positive_rate", "negative_rate", "delta", "valid_rate"]
RESPONSE_COLUMNS = [
    *("layer", "strength", "prompt_idx", "prompt", "generation"),
    *("matching_answer", "matches_behavior", "is_valid"),
]
NUMBER_COLUMNS = {
    *("layer", "strength", "prompt_idx", "delta"),
    *(name for name in SWEEP_COLUMNS if name.startswith("log")),
    *(name for name in RATE_COLUMNS if name.endswith("rate")),
}


def registry() -> dict[str, str]:
    """SHA-256 of every published file, by its path in the study's repository."""
    text = files("steercube").joinpath("study_registry.txt").read_text("utf-8")
    return dict(line.split() for line in text.splitlines())


def needed(*, capability: bool = False) -> list[str]:
    """Paths of the files that the cube is made from: all but the training pairs.

    With `capability` also those of the runs on GSM8K, TriviaQA and other behaviours' items.
    """
    return [
        path
        for path in registry()
        if not path.endswith("_contrastive_pairs.json")
        and (capability or not path.startswith(published_capability.FOLDER))
    ]


def concept_paths() -> list[str]:
    """Paths of the training pairs and the evaluation items."""
    return [path for path in registry() if path.startswith("data/")]


def study_files(
    folder: str | Path | None = None,
    *,
    paths: Sequence[str] | None = None,
    base_url: str = BASE_URL,
    cache: str | Path | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Local path of each file, its SHA-256 verified; fetched first if no folder is given.

    `paths` are paths in the study's repository (default: the files that the cube is made from).
    Raises ValueError that lists every missing or altered file, ConnectionError where a file
    cannot be fetched. Files already in the cache are not fetched again.
    """
    wanted = needed() if paths is None else paths
    if folder is not None:
        return _files_in(Path(folder), wanted)
    known = registry()
    store = pooch.create(
        path=cache or pooch.os_cache("steercube"),
        base_url=base_url,
        registry={path: f"sha256:{known[path]}" for path in wanted},
        retry_if_failed=2,
    )
    fetched = {}
    for number, path in enumerate(wanted, start=1):
        report(f"[{number}/{len(wanted)}] {path}")
        try:
            fetched[path] = Path(store.fetch(path))
        except requests.RequestException as error:
            raise ConnectionError(
                f"{store.get_url(path)}: cannot be fetched ({error}). Run the command again to go "
                "on from here, or give a folder that holds the study with --from."
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{store.get_url(path)}: its SHA-256 is not {known[path]}, so it is not the file "
                "that was published. It was discarded."
            ) from error
    return fetched


def _files_in(folder: Path, wanted: Sequence[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; it should hold the study's files")
    known = registry()
    problems = []
    for path in wanted:
        if not (folder / path).is_file():
            problems.append(f"{path} is missing from {folder}")
        elif (sha := pooch.file_hash(str(folder / path))) != known[path]:
            problems.append(
                f"{path} was altered or truncated: SHA-256 {sha[:16]}..., not {known[path][:16]}..."
            )
    raise_if_any(problems, what=f"the study in {folder} (commit {COMMIT[:8]})")
    return {path: folder / path for path in wanted}


def study_cube(paths: Mapping[str, Path], models: Mapping[str, Model]) -> Cube:
    """The study's logit sweep, generation rates and responses as one cube.

    Its capability runs are added if their files are among `paths`. Raises ValueError that lists the
    problems of the first file that has any.
    """
    sweeps = _by_model_and_concept(paths, "results/logit_diff_sweep/*/*/*.csv")
    rates = _by_model_and_concept(paths, "results/layer_search/*/*/*.csv")
    responses = {
        PurePosixPath(path).parts[-2].removeprefix("Qwen3-"): path
        for path in paths
        if PurePosixPath(path).match("results/results_100prompt/*/*/*.csv")
    }
    items = read_items(paths)
    asked = {
        run: published_capability.read_run(path, run)
        for run, path in published_capability.runs(paths).items()
    }
    others, their_prompts = published_capability.new_items(asked.values(), items)
    names = {model for model, _ in sweeps} | {model for model, _ in rates}
    names |= {run.model for run in asked}
    unknown = sorted(names - set(models))
    raise_if_any([f"model {name!r} has no entry" for name in unknown], what="the list of models")
    by_size = sorted((models[name] for name in names), key=lambda m: m.n_params)
    facts = facts_of(by_size, items | others)
    prompts = _read_json(paths, CONCEPT_OF_RESPONSES, "eval_prompts")
    swept = [
        _sweep_rows(read_sweep(paths[path], models[model], items[concept]), model, concept)
        for (model, concept), path in sweeps.items()
    ]
    rated = [
        _rate_rows(read_rates(paths[path], models[model]), model, folder)
        for (model, folder), path in rates.items()
    ]
    read = [
        read_responses(paths[path], models[model], prompts).assign(model=model)
        for model, path in sorted(responses.items())
    ]
    every = pd.concat(read).assign(concept=CONCEPT_OF_RESPONSES)
    every = every.rename(columns={"prompt_idx": "sample", "generation": "text"})
    texts = every.assign(direction="", repeat=0)
    runs = [
        published_capability.placed(frame, _prompts(paths, items) | their_prompts, what=str(run))
        for run, frame in asked.items()
    ]
    if runs:
        rows = pd.concat(runs)
        texts = pd.concat([texts, published_capability.responses_of(rows)])
    grids = published_capability.capability_grids(rows, facts) if runs else {}
    tables = {
        LOGIT_DIFF.name: grid_of(pd.concat(swept), LOGIT_DIFF, facts=facts),
        GENERATION_MATCH.name: grid_of(_both_readings(every), GENERATION_MATCH, facts=facts),
        GENERATION_RATE.name: grid_of(pd.concat(rated), GENERATION_RATE, facts=facts),
        **grids,
        RESPONSES: xr.Dataset(
            {
                name: ("response", texts[name].to_numpy(), variable.attrs)
                for name, variable in RESPONSE_VARIABLES.items()
                if name in texts
            }
        ),
    }
    return Cube(tables, CONTRACT | _provenance(paths))


def _by_model_and_concept(paths: Mapping[str, Path], pattern: str) -> dict[tuple[str, str], str]:
    keyed = {}
    for path in paths:
        if PurePosixPath(path).match(pattern):
            concept, folder = PurePosixPath(path).parts[-3:-1]
            keyed[folder.removeprefix("Qwen_Qwen3_").replace("_", "-"), concept] = path
    return keyed


def _provenance(paths: Mapping[str, Path]) -> dict[str, Any]:
    known = registry()
    return {
        "title": "Steering sweep over the Qwen3 family, as published",
        "source": f"https://github.com/obayyub/steering at {COMMIT}",
        "history": f"imported by steercube {__version__} from {len(paths)} published files",
        "layer_convention": "vector read at the input of block L, added at its output",
        "positions_steered": "every position",
        "read_token": "'(A' and '(B', single tokens, at the last prompt position",
        "dtype": "bfloat16",
        "seed": "logits involve no random choice; generations were sampled at temperature 0.7, "
        "their seed is not recorded",
        "versions": "not recorded by the study",
        "inputs_sha256": json.dumps({path: known[path] for path in sorted(paths)}),
    }


def read_items(paths: Mapping[str, Path]) -> dict[str, list[Item]]:
    """Evaluation items by concept, in the order of `prompt_idx`."""
    return {concept: [q.item for q in _evaluation(paths, concept)] for concept in _concepts(paths)}


def study_concepts(paths: Mapping[str, Path]) -> dict[str, Concept]:
    """All training pairs and evaluation items that the study used, by concept.

    Pairs are kept whatever their letters, because the study read its vectors from all of them; an
    item with more than two choices is kept and marked invalid.
    """
    return {
        concept: Concept(
            concept, _pairs(paths, concept), _evaluation(paths, concept), f"{BASE_URL}data"
        )
        for concept in _concepts(paths)
    }


def _concepts(paths: Mapping[str, Path]) -> list[str]:
    return sorted({PurePosixPath(path).parts[1] for path in paths if path.startswith("data/")})


def _evaluation(paths: Mapping[str, Path], concept: str) -> tuple[Question, ...]:
    return tuple(
        Question(
            id=f"{concept}/{index:03d}",
            prompt=entry["prompt"],
            matching=_letter(entry["matching_answer"]),
            other=_letter(entry["not_matching_answer"]),
            valid=_is_two_choice(entry),
        )
        for index, entry in enumerate(_read_json(paths, concept, "eval_prompts"))
    )


def _pairs(paths: Mapping[str, Path], concept: str) -> tuple[Question, ...]:
    """Training pairs; a pair's two texts in the file are its prompt followed by an answer."""
    return tuple(
        Question(
            id=f"{concept}/train/{index:03d}",
            prompt=entry["prompt"],
            matching=_letter(entry["positive"].removeprefix(entry["prompt"])),
            other=_letter(entry["negative"].removeprefix(entry["prompt"])),
        )
        for index, entry in enumerate(_read_json(paths, concept, "contrastive_pairs"))
    )


def _prompts(paths: Mapping[str, Path], concepts: Iterable[str]) -> dict[str, list[str]]:
    """The evaluation prompts of each concept, in the order of `prompt_idx`."""
    return {
        concept: [entry["prompt"] for entry in _read_json(paths, concept, "eval_prompts")]
        for concept in concepts
    }


def _letter(answer: str) -> str:
    return answer.strip(" ()")


def _read_json(paths: Mapping[str, Path], concept: str, kind: str) -> list[dict[str, str]]:
    (path,) = (p for p in paths if PurePosixPath(p).match(f"data/{concept}/*_{kind}.json"))
    entries: list[dict[str, str]] = json.loads(paths[path].read_text("utf-8"))
    return entries


def _is_two_choice(entry: Mapping[str, str]) -> bool:
    """Whether the matching answer is a scored letter and no other letters are offered."""
    offered = set(re.findall(r"\(([A-Z])\)", entry["prompt"]))
    return _letter(entry["matching_answer"]) in SCORED_LETTERS and offered <= set(SCORED_LETTERS)


def read_sweep(path: Path, model: Model, items: list[Item]) -> pd.DataFrame:
    """Checked rows of one logit sweep, one per (layer, strength, prompt)."""
    frame = _read_csv(path, SWEEP_COLUMNS)
    letters = pd.Series([item.letter for item in items])
    problems = _grid_problems(frame, model, len(items))
    known = frame["prompt_idx"].between(0, len(items) - 1)
    expected = frame.loc[known, "prompt_idx"].map(letters)
    wrong = known & (frame["matching_answer"].str.strip("()") != expected.reindex(frame.index))
    problems += _rows(wrong, "the matching answer differs from the evaluation set's")
    columns = ["logprob_A", "logprob_B", "logit_diff_matching"]
    problems += _rows(~np.isfinite(frame[columns]).all(axis="columns"), "a value is not finite")
    sign = np.where(frame["matching_answer"] == "(A)", 1.0, -1.0)
    error = (sign * (frame["logprob_A"] - frame["logprob_B"]) - frame["logit_diff_matching"]).abs()
    problems += _rows(error > 1e-6, "logit_diff_matching is not the difference of the logprobs")
    if set(frame["model"]) != {model.name}:
        problems.append(f"names the models {sorted(set(frame['model']))}, not {model.name!r} alone")
    raise_if_any(problems, what=str(path))
    return frame


def read_rates(path: Path, model: Model) -> pd.DataFrame:
    """Checked rows of one published generation sweep, one per layer, with its rates."""
    frame = _read_csv(path, RATE_COLUMNS)
    rates = frame[["baseline_rate", "positive_rate", "negative_rate", "valid_rate"]]
    problems = _rows(frame["layer"].duplicated(), "the layer appears more than once")
    problems += _rows(~frame["layer"].between(0, model.n_layers - 1), "the model has no such layer")
    problems += _rows(~((rates >= 0) & (rates <= 1)).all(axis="columns"), "a rate is not in [0, 1]")
    raise_if_any(problems, what=str(path))
    return frame


def read_responses(path: Path, model: Model, prompts: list[dict[str, str]]) -> pd.DataFrame:
    """Checked rows of one generation sweep with its responses.

    Adds validity and match (1, 0 or NaN) of each, as published and as `answer_of` reads the text.
    """
    frame = _read_csv(path, RESPONSE_COLUMNS, keep_default_na=False)
    problems = _grid_problems(frame, model, len(prompts))
    known = frame["prompt_idx"].between(0, len(prompts) - 1)
    # Two prompts are truncated in the responses' files, so only their beginnings can be compared.
    strays = [
        not prompts[index]["prompt"].startswith(prompt) if is_known else False
        for index, prompt, is_known in zip(frame["prompt_idx"], frame["prompt"], known, strict=True)
    ]
    problems += _rows(pd.Series(strays), "the prompt differs from the evaluation set's")
    valid = frame["is_valid"].astype(str).map({"True": 1.0, "False": 0.0})
    problems += _rows(valid.isna(), "is_valid is neither True nor False")
    match = frame["matches_behavior"].astype(str).map({"True": 1.0, "False": 0.0}).where(valid == 1)
    problems += _rows((valid == 1) & match.isna(), "matches_behavior is neither True nor False")
    raise_if_any(problems, what=str(path))
    answer = frame["generation"].map(answer_of)
    matches = (answer == frame["matching_answer"].str.strip("()")).astype(float)
    return frame.assign(
        published_valid=valid,
        published_match=match,
        generation_valid=(answer != "").astype(float),
        generation_match=matches.where(answer != ""),
    )


def _read_csv(path: Path, columns: list[str], **options: Any) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not a CSV table ({error})") from error
    lacking = [column for column in columns if column not in frame]
    raise_if_any([f"column {column!r} is missing" for column in lacking], what=str(path))
    numbers = [c for c in columns if c in NUMBER_COLUMNS]
    textual = [c for c in numbers if not pd.api.types.is_numeric_dtype(frame[c])]
    raise_if_any([f"column {c!r} holds text where numbers belong" for c in textual], what=str(path))
    return frame


def _grid_problems(frame: pd.DataFrame, model: Model, n_items: int) -> list[str]:
    """Violations by rows that should be a full grid of layer x strength x prompt, each once."""
    grid = ["layer", "strength", "prompt_idx"]
    problems = _rows(frame.duplicated(grid), "layer, strength and prompt_idx appear more than once")
    problems += _rows(~frame["layer"].between(0, model.n_layers - 1), "the model has no such layer")
    problems += _rows(~frame["strength"].isin(STRENGTHS), f"the strength is none of {STRENGTHS}")
    problems += _rows(
        ~frame["prompt_idx"].between(0, n_items - 1), f"prompt_idx is not in 0..{n_items - 1}"
    )
    expected = frame["layer"].nunique() * len(STRENGTHS) * n_items
    if len(frame) < expected:
        problems.append(f"has {len(frame)} rows; its layers need {expected}")
    return problems


def _rows(wrong: pd.Series, rule: str, *, at_most: int = 3) -> list[str]:
    """One message with the rule and the file lines that break it, or none; line 1 is the header."""
    lines = [int(index) + 2 for index in wrong.index[wrong.to_numpy(dtype=bool)]]
    if not lines:
        return []
    more = f" and {len(lines) - at_most} more" if len(lines) > at_most else ""
    return [f"{rule}: row {', '.join(map(str, lines[:at_most]))}{more}"]


def _sweep_rows(frame: pd.DataFrame, model: str, concept: str) -> pd.DataFrame:
    """Rows of the logits' grid, by model, concept, layer, strength and sample."""
    letter_is_a = frame["matching_answer"] == "(A)"
    return pd.DataFrame(
        {
            **{"model": model, "concept": concept, "sample": frame["prompt_idx"]},
            **{dim: frame[dim] for dim in ("layer", "strength")},
            "logprob_matching": np.where(letter_is_a, frame["logprob_A"], frame["logprob_B"]),
            "logprob_other": np.where(letter_is_a, frame["logprob_B"], frame["logprob_A"]),
            "logit_diff": frame["logit_diff_matching"],
        }
    )


def _rate_rows(frame: pd.DataFrame, model: str, folder: str) -> pd.DataFrame:
    """Rows of the published rates' grid, by model, concept, layer and strength."""
    columns = {-1.0: "negative", 0.0: "baseline", 1.0: "positive"}
    return pd.concat(
        pd.DataFrame(
            {
                **{"model": model, "concept": CONCEPT_OF_GENERATION_FOLDER[folder]},
                **{"layer": frame["layer"], "strength": strength},
                "generation_rate": frame[f"{column}_rate"],
                "generation_valid_rate": frame["valid_rate"],
                "generation_n_prompts": float(PROMPTS_PER_RATE),
            }
        )
        for strength, column in columns.items()
    )


def _both_readings(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the answers' grid: each response as read anew, and as the study read it."""
    place = ["model", "concept", "layer", "strength", "sample"]
    return pd.concat(
        rows[place].assign(
            reading=reading,
            generation_match=rows[f"{prefix}_match"],
            generation_valid=rows[f"{prefix}_valid"],
        )
        for reading, prefix in {READ: "generation", PUBLISHED: "published"}.items()
    )

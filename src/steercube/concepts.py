"""Concepts: contrastive pairs to read a direction from, and two-choice items to measure it with.

A concept is a file `<concept>.jsonl`, one question a line:

    {"id": "honesty/train/001", "split": "train", "question": "...",
     "choices": {"A": "...", "B": "..."}, "matching": "A"}

`split` is train (pairs) or eval (items); `matching` is the letter of the answer that shows the
concept. `read_concepts` refuses what cannot be scored; `check_concepts` also reports what can be
scored but would bias the answer (letters, lengths, questions that are in both splits).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from steercube.contract import SCORED_LETTERS, Item
from steercube.schema import name_violations, raise_if_any, read_text

__all__ = ["Concept", "Question", "check_concepts", "read_concepts"]

FIELDS = {"id": str, "split": str, "question": str, "choices": dict, "matching": str}
SPLITS = ("train", "eval")
FEWEST = 2
"""Fewest questions in a split: one pair cannot be halved, and one item has no variance."""
RESERVED = ("study", "own", "random", "shuffled", "letter")
"""What `collect --concepts` calls the published study's concepts, and names of directions."""
UNWRITABLE = re.compile(r"[\0\ud800-\udfff]")
NEAR_DUPLICATE = 0.3
"""Jaccard similarity of two questions' word trigrams from which they count as the same."""
LENGTH_SKEW = 0.2
"""Largest allowed share of items whose matching option is longer, minus share where shorter."""


@dataclass(frozen=True)
class Question:
    """A two-choice question as the model sees it, and the letters of its two answers."""

    id: str
    prompt: str
    matching: str
    other: str
    valid: bool = True
    where: str = field(default="", repr=False, compare=False)
    """File and line that it was read from, for error messages."""

    @property
    def item(self) -> Item:
        """The item as the cube records it."""
        return Item(self.id, self.matching, self.valid)


@dataclass(frozen=True)
class Concept:
    """Training pairs and evaluation items of one concept."""

    name: str
    train: tuple[Question, ...]
    evaluation: tuple[Question, ...]
    source: str

    def __repr__(self) -> str:
        return f"Concept {self.name!r}: {len(self.train)} pairs, {len(self.evaluation)} items"

    @property
    def sha256(self) -> str:
        """SHA-256 of the questions of both splits, in order."""
        return hashlib.sha256(repr((self.train, self.evaluation)).encode()).hexdigest()

    def cut_to(self, *, n_pairs: int | None, n_items: int | None) -> "Concept":
        """The concept with its first `n_pairs` and `n_items` (None: all), letters balanced."""
        return replace(
            self,
            train=_balanced_head(self.train, n_pairs),
            evaluation=_balanced_head(self.evaluation, n_items),
        )


def _balanced_head(questions: tuple[Question, ...], n: int | None) -> tuple[Question, ...]:
    """The first `n` questions, in order, with matching letters as balanced as possible."""
    seen: Counter[str] = Counter()
    ranked = []
    for index, question in enumerate(questions):
        ranked.append((seen[question.matching], index))
        seen[question.matching] += 1
    return tuple(questions[index] for index in sorted(i for _, i in sorted(ranked)[:n]))


@dataclass(frozen=True)
class Line:
    """One question as it was written, and where: a file and line, or a row.

    Without `choices`, its `question` offers them itself.
    """

    where: str
    entry: dict[str, Any]

    @property
    def letters(self) -> tuple[str, str]:
        """The letter of the matching answer, and that of the other one."""
        matching = self.entry["matching"]
        return matching, next(a for a in SCORED_LETTERS if a != matching)

    @property
    def options(self) -> dict[str, str]:
        """The text of each choice by its letter, also where the question offers them itself."""
        if "choices" in self.entry:
            return dict(self.entry["choices"])
        offered = re.search(r"\(A\)(.*?)\(B\)(.*)", self.entry["question"], re.DOTALL)
        return (
            dict(zip(SCORED_LETTERS, map(str.strip, offered.groups()), strict=True))
            if offered
            else {}
        )

    @property
    def words(self) -> list[str]:
        """The words of the question."""
        kept = "".join(c if c.isalnum() else " " for c in self.entry["question"].lower())
        return kept.split()


def concept_files(source: str | Path) -> dict[str, Path]:
    """Concept files by name: all in the folder `source`, or the file `source`.

    Raises FileNotFoundError, or ValueError for a name that cannot name a folder.
    """
    source = Path(source)
    paths = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    if not paths or not all(path.is_file() for path in paths):
        why = "holds no .jsonl file" if source.is_dir() else "is not there"
        raise FileNotFoundError(
            f"{source}: neither a <concept>.jsonl file nor a folder of them ({source.absolute()} "
            f"{why}). Name one: `collect --concepts SOURCE` or `check-concepts SOURCE`"
        )
    named = {path.stem: path for path in paths}
    raise_if_any(name_violations("concept", named, reserved=RESERVED), what=str(source))
    return named


def read_concepts(source: str | Path) -> dict[str, Concept]:
    """Concepts by name, in alphabetical order.

    Raises ValueError that lists, with file and line, every entry that cannot be scored: not JSON,
    a missing field, more or fewer than two choices, a matching answer that is not a scored letter,
    a repeated id, a split with fewer than two questions.
    """
    concepts, problems = {}, []
    ids: dict[str, Line] = {}
    for name, path in concept_files(source).items():
        lines, violations = read_lines(path)
        violations = violations or unusable(path, lines, ids)
        problems += violations
        if not violations:
            concepts[name] = concept_of(name, lines, source=path.name)
    raise_if_any(problems, what=f"{source}")
    return concepts


def check_concepts(source: str | Path) -> dict[str, str]:
    """A line of facts about each concept, by its name.

    Raises ValueError that lists, with file and line, everything that `read_concepts` refuses, and
    unbalanced letters, duplicates, near-duplicates across the splits, and options whose length
    gives the answer away.
    """
    problems: list[str] = []
    facts = {}
    ids: dict[str, Line] = {}
    for name, path in concept_files(source).items():
        lines, violations = read_lines(path)
        violations = violations or unusable(path, lines, ids)
        violations = violations or [*biased(path, lines), *_duplicates(lines)]
        problems += violations
        if not violations:
            n = Counter(line.entry["split"] for line in lines)
            skew = {split: f"{_length_skew(_of(lines, split)):+.2f}" for split in SPLITS}
            facts[name] = (
                f"{n['train']} pairs, {n['eval']} items; matching option longer less shorter: "
                f"train {skew['train']}, eval {skew['eval']}"
            )
    raise_if_any(problems, what=f"{source}")
    return facts


def concept_of(name: str, lines: Sequence[Line], *, source: str) -> Concept:
    """The concept of these questions."""
    train, evaluation = (
        tuple(_question(line) for line in _of(lines, split)) for split in ("train", "eval")
    )
    return Concept(name, train, evaluation, source=source)


def _question(line: Line) -> Question:
    entry, (matching, other) = line.entry, line.letters
    prompt = entry["question"]
    if "choices" in entry:
        offered = "\n".join(f" ({letter}) {entry['choices'][letter]}" for letter in SCORED_LETTERS)
        prompt = f"{prompt}\n\nChoices:\n{offered}"
    return Question(entry["id"], prompt, matching, other, where=line.where)


def _of(lines: Iterable[Line], split: str) -> list[Line]:
    return [line for line in lines if line.entry["split"] == split]


def read_lines(path: Path) -> tuple[list[Line], list[str]]:
    """The questions of a JSONL file, and a line on every one that cannot be scored."""
    lines: list[Line] = []
    problems: list[str] = []
    try:
        content = read_text(path)
    except ValueError as error:
        return [], [str(error)]
    if not content.strip():
        return [], [f"{path}: is empty; write one question per line"]
    for number, text in enumerate(content.removesuffix("\n").split("\n"), start=1):
        where = f"{path}:{number}"
        if not text.strip():
            problems.append(f"{where}: is blank; every line must be a question")
            continue
        try:
            entry = json.loads(text, object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            problems.append(f"{where}: is not JSON ({error})")
            continue
        wrong = field_problems(entry)
        problems += [f"{where}: {problem}" for problem in wrong]
        if not wrong:
            lines.append(Line(where, entry))
    return lines, problems


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of the pairs; raises ValueError for duplicate fields, of which json keeps the last."""
    names = [name for name, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the field(s) {', '.join(repeated)} appear more than once")
    return dict(pairs)


def field_problems(entry: Any) -> list[str]:
    """Why a question cannot be scored, a line each."""
    if not isinstance(entry, dict):
        return [f"is {entry!r}, not an object with the fields {', '.join(FIELDS)}"]
    problems = [
        f"field {name!r} is {entry[name]!r}; it must be {kind.__name__}"
        if name in entry
        else f"field {name!r} is missing"
        for name, kind in FIELDS.items()
        if not isinstance(entry.get(name), kind)
    ]
    if problems:
        return problems
    if entry["split"] not in SPLITS:
        problems.append(f"split is {entry['split']!r}; it must be one of {SPLITS}")
    problems += [f"{name} is empty" for name in ("id", "question") if not entry[name].strip()]
    texts = [entry["id"], entry["question"], *map(str, entry["choices"].values())]
    if any(UNWRITABLE.search(text) for text in texts):
        problems.append("holds NUL or half of a surrogate pair, which a text file cannot hold")
    if sorted(entry["choices"]) != list(SCORED_LETTERS):
        problems.append(
            f"offers the choices {sorted(entry['choices'])}; a question has exactly two, "
            f"{' and '.join(SCORED_LETTERS)}"
        )
    elif not all(isinstance(text, str) and text.strip() for text in entry["choices"].values()):
        problems.append("a choice is empty")
    elif len(set(entry["choices"].values())) < len(SCORED_LETTERS):
        problems.append("both choices are the same")
    if entry["matching"] not in SCORED_LETTERS:
        problems.append(
            f"matching answer {entry['matching']!r} is not a scored letter "
            f"({' or '.join(SCORED_LETTERS)})"
        )
    return problems


def unusable(path: str | Path, lines: Sequence[Line], ids: dict[str, Line]) -> list[str]:
    """Missing questions and repeated ids; adds this file's to `ids`, those of earlier files."""
    problems = [
        f"{path}: has {n or 'no'} {split} question{'s' * (n > 1)}; at least {FEWEST} are needed"
        for split in SPLITS
        if (n := len(_of(lines, split))) < FEWEST
    ]
    for line in lines:
        earlier = ids.setdefault(line.entry["id"], line)
        if earlier is not line:
            problems.append(f"{line.where}: id {line.entry['id']!r} is also at {earlier.where}")
    return problems


def biased(path: str | Path, lines: Sequence[Line]) -> list[str]:
    """What would bias the answers to these questions: unbalanced letters, and lengths."""
    problems = []
    for split in SPLITS:
        of_split = _of(lines, split)
        n = Counter(line.entry["matching"] for line in of_split)
        if abs(n["A"] - n["B"]) > 1:
            problems.append(
                f"{path}: {split}: the matching answer is A {n['A']} times and B {n['B']} times; "
                "balance them within 1, or the direction is partly that of a letter"
            )
        skew = _length_skew(of_split)
        if abs(skew) > LENGTH_SKEW:
            problems.append(
                f"{path}: {split}: questions with a longer matching option minus questions with a "
                f"shorter one are {skew:+.0%} of all (at most {LENGTH_SKEW:.0%} either way); "
                "length gives the answer away"
            )
    return problems


def _length_skew(lines: Sequence[Line]) -> float:
    """(items whose matching option is longer - items where it is shorter) / items."""
    signs = []
    for line in lines:
        matching, other = (len(line.options.get(letter, "")) for letter in line.letters)
        signs.append((matching > other) - (matching < other))
    return sum(signs) / len(signs)


def _duplicates(lines: Sequence[Line]) -> list[str]:
    problems = []
    trigrams = {line.where: _trigrams(line.words) for line in lines}
    for one, two in combinations(lines, 2):
        across_splits = one.entry["split"] != two.entry["split"]
        if one.words == two.words:
            problems.append(f"{two.where}: repeats the question of {one.where}")
        elif (
            across_splits
            and (similarity := _jaccard(trigrams[one.where], trigrams[two.where])) >= NEAR_DUPLICATE
        ):
            problems.append(
                f"{two.where}: is nearly the question of {one.where}, in the other split "
                f"(trigram similarity {similarity:.2f}; it must be below {NEAR_DUPLICATE})"
            )
    return problems


def _trigrams(words: Sequence[str]) -> frozenset[tuple[str, ...]]:
    return frozenset(zip(words, words[1:], words[2:], strict=False)) or frozenset([tuple(words)])


def _jaccard(one: frozenset[Any], two: frozenset[Any]) -> float:
    return len(one & two) / len(one | two)

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny

from steercube.collect.answers import Answers
from steercube.collect.hooks import Touched
from steercube.collect.logits import Controls, Logits
from steercube.collect.outcomes import chunks, first_items, receipts, with_unsteered
from steercube.collect.readout import readout_of
from steercube.collect.unit import Unit

run = tiny.collected


@pytest.fixture(scope="module")
def unit() -> Unit:
    decoder = tiny.decoder()
    concept = tiny.concept(n_items=13)
    return Unit(decoder, readout_of(decoder.tokenizer), concept, tiny.PLAN, Path("unit"))


def test_items_of_like_length_are_in_one_chunk(unit: Unit) -> None:
    """Each item once, in chunks that do not overlap in the lengths of their prompts."""
    for outcome, n_items in ((Logits(unit), 13), (Controls(unit), 13), (Answers(unit), 8)):
        cut = chunks(outcome)
        assert sorted(item for chunk in cut for item in chunk) == outcome.items
        assert len(outcome.items) == n_items
        sizes = [len(chunk) for chunk in cut]
        assert sizes == [5] * (n_items // 5) + [n_items % 5]
        lengths = [[outcome.length(item) for item in chunk] for chunk in cut]
        assert all(max(one) <= min(next_) for one, next_ in pairwise(lengths))
        assert len({length for one in lengths for length in one}) > 3
        names = [f"{outcome.kind}-{i:04d}.nc" for i in range(len(cut))]
        assert [path.name for path in cut.values()] == names


def test_the_length_is_that_of_the_outcomes_own_prompt(unit: Unit) -> None:
    """Answers begin without the bracket behind which the letter is read."""
    assert unit.readout.answer_prefix == "("
    assert [Logits(unit).length(i) - Answers(unit).length(i) for i in range(13)] == [1] * 13


def test_the_first_items_are_balanced_by_letter(unit: Unit) -> None:
    evaluation = sorted(unit.concept.evaluation, key=lambda question: question.matching)
    of_sorted = replace(unit, concept=replace(unit.concept, evaluation=tuple(evaluation)))
    assert [q.matching for q in evaluation] == ["A"] * 7 + ["B"] * 6
    assert first_items(of_sorted, 4) == [0, 1, 7, 8]
    assert first_items(of_sorted, None) == list(range(13))


@pytest.mark.slow
def test_other_chunks_or_items_are_refused(whole: Path) -> None:
    for chunk, said in (
        (4, "chunk: 5 there, 4 now"),
        (6, r"(?s)shards of 6 .*samples-0002\.nc"),
        (12, r"(?s)shards of 12 .*samples-0001\.nc"),
    ):
        with pytest.raises(ValueError, match=said):
            run(whole.parent, plan=replace(tiny.PLAN, chunk=chunk), resume=True)
    with pytest.raises(ValueError, match="concept_sha256: "):
        run(whole.parent, plan=replace(tiny.PLAN, n_items=10), resume=True)
    for other, said in (
        ({"generation_samples": 6}, "generation_samples: 8 there, 6 now"),
        ({"control_layers": "2"}, r"layers: \[1, 2, 3, 4\] there, \[2\] now"),
        ({"control_items": 11}, "n_items: 12 there, 11 now"),
    ):
        with pytest.raises(ValueError, match=said):
            run(whole.parent, plan=replace(tiny.PLAN, **other), resume=True)


def test_strength_0_is_the_unsteered_row_at_every_layer_and_direction() -> None:
    grid = {"direction": ["own", "letter"], "layer": [3, 5], "strength": [-1.0, 2.0], "sample": [7]}
    grid |= {"answer": ["matching", "other"]}
    rows = np.arange(9 * 2.0).reshape(9, 1, 2)
    found = with_unsteered(rows, grid)
    assert found.dims == tuple(grid)
    assert found["strength"].values.tolist() == [-1, 0, 2]
    assert (found.sel(strength=0.0, answer="other") == 1).all()
    at = {"direction": "letter", "layer": 3, "strength": 2.0, "sample": 7, "answer": "matching"}
    assert found.sel(at) == rows[1 + 4 + 1, 0, 0]


def test_receipts_are_those_of_the_layers_asked_for() -> None:
    touched = {layer: Touched(layer, 10 * layer, layer / 8, n_prompts=3) for layer in (1, 2, 4)}
    assert receipts(touched, [4, 1]) == {
        "rows_touched": ("layer", [4.0, 1.0]),
        "positions_touched": ("layer", [40.0, 10.0]),
        "added_over_residual": ("layer", [0.5, 0.125]),
    }

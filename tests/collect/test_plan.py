from typing import Any

import pytest

from steercube.collect.plan import Plan, layers_of
from steercube.collect.rank import Rank


def test_strength_0_is_always_swept() -> None:
    plan = Plan(strengths=(2.0, -1.0))
    assert plan.strengths == (-1.0, 0.0, 2.0)
    assert plan.steered == (-1.0, 2.0)
    assert plan.largest == 2.0


@pytest.mark.parametrize(
    ("selection", "layers"),
    [
        ("all", list(range(36))),
        ("0.33:1.0", list(range(12, 36))),
        ("0.5:0.6", [18, 19, 20, 21]),
        ("3:6", [3, 4, 5, 6]),
        ("0.33:1.0:6", [12, 18, 24, 30]),
        ("30,2", [2, 30]),
        ("0:0.1", [0, 1, 2, 3]),
    ],
)
def test_a_selection_names_layers(selection: str, layers: list[int]) -> None:
    assert layers_of(selection, 36) == layers


@pytest.mark.parametrize("selection", ["", "36", "1.5:2.0", "a:b", "5:3", "-1", "1:2:x", "1:2:3:4"])
def test_a_selection_of_nothing_is_refused(selection: str) -> None:
    with pytest.raises(ValueError, match="select none, or some that are not among the 36 blocks"):
        layers_of(selection, 36)


def test_strengths_that_are_as_good_as_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strengths = 1.0, 1.0000001: practically equal"):
        Plan(strengths=(-1.0, 1.0, 1.0000001))
    with pytest.raises(ValueError, match=r"strengths = 0.0, 1e-05"):
        Plan(strengths=(-1.0, 1e-5))
    assert Plan(strengths=(1.0, 1.001)).strengths == (0.0, 1.0, 1.001)


def test_every_problem_of_a_plan_is_listed() -> None:
    with pytest.raises(ValueError, match="breaks 8 rule") as error:
        Plan(
            strengths=(0.0,),
            positions="some",
            convention="other",
            controls=("random", "none"),
            max_rows=1,
            n_items=0,
            n_pairs=1,
            seed=-1,
        )
    for part in ("positions = 'some'", "convention = 'other'", "controls = 'none'", "n_items = 0"):
        assert part in str(error.value)


def test_controls_are_families_and_how_many_of_each() -> None:
    plan = Plan(controls=("random:3", "letter", "shuffled"))
    assert plan.directions == ["random/0", "random/1", "random/2", "letter", "shuffled/0"]
    assert Plan().directions == []


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        (("random:0",), "controls = 'random:0': write a family and how many"),
        (("random:-1",), "controls = 'random:-1': write"),
        (("random:many",), "controls = 'random:many': write"),
        (("letter:2",), "controls = 'letter:2': write .* letter has one"),
        (("random", "random:3"), "no control twice"),
        (("radnom:3",), "controls = 'radnom' is none of random, shuffled, letter"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_controls_that_cannot_be_are_refused(controls: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Plan(controls=controls)


def test_controls_of_one_item_are_refused() -> None:
    with pytest.raises(ValueError, match="control_items = 1: at least 2"):
        Plan(controls=("random",), control_items=1)


def test_generation_takes_the_sweeps_strengths_or_some_of_them() -> None:
    assert Plan(strengths=(-2.0, 1.0)).generated == (-2.0, 1.0)
    some = Plan(strengths=(-2.0, -1.0, 1.0), generation_strengths=(1.0, -1.0))
    assert some.generated == (-1.0, 1.0)
    with_zero = Plan(generation_strengths=(1.0, 0.0, 1.0))
    assert with_zero.generated == (1.0,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"outcomes": ()}, "one or both of logit, generation"),
        ({"outcomes": ("logit", "logit")}, "one or both"),
        ({"outcomes": ("text",)}, "outcomes = 'text' is none of logit, generation"),
        ({"generation_strengths": (3.0,)}, "some of the strengths"),
        ({"generation_strengths": (0.0,)}, "not 0 alone"),
        ({"temperature": 1e-9}, "temperature = 1e-09"),
        ({"generation_samples": 1}, "generation_samples = 1: at least 2"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"repeats": 3}, "repeats = 3 at temperature 0"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_generation_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Plan(**options)


def test_the_rank_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Rank.of_environment() == Rank(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Rank.of_environment() == Rank(1, 2)
    assert not Rank.of_environment().leads

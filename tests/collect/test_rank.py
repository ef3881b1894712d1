import pytest

from steercube.collect.rank import Rank


def test_one_process_is_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Rank.of_environment() == Rank(0, 1)
    assert Rank.of_environment().leads


def test_a_launcher_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Rank.of_environment() == Rank(1, 2)
    assert not Rank.of_environment().leads


@pytest.mark.parametrize(("rank", "size"), [("0", "0"), ("3", "2"), ("a", "2"), ("0", "-1")])
def test_what_is_no_rank_is_refused(rank: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ValueError, match=f"RANK = '{rank}', WORLD_SIZE = '{size}'"):
        Rank.of_environment()

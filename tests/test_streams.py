from steercube.streams import stream


def test_streams_differ_by_name_and_seed_and_repeat() -> None:
    def draw(name: str, seed: int) -> float:
        return stream(name, seed=seed).random()

    draws = {draw(name, seed) for name in ("items", "halves") for seed in (0, 1)}
    assert len(draws) == 4
    assert draw("items", 0) in draws

from pathlib import Path

import pytest

from steercube.analysis.simulated.keeping import KeptIn, made_anew


def counted() -> tuple[list[int], object]:
    calls: list[int] = []

    def make() -> list[list[float]]:
        calls.append(1)
        return [[0.1 + 0.2, 3], [float(len(calls))]]

    return calls, make


def test_what_is_kept_is_made_once_and_read_back_to_the_last_bit(tmp_path: Path) -> None:
    calls, make = counted()
    first = KeptIn(tmp_path, "cells")("one", make)
    second = KeptIn(tmp_path, "cells")("one", make)
    assert first == second == [[0.1 + 0.2, 3], [1.0]]
    assert len(calls) == 1


@pytest.mark.parametrize("made_from", ["cells", "other cells"])
@pytest.mark.parametrize("name", ["one", "two"])
def test_another_name_or_source_is_made_anew(tmp_path: Path, made_from: str, name: str) -> None:
    calls, make = counted()
    KeptIn(tmp_path, "cells")("one", make)
    KeptIn(tmp_path, made_from)(name, make)
    assert len(calls) == (1 if (made_from, name) == ("cells", "one") else 2)


@pytest.mark.parametrize("text", ["", '{"key": ', "[]", '{"key": "other", "rows": []}'])
def test_a_file_that_was_cut_off_is_made_anew(tmp_path: Path, text: str) -> None:
    _, make = counted()
    keep = KeptIn(tmp_path, "cells")
    keep("one", make)
    next(tmp_path.glob("*.json")).write_text(text)
    assert keep("one", make)[1] == [2.0]
    assert not list(tmp_path.glob("*.part"))


def test_without_a_folder_nothing_is_kept() -> None:
    calls, make = counted()
    made_anew("one", make)
    made_anew("one", make)
    assert len(calls) == 2

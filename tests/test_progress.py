import sys
import time
import types
from typing import Any

import pytest
from children import HANGS
from tqdm import tqdm

from steercube import progress
from steercube.progress import Stage, clock, stage, timed


class NoBar:
    n = initial = last_print_n = 0

    def update(self, n: int) -> None:
        self.n += n

    def set_postfix_str(self, text: str) -> None:
        self.postfix = text


def test_each_line_says_when() -> None:
    lines: list[str] = []
    timed(lines.append)("  tables")
    assert lines == ["   0:00   tables"]


def test_a_stage_tells_what_is_done_and_what_is_left() -> None:
    under_way = Stage("sampling", NoBar(), total=400, unit="draw", start=time.monotonic() - 60)
    assert under_way.line == "sampling: 0 of 400 draws, 1:00 so far"
    under_way.advance(100)
    under_way.at("chain 2")
    assert under_way.line == "sampling: 100 of 400 draws, chain 2, 1:00 so far, about 3:00 left"


def test_what_an_earlier_run_did_says_nothing_of_the_time_left() -> None:
    under_way = Stage("m", NoBar(), total=400, unit="cell", start=time.monotonic() - 60)
    under_way.skip(200)
    assert "left" not in under_way.line
    under_way.advance(100)
    assert under_way.line == "m: 300 of 400 cells, 1:00 so far, about 1:00 left"
    assert under_way.bar.initial == 200


def test_a_stage_of_unknown_length_tells_how_long_it_took() -> None:
    under_way = Stage("tables", NoBar(), None, "step", start=time.monotonic() - 3600)
    assert under_way.line == f"tables: {clock(3600)} so far"


def test_without_a_terminal_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with stage("tables", total=4, unit="table") as under_way:
        under_way.advance(1)
        until = time.monotonic() + HANGS
        said = ""
        while said.count("\n") < 2 and time.monotonic() < until:
            time.sleep(0.02)
            said += capsys.readouterr().err
    assert said.startswith("tables: 1 of 4 tables, 0:00 so far")
    assert "\r" not in said


def test_a_stage_that_ends_at_once_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("tables"):
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_on_a_terminal_a_bar(
    shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with stage("tiny", total=4, unit="cell", shown=shown) as under_way:
        under_way.at("honesty")
        under_way.advance(4)
        under_way.bar.refresh()
    out, err = capsys.readouterr()
    assert out == ""
    assert ("honesty" in err and "4/4" in err) == shown
    assert bool(err) == shown


def test_a_stage_that_fails_ends_its_thread() -> None:
    import threading

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), stage("tables"):
        print(1 / (threading.active_count() - before - 1))
    assert threading.active_count() == before


class ZMQInteractiveShell:
    """What IPython's own is called in a kernel."""


def test_a_notebook_shows_a_bar_though_it_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = types.SimpleNamespace(get_ipython=ZMQInteractiveShell)
    assert not progress.in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert progress.in_notebook()
    with stage("tables", total=4, unit="table") as under_way:
        under_way.advance(4)
    assert "100%" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not progress.in_notebook()


def test_a_notebook_with_widgets_shows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = types.SimpleNamespace(get_ipython=ZMQInteractiveShell)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setattr(progress, "find_spec", lambda name: object())
    shown: list[str] = []

    class Widget(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            shown.append(kwargs["desc"])
            super().__init__(*args, **{**kwargs, "disable": True})

    monkeypatch.setitem(sys.modules, "tqdm.notebook", types.SimpleNamespace(tqdm=Widget))
    with stage("tables", total=4, unit="table") as under_way:
        under_way.advance(4)
        under_way.skip(1)
    assert shown == ["tables"]

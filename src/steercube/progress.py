"""Progress of long stages on stderr: a bar on a terminal or in a notebook, else lines.

Elsewhere a line is printed every EVERY seconds.

It never affects results. A stage that reports no steps still shows its elapsed time.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

Report = Callable[[str], None]

EVERY = 30.0
"""Seconds between two lines of a stage if stderr is not a terminal."""
REDRAWN = 1.0
"""Seconds between two updates of a bar's clock."""
WITHOUT_TOTAL = "{desc} [{elapsed}{postfix}]"
"""Format of a bar whose total is unknown."""


def clock(seconds: float) -> str:
    """A duration as [h:]m:ss.

    >>> clock(7.9), clock(3725)
    ('0:07', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def timed(report: Report) -> Report:
    """A copy of `report` that begins each line with the time since this call."""
    start = time.monotonic()
    return lambda line: report(f"{clock(time.monotonic() - start):>7} {line}")


@dataclass
class Stage:
    """A running stage: its name, how much is done, and the part it is working on.

    `total` counts `unit`s; None if unknown. `skipped` units were done by an earlier run, so they do
    not count for the estimate of the time left.
    """

    what: str
    bar: Any
    total: int | None
    unit: str
    now: str = ""
    done: int = 0
    skipped: int = 0
    start: float = field(default_factory=time.monotonic)

    def advance(self, n: int) -> None:
        """Count `n` more units as done."""
        self.done += n
        self.bar.update(n)

    def skip(self, n: int) -> None:
        """Count `n` units as done by an earlier run."""
        self.done += n
        self.skipped += n
        for name in ("n", "initial", "last_print_n"):
            setattr(self.bar, name, getattr(self.bar, name, 0) + n)

    def at(self, now: str) -> None:
        """Set the part that the stage is working on."""
        self.now = now
        self.bar.set_postfix_str(now)

    def write(self, line: str) -> None:
        """Print a line on stdout, above the bar if there is one."""
        self.bar.write(line)

    @property
    def line(self) -> str:
        """The state of the stage as one line, with the time elapsed and an estimate of the rest."""
        took = time.monotonic() - self.start
        parts = [f"{self.done} of {self.total} {self.unit}s"] if self.total else []
        parts += [self.now] if self.now else []
        parts += [f"{clock(took)} so far"]
        done_now = self.done - self.skipped
        if self.total and done_now > 0:
            parts += [f"about {clock(took * max(0, self.total - self.done) / done_now)} left"]
        return f"{self.what}: {', '.join(parts)}"


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, whose output is not a terminal but shows bars."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def _bar() -> Any:
    """The class of bars: a widget in a notebook that has ipywidgets, else text."""
    if in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget
    return tqdm


@contextmanager
def stage(
    what: str, *, total: int | None = None, unit: str = "step", shown: bool = True
) -> Iterator[Stage]:
    """A running Stage whose progress is shown until the context ends, if `shown`."""
    has_bar = shown and (sys.stderr.isatty() or in_notebook())
    form = {} if total else {"bar_format": WITHOUT_TOTAL}
    with _bar()(
        total=total,
        desc=what,
        unit=unit,
        disable=not has_bar,
        leave=bool(total),
        dynamic_ncols=True,
        **form,
    ) as bar:
        under_way = Stage(what, bar, total, unit)
        ended = threading.Event()

        def show() -> None:
            while not ended.wait(REDRAWN if has_bar else EVERY):
                if has_bar:
                    bar.refresh()
                else:
                    print(under_way.line, file=sys.stderr, flush=True)

        display = threading.Thread(target=show, daemon=True)
        if shown:
            display.start()
        try:
            yield under_way
        finally:
            ended.set()
            if shown:
                display.join()

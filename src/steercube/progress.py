"""How far a long stage has come, on stderr: a bar on a terminal, elsewhere a line now and then.

Nothing of it reaches a result, and a stage that tells nothing is still seen to be alive.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

Report = Callable[[str], None]

EVERY = 30.0
"""Seconds between two lines of a stage where stderr is no terminal."""
REDRAWN = 1.0
"""Seconds after which a bar's clock moves, whatever else does."""
WITHOUT_TOTAL = "{desc} [{elapsed}{postfix}]"
"""A bar's form where nobody knows how much is to be done."""


def clock(seconds: float) -> str:
    """A duration as a clock shows it.

    >>> clock(7.9), clock(3725)
    ('0:07', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def timed(report: Report) -> Report:
    """`report`, each line after the time since now."""
    start = time.monotonic()
    return lambda line: report(f"{clock(time.monotonic() - start):>7} {line}")


@dataclass
class Stage:
    """A stage under way: what it is, how much of it is done, and what it is at.

    `total` counts `unit`s; None where that is not known. `skipped` ones were done before, so they
    say nothing of how long the others take.
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
        """So many more are done."""
        self.done += n
        self.bar.update(n)

    def skip(self, n: int) -> None:
        """So many need not be done, for an earlier run did them."""
        self.done += n
        self.skipped += n
        for name in ("n", "initial", "last_print_n"):
            setattr(self.bar, name, getattr(self.bar, name, 0) + n)

    def at(self, now: str) -> None:
        """It goes on with this part of itself."""
        self.now = now
        self.bar.set_postfix_str(now)

    def write(self, line: str) -> None:
        """Print a line on stdout, above the bar where there is one."""
        self.bar.write(line)

    @property
    def line(self) -> str:
        """All of it in one line, with the time that it took so far and the time left."""
        took = time.monotonic() - self.start
        parts = [f"{self.done} of {self.total} {self.unit}s"] if self.total else []
        parts += [self.now] if self.now else []
        parts += [f"{clock(took)} so far"]
        made = self.done - self.skipped
        if self.total and made > 0:
            parts += [f"about {clock(took * max(0, self.total - self.done) / made)} left"]
        return f"{self.what}: {', '.join(parts)}"


@contextmanager
def stage(
    what: str, *, total: int | None = None, unit: str = "step", shown: bool = True
) -> Iterator[Stage]:
    """A stage that shows itself until it ends; not at all unless `shown`."""
    has_bar = shown and sys.stderr.isatty()
    form = {} if total else {"bar_format": WITHOUT_TOTAL}
    with tqdm(
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

        shower = threading.Thread(target=show, daemon=True)
        if shown:
            shower.start()
        try:
            yield under_way
        finally:
            ended.set()
            if shown:
                shower.join()

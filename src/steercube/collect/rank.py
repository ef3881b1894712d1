"""The rank of this process among those that a launcher started together.

`size` processes next to each other hold one copy of the model together, and are a group: its
weights are spread over them, so they make the same calls, on the same rows, in the same order. Each
group makes its own share of the shards, alone: groups meet in the folder of shards and nowhere
else. By default a group is one process, which holds the whole model.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 24 * 3600.0
"""Seconds that a process waits for another to finish."""
FAILED = "steercube/failed"
"""Key of the launcher's store that counts the processes that failed."""
LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)
"""Messages of torch where a process that others are connected to has ended."""


@dataclass(frozen=True)
class Rank:
    """Index of this process among the `count` of one launch, in groups of `size`."""

    index: int = 0
    count: int = 1
    size: int = 1

    @classmethod
    def of_environment(cls, size: int | None = 1) -> "Rank":
        """From the launcher's RANK and WORLD_SIZE, else 0 of 1; with None, one group of all.

        Raises ValueError for values that are no rank, or do not divide into groups of `size`.
        """
        rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
            raise ValueError(
                f"RANK = {rank!r}, WORLD_SIZE = {count!r} in the environment: a launcher sets "
                "whole numbers, the first below the second; unset them to run one process"
            )
        found = cls(int(rank), int(count), size or int(count))
        if found.count % found.size:
            raise ValueError(
                f"{found.count} processes do not divide into groups of {found.size}: start a "
                f"multiple of {found.size}"
            )
        return found

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which makes what all need: the vectors and the cube."""
        return self.index == 0

    @property
    def speaks(self) -> bool:
        """Whether this is the first process of its group, which writes the group's shards."""
        return self.index % self.size == 0

    @property
    def group(self) -> int:
        """Index of this process's group."""
        return self.index // self.size

    @property
    def n_groups(self) -> int:
        """How many groups share the chunks."""
        return self.count // self.size

    def agreed(self, decide: Callable[[], T]) -> T:
        """What `decide` returns in the group's first process; the others wait for it."""
        if self.size == 1:
            return decide()
        held: list[Any] = [decide() if self.speaks else None]
        _distributed().broadcast_object_list(held, src=0)
        decided: T = held[0]
        return decided

    def least(self, value: float) -> float:
        """The least `value` in the group."""
        if self.size == 1:
            return value
        every: list[float] = [value] * self.size
        _distributed().all_gather_object(every, value)
        return min(every)

    def join(self, device: str) -> None:
        """Connect the processes of the group, on "cuda" or "cpu"; transformers finds them joined.

        A group is a world of its own: nothing that it does waits for another group.
        """
        distributed = _distributed()
        if self.size == 1 or distributed.is_initialized():
            return
        store, _, _ = next(distributed.rendezvous("env://"))
        distributed.init_process_group(
            # What is agreed on are Python objects, and these go through the CPU.
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=distributed.PrefixStore(f"steercube/{self.group}", store),
            rank=self.index % self.size,
            world_size=self.size,
            timeout=timedelta(seconds=PATIENCE),
        )

    def first_to_fail(self) -> bool:
        """Whether no other process of the launch has failed before this one, as far as known."""
        store = _store(self.count)
        try:
            return store is None or bool(store.add(FAILED, 1) == 1)
        except RuntimeError:  # the launcher is gone
            return True

    def require_no_failure(self) -> None:
        """Raise ConnectionError if another process of the launch has failed, on any machine."""
        store = _store(self.count)
        try:
            failed = store is not None and store.add(FAILED, 0) > 0
        except RuntimeError as error:
            raise ConnectionError("the launcher of this process has ended") from error
        if failed:
            raise ConnectionError("another process of this launch has failed")

    def is_lost(self, error: Exception) -> bool:
        """Whether it means that another process of the group cannot be reached."""
        return self.size > 1 and bool(LOST.search(str(error)))

    @contextmanager
    def together(self) -> Iterator[None]:
        """The group's work; afterwards it is disconnected.

        Raises ConnectionError where the connection to another of its processes is lost.
        """
        try:
            yield
        except RuntimeError as error:
            if not self.is_lost(error):
                raise
            said = str(error).partition("\n")[0]
            raise ConnectionError(
                "another of the processes that hold the model together cannot be reached, perhaps "
                f"because it had no memory left ({said}); finished work is kept (continue with "
                "--resume)"
            ) from error
        if self.size > 1 and _distributed().is_initialized():
            _distributed().destroy_process_group()


@cache
def _store(count: int) -> Any:
    """The store that torchrun's processes share, None without one or if it does not answer."""
    if count == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        return _distributed().TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=5),
        )
    except (RuntimeError, LookupError, ValueError):
        return None


def end_with_parent() -> None:
    """From now on end when the process that started this one ends, even if it was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
        os._exit(128 + signal.SIGTERM)  # it waits for others, where a signal does not reach it

    threading.Thread(target=watch, daemon=True).start()


def _distributed() -> Any:
    """`torch.distributed`, imported here so that a command can ask for its rank without torch."""
    import torch.distributed

    return torch.distributed

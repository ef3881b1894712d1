"""This process among those of one launch."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """This process among those of one launch, from the environment that launchers set."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_environment(cls) -> "Rank":
        """Rank 0 of 1 where nothing launched several. Raises ValueError for what is no rank."""
        rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise ValueError(
                f"RANK = {rank!r}, WORLD_SIZE = {size!r} in the environment: a launcher sets whole "
                "numbers, the first below the second; unset them to run one process"
            )
        return cls(int(rank), int(size))

    @property
    def leads(self) -> bool:
        """Whether this process makes what all need."""
        return self.index == 0

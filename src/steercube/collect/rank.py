"""The rank of this process among those that a launcher started together."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """Index of this process among the `count` of one launch, from the launcher's environment."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_environment(cls) -> "Rank":
        """From RANK and WORLD_SIZE, else 0 of 1. Raises ValueError for values that are no rank."""
        rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise ValueError(
                f"RANK = {rank!r}, WORLD_SIZE = {size!r} in the environment: a launcher sets whole "
                "numbers, the first below the second; unset them to run one process"
            )
        return cls(int(rank), int(size))

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which makes what all need: the vectors and the cube."""
        return self.index == 0

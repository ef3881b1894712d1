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
        """Rank 0 of 1 where nothing launched several."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def leads(self) -> bool:
        """Whether this process makes what all need."""
        return self.index == 0

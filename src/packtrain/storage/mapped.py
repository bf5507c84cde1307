"""Decides how files that arrays are views of are watched: one that shrinks is noticed before the system ends the process."""

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from packtrain.errors import DatasetChangedError


@dataclass(frozen=True)
class MappedFile:
    """A file that an array is a view of."""

    name: str
    memory: mmap.mmap

    def check(self) -> None:
        """Raise DatasetChangedError if the file is shorter than what is mapped of it; costs microseconds.

        To read beyond its end would end the process at once, without a word (SIGBUS).
        """
        if self.memory.size() < len(self.memory):
            raise DatasetChangedError(
                f"{self.name} was cut short while it was in use: {len(self.memory):,} bytes are now {self.memory.size():,}; "
                "put the whole file back, and run the same command again (train: with --resume)"
            )


def find_map(array: np.ndarray) -> MappedFile | None:
    """The file that an array is a view of; None if it is in memory."""
    base: Any = array
    name = "a file of the dataset"
    while isinstance(base, np.ndarray):
        name = str(getattr(base, "filename", None) or name)
        base = base.base
    return MappedFile(name, base) if isinstance(base, mmap.mmap) else None


def check_length(array: np.ndarray) -> None:
    """Raise DatasetChangedError if the file that an array is a view of was cut short since it was mapped."""
    mapped = find_map(array)
    if mapped is not None:
        mapped.check()


def expect_random_reads(array: np.ndarray) -> None:
    """Turn read-ahead off: rows come in random order, and a cold disk would fetch megabytes for each."""
    mapped = find_map(array)
    if mapped is not None:
        mapped.memory.madvise(mmap.MADV_RANDOM)

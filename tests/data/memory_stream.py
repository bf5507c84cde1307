"""A split in memory, for tests that need its lengths and not its files."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BOUNDARY = 60_000


@dataclass(frozen=True)
class MemoryShard:
    documents: int
    tokens: int


@dataclass(frozen=True)
class MemoryStream:
    """The token at stream position i is i, so that a target says where it is from; `shard_documents` to a shard."""

    lengths: list[int]
    shard_documents: int = 3
    name: str = "train"
    manifest_hash: str = "a dataset"
    boundary_id: int = BOUNDARY
    dtype: np.dtype = field(default_factory=lambda: np.dtype("<u2"))
    plan_folder: Path | None = None

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def shards(self) -> list[MemoryShard]:
        borders = range(0, len(self.lengths), self.shard_documents)
        parts = [self.lengths[first : first + self.shard_documents] for first in borders]
        return [MemoryShard(len(part), sum(part)) for part in parts]

    def shard_ends(self, shard: int) -> np.ndarray:
        first = shard * self.shard_documents
        return np.cumsum(np.array(self.lengths[first : first + self.shard_documents], dtype=np.int64))

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.num_tokens
        return np.arange(start, stop, dtype=self.dtype)

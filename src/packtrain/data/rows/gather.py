"""Decides how scattered pieces of a token stream are copied out of its memory-mapped shards, and whether those are still whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from packtrain.storage.mapped import MappedFile, expect_random_reads, find_map


class ShardSize(Protocol):
    """What packing needs to know of a shard; `format.manifest.ShardInfo` is one."""

    @property
    def documents(self) -> int: ...
    @property
    def tokens(self) -> int: ...


class TokenStream(Protocol):
    """What packing needs to know of one side of a dataset; `format.shards.Split` is one."""

    num_tokens: int
    dtype: np.dtype[Any]
    boundary_id: int
    manifest_hash: str

    @property
    def name(self) -> str: ...
    @property
    def shards(self) -> Sequence[ShardSize]: ...
    @property
    def plan_folder(self) -> Path | None:
        """Folder in which plans of this stream may be kept; None if they may not be."""

    def shard_ends(self, shard: int) -> np.ndarray:
        """Position in the shard just after each of its documents, int64[documents]."""

    def read(self, start: int, stop: int) -> np.ndarray: ...


class Gather:
    """Reads a stream shard by shard. `TokenStream.read` costs ten times as much, to find the shard and wrap a view each time."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self._starts = np.cumsum([0, *(shard.tokens for shard in stream.shards)], dtype=np.int64)
        self._shards: list[np.ndarray | None] = [None] * len(stream.shards)
        self._maps: list[MappedFile | None] = [None] * len(stream.shards)

    def copy(self, start: np.ndarray, length: np.ndarray, to: np.ndarray, out: np.ndarray) -> None:
        """Copy the stream's start..start + length to out[to:], for each entry of three int64[n]; `out` is flat."""
        stop = start + length
        shard = np.searchsorted(self._starts, start, side="right") - 1
        origin = self._starts[shard]
        crosses = stop > self._starts[shard + 1]
        self._check(shard)
        columns = (shard, start - origin, stop - origin, to, to + length, crosses, start)
        for index, first, end, into, until, is_split, position in zip(*(c.tolist() for c in columns), strict=True):
            if is_split:
                out[into:until] = self._stream.read(position, position + until - into)
            else:
                out[into:until] = self._shard(index)[first:end]

    def at(self, position: np.ndarray) -> np.ndarray:
        """Ids at stream positions, int64[n] for int64[n]."""
        shard = np.searchsorted(self._starts, position, side="right") - 1
        offset = position - self._starts[shard]
        self._check(shard)
        pairs = zip(shard.tolist(), offset.tolist(), strict=True)
        return np.array([self._shard(index)[first] for index, first in pairs], dtype=np.int64)

    def _shard(self, index: int) -> np.ndarray:
        ids = self._shards[index]
        if ids is None:
            ids = np.asarray(self._stream.read(int(self._starts[index]), int(self._starts[index + 1])))
            expect_random_reads(ids)
            self._shards[index], self._maps[index] = ids, find_map(ids)
        return ids

    def _check(self, shards: np.ndarray) -> None:
        """Raise DatasetChangedError if the file of one of these shards was cut short."""
        for index in set(shards.tolist()):
            self._shard(index)
            mapped = self._maps[index]
            if mapped is not None:
                mapped.check()

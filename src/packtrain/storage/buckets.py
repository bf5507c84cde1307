"""Decides how more records than fit in memory are grouped by key: in files by the key's first bits, small enough to sort."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

# Records in an average bucket, and records read from one at a time.
_BUCKET_RECORDS = 1 << 21
_CHUNK_RECORDS = 1 << 20
# Each bucket is an open file, and a process may often have only 1,024.
_MOST_BITS = 8


class Buckets:
    """Files in `folder`, which this context manager makes and removes. Records with equal keys share a bucket.

    Keys must be hashes, so that their first bits are spread evenly. `add` everything, then iterate.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], expected_records: int) -> None:
        self._folder, self._dtype = folder, dtype
        self._bits = min(_MOST_BITS, (expected_records // _BUCKET_RECORDS).bit_length())
        self._files: list[BinaryIO] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # A killed process may have left some.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._files = [self._stack.enter_context(self._path(i).open("wb")) for i in range(1 << self._bits)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        shutil.rmtree(self._folder)

    def add(self, keys: np.ndarray, records: np.ndarray) -> None:
        """Store records[n] by keys uint64[n]. Within a bucket they keep their order."""
        if self._bits == 0:
            self._files[0].write(records.tobytes())
            return
        bucket = (keys >> np.uint64(64 - self._bits)).astype(np.uint8)
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=1 << self._bits))
        for file, part in zip(self._files, np.split(records[order], ends[:-1]), strict=True):
            file.write(part.tobytes())

    def __iter__(self) -> Iterator[Iterator[np.ndarray]]:
        """Each bucket in turn, as chunks of records in the order in which they were added."""
        self._stack.close()
        for number in range(len(self._files)):
            path = self._path(number)
            yield self._chunks(path)
            path.unlink()

    def _chunks(self, path: Path) -> Iterator[np.ndarray]:
        with path.open("rb") as file:
            while len(chunk := np.fromfile(file, self._dtype, _CHUNK_RECORDS)):
                yield chunk

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:03d}.bucket"

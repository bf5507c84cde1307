"""Decides how a shard's three files are written: to a scratch file, hashed on the way, then given their names."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from packtrain.data.format.manifest import FileInfo, ShardInfo
from packtrain.data.format.shards import SOURCE_SCHEMA
from packtrain.storage.store import Store


class ShardWriter:
    """Takes documents in order. No file has the shard's name before `close`; a shard without documents gets no files."""

    def __init__(self, store: Store, name: str, dtype: str) -> None:
        self._store, self._name = store, name
        self._dtype: np.dtype[Any] = np.dtype("<" + dtype)
        self._lengths: list[npt.NDArray[np.int64]] = []
        self._files: list[str] = []
        self._rows: list[int] = []
        self._ids: list[str | None] = []
        self._hashes: list[bytes] = []
        self._utf8_bytes = 0
        self._max_id = 0
        self._digest = xxhash.xxh3_128()
        self._scratch = store.scratch(f"{name}.tok")
        self._file = self._scratch.open("wb", buffering=1 << 20)

    def add(self, ids: npt.NDArray[Any], lengths: Sequence[int], utf8_bytes: int) -> None:
        """Add the joined ids of documents and the number of ids of each. Call `describe` once for each document."""
        data = np.ascontiguousarray(ids, dtype=self._dtype)
        self._file.write(data.data)
        self._digest.update(data.data)
        self._lengths.append(np.asarray(lengths, dtype=np.int64))
        self._utf8_bytes += utf8_bytes
        if len(data):
            self._max_id = max(self._max_id, int(data.max()))

    def describe(self, file: str, row: int, key: str | None, content: bytes) -> None:
        """Record where the next document came from, and its content hash."""
        self._files.append(file)
        self._rows.append(row)
        # An id is a label, not training text, so what UTF-8 cannot encode is replaced.
        self._ids.append(None if key is None else key.encode("utf-8", "replace").decode())
        self._hashes.append(content)

    def close(self) -> tuple[ShardInfo, npt.NDArray[np.int64]] | None:
        """Give the files their names; returns what they hold and the documents' lengths, or None without documents."""
        if not self._rows:
            self.abandon()
            return None
        lengths = np.concatenate(self._lengths)
        assert len(lengths) == len(self._rows), (
            "a document was added without its source, or a source without its document"
        )
        self._file.close()
        index = self._make_index(lengths)
        source = self._make_sources()
        self._store.write(f"{self._name}.idx.npy", index)
        self._store.write(f"{self._name}.src.parquet", source)
        self._store.put(self._scratch, f"{self._name}.tok")
        tokens = int(lengths.sum())
        files = {
            "tok": FileInfo(size=tokens * self._dtype.itemsize, hash=self._digest.hexdigest()),
            "idx.npy": FileInfo(size=len(index), hash=xxhash.xxh3_128_hexdigest(index)),
            "src.parquet": FileInfo(size=len(source), hash=xxhash.xxh3_128_hexdigest(source)),
        }
        info = ShardInfo(
            name=self._name.rpartition("/")[2],
            documents=len(lengths),
            tokens=tokens,
            utf8_bytes=self._utf8_bytes,
            max_id=self._max_id,
            files=files,
        )
        return info, lengths

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._scratch.unlink(missing_ok=True)

    def _make_index(self, lengths: npt.NDArray[np.int64]) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.cumsum(lengths).astype("<u8"), version=(1, 0))
        return buffer.getvalue()

    def _make_sources(self) -> bytes:
        names = sorted(set(self._files))
        number = {name: i for i, name in enumerate(names)}
        files = pa.DictionaryArray.from_arrays(pa.array([number[f] for f in self._files], pa.int32()), pa.array(names))
        columns = [files, self._rows, self._ids, pa.array(self._hashes, pa.binary(16))]
        buffer = io.BytesIO()
        table = pa.table(dict(zip(SOURCE_SCHEMA.names, columns, strict=True)), schema=SOURCE_SCHEMA)
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()

"""Decides how the kept documents of a slice become its shards: which library encodes, what goes around each, how files are written."""

import array
import io
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import SPLITS, FileInfo, ShardInfo, SplitName, id_dtype
from packtrain.data.format.shards import SOURCE_SCHEMA
from packtrain.data.tokens.fast import DifferentIdsError, FastEncoder, open_encoder
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import TokenizerError
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.keep import KeptDocument, read_kept_documents
from packtrain.prepare.steps.ledger import count_lengths, count_longer
from packtrain.prepare.steps.results import TOKENS, Results
from packtrain.prepare.steps.scan import open_tokenizer, read_keep
from packtrain.prepare.steps.text_loss import LossTally
from packtrain.storage.store import Store

_BATCH_BYTES = 1 << 19


def tokenize_slice(results: Results, piece: Slice, tokenizer_hash: str, *, attempt: int) -> None:
    """Write the shards of the rows of a slice that are kept, then the record that they are finished.

    A third attempt, after two workers died, halves the batches. The files are the same for any batch size.
    """
    store = results.store
    tokenizer = open_tokenizer(store, tokenizer_hash)
    keep = read_keep(results, piece)
    name = f"{TOKENS}/{results.tokens_key(piece, keep, tokenizer_hash)}"
    write = partial(_write_shards, results, piece, keep, name, tokenizer, _BATCH_BYTES >> max(0, attempt - 2))
    backend: dict[str, Any] = {}
    with store.writing():
        try:
            has_text = not results.recipe.source.gives_ids
            encoder = open_encoder(tokenizer, results.recipe.tokenizer.backend) if has_text else None
            tally = LossTally(tokenizer)
            closed = write(encoder, tally)
            backend = encoder.counts if encoder is not None else {}
        except DifferentIdsError as error:
            # Nothing that it encoded is used, not even ids that agreed.
            tally = LossTally(tokenizer)
            closed, backend = write(None, tally), {"differs": str(error)}
        lengths = np.concatenate([np.empty(0, np.int64), *(pair[1] for pair in closed.values() if pair is not None)])
        record = {
            "shards": {name: pair[0].model_dump() for name, pair in closed.items() if pair is not None},
            "lengths": count_lengths(lengths),
            "longer": count_longer(lengths),
            "backend": backend,
            **tally.record(),
        }
        store.write(f"{name}.json", json.dumps(record).encode())


class ShardWriter:
    """Takes documents in order. No file has the shard's name before `close`; a shard without documents gets no files."""

    def __init__(self, store: Store, name: str, dtype: str) -> None:
        self._store, self._name = store, name
        self._dtype: np.dtype[Any] = np.dtype("<" + dtype)
        self._lengths: list[np.ndarray] = []
        self._files: list[str] = []
        self._rows: list[int] = []
        self._ids: list[str | None] = []
        self._hashes: list[bytes] = []
        self._utf8_bytes = 0
        self._max_id = 0
        self._digest = xxhash.xxh3_128()
        self._scratch = store.scratch(f"{name}.tok")
        self._file = self._scratch.open("wb", buffering=1 << 20)

    def add(self, ids: np.ndarray, lengths: Sequence[int], utf8_bytes: int) -> None:
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

    def close(self) -> tuple[ShardInfo, np.ndarray] | None:
        """Give the files their names; returns what they hold and the documents' lengths, or None without documents."""
        if not self._rows:
            self.abandon()
            return None
        lengths = np.concatenate(self._lengths)
        assert len(lengths) == len(self._rows), (
            "a document was added without its source, or a source without its document"
        )
        self._file.close()
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.cumsum(lengths).astype("<u8"), version=(1, 0))
        index = buffer.getvalue()
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

    def _make_sources(self) -> bytes:
        names = sorted(set(self._files))
        number = {name: i for i, name in enumerate(names)}
        files = pa.DictionaryArray.from_arrays(pa.array([number[f] for f in self._files], pa.int32()), pa.array(names))
        columns = [files, self._rows, self._ids, pa.array(self._hashes, pa.binary(16))]
        buffer = io.BytesIO()
        table = pa.table(dict(zip(SOURCE_SCHEMA.names, columns, strict=True)), schema=SOURCE_SCHEMA)
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()


def _write_shards(
    results: Results,
    piece: Slice,
    keep: np.ndarray,
    name: str,
    tokenizer: Tokenizer,
    batch_bytes: int,
    encoder: FastEncoder | None,
    tally: LossTally,
) -> dict[SplitName, tuple[ShardInfo, np.ndarray] | None]:
    """Write the shard of each side; returns what it holds and its documents' lengths. An error leaves no file behind."""
    writers = [ShardWriter(results.store, f"{name}.{split}", id_dtype(tokenizer.vocab_size)) for split in SPLITS]
    try:
        for batch in _make_batches(results, piece, keep, batch_bytes):
            encoded = _encode(batch, tokenizer, encoder, results.recipe)
            if not results.recipe.source.gives_ids:
                tally.add(batch, encoded)
            _write(batch, encoded, tokenizer, results.recipe, writers)
        return {side: writer.close() for side, writer in zip(SPLITS, writers, strict=True)}
    except BaseException:
        for writer in writers:
            writer.abandon()
        raise


def _make_batches(results: Results, piece: Slice, keep: np.ndarray, batch_bytes: int) -> Iterator[list[KeptDocument]]:
    batch: list[KeptDocument] = []
    size = 0
    for document in read_kept_documents(results, piece, keep, want_ids=True):
        batch.append(document)
        size += document.utf8_bytes
        if size >= batch_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(
    batch: list[KeptDocument], tokenizer: Tokenizer, encoder: FastEncoder | None, recipe: Recipe
) -> Sequence[list[int] | memoryview]:
    """The ids of each document, without BOS and EOS: a list, or the bytes of u4."""
    if recipe.source.gives_ids:
        return [document.row.ids.tolist() for document in batch]
    if encoder is not None:
        return encoder.encode_batch([d.text for d in batch], [d.content for d in batch])
    return tokenizer.encode_batch([document.text for document in batch])


def _write(
    batch: list[KeptDocument],
    encoded: Sequence[list[int] | memoryview],
    tokenizer: Tokenizer,
    recipe: Recipe,
    writers: list[ShardWriter],
) -> None:
    gives_ids = recipe.source.gives_ids
    before = [tokenizer.bos_id] if recipe.tokenizer.bos and tokenizer.bos_id is not None and not gives_ids else []
    after = [tokenizer.eos_id] if recipe.tokenizer.eos and tokenizer.eos_id is not None and not gives_ids else []
    for side, writer in enumerate(writers):
        # Five times as fast as making a numpy array from the lists.
        joined = array.array("I")
        lengths: list[int] = []
        utf8_bytes = 0
        for document, ids in zip(batch, encoded, strict=True):
            if document.side != side:
                continue
            start = len(joined)
            joined.fromlist(before)
            if isinstance(ids, list):
                joined.fromlist(ids)
            else:
                joined.frombytes(ids)
            joined.fromlist(after)
            lengths.append(len(joined) - start)
            utf8_bytes += document.utf8_bytes
            writer.describe(document.row.file, document.row.row, document.row.id, document.content)
        if not lengths:
            continue
        stream = np.frombuffer(joined, dtype=np.uint32)
        if not gives_ids and int(_control_table(tokenizer)[stream].sum()) != len(lengths) * (len(before) + len(after)):
            raise TokenizerError(
                f"the tokenizer makes control tokens from plain text (in {batch[0].row.file}, from row {batch[0].row.row}); "
                "so a document could forge its own end: name another tokenizer"
            )
        writer.add(stream, lengths, utf8_bytes)


@lru_cache(maxsize=1)
def _control_table(tokenizer: Tokenizer) -> np.ndarray:
    table = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    table[list(tokenizer.control_ids)] = True
    return table

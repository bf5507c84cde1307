"""Decides how the kept documents of a slice become its shards: which library encodes, and what goes around each document."""

import array
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import SPLITS, ShardInfo, SplitName, id_dtype
from packtrain.data.tokens.fast import DifferentIdsError, FastEncoder
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import TokenizerError
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.keep import KeptDocument, read_keep, read_kept_documents
from packtrain.prepare.steps.lengths import count_lengths, count_longer
from packtrain.prepare.steps.results import TOKENS, Results
from packtrain.prepare.steps.scan import open_tokenizer
from packtrain.prepare.steps.writer import ShardWriter

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
            encoder = FastEncoder(tokenizer) if results.recipe.tokenizer.backend == "fast" else None
            closed = write(encoder)
            backend = encoder.counts if encoder is not None else {}
        except DifferentIdsError as error:
            # Nothing that it encoded is used, not even ids that agreed.
            closed, backend = write(None), {"differs": str(error)}
        lengths = [pair[1] for pair in closed.values() if pair is not None]
        record = {
            "shards": {name: pair[0].model_dump() for name, pair in closed.items() if pair is not None},
            "lengths": count_lengths(lengths),
            "longer": count_longer(lengths),
            "backend": backend,
        }
        store.write(f"{name}.json", json.dumps(record).encode())


def _write_shards(
    results: Results,
    piece: Slice,
    keep: npt.NDArray[np.bool_],
    name: str,
    tokenizer: Tokenizer,
    batch_bytes: int,
    encoder: FastEncoder | None,
) -> dict[SplitName, tuple[ShardInfo, npt.NDArray[np.int64]] | None]:
    """Write the shard of each side; returns what it holds and its documents' lengths. An error leaves no file behind."""
    writers = [ShardWriter(results.store, f"{name}.{split}", id_dtype(tokenizer.vocab_size)) for split in SPLITS]
    try:
        for batch in _make_batches(results, piece, keep, batch_bytes):
            _tokenize(batch, tokenizer, encoder, results.recipe, writers)
        return {side: writer.close() for side, writer in zip(SPLITS, writers, strict=True)}
    except BaseException:
        for writer in writers:
            writer.abandon()
        raise


def _make_batches(
    results: Results, piece: Slice, keep: npt.NDArray[np.bool_], batch_bytes: int
) -> Iterator[list[KeptDocument]]:
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


def _tokenize(
    batch: list[KeptDocument],
    tokenizer: Tokenizer,
    encoder: FastEncoder | None,
    recipe: Recipe,
    writers: list[ShardWriter],
) -> None:
    before = [tokenizer.bos_id] if recipe.tokenizer.bos and tokenizer.bos_id is not None else []
    after = [tokenizer.eos_id] if recipe.tokenizer.eos and tokenizer.eos_id is not None else []
    gives_ids = recipe.source.gives_ids
    encoded: Sequence[list[int] | memoryview]
    if gives_ids:
        before, after = [], []
        encoded = [document.row.ids.tolist() for document in batch]
    elif encoder is not None:
        encoded = encoder.encode_batch([d.text for d in batch], [d.content for d in batch])
    else:
        encoded = tokenizer.encode_batch([document.text for document in batch])
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
def _control_table(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    table = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    table[list(tokenizer.control_ids)] = True
    return table

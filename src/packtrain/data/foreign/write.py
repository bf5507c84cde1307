"""Decides how one side of a dataset is written for nanoGPT, llm.c, Megatron and datatrove."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from packtrain.data.foreign.megatron import MEGATRON_DTYPES, MEGATRON_HEADER, MEGATRON_MAGIC
from packtrain.data.foreign.read import LLMC_HEADER_BYTES, LLMC_HEADERS
from packtrain.data.format.shards import Split
from packtrain.errors import ExportError

# As in llm.c's own scripts; its reader takes at most 2**31 - 1 ids from a file.
LLMC_FILE_TOKENS = 10**8
_CHUNK = 1 << 20
_SIDE = {"train": "train", "validation": "val"}


def write_nanogpt(split: Split, folder: Path, tokenizer: str) -> None:  # noqa: ARG001  all writers have one signature
    """train.bin or val.bin: ids of two bytes and nothing else. Raises ExportError if the vocabulary needs more."""
    if split.dtype.itemsize != 2:
        raise ExportError(
            "nanoGPT reads ids of two bytes, and this dataset's vocabulary is larger than 65,536; write --format llmc, megatron "
            "or datatrove"
        )
    with (folder / f"{_SIDE[split.name]}.bin").open("wb") as file:
        _copy(split, file, 0, split.num_tokens, "<u2")


def write_llmc(split: Split, folder: Path, tokenizer: str) -> None:  # noqa: ARG001
    """train_000000.bin or val_000000.bin and so on: a header of 256 integers, then a hundred million ids each."""
    magic, version = LLMC_HEADERS["u2" if split.dtype.itemsize == 2 else "u4"]
    for number, start in enumerate(range(0, split.num_tokens, LLMC_FILE_TOKENS)):
        stop = min(start + LLMC_FILE_TOKENS, split.num_tokens)
        header = np.zeros(LLMC_HEADER_BYTES // 4, "<i4")
        header[:3] = magic, version, stop - start
        with (folder / f"{_SIDE[split.name]}_{number:06d}.bin").open("wb") as file:
            file.write(header.tobytes())
            _copy(split, file, start, stop, split.dtype)


def write_megatron(split: Split, folder: Path, tokenizer: str) -> None:  # noqa: ARG001
    """train_text_document.bin and .idx, or validation_...: each document is one sequence. Ids are uint16, or int32 if needed."""
    code = 8 if split.dtype.itemsize == 2 else 4
    dtype = np.dtype(MEGATRON_DTYPES[code])
    count = split.num_documents
    path = folder / f"{split.name}_text_document"
    with path.with_suffix(".bin").open("wb") as file:
        _copy(split, file, 0, split.num_tokens, dtype)
    with path.with_suffix(".idx").open("wb") as file:
        file.write(MEGATRON_MAGIC)
        file.write(np.array((1, code, count, count + 1), MEGATRON_HEADER).tobytes())
        for start, ends in _ends(split):
            file.write(np.diff(ends, prepend=start).astype("<i4").tobytes())
        for start, ends in _ends(split):
            file.write((np.concatenate([[start], ends[:-1]]) * dtype.itemsize).astype("<i8").tobytes())
        for first in range(0, count + 1, _CHUNK):
            file.write(np.arange(first, min(first + _CHUNK, count + 1), dtype="<i8").tobytes())


def write_datatrove(split: Split, folder: Path, tokenizer: str) -> None:
    """NNNNN_train.ds or NNNNN_validation.ds for each shard, with .ds.index (document ends) and .ds.metadata."""
    start = 0
    for shard, (_, ends) in zip(split.shards, _ends(split), strict=True):
        stop = start + shard.tokens
        path = folder / f"{shard.name}_{split.name}.ds"
        with path.open("wb") as file:
            _copy(split, file, start, stop, split.dtype)
        Path(f"{path}.index").write_bytes((ends - start).astype("<u8").tobytes())
        words = [f"{tokenizer}|{split.dtype.itemsize}", str(shard.tokens), f"{shard.tokens / 1e6:.2f} MT"]
        Path(f"{path}.metadata").write_text("\n".join(words), encoding="utf-8")
        start = stop


def _ends(split: Split) -> Iterator[tuple[int, np.ndarray]]:
    """The position in the stream at which each shard begins, and those at which its documents end."""
    start = 0
    for number, shard in enumerate(split.shards):
        yield start, split.shard_ends(number) + start
        start += shard.tokens


def _copy(split: Split, file: BinaryIO, start: int, stop: int, dtype: Any) -> None:
    for first in range(start, stop, _CHUNK):
        file.write(split.read(first, min(first + _CHUNK, stop)).astype(dtype, copy=False).tobytes())

"""Decides how a prepared dataset becomes files of another program: write them aside, read them back, then publish."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

import packtrain
from packtrain.config.recipe import SourceConfig
from packtrain.data.foreign import write as tokenfiles
from packtrain.data.foreign.read import open_ids
from packtrain.data.foreign.streams import EotPosition
from packtrain.data.format.content import compare_hash
from packtrain.data.format.manifest import SPLITS, TokenizerInfo
from packtrain.data.format.shards import Dataset, Split, open_tokenizer
from packtrain.errors import ExportError
from packtrain.export.format import check_choice
from packtrain.export.publish import check_target, seal, staged
from packtrain.prepare.sources.imported import token_files
from packtrain.prepare.sources.sides import is_held_out

DATASET_FORMATS: dict[str, Callable[[Split, Path, str], None]] = {
    "nanogpt": tokenfiles.write_nanogpt,
    "llmc": tokenfiles.write_llmc,
    "megatron": tokenfiles.write_megatron,
    "datatrove": tokenfiles.write_datatrove,
}
_WITHOUT_INDEX = ("nanogpt", "llmc")

_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class DatasetExport:
    """A finished export: its folder and size, and what was read back and compared."""

    folder: Path
    size_bytes: int
    documents: int
    tokens: int
    eot: int | None
    """The id that separates documents if the format has no index; None if it has one, or if there is no such id."""
    eot_position: EotPosition


def export_dataset(dataset: Dataset, out: Path, *, format: str, overwrite: bool = False) -> DatasetExport:
    """Writes both splits of a dataset and its tokenizer to the folder `out`, which appears complete and compared, or not at all.

    Raises ExportError for an unknown format, for an `out` that may not be replaced, for a vocabulary too large for the
    format, and if what is read back differs; DatasetError if a shard is not what its manifest says; DiskFullError if the
    disk is full.
    """
    check_choice("format", format, DATASET_FORMATS, "dataset")
    manifest = dataset.manifest
    sides = [dataset.split(name) for name in SPLITS if dataset.split(name).num_documents]
    eot, position = boundary(manifest.tokenizer) if format in _WITHOUT_INDEX else (None, "end")
    if format in _WITHOUT_INDEX and eot is None:
        _log.warning(
            "the documents of this dataset have neither BOS nor EOS, and %s files have no index, so the document boundaries are "
            "lost; --format megatron or datatrove keeps them",
            format,
        )
    check_target(out, overwrite=overwrite)
    with staged(out, overwrite=overwrite, needed_bytes=_estimated_bytes(sides)) as folder:
        for split in sides:
            # The ids are compared with their hashes when they are read back.
            for shard in split.shards:
                compare_hash(dataset, split.name, shard, "idx.npy")
            DATASET_FORMATS[format](split, folder, _tokenizer_name(manifest.recipe))
        _compare(dataset, sides, folder, format, eot, position)
        open_tokenizer(dataset.folder).save(folder / "tokenizer")
        facts = {"packtrain": packtrain.__version__, "format": format, "dataset_hash": manifest.hash}
        between = {"eot": eot, "eot_position": position if eot is not None else None}
        seal(folder, {**facts, **between, "tokenizer": manifest.tokenizer.model_dump()})
        size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    documents, tokens = sum(s.num_documents for s in sides), sum(s.num_tokens for s in sides)
    return DatasetExport(out, size_bytes, documents, tokens, eot, position)


def boundary(tokenizer: TokenizerInfo) -> tuple[int | None, EotPosition]:
    """The control token that separates documents in a plain stream, and its position; (None, "end") if there is none."""
    if tokenizer.adds_eos and tokenizer.eos_id is not None:
        both = tokenizer.adds_bos and tokenizer.bos_id == tokenizer.eos_id
        return tokenizer.eos_id, "both" if both else "end"
    return (tokenizer.bos_id, "begin") if tokenizer.adds_bos else (None, "end")


def _compare(
    dataset: Dataset, sides: list[Split], folder: Path, format: str, eot: int | None, position: EotPosition
) -> None:
    """Reads the written files as `packtrain import` would, and compares ids with the manifest's hashes, and document boundaries."""
    files = token_files(SourceConfig(kind=format, path=str(folder), eot=eot, eot_position=position))
    for split in sides:
        at, ends, written = 0, [], _ShardHashes(dataset, split)
        for file in (f for f in files if is_held_out(f.name) == (split.name == "validation")):
            stream = open_ids(format, file.url, file.name, eot, position)  # type: ignore[arg-type]
            for _, ids, document_ends in stream.borders(0, 0):
                written.add(ids)
                ends.append(document_ends + at)
            at += stream.tokens
        is_same = (eot is None and format in _WITHOUT_INDEX) or np.array_equal(
            np.concatenate(ends), split.document_ends
        )
        if at != split.num_tokens or not is_same:
            raise ExportError(
                f"the {format} files of the {split.name} split do not read back as the same documents; write --format megatron "
                "or datatrove, which have an index"
            )


class _ShardHashes:
    """Compares a stream of ids with the hash of each shard of a split, one shard after the other."""

    def __init__(self, dataset: Dataset, split: Split) -> None:
        self._dataset, self._split = dataset, split
        self._shard = self._seen = 0
        self._digest = xxhash.xxh3_128()

    def add(self, ids: np.ndarray) -> None:
        """Raises DatasetError if the dataset is not what its manifest says, ExportError if only the written ids are not."""
        ids = ids.astype(self._split.dtype, copy=False)
        while len(ids) and self._shard < len(self._split.shards):
            shard = self._split.shards[self._shard]
            part, ids = np.split(ids, [shard.tokens - self._seen])
            self._digest.update(np.ascontiguousarray(part).data)
            self._seen += len(part)
            if self._seen < shard.tokens:
                continue
            if self._digest.hexdigest() != shard.files["tok"].hash:
                compare_hash(self._dataset, self._split.name, shard, "tok")
                raise ExportError(
                    f"the files of the {self._split.name} split do not read back as the ids of shard {shard.name}; export it again"
                )
            self._shard, self._seen = self._shard + 1, 0
            self._digest.reset()


def _tokenizer_name(recipe: dict[str, dict[str, Any]]) -> str:
    """The recipe's name of the tokenizer, on one line."""
    return " ".join(str(recipe.get("tokenizer", {}).get("name") or "packtrain").split())


def _estimated_bytes(sides: list[Split]) -> int:
    """Ids as stored, 20 bytes of index per document, and ten megabytes for everything else."""
    return sum(s.num_tokens * s.dtype.itemsize + 20 * s.num_documents for s in sides) + 10_000_000

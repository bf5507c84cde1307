"""Decides how token files that another program made become a source: which files, how they are cut, and what they hold."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xxhash

from packtrain.config.recipe import SourceConfig, TokenizerRecipe
from packtrain.data.foreign.read import TokenFormat, open_ids
from packtrain.data.foreign.streams import Delimited, EotPosition, Ids, IdStream, file_exists, is_file, size_of
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import SourceError
from packtrain.prepare.sources.listing import list_files
from packtrain.prepare.sources.sides import is_held_out
from packtrain.prepare.sources.slices import FileScan, Limits, Part, Row, SourceFile
from packtrain.storage.files import reading

_SUFFIXES: dict[TokenFormat, str] = {"nanogpt": ".bin", "llmc": ".bin", "megatron": ".idx", "datatrove": ".ds"}


@dataclass(frozen=True)
class Survey:
    """What the token files of a source hold, from a pass over all of their ids."""

    documents: int
    tokens: int
    position: EotPosition
    begins: bool
    """Every document begins with BOS."""
    ends: bool
    """Every document ends with EOS."""
    has_sides: bool
    """Some files are named as validation data, and some are not."""


def token_files(source: SourceConfig, held_out: str | None = None) -> list[SourceFile]:
    """The streams of ids that `source.path` means, sorted by name. Files of llm.c form one stream for each side of the split,
    which the pattern `held_out` decides, or else their names.

    Raises SourceError if there are none, or a Megatron index has no .bin beside it.
    """
    kind = _format(source)
    path = source.path or ""
    is_name = path.endswith(".bin") or not (file_exists(path) or any(c in path for c in "*?["))
    if kind == "megatron" and is_name:
        # Megatron's own tools take the name without its suffix.
        path = path.removesuffix(".bin").removesuffix(".idx") + ".idx"
    files = [f for f in list_files(path, (_SUFFIXES[kind],)) if f.name.endswith(_SUFFIXES[kind])]
    if not files:
        raise SourceError(
            f"source.path={source.path} names no {_SUFFIXES[kind]} file, which source.kind={kind} needs; name a file, folder or glob"
        )
    if kind == "megatron":
        return [_with_bin(file) for file in files]
    return _streams(files, held_out) if kind == "llmc" else files


def scan_ids(file: SourceFile, source: SourceConfig, limits: Limits) -> FileScan:
    """Cut a stream into parts of whole documents, with positions in ids. Reads all of it once."""
    with reading(file.name):
        stream = _open(file.url, file.name, source)
        cutter = _IdCutter(file, stream.dtype, limits)
        for position, ids, ends in stream.borders(0, 0):
            cutter.add(position, ids, ends)
    return FileScan(cutter.parts())


def read_ids(part: Part, source: SourceConfig) -> Iterator[Row]:
    """Yield the documents of a part as ids. A row's number is that of its document in the stream."""
    with reading(part.file):
        stream = _open(part.url, part.file, source)
        documents = stream.documents(part.first_row, part.start)
        for row in range(part.first_row, part.first_row + part.rows):
            ids = next(documents, None)
            if ids is None:
                raise SourceError(
                    f"{part.file} has only {row} documents now; it changed while it was prepared: run the same command again"
                )
            yield Row(part.file, row, None, None, ids=ids)


def survey(source: SourceConfig, bos: int | None, eos: int | None) -> Survey:
    """Read all documents of a source, and find where `source.eot` is in files without an index."""
    files = token_files(source)
    position = _find_position(files, source) or source.eot_position
    documents = tokens = 0
    begins, ends = bos is not None, eos is not None
    for file in files:
        with reading(file.name):
            stream = _open(file.url, file.name, source.model_copy(update={"eot_position": position}))
            tokens += stream.tokens
            is_cut = not isinstance(stream, Delimited) or stream.eot is None or not stream.tokens
            for ids in stream.documents(0, 0):
                is_cut = is_cut or int(ids[0]) == source.eot or int(ids[-1]) == source.eot
                documents += 1
                begins = begins and len(ids) > 0 and int(ids[0]) == bos
                ends = ends and len(ids) > 0 and int(ids[-1]) == eos
            if not is_cut:
                raise SourceError(
                    f"the id {source.eot} does not occur in {file.name}, so nothing separates its documents; write --eot with the id "
                    "between them, or --eot none to take each file as one document"
                )
    held_out = [is_held_out(file.name) for file in files]
    return Survey(documents, tokens, position, begins, ends, any(held_out) and not all(held_out))


def _find_position(files: Sequence[SourceFile], source: SourceConfig) -> EotPosition | None:
    """Where `source.eot` is; None if an index separates the documents, or nothing does."""
    found: dict[EotPosition, str] = {}
    for file in files:
        with reading(file.name):
            stream = _open(file.url, file.name, source)
            if isinstance(stream, Delimited) and stream.eot is not None and stream.tokens:
                usual: EotPosition = "begin" if source.kind == "llmc" else "end"
                found.setdefault(stream.guess_position(usual), file.name)
    if len(found) > 1:
        places = " and ".join(f"at the {position} in {name}" for position, name in found.items())
        raise SourceError(
            f"the id {source.eot} is {places}; import the files one at a time, or write source.eot_position=end or begin"
        )
    return next(iter(found), None)


def decode_rows(rows: Iterable[Row], tokenizer: Tokenizer, wanted: TokenizerRecipe) -> Iterator[Row]:
    """Yield the rows with the text that their ids stand for, without control tokens.

    Raises SourceError for an id that the tokenizer lacks, and for a document without the BOS or EOS that the recipe
    promises.
    """
    for row in rows:
        ids = row.ids
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size:
            outside = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise SourceError(
                f"{row.file} document {row.row} holds the id {outside}, but the tokenizer's ids go from 0 to {tokenizer.vocab_size - 1}; "
                "name the tokenizer that made the file, or its --format"
            )
        ends = (("bos", wanted.bos, tokenizer.bos_id, 0), ("eos", wanted.eos, tokenizer.eos_id, -1))
        for key, is_wanted, control, at in ends:
            if is_wanted and (not len(ids) or int(ids[at]) != control):
                raise SourceError(
                    f"{row.file} document {row.row} has no {key.upper()} (id {control}), but tokenizer.{key}=true says that "
                    f"every document does; write tokenizer.{key}=false, as its ids are kept unchanged"
                )
        yield row._replace(text=tokenizer.decode(ids.tolist()))


class _IdCutter:
    """Cuts the documents of a stream into parts, as `slices.Cutter` does, but takes many documents at once."""

    def __init__(self, file: SourceFile, dtype: np.dtype[Any], limits: Limits) -> None:
        self._file, self._dtype, self._limits = file, dtype, limits
        self._row = self._start = self._end = 0
        self._rows = 0
        self._parts: list[Part] = []
        self._digest = xxhash.xxh3_128(dtype.str.encode())

    def add(self, position: int, ids: Ids, ends: np.ndarray) -> None:
        """Take the next ids of the stream, from a position on, and where documents end among them."""
        while len(ends):
            most = self._limits.size(self._start * self._dtype.itemsize) // self._dtype.itemsize
            room = min(int(np.searchsorted(ends, self._start + most)) + 1, self._limits.rows - self._rows)
            take, ends = ends[:room], ends[room:]
            self._rows, self._end = self._rows + len(take), int(take[-1])
            self._digest.update((take - self._start).tobytes())
            if len(take) == room:
                self._digest.update(np.ascontiguousarray(ids[: self._end - position]).data)
                ids, position = ids[self._end - position :], self._end
                self._cut()
        self._digest.update(np.ascontiguousarray(ids).data)

    def parts(self) -> tuple[Part, ...]:
        if self._rows:
            self._cut()
        return tuple(self._parts)

    def _cut(self) -> None:
        size = (self._end - self._start) * self._dtype.itemsize
        name, url, fingerprint = self._file.name, self._file.url, self._digest.hexdigest()
        self._parts.append(Part(name, url, self._row, self._rows, size, fingerprint, self._start, self._end))
        self._row, self._start, self._rows = self._row + self._rows, self._end, 0
        self._digest = xxhash.xxh3_128(self._dtype.str.encode())


def _open(url: str, name: str, source: SourceConfig) -> IdStream:
    return open_ids(_format(source), url, name, source.eot, source.eot_position)


def _format(source: SourceConfig) -> TokenFormat:
    assert source.gives_ids
    return cast(TokenFormat, source.kind)


def _with_bin(file: SourceFile) -> SourceFile:
    url = file.url.removesuffix(".idx") + ".bin"
    if not is_file(url):
        raise SourceError(
            f"{file.name} has no {file.name.removesuffix('.idx')}.bin beside it, which holds its ids; put the two together"
        )
    with reading(f"{file.name.removesuffix('.idx')}.bin"):
        return SourceFile(file.name.removesuffix(".idx"), file.url, size_of(url))


def _streams(files: Sequence[SourceFile], pattern: str | None) -> list[SourceFile]:
    """One stream for all files of a side: in llm.c a document may continue in the next file."""
    streams = []
    for is_validation in (False, True):
        side = [f for f in files if is_held_out(f.name, pattern) == is_validation]
        if side:
            common = _common_name([f.name for f in side])
            # What the names have in common may no longer say which side it is.
            name = common if is_held_out(common, pattern) == is_validation else side[0].name
            streams.append(SourceFile(name, "\n".join(f.url for f in side), sum(f.size for f in side)))
    return streams


def _common_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    before = os.path.commonprefix(names)  # noqa: RUF071  letter by letter
    after = os.path.commonprefix([name[len(before) :][::-1] for name in names])[::-1]  # noqa: RUF071
    return f"{before}*{after}"

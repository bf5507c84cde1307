"""Decides how parquet files are cut into runs of rows and read, touching only the columns that are needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.columns import (
    check_columns,
    check_kinds,
    kind_of_column,
    list_columns,
    list_names,
    parse_filter,
    plain_kind,
    plain_values,
    read_column_values,
    take_column,
)
from packtrain.prepare.sources.pages import plan_batches
from packtrain.prepare.sources.slices import (
    FILTERED,
    NO_TEXT,
    NOT_UTF8,
    TOO_LARGE,
    FileScan,
    Limits,
    Part,
    Row,
    SourceFile,
)
from packtrain.storage.files import open_raw, reading

# A file with more of them is damaged, or was made to keep its reader busy.
_MOST_ROWS_OF_FILE = 1 << 31
# Of a remote file, row groups up to this size are fetched with one request.
_MOST_BUFFERED_BYTES = 256 << 20


def scan_parquet(file: SourceFile, config: SourceConfig, limits: Limits) -> FileScan:
    """Cut a parquet file into parts of whole row groups, unless one alone exceeds the limit. Reads only the footer.

    The fingerprint is a hash of the footer, which holds the size, offset and extremes of every column chunk.
    """
    with reading(file.name), open_raw(file.url) as raw, _parquet_errors(file.name):
        fingerprint = _hash_footer(raw, _read_footer(raw, file.name))
        parquet = pq.ParquetFile(raw)
        _check_columns(parquet.schema_arrow, file.name, config)
        metadata = parquet.metadata
        # Over all columns: asking for a single column whose part of the footer is damaged kills the process (pyarrow 26).
        every = map(metadata.row_group, range(metadata.num_row_groups))
        groups = [(group.num_rows, max(0, group.total_byte_size)) for group in every]
        if min((rows for rows, _ in groups), default=0) < 0 or sum(rows for rows, _ in groups) != metadata.num_rows:
            raise pa.ArrowInvalid("its row groups do not add up to the rows in its footer")
        if metadata.num_rows > _MOST_ROWS_OF_FILE:
            raise pa.ArrowInvalid(f"its footer claims {metadata.num_rows:,} rows")
    return FileScan(tuple(_cut(file, groups, limits, fingerprint)))


def list_text_columns(file: SourceFile) -> list[str]:
    """The columns of a parquet file that hold text; if there are none, the fields of structs that do."""
    with reading(file.name), open_raw(file.url) as raw, _parquet_errors(file.name):
        _read_footer(raw, file.name)
        schema = pq.ParquetFile(raw).schema_arrow
        every = list_columns(schema)
        texts = [name for name in every if every.count(name) == 1 and _is_text(kind_of_column(schema, name))]
    return [name for name in texts if name in schema.names] or texts


def read_parquet(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Yield the rows of a parquet part, reading only the columns that the source names."""
    id_column = config.id_column
    chosen = parse_filter(config)
    wanted = [config.text_column, *([id_column] if id_column else []), *(chosen.columns if chosen else ())]
    columns = list(dict.fromkeys(wanted))
    is_local = "://" not in part.url
    with reading(part.file), open_raw(part.url) as raw, _parquet_errors(part.file):
        footer = _read_footer(raw, part.file)
        part.check_unchanged(_hash_footer(raw, footer))
        parquet = pq.ParquetFile(raw)
        _check_columns(parquet.schema_arrow, part.file, config)
        metadata = parquet.metadata
        groups, skip = _groups_of(metadata, part)
        plan = plan_batches(part.file, raw, footer, groups, columns, is_local=is_local)
        # Remote: one request for a whole row group. Local: no more than a batch in memory.
        is_buffered = not is_local and plan.group_bytes <= _MOST_BUFFERED_BYTES
        parquet = pq.ParquetFile(
            raw,
            metadata=metadata,
            pre_buffer=is_buffered,
            buffer_size=0 if is_buffered else 1 << 20,
            page_checksum_verification=True,
        )
        number, stop = part.first_row - skip, part.first_row + part.rows
        for batch in parquet.iter_batches(plan.rows, row_groups=groups, columns=columns, use_threads=False):
            low, high = max(0, part.first_row - number), min(batch.num_rows, stop - number)
            if low < high:
                yield from _rows(batch.slice(low, high - low), number + low, part.file, config, id_column)
            number += batch.num_rows
            if number >= stop:
                return
        raise SourceError(
            f"{part.file} has only {number} rows, but had {stop} when it was planned; run the same command again"
        )


@contextmanager
def _parquet_errors(name: str) -> Iterator[None]:
    """Turn pyarrow's errors about a file into SourceError."""
    try:
        yield
    # ValueError, KeyError: names in the footer that are not UTF-8, or there twice.
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise SourceError(
            f"the source file {name} is cut short, damaged or not parquet ({reason}); fetch it again, or leave it out of "
            "source.path"
        ) from None


def _read_footer(raw: Any, name: str) -> bytes:
    size = raw.seek(0, 2)
    if size >= 12:
        raw.seek(size - 8)
        length, magic = int.from_bytes(raw.read(4), "little"), raw.read(4)
        if magic == b"PARE":
            raise SourceError(f"the source file {name} is encrypted; decrypt it, or leave it out of source.path")
        if magic == b"PAR1" and length <= size - 12:
            raw.seek(size - 8 - length)
            footer: bytes = raw.read(length)
            raw.seek(0)
            return footer
    raise SourceError(
        f"the source file {name} ({size} bytes) is cut short or not parquet, as its end is missing; fetch it again, "
        "or leave it out of source.path"
    )


def _hash_footer(raw: Any, footer: bytes) -> str:
    size = raw.seek(0, 2)
    raw.seek(0)
    return xxhash.xxh3_128(footer + size.to_bytes(8, "little")).hexdigest()


def _check_columns(schema: pa.Schema, name: str, config: SourceConfig) -> None:
    every = list_columns(schema)
    check_columns(name, config, every)
    check_kinds(schema, name, config)
    kind = kind_of_column(schema, config.text_column)
    # Of type null: a shard in which no row has a text.
    if not _is_text(kind) and not pa.types.is_null(kind):
        texts = [column for column in every if every.count(column) == 1 and _is_text(kind_of_column(schema, column))]
        raise SourceError(
            f"{name}: column '{config.text_column}' holds {_describe(kind)}, not text; its text columns are {list_names(texts)}: "
            "write source.text_column=ONE_OF_THEM"
        )


def _describe(kind: pa.DataType) -> str:
    """A type in few words: a struct may have hundreds of fields."""
    return str(kind) if len(str(kind)) <= 60 else f"{str(kind)[:57]}..."


def _is_text(kind: pa.DataType) -> bool:
    plain = plain_kind(kind)
    inner = plain_kind(plain.value_type) if pa.types.is_dictionary(plain) else plain
    # By name, as the oldest pyarrow that is allowed has no views.
    return str(inner) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def _cut(file: SourceFile, groups: list[tuple[int, int]], limits: Limits, fingerprint: str) -> Iterator[Part]:
    row = start = size = position = 0
    most = limits.size(0)
    for rows, group_size in groups:
        if row > start and (row - start + rows > limits.rows or size + group_size > most):
            yield Part(file.name, file.url, start, row - start, size, fingerprint)
            start, size, most = row, 0, limits.size(position)
        position += group_size
        if rows > limits.rows:
            for first in range(row, row + rows, limits.rows):
                count = min(limits.rows, row + rows - first)
                yield Part(file.name, file.url, first, count, group_size * count // rows, fingerprint)
            row = start = row + rows
            most = limits.size(position)
            continue
        row, size = row + rows, size + group_size
    if row > start:
        yield Part(file.name, file.url, start, row - start, size, fingerprint)


def _groups_of(metadata: Any, part: Part) -> tuple[list[int], int]:
    """Row groups that overlap a part, and how many rows of the first one precede it."""
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    ends = list(accumulate(counts))
    stop = part.first_row + part.rows
    groups = [i for i, end in enumerate(ends) if end > part.first_row and end - counts[i] < stop]
    return groups, part.first_row - (ends[groups[0]] - counts[groups[0]]) if groups else 0


def _rows(batch: Any, number: int, file: str, config: SourceConfig, id_column: str | None) -> Iterator[Row]:
    names = _ids(take_column(batch, id_column)) if id_column else [None] * batch.num_rows
    through = _apply_filter(batch, config)
    texts = _read_texts(_as_binary(take_column(batch, config.text_column)), config.max_document_bytes)
    for row, (data, name, keeps) in enumerate(zip(texts, names, through, strict=True), number):
        if not keeps:
            yield Row(file, row, name, None, FILTERED)
        elif data is None:
            yield Row(file, row, name, None, NO_TEXT, f"'{config.text_column}' is null", is_null=True)
        elif isinstance(data, int):
            yield Row(file, row, name, None, TOO_LARGE, f"it has {data:,} bytes", size=data)
        else:
            yield _decode(file, row, name, data)


def _read_texts(texts: Any, most: int) -> Iterator[bytes | int | None]:
    """Yield texts as bytes; of one with more than `most`, only their number."""
    if texts.nbytes <= most:
        yield from texts.to_pylist()
        return
    # One at a time, as each is a copy.
    for text in texts:
        size = len(text.as_buffer()) if text.is_valid else 0
        yield size if size > most else text.as_py()


def _decode(file: str, row: int, name: str | None, data: bytes) -> Row:
    try:
        return Row(file, row, name, data.decode())
    except UnicodeDecodeError as error:
        return Row(file, row, name, None, NOT_UTF8, str(error))


def _as_binary(column: Any) -> Any:
    """Texts as stored: a string column that another program wrote may not be UTF-8."""
    plain = plain_values(column)
    return plain_values(plain.dictionary_decode() if pa.types.is_dictionary(plain.type) else plain).cast(
        pa.large_binary()
    )


def _ids(column: Any) -> list[str | None]:
    """Ids of rows, of any type. An id is only a label, so bytes that are not UTF-8 are replaced."""
    if _is_text(column.type):
        values = _as_binary(column).to_pylist()
        return [None if name is None else name.decode("utf-8", "replace") for name in values]
    try:
        return [None if name is None else str(name) for name in column.to_pylist()]
    except (ValueError, OverflowError) as error:
        # Python's own times end at microseconds and the year 9999, and know fewer zones.
        if not pa.types.is_temporal(column.type):
            raise SourceError(f"source.id_column holds {_describe(column.type)}, which has no text ({error})") from None
        times: list[str | None] = column.cast(pa.int64()).cast(pa.string()).to_pylist()
        return times


def _apply_filter(batch: Any, config: SourceConfig) -> list[bool]:
    """Whether each row passes the filter; all do without one."""
    chosen = parse_filter(config)
    if chosen is None:
        return [True] * batch.num_rows
    values = [read_column_values(take_column(batch, name)) for name in chosen.columns]
    return [chosen.keeps(dict(zip(chosen.columns, row, strict=True))) for row in zip(*values, strict=True)]

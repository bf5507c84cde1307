"""Decides which documents a plain text file holds: the whole file, or the text between its separators."""

from collections.abc import Iterator

import xxhash

from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.records import (
    CHUNK,
    LargeRecord,
    Separator,
    read_records,
    scan_records,
)
from packtrain.prepare.sources.separators import count_documents, list_choices
from packtrain.prepare.sources.slices import FileScan, Limits, Part, Row, SourceFile, decode_row
from packtrain.storage.files import open_stream, reading


def scan_text(file: SourceFile, config: SourceConfig, limits: Limits) -> FileScan:
    """Cut a text file into parts of whole documents; without a separator it is one document. Reads the file once."""
    if config.separator is None:
        return FileScan((_hash_file(file, config),))
    separator = Separator(config.separator)
    return FileScan(scan_records(file, limits, config.max_document_bytes, separator))


def read_text(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Yield the documents of a part."""
    if config.separator is None:
        with reading(part.file), open_stream(part.url) as stream:
            # One byte more than was planned shows that the file has grown.
            data = stream.read(part.size + 1)
        part.check_unchanged(xxhash.xxh3_128_hexdigest(data))
        yield decode_row(part.file, 0, data)
        return
    separator = Separator(config.separator)
    for number, record in read_records(part, config.max_document_bytes, separator):
        if isinstance(record, LargeRecord):
            yield record.as_row(part.file, number)
        else:
            end = separator.in_data(record).search(record)
            yield decode_row(part.file, number, record if end is None else record[: end.start()])


def _hash_file(file: SourceFile, config: SourceConfig) -> Part:
    digest = xxhash.xxh3_128()
    size, most = 0, config.max_document_bytes
    with reading(file.name), open_stream(file.url) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if size > most:
                raise _too_large(file, config)
    return Part(file.name, file.url, 0, 1, size, digest.hexdigest(), 0, size)


def _too_large(file: SourceFile, config: SourceConfig) -> SourceError:
    """The error for a file that is too large for one document. It lists the separators that the file has."""
    found = list_choices(count_documents(file))
    advice = f"write {found}" if found else "write source.separator=..."
    return SourceError(
        f"the text file {file.name} would be one document of more than source.max_document_mb={config.max_document_mb:g}; cut it "
        f"into documents ({advice}), or raise source.max_document_mb"
    )

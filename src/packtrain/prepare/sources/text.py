"""Decides which documents a plain text file holds: the whole file, or the text between its separators."""

from collections.abc import Iterator

import xxhash

from packtrain.config.recipe import SourceConfig
from packtrain.prepare.sources.jsonl import read_records, scan_records
from packtrain.prepare.sources.slices import Cutter, FileScan, Limits, Part, Row, SourceFile, decode_row
from packtrain.storage.files import open_stream, reading


def scan_text(file: SourceFile, config: SourceConfig, limits: Limits) -> FileScan:
    """Cut a text file into parts of whole documents; without a separator it is one document. Reads the file once."""
    if config.separator is None:
        return FileScan((_hash_file(file),))
    cutter = Cutter(file, limits)
    for _ in scan_records(file, cutter, limits, config.separator.encode()):
        pass
    return FileScan(cutter.parts())


def read_text(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Yield the documents of a part."""
    if config.separator is None:
        with reading(part.file), open_stream(part.url) as stream:
            data = stream.read()
        part.check_unchanged(xxhash.xxh3_128_hexdigest(data))
        yield decode_row(part.file, 0, data)
        return
    separator = config.separator.encode()
    for number, record in read_records(part, separator):
        yield decode_row(part.file, number, record.removesuffix(separator))


def _hash_file(file: SourceFile) -> Part:
    digest = xxhash.xxh3_128()
    size = 0
    with reading(file.name), open_stream(file.url) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return Part(file.name, file.url, 0, 1, size, digest.hexdigest(), 0, size)

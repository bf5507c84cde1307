"""Decides which lines the csv module gets: of bounded size, as is a record of several lines, with the bytes of each counted."""

from typing import BinaryIO

from packtrain.errors import SourceError
from packtrain.prepare.sources.records import CHUNK, GrowingRecord, LargeRecord

# A field takes up to 60 bytes besides its text.
_MOST_MARKS = 4_000_000


class LargeLineError(Exception):
    """A record of one line is too large; the next line begins a record."""

    def __init__(self, record: LargeRecord) -> None:
        super().__init__(f"its first line has {record.size:,} bytes")
        self.record = record


class CsvLines:
    """Lines of a stream for the csv module.

    Raises LargeLineError for a line of more than `most` bytes, and SourceError if quotes may join it to others, or if a record
    of several lines is larger: the start of the next record is then unknown.
    """

    def __init__(self, stream: BinaryIO, name: str, most: int, position: int = 0, *, has_quotes: bool) -> None:
        self._stream, self._name, self._most, self._has_quotes = stream, name, most, has_quotes
        self._chunk, self._at = b"", 0
        self.position = position
        self._taken = position
        self.record: list[str] = []
        """The lines since `take_size`."""
        self.skips_blanks = False
        """Whether a megabyte of blank lines between records is passed over, see `take_blanks`."""
        self._blanks = (0, 0)

    def __iter__(self) -> "CsvLines":
        return self

    def __next__(self) -> str:
        before = self.position - self._taken
        if self.skips_blanks and not before and self._at == len(self._chunk):
            self._skip_blanks()
        encoding = "utf-8-sig" if self.position == 0 else "utf-8"
        data = self._read_piece()
        if data.endswith(b"\n") and len(data) <= min(self._most - before, _MOST_MARKS):
            self.position += len(data)
        else:
            data = self._read_long(data, before)
        if not data:
            raise StopIteration
        text = data.decode(encoding, "surrogateescape")
        self.record.append(text)
        return text

    def _read_long(self, piece: bytes, before: int) -> bytes:
        """The line that begins with this piece; `before`: the bytes of the record before it."""
        line = GrowingRecord(self._most - before)
        has_quote = False
        while piece:
            line.add(piece)
            has_quote = has_quote or b'"' in piece
            piece = b"" if piece.endswith(b"\n") else self._read_piece()
        self.position += line.size
        data = line.end()
        if isinstance(data, bytes) and (len(data) <= _MOST_MARKS or _count_marks(data) <= _MOST_MARKS):
            return data
        if self._has_quotes and (before or has_quote):
            raise SourceError(
                f"{self._name}: a record that may have quoted fields, from byte {self._taken:,}, is larger than "
                "source.max_document_mb allows; if a quote is not closed there, fix it or write source.quoting=none; "
                "otherwise raise source.max_document_mb"
            )
        raise LargeLineError(LargeRecord(line.size, line.digest()))

    def take_size(self) -> int:
        """Bytes read since the last call, which are those of a record."""
        size, self._taken = self.position - self._taken, self.position
        self.record.clear()
        return size

    def take_blanks(self) -> tuple[int, int]:
        """Blank lines passed over since the last call, and their bytes."""
        blanks, self._blanks = self._blanks, (0, 0)
        return blanks

    def _read_piece(self) -> bytes:
        """A line, or as much of it as there is in the chunk."""
        if self._at == len(self._chunk):
            self._chunk, self._at = self._stream.read(CHUNK), 0
        end = self._chunk.find(b"\n", self._at) + 1 or len(self._chunk)
        piece, self._at = self._chunk[self._at : end], end
        return piece

    def _skip_blanks(self) -> None:
        self._chunk, self._at = self._stream.read(CHUNK), 0
        while len(self._chunk) == CHUNK and not self._chunk.strip(b"\r\n"):
            rows, size = self._blanks
            self._blanks = rows + self._chunk.count(b"\n"), size + len(self._chunk)
            self.position += len(self._chunk)
            self._taken = self.position
            self._chunk = self._stream.read(CHUNK)


def _count_marks(line: bytes) -> int:
    return line.count(b",") + line.count(b"\t") + line.count(b";") + line.count(b"|")

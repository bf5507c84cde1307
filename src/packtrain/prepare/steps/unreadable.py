"""Decides whether too much of a source, or of one of its files, is unreadable; then the source is refused."""

from collections import Counter
from collections.abc import Sequence

from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.slices import BROKEN, NO_TEXT, NOT_UTF8, TOO_LARGE, Slice
from packtrain.prepare.steps.ledger import Intake
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import UNREADABLE, ScanNotes, read_notes, read_scan

# Of one file, more may be unreadable than of the whole source: up to half, or up to a tenth unless that is only a few rows.
_HALF, _TENTH = 0.5, 0.1
_FEW_ROWS, _FEW_BYTES = 10, 16_000

_ADVICE = {
    BROKEN: "fix the source",
    NO_TEXT: "set source.text_column",
    NOT_UTF8: "convert the source to UTF-8 (iconv does)",
    TOO_LARGE: "raise source.max_document_mb",
}

# For BROKEN, by kind of source.
_FORMS = {
    "jsonl": "write one JSON object per line, or one array of objects",
    "csv": "look at source.delimiter and source.quoting",
}


class UnreadableRows:
    """Counts the unreadable rows of a source, slice by slice in any order, and raises SourceError once there are too many.

    Rows that are not scanned yet count as readable, so a source with too many bad rows is refused before its end.
    """

    def __init__(self, results: Results, slices: Sequence[Slice]) -> None:
        self._results, self._slices = results, slices
        self._config = results.recipe.source
        self._rows: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        for piece in slices:
            for part in piece.parts:
                self._rows[part.file] += part.rows
                self._bytes[part.file] += part.size
        self._bad_rows: Counter[str] = Counter()
        self._bad_bytes: Counter[str] = Counter()

    def add(self, piece: Slice, notes: ScanNotes) -> None:
        """Count a scanned slice."""
        for file, (rows, bad_rows, bad_bytes) in notes.unreadable.items():
            # The plan counts blank lines too.
            self._rows[file] += rows - sum(part.rows for part in piece.parts if part.file == file)
            self._bad_rows[file] += bad_rows
            self._bad_bytes[file] += bad_bytes
        self.check(self._rows.total())
        for file in notes.unreadable if _has_many_rows_a_file(self._config) else ():
            self._check_file(file)

    def check(self, rows: int) -> None:
        """Raise SourceError if too many of this number of rows in all are unreadable."""
        share, bad_bytes = self._config.max_bad_fraction, self._bad_bytes.total()
        if self._bad_rows.total() > rows * share:
            self._refuse(f"{self._bad_rows.total()} of {rows} rows cannot be read", "")
        if bad_bytes > max(_FEW_BYTES, self._bytes.total() * share):
            self._refuse(f"{bad_bytes:,} of {self._bytes.total():,} bytes are in rows that cannot be read", "")

    def _check_file(self, file: str) -> None:
        half, tenth = (max(share, self._config.max_bad_fraction) for share in (_HALF, _TENTH))
        bad_rows, rows = self._bad_rows[file], self._rows[file]
        if bad_rows > rows * half or (bad_rows >= _FEW_ROWS and bad_rows > rows * tenth):
            self._refuse(f"{bad_rows} of {rows} rows of the file {file} cannot be read", file)
        bad_bytes, size = self._bad_bytes[file], self._bytes[file]
        if bad_bytes >= _FEW_BYTES and bad_bytes > size * tenth:
            self._refuse(f"{bad_bytes:,} of {size:,} bytes of the file {file} are in rows that cannot be read", file)

    def _refuse(self, what: str, file: str) -> None:
        """Raise the error, with examples from the slices scanned so far: of one file, or of the whole source."""
        intake = Intake()
        for piece in self._slices:
            is_one = not file or any(part.file == file for part in piece.parts)
            if is_one and self._results.store.exists(self._results.scan_name(piece)):
                intake.add(read_scan(self._results, piece), read_notes(self._results, piece))
        samples = {
            r: [s for s in intake.samples.get(r, []) if s.startswith(f"{file} row " if file else "")]
            for r in UNREADABLE
        }
        bad = [reason for reason in UNREADABLE if (intake.dropped[reason] if not file else samples[reason])]
        counted = ", ".join(f"{intake.dropped[reason]} {reason}" for reason in bad)
        examples = "; ".join(samples[reason][0] for reason in bad)
        raise SourceError(
            f"{what}{f' ({counted})' if not file else ''}, more than source.max_bad_fraction={self._config.max_bad_fraction} "
            f"allows{' of one file' if file else ''}{f'; for example {examples}' if examples else ''}: "
            f"{', '.join(self._advise(reason) for reason in bad) or 'fix the file'}, "
            f"{'leave the file out of source.path, ' if file else ''}or raise source.max_bad_fraction"
        )

    def _advise(self, reason: str) -> str:
        form = _FORMS.get(self._config.kind) if reason == BROKEN else None
        return f"{_ADVICE[reason]} ({form})" if form else _ADVICE[reason]


def _has_many_rows_a_file(config: SourceConfig) -> bool:
    """Whether a file is more than a document, so that its share says more than that of the source."""
    return config.kind != "stdlib" and (config.kind != "text" or config.separator is not None)

"""Decides how metrics.jsonl becomes columns: blocks of plain lines by Arrow's reader, any others one by one, with the same result."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packtrain.report.lines import parse_lines
from packtrain.report.numbers import as_numbers
from packtrain.storage.json_file import MOST_COUNT

if TYPE_CHECKING:
    import numpy as np

_COLUMNS = ("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "step_s", "memory_bytes", "mfu")
# Bytes that are parsed together. A line that is not plain slows down only these.
_BLOCK_BYTES = 1 << 20
# Less than this is parsed one by one: importing Arrow would take longer.
_ARROW_BYTES = 1 << 17
# Each validation line has this, and no training line.
_VALIDATION = b'"val_loss"'


@dataclass(frozen=True)
class TrainingLines:
    """The lines with a loss, by ascending step: a column of numbers for each field that a report shows."""

    table: "np.ndarray"
    """float64[columns, lines]; NaN for a line that lacks the field or has no number there."""

    def __len__(self) -> int:
        return int(self.table.shape[1])

    def column(self, name: str) -> "np.ndarray":
        """A field of all lines, float64[lines]."""
        column: np.ndarray = self.table[_COLUMNS.index(name)]
        return column

    @property
    def last_step(self) -> int:
        """The step of the last line; 0 if there is none."""
        return int(self.table[0, -1]) if len(self) else 0


@dataclass(frozen=True)
class MetricsLines:
    """What metrics.jsonl says. Added to others, lines of a step that appears again replace those from there on."""

    training: TrainingLines
    validation: list[dict[str, Any]]

    def __add__(self, later: "MetricsLines") -> "MetricsLines":
        return _join([self, later])


def parse_metrics(data: bytes) -> tuple[MetricsLines, int]:
    """The lines with a loss and those of validations, and how many lines could not be read. Lines with neither are neither."""
    parts: list[MetricsLines] = []
    num_broken = first = 0
    while first < len(data):
        end = data.find(b"\n", first + _BLOCK_BYTES) + 1 or len(data)
        block = data[first:end]
        found, broken = (len(block) >= _ARROW_BYTES and _parse_plain(block)) or _parse_any(block)
        parts.append(found)
        num_broken, first = num_broken + broken, end
    return _join(parts), num_broken


def _parse_any(block: bytes) -> tuple[MetricsLines, int]:
    lines, num_broken = parse_lines(block, step_needed=True)
    training = _latest([line for line in lines if "loss" in line])
    validation = _latest([line for line in lines if "val_loss" in line])
    import numpy as np

    table = np.array([as_numbers([line.get(name) for line in training]) for name in _COLUMNS])
    return MetricsLines(TrainingLines(table), validation), num_broken


def _parse_plain(block: bytes) -> tuple[MetricsLines, int] | None:
    """As `_parse_any`, several times as fast; None for a block with a line that Arrow might read otherwise.

    Plain is a line that is one flat object of ASCII text without an escape, with a step and a loss that is a number.
    """
    import pyarrow as pa
    from pyarrow.json import read_json

    split = _split_validation(block)
    if split is None:
        return None
    plain, validation = split
    num_lines = plain.count(b"\n")
    if not _has_flat_lines(plain, num_lines):
        return None
    options, parse_options = _options()
    try:
        table = read_json(pa.BufferReader(plain), options, parse_options)
    except pa.ArrowException:
        return None
    step, loss = table.column("step"), table.column("loss")
    if table.num_rows != num_lines or step.null_count or loss.null_count:
        return None
    # Not by `to_numpy` of a column, which imports pandas wherever that is installed.
    batch = table.combine_chunks().to_batches()[0]
    columns = batch.to_tensor(null_to_nan=True, row_major=False).to_numpy().T
    if columns[0].min() < 0 or columns[0].max() >= MOST_COUNT:
        return None
    return _join([MetricsLines(TrainingLines(columns), validation)]), 0


def _split_validation(block: bytes) -> tuple[bytes, list[dict[str, Any]]] | None:
    """The block without its validation lines, and these; None if one of them is broken, or has a loss of training too."""
    rest, lines, end = [], [], 0
    while (at := block.find(_VALIDATION, end)) >= 0:
        first = block.rfind(b"\n", end, at) + 1 or end
        rest.append(block[end:first])
        end = block.find(b"\n", at) + 1 or len(block)
        lines.append(block[first:end])
    validation, num_broken = parse_lines(b"".join(lines), step_needed=True)
    if num_broken or any("loss" in line or "val_loss" not in line for line in validation):
        return None
    return b"".join([*rest, block[end:]]), validation


def _has_flat_lines(block: bytes, num_lines: int) -> bool:
    """Whether each line is an object of ASCII text without others in it and without escapes, provided that it has that many objects."""
    return (
        block.startswith(b"{")
        and block.endswith(b"}\n")
        # No object can reach into a next line that begins with `{`.
        and block.count(b"}\n{") == num_lines - 1
        and block.count(b"{") == num_lines
        and block.isascii()
        and b"\\" not in block
        and b"[" not in block
    )


@functools.cache
def _options() -> tuple[Any, Any]:
    import pyarrow as pa
    from pyarrow.json import ParseOptions, ReadOptions

    # One thread, as a run whose report is followed wants its cores for itself.
    types = [(name, pa.int64() if name == "step" else pa.float64()) for name in _COLUMNS]
    parse_options = ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore")
    return ReadOptions(use_threads=False, block_size=4 * _BLOCK_BYTES), parse_options


def _join(parts: Sequence[MetricsLines]) -> MetricsLines:
    import numpy as np

    empty = np.empty((len(_COLUMNS), 0))
    table = np.concatenate([empty, *(part.training.table for part in parts)], axis=1)
    # A step that appears again began a new attempt: a line stays if all later ones have later steps.
    lowest_after = np.minimum.accumulate(np.append(table[0, 1:], np.inf)[::-1])[::-1] if table.size else table[0]
    is_latest = table[0] < lowest_after
    table = table if is_latest.all() else table[:, is_latest]
    return MetricsLines(TrainingLines(table), _latest([line for part in parts for line in part.validation]))


def _latest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines by ascending step. A step that appears again began a new attempt, which replaces the old one from there on."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    return kept

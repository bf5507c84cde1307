"""Decides which side each row of a scanned slice is on, and how the document is cut in which split.by=tail begins."""

import json
import math
from typing import Any, NamedTuple

import numpy as np

from packtrain.data.format.manifest import SPLITS, SplitName
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import SourceError
from packtrain.prepare.copies.equal import hash_content, mark_validation
from packtrain.prepare.sources.sides import is_part_held_out, read_side
from packtrain.prepare.sources.slices import Row, Slice
from packtrain.prepare.steps.results import Results

# How far from the exact place a line break or space is looked for, in characters; and in ids, where any place is as good.
_REACH, _REACH_OF_IDS = 2048, 64


class CutPart(NamedTuple):
    """A part of the document that is cut: its text, its ids if the source has ids, and what it counts for."""

    text: str
    ids: Any
    utf8_bytes: int

    @property
    def content(self) -> bytes:
        return hash_content(self.text)


class Cut(NamedTuple):
    """Where validation begins: at a row of a slice, both counted from 0, or within it."""

    piece: int
    row: int
    at: int = 0
    """Characters of the text, or ids, that come before the cut; 0 if no document is cut."""
    utf8_bytes: tuple[int, int] = (0, 0)
    """Of the two parts of the document."""
    contents: tuple[str, str] = ("", "")
    """Their content hashes, hexadecimal."""
    keeps_first: bool = False
    """Whether the first part is kept for training."""
    file: str = ""
    source_row: int = 0


class SideReader:
    """Reads the sides of one slice's rows while they are scanned, from the values of split.column."""

    def __init__(self, results: Results) -> None:
        self._split = results.recipe.split
        self._seen: dict[str, None] = {}
        self._sides: list[int] = []

    def add(self, row: Row, is_clean: bool) -> None:
        """Take the next row, whose `id` is its value. Raises SourceError for a clean row without a side."""
        side = read_side(row.id, self._split)
        if row.id and len(self._seen) < 20:
            self._seen[row.id[:40]] = None
        if is_clean and side is None:
            says = "has no value" if not row.id else f"has '{row.id[:40]}'"
            seen = ", ".join(self._seen) or "none"
            raise SourceError(
                f"{row.file} row {row.row} {says} in split.column={self._split.column}, which says neither training nor "
                f"validation (values seen so far: {seen}); write split.validation_values=[...] with the values that mean "
                "validation, or leave such rows out with source.filter"
            )
        self._sides.append(-1 if side is None else SPLITS.index(side))

    def pack(self) -> bytes:
        return np.array(self._sides, dtype=np.int8).tobytes()


def assign_sides(results: Results, piece: Slice, scan: np.ndarray) -> np.ndarray:
    """For each row of a scan, the position of its side in SPLITS; -1 for a dropped row. A row that is cut is in validation."""
    split = results.recipe.split
    side = np.full(len(scan), -1, dtype=np.int8)
    is_clean = scan["reason"] == 0
    if split.by == "content":
        side[is_clean] = mark_validation(scan["content"][is_clean], split)
        return side
    given: np.ndarray
    if split.by == "column":
        given = np.frombuffer(results.store.read(results.sides_name(piece)), np.int8)
    elif split.by == "tail":
        cut = read_cut(results)
        first = cut.row if piece.number == cut.piece else len(scan) if piece.number < cut.piece else 0
        given = np.arange(len(scan)) >= first
    else:
        held = {part.file: is_part_held_out(part, split) for part in piece.parts}
        given = np.repeat(list(held.values()), _read_rows_of_files(results, piece))
    side[is_clean] = given[is_clean]
    return side


def select_side(results: Results, piece: Slice, scan: np.ndarray, side: SplitName) -> np.ndarray:
    """Which rows have text on a side, bool[rows]: also the row that is cut, if its part on that side is kept."""
    chosen: np.ndarray = assign_sides(results, piece, scan) == SPLITS.index(side)
    if results.recipe.split.by == "tail" and side == "train":
        cut = read_cut(results)
        if cut.piece == piece.number and cut.keeps_first:
            chosen[cut.row] = True
    return chosen


def write_cut(results: Results, cut: Cut) -> None:
    """Store where split.by=tail cuts the text."""
    results.store.write(results.cut_name, json.dumps(cut._asdict()).encode())


def read_cut(results: Results) -> Cut:
    """Where split.by=tail cuts the text."""
    tree = json.loads(results.store.read(results.cut_name))
    return Cut(**{**tree, **{key: tuple(tree[key]) for key in ("utf8_bytes", "contents")}})


def part_text(text: str, at: int) -> tuple[CutPart, CutPart]:
    """The two parts of a text that is cut after `at` characters."""
    first, second = text[:at], text[at:]
    return CutPart(first, None, len(first.encode())), CutPart(second, None, len(second.encode()))


def part_ids(ids: Any, text: str, at: int, tokenizer: Tokenizer, bos: bool, eos: bool) -> tuple[CutPart, CutPart]:
    """The two parts of ids that are cut after `at` of them, each with the BOS and EOS that every document has."""
    texts = [tokenizer.decode(part.tolist()) for part in (ids[:at], ids[at:])]
    # Decoded apart, the parts of some tokenizers have a space more or less; no byte is counted twice.
    first_bytes = min(len(texts[0].encode()), len(text.encode()))
    after = [tokenizer.eos_id] if eos else []
    before = [tokenizer.bos_id] if bos else []
    return (
        CutPart(texts[0], np.concatenate([ids[:at], np.array(after, ids.dtype)]), first_bytes),
        CutPart(texts[1], np.concatenate([np.array(before, ids.dtype), ids[at:]]), len(text.encode()) - first_bytes),
    )


def find_place_in_text(text: str, utf8_bytes: int) -> int:
    """How many characters of a text the first part takes, if it is to have some `utf8_bytes`; 0 if it cannot be cut.

    After the nearest line break within reach, else after the nearest whitespace, else at the exact character. Both parts
    have more than whitespace.
    """
    exact = len(text.encode()[:utf8_bytes].decode(errors="ignore"))
    reach = min(_REACH, exact // 2, (len(text) - exact) // 2)
    near = sorted(range(exact - reach, exact + reach + 1), key=lambda at: (abs(at - exact), at))
    for ends in (lambda at: text[at - 1] == "\n", lambda at: text[at - 1].isspace(), lambda at: at == exact):
        for at in near:
            if 0 < at < len(text) and ends(at) and text[:at].strip() and text[at:].strip():
                return at
    return 0


def find_place_in_ids(ids: Any, share: float, tokenizer: Tokenizer) -> int:
    """How many ids of a document the first part takes, if it is to have that `share` of them; 0 if it cannot be cut.

    After an id that ends in a line break, if one is near; else where no character is cut.
    """
    exact = math.floor(len(ids) * share + 0.5)
    low, high = max(1, exact - _REACH_OF_IDS), min(len(ids) - 1, exact + _REACH_OF_IDS)
    near = sorted(range(low, high + 1), key=lambda at: (abs(at - exact), at))

    def is_whole(at: int) -> bool:
        around = [tokenizer.decode(ids[max(0, at - 8) : at].tolist()), tokenizer.decode(ids[at : at + 8].tolist())]
        return not around[0].endswith("\ufffd") and not around[1].startswith("\ufffd")

    for ends in (lambda at: tokenizer.decode(ids[at - 1 : at].tolist()).endswith("\n"), is_whole):
        for at in near:
            if ends(at):
                return at
    return near[0] if near else 0


def _read_rows_of_files(results: Results, piece: Slice) -> list[int]:
    """How many rows of each of its files a slice has, as its scan notes them."""
    data = results.store.read(results.scan_name(piece))
    rows: list[int] = json.loads(data[: data.index(b"\n")])["rows"]
    return rows

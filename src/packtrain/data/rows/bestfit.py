"""Decides which pieces share a row by best-fit decreasing: longest first, each into the fullest row that has room.

As in "Fewer Truncations Improve Language Modeling" (Ding et al., arXiv 2404.10830). Pieces of equal length are placed
together: rows with equal room are filled as a group, by one array operation. The result is the same as piece by piece.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from packtrain.data.rows.index import DocumentIndex
from packtrain.data.rows.order import permute

# To how many tokens lengths are rounded up, if that takes no more rows, so that more pieces are equal.
_GRAINS = (32, 16, 8, 4, 2)
# Numbers below this are drawn for documents, of which there are fewer.
_MANY = 2**48


def lay_out(index: DocumentIndex, seq_len: int, key: bytes | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of a best-fit plan, window by window. Rows and members are counted through all windows.

    long_starts, long_rows: the start of each stretch of full rows, and the number of full rows up to its last. A document of T
    tokens or more has one, at its start. member_starts, member_lengths: the pieces in the shared rows, row after row; a start is
    twice the position in the stream, plus one if a document begins there. shared_ends: members up to the last of each shared row.
    short_rows, short_rooms: the shared rows with room left, and how much. window_ends: members up to the last of each window.

    With a `key`, pieces share rows at random, in as many rows. A long document is cut as if its short piece had come after a random
    number of its full ones, so it may have two stretches; long_begins is 1 for those at the start of a document.
    """
    length_type = np.uint16 if seq_len <= 2**16 else np.uint32
    num_full = num_members = num_shared = 0
    for first, starts, lengths in index.windows():
        full, rest = np.divmod(lengths, seq_len)
        left = np.flatnonzero(rest)
        if key is None:
            head = full
            order, ends = best_fit_decreasing(rest[left], seq_len)
        else:
            numbers = np.arange(first, first + len(lengths))
            head = np.where(rest, permute(numbers, _MANY, key) % (full + 1), full)
            order, ends = mix_best_fit(rest[left], seq_len, key)
        members = left[order]
        used = np.add.reduceat(rest[members], np.concatenate([[0], ends[:-1]])) if len(ends) else ends
        short = np.flatnonzero(used < seq_len)
        skipped = head[members] * seq_len
        long = _stretches(starts, full, head, rest + head * seq_len)
        yield {
            "long_starts": long.starts,
            "long_rows": num_full + np.cumsum(long.rows),
            "member_starts": 2 * (starts[members] + skipped) + (skipped == 0),
            "member_lengths": rest[members].astype(length_type),
            "shared_ends": num_members + ends,
            "short_rows": num_shared + short,
            "short_rooms": seq_len - used[short],
            "window_ends": np.array([num_members + len(members)]),
            **({} if key is None else {"long_begins": long.begins}),
        }
        num_full += int(full.sum())
        num_members += len(members)
        num_shared += len(ends)


class _Stretches(NamedTuple):
    """Runs of full rows, ascending: where each starts, its rows, and whether a document begins there (uint8)."""

    starts: np.ndarray
    rows: np.ndarray
    begins: np.ndarray


def _stretches(starts: np.ndarray, full: np.ndarray, head: np.ndarray, tail_offset: np.ndarray) -> _Stretches:
    """Of documents with `full` full pieces: `head` of them at the start, the others from `tail_offset` on."""
    heads, tails = np.flatnonzero(head), np.flatnonzero(full - head)
    begins = np.repeat(np.array([1, 0], dtype=np.uint8), [len(heads), len(tails)])
    where = np.concatenate([starts[heads], starts[tails] + tail_offset[tails]])
    rows = np.concatenate([head[heads], (full - head)[tails]])
    order = np.argsort(where, kind="stable")
    return _Stretches(where[order], rows[order], begins[order])


def mix_best_fit(lengths: np.ndarray, capacity: int, key: bytes) -> tuple[np.ndarray, np.ndarray]:
    """As `best_fit_decreasing`, in exactly as many rows, but `key` decides which pieces share them.

    Pieces change places with those of about the same length, as coarsely as it takes no more rows. Pieces of equal length always do.
    """
    if not len(lengths):
        return best_fit_decreasing(lengths, capacity)
    order = permute(np.arange(len(lengths)), len(lengths), key)
    shuffled = lengths[order]
    members, ends = best_fit_decreasing(shuffled, capacity)
    for grain in _GRAINS:
        if capacity % grain == 0:
            found, found_ends = best_fit_decreasing(-(-shuffled // grain), capacity // grain)
            if len(found_ends) == len(ends):
                return order[found], found_ends
    return order[members], ends


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Place pieces of the given lengths (int[n], each in 1..capacity) into as few rows as the heuristic needs.

    Returns (members, ends). `members`, int64[n], are the pieces' indices row after row: longest first within a row, equal
    lengths in the order given. Row i has members[ends[i - 1]:ends[i]], with `ends` int64[num_rows].
    """
    by_length = _longest_first(lengths, capacity)
    counts = np.bincount(lengths, minlength=capacity + 1)
    rows = _OpenRows(capacity)
    row_of = np.empty(len(lengths), dtype=np.int64)
    placed = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        end = placed + int(counts[length])
        while placed < end:
            chosen = rows.take(length, end - placed)
            row_of[placed : placed + len(chosen)] = chosen
            placed += len(chosen)
    row_by_row = np.argsort(row_of, kind="stable")
    return by_length[row_by_row], np.cumsum(np.bincount(row_of, minlength=rows.num_rows))


class _OpenRows:
    """Rows grouped by the room left in them. Bit r of `_rooms` is set if some row has room r."""

    def __init__(self, capacity: int) -> None:
        self.num_rows = 0
        self._capacity = capacity
        self._groups: dict[int, list[np.ndarray]] = {}
        self._rooms = 0

    def take(self, length: int, wanted: int) -> np.ndarray:
        """The rows (int64[k], 1 <= k <= wanted) for the next k pieces of this length."""
        room, rows = self._fullest(length, wanted)
        # A row that took one piece is now the fullest that has room, so it takes as many as it can.
        per_row = room // length
        num_used = min(len(rows), -(-wanted // per_row))
        used, unused = rows[:num_used], rows[num_used:]
        self._put(room, unused)
        num_pieces = min(wanted, num_used * per_row)
        in_last = num_pieces - (num_used - 1) * per_row
        num_equal = num_used if in_last == per_row else num_used - 1
        self._put(room - per_row * length, used[:num_equal])
        self._put(room - in_last * length, used[num_equal:])
        return used if per_row == 1 else np.repeat(used, per_row)[:num_pieces]

    def _fullest(self, length: int, wanted: int) -> tuple[int, np.ndarray]:
        """The least room of at least `length`, with the rows that have it; new rows if there are none."""
        fitting = self._rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            self._rooms ^= 1 << room
            group = self._groups.pop(room)
            return room, group[0] if len(group) == 1 else np.concatenate(group)
        num_new = -(-wanted // (self._capacity // length))
        self.num_rows += num_new
        return self._capacity, np.arange(self.num_rows - num_new, self.num_rows)

    def _put(self, room: int, rows: np.ndarray) -> None:
        if room and len(rows):
            self._groups.setdefault(room, []).append(rows)
            self._rooms |= 1 << room


def _longest_first(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Indices by falling length, stable. numpy sorts 16-bit keys by radix, ten times as fast as wider ones."""
    keys = capacity - lengths
    return np.argsort(keys.astype(np.uint16) if capacity < 2**16 else keys, kind="stable")

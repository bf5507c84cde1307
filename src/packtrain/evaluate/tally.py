"""Decides how losses of single tokens become figures: by document with a bootstrap interval, by length, and by place in the context."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 1000
_SEED = 0
_COVERAGE = 0.95
# Upper ends of the groups of documents, in bytes; the last group has no end.
_LENGTHS = (256, 1024, 4096, 16_384, 65_536)
# More than any context: 2**40 tokens before a token.
_MOST_PLACES = 42
_MOST_DRAWN = 2**20


@dataclass
class Tally:
    """Sums over what was scored of some documents, which are numbered from 0."""

    document_bytes: np.ndarray
    """int64[documents]: UTF-8 bytes of each document, all of it."""
    nats: np.ndarray = field(init=False)
    tokens: np.ndarray = field(init=False)
    num_bytes: np.ndarray = field(init=False)
    """float64[documents] each: of the tokens that were scored."""
    by_place: np.ndarray = field(init=False)
    """float64[3, places]: nats, tokens and bytes by how many tokens came before, see `_place_of`."""

    def __post_init__(self) -> None:
        self.nats, self.tokens, self.num_bytes = (np.zeros(len(self.document_bytes)) for _ in range(3))
        self.by_place = np.zeros((3, _MOST_PLACES))

    def add(self, documents: np.ndarray, nats: np.ndarray, num_bytes: np.ndarray, seen: np.ndarray) -> None:
        """Scored tokens: the document of each, its loss, its bytes, and how many tokens came before it; [n] each."""
        size, place = len(self.document_bytes), _place_of(seen)
        for total, weights in ((self.nats, nats), (self.tokens, None), (self.num_bytes, num_bytes)):
            total += np.bincount(documents, weights=weights, minlength=size)
        for row, weights in enumerate((nats, None, num_bytes)):
            self.by_place[row] += np.bincount(place, weights=weights, minlength=_MOST_PLACES)

    def by_length(self) -> list[dict[str, Any]]:
        """Figures of the documents by their size, smallest first; groups without a document are left out."""
        group = np.searchsorted(_LENGTHS, self.document_bytes)
        rows = []
        for number in np.unique(group[self.tokens > 0]).tolist():
            chosen = (group == number) & (self.tokens > 0)
            sums = [float(column[chosen].sum()) for column in (self.nats, self.tokens, self.num_bytes)]
            rows.append({"bytes": _name_length(number), "documents": int(chosen.sum()), **_figures(*sums)})
        return rows

    def by_position(self) -> list[dict[str, Any]]:
        """Figures of the tokens by how many tokens came before them in the context, fewest first."""
        filled = np.flatnonzero(self.by_place[1]).tolist()
        return [{"seen": _name_place(place), **_figures(*self.by_place[:, place].tolist())} for place in filled]


def find_intervals(tallies: Sequence[Tally], shares: Sequence[float]) -> dict[str, Any] | None:
    """The 95 % bootstrap intervals of loss and bits per byte, [low, high] each; None for fewer than two documents.

    Draws as many documents as there are, with replacement, RESAMPLES times, always the same (percentile bootstrap: Efron and
    Tibshirani 1993, chapter 13). Documents are what varies: tokens of one document resemble each other. For a mixture, each
    source is drawn for itself, and its figures combined by its share, as for the model.
    """
    counted = [tally.tokens > 0 for tally in tallies]
    num_documents = sum(int(chosen.sum()) for chosen in counted)
    if num_documents < 2:
        return None
    draw = np.random.default_rng(_SEED)
    loss, bytes_per_token = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for tally, chosen, share in zip(tallies, counted, shares, strict=True):
        columns = np.stack([column[chosen] for column in (tally.nats, tally.tokens, tally.num_bytes)])
        size = columns.shape[1]
        at_once = max(1, _MOST_DRAWN // size)
        for first in range(0, RESAMPLES, at_once):
            some = slice(first, min(first + at_once, RESAMPLES))
            drawn = draw.integers(size, size=(some.stop - first, size))
            nats, tokens, num_bytes = (column[drawn].sum(axis=1) for column in columns)
            loss[some] += share * nats / tokens
            bytes_per_token[some] += share * num_bytes / tokens
    ends = [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2]
    is_known = bool((bytes_per_token > 0).all())
    bits = np.quantile(loss / math.log(2) / bytes_per_token, ends).tolist() if is_known else None
    return {
        "method": f"bootstrap over documents, {RESAMPLES:,} resamples",
        "coverage": _COVERAGE,
        "loss": np.quantile(loss, ends).tolist(),
        "bits_per_byte": bits,
    }


def _figures(nats: float, tokens: float, num_bytes: float) -> dict[str, Any]:
    bits = nats / math.log(2) / num_bytes if num_bytes else None
    return {"tokens": int(tokens), "loss": nats / tokens, "bits_per_byte": bits}


def _place_of(seen: np.ndarray) -> np.ndarray:
    """0 for a token that nothing comes before, then 1, 2, 3–4, 5–8, 9–16 ... tokens before it."""
    return np.where(seen > 0, np.ceil(np.log2(np.maximum(seen, 1))).astype(np.int64) + 1, 0)


def _name_place(place: int) -> str:
    first, last = (2 ** (place - 2) + 1, 2 ** (place - 1)) if place > 1 else (place, place)
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def _name_length(group: int) -> str:
    if group == len(_LENGTHS):
        return f"over {_LENGTHS[-1]:,}"
    return f"{_LENGTHS[group - 1] + 1:,}–{_LENGTHS[group]:,}" if group else f"up to {_LENGTHS[0]:,}"

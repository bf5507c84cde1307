"""Decides when documents are equal, which of them stay, and which side of the split the content of each puts it on."""

import string
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import xxhash

from packtrain.config.split import SplitConfig
from packtrain.storage.buckets import Buckets

# A document in a bucket: its content hash, and its number in source order.
ENTRY = np.dtype([("content", "<u8", (2,)), ("number", "<u8")])
_SEEN = np.dtype([("content", "<u8", (2,)), ("number", "<u8"), ("copies", "<u8")])
# ASCII: upper case to lower case, and what str.split takes for whitespace to a space.
_FOLD = bytes.maketrans(
    string.ascii_uppercase.encode() + b"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f", string.ascii_lowercase.encode() + b" " * 9
)


def normalise(text: str) -> bytes:
    """The text with case and whitespace folded, as UTF-8. Documents are equal if this is."""
    if not text.isascii():
        return " ".join(text.casefold().split()).encode()
    # The same result without an object for every word.
    data = text.encode().translate(_FOLD)
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    return data.strip(b" ")


def hash_content(text: str) -> bytes:
    """xxh3-128 of the normalised text, 16 bytes."""
    return xxhash.xxh3_128_digest(normalise(text))


def mark_validation(contents: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Which documents with these content hashes, uint64[N, 2], are in the validation split, bool[N].

    Depends only on the hash, the salt and the fraction, not on other documents, their order or later additions. A larger
    fraction contains every document of a smaller one.
    """
    salt = config.salt.encode() + b"\0"
    data = contents.tobytes()
    limit = config.validation_fraction * 2.0**64
    sides = (xxhash.xxh3_64_intdigest(salt + data[at : at + 16]) < limit for at in range(0, len(data), 16))
    return np.fromiter(sides, np.bool_, count=len(contents))


def add_documents(buckets: Buckets, contents: np.ndarray, first_number: int) -> None:
    """Put documents with content hashes uint64[n, 2] into the buckets, numbered from `first_number` on."""
    add_numbered(buckets, contents, np.arange(first_number, first_number + len(contents)))


def add_numbered(buckets: Buckets, contents: np.ndarray, numbers: np.ndarray) -> None:
    """Put documents with content hashes uint64[n, 2] and these numbers, integers[n], into the buckets."""
    entries = np.empty(len(contents), dtype=ENTRY)
    entries["content"] = contents
    entries["number"] = numbers
    buckets.add(entries["content"][:, 0], entries)


class Sides(NamedTuple):
    """The side of each document: `is_held`, bool[documents], if it is in validation. `is_leak` takes the copies across sides."""

    is_held: np.ndarray
    is_leak: np.ndarray


def mark_copies(buckets: Buckets, is_copy: np.ndarray, sides: Sides | None = None) -> dict[int, int]:
    """Set `is_copy`, bool[documents], for content seen before; returns how many groups of equal documents have each size.

    `buckets` hold what `add_documents` put there in source order. With `sides`, they hold all validation documents before
    the first of training; a copy is then content seen before on the same side, and `sides.is_leak` is set for training
    documents that validation also has. Takes memory for the distinct contents of one bucket, however often they repeat.
    """
    sizes: Counter[int] = Counter()
    for bucket in buckets:
        for size, groups in zip(*np.unique(_mark_bucket(bucket, is_copy, sides), return_counts=True), strict=True):
            sizes[int(size)] += int(groups)
    return dict(sorted(sizes.items()))


def _mark_bucket(chunks: Iterable[np.ndarray], is_copy: np.ndarray, sides: Sides | None) -> np.ndarray:
    """Mark the copies in one bucket; returns the sizes of its groups. Earlier chunks are sorted before later ones."""
    seen = np.empty(0, dtype=_SEEN)
    for chunk in chunks:
        known = len(seen)
        merged = np.empty(known + len(chunk), dtype=_SEEN)
        merged[:known] = seen
        merged["content"][known:], merged["number"][known:] = chunk["content"], chunk["number"]
        merged["copies"][known:] = 1
        # Stable: equal hashes keep their order, in which validation comes before training.
        merged = merged[np.lexsort((merged["content"][:, 1], merged["content"][:, 0]))]
        is_first = is_new = _differs_from_before(merged["content"])
        if sides is not None:
            held = sides.is_held[merged["number"]]
            its_first = held[is_new][np.cumsum(is_new) - 1]
            sides.is_leak[merged["number"][its_first & ~held]] = True
            is_first = is_new | np.concatenate([[False], held[1:] != held[:-1]])
        is_copy[merged["number"][~is_first]] = True
        seen = merged[is_first]
        seen["copies"] = np.add.reduceat(merged["copies"], np.flatnonzero(is_first))
    return np.add.reduceat(seen["copies"], np.flatnonzero(_differs_from_before(seen["content"])))


def _differs_from_before(contents: np.ndarray) -> np.ndarray:
    """For sorted contents uint64[n, 2]: whether each differs from the one before it, bool[n]; the first does."""
    is_new = np.ones(len(contents), dtype=np.bool_)
    is_new[1:] = (contents[1:] != contents[:-1]).any(axis=1)
    return is_new


def expect_random_split_leak(group_sizes: dict[int, int], fraction: float) -> float:
    """The expected share of a random validation split that has a copy in training.

    A document in a group of m copies has the m - 1 others in validation too with probability fraction^(m - 1).
    """
    documents = sum(size * groups for size, groups in group_sizes.items())
    leaked = sum(size * groups * (1.0 - fraction ** (size - 1)) for size, groups in group_sizes.items())
    return leaked / documents if documents else 0.0

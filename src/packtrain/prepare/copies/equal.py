"""Decides when documents are equal, that the first of them stays, and which side of the split each is on."""

import string
from collections import Counter
from collections.abc import Iterable

import numpy as np
import xxhash

from packtrain.config.recipe import SplitConfig
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
    entries = np.empty(len(contents), dtype=ENTRY)
    entries["content"] = contents
    entries["number"] = np.arange(first_number, first_number + len(contents))
    buckets.add(entries["content"][:, 0], entries)


def mark_copies(buckets: Buckets, is_copy: np.ndarray) -> dict[int, int]:
    """Set `is_copy`, bool[documents], for content seen before; returns how many groups of equal documents have each size.

    `buckets` hold what `add_documents` put there in source order. Takes memory for the distinct contents of one bucket,
    however often they repeat.
    """
    sizes: Counter[int] = Counter()
    for bucket in buckets:
        for size, groups in zip(*np.unique(_mark_bucket(bucket, is_copy), return_counts=True), strict=True):
            sizes[int(size)] += int(groups)
    return dict(sorted(sizes.items()))


def _mark_bucket(chunks: Iterable[np.ndarray], is_copy: np.ndarray) -> np.ndarray:
    """Mark the copies in one bucket; returns the sizes of its groups. Earlier chunks are sorted before later ones."""
    seen = np.empty(0, dtype=_SEEN)
    for chunk in chunks:
        known = len(seen)
        merged = np.empty(known + len(chunk), dtype=_SEEN)
        merged[:known] = seen
        merged["content"][known:], merged["number"][known:] = chunk["content"], chunk["number"]
        merged["copies"][known:] = 1
        # Stable: equal hashes keep their source order.
        merged = merged[np.lexsort((merged["content"][:, 1], merged["content"][:, 0]))]
        is_new = np.ones(len(merged), dtype=np.bool_)
        is_new[1:] = (merged["content"][1:] != merged["content"][:-1]).any(axis=1)
        is_copy[merged["number"][~is_new]] = True
        seen = merged[is_new]
        seen["copies"] = np.add.reduceat(merged["copies"], np.flatnonzero(is_new))
    return seen["copies"]


def expect_random_split_leak(group_sizes: dict[int, int], fraction: float) -> float:
    """The expected share of a random validation split that has a copy in training.

    A document in a group of m copies has the m - 1 others in validation too with probability fraction^(m - 1).
    """
    documents = sum(size * groups for size, groups in group_sizes.items())
    leaked = sum(size * groups * (1.0 - fraction ** (size - 1)) for size, groups in group_sizes.items())
    return leaked / documents if documents else 0.0

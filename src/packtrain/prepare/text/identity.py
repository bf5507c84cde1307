"""Decides what makes two texts equal, and a document's side of the split: only its content, so copies are never separated."""

import string

import numpy as np
import numpy.typing as npt
import xxhash

from packtrain.config.recipe import SplitConfig

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


def mark_validation(contents: npt.NDArray[np.uint64], config: SplitConfig) -> npt.NDArray[np.bool_]:
    """Which documents with these content hashes, uint64[N, 2], are in the validation split, bool[N].

    Depends only on the hash, the salt and the fraction, not on other documents, their order or later additions. A larger
    fraction contains every document of a smaller one.
    """
    salt = config.salt.encode() + b"\0"
    data = contents.tobytes()
    limit = config.validation_fraction * 2.0**64
    sides = (xxhash.xxh3_64_intdigest(salt + data[at : at + 16]) < limit for at in range(0, len(data), 16))
    return np.fromiter(sides, np.bool_, count=len(contents))

"""Decides when a faster library may give a slice's ids: as long as every check finds the ids of `tokenizers`."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import TokenizerError

# Characters on each side of a new character that both encode.
_AROUND = 32
_LONGEST = 1 << 20


class DifferentIdsError(Exception):
    """The fast library and `tokenizers` do not agree; the message says where."""


class FastEncoder:
    """Encodes the documents of one slice with the fast library, or with `tokenizers` if that is safer.

    Only `tokenizers` encodes a document that contains the text of an added token, or more than a million characters. Both
    encode one document in 128, chosen by content; each document that is longer than all before it; and the text around each
    character that is new in the slice. The ids of every document must stand for as many bytes as its text has, if the
    tokenizer's form allows counting them. Raises DifferentIdsError at the first difference.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._fast, self._token_bytes = _open(tokenizer)
        self._seen: set[str] = set()
        self._seen_ascii = b""
        self._longest = 0
        self.counts = {"fast": 0, "tokenizers": 0, "checked": 0}

    def encode_batch(self, texts: Sequence[str], contents: Sequence[bytes]) -> list[list[int] | memoryview]:
        """Ids of each text, as a list or as the bytes of u4. `contents` are the content hashes of the texts."""
        plain = [len(text) > _LONGEST or self._tokenizer.holds_added_token(text) for text in texts]
        slow = iter(
            self._tokenizer.encode_batch([text for text, is_plain in zip(texts, plain, strict=True) if is_plain])
        )
        quick = [text for text, is_plain in zip(texts, plain, strict=True) if not is_plain]
        ids, ends = self._encode(quick)
        self._check_bytes(quick, ids, ends)
        self._check_ids(quick, [c for c, is_plain in zip(contents, plain, strict=True) if not is_plain], ids, ends)
        self.counts["fast"] += len(quick)
        self.counts["tokenizers"] += len(texts) - len(quick)
        data = memoryview(ids.tobytes())
        pieces = (data[4 * start : 4 * end] for start, end in zip([0, *ends], ends, strict=False))
        return [next(slow) if is_plain else next(pieces) for is_plain in plain]

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, list[int]]:
        """Ids of all texts, one after the other, and where those of each text end."""
        if not texts:
            return np.zeros(0, np.uint32), []
        ids, offsets = self._fast.encode_batch_flat(texts, add_special_tokens=False, split_special_tokens=True)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64)[1:].astype(np.int64).tolist()

    def _check_bytes(self, texts: list[str], ids: np.ndarray, ends: list[int]) -> None:
        wanted = [self._tokenizer.bytes_of_ids(text) for text in texts]
        if None in wanted:
            return
        if len(ids) and int(ids.max()) >= len(self._token_bytes):
            raise DifferentIdsError(f"it gave id {int(ids.max())}, which the tokenizer does not have")
        sums = np.concatenate([[0], np.cumsum(self._token_bytes[ids], dtype=np.int64)])[[0, *ends]]
        wrong = np.flatnonzero(np.diff(sums) != np.array(wanted, dtype=np.int64))
        if len(wrong):
            raise DifferentIdsError(f"its ids stand for another text than {texts[int(wrong[0])][:60]!r}")

    def _check_ids(self, texts: list[str], contents: list[bytes], ids: np.ndarray, ends: list[int]) -> None:
        checked: list[str] = []
        given: list[list[int]] = []
        around: list[str] = []
        for text, content, start, end in zip(texts, contents, [0, *ends], ends, strict=False):
            is_longest = len(text) > self._longest
            self._longest = max(self._longest, len(text))
            # One document in 128 by its hash: `tokenizers` is about ten times as slow.
            if is_longest or content[0] < 2:
                checked.append(text)
                given.append(ids[start:end].tolist())
            around += self._around_new(text)
        more, cuts = self._encode(around)
        given += [more[start:end].tolist() for start, end in zip([0, *cuts], cuts, strict=False)]
        self.counts["checked"] += len(checked)
        checked += around
        for text, ours, wanted in zip(checked, given, self._tokenizer.encode_batch(checked), strict=True):
            if ours != wanted:
                raise DifferentIdsError(f"it gave other ids for {text[:60]!r}")

    def _around_new(self, text: str) -> list[str]:
        """The text around each character that is new in the slice."""
        # No ASCII byte is part of a longer character, so the rest is still UTF-8.
        new = set(text.encode().translate(None, self._seen_ascii).decode()) - self._seen
        if not new:
            return []
        self._seen |= new
        self._seen_ascii = "".join(filter(str.isascii, self._seen)).encode()
        places = sorted(text.index(character) for character in new)
        return [text[max(0, at - _AROUND) : at + _AROUND] for at in places]


def open_encoder(tokenizer: Tokenizer, backend: str) -> FastEncoder | None:
    """The encoder of a slice with the fast library; None if `tokenizers` encodes: as `backend` says, or for want of the library.

    Raises TokenizerError with backend=fast if the library is not installed, or cannot read this tokenizer.
    """
    if backend == "tokenizers":
        return None
    try:
        return FastEncoder(tokenizer)
    except TokenizerError:
        if backend == "fast":
            raise
        return None


def check_fast(tokenizer: Tokenizer | None) -> None:
    """Raise TokenizerError if the fast library is not installed, or cannot read this tokenizer."""
    if tokenizer is None:
        _library()
    else:
        _open(tokenizer)


@lru_cache(maxsize=1)
def _open(tokenizer: Tokenizer) -> tuple[Any, np.ndarray]:
    """The fast library's tokenizer, and how many bytes each id stands for."""
    library = _library()
    try:
        return library.Tokenizer.from_json_str(tokenizer.plain_json()), tokenizer.token_bytes()
    except Exception as error:  # noqa: BLE001  the library may raise anything
        raise TokenizerError(
            f"tokenizer.backend=fast cannot be used, because fastokens does not read this tokenizer ({error}); write "
            "tokenizer.backend=tokenizers"
        ) from None


def _library() -> Any:
    try:
        import fastokens
    except ImportError:
        raise TokenizerError(
            "tokenizer.backend=fast needs fastokens, which is not installed; run pip install 'packtrain[fast]', or write "
            "tokenizer.backend=tokenizers"
        ) from None
    return fastokens

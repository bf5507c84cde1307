"""Decides how run.c reads tokenizer.bin, and makes ids of a text and text of ids: in Python, step by step as run.c does."""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

BOS, FIRST_BYTE = 1, 3
_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class RunTokenizer:
    """Scores and texts of all ids."""

    scores: list[float]
    texts: list[bytes]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS: a space first, then characters or their bytes, then the best merges one by one."""
        lookup = {text: index for index, text in reversed(list(enumerate(self.texts)))}
        ids = [lookup[b" "]] if text else []
        for character in text:
            encoded = character.encode()
            ids += [lookup[encoded]] if encoded in lookup else [byte + FIRST_BYTE for byte in encoded]
        while True:
            joined = [lookup.get(self.texts[left] + self.texts[right]) for left, right in zip(ids, ids[1:])]  # noqa: B905
            best = max(
                (place for place, token in enumerate(joined) if token is not None),
                key=lambda place: (self.scores[joined[place] or 0], -place),
                default=None,
            )
            if best is None:
                return ids
            ids[best : best + 2] = [joined[best] or 0]

    def decode(self, ids: list[int]) -> bytes:
        """The bytes that are printed for ids that follow BOS: without the space that the first of them begins with."""
        pieces = [
            bytes([int(found[1], 16)]) if (found := _BYTE.fullmatch(self.texts[i])) else self.texts[i] for i in ids
        ]
        if pieces and self.texts[ids[0]].startswith(b" "):
            pieces[0] = pieces[0][1:]
        return b"".join(pieces)


def read_vocabulary(path: Path, size: int) -> RunTokenizer:
    """Reads the texts of `size` ids. Raises ValueError, with the reason as a clause, if the file is not of that size."""
    data = path.read_bytes()
    scores, texts, place = [], [], 4
    try:
        for _ in range(size):
            score, length = struct.unpack_from("<fI", data, place)
            scores.append(score)
            texts.append(data[place + 8 : place + 8 + length])
            place += 8 + length
    except struct.error:
        raise ValueError(f"it ends after {len(texts)} of {size} tokens") from None
    if place != len(data) or struct.unpack_from("<I", data, 0)[0] != max(map(len, texts)):
        raise ValueError(f"it has {len(data)} bytes, and its tokens {place}")
    return RunTokenizer(scores, texts)

"""Decides which text can be shown while tokens arrive: no half characters, no lost spaces, no part of a stop string."""

import re
from collections.abc import Sequence

from packtrain.data.tokens.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class StreamDecoder:
    """Turns tokens that continue `prompt_ids` into text piece by piece; joined, the pieces equal all tokens decoded at once.

    Decoding each token alone would lose the space that many tokenizers strip from the front of a text, and would show
    replacement characters for a character that spans tokens. So tokens are decoded together with those shown before, and
    held back while their end can still change: at an unfinished character, and, if single bytes are tokens (`<0xE2>`),
    until the run of bytes ends, because one invalid byte turns the whole run into replacement characters.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special = {i for i, token in tokenizer.raw.get_added_tokens_decoder().items() if token.special}
        shown = list(prompt_ids)
        while shown and self._can_change(shown[-1]):
            shown.pop()
        self._shown = shown
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that is certain after this token; often empty."""
        self._pending.append(token_id)
        if self._can_change(token_id):
            return ""
        text = self._pending_text()
        if text.endswith(_REPLACEMENT):
            return ""
        self._shown, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """The text still held back; call it after the last token."""
        text = self._pending_text()
        self._shown, self._pending = self._shown + self._pending, []
        return text

    def _pending_text(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._pending)[len(before) :]

    def _can_change(self, token_id: int) -> bool:
        # A special token is not shown, so the bytes before and after it form one run.
        piece = self._tokenizer.raw.id_to_token(token_id)
        return token_id in self._special or piece is None or _BYTE_PIECE.fullmatch(piece) is not None


class StopStrings:
    """Ends a text at the first complete stop string, however the text is divided into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that can be shown, and whether a stop string ended it. A possible start of a stop string is held back."""
        text = self._held + piece
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            return text[: min(ends)[1]], True
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """The text held back; call it after the last piece, when no stop string can follow."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

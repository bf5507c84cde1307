"""Decides how the tokens of one text become pieces that can be sent: text that is certain, with the tokens it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.generate.text import StopStrings, StreamDecoder

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class ChosenToken:
    """A token of a text, the logarithm of its probability, and the likeliest tokens in its place, best first.

    `logprob` is None for a token that nothing precedes. `offset` counts the characters of the text before it.
    """

    id: int
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...]
    offset: int


@dataclass(frozen=True)
class Piece:
    """Text that is certain, and the tokens that began in it. `finish` says why the text ended, in the last one."""

    text: str
    tokens: tuple[ChosenToken, ...] = ()
    num_tokens: int = 0
    """Of the whole text so far."""
    finish: Reason | None = None


@dataclass
class GrowingText:
    """One text that is being made: takes its tokens, gives its pieces, and knows when it has ended."""

    tokenizer: Tokenizer
    prompt_ids: Sequence[int]
    stops: Sequence[str]
    max_tokens: int
    """Tokens at most; the context may have room for fewer than were asked for."""
    num_tokens: int = 0
    """Tokens of the text so far, without the one that ends it."""
    is_finished: bool = False
    _held: list[ChosenToken] = field(default_factory=list)
    _num_decoded: int = 0
    _num_shown: int = 0

    def __post_init__(self) -> None:
        self._decoder = StreamDecoder(self.tokenizer, self.prompt_ids)
        self._stops = StopStrings(self.stops)

    def push(
        self, token_id: int, logprob: float | None = None, alternatives: tuple[tuple[int, float], ...] = ()
    ) -> Piece | None:
        """What can be sent after this token; None if nothing can yet."""
        if token_id == self.tokenizer.eos_id:
            return self._end("stop")
        self.num_tokens += 1
        self._held.append(ChosenToken(token_id, logprob, alternatives, self._num_decoded))
        text = self._decoder.push(token_id)
        self._num_decoded += len(text)
        shown, is_stopped = self._stops.push(text)
        self._num_shown += len(shown)
        if is_stopped:
            return self._finish(shown, "stop")
        if self.num_tokens >= self.max_tokens:
            return self._end("length", shown)
        return Piece(shown, self._take(self._num_shown), self.num_tokens) if shown else None

    def _end(self, reason: Reason, shown: str = "") -> Piece:
        """The rest of the text: what could have been the beginning of a stop string, or of a character."""
        rest, is_stopped = self._stops.push(self._decoder.flush())
        rest += "" if is_stopped else self._stops.flush()
        self._num_shown += len(rest)
        if is_stopped:
            return self._finish(shown + rest, "stop")
        self.is_finished = True
        held, self._held = tuple(self._held), []
        return Piece(shown + rest, held, self.num_tokens, reason)

    def _finish(self, shown: str, reason: Reason) -> Piece:
        self.is_finished = True
        return Piece(shown, self._take(self._num_shown), self.num_tokens, reason)

    def _take(self, end: int) -> tuple[ChosenToken, ...]:
        """The held tokens that begin before character `end`."""
        taken = tuple(token for token in self._held if token.offset < end)
        self._held = [token for token in self._held if token.offset >= end]
        return taken


def locate(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of ids, and how many of its characters come before each."""
    decoder, parts, offsets, num_chars = StreamDecoder(tokenizer, ()), [], [], 0
    for each in ids:
        offsets.append(num_chars)
        parts.append(decoder.push(each))
        num_chars += len(parts[-1])
    parts.append(decoder.flush())
    return "".join(parts), offsets

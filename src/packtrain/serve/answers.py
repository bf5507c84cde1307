"""Decides what an answer looks like: OpenAI's objects for a completion and for a chat, whole or as the pieces of a stream."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from packtrain.serve.exchange import Exchange, ScoredPrompt
from packtrain.serve.growing import ChosenToken, Piece
from packtrain.serve.orders import Order
from packtrain.serve.pieces import TokenTable

Fields = dict[str, Any]


@dataclass
class Finished:
    """A text that has been put together from its messages."""

    text: str = ""
    tokens: list[ChosenToken] = field(default_factory=list)
    finish: str | None = None
    num_tokens: int = 0

    def add(self, message: ScoredPrompt | Piece) -> None:
        if isinstance(message, ScoredPrompt):
            return
        self.text += message.text
        self.tokens += message.tokens
        self.finish, self.num_tokens = message.finish, message.num_tokens


class Reply:
    """What both kinds of answer have. One answers one request; `step` is the checkpoint that it came from."""

    kind, chunk_kind, prefix = "", "", ""

    def __init__(self, exchange: Exchange, model: str, table: TokenTable, *, texts_per_prompt: int = 1) -> None:
        self._exchange, self._model, self._table = exchange, model, table
        self._orders = exchange.orders
        self._texts = [Finished() for _ in self._orders]
        self._has_begun = [False] * len(self._orders)
        self._has_text = [False] * len(self._orders)
        self._id, self._created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())
        # Each prompt is counted once, whatever the number of its texts.
        self._prompt_tokens = sum(len(order.prompt_ids) for order in self._orders[::texts_per_prompt])

    def add(self, index: int, message: ScoredPrompt | Piece) -> None:
        """Takes a message into account."""
        self._texts[index].add(message)

    def whole(self) -> Fields:
        """The answer after the last message."""
        choices = [self._choice(index, text) for index, text in enumerate(self._texts)]
        return self._head(self.kind) | {"choices": choices, "usage": self.usage()}

    def chunks(self, index: int, message: ScoredPrompt | Piece, *, has_usage: bool) -> list[Fields]:
        """What a stream sends for a message."""
        extra = {"usage": None} if has_usage else {}
        return [self._head(self.chunk_kind) | {"choices": [each]} | extra for each in self._deltas(index, message)]

    def last_chunk(self) -> Fields:
        """The numbers of tokens, after everything else in a stream that asked for them."""
        return self._head(self.chunk_kind) | {"choices": [], "usage": self.usage()}

    def usage(self) -> Fields:
        made = sum(text.num_tokens for text in self._texts)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self._prompt_tokens + made,
        }

    def _head(self, kind: str) -> Fields:
        step = self._exchange.step
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "step": step,
            "system_fingerprint": None if step is None else f"step-{step}",
        }

    def _choice(self, index: int, text: Finished) -> Fields:
        raise NotImplementedError

    def _deltas(self, index: int, message: ScoredPrompt | Piece) -> list[Fields]:
        raise NotImplementedError


class CompletionReply(Reply):
    """An answer of /v1/completions."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, exchange: Exchange, model: str, table: TokenTable, *, texts_per_prompt: int = 1) -> None:
        super().__init__(exchange, model, table, texts_per_prompt=texts_per_prompt)
        self._scored: list[tuple[ChosenToken, ...]] = [()] * len(self._orders)

    def add(self, index: int, message: ScoredPrompt | Piece) -> None:
        super().add(index, message)
        if isinstance(message, ScoredPrompt):
            self._scored[index] = message.tokens

    def _choice(self, index: int, text: Finished) -> Fields:
        order = self._orders[index]
        logprobs = self._logprobs(order, self._scored[index], text.tokens)
        return _completion_choice(index, (order.echo or "") + text.text, logprobs, text.finish)

    def _deltas(self, index: int, message: ScoredPrompt | Piece) -> list[Fields]:
        order, found = self._orders[index], []
        if not self._has_begun[index]:
            self._has_begun[index] = True
            if order.echo is not None:
                scored = message.tokens if isinstance(message, ScoredPrompt) else ()
                found.append(_completion_choice(index, order.echo, self._logprobs(order, scored, ()), None))
        if isinstance(message, Piece):
            logprobs = self._logprobs(order, (), message.tokens)
            found.append(_completion_choice(index, message.text, logprobs, message.finish))
        return found

    def _logprobs(
        self, order: Order, scored: tuple[ChosenToken, ...], made: tuple[ChosenToken, ...] | list[ChosenToken]
    ) -> Fields | None:
        if order.num_alternatives is None:
            return None
        tokens = [*scored, *made]
        start = len(order.echo or "")
        offsets = [token.offset for token in scored] + [start + token.offset for token in made]
        return {
            "tokens": [self._table.text_of(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._best(token) for token in tokens] if order.num_alternatives else None,
            "text_offset": offsets,
        }

    def _best(self, token: ChosenToken) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        found: dict[str, float] = {}
        # Different ids may have the same text; the likelier one is told.
        for each, logprob in (*token.alternatives, (token.id, token.logprob)):
            found.setdefault(self._table.text_of(each), logprob)
        return found


class ChatReply(Reply):
    """An answer of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def _choice(self, index: int, text: Finished) -> Fields:
        return {
            "index": index,
            # The space after "Assistant:" is part of the template.
            "message": {"role": "assistant", "content": text.text.lstrip(), "refusal": None},
            "logprobs": self._logprobs(index, text.tokens),
            "finish_reason": text.finish,
        }

    def _deltas(self, index: int, message: ScoredPrompt | Piece) -> list[Fields]:
        if isinstance(message, ScoredPrompt):
            return []
        found: list[Fields] = []
        if not self._has_begun[index]:
            self._has_begun[index] = True
            found.append(self._delta(index, {"role": "assistant", "content": "", "refusal": None}))
        text = message.text if self._has_text[index] else message.text.lstrip()
        self._has_text[index] |= bool(text)
        if text or message.tokens:
            logprobs = self._logprobs(index, message.tokens)
            if text or logprobs is not None:
                found.append(self._delta(index, {"content": text}, logprobs))
        if message.finish is not None:
            found.append(self._delta(index, {}, finish=message.finish))
        return found

    @staticmethod
    def _delta(index: int, delta: Fields, logprobs: Fields | None = None, finish: str | None = None) -> Fields:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, index: int, tokens: tuple[ChosenToken, ...] | list[ChosenToken]) -> Fields | None:
        if self._orders[index].num_alternatives is None:
            return None
        told = [
            self._tell(token.id, token.logprob)
            | {"top_logprobs": [self._tell(each, logprob) for each, logprob in token.alternatives]}
            for token in tokens
        ]
        return {"content": told, "refusal": None}

    def _tell(self, token_id: int, logprob: float | None) -> Fields:
        return {
            "token": self._table.text_of(token_id),
            "logprob": logprob,
            "bytes": list(self._table.bytes_of(token_id)),
        }


def _completion_choice(index: int, text: str, logprobs: Fields | None, finish: str | None) -> Fields:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}

"""Decides how one sequence is continued: which token comes next, which text has become certain, and when it ends."""

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.generate.sample import choose
from packtrain.generate.settings import GenerateSettings
from packtrain.generate.text import StopStrings, StreamDecoder

FinishReason = Literal["eos", "stop", "length", "context"]


@dataclass(frozen=True)
class NewToken:
    """What a step added to a stream."""

    stream: "Stream"
    token_id: int
    text: str
    """The text that has become certain with this token; joined, these are the whole continuation. Often empty."""
    logprob: float | None
    """The natural logarithm of the token's probability by the model, before penalties and temperature; None if not asked."""
    alternatives: list[tuple[int, float]]
    """The likeliest tokens with theirs, likeliest first, as many as `settings.logprobs`."""


class Stream:
    """A sequence that is being continued. `finish_reason` is set at its end, and its slot is then free again.

    "eos": the model ended the text, or gave one of `stop_token_ids`; "stop": a stop string; "length": max_tokens;
    "context": no position is left.
    """

    def __init__(self, prompt_ids: list[int], settings: GenerateSettings, tokenizer: Tokenizer, slot: int) -> None:
        self.prompt_ids = prompt_ids
        self.settings = settings
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.seed = settings.seed if settings.seed is not None else random.SystemRandom().randrange(2**31)
        self.slot: int | None = slot
        self.unread = list(prompt_ids)
        """Ids that the cache does not have yet."""
        self.prompt_logits_V: Tensor | None = None
        """The logits after the prompt, while the cache has all of it, if it was read by itself."""
        self.end_ids = [*([] if tokenizer.eos_id is None else [tokenizer.eos_id]), *settings.stop_token_ids]
        self._generator = torch.Generator().manual_seed(self.seed)
        self._decoder = StreamDecoder(tokenizer, prompt_ids)
        self._stops = StopStrings(settings.stop)

    def choose(self, logits_V: Tensor) -> int:
        """The next token."""
        return choose(logits_V, self.prompt_ids, self.token_ids, self.settings, self._generator, self.end_ids)

    def push(self, token_id: int) -> str:
        """Adds a token; returns the text that is now certain. May set `finish_reason`."""
        self.token_ids.append(token_id)
        if token_id in self.end_ids:
            self.finish_reason = "eos"
            return self.flush()
        text, is_stopped = self._stops.push(self._decoder.push(token_id))
        if is_stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.settings.max_tokens:
            self.finish_reason = "length"
            text += self.flush()
        return text

    def flush(self) -> str:
        """The text that was held back; call it after the last token."""
        text, is_stopped = self._stops.push(self._decoder.flush())
        if is_stopped:
            self.finish_reason = "stop"
        return text + self._stops.flush()

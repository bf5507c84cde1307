"""Decides how a prompt is continued: one pass over the prompt, then one pass of a single position per token."""

import random
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import NonFiniteError, TokenizerError, UserError
from packtrain.generate.cache import KVCache
from packtrain.generate.sample import choose
from packtrain.generate.settings import GenerateSettings
from packtrain.generate.text import StopStrings, StreamDecoder
from packtrain.model.llama import Llama

FinishReason = Literal["eos", "stop", "length", "context"]


class Generation:
    """A continuation that is generated while you iterate over it: yields pieces of text, which joined are the whole.

    `prompt_ids` and `seed` are known from the start, `token_ids` grows, and `finish_reason` is set at the end: "eos" (the
    model ended the text), "stop" (a stop string), "length" (max_tokens) or "context" (no position is left).
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        settings: GenerateSettings,
        context_length: int | None,
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.seed = settings.seed if settings.seed is not None else random.SystemRandom().randrange(2**31)
        room = settings.max_tokens if context_length is None else context_length - len(self.prompt_ids)
        self._limit = min(settings.max_tokens, room)
        self._at_limit: FinishReason = "length" if settings.max_tokens <= room else "context"
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def _run(self) -> Iterator[str]:
        stops = StopStrings(self._settings.stop)
        decoder = StreamDecoder(self._tokenizer, self.prompt_ids)
        for token_id in self._tokens():
            piece, stopped = stops.push(decoder.push(token_id))
            if piece:
                yield piece
            if stopped:
                self.finish_reason = "stop"
                return
        piece, stopped = stops.push(decoder.flush())
        if stopped:
            self.finish_reason = "stop"
        piece += stops.flush()
        if piece:
            yield piece

    def _tokens(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        cache = KVCache(self._model.config.num_hidden_layers, len(self.prompt_ids) + self._limit)
        new_ids = self.prompt_ids
        while len(self.token_ids) < self._limit:
            logits_V = next_logits(self._model, new_ids, cache)[: self._tokenizer.vocab_size]
            if not logits_V.isfinite().all():
                position = len(self.prompt_ids) + len(self.token_ids)
                raise NonFiniteError(
                    f"the model's logits are not finite after {position} tokens, so its weights are damaged; give "
                    "--step with an earlier checkpoint"
                )
            token_id = choose(logits_V, self.prompt_ids + self.token_ids, self._settings, generator)
            self.token_ids.append(token_id)
            if token_id == self._tokenizer.eos_id:
                self.finish_reason = "eos"
                return
            yield token_id
            new_ids = [token_id]
        self.finish_reason = self._at_limit


def stream(
    model: Llama,
    tokenizer: Tokenizer,
    prompt: str,
    settings: GenerateSettings,
    *,
    add_bos: bool,
    context_length: int | None = None,
) -> Generation:
    """Continues `prompt`; iterate over the result for its text. Changes neither the model nor the global RNG.

    `add_bos` puts the begin-of-text token first, as each document of the dataset has it.
    `context_length`: positions that the model is meant for; by default its `max_position_embeddings`, if set.
    Raises UserError if the prompt has no token or is too long for the context, TokenizerError if the tokenizer
    does not fit the model, and, while iterating, NonFiniteError if the model's logits are NaN or infinite.
    """
    if tokenizer.vocab_size > model.config.vocab_rows:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model {model.config.vocab_rows}; give the "
            "tokenizer that the model was trained with"
        )
    context_length = context_length or model.config.max_position_embeddings
    prompt_ids = encode_prompt(tokenizer, prompt, add_bos)
    if context_length is not None and len(prompt_ids) >= context_length:
        raise UserError(
            f"the prompt is {len(prompt_ids)} tokens long, but the model's context holds {context_length}, which leaves "
            f"no room for an answer; give a prompt of at most {context_length - 1} tokens"
        )
    return Generation(model, tokenizer, prompt_ids, settings, context_length)


def encode_prompt(tokenizer: Tokenizer, prompt: str, add_bos: bool) -> list[int]:
    """Token ids of a prompt, after the begin-of-text token if `add_bos`. Raises UserError if there are none."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("the prompt is not valid UTF-8; give it in that encoding") from None
    if add_bos and tokenizer.bos_id is None:
        raise TokenizerError(
            "the dataset has a begin-of-text token before each document, but this tokenizer has no such token; give the "
            "dataset's tokenizer"
        )
    prompt_ids = [tokenizer.bos_id] if add_bos and tokenizer.bos_id is not None else []
    prompt_ids += tokenizer.encode(prompt) if prompt else []
    if not prompt_ids:
        raise UserError(
            "the prompt is empty, and this model was trained without a begin-of-text token; give a prompt of at least "
            "one character"
        )
    return prompt_ids


@torch.no_grad()
def next_logits(model: Llama, new_ids: Sequence[int], cache: KVCache) -> Tensor:
    """Logits [V] of the token after those in `cache` and `new_ids`, in float32 on the CPU; adds `new_ids` to the cache.

    Waits for the device. Computes the output projection for the last position only. Uses no_grad because tensors made in
    inference_mode could not be used in training afterwards.
    """
    tokens_BT = torch.tensor([list(new_ids)], device=model.lm_head.weight.device)
    x_BTD, _ = model.embed(tokens_BT)
    last_D = model.model(x_BTD, cache=cache)[0, -1]
    return model.lm_head(last_D).float().cpu()

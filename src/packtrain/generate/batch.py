"""Decides how many sequences are continued at once: each in its slot of a cache, none slowed or changed by the others.

Read `Engine.step`: a piece of one prompt that is still being read, then one token for every sequence that has been.
"""

from collections.abc import Sequence

from torch import Tensor

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import NonFiniteError, TokenizerError, UserError
from packtrain.generate.cache import SlotCache
from packtrain.generate.compiled import build_passes
from packtrain.generate.passes import Work
from packtrain.generate.prompt import fit_prompt, last_part
from packtrain.generate.settings import GenerateSettings
from packtrain.generate.stream import NewToken, Stream
from packtrain.model.layers import product_dtype
from packtrain.model.llama import Llama
from packtrain.plan.parameters import num_parameters

FEW = 16
"""Fewer new tokens than this join the tokens of the other sequences; of a longer prompt, a piece is read by itself."""
# FLOPs of a piece: less than half a second on a laptop. Other sequences wait that long for their next token.
_PIECE_FLOPS = 8e10


class Engine:
    """Continues up to `slots` sequences at once. Changes neither the model nor the global random generator.

    On the CPU a stream's tokens depend on its prompt, settings and seed alone, and not on the other streams.
    The cache of `slots` x `positions` is allocated here, once.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        slots: int = 1,
        context_length: int,
        positions: int | None = None,
        interleave: bool | None = None,
        reuse: bool = False,
    ) -> None:
        """`positions`: of each slot, if fewer than `context_length` are enough. `interleave`: a long
        prompt is read in pieces, between which the other streams get their tokens; by default if there are several slots. Read
        at once, it is read faster, and its logits differ by rounding. `reuse`: a prompt that begins like what was in
        its slot before is not read again, which may change its logits by rounding. Raises TokenizerError for a tokenizer that
        is larger than the model, and UserError if the cache does not fit into memory."""
        check_vocabulary(model, tokenizer)
        self.context_length = context_length
        self.tokenizer = tokenizer
        weight = model.model.norm.weight
        self.cache = SlotCache(
            model.config,
            slots,
            min(context_length, positions or context_length),
            dtype=product_dtype(weight),
            device=weight.device,
        )
        self._passes = build_passes(model, self.cache)
        is_interleaved = slots > 1 if interleave is None else interleave
        self._piece = _piece_length(model) if is_interleaved else context_length
        self._reuse = reuse
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._free = list(range(slots))
        # In the order in which they came, so that no prompt waits for a later one.
        self._streams: list[Stream] = []

    @property
    def num_free(self) -> int:
        """How many more streams can be added."""
        return len(self._free)

    @property
    def num_bytes(self) -> int:
        """Bytes of the cache; `cache.cache_bytes` tells them beforehand."""
        return self.cache.num_bytes

    @property
    def streams(self) -> list[Stream]:
        """Those that are not finished."""
        return list(self._streams)

    def add(self, prompt_ids: Sequence[int], settings: GenerateSettings) -> Stream:
        """Starts a stream in a free slot; `settings.n` is not looked at.

        Raises UserError for ids outside the tokenizer's vocabulary, a prompt without ids, and one that is too long for the
        context if `settings.beyond` is `error`.
        """
        if not prompt_ids:
            raise UserError("the prompt has no token; give at least one")
        size = self.tokenizer.vocab_size
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < size:
            raise UserError(f"an id is outside the vocabulary of {size}; give ids from 0 to {size - 1}")
        assert self.num_free, "wait until a stream has finished, or remove one"
        part = fit_prompt(prompt_ids, settings, self.cache.positions, self.tokenizer.bos_id)
        stream = Stream(part, settings, self.tokenizer, self._free.pop())
        self._streams.append(stream)
        # The last token is read in any case: its logits are needed.
        known = _common_length(self._held[slot_of(stream)], part[:-1]) if self._reuse else 0
        self.cache.lengths[slot_of(stream)] = known
        del stream.unread[:known]
        return stream

    def remove(self, stream: Stream) -> None:
        """Ends a stream, finished or not, and frees its slot."""
        if stream.slot is not None:
            # Unless it has slid, the cache has the beginning of this text.
            has_slid = stream.settings.beyond == "slide"
            text = [] if has_slid else [*stream.prompt_ids, *stream.token_ids]
            self._held[stream.slot] = text[: self.cache.lengths[stream.slot]]
            self._streams.remove(stream)
            self._free.append(stream.slot)
            stream.slot = None

    def step(self) -> list[NewToken]:
        """One more token for each stream whose prompt has been read; reads a piece of one other prompt. May return none.

        Raises NonFiniteError if the logits are NaN or infinite.
        """
        ready: list[tuple[Stream, Tensor]] = []
        streams = self.streams
        long = next((stream for stream in streams if len(stream.unread) >= FEW), None)
        if long is not None and (twin := self._find_twin(long)) is not None:
            ready.append((long, self._copy_prompt(twin, long)))
        elif long is not None:
            piece, long.unread = long.unread[: self._piece], long.unread[self._piece :]
            logits_V = self._passes.read(Work(slot_of(long), piece))
            if not long.unread:
                long.prompt_logits_V = logits_V
                ready.append((long, logits_V))
        few = [stream for stream in streams if stream is not long and len(stream.unread) < FEW]
        if few:
            logits_BV = self._passes.extend([Work(slot_of(stream), stream.unread) for stream in few])
            ready += zip(few, logits_BV, strict=True)
        return [self._advance(stream, logits_V[: self.tokenizer.vocab_size]) for stream, logits_V in ready]

    def _find_twin(self, stream: Stream) -> Stream | None:
        """Another stream that has read the same prompt in the same pieces, and still has it."""
        if stream.unread != stream.prompt_ids:
            return None
        return next(
            (s for s in self._streams if s.prompt_logits_V is not None and s.prompt_ids == stream.prompt_ids), None
        )

    def _copy_prompt(self, twin: Stream, stream: Stream) -> Tensor:
        """Fills the cache of `stream` from its twin's, instead of reading the prompt again; returns the logits after it."""
        assert twin.prompt_logits_V is not None
        length, here, there = len(stream.prompt_ids), slot_of(stream), slot_of(twin)
        for held in (self.cache.keys, self.cache.values):
            held[:, here, :, :length] = held[:, there, :, :length]
        self.cache.lengths[here] = length
        stream.unread = []
        stream.prompt_logits_V = twin.prompt_logits_V
        return twin.prompt_logits_V

    def _advance(self, stream: Stream, logits_V: Tensor) -> NewToken:
        if not logits_V.isfinite().all():
            position = len(stream.prompt_ids) + len(stream.token_ids)
            raise NonFiniteError(
                f"the model's logits are not finite after {position} tokens, so its weights are damaged; give "
                "--step with an earlier checkpoint"
            )
        token_id = stream.choose(logits_V)
        logprob, alternatives = _log_probabilities(logits_V, token_id, stream.settings.logprobs)
        text = stream.push(token_id)
        stream.unread = [token_id]
        # The new token still has to be read, at the position after those in the cache.
        if stream.finish_reason is None and self.cache.lengths[slot_of(stream)] + 1 >= self.cache.positions:
            text += self._meet_end(stream)
        if stream.finish_reason is not None:
            self.remove(stream)
        return NewToken(stream, token_id, text, logprob, alternatives)

    def _meet_end(self, stream: Stream) -> str:
        """The slot is full: the stream ends, or its last half is read again."""
        if stream.settings.beyond != "slide":
            stream.finish_reason = "context"
            return stream.flush()
        self.cache.lengths[slot_of(stream)] = 0
        stream.prompt_logits_V = None
        ids = [*stream.prompt_ids, *stream.token_ids]
        stream.unread = last_part(ids, max(1, self.cache.positions // 2), self.tokenizer.bos_id)
        return ""


def check_vocabulary(model: Llama, tokenizer: Tokenizer) -> None:
    """Raises TokenizerError if the tokenizer has more tokens than the model."""
    if tokenizer.vocab_size > model.config.vocab_rows:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model {model.config.vocab_rows}; give the "
            "tokenizer that the model was trained with"
        )


def slot_of(stream: Stream) -> int:
    assert stream.slot is not None, "a finished stream has no slot"
    return stream.slot


def _piece_length(model: Llama) -> int:
    """Tokens of a prompt that are read in one pass: a property of the model, so that no stream's pass depends on others."""
    length = int(_PIECE_FLOPS / (2 * num_parameters(model.config)))
    return max(FEW, 1 << max(length.bit_length() - 1, 0))


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the first elements of both are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _log_probabilities(
    logits_V: Tensor, token_id: int, num_alternatives: int | None
) -> tuple[float | None, list[tuple[int, float]]]:
    if num_alternatives is None:
        return None, []
    log_p_V = logits_V.log_softmax(-1)
    best = log_p_V.topk(min(num_alternatives, len(log_p_V)))
    return float(log_p_V[token_id]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

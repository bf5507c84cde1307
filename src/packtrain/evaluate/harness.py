"""Decides how lm-evaluation-harness sees a model of ours: its requests are scored by our own forward pass, and give what its own
Hugging Face backend gives for the exported model.

Needs lm-evaluation-harness, so only `tasks` imports this. The rules are that backend's (`lm_eval.models.huggingface.HFLM` of
0.4.13): BOS before a text if the model reads one there, BOS (or else EOS) before a text without context, and before each text
of a perplexity task; context cut from the left; generation without the stop string. One rule differs: a text that spells out a
control token, such as `</s>`, is text to us, as it was in training.
"""

from collections.abc import Callable
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from packtrain.errors import TokenizerError, UserError
from packtrain.evaluate.continuations import Continue, Prompt
from packtrain.evaluate.prefixes import Request, score_continuations
from packtrain.pretrained.open import OpenModel

_MOST_NEW_TOKENS = 256
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")
_Encoded = tuple[tuple[str, str] | None, list[int], list[int]]


class HarnessModel(TemplateLM):
    """An open model as a backend of the harness."""

    def __init__(self, opened: OpenModel, continue_prompts: Continue, on_progress: Callable[[int, int], None]) -> None:
        super().__init__()
        self._opened = opened
        self._continue = continue_prompts
        self._on_progress = on_progress
        self._encoded: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        tokenizer = self._opened.tokenizer
        found = tokenizer.bos_id if tokenizer.eos_id is None else tokenizer.eos_id
        if found is None:
            raise TokenizerError(
                "tasks need a tokenizer with a BOS or EOS token, and that of the model has neither; evaluate it on text"
            )
        return found

    @property
    def prefix_token_id(self) -> int:
        bos = self._opened.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        return self._opened.context_length

    @property
    def tokenizer_name(self) -> str:
        return self._opened.tokenizer.hash

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, after BOS if the model reads one there, unless `add_special_tokens` is false."""
        ids = self._encoded.get(string)
        if ids is None:
            ids = self._encoded[string] = self._opened.tokenizer.encode(string)
        bos = self._opened.tokenizer.bos_id
        if self._opened.add_bos and add_special_tokens is not False and bos is not None:
            return [bos, *ids]
        return list(ids)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:  # noqa: ARG002
        """As the harness has it, but all texts are encoded at once, each a single time."""
        texts: dict[str, None] = {}
        for context, continuation in (request.args for request in requests):
            # What `_encode_pair` will ask for.
            bare = context.rstrip()
            texts |= dict.fromkeys((context + continuation, bare) if context else (continuation,))
        self._encoded = dict(zip(texts, self._opened.tokenizer.encode_batch(list(texts)), strict=True))
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._encoded = {}

    def _loglikelihood_tokens(self, requests: list[_Encoded], **_: Any) -> list[tuple[float, bool]]:
        scored = score_continuations(
            self._opened.model,
            [self._cut(context, continuation) for _, context, continuation in requests],
            on_progress=self._on_progress,
        )
        return [(score.log_probability, score.is_greedy) for score in scored]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:  # noqa: ARG002
        """The log-probability of whole texts, in windows that share one token."""
        windows: list[_Encoded] = []
        owners: list[int] = []
        for number, (text,) in enumerate(request.args for request in requests):
            cut = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
            pairs = [make_disjoint_window(pair) for pair in cut]
            windows += [(None, *pair) for pair in pairs]
            owners += [number] * len(pairs)
        totals = [0.0] * len(requests)
        for number, (log_probability, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += log_probability
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        """Continuations, each up to the first of its stop strings."""
        tokenizer = self._opened.tokenizer
        end = tokenizer.decode([self.eot_token_id], skip_special=False)
        prompts, stops = [], []
        for context, given in (request.args for request in requests):
            settings = normalize_gen_kwargs(given, _MOST_NEW_TOKENS)
            stop = handle_stop_sequences(settings.pop("until", None), eos=end)
            stops.append(stop)
            prompts.append(self._prompt(context, settings, stop))
        texts = [tokenizer.decode(ids) for ids in self._continue(prompts)]
        return [
            postprocess_generated_text(generation=text, stop=stop, think_end_token=None)
            for text, stop in zip(texts, stops, strict=True)
        ]

    def _prompt(self, context: str, settings: dict[str, Any], stop: list[str]) -> Prompt:
        count = settings.pop("max_gen_toks")
        room = self.max_length - count
        if room <= 0:
            raise UserError(
                f"the task generates {count} tokens, and the model's context has {self.max_length}, which leaves no room for "
                "the question; leave the task out, or set max_gen_toks in a task file of your own"
            )
        sampling = {key: settings[key] for key in _SAMPLING if settings.get(key) is not None}
        if not settings.get("do_sample"):
            sampling["temperature"] = 0.0
        ids = self.tok_encode(context)[-room:] or [self.prefix_token_id]
        return Prompt(ids, count, tuple(text for text in stop if text), sampling)

    def _cut(self, context: list[int], continuation: list[int]) -> Request:
        """Inputs and targets, the context cut from the left to what the model is meant for."""
        most = self.max_length
        if len(continuation) > most:
            raise UserError(
                f"an answer of the task has {len(continuation):,} tokens, more than the model's context of {most:,}; leave "
                "the task out"
            )
        return Request((context + continuation)[-(most + 1) :][:-1], continuation)

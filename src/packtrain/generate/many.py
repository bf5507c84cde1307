"""Decides how a list of prompts is continued: as many at once as the engine has slots, in the order in which they came."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from packtrain.config.model import ModelConfig
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.generate.batch import Engine
from packtrain.generate.cache import cache_bytes
from packtrain.generate.prompt import fit_prompt
from packtrain.generate.settings import GenerateSettings
from packtrain.generate.stream import FinishReason, NewToken, Stream
from packtrain.model.llama import Llama

MOST_AT_ONCE = 16
_MOST_BYTES = 2**30


@dataclass
class Answer:
    """One continuation of one prompt."""

    prompt_ids: list[int]
    """As read: the last part of a prompt that was too long."""
    seed: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    logprobs: list[float] = field(default_factory=list)
    """Of each token, and of its alternatives in `alternatives`; empty unless asked for."""
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)

    def add(self, token: NewToken) -> None:
        """One token more."""
        self.text += token.text
        self.token_ids.append(token.token_id)
        self.finish_reason = token.stream.finish_reason
        if token.logprob is not None:
            self.logprobs.append(token.logprob)
            self.alternatives.append(token.alternatives)


def continue_prompts(
    model: Llama,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    settings: GenerateSettings,
    *,
    context_length: int,
    on_answer: Callable[[int, int, Answer], None] | None = None,
) -> list[list[Answer]]:
    """`settings.n` answers to each prompt of ids. The i-th answer has the seed plus i; without a seed, each has its own.

    `on_answer` takes the number of the prompt and of its answer, and the answer, as soon as it is finished. Raises what
    `Engine.add` and `Engine.step` raise; of prompts that do not fit, before the first token.
    """
    read = [fit_prompt(prompt, settings, context_length, tokenizer.bos_id) for prompt in prompts]
    places = [(number, i) for number in range(len(read)) for i in range(settings.n)]
    positions = min(context_length, max(map(len, read), default=0) + settings.max_tokens)
    slots = num_at_once(model.config, len(places), positions)
    # Nobody waits for a single token, so prompts are read at once, as they are alone.
    engine = Engine(model, tokenizer, slots=slots, context_length=context_length, positions=positions, interleave=False)
    answers: dict[tuple[int, int], Answer] = {}
    running: dict[Stream, tuple[int, int]] = {}
    waiting = iter(places)
    while True:
        while engine.num_free and (place := next(waiting, None)) is not None:
            stream = engine.add(read[place[0]], _settings_of(settings, place[1]))
            running[stream] = place
            answers[place] = Answer(stream.prompt_ids, stream.seed)
        if not running:
            return [[answers[number, i] for i in range(settings.n)] for number in range(len(read))]
        for token in engine.step():
            place = running[token.stream]
            answers[place].add(token)
            if token.stream.finish_reason is not None:
                del running[token.stream]
                if on_answer is not None:
                    on_answer(*place, answers[place])


def num_at_once(config: ModelConfig, wanted: int, positions: int) -> int:
    """How many sequences are continued at once: as many as wanted, up to 16, if their cache stays below 1 GiB."""
    fitting = _MOST_BYTES // cache_bytes(config, 1, positions)
    return max(1, min(wanted, MOST_AT_ONCE, fitting))


def _settings_of(settings: GenerateSettings, number: int) -> GenerateSettings:
    seed = None if settings.seed is None else (settings.seed + number) % 2**63
    return replace(settings, seed=seed)

"""Decides how one prompt is continued: piece by piece, while somebody iterates over it."""

from collections.abc import Iterator

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.generate.batch import Engine, check_vocabulary
from packtrain.generate.prompt import encode_prompt, fit_prompt
from packtrain.generate.settings import GenerateSettings
from packtrain.generate.stream import FinishReason
from packtrain.model.llama import Llama


class Generation:
    """A continuation that is generated while you iterate over it: yields pieces of text, which joined are the whole.

    `prompt_ids` (as read) and `seed` are known from the start, `token_ids` grows, and `finish_reason` is set at the end:
    "eos" (the model ended the text), "stop" (a stop string), "length" (max_tokens) or "context" (no position is left).
    """

    def __init__(self, engine: Engine, prompt_ids: list[int], settings: GenerateSettings) -> None:
        self._engine = engine
        self._stream = engine.add(prompt_ids, settings)
        self.prompt_ids = self._stream.prompt_ids
        self.seed = self._stream.seed
        self.token_ids = self._stream.token_ids
        self._pieces = self._run()

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._stream.finish_reason

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def _run(self) -> Iterator[str]:
        while self.finish_reason is None:
            for token in self._engine.step():
                if token.text:
                    yield token.text


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
    check_vocabulary(model, tokenizer)
    context_length = context_length or model.config.max_position_embeddings
    prompt_ids = encode_prompt(tokenizer, prompt, add_bos)
    if context_length is None:
        context_length = len(prompt_ids) + settings.max_tokens
    read = fit_prompt(prompt_ids, settings, context_length, tokenizer.bos_id)
    positions = min(context_length, len(read) + settings.max_tokens)
    engine = Engine(model, tokenizer, context_length=context_length, positions=positions)
    return Generation(engine, read, settings)

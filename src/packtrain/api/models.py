"""Decides how a trained model is used in Python: opened, and asked for text or logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from packtrain.api.target import is_dataset, which_checkpoint
from packtrain.errors import ConfigError, RunError, UserError

if TYPE_CHECKING:
    import torch

    from packtrain.api.narrowing import Narrowing
    from packtrain.data.tokens.tokenizer import Tokenizer
    from packtrain.generate.decode import Generation
    from packtrain.generate.many import Answer
    from packtrain.generate.settings import GenerateSettings
    from packtrain.model.llama import Llama
    from packtrain.pretrained.conditions import Conditions
    from packtrain.runs.checkpoint import OpenRun


class GenerateOptions(TypedDict, total=False):
    """How a prompt is continued; `generate.settings.GenerateSettings` has the meanings and defaults."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: Sequence[str]
    typical_p: float
    frequency_penalty: float
    presence_penalty: float
    no_repeat_ngram: int
    logit_bias: Mapping[int, float]
    min_tokens: int
    stop_token_ids: Sequence[int]
    n: int
    beyond: Literal["error", "truncate", "slide"]
    logprobs: int | None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode, with the tokenizer it was trained with. Made by `load`."""

    folder: Path
    step: int | None
    """The step of the checkpoint; None for a model from elsewhere."""
    model: Llama
    """A torch module, float32: `model(tokens_BT)` gives logits [B, T, V]."""
    conditions: Conditions
    run: OpenRun | None = None
    """None for a model from elsewhere."""

    @property
    def average(self) -> Literal["ema", "tail"] | None:
        """Of what kind the weights are an average over steps; None: they are those of `step`."""
        return None if self.run is None else self.run.average

    @property
    def tokenizer(self) -> Tokenizer:
        return self.conditions.tokenizer

    @property
    def context_length(self) -> int:
        """Tokens that the model is meant for, prompt and continuation together."""
        return self.conditions.context_length

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as the model reads it: after BOS, if documents began with it in training."""
        from packtrain.generate.prompt import encode_prompt

        return encode_prompt(self.tokenizer, text, self.conditions.add_bos)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without control tokens."""
        return self.tokenizer.decode(list(ids))

    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> str:
        """Continues `prompt`, and returns the continuation alone.

        Options: max_tokens=200, temperature=0.8 (0 always takes the likeliest token), top_k=0, top_p=0.95, min_p=0.0,
        repetition_penalty=1.0, seed=None (the same seed gives the same text), stop=() (strings that end the text), and the
        others of `generate.settings.GenerateSettings`. Raises ConfigError for an option that does not fit, and UserError for
        a prompt that is longer than the context.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: Unpack[GenerateOptions]) -> Generation:
        """As `generate`, but iterate over the result for pieces of text as they come.

        Afterwards it has `token_ids`, `seed`, and `finish_reason`: "eos", "stop", "length" or "context".
        """
        from packtrain.generate.decode import stream

        settings = read_settings(options)
        if settings.n != 1:
            raise ConfigError(f"n={settings.n} asks for several texts; call answer([prompt], n={settings.n})")
        return stream(
            self.model,
            self.tokenizer,
            prompt,
            settings,
            add_bos=self.conditions.add_bos,
            context_length=self.context_length,
        )

    def answer(
        self,
        prompts: Sequence[str],
        *,
        on_answer: Callable[[int, int, Answer], None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[list[Answer]]:
        """Continues several prompts at once: for each of them, `n` answers with `text`, `token_ids` and more.

        `on_answer(prompt_number, answer_number, answer)` is called as soon as one is finished. Options as in `generate`.
        """
        from packtrain.generate.many import continue_prompts

        return continue_prompts(
            self.model,
            self.tokenizer,
            [self.encode(prompt) for prompt in prompts],
            read_settings(options),
            context_length=self.context_length,
            on_answer=on_answer,
        )

    def narrow(self, weights: str) -> Narrowing | None:
        """Holds the weights as "int8" or "bfloat16" from now on, on the CPU; returns what that saves and costs.

        The cost is measured on validation text of the run, or of the run that an export is from. Raises ConfigError for another
        name, DeviceError on another device.
        """
        from packtrain.api.narrowing import narrow
        from packtrain.pretrained.open import OpenModel

        name, reads = self.folder.name, (self.tokenizer, self.conditions.add_bos, self.context_length)
        return narrow(OpenModel(name, self.folder, self.model, *reads, self.step, self.run), weights)

    def logits(self, text: str | Sequence[int] | Sequence[Sequence[int]] | torch.Tensor) -> torch.Tensor:
        """Logits, float32 on the CPU: [T, V] for a text or a list of T ids, [B, T, V] for B lists (or a tensor) of ids.

        Row t has the scores of the token after the first t + 1, so `softmax(-1)` of the last row is the distribution of the
        next token. Of a text, T counts the ids of `encode(text)`. V is model.vocab_size, which may be a little larger than
        the tokenizer's. Raises UserError for ids that are outside the vocabulary, of unequal length, or too many.
        """
        import torch

        given = self.encode(text) if isinstance(text, str) else text
        try:
            tokens = torch.as_tensor(given)
        except (ValueError, TypeError, RuntimeError):
            raise UserError("the ids are not a list of numbers, or lists of equal length; pad or cut them") from None
        if tokens.dim() not in (1, 2) or tokens.numel() == 0 or tokens.is_floating_point() or tokens.is_complex():
            raise UserError("logits needs a text, a list of ids, or a batch of them as [B, T]; give at least one id")
        size = self.model.config.vocab_rows
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise UserError(f"an id is outside the model's vocabulary of {size}; give ids from 0 to {size - 1}")
        if tokens.shape[-1] > self.context_length:
            raise UserError(
                f"{tokens.shape[-1]} tokens are more than the model's context of {self.context_length}; give fewer"
            )
        device = self.model.lm_head.weight.device
        with torch.no_grad():
            logits_BTV = self.model(tokens.long().reshape(-1, tokens.shape[-1]).to(device)).float().cpu()
        return logits_BTV.reshape(*tokens.shape, size)

    def __repr__(self) -> str:
        from packtrain.generate.weights import count_weights

        count = count_weights(self.model)
        where = "" if self.step is None else f", step {self.step}"
        return f"LoadedModel({str(self.folder)!r}{where}, {count:,} parameters)"


def read_settings(options: GenerateOptions) -> GenerateSettings:
    """Settings of generation by name. Raises ConfigError for an unknown name or a value out of range."""
    from packtrain.generate.settings import GenerateSettings

    known = [field.name for field in fields(GenerateSettings)]
    for name in options:
        if name not in known:
            raise ConfigError(f"there is no option '{name}'; write one of {', '.join(known)}")
    given: dict[str, Any] = dict(options)
    for name in ("stop", "stop_token_ids"):
        if name in given:
            one = isinstance(given[name], str | int)
            given[name] = (given[name],) if one else tuple(given[name])
    return GenerateSettings(**given)


def load(
    target: str | Path,
    *,
    step: int | None = None,
    best: bool = False,
    last: bool = False,
    average: bool | None = None,
    device: str = "auto",
) -> LoadedModel:
    """Opens the model of a run, or one from elsewhere, such as `export` writes: see `pretrained.open.open_model`.

    Of a run: its last checkpoint (with train.stop_after the best, unless `last`), that of `step`, or the `best` by validation
    loss, with the `average` of its weights if it has one; every file is compared with its hash. `device`: auto, cpu, cuda or
    mps. Raises RunError, CheckpointError, ModelError, TokenizerError or DeviceError.
    """
    from packtrain.pretrained.open import open_model
    from packtrain.train.device import open_device

    folder = Path(target)
    which = which_checkpoint(folder, step, best, last)
    if is_dataset(folder):
        raise RunError(f"{folder} is a dataset; give a run, or a folder that `packtrain export` wrote")
    opened = open_model(folder, step=step, which=which, device=str(open_device(device)), average=average)
    return LoadedModel(folder, opened.step, opened.model, opened.conditions, opened.run)

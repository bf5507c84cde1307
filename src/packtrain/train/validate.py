"""Decides how a run validates between steps: fixed rows over all ranks, samples on the main one, training state untouched."""

import json
import logging
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import ConfigError, PacktrainError
from packtrain.evaluate.held_out import HeldOutPart, choose_parts, combine
from packtrain.evaluate.loss import evaluate_rows
from packtrain.evaluate.prompts import choose_prompts
from packtrain.generate.decode import stream
from packtrain.generate.prompt import encode_prompt
from packtrain.generate.settings import GenerateSettings
from packtrain.model.llama import Llama
from packtrain.runs.layout import RunLayout
from packtrain.storage.atomic import write_atomically
from packtrain.train.memory import explain_out_of_memory
from packtrain.train.signals import StopRequest
from packtrain.train.step import Placement

_log = logging.getLogger("packtrain")


class EvaluationFailedError(Exception):
    """A validation that failed on some rank, with the reason; all ranks raise it together."""


def describe_failure(error: Exception) -> str:
    """What an evaluation failed of, in one line."""
    what = " ".join(str(error).split())
    if isinstance(error, PacktrainError | EvaluationFailedError):
        return what
    return f"{type(error).__name__}: {what[:300]}".rstrip(": ")


@dataclass(frozen=True)
class Validator:
    """The held-out rows of a run, and how they are evaluated."""

    config: RunConfig
    parts: list[HeldOutPart]
    tokenizer: Tokenizer
    adds_bos: bool
    placement: Placement
    prompts: tuple[str, ...]
    """What the samples continue."""

    def validate(self, model: nn.Module, stop: StopRequest) -> dict[str, float] | None:
        """The values of a metrics line, the same on every rank; None if any rank is asked to stop meanwhile.

        val_loss (nats per target), val_ppl and val_bpb (bits per byte); for a mixture also val_loss/NAME and val_bpb/NAME
        of each source. Raises EvaluationFailedError if it fails, unless the model is sharded: then the others wait for this
        rank in the middle of the model, and its own error ends the run.
        """
        placement, ranks = self.placement, self.placement.ranks
        failure: str | None = None
        nats: list[float | None]
        try:
            nats = self._measure(model, stop)
        # Of any kind: reading the text, computing, memory.
        except Exception as error:
            if placement.is_sharded:
                raise
            failure, nats = describe_failure(error), [None] * len(self.parts)
        sums = [part or 0.0 for part in nats]
        num_stopped, has_failed = float(None in nats), float(failure is not None)
        *totals, num_stopped, num_failed = ranks.sum(
            torch.tensor(
                [*sums, num_stopped, has_failed], dtype=torch.float64, device=_device_of_sums(placement.device)
            )
        ).tolist()
        if num_failed:
            raise EvaluationFailedError(next(reason for reason in ranks.gather(failure) if reason is not None))
        if num_stopped:
            return None
        return self._describe(totals)

    def _measure(self, model: nn.Module, stop: StopRequest) -> list[float | None]:
        """Nats of this rank's share of each part; None for one that was stopped."""
        placement, ranks = self.placement, self.placement.ranks
        with explain_out_of_memory(self.config, placement, "in validation, "), placement.precision.autocast():
            return [
                evaluate_rows(
                    model,
                    part.held_out,
                    micro_batch_size=placement.micro_batch_size,
                    must_pad=placement.is_compiled,
                    device=placement.device,
                    document_mask=self.config.data.document_mask,
                    rank=ranks.rank,
                    world_size=ranks.world_size,
                    should_stop=lambda: self._must_stop(stop),
                )
                for part in self.parts
            ]

    def _describe(self, totals: list[float]) -> dict[str, float]:
        """The values of a metrics line, from the nats of each part over all ranks."""
        results = [part.held_out.result(total) for part, total in zip(self.parts, totals, strict=True)]
        whole = combine([part.share for part in self.parts], results)
        record = {"val_loss": whole.loss, "val_ppl": whole.perplexity, "val_bpb": whole.bits_per_byte}
        if len(self.parts) > 1:
            for part, result in zip(self.parts, results, strict=True):
                record |= {f"val_loss/{part.name}": result.loss, f"val_bpb/{part.name}": result.bits_per_byte}
        return record

    def _must_stop(self, stop: StopRequest) -> bool:
        # If the model is sharded, every rank must take part in every forward pass.
        return self.placement.ranks.any(stop.is_set) if self.placement.is_sharded else stop.is_set

    def write_samples(self, model: Llama, layout: RunLayout, step: int) -> list[dict[str, str]]:
        """Continues each prompt, with the same seed at every step, into samples/. Returns prompts and texts."""
        settings = GenerateSettings(max_tokens=self.config.evaluate.sample_tokens, seed=self.config.train.seed)
        lines = []
        # A compiled model would be compiled again for each length of a text.
        with torch.compiler.set_stance("force_eager") if self.placement.is_compiled else nullcontext():
            for prompt in self.prompts:
                length = self.config.data.seq_len
                pieces = stream(model, self.tokenizer, prompt, settings, add_bos=self.adds_bos, context_length=length)
                lines.append({"prompt": prompt, "text": "".join(pieces)})
        layout.samples.mkdir(exist_ok=True)
        write_atomically(layout.sample(step), "".join(json.dumps(line) + "\n" for line in lines).encode())
        return lines


def _device_of_sums(device: torch.device) -> torch.device:
    """Where nats are added up in float64, which Apple's GPUs do not have."""
    return torch.device("cpu") if device.type == "mps" else device


def build_validator(config: RunConfig, datasets: RunDatasets, placement: Placement) -> Validator | None:
    """The validator of a run; None with evaluate.every=0, or, with a warning, if no dataset has a validation split.

    Raises ConfigError for a prompt that does not fit into the context.
    """
    if not config.evaluate.every:
        return None
    tokenizer = load_tokenizer(datasets.tokenizer_folder)
    adds_bos = datasets.tokenizer.adds_bos
    data = config.data
    parts = choose_parts(datasets, data.seq_len, data.packing, tokenizer, config.evaluate.tokens)
    if not parts:
        _log.warning(
            "%s has no validation split, so the run is not validated; write evaluate.every=0 to silence this",
            datasets.name,
        )
        return None
    prompts = config.evaluate.prompts
    if prompts is None:
        prompts = choose_prompts(datasets, tokenizer, data.seq_len)
    for prompt in prompts:
        if len(encode_prompt(tokenizer, prompt, adds_bos)) >= config.data.seq_len:
            raise ConfigError(
                f"a prompt of evaluate.prompts has data.seq_len={config.data.seq_len} tokens or more; shorten it"
            )
    return Validator(config, parts, tokenizer, adds_bos, placement, prompts)

"""Decides how a run validates in passing: fixed rows over all ranks, samples by the main one, training state untouched."""

import json
import logging
from dataclasses import dataclass

import torch
from torch import nn

from packtrain.config.run import RunConfig
from packtrain.data.atomic import write_atomically
from packtrain.data.pack import plan
from packtrain.data.shards import Dataset
from packtrain.data.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import ConfigError
from packtrain.evaluate.loss import HeldOut, LossResult, choose_held_out, evaluate_rows
from packtrain.generate.decode import complete, encode_prompt
from packtrain.generate.settings import GenerateSettings
from packtrain.model.llama import Llama
from packtrain.parallel.ranks import Ranks
from packtrain.runs.layout import RunLayout
from packtrain.train.signals import StopRequest
from packtrain.train.step import Precision

_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class Validator:
    """The held-out rows of a run and how they are evaluated."""

    config: RunConfig
    held_out: HeldOut
    tokenizer: Tokenizer
    adds_bos: bool
    micro_batch_size: int
    ranks: Ranks
    device: torch.device
    precision: Precision
    is_sharded: bool

    def validate(self, model: nn.Module, stop: StopRequest) -> LossResult | None:
        """The loss on the held-out rows, the same on every rank; None if any rank was asked to stop meanwhile."""
        with self.precision.autocast():
            nats = evaluate_rows(
                model,
                self.held_out,
                micro_batch_size=self.micro_batch_size,
                device=self.device,
                document_mask=self.config.data.document_mask,
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                should_stop=lambda: self._must_stop(stop),
            )
        total, num_stopped = self.ranks.sum(
            torch.tensor([nats or 0.0, float(nats is None)], dtype=torch.float64, device=self.device)
        ).tolist()
        return None if num_stopped else self.held_out.result(total)

    def _must_stop(self, stop: StopRequest) -> bool:
        # Where the model is cut over the ranks none may stay away from a forward pass of the others.
        return self.ranks.any(stop.is_set, self.device) if self.is_sharded else stop.is_set

    def write_samples(self, model: Llama, layout: RunLayout, step: int) -> None:
        """Continues each of evaluate.prompts, with the same seed at every step, into samples/."""
        settings = GenerateSettings(max_tokens=self.config.evaluate.sample_tokens, seed=self.config.train.seed)
        lines = [
            {"prompt": prompt, "text": self._continue(model, prompt, settings)}
            for prompt in self.config.evaluate.prompts
        ]
        layout.samples.mkdir(exist_ok=True)
        write_atomically(layout.sample(step), "".join(json.dumps(line) + "\n" for line in lines).encode())

    def _continue(self, model: Llama, prompt: str, settings: GenerateSettings) -> str:
        length = self.config.data.seq_len
        return complete(model, self.tokenizer, prompt, settings, add_bos=self.adds_bos, context_length=length)


def build_validator(
    config: RunConfig,
    dataset: Dataset,
    *,
    micro_batch_size: int,
    ranks: Ranks,
    device: torch.device,
    precision: Precision,
    is_sharded: bool = False,
) -> Validator | None:
    """The validator of a run; None where the configuration asks for none. Warns where the dataset holds nothing out."""
    if not config.evaluate.every:
        return None
    split = dataset.split("validation")
    if not split.num_tokens:
        _log.warning(
            "%s holds nothing out, so the run is not validated; write evaluate.every=0 to say so", dataset.folder
        )
        return None
    tokenizer = load_tokenizer(dataset.tokenizer_folder)
    adds_bos = dataset.manifest.tokenizer.adds_bos
    for prompt in config.evaluate.prompts:
        if len(encode_prompt(tokenizer, prompt, adds_bos)) >= config.data.seq_len:
            raise ConfigError(
                f"evaluate.prompts holds one of data.seq_len={config.data.seq_len} tokens or more; shorten it"
            )
    rows = plan(split, config.data.seq_len, config.data.packing)
    return Validator(
        config=config,
        held_out=choose_held_out(rows, tokenizer, adds_bos=adds_bos, tokens=config.evaluate.tokens),
        tokenizer=tokenizer,
        adds_bos=adds_bos,
        micro_batch_size=micro_batch_size,
        ranks=ranks,
        device=device,
        precision=precision,
        is_sharded=is_sharded,
    )

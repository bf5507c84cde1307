"""Hugging Face's LlamaForCausalLM with SDPA and torch's fused AdamW."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.contenders.autocast import autocast
from benchmarks.contenders.optimizer import fused_adamw


def build(shape: dict[str, Any], tokens: torch.Tensor, *, compiled: bool = False) -> Callable[[], float]:
    """A function that takes a training step on the same batch each time, in micro-batches of the shape's rows, and returns its loss.

    Uses the shape's `device`, autocast in its `precision`, and clipping at its `grad_clip` unless that is 0.
    """
    return prepare(shape, compiled=compiled)(tokens[:, :-1])


def prepare(shape: dict[str, Any], *, compiled: bool = False) -> Callable[[torch.Tensor], Callable[[], float]]:
    """The model of `build`: give it the inputs of a batch, and it returns the function that takes a step on them."""
    device = torch.device(shape["device"])
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    names += ("vocab_size", "rms_norm_eps", "tie_word_embeddings")
    sizes = {name: shape[name] for name in names}
    settings = {"max_position_embeddings": shape["seq_len"], "attn_implementation": "sdpa", "use_cache": False}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **settings)).to(device)
    optimizer = fused_adamw(model.parameters(), shape)
    forward = torch.compile(model) if compiled else model

    def on(inputs_BT: torch.Tensor) -> Callable[[], float]:
        # The model shifts the labels itself, so as many tokens go through it as through ours.
        micro_batches = [part.contiguous() for part in inputs_BT.split(shape["rows"])]
        if device.type == "cuda":
            micro_batches = [part.pin_memory() for part in micro_batches]

        def step() -> float:
            loss_sum = torch.zeros((), device=device)
            for micro_batch in micro_batches:
                inputs = micro_batch.to(device, non_blocking=True)
                with autocast(shape):
                    loss = forward(input_ids=inputs, labels=inputs).loss / len(micro_batches)
                loss.backward()
                loss_sum += loss.detach()
            if shape["grad_clip"]:
                torch.nn.utils.clip_grad_norm_(model.parameters(), shape["grad_clip"])
            optimizer.step()
            optimizer.zero_grad()
            return loss_sum.item()

        return step

    return on

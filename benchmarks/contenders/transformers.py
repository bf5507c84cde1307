"""Hugging Face's LlamaForCausalLM with SDPA and torch's fused AdamW."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.contenders.optimizer import fused_adamw


def build(shape: dict[str, Any], tokens: torch.Tensor, *, compiled: bool = False) -> Callable[[], float]:
    """A training step on the same batch each time; gives its loss."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    names += ("vocab_size", "rms_norm_eps", "tie_word_embeddings")
    sizes = {name: shape[name] for name in names}
    settings = {"max_position_embeddings": shape["seq_len"], "attn_implementation": "sdpa", "use_cache": False}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **settings))
    optimizer = fused_adamw(model.parameters(), shape)
    forward = torch.compile(model) if compiled else model
    # It shifts the labels itself: the same number of tokens goes through the model as in ours.
    inputs = tokens[:, :-1].contiguous()

    def step() -> float:
        loss = forward(input_ids=inputs, labels=inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step

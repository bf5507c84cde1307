"""LitGPT's model and its chunked cross-entropy, with torch's fused AdamW."""

from collections.abc import Callable
from typing import Any

import torch
from litgpt import GPT, Config
from litgpt.utils import chunked_cross_entropy

from benchmarks.contenders.autocast import autocast
from benchmarks.contenders.optimizer import fused_adamw


def build(shape: dict[str, Any], tokens: torch.Tensor) -> Callable[[], float]:
    """A function that takes a training step on the same batch each time and returns its loss."""
    model = GPT(
        Config(
            name="Llama-2",
            n_embd=shape["hidden_size"],
            n_layer=shape["num_hidden_layers"],
            n_head=shape["num_attention_heads"],
            n_query_groups=shape["num_key_value_heads"],
            intermediate_size=shape["intermediate_size"],
            vocab_size=shape["vocab_size"],
            padded_vocab_size=shape["vocab_size"],
            block_size=shape["seq_len"],
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=shape["rms_norm_eps"],
            mlp_class_name="LLaMAMLP",
        )
    )
    if shape["tie_word_embeddings"]:
        model.lm_head.weight = model.transformer.wte.weight
    model.apply(model._init_weights)
    optimizer = fused_adamw(model.parameters(), shape)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        with autocast(shape):
            loss = chunked_cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step

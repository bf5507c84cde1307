"""torchtitan's Llama 3 blocks in Llama 2's sizes, its loss, and torch's fused AdamW.

Its language models use FlexAttention or variable-length kernels, which have no backward pass on the CPU. So they use
torchtitan's own module for scaled dot-product attention here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torchtitan.components.loss import cross_entropy_loss
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.llama3 import Llama3Model, _build_llama3_layers

from benchmarks.contenders.autocast import autocast
from benchmarks.contenders.optimizer import fused_adamw

_NORMAL = {"weight": lambda weight: torch.nn.init.normal_(weight, std=0.02)}


def build(shape: dict[str, Any], tokens: torch.Tensor) -> Callable[[], float]:
    """A function that takes a training step on the same batch each time and returns its loss."""
    width, vocab_size = shape["hidden_size"], shape["vocab_size"]
    layers = _build_llama3_layers(
        n_layers=shape["num_hidden_layers"],
        dim=width,
        n_heads=shape["num_attention_heads"],
        n_kv_heads=shape["num_key_value_heads"],
        hidden_dim=shape["intermediate_size"],
        rope=ComplexRoPE.Config(
            dim=width // shape["num_attention_heads"], max_seq_len=shape["seq_len"], theta=10_000.0
        ),
        attn_backend="varlen",
    )
    for layer in layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    model = Llama3Model.Config(
        dim=width,
        vocab_size=vocab_size,
        enable_weight_tying=shape["tie_word_embeddings"],
        tok_embeddings=Embedding.Config(num_embeddings=vocab_size, embedding_dim=width, param_init=_NORMAL),
        norm=RMSNorm.Config(normalized_shape=width, param_init={"weight": torch.nn.init.ones_}),
        lm_head=Linear.Config(in_features=width, out_features=vocab_size, param_init=_NORMAL),
        layers=layers,
    ).build()
    model.init_states()
    optimizer = fused_adamw(model.parameters(), shape)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        with autocast(shape):
            loss = cross_entropy_loss(model(inputs), targets) / targets.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step

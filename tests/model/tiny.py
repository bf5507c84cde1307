"""Decides the tiny model of the tests: its shapes, its weights and its tokens."""

import torch

from packtrain.config.model import ModelConfig, RopeScaling
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.init import build
from packtrain.model.llama import Llama

# Weights large enough that every part moves the logits: at 0.02 attention would hardly matter.
TINY = ModelConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    vocab_size=211,
    initializer_range=0.1,
    max_position_embeddings=128,
)

VARIANTS = {
    "multi-head tied": {},
    "grouped queries": {"num_key_value_heads": 2},
    "one key-value head": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "separate output": {"tie_word_embeddings": False},
    "own head width": {"head_dim": 24, "num_key_value_heads": 2},
    "theta": {"rope_theta": 500000.0},
    "linear scaling": {"rope_scaling": RopeScaling(rope_type="linear", factor=4.0)},
    "llama3 scaling": {
        "rope_scaling": RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=32),
    },
    "qk norm": {"qk_norm": True, "num_key_value_heads": 2, "rms_norm_eps": 1e-6},
}


def tiny(**changes) -> ModelConfig:
    return ModelConfig.model_validate(TINY.model_dump() | changes)


def built(config: ModelConfig, seed: int = 0) -> Llama:
    """Our model with norm weights that are not all one, so that a missing norm weight would show."""
    model = build(config, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return model


def with_cpu_kernels(model: Llama) -> Llama:
    use_cpu_kernels(model)
    return model


def random_tokens(rows: int, length: int, vocab_size: int = TINY.vocab_size, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))

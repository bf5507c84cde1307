"""Hugging Face's model of a configuration, with the weights of ours."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from packtrain.config.model import ModelConfig, RopeScaling
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


def hugging_face(model: Llama) -> torch.nn.Module:
    config = model.config
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= config.rope_scaling.model_dump()
    shape = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": rope,
        "attn_implementation": "sdpa",
    }
    theirs = Qwen3ForCausalLM(Qwen3Config(**shape)) if config.qk_norm else LlamaForCausalLM(LlamaConfig(**shape))
    theirs.load_state_dict(model.state_dict(), strict=True)
    return theirs.eval()


def random_tokens(rows: int, length: int, vocab_size: int = TINY.vocab_size, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))

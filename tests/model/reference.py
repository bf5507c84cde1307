"""Decides how a model of ours becomes Hugging Face's, of the same configuration and weights."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from packtrain.model.llama import Llama


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

"""Decides how parameters and FLOPs are counted before a model is built; needs no torch.

Letters: N parameters, D hidden size, F intermediate size, L layers, H query heads, G key-value heads, K head dim, T tokens
of a row.
"""

from packtrain.config.model import ModelConfig


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part of the model; a tied output projection counts once, with the embedding."""
    D, F, L, K = config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.head_size
    H, G = config.num_attention_heads, config.kv_heads
    parts = {
        "embedding": config.vocab_rows * D,
        "attention": L * (2 * H + 2 * G) * K * D,
        "feed-forward": L * 3 * D * F,
        "norms": L * (2 * D + (2 * K if config.qk_norm else 0)) + D,
    }
    if not config.tie_word_embeddings:
        parts["output"] = config.vocab_rows * D
    return parts


def num_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model."""
    return sum(parameters_by_part(config).values())


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """FLOPs of the forward and backward pass for one token: 6·N + 12·L·H·K·T (PaLM, arXiv 2204.02311, appendix B).

    N counts the parameters that multiply activations; an embedding that is only looked up does not. Attention counts in
    full although a causal kernel skips half of it, as in published MFU figures.
    """
    lookups = 0 if config.tie_word_embeddings else config.vocab_rows * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_size * seq_len
    return float(6 * (num_parameters(config) - lookups) + attention)

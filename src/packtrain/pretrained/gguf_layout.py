"""Decides what our weights and tokenizers are called in a GGUF file; `export` writes by these tables and a reader reads by them."""

from typing import Any, NamedTuple

from packtrain.config.model import ModelConfig

ROPE_FACTORS = "rope_freqs.weight"
"""What llama.cpp divides each rotary frequency by: how Llama 3.1's scaling is stored."""
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The name in a GGUF file of a weight of ours."""
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_BLOCK[part]}.weight"


def interleaved_heads(name: str, config: ModelConfig) -> int | None:
    """The number of heads by which the rows of a weight are interleaved in a GGUF file; None if they are as ours.

    llama.cpp rotates neighbours in its architecture `llama`, and halves, as we do, in `qwen3`.
    """
    if config.qk_norm:
        return None
    if name.endswith(".q_proj.weight"):
        return config.num_attention_heads
    return config.kv_heads if name.endswith(".k_proj.weight") else None


class PreTokenizer(NamedTuple):
    """How a byte-level tokenizer cuts a text before its merges, as a tokenizer.json says it."""

    steps: tuple[dict[str, Any], ...]
    """What counts of each step of `pre_tokenizer`; the last one makes characters of bytes."""
    ignores_merges: bool
    """Whether a word that is a token is taken as it is."""


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (_split(_CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST), _BYTES)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer((_GPT2,), False),
    "llama-bpe": PreTokenizer(_LLAMA3, True),
    "dbrx": PreTokenizer(_LLAMA3, False),
    "qwen2": PreTokenizer((_split(_CONTRACTIONS + _WORDS + r"\p{N}" + _REST), _BYTES), False),
    "smollm": PreTokenizer(({"type": "Digits", "individual_digits": True}, _GPT2), False),
}
"""By llama.cpp's name of each in `tokenizer.ggml.pre`."""

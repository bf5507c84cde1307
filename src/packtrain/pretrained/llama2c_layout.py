"""Decides in which order llama2.c's files have the weights of a Llama, by our names."""

from packtrain.config.model import ModelConfig

MAGIC = 0x616B3432
"""Of versions 1 and 2; version 0 has none."""
HEADER_BYTES = 256
"""Of versions 1 and 2; version 0 has seven int32."""
_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_FEED_FORWARD = ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")
FREQUENCIES = "rotary frequencies"
"""Cosines, then sines, of every position: in version 0 alone, and ignored by run.c."""
EMBEDDING, NORM, OUTPUT = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def weight_order(config: ModelConfig, version: int) -> list[str]:
    """The names of all weights in the order of the file; FREQUENCIES stands where version 0 has these."""

    def of_each_layer(*parts: str) -> list[str]:
        return [f"model.layers.{layer}.{part}.weight" for part in parts for layer in range(config.num_hidden_layers)]

    output = [] if config.tie_word_embeddings else [OUTPUT]
    if version == 0:
        first = of_each_layer("input_layernorm", *_PROJECTIONS, "post_attention_layernorm", *_FEED_FORWARD)
        return [EMBEDDING, *first, NORM, FREQUENCIES, *output]
    norms = of_each_layer("input_layernorm", "post_attention_layernorm")
    return [*norms, NORM, EMBEDDING, *of_each_layer(*_PROJECTIONS, *_FEED_FORWARD), *output]


def interleaved_heads_of(name: str, config: ModelConfig) -> int | None:
    """The number of heads by which the rows of a weight are interleaved in the file; None if they are as ours."""
    if name.endswith(".q_proj.weight"):
        return config.num_attention_heads
    return config.kv_heads if name.endswith(".k_proj.weight") else None

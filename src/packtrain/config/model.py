"""Decides the shape of the model; the names are those of Hugging Face's `LlamaConfig`."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from packtrain.config.base import Section

ASSUMED_VOCABULARY = 32_000
"""Rows of the embedding while neither a setting nor a dataset says how many: those of Llama-2."""


class RopeScaling(Section):
    """How the rotary embedding is stretched to contexts longer than `original_max_position_embeddings`."""

    rope_type: Literal["linear", "llama3"]
    """`linear` divides every position by `factor`; `llama3` stretches the low frequencies only (Llama 3.1)."""
    factor: float = Field(gt=1.0)
    """How many times longer the context becomes."""
    low_freq_factor: PositiveFloat = 1.0
    """llama3: wavelengths above the original length divided by this are stretched fully."""
    high_freq_factor: PositiveFloat = 4.0
    """llama3: wavelengths below the original length divided by this are not stretched."""
    original_max_position_embeddings: PositiveInt = 8192
    """llama3: the context length before stretching, in tokens."""


class ModelConfig(Section):
    """The shape of the Llama. Nothing here depends on the device."""

    hidden_size: PositiveInt = 1024
    """Width of the residual stream (D)."""
    num_hidden_layers: PositiveInt = 32
    """Number of blocks."""
    num_attention_heads: PositiveInt = 32
    """Query heads (H)."""
    num_key_value_heads: PositiveInt | None = None
    """Key and value heads (G); fewer than query heads means grouped-query attention. Unset: as many as query heads."""
    head_dim: PositiveInt | None = None
    """Width of one head (K). Unset: hidden_size / num_attention_heads."""
    intermediate_size: PositiveInt = 2752
    """Inner width of the feed-forward layer (F)."""
    vocab_size: PositiveInt | None = None
    """Rows of the embedding (V): the size of the dataset's tokenizer, or a little more, up to the next multiple of 128. Unset:
    the size of the dataset's tokenizer."""
    max_position_embeddings: PositiveInt | None = None
    """Longest sequence for the model, in tokens. Unset: data.seq_len."""
    tie_word_embeddings: bool = True
    """Use the embedding as the output projection."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies (RoFormer, arXiv 2104.09864, eq. 15)."""
    rope_scaling: RopeScaling | None = None
    """Stretching of the rotary embedding. Unset: none."""
    rms_norm_eps: PositiveFloat = 1e-5
    """Added to the mean square in RMSNorm (arXiv 1910.07467)."""
    qk_norm: bool = False
    """Apply RMSNorm to the queries and keys of each head before the rotation; exports as Qwen3."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""
    embedding_range: PositiveFloat | None = None
    """Standard deviation of the initial embedding, which is the output projection too if they are tied. Unset:
    model.initializer_range."""
    init: Literal["gpt2", "llama2c", "depth", "zero_out"] = "gpt2"
    """`gpt2` scales o_proj and down_proj by 1/sqrt(2·layers); `llama2c` scales o_proj and up_proj, as llama2.c does; `depth`
    scales o_proj and down_proj of block n, from 1, by 1/sqrt(2·n); with `zero_out` they are zero, and each block begins as the
    identity."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model.hidden_size={self.hidden_size} is not a multiple of model.num_attention_heads="
                f"{self.num_attention_heads}; change one of them, or set model.head_dim"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"model.num_attention_heads={self.num_attention_heads} is not a multiple of model.num_key_value_heads="
                f"{self.kv_heads}; write a divisor of {self.num_attention_heads} for model.num_key_value_heads"
            )
        if self.head_size % 2:
            raise ValueError(
                f"the width of a head is {self.head_size}, and rotary embeddings need an even one; write an even model.head_dim"
            )
        return self

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding, assumed while no dataset is known (V)."""
        return self.vocab_size or ASSUMED_VOCABULARY

    @property
    def kv_heads(self) -> int:
        """Key and value heads, with the default filled in (G)."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Width of one head, with the default filled in (K)."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

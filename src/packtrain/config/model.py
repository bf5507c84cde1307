"""Decides what can be set about the model; the names are those of Hugging Face's `LlamaConfig`."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from packtrain.config.base import Section


class RopeScaling(Section):
    """How rotary frequencies are stretched for contexts longer than `original_max_position_embeddings`."""

    rope_type: Literal["linear", "llama3"]
    """`linear` divides every position by `factor`; `llama3` stretches the low frequencies only (Llama 3.1)."""
    factor: float = Field(gt=1.0)
    """How many times longer the context becomes."""
    low_freq_factor: PositiveFloat = 1.0
    """llama3: wavelengths above original length / this are stretched in full."""
    high_freq_factor: PositiveFloat = 4.0
    """llama3: wavelengths below original length / this are left alone."""
    original_max_position_embeddings: PositiveInt = 8192
    """llama3: the context length before stretching, in tokens."""


class ModelConfig(Section):
    """The shape of the Llama. Counts are of parameters, heads or tokens; nothing here depends on the device."""

    hidden_size: PositiveInt = 1024
    """Width of the residual stream (D)."""
    num_hidden_layers: PositiveInt = 32
    """Number of blocks."""
    num_attention_heads: PositiveInt = 32
    """Query heads (H)."""
    num_key_value_heads: PositiveInt | None = None
    """Key and value heads (G); fewer than the query heads is grouped-query attention. Unset: as many as query heads."""
    head_dim: PositiveInt | None = None
    """Width of one head (K). Unset: hidden_size / num_attention_heads."""
    intermediate_size: PositiveInt = 2752
    """Inner width of the feed-forward part (F)."""
    vocab_size: PositiveInt = 32000
    """Rows of the embedding (V); must hold the dataset's tokenizer."""
    max_position_embeddings: PositiveInt | None = None
    """Longest sequence the model is meant for, in tokens. Unset: data.seq_len."""
    tie_word_embeddings: bool = True
    """Whether the output projection is the embedding itself."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies (RoFormer, arXiv 2104.09864, eq. 15)."""
    rope_scaling: RopeScaling | None = None
    """Stretching of the rotary frequencies; unset for none."""
    rms_norm_eps: PositiveFloat = 1e-5
    """Added to the mean square in RMSNorm (arXiv 1910.07467)."""
    qk_norm: bool = False
    """RMSNorm on queries and keys of each head before the rotation; exports as Qwen3."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""
    init: Literal["gpt2", "llama2c"] = "gpt2"
    """`gpt2`: o_proj and down_proj are scaled by 1/sqrt(2·layers). `llama2c`: o_proj and up_proj are, as llama2.c does."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model.hidden_size={self.hidden_size} does not divide by model.num_attention_heads="
                f"{self.num_attention_heads}; choose a divisor or set model.head_dim"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"model.num_attention_heads={self.num_attention_heads} does not divide by model.num_key_value_heads="
                f"{self.kv_heads}; choose a divisor of it"
            )
        if self.head_size % 2:
            raise ValueError(
                f"the head width {self.head_size} is odd and rotary embeddings turn pairs; choose an even model.head_dim"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """Key-value heads after the default is filled in (G)."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Width of one head after the default is filled in (K)."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

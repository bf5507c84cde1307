"""Decides how the parts make a Llama. Parameter names are Hugging Face's, so that the state dict is the export.

Letters: B batch, T tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from packtrain.config.model import ModelConfig
from packtrain.model.attention import Cache, Mask, SelfAttention, cached_mask, document_mask
from packtrain.model.dropout import NO_DROPOUT, Branches, Dropout, drop
from packtrain.model.layers import RMSNorm, Rotary, Rotation, SwiGLU
from packtrain.model.loss import chunk_loss, linear_cross_entropy


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    is_recomputed = False
    """Activation checkpointing: keep only the input, and compute the block again in the backward pass."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer_index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        mask: Mask = None,
        cache: Cache | None = None,
        dropout: Branches = NO_DROPOUT,
    ) -> Tensor:
        if self.is_recomputed and torch.is_grad_enabled():
            # A block draws no random numbers: dropout is a function of its arguments.
            return checkpoint(
                self.compute, x_BTD, rotation, mask, None, dropout, use_reentrant=False, preserve_rng_state=False
            )
        return self.compute(x_BTD, rotation, mask, cache, dropout)

    def compute(
        self, x_BTD: Tensor, rotation: Rotation, mask: Mask, cache: Cache | None = None, dropout: Branches = NO_DROPOUT
    ) -> Tensor:
        """The block's equation, without activation checkpointing."""
        x_BTD = x_BTD + drop(self.self_attn(self.input_layernorm(x_BTD), rotation, mask, cache), dropout[0])
        return x_BTD + drop(self.mlp(self.post_attention_layernorm(x_BTD)), dropout[1])


class Decoder(nn.Module):
    """Embedding, blocks and final norm: everything below the output projection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_rows, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Every move and cast comes through here. Angles that moved in the first pass would compile it twice.
        moved = super()._apply(fn, recurse)
        self.rotary.move(self.embed_tokens.weight.device)
        return moved

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: Cache | None = None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Blocks and final norm over embedded tokens; the other arguments are those of `Llama.forward`."""
        assert cache is None or segments_BT is None, "a cached sequence is one document"
        T = x_BTD.shape[1]
        num_cached = 0 if cache is None else cache.length
        if positions_BT is None:
            positions_BT = torch.arange(num_cached, num_cached + T, device=x_BTD.device)
        mask = cached_mask(T, num_cached, x_BTD.device) if segments_BT is None else document_mask(segments_BT)
        rotation = self.rotary(positions_BT)
        if dropout is None:
            for block in self.layers:
                x_BTD = block(x_BTD, rotation, mask, cache)
            return self.norm(x_BTD)
        of_embedding, *of_blocks = dropout.spread(1 + 2 * len(self.layers))
        x_BTD = of_embedding(x_BTD)
        for block, *branches in zip(self.layers, of_blocks[::2], of_blocks[1::2], strict=True):
            x_BTD = block(x_BTD, rotation, mask, cache, tuple(branches))
        return self.norm(x_BTD)


class Llama(nn.Module):
    """Llama (arXiv 2307.09288) with optional QK-norm; computes what Hugging Face's `LlamaForCausalLM` does.

    The weights are not initialised: use `init.build`, or load a state dict.
    """

    chunk_loss = staticmethod(chunk_loss)

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_rows, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the output projection the embedding if the configuration says so. A change of device undoes it."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def embed(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The embedded tokens [B, T, D], and the weights of the output projection [V, D]."""
        return self.model.embed_tokens(tokens_BT), self.lm_head.weight

    def recompute(self, num_blocks: int) -> None:
        """Use activation checkpointing in the first `num_blocks` blocks, and in no other.

        The first, because the activations of all the others are gone when the backward pass reaches them.
        """
        for index, block in enumerate(self.model.layers):
            block.is_recomputed = index < num_blocks  # type: ignore[assignment]

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        *,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: Cache | None = None,
        z_loss: float = 0.0,
        dropout: float = 0.0,
        keys_B2: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] in float32; with targets the sum of their cross-entropy in nats, a scalar in float32.

        Targets of IGNORE_INDEX (-100) do not count; `z_loss` is that of `linear_cross_entropy`. Attention stays within
        positions that have the same number in segments_BT. positions_BT counts from the length of the cache, or from 0,
        unless given. A cache holds the positions before tokens_BT; it cannot be combined with segments. `dropout` is the
        rate of `Dropout` on the embedded tokens and on what each block adds, under the keys of the rows.
        """
        x_BTD, weight_VD = self.embed(tokens_BT)
        x_BTD = self.model(
            x_BTD, segments_BT, positions_BT, cache, None if keys_B2 is None else Dropout(dropout, keys_B2)
        )
        if targets_BT is not None:
            return self.loss(x_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), z_loss)
        logits_BTV = self.lm_head(x_BTD)
        return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))

    def loss(self, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float) -> Tensor:
        """What `forward` returns with targets."""
        return linear_cross_entropy(hidden_ND, weight_VD, targets_N, z_loss, self.chunk_loss)

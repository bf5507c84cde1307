"""Decides how the parts make a Llama; parameter names are Hugging Face's, so that the state dict is the export.

Letters: B batch, T tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from packtrain.config.model import ModelConfig
from packtrain.model import fused
from packtrain.model.attention import Cache, Mask, SelfAttention, cached_mask, document_mask
from packtrain.model.layers import RMSNorm, Rotary, Rotation, SwiGLU
from packtrain.model.loss import linear_cross_entropy


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)).

    Each part gets x and its norm, because norm and first projections in one need not keep norm(x).
    """

    is_recomputed = False
    """Whether the backward pass computes the block again from its input, which is all that is kept of it."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer_index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x_BTD: Tensor, rotation: Rotation, mask: Mask = None, cache: Cache | None = None) -> Tensor:
        if self.is_recomputed and torch.is_grad_enabled():
            # Nothing in a block is drawn at random.
            return checkpoint(self._compute, x_BTD, rotation, mask, use_reentrant=False, preserve_rng_state=False)
        return self._compute(x_BTD, rotation, mask, cache)

    def _compute(self, x_BTD: Tensor, rotation: Rotation, mask: Mask, cache: Cache | None = None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(x_BTD, self.input_layernorm, rotation, mask, cache)
        return x_BTD + self.mlp(x_BTD, self.post_attention_layernorm)


class Decoder(nn.Module):
    """Embedding, blocks and final norm: everything below the output projection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Every move and cast of a module comes through here. Before the first pass, so that none is compiled twice.
        moved = super()._apply(fn, recurse)
        self.rotary.move(self.embed_tokens.weight.device)
        return moved

    def forward(
        self,
        tokens_BT: Tensor,
        positions: Tensor,
        mask: Mask = None,
        cache: Cache | None = None,
        handed_on: list[Tensor] | None = None,
    ) -> Tensor:
        if handed_on is None:
            x_BTD = self.embed_tokens(tokens_BT)
        else:
            x_BTD = fused.TiedEmbedding.apply(tokens_BT, self.embed_tokens.weight, handed_on)
        rotation = self.rotary(positions)
        for block in self.layers:
            x_BTD = block(x_BTD, rotation, mask, cache)
        return self.norm(x_BTD)


class Llama(nn.Module):
    """Llama (arXiv 2307.09288) with optional QK-norm; computes what Hugging Face's `LlamaForCausalLM` does.

    The weights are not initialised: use `init.build`, or load a state dict.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the output projection the embedding, where the configuration says so; a change of device undoes it."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def recompute(self, num_blocks: int) -> None:
        """Makes the backward pass compute the first `num_blocks` blocks again instead of keeping their activations.

        The first: when their turn comes, the activations of all others are gone.
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
    ) -> Tensor:
        """Logits [B, T, V] in float32; with targets the sum of their cross-entropy in nats, a scalar in float32.

        Targets of IGNORE_INDEX (-100) count nothing. `z_loss` as in `linear_cross_entropy`. The other arguments are those
        of `hidden`.
        """
        weight_VD = self.lm_head.weight
        # From the loss to the embedding, in the backward pass: see fused.TiedEmbedding.
        hand_on: list[Tensor] | None = None
        if targets_BT is not None and self.config.tie_word_embeddings and fused.applies(weight_VD):
            hand_on = []
        hidden_BTD = self._hidden(tokens_BT, segments_BT, positions_BT, cache, hand_on)
        if targets_BT is not None:
            return linear_cross_entropy(hidden_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), hand_on, z_loss)
        logits_BTV = self.lm_head(hidden_BTD)
        return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """What the output projection sees, [B, T, D].

        segments_BT keeps attention within positions of equal number. positions_BT defaults to counting from the
        cache's length, or from 0. A cache holds the positions before tokens_BT and goes without segments.
        """
        return self._hidden(tokens_BT, segments_BT, positions_BT, cache)

    def _hidden(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None,
        positions_BT: Tensor | None,
        cache: Cache | None,
        handed_on: list[Tensor] | None = None,
    ) -> Tensor:
        assert cache is None or segments_BT is None, "a cached sequence is one document"
        held = cache.length if cache is not None else 0
        num_new = tokens_BT.shape[1]
        if positions_BT is None:
            positions_BT = torch.arange(held, held + num_new, device=tokens_BT.device)
        if segments_BT is not None:
            mask = document_mask(segments_BT)
        else:
            mask = cached_mask(num_new, held, tokens_BT.device)
        return self.model(tokens_BT, positions_BT, mask, cache, handed_on)

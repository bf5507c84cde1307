"""Decides how weights are held in fewer bits while a model generates: int8 with a scale for each row, or bfloat16.

Only the weights are rounded; every product is taken in float32. Norms stay as they are.

Letters: O outputs, I inputs.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from packtrain.model.llama import Llama

Weights = Literal["float32", "bfloat16", "int8"]
WEIGHTS: tuple[Weights, ...] = ("float32", "bfloat16", "int8")


def narrow_weights(model: Llama, weights: Weights) -> None:
    """Hold the embedding and all matrices of a float32 model as `weights`, in place. It cannot be trained afterwards.

    int8: each row of a matrix is 127 steps of its largest absolute number (symmetric, no zero point).
    """
    if weights == "float32":
        return
    rows = NarrowRows(model.model.embed_tokens.weight, weights)
    model.model.embed_tokens = NarrowEmbedding(rows)  # type: ignore[assignment]
    model.lm_head = NarrowLinear(  # type: ignore[assignment]
        rows if model.config.tie_word_embeddings else NarrowRows(model.lm_head.weight, weights)
    )
    for module in list(model.model.layers.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, NarrowLinear(NarrowRows(child.weight, weights)))


def count_weights(model: Llama) -> int:
    """The numbers that a model has learned, however they are held; a tied output projection counts once."""
    narrow = (module.codes.numel() for module in model.modules() if isinstance(module, NarrowRows))
    return sum(parameter.numel() for parameter in model.parameters()) + sum(narrow)


class NarrowRows(nn.Module):
    """A matrix [O, I] as `codes` of fewer bits; int8 ones count in steps of `scales_O1`."""

    codes: Tensor
    scales_O1: Tensor | None

    def __init__(self, weight_OI: Tensor, weights: Weights) -> None:
        super().__init__()
        weight_OI = weight_OI.detach()
        if weights == "bfloat16":
            self.register_buffer("codes", weight_OI.to(torch.bfloat16))
            self.scales_O1 = None
            return
        # A row of zeros has any scale.
        scales_O1 = weight_OI.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("scales_O1", scales_O1)
        self.register_buffer("codes", (weight_OI / scales_O1).round_().clamp_(-127, 127).to(torch.int8))

    def wide(self, rows: Tensor | None = None) -> Tensor:
        """The matrix, or some of its rows, in float32: a new tensor."""
        codes = self.codes if rows is None else self.codes[rows]
        wide = codes.float()
        if self.scales_O1 is not None:
            wide *= self.scales_O1 if rows is None else self.scales_O1[rows]
        return wide


class _Narrow(nn.Module):
    """A module whose weight is a NarrowRows."""

    def __init__(self, rows: NarrowRows) -> None:
        super().__init__()
        self.rows = rows

    @property
    def weight(self) -> Tensor:
        """The weight in float32, made again each time."""
        return self.rows.wide()


class NarrowLinear(_Narrow):
    """x·Wᵀ with a NarrowRows for W."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class NarrowEmbedding(_Narrow):
    """The rows of a NarrowRows."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows.wide(tokens)

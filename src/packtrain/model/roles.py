"""Decides what each parameter is for. Weight decay, learning rates and sharding depend on it."""

from enum import StrEnum

from torch import nn


class Role(StrEnum):
    """What a parameter does."""

    EMBEDDING = "embedding"
    OUTPUT = "output"
    MATRIX = "matrix"
    NORM = "norm"
    BIAS = "bias"


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of each parameter, by name. A tied output projection is listed once, as the embedding."""
    return {name: _role(name) for name, _ in model.named_parameters()}


def _role(name: str) -> Role:
    owner, _, kind = name.rpartition(".")
    if kind == "bias":
        return Role.BIAS
    if owner.endswith("norm"):
        return Role.NORM
    if owner.endswith("embed_tokens"):
        return Role.EMBEDDING
    return Role.OUTPUT if owner.endswith("lm_head") else Role.MATRIX

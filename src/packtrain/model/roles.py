"""Decides what kind of thing each parameter is, for whoever treats kinds differently (decay, rates, sharding)."""

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
    """Role of each parameter by its name. A tied output projection is the embedding and is listed once, as that."""
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

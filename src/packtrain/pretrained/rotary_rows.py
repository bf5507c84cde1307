"""Decides how rows of query and key weights are ordered for programs that rotate neighbours, as llama.cpp and llama2.c do."""

from torch import Tensor


def interleave_rows(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of `num_heads` heads, from our pairs (i, i + K/2) of a head to neighbours (2i, 2i + 1). K is the width of a head.

    Our rotation is Hugging Face's. Permuting the rows of queries and keys alike leaves every attention score as it is.
    """
    return _by_head(weight, num_heads, (2, -1)).transpose(1, 2).reshape(weight.shape)


def separate_rows(weight: Tensor, num_heads: int) -> Tensor:
    """The inverse of `interleave_rows`."""
    return _by_head(weight, num_heads, (-1, 2)).transpose(1, 2).reshape(weight.shape)


def _by_head(weight: Tensor, num_heads: int, pairs: tuple[int, int]) -> Tensor:
    return weight.unflatten(0, (num_heads, -1)).unflatten(1, pairs)

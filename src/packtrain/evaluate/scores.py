"""Decides how the log-probability of each token is computed: by the model's own layers, and logits only where they are asked for.

Letters: B rows, T positions, D hidden size, V vocabulary, N positions, P pairs of a position and a target, C a chunk of N.
"""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from packtrain.config.cpu import KINDS
from packtrain.errors import NonFiniteError
from packtrain.model.attention import Mask
from packtrain.model.cpu.measured import find_rates
from packtrain.model.cpu.products import Products, can_use_onednn
from packtrain.model.cpu.timing import Product, choose
from packtrain.model.layers import product_dtype
from packtrain.model.llama import Llama

# Logits that exist at once. On a CPU they are those of a block of the vocabulary, for as many positions as make its product fast:
# 8 MB in float32 stay in the caches from the product to the softmax. A GPU takes the whole vocabulary.
_MOST_LOGITS = 2**26
_BLOCK_POSITIONS, _BLOCK_TOKENS = 2048, 1024
# FLOPs of the logits of as many positions. Below, either library is as good, and a measurement not worth its time.
_MEASURED_FLOPS = 1e10
# From a logit this far from 0, a sum of float32 could not be told to five digits.
_FAR = 32.0


def hidden_states(
    model: Llama,
    tokens_BT: Tensor,
    *,
    segments_BT: Tensor | None = None,
    positions_BT: Tensor | None = None,
    mask: Mask = None,
) -> Tensor:
    """What the output projection reads, [B, T, D]. `mask` replaces causal attention; without it, arguments are `Llama.forward`'s."""
    x_BTD, _ = model.embed(tokens_BT)
    decoder = model.model
    if mask is None:
        return decoder(x_BTD, segments_BT, positions_BT)
    assert positions_BT is not None, "a mask of one's own needs positions"
    rotation = decoder.rotary(positions_BT)
    for block in decoder.layers:
        x_BTD = block(x_BTD, rotation, mask)
    return decoder.norm(x_BTD)


def log_probabilities(model: Llama, hidden_ND: Tensor, at_P: Tensor, targets_P: Tensor) -> Tensor:
    """log p of each target at its position, float32[P] on the CPU. `at_P` are rows of `hidden_ND`, ascending.

    Under autocast the product is taken in its type, and the softmax in float32. Waits for the device. Raises NonFiniteError if a
    log-probability is NaN, as damaged weights give.
    """
    return _check([chunk.log_probabilities() for chunk in _chunks(model, hidden_ND, at_P, targets_P)])


def rank_targets(model: Llama, hidden_ND: Tensor, at_P: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor]:
    """As `log_probabilities`, with whether each target is the likeliest token at its position, bool[P]."""
    chunks = list(_chunks(model, hidden_ND, at_P, targets_P, finds_best=True))
    best = [chunk.is_best() for chunk in chunks]
    return _check([chunk.log_probabilities() for chunk in chunks]), (
        torch.cat(best).cpu() if best else torch.zeros(0, dtype=torch.bool)
    )


class _Scoring:
    """What is kept of the logits of some positions, block after block of the vocabulary."""

    def __init__(self, at_P: Tensor, targets_P: Tensor, *, finds_best: bool) -> None:
        self._at_P, self._targets_P, self._finds_best = at_P, targets_P, finds_best
        self._logits_P = torch.full(targets_P.shape, torch.nan, device=targets_P.device)
        self._sums_C: list[Tensor] = []
        self._best_C: list[tuple[Tensor, Tensor]] = []

    def add(self, z_CV: Tensor, first: int) -> None:
        """Takes the logits of the tokens from `first` on, float32, and overwrites them."""
        here = torch.nonzero((self._targets_P >= first) & (self._targets_P < first + z_CV.shape[1]))[:, 0]
        self._logits_P[here] = z_CV[self._at_P[here], self._targets_P[here] - first]
        if self._finds_best:
            highest_C, token_C = z_CV.max(-1)
            self._best_C.append((highest_C, token_C + first))
        self._sums_C.append(_sum_exponentials(z_CV))

    def log_probabilities(self) -> Tensor:
        """log p of each target, [P]."""
        return self._logits_P - torch.stack(self._sums_C).logsumexp(0)[self._at_P]

    def is_best(self) -> Tensor:
        """Whether each target has the highest logit, [P]; the first of several that are equal."""
        highest, tokens = (torch.stack(found) for found in zip(*self._best_C, strict=True))
        best_C = tokens.gather(0, highest.argmax(0, keepdim=True))[0]
        return best_C[self._at_P] == self._targets_P


def _sum_exponentials(z_CV: Tensor) -> Tensor:
    """The logarithm of the sum of each row's exponentials, [C]; overwrites the rows.

    A log-softmax is torch's fastest way there: it takes each exponential once and writes none. Any logit less its own
    log-softmax is the sum; a large one would carry its rounding into it.
    """
    first_C = z_CV[:, 0].clone()
    is_far_C = first_C.abs() > _FAR
    exact = z_CV[is_far_C].logsumexp(-1) if is_far_C.any() else None
    torch.log_softmax(z_CV, dim=-1, out=z_CV)
    sums_C = first_C - z_CV[:, 0]
    if exact is not None:
        sums_C[is_far_C] = exact
    return sums_C


def _chunks(
    model: Llama, hidden_ND: Tensor, at_P: Tensor, targets_P: Tensor, *, finds_best: bool = False
) -> Iterator[_Scoring]:
    """Some positions at a time, with what is asked of their logits."""
    dtype = product_dtype(model.lm_head.weight)
    weight_VD = model.lm_head.weight.to(dtype)
    vocabulary = weight_VD.shape[0]
    if hidden_ND.device.type == "cpu":
        rows, block = _BLOCK_POSITIONS, _BLOCK_TOKENS
        linear: Callable[[Tensor, Tensor], Tensor] = _choose_products(
            dtype, *weight_VD.shape, torch.get_num_threads()
        ).outputs
    else:
        linear, rows, block = torch.nn.functional.linear, max(1, _MOST_LOGITS // vocabulary), vocabulary
    # Of equal size, because a small last one would be slow.
    blocks_VD = weight_VD.tensor_split(-(-vocabulary // block))
    # Where in the pairs each chunk of rows begins.
    firsts = torch.arange(0, len(hidden_ND) + rows, rows, device=at_P.device)
    bounds = torch.searchsorted(at_P, firsts).tolist()
    for number, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):
        start = number * rows
        hidden_CD = hidden_ND[start : start + rows].to(dtype)
        chunk, token = _Scoring(at_P[first:last] - start, targets_P[first:last], finds_best=finds_best), 0
        for block_VD in blocks_VD:
            # No name here: the logits are freed before the next block needs the memory.
            chunk.add(linear(hidden_CD, block_VD).float(), token)
            token += len(block_VD)
        yield chunk


@functools.cache
def _choose_products(dtype: torch.dtype, vocabulary: int, size: int, num_threads: int) -> Products:
    """The library that is faster at a block of logits on this machine: measured once, in a tenth of a second, and kept."""
    is_worth_it = 2.0 * _BLOCK_POSITIONS * size * vocabulary >= _MEASURED_FLOPS
    if not (is_worth_it and can_use_onednn(torch.empty(0, dtype=dtype))):
        return Products.by_maker()
    product = Product(KINDS[0], _BLOCK_POSITIONS, size, _BLOCK_TOKENS)
    return Products.of(choose(find_rates([product], dtype, num_threads)[0]))


def _check(found: list[Tensor]) -> Tensor:
    logs_P = torch.cat(found).cpu() if found else torch.zeros(0)
    if logs_P.isnan().any():
        raise NonFiniteError(
            "the model gives NaN instead of probabilities, so its weights are damaged; give --step with an earlier "
            "checkpoint, or another folder"
        )
    return logs_P

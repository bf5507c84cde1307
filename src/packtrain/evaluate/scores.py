"""Decides how the log-probability of each token is computed: by the model's own layers, and logits only where they are asked for.

Letters: B rows, T positions, D hidden size, V vocabulary, N positions, P pairs of a position and a target, C a chunk of N.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from packtrain.errors import NonFiniteError
from packtrain.model.attention import Mask
from packtrain.model.cpu.products import Products
from packtrain.model.layers import product_dtype
from packtrain.model.llama import Llama

# Logits that exist at once: 32 MB in float32 fit a CPU's caches better than the 128 MB of training; a GPU wants larger products.
_MOST_LOGITS = {"cpu": 2**23, "cuda": 2**26}


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
    found = []
    for z_CV, at, targets in _chunks(model, hidden_ND, at_P, targets_P):
        found.append(torch.log_softmax(z_CV, dim=-1, out=z_CV)[at, targets])
        del z_CV
    return _check(found)


def rank_targets(model: Llama, hidden_ND: Tensor, at_P: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor]:
    """As `log_probabilities`, with whether each target is the likeliest token at its position, bool[P]."""
    found, best = [], []
    for z_CV, at, targets in _chunks(model, hidden_ND, at_P, targets_P):
        best.append(z_CV.argmax(-1)[at] == targets)
        found.append(torch.log_softmax(z_CV, dim=-1, out=z_CV)[at, targets])
        del z_CV
    return _check(found), torch.cat(best).cpu() if best else torch.zeros(0, dtype=torch.bool)


def _chunks(
    model: Llama, hidden_ND: Tensor, at_P: Tensor, targets_P: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits [C, V] of some positions at a time, in float32, with the pairs that are about them; the caller may overwrite them."""
    dtype = product_dtype(model.lm_head.weight)
    weight_VD = model.lm_head.weight.to(dtype)
    device = hidden_ND.device.type
    linear = Products.by_maker().outputs if device == "cpu" else torch.nn.functional.linear
    rows = max(1, _MOST_LOGITS.get(device, 2**26) // weight_VD.shape[0])
    # Where in the pairs each chunk of rows begins.
    firsts = torch.arange(0, len(hidden_ND) + rows, rows, device=at_P.device)
    bounds = torch.searchsorted(at_P, firsts).tolist()
    for number, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):
        start = number * rows
        hidden_CD = hidden_ND[start : start + rows].to(dtype)
        # No name here: the logits are freed before the next chunk needs the memory.
        yield linear(hidden_CD, weight_VD).float(), at_P[first:last] - start, targets_P[first:last]


def _check(found: list[Tensor]) -> Tensor:
    logs_P = torch.cat(found).cpu() if found else torch.zeros(0)
    if logs_P.isnan().any():
        raise NonFiniteError(
            "the model gives NaN instead of probabilities, so its weights are damaged; give --step with an earlier "
            "checkpoint, or another folder"
        )
    return logs_P

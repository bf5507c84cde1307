"""Decides which activations dropout sets to zero: a function of seed, step, row and position, so that nothing has to be saved.

No generator is drawn from. Each number of an activation is kept or dropped by a hash of its position under a key of its row,
so the result is the same for any micro-batch, lanes, ranks and device, for a resumed run, and in a recomputed block.

Letters: B batch, T tokens, D hidden size.
"""

import hashlib
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

# Two rounds of a 32-bit hash (C. Wellons, "hash-prospector"), with half of the key before each. Products wrap around.
_MULTIPLIERS = (0x21F0AAAD, 0x735A2D97)
# Odd, and far from each other's multiples: places of the model have keys that differ in many bits.
_STRIDES = (0x1E3779B1, 0x5851F42D)


class Dropout(NamedTuple):
    """Dropout of one place of the model, for each row of a batch (Srivastava et al., JMLR 15, 2014)."""

    rate: float
    """Share of the numbers that become zero; the others are divided by 1 - rate."""
    keys_B2: Tensor
    """int32; see `row_keys`."""

    def __call__(self, x_BTD: Tensor) -> Tensor:
        return torch.where(keep(self.keys_B2, x_BTD.shape[1:], self.rate), x_BTD * (1 / (1 - self.rate)), 0.0)

    def spread(self, count: int) -> list[Self]:
        """The same for `count` places of the model, each with keys of its own."""
        places = torch.arange(count, dtype=torch.int32, device=self.keys_B2.device)
        first = _mix(self.keys_B2[:, 0] ^ (places * _STRIDES[0])[:, None], self.keys_B2[:, 1])
        second = _mix(self.keys_B2[:, 1] ^ (places * _STRIDES[1])[:, None], self.keys_B2[:, 0])
        return [self._replace(keys_B2=keys_B2) for keys_B2 in torch.stack((first, second), dim=-1).unbind()]


Branches = tuple[Dropout | None, Dropout | None]
"""Dropout of what a block's attention and its feed-forward part add to the residual stream."""

NO_DROPOUT: Branches = (None, None)


def drop(x_BTD: Tensor, dropout: Dropout | None) -> Tensor:
    """`x_BTD` after dropout, if there is any."""
    return x_BTD if dropout is None else dropout(x_BTD)


def row_keys(seed: int, step: int, rows: range) -> Tensor:
    """Keys of rows of a step's global batch, int32 [len(rows), 2] on the CPU. Rows are counted over all ranks."""
    names = (f"{seed}:{step}:{row}".encode() for row in rows)
    digests = b"".join(hashlib.blake2b(name, digest_size=8, person=b"packtrain drop").digest() for name in names)
    return torch.from_numpy(np.frombuffer(digests, dtype="<i4").astype(np.int32).reshape(-1, 2))


def keep(keys_B2: Tensor, shape: torch.Size, rate: float) -> Tensor:
    """Which numbers of each row are kept: bool [B, *shape]."""
    positions = torch.arange(shape.numel(), dtype=torch.int32, device=keys_B2.device).view(1, *shape)
    first, second = keys_B2.view(-1, 2, *(1 for _ in shape)).unbind(1)
    # Signed, so the smallest hash is -2³¹.
    return _mix(positions ^ first, second) >= round(rate * 2**32) - 2**31


def _mix(h: Tensor, key: Tensor) -> Tensor:
    """A hash of int32 numbers under a key; overwrites `h`. Its high bits depend on every bit."""
    h ^= (h >> 16) & 0xFFFF
    h *= _MULTIPLIERS[0]
    h ^= key
    h ^= (h >> 15) & 0x1FFFF
    h *= _MULTIPLIERS[1]
    return h

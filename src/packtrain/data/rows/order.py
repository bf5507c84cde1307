"""Decides the order in which rows are visited: a keyed permutation of range(n), computed element by element.

An alternating Feistel network over the bits of the index, whose halves may differ by one bit, with cycle walking: an
output outside range(n) is enciphered again (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Fewer than
two passes are needed on average, because the network's domain is smaller than 2n.
"""

import functools
import hashlib
import json

import numpy as np

# Twice what the Luby-Rackoff construction needs, because the halves of a small n have few bits.
NUM_ROUNDS = 8

# The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def order_key(seed: int, epoch: int, source: str) -> bytes:
    """Key of one epoch's order: a 128-bit hash, so that (seed 1, epoch 1) is unrelated to (seed 2, epoch 0)."""
    name = json.dumps([seed, epoch, source]).encode()
    return hashlib.blake2b(name, digest_size=16, person=b"packtrain order").digest()


def permute(index: np.ndarray, num: int, key: bytes) -> np.ndarray:
    """Images of `index` (int64[...], each in range(num)) under the permutation that `key` selects; int64[...]."""
    return _walk(index, num, key, inverse=False)


def invert(image: np.ndarray, num: int, key: bytes) -> np.ndarray:
    """The index that `permute` maps to each `image` (int64[...], each in range(num)); int64[...]."""
    return _walk(image, num, key, inverse=True)


def _walk(values: np.ndarray, num: int, key: bytes, *, inverse: bool) -> np.ndarray:
    flat = np.asarray(values, dtype=np.int64).ravel()
    assert num >= 1 and (flat.size == 0 or (flat.min() >= 0 and flat.max() < num)), f"index outside range({num})"
    out = _network(flat.astype(np.uint64), num, key, inverse)
    limit = np.uint64(num)
    outside = np.flatnonzero(out >= limit)
    while outside.size:
        again = _network(out[outside], num, key, inverse)
        out[outside] = again
        outside = outside[again >= limit]
    return out.astype(np.int64).reshape(np.shape(values))


def _network(x: np.ndarray, num: int, key: bytes, inverse: bool) -> np.ndarray:
    """One pass over uint64[n]: a bijection of range(2 ** num_bits), the smallest such range that contains range(num)."""
    num_bits = (num - 1).bit_length()
    low_bits = num_bits - num_bits // 2
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << (num_bits - low_bits)) - 1)
    low, high = x & low_mask, x >> np.uint64(low_bits)
    rounds = list(enumerate(_round_keys(key)))
    for number, round_key in reversed(rounds) if inverse else rounds:
        if number % 2 == 0:
            high ^= _mix(low, round_key) & high_mask
        else:
            low ^= _mix(high, round_key) & low_mask
    high <<= np.uint64(low_bits)
    high |= low
    return high


def _mix(half: np.ndarray, round_key: np.uint64) -> np.ndarray:
    mixed = half + round_key
    mixed ^= mixed >> _SHIFTS[0]
    mixed *= _MULTIPLIERS[0]
    mixed ^= mixed >> _SHIFTS[1]
    mixed *= _MULTIPLIERS[1]
    mixed ^= mixed >> _SHIFTS[2]
    return mixed


@functools.lru_cache(maxsize=64)
def _round_keys(key: bytes) -> tuple[np.uint64, ...]:
    material = hashlib.blake2b(key, digest_size=8 * NUM_ROUNDS, person=b"packtrain rounds").digest()
    return tuple(np.frombuffer(material, dtype="<u8"))

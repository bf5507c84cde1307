"""Decides how loss depends on size and tokens: the form of the law, how it is fitted to a few runs, and how sure it is.

The form is that of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3): L(N, D) = E + A/N^alpha + B/D^beta, fitted by the
Huber loss of log L with delta = 1e-3, as there. A dozen runs cannot tell the two exponents apart, so alpha = beta, as in
Muennighoff et al. 2023 (arXiv 2305.16264, section 6): four free numbers. For given exponents the other three enter linearly.
So the exponent is searched on a grid, and the rest is solved for by reweighted least squares, without a start to guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from packtrain.runs.ladder import Law

Floats = npt.NDArray[np.float64]

_DELTA = 1e-3
_EXPONENTS = (0.05, 1.5)
_NUM_COARSE, _NUM_FINE, _NUM_ZOOMS = 32, 9, 3
_NUM_REWEIGHTINGS = 10
FREE_NUMBERS = 4
"""E, A, B and the common exponent."""


@dataclass(frozen=True)
class Point:
    """One run that has ended: parameters, tokens trained on, and its loss on held-out text in nats per token."""

    parameters: int
    tokens: int
    loss: float


def fit(points: Sequence[Point]) -> Law:
    """The law of least Huber loss over the points. It needs two sizes, two lengths and FREE_NUMBERS points or more."""
    sizes, lengths, losses = _columns(points)
    return _fit_all(sizes, lengths, losses[None])[0]


def bootstrap(points: Sequence[Point], law: Law, *, num_draws: int, seed: int) -> list[Law]:
    """Laws fitted to losses drawn again: the law's own plus residuals drawn with replacement.

    The residuals, of log L, are scaled by sqrt(n / (n - FREE_NUMBERS)), since a fit makes them smaller than the noise
    (Davison and Hinkley 1997, section 6.3). Whole runs are not drawn: without one size, few would be left.
    """
    sizes, lengths, losses = _columns(points)
    fitted = np.array([law.predict(n, d) for n, d in zip(sizes, lengths, strict=True)])
    residuals = np.log(losses / fitted) * np.sqrt(len(points) / max(1, len(points) - FREE_NUMBERS))
    draws = np.random.default_rng(seed).choice(residuals, size=(num_draws, len(points)))
    return _fit_all(sizes, lengths, fitted * np.exp(draws))


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The percentiles between which `level` of the values are."""
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _columns(points: Sequence[Point]) -> tuple[Floats, Floats, Floats]:
    columns = np.array([(p.parameters, p.tokens, p.loss) for p in points], dtype=np.float64).T
    return columns[0], columns[1], columns[2]


def _fit_all(sizes: Floats, lengths: Floats, losses_Rn: Floats) -> list[Law]:
    """A law for each row of losses (R) over the points (n); G candidates for the exponent are tried at once."""
    # Relative to their means, so that the three columns of the equations are of one size.
    size_scale, length_scale = np.exp(np.log(sizes).mean()), np.exp(np.log(lengths).mean())
    log_sizes, log_lengths = np.log(sizes / size_scale), np.log(lengths / length_scale)
    low, high = _EXPONENTS
    candidates_RG = np.broadcast_to(np.geomspace(low, high, _NUM_COARSE), (len(losses_Rn), _NUM_COARSE))
    step = (high / low) ** (1 / (_NUM_COARSE - 1))
    rows = np.arange(len(losses_Rn))
    for zoom in range(_NUM_ZOOMS + 1):
        factors_RG3, objective_RG = _solve(candidates_RG, log_sizes, log_lengths, losses_Rn)
        best_R = objective_RG.argmin(axis=1)
        exponents_R, factors_R3 = candidates_RG[rows, best_R], factors_RG3[rows, best_R]
        if zoom < _NUM_ZOOMS:
            around = np.geomspace(1 / step, step, _NUM_FINE)
            candidates_RG = np.clip(exponents_R[:, None] * around, low, high)
            step **= 2 / (_NUM_FINE - 1)
    return [
        Law(floor=e, size_factor=a * size_scale**x, tokens_factor=b * length_scale**x, exponent=x)
        for (e, a, b), x in zip(factors_R3.tolist(), exponents_R.tolist(), strict=True)
    ]


def _solve(candidates_RG: Floats, log_sizes: Floats, log_lengths: Floats, losses_Rn: Floats) -> tuple[Floats, Floats]:
    """Floor and factors, none negative, for each candidate, and the Huber loss that they leave."""
    exponents = candidates_RG[:, :, None]
    columns_RGn3 = np.stack(
        [
            np.ones((*candidates_RG.shape, len(log_sizes))),
            np.exp(-exponents * log_sizes),
            np.exp(-exponents * log_lengths),
        ],
        axis=-1,
    )
    losses_RGn = np.broadcast_to(losses_Rn[:, None, :], columns_RGn3.shape[:3])
    fitted, errors = losses_RGn, np.zeros(losses_RGn.shape)
    factors = np.zeros((*candidates_RG.shape, 3))
    for _ in range(_NUM_REWEIGHTINGS):
        # A step of Gauss and Newton for log L; beyond delta, the Huber loss weighs an error by delta / |error|.
        weights = np.where(np.abs(errors) <= _DELTA, 1.0, _DELTA / np.maximum(np.abs(errors), _DELTA)) / fitted**2
        factors = _least_squares(columns_RGn3, weights, fitted * (1 - errors))
        fitted = np.maximum(np.einsum("rgnk,rgk->rgn", columns_RGn3, factors), 1e-6)
        errors = np.log(fitted / losses_RGn)
    size = np.abs(errors)
    huber = np.where(size <= _DELTA, size**2 / 2, _DELTA * (size - _DELTA / 2))
    return factors, huber.sum(axis=-1)


def _least_squares(columns: Floats, weights: Floats, wanted: Floats) -> Floats:
    """Weighted least squares without negative factors: those that come out negative are left out, and the rest solved again."""
    weighted = columns * weights[..., None]
    matrix = np.einsum("rgni,rgnj->rgij", weighted, columns)
    right = np.einsum("rgni,rgn->rgi", weighted, wanted)
    ridge = 1e-10 * np.trace(matrix, axis1=-2, axis2=-1)[..., None, None] * np.eye(3)
    factors = np.linalg.solve(matrix + ridge, right[..., None])[..., 0]
    for _ in range(2):
        is_wrong = (factors < 0).any(axis=-1)
        if not is_wrong.any():
            break
        kept = (factors[is_wrong] > 0).astype(np.float64)
        reduced = matrix[is_wrong] * kept[..., :, None] * kept[..., None, :] + ridge[is_wrong]
        factors[is_wrong] = np.linalg.solve(reduced, (right[is_wrong] * kept)[..., None])[..., 0]
    return np.maximum(factors, 0.0)

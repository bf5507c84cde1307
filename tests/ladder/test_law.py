"""Does the fit recover a law that losses were made from, and is it as sure of it as it may be?"""

import numpy as np
import pytest

from packtrain.ladder.law import Point, bootstrap, fit, interval
from packtrain.runs.ladder import Law

# Hoffmann et al.'s floor, with the exponent of Muennighoff et al.
TRUE = Law(floor=1.69, size_factor=520.0, tokens_factor=1490.0, exponent=0.353)
SIZES, LENGTHS = (1e6, 2e6, 4e6, 8e6), (1e7, 2e7, 4e7)


def points_of(law, noise=0.0, seed=0):
    draw = np.random.default_rng(seed)
    return [
        Point(int(n), int(d), law.predict(n, d) * float(np.exp(noise * draw.normal()))) for n in SIZES for d in LENGTHS
    ]


@pytest.mark.parametrize(
    "law",
    [
        TRUE,
        Law(floor=0.5, size_factor=60.0, tokens_factor=90.0, exponent=0.2),
        Law(floor=0.0, size_factor=30.0, tokens_factor=40.0, exponent=0.1),
    ],
)
def test_a_law_is_recovered_from_its_own_losses(law):
    found = fit(points_of(law))
    assert found.exponent == pytest.approx(law.exponent, rel=0.01)
    assert found.floor == pytest.approx(law.floor, abs=0.02)
    assert found.size_factor == pytest.approx(law.size_factor, rel=0.05)
    assert found.tokens_factor == pytest.approx(law.tokens_factor, rel=0.05)
    assert found.predict(4e8, 8e9) == pytest.approx(law.predict(4e8, 8e9), rel=0.003)


def test_one_run_that_went_wrong_hardly_moves_the_law():
    points = points_of(TRUE)
    points[5] = Point(points[5].parameters, points[5].tokens, points[5].loss * 1.2)
    assert fit(points).predict(1.6e7, 8e7) == pytest.approx(TRUE.predict(1.6e7, 8e7), rel=0.002)


def test_the_interval_holds_the_true_loss_and_grows_with_the_noise():
    widths, held = [], 0
    for noise in (0.001, 0.004):
        for seed in range(5):
            points = points_of(TRUE, noise, seed)
            laws = bootstrap(points, fit(points), num_draws=60, seed=0)
            low, high = interval([law.predict(1.6e7, 8e7) for law in laws])
            held += low <= TRUE.predict(1.6e7, 8e7) <= high
        widths.append(high - low)
    assert held >= 8
    assert widths[1] > 2 * widths[0]


def test_a_law_without_effect_of_size_has_no_negative_factor():
    points = [Point(int(n), int(d), 2.0 + 500 / d**0.4) for n in SIZES for d in LENGTHS]
    found = fit(points)
    assert found.size_factor == pytest.approx(0, abs=1)
    assert found.predict(1e9, 1e9) == pytest.approx(2.0 + 500 / 1e9**0.4, rel=0.01)


def test_the_bootstrap_is_the_same_each_time():
    points = points_of(TRUE, 0.003)
    law = fit(points)
    assert bootstrap(points, law, num_draws=5, seed=1) == bootstrap(points, law, num_draws=5, seed=1)

"""The learning rate of every step, against the definitions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.config.optim import OptimConfig, ScheduleConfig
from packtrain.optim.schedule import decay_steps, learning_rate, warmup, weight_decay

NAMES = ["cosine", "wsd", "linear", "constant"]


def rates(name, steps, **settings):
    config = ScheduleConfig(name=name, **settings)
    return [learning_rate(config, 1.0, step, steps) for step in range(1, steps + 1)]


def test_cosine_is_the_textbook_curve():
    got = rates("cosine", 110, warmup_steps=10, min_lr_ratio=0.1)
    assert got[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert got[10:] == pytest.approx([0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 100)) for k in range(1, 101)])


def test_linear_falls_by_equal_amounts_to_the_floor():
    assert rates("linear", 5, warmup_steps=1, min_lr_ratio=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("warm", [0, 10, 50, 80])
def test_wsd_stays_then_falls_over_its_share_of_all_steps(warm):
    got = rates("wsd", 100, warmup_steps=warm, min_lr_ratio=0.0, decay_fraction=0.2)
    assert got[max(0, warm - 1) : 80] == [1.0] * (80 - max(0, warm - 1))
    assert got[80:] == pytest.approx([k / 20 for k in range(19, -1, -1)])


def test_wsd_decays_in_what_a_long_warm_up_leaves():
    config = ScheduleConfig(name="wsd", warmup_steps=15, min_lr_ratio=0.0, decay_fraction=0.5)
    assert decay_steps(config, 20) == 5
    assert rates("wsd", 20, warmup_steps=15, min_lr_ratio=0.0, decay_fraction=0.5)[14:] == pytest.approx(
        [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    )


def test_constant_stays():
    assert rates("constant", 20, warmup_steps=10)[9:] == [1.0] * 11


@given(
    name=st.sampled_from(NAMES),
    steps=st.integers(1, 300),
    warm=st.integers(0, 400),
    floor=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_never_above_the_peak_nor_below_the_floor_and_never_rising_again(name, steps, warm, floor, decay):
    config = ScheduleConfig(name=name, warmup_steps=warm, min_lr_ratio=floor, decay_fraction=decay)
    got = [learning_rate(config, 3e-4, step, steps) for step in range(1, steps + 1)]
    turn = warmup(config, steps)
    assert all(0 <= rate <= 3e-4 * (1 + 1e-9) for rate in got)
    assert all(b >= a for a, b in zip(got[:turn], got[1:turn], strict=False))
    after = got[turn:]
    assert all(b <= a * (1 + 1e-9) for a, b in zip(after, after[1:], strict=False))
    assert all(rate >= 3e-4 * floor * (1 - 1e-9) for rate in after)
    if (name in ("cosine", "linear") or (name == "wsd" and decay)) and after:
        assert got[-1] == pytest.approx(3e-4 * floor, abs=1e-12)


def test_a_warm_up_longer_than_the_run_takes_a_tenth_of_it():
    config = ScheduleConfig(warmup_steps=1000)
    assert warmup(config, 20) == 2
    assert warmup(config, 1001) == 1000


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("constant", [1, 1, 1, 1]),
        ("lr", [1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)]),
    ],
)
def test_weight_decay_follows_its_schedule(name, shares):
    config = OptimConfig(lr=0.02, weight_decay=0.4, decay_schedule=name)
    got = [weight_decay(config, step, 4, lr) for step, lr in ((1, 0.02), (2, 0.015), (3, 0.01), (4, 0.005))]
    assert got == pytest.approx([0.4 * share for share in shares])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.75, 0.5, 0.25, 0.0]),
        ("sqrt", [1 - math.sqrt(k / 4) for k in (1, 2, 3, 4)]),
        ("cosine", [0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)]),
    ],
)
def test_wsd_falls_in_its_shape(shape, expected):
    got = rates("wsd", 10, warmup_steps=2, min_lr_ratio=0.0, decay_fraction=0.4, decay_shape=shape)
    assert got[5] == 1.0 and got[6:] == pytest.approx(expected)


def test_a_shape_of_decay_needs_wsd():
    with pytest.raises(ValueError, match=r"decay_shape=sqrt applies only to wsd.*write schedule\.name=wsd"):
        ScheduleConfig(name="linear", decay_shape="sqrt")

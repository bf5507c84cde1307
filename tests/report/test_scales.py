"""An axis covers its values with readable labels, and a thinned or averaged series keeps its shape."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from packtrain.report import figures
from packtrain.report.scales import linear, logarithmic, running_mean, thin

NUMBERS = st.floats(-1e9, 1e9)


@given(NUMBERS, NUMBERS)
@example(0.0, 5e-324)
def test_a_linear_axis_covers_its_values(a: float, b: float) -> None:
    low, high = sorted((a, b))
    scale = linear(low, high, room=0.05)
    assert scale.low <= low and high <= scale.high and scale.low < scale.high
    assert all(-1e-9 <= scale.place(tick) <= 1 + 1e-9 for tick in scale.ticks)
    assert len(scale.ticks) <= 14
    assert 0 <= scale.place(low) <= scale.place(high) <= 1


@given(st.floats(1e-9, 1e9), st.floats(1, 1e6))
def test_a_logarithmic_axis_covers_its_values(low: float, ratio: float) -> None:
    scale = logarithmic(low, low * ratio)
    assert 0 < scale.place(low) <= scale.place(low * ratio) < 1
    assert all(-1e-6 <= scale.place(tick) <= 1 + 1e-6 for tick in scale.ticks)
    assert not scale.holds(0.0) and not scale.holds(math.nan)


def test_equal_ratios_are_equal_lengths_on_a_logarithmic_axis() -> None:
    scale = logarithmic(1, 100)
    assert scale.place(10) - scale.place(1) == pytest.approx(scale.place(100) - scale.place(10))


def test_memory_is_labelled_in_round_decimal_units() -> None:
    ticks = linear(0, 3 * 10**9).ticks
    assert [figures.size(tick) for tick in ticks] == ["0 B", "1 GB", "2 GB", "3 GB"]


@given(st.lists(st.floats(allow_nan=True), min_size=1, max_size=400), st.integers(4, 50))
def test_a_thinned_series_keeps_its_ends_and_extremes(values: list[float], limit: int) -> None:
    kept = thin(values, limit)
    assert kept == sorted(set(kept)) and kept[0] == 0 and kept[-1] == len(values) - 1
    finite = [v for v in values if math.isfinite(v)]
    if finite:
        shown = [values[i] for i in kept]
        assert max(finite) in shown and min(finite) in shown
    assert any(not math.isfinite(values[i]) for i in kept) == any(not math.isfinite(v) for v in values)
    assert len(kept) <= 1.5 * limit + 2 or len(values) <= limit


def test_a_running_mean_neither_lags_nor_spreads_values_that_are_not_finite() -> None:
    line = [10.0 - i for i in range(10)]
    assert running_mean(line, 2)[:8] == pytest.approx(line[:8])
    assert running_mean([1.0, math.nan, 3.0, math.inf, 5.0], 1) == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0])
    assert math.isnan(running_mean([math.nan], 3)[0])


@pytest.mark.parametrize(
    ("value", "text"),
    [(437_584_896, "437.6M"), (2_867_200, "2.87M"), (999_960, "1M"), (950, "950"), (1e12, "1T"), (100_000, "100k")],
)
def test_large_numbers_are_shortened(value: float, text: str) -> None:
    assert figures.short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (276, "4 min 36 s"), (3599.9, "1 h 00 min"), (7322, "2 h 02 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "step", "text"), [(0.0, 1, "0"), (0.25, 0.25, "0.25"), (2.0, 0.5, "2.0"), (3e-4, 1e-4, "3e-4")]
)
def test_axis_labels_have_the_decimals_that_tell_them_apart(value: float, step: float, text: str) -> None:
    assert figures.tick(value, step) == text

"""A run's memory, rate and hours are set beside those that are planned for it, and what is not known is None."""

import pytest

from packtrain.config.load import load_run_config
from packtrain.plan.after import compare_with_plan, measure_metrics
from packtrain.plan.memory import needed_bytes

CONFIG = load_run_config("demo", ["evaluate.every=0", "model.vocab_size=4096"]).config
HERE = {"device": "a CPU", "device_type": "cpu", "cores": 2, "threads": 2}
RATE = {**HERE, "tokens_per_s": 1000.0, "precision": "fp32"}
LINES = [
    {"step": 10, "tokens": 20_480, "loss": 5.0, "tokens_per_s": 1024.0, "memory_bytes": 400_000_000},
    {"step": 10, "val_loss": 5.0},
    {"step": 20, "tokens": 40_960, "loss": 4.0, "tokens_per_s": 512.0, "memory_bytes": 500_000_000},
]


def compare(lines=LINES, config=CONFIG, rate=RATE, events=(), **hardware):
    return compare_with_plan(
        config, {"hardware": {**HERE, "world_size": 1, **hardware}}, measure_metrics(lines), events, rate
    )


def test_each_figure_is_estimated_and_measured():
    found = compare(events=[{"time": 100.0, "event": "started"}, {"time": 172.0, "event": "finished"}])
    assert found["steps"] == 20 and found["rate_from"] == "probe"
    # 20 seconds for the first half, 40 for the second.
    assert found["tokens_per_s"]["measured"] == pytest.approx(40_960 / 60)
    assert found["tokens_per_s"]["ratio"] == pytest.approx(40_960 / 60 / 1000)
    assert found["hours"] == pytest.approx({"estimated": 40.96 / 3600, "measured": 72 / 3600, "ratio": 72 / 40.96})
    assert found["memory_bytes"]["measured"] == 500_000_000
    assert found["memory_bytes"]["estimated"] == needed_bytes(CONFIG, 8, "fp32", "cpu", accumulates=False)


def test_the_time_between_stretches_of_a_run_does_not_count():
    events = [
        {"time": 0.0, "event": "started"},
        {"time": 10.0, "event": "saved"},
        {"time": 1000.0, "event": "resumed"},
        {"time": "?", "event": "saved"},
        {"time": 1026.0, "event": "finished"},
    ]
    assert compare(events=events)["hours"]["measured"] == pytest.approx(36 / 3600)


@pytest.mark.parametrize("hardware", [{"device": "another CPU"}, {"world_size": 2}, {"threads": 1}])
def test_a_rate_of_another_machine_or_of_one_process_does_not_count(hardware):
    found = compare(**hardware)
    assert found["rate_from"] is None
    assert found["tokens_per_s"]["estimated"] is None and found["hours"]["estimated"] is None
    assert found["tokens_per_s"]["measured"] is not None


def test_a_gpu_counts_at_an_assumed_share_of_its_peak():
    found = compare(rate=None, device="NVIDIA H100 80GB HBM3", device_type="cuda", world_size=8)
    assert found["rate_from"] == "assumed MFU" and found["precision"] == "bf16"
    flops = 6 * 1_377_408 + 12 * 4 * 128 * 256
    assert found["tokens_per_s"]["estimated"] == pytest.approx(8 * 0.4 * 989.4e12 / flops)


def test_a_run_without_steps_or_with_odd_lines_has_no_measurements():
    for lines in ([], [{"step": 1, "val_loss": 2.0}], [{"step": 1, "loss": None, "tokens": 0}]):
        found = compare(lines)
        assert found["steps"] == 0
        assert all(found[name]["measured"] is None for name in ("memory_bytes", "tokens_per_s", "hours"))
    old = compare([{"step": 2, "tokens": 4096, "loss": 5.0}])
    assert old["steps"] == 2 and old["tokens_per_s"]["measured"] is None and old["memory_bytes"]["measured"] is None

"""The speed that a run reports, and its share of the device's peak if that is known."""

import pytest
import torch

from packtrain.cli import speak
from packtrain.config.runs import LogConfig
from packtrain.train.device import peak_rate
from packtrain.train.monitor import Monitor
from packtrain.train.step import Precision, StepResult

CPU = torch.device("cpu")


def records(peak_flops):
    """The records of two steps of 512 tokens, which took 2 and 4 s; every second step writes a line."""
    told = []
    monitor = Monitor(
        LogConfig(every=2),
        device=CPU,
        metrics=None,
        trackers=None,
        flops_per_token=1e9,
        peak_flops=peak_flops,
        on_step=told.append,
    )
    for step, seconds in ((1, 2.0), (2, 4.0)):
        monitor.after_step(step, StepResult(5.0, 1.0), lr=1e-3, tokens=512 * step, new_tokens=512, step_s=seconds)
    return told


def test_mfu_is_the_share_of_a_known_peak():
    first, last = records(peak_flops=1e12)
    assert (first["tokens_per_s"], first["mfu"]) == (256.0, 0.256)
    # Over all steps since the last line.
    assert (last["tokens_per_s"], last["step_s"], last["mfu"]) == (170.7, 3.0, 0.1707)
    assert speak.figures(last)["MFU"] == "17%"


def test_of_an_unknown_device_there_is_none():
    for record in records(peak_flops=None):
        assert "mfu" not in record
        assert speak.figures(record)["MFU"] == "n/a"


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 8 * 989.4e12),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("NVIDIA H123", "bf16", None),
    ],
)
def test_the_peak_is_that_of_all_devices_where_the_table_has_it(monkeypatch, name, precision, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    means = Precision(precision, "cuda", torch.amp.GradScaler("cpu", enabled=False))
    assert peak_rate(torch.device("cuda", 0), means, 8) == expected
    assert peak_rate(CPU, means, 8) is None

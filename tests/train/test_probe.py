"""A probe times real steps, of fewer rows and blocks if the run's own take long, in the precision that training takes."""

import pytest

from packtrain.config.load import load_run_config
from packtrain.errors import DeviceError
from packtrain.train import probe

TINY = (
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "model.vocab_size=128",
    "data.seq_len=32",
    "train.global_batch_tokens=128",
    "train.micro_batch_size=2",
)


def config(*settings):
    return load_run_config("demo", [*TINY, *settings]).config


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("optim.name=muon", "train.micro_batch_size=3", "train.global_batch_tokens=96"),
        ("data.document_mask=true", "train.activation_gb=0.0002"),
    ],
)
def test_real_steps_are_timed(settings, monkeypatch):
    monkeypatch.setattr(probe, "_ENOUGH_S", 0.0)
    found = probe.take_steps(config(*settings))
    assert found["tokens_per_s"] > 0 and found["tokens_per_processor_s"] > 0
    assert found["device_type"] == "cpu" and found["blocks"] == [2]
    assert found["rows"] == found["micro_batch_size"] == config(*settings).train.micro_batch_size
    assert found["precision"] in ("fp32", "bf16")


def test_long_steps_are_made_of_shorter_ones(monkeypatch):
    monkeypatch.setattr(probe, "_ENOUGH_S", 0.0)
    monkeypatch.setattr(probe, "_matrix_rate", lambda _: 1e6)
    found = probe.take_steps(config("model.num_hidden_layers=8"))
    assert found["blocks"] == [1, 3] and found["rows"] == 2
    assert found["tokens_per_s"] > 0


def test_what_is_outside_the_blocks_counts_once():
    eight = config("model.num_hidden_layers=8")
    # 2 seconds outside the blocks, and half a second in each.
    assert probe._extrapolate(eight, (1, 3), [2.5, 3.5]) == pytest.approx(6.0)
    assert probe._extrapolate(eight, (8,), [6.0]) == 6.0
    # Noise must not make a larger model faster.
    assert probe._extrapolate(eight, (1, 3), [2.5, 2.4]) == 2.5


@pytest.mark.slow
def test_the_child_says_why_it_cannot():
    with pytest.raises(DeviceError, match=r"no CUDA device on this machine.*--no-probe"):
        probe.measure(config("train.device=cuda"))

"""Decides what works on Apple's GPUs, as far as a machine without one can tell: what is chosen, what is refused, which types are used."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from packtrain.config.load import load_run_config
from packtrain.errors import DeviceError
from packtrain.train.device import (
    check_precision,
    peak_rate,
    resolve_compile,
    resolve_device,
    resolve_lanes,
    resolve_precision,
)
from packtrain.train.run import train

MPS = torch.device("mps")


@pytest.fixture
def apple(monkeypatch):
    """As if this machine had an Apple GPU, under macOS 14."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (major, minor) <= (14, 0))


def settings(*words):
    return load_run_config("demo", ["train.device=mps", *words]).config


def test_without_one_the_error_says_what_to_write(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"finds no Apple GPU on this machine; write train\.device=cpu"):
        resolve_device("mps")


@pytest.mark.usefixtures("apple")
def test_what_auto_means():
    config = settings()
    assert resolve_device("mps") == MPS
    precision = resolve_precision(config.train, MPS)
    assert (precision.name, precision.dtype, precision.scaler.is_enabled()) == ("fp32", None, False)
    assert not resolve_compile(config.train, MPS)
    assert resolve_lanes(config, 8, MPS, is_alone=True, is_compiled=False) == 1
    assert peak_rate(MPS, precision, 1) is None
    # The tested way stays the default.
    assert resolve_device("auto").type != "mps"


@pytest.mark.usefixtures("apple")
def test_bf16_if_asked_for():
    config = settings("train.precision=bf16")
    check_precision(config.train, MPS)
    assert resolve_precision(config.train, MPS).dtype == torch.bfloat16


@pytest.mark.usefixtures("apple")
@pytest.mark.parametrize(
    ("word", "sentence"),
    [("train.precision=fp16", "needs loss scaling"), ("train.precision=fp8", "fp8 does not work on mps")],
)
def test_what_does_not_work_is_refused(word, sentence):
    with pytest.raises(DeviceError, match=sentence):
        check_precision(settings(word).train, MPS)


@pytest.mark.usefixtures("apple")
def test_what_needs_another_machine_is_refused(monkeypatch):
    with pytest.raises(DeviceError, match=r"train\.compile=true is not supported on Apple's GPUs"):
        resolve_compile(settings("train.compile=true").train, MPS)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: False)
    with pytest.raises(DeviceError, match="needs macOS 14 or newer"):
        check_precision(settings("train.precision=bf16").train, MPS)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match="several processes cannot share"):
        resolve_device("mps")


class Recorded(TorchDispatchMode):
    """Notes every operation whose result is float64, which Apple's GPUs do not have."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.found.add(str(function))
        return result


def test_a_step_computes_in_no_type_that_they_lack(dataset, tmp_path):
    words = [
        *("model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2", "model.vocab_size=512"),
        *("model.intermediate_size=64", "data.seq_len=32", "train.global_batch_tokens=128", "train.steps=2"),
        *("evaluate.every=0", "schedule.warmup_steps=0", "train.precision=fp32", f"data.dataset={dataset}"),
    ]
    with Recorded() as recorded:
        train(load_run_config("demo", words).config, tmp_path / "run", resume=False)
    assert recorded.found == set()

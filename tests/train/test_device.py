"""What `auto` means on a device; what a device cannot do is refused or warned of before anything is built."""

import platform

import pytest
import torch

from packtrain.config.optim import OptimConfig
from packtrain.config.train import TrainConfig
from packtrain.errors import DeviceError
from packtrain.parallel.ranks import Ranks
from packtrain.train import device
from packtrain.train.device import check_optimizer, check_precision, resolve_compile, resolve_precision
from packtrain.train.memory import count_recomputed
from packtrain.train.preflight import open_training_data
from packtrain.train.setup import build_parts
from tests.train.conftest import place

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """Makes torch report what CPU and GPU support; neither computes."""

    def say(*, cpu=(), gpu_has_bf16=True):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: "bf16" in cpu or "avx512" in cpu)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "bf16" in cpu)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: "fp16" in cpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: gpu_has_bf16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Old")

    return say


@pytest.mark.parametrize(
    ("cpu", "expected"), [((), "fp32"), (("fp16",), "fp32"), (("avx512",), "fp32"), (("bf16",), "bf16")]
)
def test_auto_on_a_cpu_is_bf16_where_it_has_units_for_it(machine, cpu, expected):
    machine(cpu=cpu)
    precision = resolve_precision(TrainConfig(), CPU)
    assert precision.name == expected and (precision.dtype is None) == (expected == "fp32")
    assert not precision.scaler.is_enabled()


# torch warns that there is no such GPU.
@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")
@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_on_a_gpu_is_bf16_or_fp16_with_a_loss_scale(machine, has_bf16):
    machine(gpu_has_bf16=has_bf16)
    precision = resolve_precision(TrainConfig(), GPU)
    assert precision.name == ("bf16" if has_bf16 else "fp16")
    assert precision.dtype == (torch.bfloat16 if has_bf16 else torch.float16)


def test_bf16_is_refused_by_a_gpu_that_would_emulate_it(machine):
    machine(gpu_has_bf16=False)
    with pytest.raises(DeviceError, match=r"NVIDIA Old does not compute bf16; write train\.precision=fp16"):
        check_precision(TrainConfig(precision="bf16"), GPU)
    machine(gpu_has_bf16=True)
    check_precision(TrainConfig(precision="bf16"), GPU)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_cpu_that_would_emulate_is_warned_of(machine, caplog, name):
    machine(cpu=(name,))
    resolve_precision(TrainConfig(precision=name), CPU)
    assert not caplog.text
    machine()
    resolve_precision(TrainConfig(precision=name), CPU)
    assert f"train.precision={name} is up to a hundred times slower on a CPU without units for it" in caplog.text


def test_a_gpu_without_triton_is_not_compiled_for_unless_asked(monkeypatch, caplog):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda _: None)
    assert resolve_compile(TrainConfig(), GPU) is False
    assert "the model is not compiled, so training is slower: compilation needs triton" in caplog.text
    with pytest.raises(DeviceError, match="needs triton, which is not installed"):
        resolve_compile(TrainConfig(compile=True), GPU)
    assert resolve_compile(TrainConfig(compile=False), GPU) is False and resolve_compile(TrainConfig(), CPU) is False


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        (
            "adamw8bit",
            "mps",
            "optim.name=adamw8bit works on CPUs and CUDA GPUs, and train.device is mps; write optim.name=adamw",
        ),
        ("adamw4bit", "cuda", "compiles its update on a GPU, which needs triton, and that is not installed"),
    ],
)
def test_an_optimizer_that_the_device_cannot_step_is_refused(monkeypatch, name, kind, sentence):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DeviceError, match=sentence):
        check_optimizer(OptimConfig(name=name), torch.device(kind))
    for fitting in ("adamw", "muon"):
        check_optimizer(OptimConfig(name=fitting), torch.device(kind))
    check_optimizer(OptimConfig(name=name), CPU)


def test_under_a_budget_as_many_blocks_as_it_takes_are_computed_again(tiny):
    config = tiny("train.activation_gb=0.0003", "train.micro_batch_size=4")
    assert 0 < (expected := count_recomputed(config, place(4))) < config.model.num_hidden_layers
    parts = build_parts(config, open_training_data(config), ranks=Ranks(), device=CPU, checkpoint=None)
    parts.loader.close()
    assert sum(block.is_recomputed for block in parts.model.model.layers) == expected

"""A deterministic run sets every switch that CUDA's kernels ask for, and leaves them as they were. No GPU is needed."""

import os

import pytest
import torch
import torch._inductor.config as inductor_config
import torch.utils.deterministic

from packtrain.config.train import TrainConfig
from packtrain.errors import ConfigError, DeviceError
from packtrain.train.numerics import choose_kernels_of_gpu

GPU = torch.device("cuda", 0)
STRICT = TrainConfig(deterministic=True)


def switches():
    return (
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        inductor_config.deterministic,
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "unset")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = switches()
    yield
    assert switches() == before


@pytest.mark.parametrize(("precision", "products"), [("fp32", "highest"), ("bf16", "high"), ("fp8", "high")])
def test_products_of_float32_are_exact_in_a_run_that_asks_for_them(precision, products):
    with choose_kernels_of_gpu(TrainConfig(precision=precision), GPU):
        assert switches() == (products, False, False, True, False)
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_deterministic_run_sets_every_switch():
    with choose_kernels_of_gpu(STRICT, GPU):
        assert switches() == ("high", True, False, False, True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_cpu_is_left_as_it_is():
    before = switches()
    with choose_kernels_of_gpu(STRICT, torch.device("cpu")):
        assert switches() == before


def test_what_has_no_such_kernel_is_one_sentence():
    said = "scatter_add_cuda_kernel does not have a deterministic implementation, but you set 'torch.use..."
    with pytest.raises(DeviceError, match=r"but scatter_add_cuda_kernel has no deterministic kernel on cuda:0; write"):
        with choose_kernels_of_gpu(STRICT, GPU):
            raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="something else"), choose_kernels_of_gpu(STRICT, GPU):
        raise RuntimeError("something else")


def test_cublas_must_be_told_before_it_starts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment before"):
        with choose_kernels_of_gpu(STRICT, GPU):
            pass
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with choose_kernels_of_gpu(STRICT, GPU):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"

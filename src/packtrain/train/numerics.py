"""Decides which of CUDA's kernels a run may use: rounded ones for float32, and ones whose sums depend on the order of threads."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, cast

import torch

from packtrain.config.train import TrainConfig
from packtrain.errors import ConfigError, DeviceError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# What torch says of an operation without a deterministic kernel.
_MISSING = "does not have a deterministic implementation"


@contextlib.contextmanager
def choose_kernels_of_gpu(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Sets torch's switches for the length of the block, which begins before the process uses its GPU.

    Does nothing except on CUDA: on a CPU, the same run has the same bits.

    float32 products are exact in a float32 run; in others the few that are left may use TF32, which is finer than their
    bf16. With train.deterministic, no kernel adds in the order in which threads arrive: cuBLAS gets a workspace of its own,
    the gradients of attention and of the embedding are summed in a fixed order, and the compiler measures no variants.
    An operation without such a kernel ends the run with a DeviceError.
    """
    if device.type != "cuda":
        yield
        return
    import torch._inductor.config as inductor_config
    import torch.utils.deterministic

    is_deterministic, memory = config.deterministic, cast("Any", torch.utils.deterministic)
    if is_deterministic and _WORKSPACE not in os.environ and torch.cuda.is_initialized():
        raise ConfigError(
            f"train.deterministic=true needs {_WORKSPACE}=:4096:8 in the environment before this process uses its GPU; set it "
            "and start again"
        )
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    was_filling = memory.fill_uninitialized_memory
    # torch 2.9 does not have it.
    was_strict = getattr(inductor_config, "deterministic", None)
    torch.set_float32_matmul_precision("highest" if config.precision == "fp32" else "high")
    if is_deterministic:
        os.environ.setdefault(_WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
        if was_strict is not None:
            inductor_config.deterministic = True
    try:
        yield
    except RuntimeError as error:
        if not (is_deterministic and _MISSING in str(error)):
            raise
        what = str(error).partition(_MISSING)[0].strip()
        raise DeviceError(
            f"train.deterministic=true, but {what} has no deterministic kernel on {device}; write train.deterministic=false"
        ) from error
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = was_filling
        if was_strict is not None:
            inductor_config.deterministic = was_strict

"""How fast training steps are, how much memory they take, and which kernels their time is spent in."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from benchmarks.contenders import transformers
from benchmarks.gpu.cases import read_preset
from benchmarks.gpu.timing import seconds
from packtrain.config.model import ModelConfig
from packtrain.config.run import RunConfig
from packtrain.data.feed.loader import Batch, Rows
from packtrain.data.feed.position import LoaderState
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.fp8 import use_fp8
from packtrain.model.init import build
from packtrain.model.llama import Llama
from packtrain.model.roles import roles
from packtrain.optim.build import build_optimizer
from packtrain.plan.activations import choose_kernels
from packtrain.plan.memory import memory, peak_bytes
from packtrain.plan.parameters import flops_per_token
from packtrain.train.compilation import compile_model
from packtrain.train.device import check_precision, peak_rate, resolve_precision
from packtrain.train.monitor import peak_memory_bytes
from packtrain.train.numerics import choose_kernels_of_gpu
from packtrain.train.step import Placement, train_step

Figures = dict[str, Any]
# The first compiles; the second reuses the memory that the first took. Two micro-batches each are enough for that.
_WARM_STEPS, _WARM_MICRO_BATCHES = 2, 2
_COSTLIEST = 40


class Trained(NamedTuple):
    """A model in training, as `packtrain train` makes it on one device."""

    model: Llama
    optimizer: Optimizer
    placement: Placement
    grad_clip: float

    def step(self, batch: Batch, before_update: Callable[[], None] | None = None) -> float:
        """One step; returns its loss."""
        return train_step(
            self.model,
            self.optimizer,
            batch,
            self.placement,
            grad_clip=self.grad_clip,
            before_update=before_update,
        ).loss


def step(task: Figures, device: torch.device) -> Figures:
    """Time training steps of one contender, over all micro-batches of a global batch; a step waits for the device once."""
    config = read_config(task, device)
    seq_len, rows = config.data.seq_len, task["rows"]
    micro_batches = max(1, (task["step_tokens"] or config.train.global_batch_tokens) // (rows * seq_len))
    tokens = micro_batches * rows * seq_len
    batch = make_batch(config.model, micro_batches * rows, seq_len, seed=0, device=device)
    warm = make_batch(config.model, min(micro_batches, _WARM_MICRO_BATCHES) * rows, seq_len, seed=0, device=device)
    with choose_kernels_of_gpu(config.train, device):
        make = _STEPS[task["contender"]](task, config, device)
        one_step = make(warm)
        warm_s = [seconds(one_step, device) for _ in range(_WARM_STEPS)]
        one_step = make(batch)
        losses: list[float] = []
        times = [seconds(lambda: losses.append(one_step()), device) for _ in range(task["steps"])]
    taken = statistics.median(times)
    flops = tokens * flops_per_token(config.model, seq_len) / taken
    precision = resolve_precision(config.train, device)
    peak = peak_rate(device, precision, 1)
    computed = None
    if task["contender"] == "packtrain" and device.type == "cuda":
        kernels = choose_kernels("cuda", task["compiled"])
        parts = memory(config.model, rows, seq_len, task["optimizer"], precision.name, "cuda", kernels=kernels)
        computed = peak_bytes(parts, accumulates=micro_batches > 1) / 1e9
    return {
        "micro_batches": micro_batches,
        "tokens_per_s": tokens / taken,
        "step_s": taken,
        "steps_s": times,
        "first_step_s": warm_s[0],
        "flops": flops,
        "mfu": flops / peak if peak else None,
        "peak_gb": peak_memory_bytes(device) / 1e9,
        "computed_gb": computed,
        # Less with each step, as the batch stays the same.
        "losses": losses,
    }


def profile(task: Figures, device: torch.device) -> Figures:
    """Milliseconds and launches of the costliest kernels of one step with one micro-batch, and of all of them."""
    config = read_config(task, device)
    batch = make_batch(config.model, task["rows"], config.data.seq_len, seed=0, device=device)
    activities, kind, own = [torch.profiler.ProfilerActivity.CPU], torch.autograd.DeviceType.CPU, "self_cpu_time_total"
    if device.type == "cuda":
        # Without the CPU's side, which would lengthen the step. A kernel's time then stands under its own name alone.
        activities, kind, own = (
            [torch.profiler.ProfilerActivity.CUDA],
            torch.autograd.DeviceType.CUDA,
            "self_device_time_total",
        )
    with choose_kernels_of_gpu(config.train, device):
        trained = make_trained(task, config, device)
        for _ in range(_WARM_STEPS):
            trained.step(batch)
        step_s = seconds(lambda: trained.step(batch), device)
        with torch.profiler.profile(activities=activities) as profiler:
            seconds(lambda: trained.step(batch), device)
    found = [event for event in profiler.key_averages() if event.device_type == kind and getattr(event, own) > 0]
    found.sort(key=lambda event: -getattr(event, own))
    return {
        "step_ms": step_s * 1e3,
        "kernels_ms": sum(getattr(event, own) for event in found) / 1e3,
        "launches": sum(event.count for event in found),
        "costliest": [
            {"kernel": event.key, "ms": getattr(event, own) / 1e3, "launches": event.count}
            for event in found[:_COSTLIEST]
        ],
    }


def read_config(task: Figures, device: torch.device) -> RunConfig:
    """The preset with the task's optimizer and precision. Raises DeviceError if the device does not compute in it."""
    settings = [f"optim.name={task['optimizer']}", f"train.precision={task['precision']}"]
    config = read_preset(task["preset"], settings)
    check_precision(config.train, device)
    return config


def make_model(config: ModelConfig, device: torch.device, precision: str, *, compiled: bool) -> Llama:
    """The model with the weights of seed 0, as `packtrain train` makes it."""
    model = build(config, seed=0, device=device)
    if precision == "fp8":
        use_fp8(model)
    elif device.type == "cpu":
        use_cpu_kernels(model)
    if compiled:
        compile_model(model)
    return model


def make_trained(task: Figures, config: RunConfig, device: torch.device) -> Trained:
    """The task's model and optimizer."""
    model = make_model(config.model, device, task["precision"], compiled=task["compiled"])
    precision = resolve_precision(config.train, device)
    optimizer = build_optimizer(config.optim, dict(model.named_parameters()), roles(model), precision.dtype)
    placement = Placement(device, precision, task["rows"], is_compiled=task["compiled"])
    return Trained(model, optimizer, placement, config.train.grad_clip)


def make_batch(
    config: ModelConfig, rows: int, seq_len: int, seed: int, device: torch.device, *, documents: int = 0
) -> Batch:
    """Random rows, page-locked for a GPU as the loader's are; each of that many documents, if their boundaries count."""
    tokens = torch.randint(config.vocab_size, (rows, seq_len + 1), generator=torch.Generator().manual_seed(seed))
    parts = [tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()]
    if documents:
        # A document more than the last row's begins a little later in each row.
        at = (torch.arange(seq_len) + 7 * torch.arange(rows)[:, None]) * documents // seq_len
        starts = torch.cat([torch.ones(rows, 1, dtype=torch.bool), at[:, 1:] != at[:, :-1]], dim=1)
        first = torch.where(starts, torch.arange(seq_len), 0).cummax(dim=1).values
        parts += [at.int(), torch.arange(seq_len) - first]
    if device.type == "cuda":
        parts = [part.pin_memory() for part in parts]
    return Batch(Rows(*parts), LoaderState("", "", 0, 0, 0), rows * seq_len)


def _packtrain_steps(task: Figures, config: RunConfig, device: torch.device) -> Callable[[Batch], Callable[[], float]]:
    trained = make_trained(task, config, device)
    return lambda batch: lambda: trained.step(batch)


def _transformers_steps(
    task: Figures, config: RunConfig, device: torch.device
) -> Callable[[Batch], Callable[[], float]]:
    shape = config.model.model_dump(mode="json") | {
        "num_key_value_heads": config.model.kv_heads,
        "seq_len": config.data.seq_len,
        "rows": task["rows"],
        "device": str(device),
        "precision": task["precision"],
        "lr": config.optim.lr,
        "weight_decay": config.optim.weight_decay,
        "betas": config.optim.betas,
        "grad_clip": config.train.grad_clip,
    }
    on = transformers.prepare(shape, compiled=task["compiled"])
    return lambda batch: on(batch.rows.inputs_BT)


_STEPS = {"packtrain": _packtrain_steps, "transformers": _transformers_steps}

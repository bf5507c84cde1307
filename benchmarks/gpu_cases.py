"""One measurement of `benchmarks.gpu`, in its own process: reads a JSON task, prints a JSON line of figures."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import transformers
from packtrain.config.load import load_run_config
from packtrain.config.model import ModelConfig
from packtrain.config.run import RunConfig
from packtrain.config.train import TrainConfig
from packtrain.data.feed.loader import Batch, Rows
from packtrain.data.feed.position import LoaderState
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.fp8 import use_fp8, what_is_missing
from packtrain.model.init import build
from packtrain.model.roles import roles
from packtrain.optim.build import build_optimizer
from packtrain.plan.devices import peak_flops
from packtrain.plan.memory import memory, peak_bytes
from packtrain.plan.parameters import flops_per_token
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.manifest import hardware
from packtrain.train.device import check_precision, peak_rate, resolve_compile, resolve_precision
from packtrain.train.monitor import peak_memory_bytes
from packtrain.train.step import Placement, train_step

Figures = dict[str, Any]
# Largest allowed relative difference from float32 on the CPU. float32 sums differ in order; bf16 has eight bits, fp8 three or four.
_BOUNDS = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2, "fp8": 3e-1}
# The first compiles; the second reuses the memory that the first took.
_WARM_STEPS = 2


def machine(_task: Figures, device: torch.device) -> Figures:
    """The device, its training precision, and its rate for matrix products in that precision."""
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else "CPU"
    precision = resolve_precision(TrainConfig(), device)
    dtype, size = precision.dtype or torch.float32, 8192 if is_cuda else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = _seconds(lambda: a @ b, device, 20)
    peak = peak_flops(name)
    return {
        "device": name,
        "memory_gb": hardware(device)["memory_bytes"] / 1e9,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "precision": precision.name,
        "without_fp8": what_is_missing(device),
        "matmul": f"{dtype}".removeprefix("torch.") + f", {size} cubed",
        "matmul_tflops": 2 * size**3 / statistics.median(seconds) / 1e12,
        "peak_tflops": peak / 1e12 if peak else None,
    }


def gradients(_task: Figures, device: torch.device) -> Figures:
    """Relative errors of a small model's loss and gradients on the device, in each of its precisions and compiled as in
    training, against float32 on the CPU."""
    config = load_run_config("demo").config.model
    batch = _batch(config, 4, 128, seed=1)
    cpu = torch.device("cpu")
    loss, gradient = _loss_and_gradients(config, batch, cpu, "fp32", compiled=False)
    trained = resolve_precision(TrainConfig(), device).name
    names = dict.fromkeys(["fp32", trained, *([] if what_is_missing(device) else ["fp8"])])
    figures: Figures = {}
    wrong = []
    for name in names:
        compiled = resolve_compile(TrainConfig(), device)
        other_loss, other_gradient = _loss_and_gradients(config, batch, device, name, compiled=compiled)
        errors = {
            f"{name} loss": abs(other_loss - loss) / loss,
            f"{name} gradient": float((other_gradient - gradient).norm() / gradient.norm()),
        }
        figures |= errors
        wrong += [what for what, error in errors.items() if not error < _BOUNDS[name]]
    return figures | ({"failed": f"{', '.join(wrong)} beyond the bounds {_BOUNDS}"} if wrong else {})


def _loss_and_gradients(
    config: ModelConfig, batch: Batch, device: torch.device, precision: str, *, compiled: bool
) -> tuple[float, torch.Tensor]:
    model, trained = _model(config, device, precision, compiled=compiled)
    with resolve_precision(TrainConfig(precision=precision), device).autocast():
        loss = trained(batch.rows.inputs_BT.to(device), batch.rows.targets_BT.to(device)) / batch.num_targets
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])


def _model(
    config: ModelConfig, device: torch.device, precision: str, *, compiled: bool
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The model with the weights, and the callable for the forward pass, both as `packtrain train` makes them."""
    model = build(config, seed=0, device=device)
    if precision == "fp8":
        use_fp8(model)
    elif device.type == "cpu":
        use_cpu_kernels(model)
    return model, torch.compile(model) if compiled else model  # type: ignore[return-value]


def resume(_task: Figures, device: torch.device) -> Figures:
    """Compare twelve steps with six, a checkpoint, and six more by `--resume`: losses and checkpoint must be the same.

    On a CPU they must be bitwise the same. A GPU may sum in another order each time; then losses must be within a thousandth.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        _packtrain("prepare", "stdlib", "source.max_documents=300", "--out", str(data))
        settings = [f"data.dataset={data}", f"train.device={device.type}", "evaluate.every=0", "log.every=1"]
        settings += ["train.global_batch_tokens=4096", "checkpoint.every=6", "schedule.warmup_steps=2"]
        losses, saved = [], []
        for name, ends in (("whole", [12]), ("parts", [6, 12])):
            for steps in ends:
                run = ["--run", str(Path(folder) / name), "--resume"]
                _packtrain("train", "demo", *settings, f"train.steps={steps}", "schedule.name=constant", *run)
            layout = RunLayout(Path(folder) / name)
            lines = layout.metrics.read_text().splitlines()
            losses.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
            found = checkpoint.find_newest(layout)
            assert found is not None
            saved.append(found.read_whole())
        assert saved[0].keys() == saved[1].keys() and len(losses[0]) == len(losses[1]) == 12
        difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
        figures = {
            "steps": len(losses[0]),
            "losses_differ_by": difference,
            "checkpoints_are_bitwise": all(
                tensor.numpy().tobytes() == saved[1][name].numpy().tobytes() for name, tensor in saved[0].items()
            ),
        }
        return figures if difference < 1e-3 else {**figures, "failed": f"losses differ by up to {difference}"}


def _packtrain(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "packtrain", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"packtrain {arguments[0]}: {done.stderr.strip().splitlines()[-1]}")


def step(task: Figures, device: torch.device) -> Figures:
    """Time training steps of one contender, over all micro-batches of a global batch; a step waits for the device once."""
    settings = [f"optim.name={task['optimizer']}", f"train.precision={task['precision']}"]
    config = load_run_config(task["preset"], settings).config
    check_precision(config.train, device)
    seq_len, rows = config.data.seq_len, task["rows"]
    micro_batches = max(1, (task["step_tokens"] or config.train.global_batch_tokens) // (rows * seq_len))
    tokens = micro_batches * rows * seq_len
    batch = _batch(config.model, micro_batches * rows, seq_len, seed=0)
    one_step = _STEPS[task["contender"]](task, config, batch, device)
    losses: list[float] = []
    times = [_seconds(lambda: losses.append(one_step()), device, 1)[0] for _ in range(_WARM_STEPS + task["steps"])]
    seconds = statistics.median(times[_WARM_STEPS:])
    flops = tokens * flops_per_token(config.model, seq_len) / seconds
    precision = resolve_precision(config.train, device)
    peak = peak_rate(device, precision, 1)
    computed = None
    if task["contender"] == "packtrain" and device.type == "cuda":
        parts = memory(config.model, rows, seq_len, task["optimizer"], precision.name, "cuda")
        computed = peak_bytes(parts, accumulates=micro_batches > 1) / 1e9
    return {
        "micro_batches": micro_batches,
        "tokens_per_s": tokens / seconds,
        "step_s": seconds,
        "first_step_s": times[0],
        "flops": flops,
        "mfu": flops / peak if peak else None,
        "peak_gb": peak_memory_bytes(device) / 1e9,
        "computed_gb": computed,
        # ln(vocabulary) at first, then less with each step, as the batch stays the same.
        "losses": losses,
    }


def _packtrain_step(task: Figures, config: RunConfig, batch: Batch, device: torch.device) -> Callable[[], float]:
    model, trained = _model(config.model, device, task["precision"], compiled=task["compiled"])
    precision = resolve_precision(config.train, device)
    optimizer = build_optimizer(config.optim, dict(model.named_parameters()), roles(model), precision.dtype)
    placement = Placement(device, precision, task["rows"])
    return lambda: train_step(trained, optimizer, batch, placement, grad_clip=config.train.grad_clip).loss


def _transformers_step(task: Figures, config: RunConfig, batch: Batch, device: torch.device) -> Callable[[], float]:
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
    tokens = torch.cat([batch.rows.inputs_BT, batch.rows.targets_BT[:, -1:]], dim=1)
    return transformers.build(shape, tokens, compiled=task["compiled"])


_STEPS = {"packtrain": _packtrain_step, "transformers": _transformers_step}


def _batch(config: ModelConfig, rows: int, seq_len: int, seed: int) -> Batch:
    tokens = torch.randint(config.vocab_size, (rows, seq_len + 1), generator=torch.Generator().manual_seed(seed))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return Batch(Rows(inputs, targets), LoaderState("", "", 0, 0, 0), targets.numel())


def _seconds(call: Callable[[], Any], device: torch.device, times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_CASES = {"machine": machine, "gradients": gradients, "resume": resume, "step": step}

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given["device"] == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; --device cpu shows that the benchmark runs")
    print(json.dumps(_CASES[given["case"]](given, torch.device(given["device"]))))

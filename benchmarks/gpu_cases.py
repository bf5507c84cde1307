"""One measurement of `benchmarks.gpu`, in a process of its own: a JSON task in, a JSON line of figures out."""

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

from packtrain.config.load import load_run_config
from packtrain.config.model import ModelConfig
from packtrain.config.train import TrainConfig
from packtrain.data.loader import Batch, LoaderState
from packtrain.model.devices import peak_flops
from packtrain.model.init import build
from packtrain.model.roles import roles
from packtrain.model.size import flops_per_token
from packtrain.optim.build import build_optimizer
from packtrain.parallel.ranks import Ranks
from packtrain.train.device import resolve_precision
from packtrain.train.step import Precision, train_step

_WARM_STEPS = 3
_LR = 3e-4


def machine(_task: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The device, and its own rate for matrix products in the precision that training takes there."""
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else "CPU"
    dtype, size = (torch.bfloat16, 8192) if is_cuda else (torch.float32, 1024)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = _seconds(lambda: a @ b, device, 20)
    peak = peak_flops(name)
    return {
        "device": name,
        "memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9 if is_cuda else 0.0,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "matmul": f"{dtype}".removeprefix("torch.") + f", {size} cubed",
        "matmul_tflops": 2 * size**3 / statistics.median(seconds) / 1e12,
        "peak_tflops": peak / 1e12 if peak else None,
    }


def gradients(_task: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Loss and gradients of a small model on the device against float32 on the CPU, in float32 and as it trains."""
    config = load_run_config("demo").config.model
    batch = _batch(config, 4, 128, seed=1)
    reference = _loss_and_gradients(config, batch, torch.device("cpu"), None)
    _, precision = resolve_precision(TrainConfig(), device)
    figures: dict[str, Any] = {}
    # float32 sums differ in their order; bf16 has eight bits.
    for name, dtype, bound in (("float32", None, 1e-3), ("as trained", precision.dtype, 5e-2)):
        loss, gradient = _loss_and_gradients(config, batch, device, dtype)
        loss_error = abs(loss - reference[0]) / reference[0]
        gradient_error = float((gradient - reference[1]).norm() / reference[1].norm())
        figures[name] = {"loss": loss_error, "gradient": gradient_error}
        if not (loss_error < bound and gradient_error < bound):
            return {**figures, "failed": f"{name} differs by more than {bound}"}
    return figures


def _loss_and_gradients(
    config: ModelConfig, batch: Batch, device: torch.device, dtype: torch.dtype | None
) -> tuple[float, torch.Tensor]:
    model = build(config, seed=0, device=device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        loss = model(batch.inputs_BT.to(device), batch.targets_BT.to(device)) / batch.num_targets
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])


def resume(_task: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Twelve steps at once against six, a checkpoint, and six more by `--resume`: the same losses, to the last bit?"""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        _packtrain("prepare", "stdlib", "source.max_documents=300", "--out", str(data))
        settings = [f"data.dataset={data}", f"train.device={device.type}", "evaluate.every=0", "log.every=1"]
        settings += ["train.global_batch_tokens=4096", "checkpoint.every=6"]
        losses = []
        for name, ends in (("whole", [12]), ("parts", [6, 12])):
            for steps in ends:
                run = ["--run", str(Path(folder) / name), "--resume"]
                _packtrain("train", "demo", *settings, f"train.steps={steps}", "schedule.name=constant", *run)
            lines = (Path(folder) / name / "metrics.jsonl").read_text().splitlines()
            losses.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
        figures = {"steps": len(losses[0]), "is_bitwise": losses[0] == losses[1]}
        difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
        return figures if difference < 1e-3 else {**figures, "failed": f"losses differ by up to {difference}"}


def _packtrain(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "packtrain", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"packtrain {arguments[0]}: {done.stderr.strip().splitlines()[-1]}")


def step(task: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Training steps of one contender; a step waits for the device once, as in training."""
    config = load_run_config(task["preset"]).config
    seq_len = task["seq_len"]
    batch = _batch(config.model, task["rows"], seq_len, seed=0)
    _, precision = resolve_precision(config.train, device)
    one_step = {"packtrain": _packtrain_step, "transformers": _transformers_step}[task["contender"]](
        task, config.model, batch, precision, device
    )
    first = _seconds(one_step, device, 1)[0]
    _seconds(one_step, device, _WARM_STEPS - 1)
    seconds = statistics.median(_seconds(one_step, device, task["steps"]))
    flops = task["rows"] * seq_len * flops_per_token(config.model, seq_len) / seconds
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "tokens_per_s": task["rows"] * seq_len / seconds,
        "step_s": seconds,
        "first_step_s": first,
        "flops": flops,
        "mfu": flops / peak if peak else None,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0,
        "loss": one_step(),
    }


def _packtrain_step(
    task: dict[str, Any], config: ModelConfig, batch: Batch, precision: Precision, device: torch.device
) -> Callable[[], float]:
    model = build(config, seed=0, device=device)
    settings = load_run_config(task["preset"], [f"optim.name={task['optimizer']}"]).config.optim
    optimizer = build_optimizer(settings, dict(model.named_parameters()), roles(model))
    trained: torch.nn.Module = torch.compile(model) if task["compiled"] else model  # type: ignore[assignment]
    fixed = {"micro_batch_size": task["rows"], "grad_clip": 1.0, "precision": precision, "ranks": Ranks()}
    return lambda: train_step(trained, optimizer, batch, device=device, **fixed).loss


def _transformers_step(
    task: dict[str, Any], config: ModelConfig, batch: Batch, precision: Precision, device: torch.device
) -> Callable[[], float]:
    from transformers import LlamaConfig, LlamaForCausalLM

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    sizes = {name: getattr(config, name) for name in (*names, "rms_norm_eps", "tie_word_embeddings")}
    model = LlamaForCausalLM(
        LlamaConfig(**sizes, num_key_value_heads=config.kv_heads, attn_implementation="sdpa", use_cache=False)
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if task["compiled"] else model

    def one_step() -> float:
        inputs = batch.inputs_BT.to(device, non_blocking=True)
        with precision.autocast():
            loss = forward(input_ids=inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return one_step


def _batch(config: ModelConfig, rows: int, seq_len: int, seed: int) -> Batch:
    tokens = torch.randint(config.vocab_size, (rows, seq_len + 1), generator=torch.Generator().manual_seed(seed))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return Batch(inputs, targets, None, None, LoaderState("", "", 0, 0, 0), targets.numel())


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


CASES = {"machine": machine, "gradients": gradients, "resume": resume, "step": step}

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given["device"] == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; --device cpu shows that the benchmark runs")
    print(json.dumps(CASES[given["case"]](given, torch.device(given["device"]))))

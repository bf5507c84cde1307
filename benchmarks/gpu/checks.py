"""Whether what a device computes is right: gradients, a masked step, a checkpoint saved during training, and a resumed run."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import read_preset
from benchmarks.gpu.steps import make_batch, make_model, make_trained, read_config
from benchmarks.gpu.timing import seconds, wait
from packtrain.config.train import TrainConfig
from packtrain.data.feed.loader import Batch
from packtrain.model.fp8 import what_is_missing
from packtrain.parallel.ranks import Ranks
from packtrain.runs import checkpoint as checkpoints
from packtrain.runs.layout import RunLayout
from packtrain.runs.retention import Retention
from packtrain.runs.writer import CheckpointWriter
from packtrain.train.device import resolve_compile, resolve_precision
from packtrain.train.numerics import choose_kernels_of_gpu
from packtrain.train.state import collect

Figures = dict[str, Any]
# Largest allowed relative difference from float32 on the CPU. float32 sums differ in order; bf16 has eight bits, fp8 three or four.
_BOUNDS = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2, "fp8": 3e-1}
_SAVES = 2


def gradients(_task: Figures, device: torch.device) -> Figures:
    """Relative errors of a small model's loss and gradients on the device, in each of its precisions and compiled as in
    training, against float32 on the CPU."""
    config = read_preset("demo").model
    batch = make_batch(config, 4, 128, seed=1, device=torch.device("cpu"))
    loss, gradient = _loss_and_gradients(batch, torch.device("cpu"), "fp32", compiled=False)
    errors: Figures = {}
    wrong = []
    for name in _precisions(device):
        compiled = resolve_compile(TrainConfig(), device)
        other_loss, other_gradient = _loss_and_gradients(batch, device, name, compiled=compiled)
        of_name = {
            f"{name} loss": abs(other_loss - loss) / loss,
            f"{name} gradient": float((other_gradient - gradient).norm() / gradient.norm()),
        }
        errors |= of_name
        wrong += [what for what, error in of_name.items() if not error < _BOUNDS[name]]
    return errors | _verdict(wrong)


def documents(_task: Figures, device: torch.device) -> Figures:
    """Relative errors of a small model's loss and gradients with attention that stays within documents, as above."""
    config = read_preset("demo").model
    batch = make_batch(config, 4, 256, seed=2, device=torch.device("cpu"), documents=3)
    loss, gradient = _loss_and_gradients(batch, torch.device("cpu"), "fp32", compiled=False)
    name, compiled = resolve_precision(TrainConfig(), device).name, resolve_compile(TrainConfig(), device)
    other_loss, other_gradient = _loss_and_gradients(batch, device, name, compiled=compiled)
    unmasked, _ = _loss_and_gradients(batch, device, name, compiled=compiled, is_masked=False)
    errors = {
        f"{name} loss": abs(other_loss - loss) / loss,
        f"{name} gradient": float((other_gradient - gradient).norm() / gradient.norm()),
    }
    wrong = [what for what, error in errors.items() if not error < _BOUNDS[name]]
    return errors | {"loss without the mask differs by": abs(unmasked - other_loss) / loss} | _verdict(wrong)


def checkpoint(task: Figures, device: torch.device) -> Figures:
    """Save while training continues, twice: the first save also takes its memory. Each is held against a copy made before it.

    A stall is how much longer the step that begins with the save takes than the median of plain ones.
    """
    config = read_config(task, device)
    batch = make_batch(config.model, task["rows"], config.data.seq_len, seed=0, device=device)
    figures: Figures = {}
    with (
        choose_kernels_of_gpu(config.train, device),
        tempfile.TemporaryDirectory(dir=task["folder"]) as folder,
        CheckpointWriter(RunLayout(Path(folder)), Ranks(), Retention(newest=1)) as writer,
    ):
        trained = make_trained(task, config, device)
        trained.step(batch)
        plain_s = statistics.median(seconds(lambda: trained.step(batch), device) for _ in range(3))
        figures |= {"plain step s": plain_s}
        for number in range(1, _SAVES + 1):
            parts, numbers = collect(trained.model, trained.optimizer, Ranks())
            copies = {name: part.tensor.detach().to("cpu", copy=True) for name, part in parts.items()}
            wait(device)
            start = time.perf_counter()
            writer.save(parts, {"step": number, "optimizer_numbers": numbers})
            trained.step(batch, writer.wait_free)
            wait(device)
            figures[f"stall of save {number} s"] = time.perf_counter() - start - plain_s
            writer.wait()
            figures[f"save {number} written after s"] = time.perf_counter() - start
            found = checkpoints.find_newest(RunLayout(Path(folder)))
            assert found is not None
            saved = found.read_whole()
            same = saved.keys() == copies.keys() and all(_is_bitwise(saved[name], copies[name]) for name in copies)
            figures |= {"GB": sum(copy.nbytes for copy in copies.values()) / 1e9, f"save {number} is bitwise": same}
            if not same:
                return figures | {"failed": f"save {number} differs from the copy that was made before it"}
    return figures


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
                length = f"train.steps={steps}"
                longer = [length] if steps == ends[0] else ["--change", length]
                _packtrain("train", "demo", *settings, "schedule.name=constant", *longer, *run)
            layout = RunLayout(Path(folder) / name)
            lines = layout.metrics.read_text().splitlines()
            losses.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
            found = checkpoints.find_newest(layout)
            assert found is not None
            saved.append(found.read_whole())
    assert saved[0].keys() == saved[1].keys() and len(losses[0]) == len(losses[1]) == 12
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    is_bitwise = all(_is_bitwise(tensor, saved[1][name]) for name, tensor in saved[0].items())
    figures = {"steps": 12, "losses_differ_by": difference, "checkpoints_are_bitwise": is_bitwise}
    if device.type == "cpu" and not is_bitwise:
        return {**figures, "failed": "the checkpoints differ"}
    return figures if difference < 1e-3 else {**figures, "failed": f"losses differ by up to {difference}"}


def _precisions(device: torch.device) -> list[str]:
    trained = resolve_precision(TrainConfig(), device).name
    return list(dict.fromkeys(["fp32", trained, *([] if what_is_missing(device) else ["fp8"])]))


def _verdict(wrong: list[str]) -> Figures:
    return {"failed": f"{', '.join(wrong)} beyond the bounds {_BOUNDS}"} if wrong else {}


def _is_bitwise(a: torch.Tensor, b: torch.Tensor) -> bool:
    same_form = a.shape == b.shape and a.dtype == b.dtype
    return same_form and torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


def _loss_and_gradients(
    batch: Batch, device: torch.device, precision: str, *, compiled: bool, is_masked: bool = True
) -> tuple[float, torch.Tensor]:
    model = make_model(read_preset("demo").model, device, precision, compiled=compiled)
    config, rows = TrainConfig(precision=precision), batch.rows.to(device)
    segments = {"segments_BT": rows.segments_BT, "positions_BT": rows.positions_BT} if is_masked else {}
    with choose_kernels_of_gpu(config, device):
        with resolve_precision(config, device).autocast():
            loss = model(rows.inputs_BT, rows.targets_BT, **segments) / batch.num_targets
        loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])


def _packtrain(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "packtrain", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"packtrain {arguments[0]}: {last}")

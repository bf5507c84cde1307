"""Evaluation on the CPU in float32: rows per second and peak memory beside transformers, and tasks beside the harness's own backend.

    python -m benchmarks.evaluate --shape 15m --rounds 4
    python -m benchmarks.evaluate --shape 15m --tokenizer FOLDER --task-files FOLDER --tasks piqa_local copa_local --limit 200

Weights are random and the same for both: time and memory do not depend on them. Rows: each contender has its own process, so that
its peak memory is its own, and they take turns. transformers computes what its users do: `model(input_ids, labels=...)`, logits
of every position and their cross-entropy. packtrain gives the loss of every single token. Both get the same rows at a time.

Tasks: both backends are in one process and take turns; the time is that of the whole task without reading its data: building the
requests, encoding, scoring and counting. `--batch-sizes` are those of the Hugging Face backend, and its best counts.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Preset, rows at a time, tokens per row.
SHAPES = {"15m": ("llama2-15m", 8, 256), "110m": ("llama2-110m", 2, 1024)}
CONTENDERS = ("packtrain", "transformers")
_PASSES_PER_TURN = 2


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a line for each, and return what `--json` writes."""
    options = _parser().parse_args(arguments)
    report: dict[str, Any] = {"shape": options.shape, "threads": options.threads}
    with tempfile.TemporaryDirectory(prefix="packtrain-evaluate-") as folder:
        _write_model(Path(folder), options)
        if not options.tasks:
            report["rows"] = _measure_rows(Path(folder), options)
        else:
            environment = _environment(options)
            words = json.dumps(_task_options(Path(folder), options))
            command = [sys.executable, "-c", f"from benchmarks.evaluate import race_tasks; race_tasks({words!r})"]
            child = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            report["tasks"] = json.loads(child.stdout.splitlines()[-1])
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="15m")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each contender, after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer.json of the preset's vocabulary")
    parser.add_argument("--tasks", nargs="*", default=[], help="measure these tasks instead of rows")
    parser.add_argument("--task-files", type=Path, help="a folder of task files")
    parser.add_argument("--limit", type=int, help="questions of each task")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="of the Hugging Face backend")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def _write_model(folder: Path, options: argparse.Namespace) -> None:
    """A Hugging Face folder of the shape, as `packtrain export` writes it."""
    import safetensors.torch

    from packtrain.config.load import load_run_config
    from packtrain.data.tokens.tokenizer import load_tokenizer
    from packtrain.export.huggingface import model_config, tokenizer_config, tokenizer_json
    from packtrain.model.init import build

    preset, _, seq_len = SHAPES[options.shape]
    config = load_run_config(preset).config.model
    if options.tokenizer is None:
        _write_byte_tokenizer(folder / "bytes")
    tokenizer = load_tokenizer(options.tokenizer or folder / "bytes")
    weights = {name: p.detach().contiguous() for name, p in build(config, seed=0).named_parameters()}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    files = {
        "config.json": model_config(config, tokenizer, config.max_position_embeddings or seq_len, "float32"),
        "tokenizer.json": tokenizer_json(tokenizer, tokenizer.bos_id is not None),
        "tokenizer_config.json": tokenizer_config(tokenizer, tokenizer.bos_id is not None, seq_len),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def _write_byte_tokenizer(folder: Path) -> None:
    """A token for each byte; rows of random ids need no better one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))


def _environment(options: argparse.Namespace) -> dict[str, str]:
    return os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(options.threads)}


def _measure_rows(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    _, rows, seq_len = SHAPES[options.shape]
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    with contextlib.ExitStack() as stack:
        children = {}
        for name in CONTENDERS:
            words = json.dumps([name, str(folder), rows, seq_len])
            command = [sys.executable, "-c", f"from benchmarks.evaluate import score; score(*{words})"]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            children[name] = stack.enter_context(subprocess.Popen(command, env=_environment(options), **pipes))
        for turn in range(1 + options.rounds):
            for name in CONTENDERS if turn % 2 else CONTENDERS[::-1]:
                child = children[name]
                child.stdin.write("go\n")
                child.stdin.flush()
                lines[name].append(json.loads(child.stdout.readline()))
        for child in children.values():
            child.stdin.close()
    per_turn = rows * _PASSES_PER_TURN
    figures = {
        name: {
            "rows_per_s": per_turn / statistics.median(line["seconds"] for line in found[1:]),
            "seconds": [line["seconds"] for line in found[1:]],
            "processor_seconds": [line["processor_seconds"] for line in found[1:]],
            "peak_bytes": found[-1]["peak_bytes"],
            "base_bytes": found[-1]["base_bytes"],
            "loss": found[-1]["loss"],
        }
        for name, found in lines.items()
    }
    ours, theirs = (figures[name] for name in CONTENDERS)
    # Turns next to each other, so that a machine that slows down slows both.
    turns = list(zip(lines["packtrain"], lines["transformers"], strict=True))[1:]
    ratios = {
        "speed": statistics.median(b["seconds"] / a["seconds"] for a, b in turns),
        "processor": statistics.median(b["processor_seconds"] / a["processor_seconds"] for a, b in turns),
        "memory": ours["peak_bytes"] / theirs["peak_bytes"],
    }
    return {"rows_at_a_time": rows, "seq_len": seq_len, "contenders": figures, "ratios": ratios}


def score(name: str, folder: str, rows: int, seq_len: int) -> None:
    """In the child process: score the same rows each time a line comes in, and print one JSON line."""
    base = _peak_bytes()
    work = _ours(folder, rows, seq_len) if name == "packtrain" else _theirs(folder, rows, seq_len)
    for _ in sys.stdin:
        start, processor = time.perf_counter(), time.process_time()
        loss = work()
        line = {
            "seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time() - processor,
            "loss": loss,
            "peak_bytes": _peak_bytes(),
            "base_bytes": base,
        }
        print(json.dumps(line), flush=True)


def _ours(folder: str, rows: int, seq_len: int) -> Any:
    import numpy as np
    import torch

    from packtrain.evaluate.documents import Document, score_documents
    from packtrain.pretrained.open import open_model
    from packtrain.train.device import keep_freed_memory

    keep_freed_memory(torch.device("cpu"))
    model = open_model(Path(folder)).model
    ids = [np.array(row) for row in _random_rows(rows * _PASSES_PER_TURN, seq_len + 1)]
    documents = [Document(row[1:], int(row[0]), 0) for row in ids]

    def work() -> float:
        scored = score_documents(model, documents, seq_len=seq_len, overlap=0, tokens_per_pass=rows * seq_len)
        return float(sum(piece.nats.sum() for piece in scored) / (len(documents) * seq_len))

    return work


def _theirs(folder: str, rows: int, seq_len: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(_random_rows(rows * _PASSES_PER_TURN, seq_len + 1))

    def work() -> float:
        with torch.no_grad():
            losses = [float(model(input_ids=some, labels=some).loss) for some in ids.split(rows)]
        return sum(losses) / len(losses)

    return work


def _random_rows(count: int, length: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(256) for _ in range(length)] for _ in range(count)]


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _task_options(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "tasks": options.tasks,
        "task_files": None if options.task_files is None else str(options.task_files.resolve()),
        "limit": options.limit,
        "rounds": options.rounds,
        "batch_sizes": options.batch_sizes,
    }


def race_tasks(words: str) -> None:
    """In the child process: run each task with both backends in turns, and print one JSON line. Seconds are the processor's too."""
    from packtrain.evaluate import harness
    from packtrain.pretrained.open import open_model

    given = json.loads(words)
    opened = open_model(Path(given["folder"]))
    ours = harness.HarnessModel
    figures = {}
    for task in given["tasks"]:
        backends: dict[str, Any] = {"packtrain": ours}
        for size in given["batch_sizes"]:
            backends[f"hf, batch {size}"] = _hugging_face(given["folder"], size)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in backends}
        values: dict[str, Any] = {}
        for turn in range(1 + given["rounds"]):
            for name in backends if turn % 2 else reversed(backends):
                harness.HarnessModel = backends[name]  # type: ignore[misc]
                began = time.process_time()
                seconds, values[name] = _run(opened, task, given)
                times[name].append((seconds, time.process_time() - began))
                print(f"{task} {name}: {seconds:.2f} s ({times[name][-1][1]:.2f})", file=sys.stderr, flush=True)
        medians, processor = (
            {name: statistics.median(found[kind] for found in turns[1:]) for name, turns in times.items()}
            for kind in (0, 1)
        )
        figures[task] = {
            "seconds": medians,
            "processor_seconds": processor,
            "ratio": _ratio_to_best(medians),
            "processor_ratio": _ratio_to_best(processor),
            "is_equal": all(found == values["packtrain"] for found in values.values()),
            "values": values["packtrain"],
        }
    print(json.dumps(figures))


def _ratio_to_best(seconds: dict[str, float]) -> float:
    return seconds["packtrain"] / min(value for name, value in seconds.items() if name != "packtrain")


def _run(opened: Any, task: str, given: dict[str, Any]) -> tuple[float, Any]:
    from packtrain.api.measuring import show_nothing
    from packtrain.evaluate.tasks import run_tasks

    files = None if given["task_files"] is None else Path(given["task_files"])
    found = run_tasks(
        opened, [task], task_files=files, limit=given["limit"], continue_prompts=lambda _: [], progress=show_nothing
    )
    values = [[m["name"], f"{m['value']:.4f}"] for m in found["tasks"][task]["metrics"]]
    return found["task_seconds"], values


def _hugging_face(folder: str, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    backend = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=batch_size)
    return lambda *_: backend


def _print(report: dict[str, Any]) -> None:
    if "rows" in report:
        found = report["rows"]
        for name, figures in found["contenders"].items():
            print(
                f"{report['shape']} {name:<13} {figures['rows_per_s']:7.2f} rows/s of {found['seq_len']} tokens, "
                f"peak {figures['peak_bytes'] / 1e6:,.0f} MB ({figures['base_bytes'] / 1e6:,.0f} before the model), "
                f"loss {figures['loss']:.4f}"
            )
        ratios = found["ratios"]
        print(
            f"ratios: speed {ratios['speed']:.2f} (by processor seconds {ratios['processor']:.2f}), "
            f"peak memory {ratios['memory']:.2f}"
        )
    for task, figures in report.get("tasks", {}).items():
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in figures["seconds"].items())
        equal = "equal" if figures["is_equal"] else "DIFFERENT"
        print(
            f"{task}: {seconds}; ratio to the best {figures['ratio']:.2f} (by processor seconds, with reading the data, "
            f"{figures['processor_ratio']:.2f}); values {equal} {figures['values']}"
        )


if __name__ == "__main__":
    main()

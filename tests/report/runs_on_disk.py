"""Run directories as training leaves them, with curves from a formula, for the tests of the report."""

import json
import math
import random
from pathlib import Path
from typing import Any

from packtrain.config.load import load_run_config, to_toml
from packtrain.runs.layout import RunLayout, write_json

LEDGER = {
    "documents": {"in": 658, "train": 583, "validation": 69, "duplicates": 3, "dropped": {"empty": 3}},
    "tokens": {"in": 3_090_645, "train": 2_750_227, "validation": 340_418},
    "utf8_bytes": {"in": 10_710_359, "train": 9_541_190, "validation": 1_169_169},
    "bytes_per_token": 3.4654,
    "duplicate_rate": 0.00458,
    "random_split": {"fraction": 0.1, "leaked": 0.00824},
    "samples": {"empty": ["email/mime/__init__.py row 0", "urllib/__init__.py row 0"]},
}
PROMPTS = ("def ", "The ")


def write_run(folder: Path, *, lr: float = 3e-3, steps: int = 700, seed: int = 0, floor: float = 1.9) -> RunLayout:
    """A finished run of `steps` steps with validation, samples, events, a manifest and an evaluation."""
    config = load_run_config(
        "demo", [f"optim.lr={lr}", f"train.steps={steps}", "train.global_batch_tokens=4096", "data.dataset=data/stdlib"]
    ).config
    layout = RunLayout(folder)
    layout.samples.mkdir(parents=True)
    layout.config.write_text(to_toml(config))
    write_json(layout.manifest, manifest())
    write_lines(layout.metrics, metrics(steps, lr=lr, seed=seed, floor=floor))
    write_lines(
        layout.events,
        [
            {"time": 1_790_000_000.0, "event": "started", "step": 0, "versions": {"torch": "2.13.0"}, "world_size": 1},
            {"time": 1_790_000_140.0, "event": "stopped", "step": 320, "reason": "SIGTERM"},
            {"time": 1_790_000_200.0, "event": "resumed", "step": 320},
            {"time": 1_790_000_400.0, "event": "skipped", "step": 431, "reason": "not finite", "loss": "nan"},
            {"time": 1_790_000_500.0, "event": "finished", "step": steps},
        ],
    )
    for step in range(100, steps + 1, 100):
        words = ["self", "return", "None", "for x in", "the", "value", "\n    ", "(a, b)", "raise", "é"]
        text = " ".join(random.Random(step).choices(words, k=40))
        write_lines(layout.sample(step), [{"prompt": p, "text": text} for p in PROMPTS])
    write_json(layout.evaluation, evaluation(steps, floor / math.log(2) / 3.1))
    write_evaluations(layout, steps, floor / math.log(2) / 3.1)
    return layout


def write_evaluations(layout: RunLayout, step: int, bits: float) -> None:
    """An evaluation by document of the step before the last, and two tasks."""
    documents = layout.text_evaluation(step - 100, "documents", "5e1c9a4d7be04512")
    documents.parent.mkdir(parents=True)
    write_json(
        documents,
        {
            **evaluation(step - 100, bits - 0.1),
            "created": 1_790_000_600.0,
            "dataset": {"folder": "data/stdlib", "hash": "5e1c9a4d7be04512", "split": "validation"},
            "protocol": {"name": "documents", "window": 256, "overlap": 128},
        },
    )
    for task, limit, metrics in (
        ("piqa", None, [("acc", 0.5419, 0.0116), ("acc_norm", 0.5283, 0.0117)]),
        ("lambada_openai", 200, [("perplexity", 2_318.4417, None), ("acc", 0.035, 0.013)]),
    ):
        path = layout.task_evaluation(step, task, limit)
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = [{"name": name, "value": value, "stderr": error} for name, value, error in metrics]
        write_json(
            path, {"format": 1, "step": step, "task": task, "limit": limit, "questions": limit, "metrics": figures}
        )


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def metrics(steps: int, *, lr: float, seed: int, floor: float) -> list[dict[str, Any]]:
    noise, lines = random.Random(seed), []
    for step in range(10, steps + 1, 10):
        loss = floor + 6.3 * math.exp(-step / 35) + 3.0 / (1 + step / 60)
        warm = min(1.0, step / 50)
        rate = lr * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, max(0, step - 50) / (steps - 50)))))
        lines.append(
            {
                "step": step,
                "tokens": step * 4096,
                "loss": loss + noise.gauss(0, 0.09),
                "lr": rate,
                "grad_norm": 0.4 + 3 * math.exp(-step / 60) + abs(noise.gauss(0, 0.08)),
                "tokens_per_s": 10_400 + noise.gauss(0, 350),
                "step_s": 0.394,
                "memory_bytes": 760_000_000 + min(step, 100) * 400_000,
            }
        )
        if step % 100 == 0:
            val = floor + 6.3 * math.exp(-step / 35) + 3.0 / (1 + step / 60) + 0.05
            lines.append({"step": step, "val_loss": val, "val_ppl": math.exp(val), "val_bpb": val / math.log(2) / 3.1})
    return lines


def manifest() -> dict[str, Any]:
    return {
        "created": 1_790_000_000.0,
        "command": ["packtrain", "train", "demo", "data.dataset=data/stdlib", "--run", "runs/demo"],
        "versions": {"packtrain": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6"},
        "hardware": {
            "device": "AMD EPYC 7B13",
            "device_type": "cpu",
            "memory_bytes": 25_769_803_776,
            "cores": 2,
            "threads": 2,
            "platform": "Linux-6.1-x86_64",
            "world_size": 1,
        },
        "git_commit": None,
        "dataset": {
            "folder": "data/stdlib",
            "hash": "5e1c9a4d7be04512",
            "tokenizer": {"hash": "c01df3a2", "vocab_size": 4096, "adds_bos": True, "kind": "byte-level"},
            "recipe": {"source": {"kind": "stdlib"}, "tokenizer": {"vocab_size": 4096, "bos": True}},
            "ledger": LEDGER,
        },
        "parameters": 1_377_408,
    }


def evaluation(step: int, bits: float) -> dict[str, Any]:
    loss = bits * math.log(2) * 3.1
    return {
        "format": 1,
        "step": step,
        "coverage": "Measured on all 1,330 rows of 256 tokens, from 69 held-out documents.",
        "model": {
            "loss": loss,
            "perplexity": math.exp(loss),
            "bits_per_byte": bits,
            "num_tokens": 340_418,
            "num_bytes": 1_169_169,
            "sees": "up to 255 tokens before, in its row",
            "num_documents": 69,
            "interval": {
                "method": "bootstrap over documents, 1,000 resamples",
                "coverage": 0.95,
                "loss": [loss - 0.03, loss + 0.03],
                "bits_per_byte": [bits - 0.021, bits + 0.022],
            },
        },
        "by_length": [
            {"bytes": "up to 256", "documents": 3, "tokens": 210, "loss": loss + 0.9, "bits_per_byte": bits + 0.4},
            {"bytes": "4,097–16,384", "documents": 66, "tokens": 340_208, "loss": loss, "bits_per_byte": bits},
        ],
        "by_position": [
            {"seen": "1", "tokens": 1_330, "loss": loss + 1.5, "bits_per_byte": bits + 0.7},
            {"seen": "129–256", "tokens": 170_240, "loss": loss - 0.1, "bits_per_byte": None},
        ],
        "yardsticks": [
            {"name": "unigram", "bits_per_byte": 3.012, "sees": "nothing but token frequencies of the training split"},
            {"name": "bigram", "bits_per_byte": 1.941, "sees": "one token before, counts of the training split"},
            {
                "name": "zlib -9",
                "bits_per_byte": 1.853,
                "sees": "32 KiB before, of the same documents one after the other",
            },
            {"name": "xz -9", "bits_per_byte": 1.507, "sees": "everything before, of the same documents"},
        ],
    }

"""Decides which sound dataset, run and exports the attacks start from, and what each command makes of them."""

import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.attack.outcome import Ended, call_main, run_apart, run_command

WORDS = "the of and to in is you that it was for are as with at be from had by word but not what were".split()  # noqa: SIM905
SOURCE = (
    *("source.kind=jsonl", "source.path=source", "source.id_column=id", "tokenizer.vocab_size=300"),
    *("prepare.slice_documents=50", "prepare.workers=1"),
)
SETTINGS = (
    *(
        "data.dataset=ds",
        "data.seq_len=32",
        "model.vocab_size=300",
        "model.hidden_size=32",
        "model.num_hidden_layers=1",
    ),
    *("model.num_attention_heads=2", "model.intermediate_size=64", "train.steps=6", "train.global_batch_tokens=128"),
    *("train.micro_batch_size=4", "train.precision=fp32", "train.device=cpu", "schedule.warmup_steps=2"),
    *("checkpoint.every=3", "evaluate.every=3", "evaluate.tokens=256", "evaluate.prompts=[]", "log.every=1"),
)
RESUME = ("train", "demo", *SETTINGS, "train.steps=9", "--run", "run", "--resume")

# What tells the time, and so differs from run to run.
_TIMES = re.compile(
    rb'"(created|time|seconds|wall|tokens_per_second|\w*_s|\w*seconds\w*|mfu|peak\w*)": ?[^,}\n]+|\d+(\.\d+)? ?(ms|s|GB|MB)\b'
    rb"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?|[\d,.]+ tok(ens)?/s"
)


class Command(NamedTuple):
    """A command on the attacked folders, and the files or folders whose content is its result besides what it prints."""

    words: tuple[str, ...]
    results: tuple[str, ...] = ()


DATASET_COMMANDS = {
    "verify": Command(("verify", "ds", "--json")),
    "inspect": Command(("inspect", "ds", "data.seq_len=32", "--step", "1", "--json")),
    "inspect --document": Command(("inspect", "ds", "data.seq_len=32", "--document", "train/3", "--json")),
    "train": Command(
        ("train", "demo", *SETTINGS, "train.steps=3", "--run", "new"), ("new/checkpoints", "new/metrics.jsonl")
    ),
    "evaluate": Command(("evaluate", "run", "--dataset", "ds", "--json")),
    "export a dataset": Command(("export", "ds", "--format", "nanogpt", "--out", "out", "--json"), ("out",)),
    "diff": Command(("diff", "ds", "sound-ds", "--json")),
    "report": Command(("report", "ds", "--out", "page.html"), ("page.html",)),
}
RUN_COMMANDS = {
    "evaluate": Command(("evaluate", "run", "--json")),
    "generate": Command(("generate", "run", "--prompt", "the word", "--max-tokens", "12", "--seed", "1", "--json")),
    "export": Command(("export", "run", "--out", "out", "--json"), ("out",)),
    "inspect": Command(("inspect", "run", "--step", "2", "--json")),
    "report": Command(("report", "run", "--out", "page.html", "--json"), ("page.html",)),
    "resume": Command(RESUME, ("run/checkpoints/step-00000009", "run/metrics.jsonl", "run/events.jsonl")),
}
EXPORT_COMMANDS = {
    "export over it": Command(("export", "run", "--out", "out", "--overwrite", "--json"), ("out",)),
    "export beside it": Command(("export", "run", "--out", "beside", "--json"), ("beside",)),
    "import": Command(
        ("import", "tokens", "--format", "nanogpt", "--tokenizer", "ds/tokenizer", "--out", "back", "--json"), ("back",)
    ),
}


def make_sound(folder: Path) -> None:
    """Write a source, and prepare, train and export it: `ds`, `run`, `out` and `tokens`."""
    draw = random.Random(0)
    texts = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(5, 50))) + f" {n}." for n in range(150)]
    lines = "".join(json.dumps({"text": text, "id": f"doc-{n}"}) + "\n" for n, text in enumerate(texts))
    (folder / "source").mkdir()
    (folder / "source" / "a.jsonl").write_text(lines)
    for words in (
        ("prepare", "stdlib", *SOURCE, "--out", "ds"),
        ("train", "demo", *SETTINGS, "--run", "run"),
        ("export", "run", "--out", "out"),
        ("export", "ds", "--format", "nanogpt", "--out", "tokens"),
    ):
        ended = run_command(words, folder)
        if ended.code != 0:
            raise RuntimeError(f"packtrain {' '.join(words)}: {ended.err}")
    shutil.copytree(folder / "ds", folder / "sound-ds")


def load_modules(sound: Path) -> None:
    """Import what the commands import, so that a fork of this process need not. Nothing is computed here."""
    names = sound / "modules.txt"

    def train_and_list() -> None:
        with contextlib.suppress(SystemExit):
            call_main(["train", "demo", *SETTINGS, "train.steps=3", "--run", "warm"])
        with contextlib.suppress(SystemExit):
            call_main(["export", "warm", "--out", "warm-out"])
        with contextlib.suppress(SystemExit):
            call_main(["report", "warm"])
        names.write_text("\n".join(sys.modules))

    run_apart(train_and_list, sound)
    shutil.rmtree(sound / "warm")
    for name in names.read_text().split():
        # Some modules exist only under the name that another one gave them.
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def copy_sound(sound: Path, folder: Path, names: Sequence[str]) -> None:
    """A copy of some of the sound folders."""
    for name in names:
        shutil.copytree(sound / name, folder / name)


def read_results(command: Command, ended: Ended, folder: Path) -> dict[str, str]:
    """What a command printed and wrote, without times and the name of the folder."""
    found = {"printed": _digest(ended.out.encode(), folder)}
    for name in command.results:
        top = folder / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            # How the logs looked at a save has their times in it.
            if path.is_file() and path.name != "logs.json":
                found[path.relative_to(folder).as_posix()] = _digest(_content(path), folder)
    return found


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name == "events.jsonl":
        # Whether these were written after the last save, no checkpoint can know.
        data = b"\n".join(
            line for line in data.splitlines() if not re.search(rb'"(saved|finished)", "step": 6\b', line)
        )
    if path.name in ("metrics.jsonl", "events.jsonl"):
        return b"\n".join(_lasting_fields(line) for line in data.splitlines() if line.strip())
    return data


def _lasting_fields(line: bytes) -> bytes:
    try:
        fields: Any = json.loads(line)
    except ValueError:
        return line
    lasting = ("step", "loss", "lr", "grad_norm", "val_loss", "event", "kind")
    return (
        json.dumps({key: fields[key] for key in lasting if key in fields}).encode()
        if isinstance(fields, dict)
        else line
    )


def _digest(data: bytes, folder: Path) -> str:
    return hashlib.sha256(_TIMES.sub(b"", data.replace(os.fsencode(folder), b"WORK"))).hexdigest()

"""Decides whether README, tutorial and guide are true: each of their commands runs, at a tiny size, and their figures are `plan`'s."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.command_line import packtrain

from packtrain.prepare.steps.train_tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, ROOT / "docs" / "tutorial.md", ROOT / "docs" / "guide-437m.md")

SMALL_MODEL = (
    *("model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2", "model.intermediate_size=64"),
    *("model.vocab_size=512", "data.seq_len=64"),
)
SMALL_RUN = (
    *SMALL_MODEL,
    *(
        "train.tokens=",
        "train.steps=2",
        "train.global_batch_tokens=256",
        "train.micro_batch_size=2",
        "optim.name=adamw",
    ),
    *("schedule.warmup_steps=1", "evaluate.every=2", "evaluate.tokens=64", "evaluate.prompts=[]", "checkpoint.every=1"),
)
# What a page says to type, and what a test adds, so that it takes seconds and needs neither a network nor a GPU.
ADDED = {
    "prepare my_texts": ("tokenizer.vocab_size=512", "prepare.workers=1"),
    "prepare fineweb-edu": ("source.path=hub", "tokenizer.name=llama2", "prepare.workers=1"),
    "train": SMALL_RUN,
    "inspect data": SMALL_MODEL,
    "generate": ("--max-tokens", "4"),
}
# These have tests of their own, would not end by themselves, or judge a model that is too small to pass.
NOT_RUN = ("demo", "doctor llama2", "report runs/first --watch", "ladder", "serve")
# Of other programs; what is in quotes is checked for spelling alone.
OTHERS = ("pip", "python3", ".", "hf", "sbatch")


def commands(page: Path = README) -> list[list[str]]:
    """Each `packtrain ...` command in a page's blocks, as words, without the prompt; continuation lines are joined."""
    return [words[words.index("packtrain") + 1 :] for words in lines(page) if "packtrain" in words]


def lines(page: Path) -> list[list[str]]:
    """Each command in a page's blocks that have no language, as words. Output, which follows a prompt, is left out."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = []
    for block in (text.replace("\\\n", " ") for language, text in blocks if not language):
        prompted = re.findall(r"^\$ (.*)$", block, flags=re.MULTILINE)
        found += [shlex.split(line, comments=True) for line in prompted or block.splitlines()]
    return [words for words in found if words]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's texts, a copy of FineWeb-Edu in the hub's layout, and a tokenizer; Python's reference is the text."""
    monkeypatch.chdir(tmp_path)
    texts = [text[:2000] for text in topics.values()]
    (tmp_path / "my_texts").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "my_texts" / f"{number:03d}.txt").write_text(text)
    names = [str(number) for number in range(len(texts))]
    for sample in ("10BT", "100BT"):
        hub = tmp_path / "hub" / "sample" / sample
        hub.mkdir(parents=True)
        table = pa.table({"text": texts, "id": names, "int_score": [3 + n % 3 for n in range(len(texts))]})
        pq.write_table(table, hub / "000_00000.parquet")
    train_tokenizer(texts, 512).save(tmp_path / "llama2")
    return tmp_path


@pytest.mark.slow
def test_every_command_runs(folder: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    seen: list[list[str]] = []
    for page in PAGES:
        for words in lines(page):
            if words in seen or words[0] in OTHERS or words in _of_the_demo():
                continue
            seen.append(words)
            if words[0] == "make":
                assert words[1] in targets, words
            elif words[0] == "torchrun":
                _run_processes(words)
            else:
                assert words[0] == "packtrain", (page.name, words)
                _run(words[1:])
    for made in ("models/437m/model.safetensors", "models/first/model.safetensors", "runs/437m/report.html"):
        assert (folder / made).is_file()
    # The two processes of eight GPUs have trained one model.
    manifest = json.loads((folder / "runs/437m/manifest.json").read_text())
    assert manifest["hardware"]["world_size"] == 2


def _of_the_demo() -> list[list[str]]:
    """The commands in the README's copy of the demo's output."""
    return [words for words in lines(README) if any(word.startswith("packtrain-demo") for word in words)]


def _run(words: Sequence[str]) -> None:
    line = " ".join(words)
    if line.startswith(NOT_RUN):
        shown = packtrain(words[0], "--help").out
        assert all(word in shown for word in words if word.startswith("--")), line
        return
    added = [word for start, more in ADDED.items() if line.startswith(start) for word in more]
    if words[0] == "plan" and "--gpu" not in words:
        added.append("--no-probe")
    done = packtrain(*words, *added)
    assert done.code == 0, (line, done.err)


def _run_processes(words: Sequence[str]) -> None:
    """A torchrun command, with two processes on the CPU in place of its GPUs."""
    few = ["2" if before == "--nproc-per-node" else word for before, word in zip(words, words[1:], strict=False)]
    command = [sys.executable, "-m", "torch.distributed.run", *few, *SMALL_RUN]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_python_of_the_readme_runs(folder: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    small = dict(word.split("=", 1) for word in SMALL_RUN)
    code = code.replace("8192}, out", "512, 'prepare.workers': 1}, out").replace("}, run=", "}, small, run=")
    assert code.count("512") == code.count("small") == 1
    exec(code.replace("max_tokens=60", "max_tokens=4"), {"small": {key: value or None for key, value in small.items()}})
    assert (folder / "runs" / "mine" / "metrics.jsonl").is_file()


@pytest.mark.parametrize(
    ("asked", "hours", "money"),
    [
        (["--gpu", "H100", "--gpus", "8", "--price-per-hour", "2.5"], "26.8 h", "$536"),
        (["train.tokens=8_700_000_000", "--gpu", "RTX 4090", "--price-per-hour", "0.5"], "111 h", "$55"),
    ],
)
def test_the_figures_are_those_of_plan(asked: list[str], hours: str, money: str) -> None:
    shown = packtrain("plan", "llama2-437m", *asked).out
    assert hours in shown and money in shown and "17.5 of" in shown
    for page in (README, ROOT / "docs" / "guide-437m.md"):
        text = page.read_text()
        assert f"{hours} (computed)" in text and f"{money} at" in text and "17.5 of 24" in text and "17.5 of 80" in text


@pytest.mark.slow
def test_the_demo_runs_from_text_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few steps: `make demo` runs the whole demo."""
    monkeypatch.chdir(tmp_path)
    few = ["train.steps=20", "evaluate.every=10", "evaluate.tokens=4096", "checkpoint.every=10"]
    done = packtrain("demo", *few)
    assert done.code == 0, done.err
    steps = re.split(r"^\d/7 ", done.out, flags=re.MULTILINE)
    assert "Done in" in steps[-1]
    shown = [shlex.split(line) for line in re.findall(r"^\$ (.*)$", done.out, flags=re.MULTILINE)]
    assert [words for words in _of_the_demo() if words not in shown] == []
    # A screen each; the text of a generation may be longer.
    assert max(step.count("\n") for step in steps) <= 30, [step.count("\n") for step in steps]
    evaluation = json.loads((tmp_path / "packtrain-demo" / "run" / "evaluation.json").read_text())
    assert {"unigram", "zlib -9"} <= {yardstick["name"] for yardstick in evaluation["yardsticks"]}
    for made in ("dataset/manifest.json", "run/report.html", "huggingface/model.safetensors"):
        assert (tmp_path / "packtrain-demo" / made).is_file()

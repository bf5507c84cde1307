"""Decides whether the README is true: packtrain accepts each of its commands, and the demo runs to the end."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from packtrain.config.load import load_recipe, load_run_config

README = Path(__file__).parents[2] / "README.md"


def commands(page=README):
    """Each `packtrain ...` command in a page's blocks, as words, without the prompt; continuation lines are joined."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(text for language, text in blocks if not language).replace("\\\n", " ").splitlines()
    found = (re.search(r"(?:^|\$ |-m )packtrain (.*)", line) for line in lines)
    return [shlex.split(match[1]) for match in found if match]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one_that_packtrain_takes(words):
    verb, rest = words[0], words[1:]
    shown = subprocess.run(
        [sys.executable, "-m", "packtrain", verb, "--help"], capture_output=True, text=True, check=True
    )
    for option in (word for word in rest if word.startswith("--")):
        assert re.search(rf"{option}\b", shown.stdout), f"{verb} has no {option}"
    settings = [word for word in rest[1:] if "=" in word and not word.startswith("--")]
    if verb in ("train", "plan"):
        load_run_config(rest[0], settings)
    if verb == "prepare":
        load_recipe(rest[0], settings)


def test_the_demo_runs_from_text_to_report(tmp_path):
    """With few steps: `make demo` runs the whole demo."""
    few = ["train.steps=20", "evaluate.every=10", "evaluate.tokens=4096", "checkpoint.every=10"]
    command = [sys.executable, "-m", "packtrain", "demo", "--out", str(tmp_path / "demo"), *few]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Done in" in done.stdout
    evaluation = json.loads((tmp_path / "demo" / "run" / "evaluation.json").read_text())
    assert {"unigram", "zlib -9"} <= {yardstick["name"] for yardstick in evaluation["yardsticks"]}
    for made in ("dataset/manifest.json", "run/report.html", "huggingface/model.safetensors"):
        assert (tmp_path / "demo" / made).is_file()

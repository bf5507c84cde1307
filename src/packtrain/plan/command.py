"""Decides which commands a plan ends with: what to type next to prepare the data and to train as planned."""

import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from packtrain.config.run import RunConfig
from packtrain.plan.corpora import Corpus


def commands(
    config: RunConfig, preset: str, settings: Sequence[str], target: dict[str, Any], corpus: Corpus | None
) -> list[str]:
    """What to type to train `config` on `target` (`plan.cost`), with the settings that make it fit; first to prepare its data.

    `preset` and `settings` are as typed.
    """
    if not preset:
        return []
    name = PurePath(preset).stem
    changed = {word.partition("=")[0] for word in target["settings_that_fit"]}
    words = [word for word in settings if word.partition("=")[0] not in changed] + target["settings_that_fit"]
    before: list[str] = []
    if config.data.dataset is None:
        folder = "DATASET" if corpus is None else f"data/{corpus.recipe}"
        words = [f"data.dataset={folder}", *(word for word in words if not word.startswith("data.dataset="))]
        before = [] if corpus is None else [f"packtrain prepare {corpus.recipe} --out {folder}"]
    typed = " ".join(shlex.quote(word) for word in (preset, *words))
    return [*before, _train(typed, shlex.quote(f"runs/{name}"), target)]


def _train(typed: str, run: str, target: dict[str, Any]) -> str:
    if target["devices"] == 1:
        return f"packtrain train {typed} --run {run}"
    per_node, nodes = target["gpus_per_node"], target["nodes"]
    where = f"--nproc-per-node {per_node}"
    if nodes > 1:
        where = f"--nnodes {nodes} {where} --rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29400"
    # torchrun takes --run for an abbreviation of its own --run-path.
    return f"torchrun {where} --shutdown-timeout 300 -m packtrain train {typed} --run-dir {run}"

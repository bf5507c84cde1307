"""Plan before you run. Parameters, FLOPs, memory by part, the micro-batch that fits, and hours, all before the first
step."""

import json
from pathlib import Path

from tests.command_line import packtrain
from tests.train.conftest import TINY

from packtrain.runs.checkpoint import open_run
from packtrain.runs.metrics import read_metrics


def test_the_plan_says_what_the_run_then_is(run: Path, prepared: Path) -> None:
    done = packtrain("plan", "demo", *TINY, f"data.dataset={prepared}", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    opened = open_run(run)
    parameters = sum(parameter.numel() for parameter in opened.model.parameters())
    assert figures["parameters"]["total"] == opened.manifest["parameters"] == parameters
    last = [line for line in read_metrics(opened.layout.metrics) if "loss" in line][-1]
    assert (figures["steps"], figures["tokens"]) == (last["step"], last["tokens"])
    assert figures["flops"] == figures["tokens"] * figures["flops_per_token"] > 6 * parameters * figures["tokens"]
    parts = figures["memory"]["parts_bytes"]
    assert parts["weights"] == sum(parameter.nbytes for parameter in opened.model.parameters())
    assert max(parts.values()) < figures["memory"]["peak_bytes"] <= sum(parts.values())
    assert figures["micro_batch_that_fits"]["this machine"] == figures["memory"]["rows_per_step"]
    assert figures["this_machine"]["hours"] > 0 and all(device["hours"] > 0 for device in figures["devices"])

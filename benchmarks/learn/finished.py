"""Decides what finished runs of `packtrain train` say as a line of results, so that they need not be trained again."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.learn.corpora import describe_corpus
from benchmarks.learn.recipe import list_settings
from benchmarks.learn.results import append_line, describe_place, describe_runs, name_experiment, read_lines
from benchmarks.learn.seed import count_events, score_run


def score_finished(folders: Sequence[Path], name: str, file: Path) -> dict[str, Any]:
    """Scores the checkpoints that finished runs of one recipe have kept, and appends their line. Returns the line.

    Nobody measured their processor seconds, so the line has none; wall seconds are from start to end, validations included.
    Raises ConfigError for a run that has not ended, or whose recipe or data is not that of the first.
    """
    from packtrain.errors import ConfigError
    from packtrain.runs.checkpoint import open_run

    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for folder in folders:
        opened = open_run(folder)
        config = opened.config
        if opened.step != config.given_steps:
            raise ConfigError(
                f"{folder} is at step {opened.step:,} of {config.given_steps or 0:,}; finish it, then score it"
            )
        if not isinstance(config.data.dataset, str) or not Path(config.data.dataset).is_dir():
            raise ConfigError(
                f"the dataset {config.data.dataset} of {folder} is not a folder here; start in the folder of the run"
            )
        recipe = json.loads((Path(config.data.dataset) / "manifest.json").read_text())["recipe"]
        is_embedded = recipe["source"]["kind"] == "stdlib"
        corpus = describe_corpus("stdlib" if is_embedded else config.data.dataset, Path(config.data.dataset), ())
        what = {
            "name": name,
            "corpus": corpus.dataset,
            "settings": list_settings(config, ()),
            "tokens": opened.step * config.train.global_batch_tokens,
        }
        if found and what != found[0][0]:
            raise ConfigError(
                f"{folder} is of another recipe or dataset than {folders[0]}; give each a --name of its own"
            )
        took = {
            "seed": config.train.seed,
            "tokens": what["tokens"],
            "processor_s": None,
            "wall_s": _wall_seconds(opened.layout),
            "threads": opened.manifest.get("hardware", {}).get("threads"),
            "skipped_steps": count_events(opened.layout, "skipped"),
            "rollbacks": count_events(opened.layout, "rolled_back"),
        }
        print(f"{name}, seed {config.train.seed}: scoring {folder}", flush=True)
        found.append((what, took | score_run(folder, corpus, config.train.global_batch_tokens)))
    # That of the last; all are of one recipe and one dataset.
    manifest = opened.manifest
    what, runs = found[0][0], [run for _, run in found]
    experiment = name_experiment(what)
    known = next((line for line in read_lines(file) if line["experiment"] == experiment), None)
    new = {run["seed"] for run in runs}
    runs += [run for run in (known or {"runs": []})["runs"] if run["seed"] not in new]
    line = {
        "experiment": experiment,
        "name": name,
        "preset": None,
        "corpus": corpus.record(),
        "protocol": {"name": "documents", "window": runs[0]["window"], "overlap": runs[0]["overlap"]},
        "parameters": runs[0]["parameters"],
        "tokens": what["tokens"],
        "share": 1.0,
        "minutes_given": None,
        "settings": what["settings"],
        "seeds": [run["seed"] for run in runs],
        **describe_runs(runs),
        "runs": runs,
        **describe_place(),
        # Of the training, not of the scoring.
        "machine": manifest.get("hardware"),
        "versions": manifest.get("versions"),
        "commit": manifest.get("git_commit"),
    }
    append_line(file, line)
    return line


def _wall_seconds(layout: Any) -> float | None:
    """From the start to the end of a run that was never resumed; None for others."""
    events = [json.loads(line) for line in layout.events.read_text().splitlines()] if layout.events.is_file() else []
    times = {event["event"]: event["time"] for event in events}
    if "resumed" in times or not {"started", "finished"} <= times.keys():
        return None
    return round(_seconds(times["finished"]) - _seconds(times["started"]), 2)


def _seconds(time: Any) -> float:
    return float(time) if isinstance(time, int | float) else datetime.fromisoformat(time).timestamp()

"""Decides what one seed of a recipe gives: trains it, unless it is done, and scores its checkpoints by the protocol."""

import json
import math
import time
from pathlib import Path
from typing import Any

from benchmarks.learn.corpora import Corpus, read_held_out

_DONE = "learned.json"
_CLOCK = "clock.json"


def measure_seed(config: Any, corpus: Corpus, folder: Path, points: int) -> dict[str, Any]:
    """Bits per byte of a seed at its end and at `points` steps before, what it took, and how often the guard stepped in.

    Continues a run that was stopped. Processor and wall seconds of such a run are those of the steps since, scaled to all steps. A
    run that diverges has `failed` instead of figures.
    """
    done = folder / _DONE
    if done.is_file():
        return dict(json.loads(done.read_text()))
    steps = config.given_steps
    every = max(1, round(steps / (points + 1))) if points else 0
    config = config.model_copy(
        update={"checkpoint": config.checkpoint.model_copy(update={"every": every, "keep": 1, "keep_every": every})}
    )
    found = {"seed": config.train.seed, **_train(config, folder)}
    if "failed" not in found:
        found |= score_run(folder, corpus, config.train.global_batch_tokens)
        _remove_all_but_last(folder)
    done.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _train(config: Any, folder: Path) -> dict[str, Any]:
    # Imported before the clock starts.
    import torch

    from packtrain.errors import GuardError
    from packtrain.runs.layout import RunLayout
    from packtrain.train.run import train

    layout, clock = RunLayout(folder), folder / _CLOCK
    if clock.is_file():
        return dict(json.loads(clock.read_text()))
    before = max(layout.saved_steps(), default=0)
    processor, wall = time.process_time(), time.perf_counter()
    try:
        outcome = train(config, folder, resume=True)
    except GuardError as failure:
        return {"failed": str(failure)}
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    share = (outcome["steps"] - before) / outcome["steps"]
    if share == 0:
        raise RuntimeError(f"{folder} was trained without a clock; remove it")
    took = {
        "tokens": outcome["tokens"],
        "processor_s": round(processor / share, 2),
        "wall_s": round(wall / share, 2),
        "threads": torch.get_num_threads(),
        "was_resumed": before > 0,
        "skipped_steps": count_events(layout, "skipped"),
        "rollbacks": count_events(layout, "rolled_back"),
    }
    clock.write_text(json.dumps(took))
    return took


def count_events(layout: Any, event: str) -> int:
    """How often a run's events have one of that name."""
    lines = layout.events.read_text().splitlines() if layout.events.is_file() else []
    return sum(json.loads(line).get("event") == event for line in lines)


def score_run(folder: Path, corpus: Corpus, tokens_per_step: int) -> dict[str, Any]:
    """Bits per byte at every checkpoint that a run has kept, and how they were scored."""
    from packtrain.runs.layout import RunLayout

    steps, began = RunLayout(folder).saved_steps(), time.process_time()
    curve, loss, window = [], math.nan, 0
    for step in steps:
        loss, bits, window = score_checkpoint(folder, step, corpus)
        curve.append([step * tokens_per_step, round(bits, 5)])
    overlap = window // 2 if corpus.overlap is None else corpus.overlap
    return {
        "bits_per_byte": curve[-1][1],
        "loss": round(loss, 5),
        "curve": curve,
        "window": window,
        "overlap": overlap,
        "parameters": count_parameters(folder),
        "scoring_s": round(time.process_time() - began, 2),
    }


def _remove_all_but_last(folder: Path) -> None:
    from packtrain.runs.layout import RunLayout
    from packtrain.runs.retention import remove

    layout = RunLayout(folder)
    for step in layout.saved_steps()[:-1]:
        remove(layout.checkpoint(step))


def score_checkpoint(folder: Path, step: int, corpus: Corpus) -> tuple[float, float, int]:
    """Nats a token, bits a byte, and the window: all held-out documents, each by itself from its first token."""
    from packtrain.evaluate.documents import choose_overlap, score_documents
    from packtrain.evaluate.loss import LossResult
    from packtrain.runs.checkpoint import open_run
    from packtrain.train.device import resolve_device

    device = resolve_device("auto").type
    run = open_run(folder, step=step, device=device)
    text, window = read_held_out(corpus.folder), run.config.data.seq_len
    scored = score_documents(run.model, text.documents, seq_len=window, overlap=choose_overlap(window, corpus.overlap))
    nats = math.fsum(math.fsum(piece.nats) for piece in scored)
    result = LossResult.of(nats, text.num_tokens, text.num_bytes)
    return result.loss, result.bits_per_byte, window


def count_parameters(folder: Path) -> int:
    """Parameters of a run's model, a tied weight once."""
    from packtrain.runs.checkpoint import open_run

    return sum(parameter.numel() for parameter in open_run(folder).model.parameters())

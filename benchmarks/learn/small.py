"""Decides the protocol of small corpora: how many epochs help, and from which share of the text a recipe reaches another's best.

Held out: the tenth of the addresses whose ids have the lowest hashes, the same for every share. Training text: the others in the order
of the hashes, up to a number of bytes; the last is cut there, at a space. So each share of the text is the beginning of the next
larger one. The tokenizer is trained on the training text alone.

For each share, runs of growing numbers of epochs are trained, each with its whole schedule, until one is no better than the best before
it. *Data efficiency* is 1 over the share at which the best run of a recipe reaches the best of the other on all of the text, interpolated
between two shares, linear in the logarithm of the bytes, and never extrapolated.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.learn.corpora import Corpus, describe_corpus, find_source
from benchmarks.learn.recipe import Budget, RecipeFile, measure_recipe

VOCABULARY = 2048


def prepare_small(work: Path, data: Path | None, megabytes: float, share: float, recipe: Sequence[str]) -> Corpus:
    """`share` of the first `megabytes` (10^6 bytes) of the prose. Raises ConfigError if the source is missing or has less."""
    from packtrain.config.load import load_recipe
    from packtrain.errors import ConfigError
    from packtrain.prepare.run import prepare

    source = find_source("prose", data)
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    held, rest = rows[: len(rows) // 10], rows[len(rows) // 10 :]
    budget = int(megabytes * 1e6 * share)
    there = sum(len(row["text"].encode()) for row in rest)
    if megabytes * 1e6 > there:
        raise ConfigError(f"{source} has {there / 1e6:.1f} MB to train on; write --megabytes with that or less")
    chosen: list[dict[str, str]] = [{"id": row["id"], "side": "validation", "text": row["text"]} for row in held]
    for row in rest:
        text = row["text"].encode()[:budget].decode(errors="ignore")
        if len(text) < len(row["text"]):
            text = text.rpartition(" ")[0]
        if not text:
            break
        chosen.append({"id": row["id"], "side": "train", "text": text})
        budget -= len(text.encode())
    content = "".join(json.dumps(row) + "\n" for row in chosen)
    key = hashlib.sha256(json.dumps([content, list(recipe)]).encode()).hexdigest()[:12]
    folder = work / "data" / f"prose-{megabytes:g}MB-{share:g}-{key}"
    text_file = folder.parent / f"{folder.name}.jsonl"
    text_file.parent.mkdir(parents=True, exist_ok=True)
    text_file.write_text(content)
    fixed = [f"source.path={text_file}", "source.id_column=id", "split.by=column", "split.column=side"]
    prepare(load_recipe("jsonl", [*fixed, f"tokenizer.vocab_size={VOCABULARY}", *recipe]).config, folder)
    corpus = describe_corpus("prose", folder, recipe)
    return dataclasses.replace(corpus, name=f"prose-{megabytes:g}MB", share_of_text=share)


def measure_epochs(
    recipe: RecipeFile, corpus: Corpus, epochs: Sequence[float], work: Path, file: Path
) -> list[dict[str, Any]]:
    """Lines of growing numbers of epochs, until more do not help."""
    lines: list[dict[str, Any]] = []
    for count in sorted(set(epochs)):
        budget = Budget(tokens=int(corpus.train_tokens * count))
        lines.append(measure_recipe(dataclasses.replace(recipe, budget=budget), corpus, work, file))
        if len(lines) > 1 and _mean(lines[-1]) >= min(_mean(line) for line in lines[:-1]):
            break
    return lines


def describe_shares(lines: Sequence[dict[str, Any]], against: str | None) -> list[str]:
    """For each recipe and share of the text the best number of epochs, and each recipe's data efficiency over `against`."""
    best = choose_best(lines)
    words = []
    for (name, share), line in sorted(best.items()):
        epochs = line["tokens"] / line["corpus"]["train_tokens"]
        words.append(f"{name}: {share:g} of the text, best {_mean(line):.4f} bits per byte, after {epochs:.1f} epochs")
    goal = best.get((against or "", 1.0))
    if goal is None:
        return words
    for name in sorted({name for name, _ in best} - {against}):
        points = sorted((share, _mean(line)) for (other, share), line in best.items() if other == name)
        words.append(f"{name}: {describe_efficiency(points, _mean(goal), str(against))}")
    return words


def choose_best(lines: Sequence[dict[str, Any]]) -> dict[tuple[str, float], dict[str, Any]]:
    """The best finished line of each recipe and share of the text."""
    best: dict[tuple[str, float], dict[str, Any]] = {}
    for line in lines:
        share = line["corpus"].get("share_of_text")
        if share is not None and line["mean"] is not None:
            key = (line["name"], float(share))
            best[key] = min(best.get(key, line), line, key=_mean)
    return best


def describe_efficiency(points: Sequence[tuple[float, float]], target: float, against: str) -> str:
    """From (share of the text, best bits per byte), ascending: at which share `target` is reached."""
    for number, (share, bits) in enumerate(points):
        if bits > target:
            continue
        if number == 0:
            return f"reaches the best of {against} with {share:g} of the text or less: data efficiency at least {1 / share:.2f}"
        low, above = points[number - 1]
        part = (above - target) / (above - bits)
        at = math.exp(math.log(low) + part * (math.log(share) - math.log(low)))
        return f"reaches the best of {against} with {at:.2f} of the text: data efficiency {1 / at:.2f}"
    return f"does not reach the best of {against} with the shares that were measured"


def _mean(line: dict[str, Any]) -> float:
    return math.inf if line["mean"] is None else float(line["mean"])

"""Decides whether a loss is normal: where it is among runs like it that are known, and what text of that loss looks like.

`bands.json` has what is known: for a preset and a corpus, bits per byte by tokens from runs of ours (`benchmarks/bands.py` measures
them), or the loss of a publication. A run counts as one of a preset if it has its shape and rows.
"""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from packtrain.config.load import flatten, load_run_config
from packtrain.config.run import RunConfig
from packtrain.config.shipped import shipped
from packtrain.errors import PacktrainError
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_metrics

# What makes a run another one than the preset's; the size of the vocabulary is the dataset's.
_DECIDES = ("model", "data", "train", "optim", "schedule")
_OWN = {"model.vocab_size", "data.dataset", "data.verify", "train.seed", "train.device", "train.micro_batch_size"}
_OWN |= {"train.compile", "train.precision", "train.activation_gb", "train.tokens", "train.steps", "train.epochs"}
_OWN |= {"train.deterministic", "train.attention"}


@dataclass(frozen=True)
class Standing:
    """Where the last validation of a run is. `state`: "within", "below" (better), "above" (worse), or "unknown"."""

    state: str
    says: str
    """Sentences: the loss, the band with its source, and what differs from the runs that it is of."""
    sample: str | None = None
    """What a run of about this loss wrote, with its bits per byte; None if none is known."""
    is_alike: bool = False
    """Whether the run has the settings and the length of those that the band is of."""


def judge_run(layout: RunLayout) -> Standing:
    """Where a run stands, by its own files. Raises errors of packtrain if they cannot be read."""
    # They import torch, which a report does without.
    from packtrain.runs.configuration import newest_config
    from packtrain.runs.manifest import list_datasets, read_manifest

    config, manifest = newest_config(layout), read_manifest(layout)
    lines = [line for line in read_metrics(layout.metrics) if _is_number(line.get("val_bpb"))]
    if not lines:
        return Standing("unknown", "it has no validation loss yet, which evaluate.every gives")
    last = lines[-1]
    tokens = last["step"] * config.train.global_batch_tokens
    recipes = [dict(source.get("recipe") or {}) for source in list_datasets(manifest)]
    return judge(config, recipes, tokens=tokens, bits_per_byte=last["val_bpb"], loss=last["val_loss"])


def judge(
    config: RunConfig, recipes: list[dict[str, Any]], *, tokens: int, bits_per_byte: float, loss: float
) -> Standing:
    """Where a validation loss (nats per token, and bits per byte) after `tokens` stands. `recipes`: of the run's datasets."""
    shown = f"{bits_per_byte:.3f} bits per byte after {tokens:,} tokens"
    entry = next((each for each in _read_known() if _is_of(each, config, recipes)), None)
    if entry is None:
        corpora = sorted({f"{each['preset']} on {each['corpus']}" for each in _read_known()})
        return Standing(
            "unknown",
            f"{shown}: neither a run of ours nor a publication is known for this model on this corpus (there is one for "
            f"{', '.join(corpora)}); `packtrain evaluate` compares it with simpler methods on the same text",
        )
    sample = _nearest_sample(entry, bits_per_byte)
    if "published" in entry:
        return Standing("unknown", _set_beside(entry, config, tokens, loss), sample)
    band = interpolate(entry["points"], tokens)
    what = f"{entry['preset']} on {entry['corpus']}; {entry['source']}"
    if band is None:
        first, last = entry["points"][0][0], entry["points"][-1][0]
        return Standing("unknown", f"{shown}; the band has {first:,} to {last:,} tokens ({what})", sample)
    low, high = band
    state = "within" if low <= bits_per_byte <= high else "below" if bits_per_byte < low else "above"
    word = {"within": "normal, within", "below": "better than", "above": "worse than"}[state]
    differs = _find_differences(entry["preset"], config)
    but = f"; this run is not quite one of those: {', '.join(differs)}" if differs else ""
    return Standing(state, f"{shown}: {word} the band of {low:.3f} to {high:.3f} ({what}){but}", sample, not differs)


def interpolate(points: list[list[float]], tokens: float) -> tuple[float, float] | None:
    """The band at `tokens` between [tokens, low, high], straight in the logarithm of tokens; None outside of them."""
    for (before, *low_before), (after, *low_after) in itertools.pairwise(points):
        if before <= tokens <= after:
            share = math.log(tokens / before) / math.log(after / before)
            low, high = (a + (b - a) * share for a, b in zip(low_before, low_after, strict=True))
            return low, high
    return None


def _set_beside(entry: Mapping[str, Any], config: RunConfig, tokens: int, loss: float) -> str:
    """What to say next to a published loss, which is a single figure."""
    says = f"{loss:.3f} nats per token after {tokens:,} tokens; published: {entry['published']:.3f} ({entry['source']})"
    if config.model.vocab_rows != entry["vocab_size"]:
        return (
            f"{says}; they cannot be compared, because the tokens of that vocabulary of {entry['vocab_size']:,} are other ones "
            f"than those of yours of {config.model.vocab_rows:,}; there is no band"
        )
    return f"{says}; that is one figure, at the end of a run whose length was not published, so there is no band"


def _read_known() -> list[dict[str, Any]]:
    text = resources.files("packtrain.runs").joinpath("bands.json").read_text(encoding="utf-8")
    known: list[dict[str, Any]] = json.loads(text)
    return known


def _is_of(entry: Mapping[str, Any], config: RunConfig, recipes: list[dict[str, Any]]) -> bool:
    if len(recipes) != 1 or entry["preset"] not in shipped("presets"):
        return False
    source = recipes[0].get("source") or {}
    if any(source.get(key) != value for key, value in entry["corpus_source"].items()):
        return False
    preset = load_run_config(entry["preset"]).config
    shape = preset.model.model_copy(update={"vocab_size": config.model.vocab_size})
    return shape == config.model and preset.data.seq_len == config.data.seq_len


def _find_differences(preset: str, config: RunConfig) -> list[str]:
    """Settings that move the loss and are not the preset's, and another length, on which the learning rate depends."""
    usual = load_run_config(preset).config
    expected = dict(flatten(usual))
    differs = [
        f"{key}={value}"
        for key, value in flatten(config)
        if key.partition(".")[0] in _DECIDES and key not in _OWN and value != expected[key]
    ]
    if config.train.epochs != usual.train.epochs:
        differs.append(
            f"its length is {config.train.epochs:g} epochs" if config.train.epochs else "its length is another one"
        )
    elif config.given_steps != usual.given_steps:
        differs.append(f"its length is {config.given_steps} steps, not {usual.given_steps}")
    return differs


def _nearest_sample(entry: Mapping[str, Any], bits_per_byte: float) -> str | None:
    samples = entry.get("samples") or []
    if not samples:
        return None
    nearest = min(samples, key=lambda sample: abs(sample["bits_per_byte"] - bits_per_byte))
    text = " ".join(f"{nearest['prompt']}{nearest['text']}".split())
    return f"text of {nearest['bits_per_byte']:.2f} bits per byte, by a run of {entry['preset']}: {text}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def describe_standing(layout: RunLayout) -> list[str]:
    """`judge_run` in sentences, for people; why not, if the run's files cannot be read."""
    try:
        standing = judge_run(layout)
    except PacktrainError as error:
        return [f"where the loss stands is not known: {error}"]
    return [standing.says, *([standing.sample] if standing.sample else [])]

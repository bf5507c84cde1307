"""Decides what the report says about whether a run's loss is normal: its place in the band of runs like it."""

import math

from packtrain.errors import PacktrainError
from packtrain.report.collect import RunRecord
from packtrain.report.markup import Markup, el
from packtrain.report.numbers import number
from packtrain.runs.bands import judge
from packtrain.runs.layout import RunLayout, load_config


def standing(record: RunRecord) -> Markup | None:
    """Where the last validation is in the band of its preset and corpus, and text of that loss; None if that is not known."""
    last = record.validation[-1] if record.validation else {}
    bits, loss = number(last.get("val_bpb")), number(last.get("val_loss"))
    if not math.isfinite(bits) or not math.isfinite(loss):
        return None
    dataset = record.manifest.get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    sources = dataset.get("sources", [dataset])
    recipes = (
        [each.get("recipe") or {} for each in sources if isinstance(each, dict)] if isinstance(sources, list) else []
    )
    try:
        config = load_config(RunLayout(record.folder))
        tokens = int(number(last.get("step"))) * config.train.global_batch_tokens
        found = judge(config, recipes, tokens=tokens, bits_per_byte=bits, loss=loss)
    except (PacktrainError, ValueError, AttributeError):
        return None
    parts = [el("p", "Is this loss normal? ", found.says, ".")]
    if found.sample is not None:
        parts.append(el("p", el("small", found.sample)))
    return el("div", *parts)

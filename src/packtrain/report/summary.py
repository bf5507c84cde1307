"""Decides which few figures sum up a run: a sentence, and a strip of key figures."""

import math
from collections.abc import Sequence

from packtrain.report import figures, sections
from packtrain.report.collect import RunRecord
from packtrain.report.held_out import evaluated_on, validated_on
from packtrain.report.markup import Child, Markup, el
from packtrain.report.numbers import number
from packtrain.report.scales import find_range

# Below this share, the difference from a yardstick is not worth a word.
_TIE = 0.01


def standfirst(record: RunRecord) -> Markup:
    """One sentence: size, tokens, and bits per byte compared with those of the best simpler method."""
    bits, step = bits_per_byte(record)
    size = number(record.manifest.get("parameters"))
    parts: list[Child] = []
    if math.isfinite(size):
        parts += ["A Llama of ", el("b", f"{figures.short(size)} parameters"), " "]
    else:
        parts.append("A Llama ")
    if not record.last_step:
        return el("p", *parts, "that has not logged a step yet.", class_="standfirst")
    parts += ["that has read ", el("b", f"{figures.short(tokens_seen(record))} tokens")]
    if bits is None:
        return el("p", *parts, ".", class_="standfirst")
    parts += [
        " and needs ",
        el("b", f"{bits:.3f} bits"),
        f" per byte of text that it has not seen (step {figures.exact(step)})",
    ]
    # Only `packtrain evaluate` measures on the same documents as the yardsticks.
    if evaluated_bits(record) is not None:
        parts.append(_compare_with_best(bits, sections.yardsticks(record)))
    return el("p", *parts, ".", class_="standfirst")


def _compare_with_best(bits: float, yardsticks: Sequence[tuple[str, float]]) -> str:
    """The model beside the best of the simpler methods: beside a worse one, it would look better than it is."""
    if not yardsticks:
        return ""
    name, best = min(yardsticks, key=lambda yardstick: yardstick[1])
    which = f"{name} ({best:.3f})" + (f", the best of {len(yardsticks)} simpler methods" if len(yardsticks) > 1 else "")
    share = 1 - bits / best
    if abs(share) < _TIE:
        return f", level with {which}"
    return f", {abs(share):.0%} {'less' if share > 0 else 'more'} than {which}"


def _count_passes(record: RunRecord) -> float | None:
    """How often the run has read its text so far; None for a mixture, and below one."""
    dataset = record.manifest.get("dataset")
    ledger = dataset.get("ledger") if isinstance(dataset, dict) else None
    tokens = ledger.get("tokens") if isinstance(ledger, dict) else None
    of_epoch = number(tokens.get("train")) if isinstance(tokens, dict) else math.nan
    passes = tokens_seen(record) / of_epoch if of_epoch > 0 else math.nan
    return passes if passes >= 1 else None


def bits_per_byte(record: RunRecord) -> tuple[float | None, int]:
    """Bits per byte and their step: from the evaluation or, without one, from the last validation during training."""
    bits = evaluated_bits(record)
    if bits is not None:
        step = number(record.evaluation.get("step"))
        return bits, int(step) if math.isfinite(step) else record.last_step
    return validated_bits(record)


def evaluated_bits(record: RunRecord) -> float | None:
    """Bits per byte that `packtrain evaluate` measured; None without an evaluation."""
    model = record.evaluation.get("model")
    bits = number(model.get("bits_per_byte")) if isinstance(model, dict) else math.nan
    return bits if math.isfinite(bits) else None


def validated_bits(record: RunRecord) -> tuple[float | None, int]:
    """Bits per byte of the last validation during training that has them, and its step; None without one."""
    for line in reversed(record.validation):
        if math.isfinite(number(line.get("val_bpb"))):
            return number(line["val_bpb"]), int(line["step"])
    return None, 0


def byline(record: RunRecord) -> str:
    """How far the run has come, and where and when it ran."""
    planned, hardware = record.planned_steps, record.manifest.get("hardware")
    of = f" of {figures.exact(planned)}" if planned else ""
    words = [f"{figures.exact(record.last_step)}{of} steps logged"]
    if passes := _count_passes(record):
        words.append(f"{passes:.2f} passes over the text")
    last = record.events[-1] if record.events else {}
    if last.get("event"):
        words.append(f"last event: {str(last['event']).replace('_', ' ')}")
    if isinstance(hardware, dict) and hardware.get("device"):
        words.append(str(hardware["device"]))
    created = number(record.manifest.get("created"))
    if created > 0:
        words.append(f"started {figures.moment(created)}")
    return " · ".join(words)


def key_figures(record: RunRecord) -> Markup:
    """The figures that a reader looks for first; those that no file of the run gives are left out."""
    cells: list[tuple[str, str, str]] = []
    size = number(record.manifest.get("parameters"))
    if math.isfinite(size):
        cells.append(("Parameters", figures.short(size), figures.exact(size)))
    if record.training:
        tokens = tokens_seen(record)
        cells.append(("Tokens seen", figures.short(tokens), figures.exact(tokens)))
    best = lowest_loss(record)
    if best:
        words = f"nats per token, step {figures.exact(best[1])}, on {validated_on(record).words}"
        cells.append(("Lowest held-out loss", f"{best[0]:.4f}", words))
    bits, step = bits_per_byte(record)
    if bits is not None:
        on = (evaluated_on(record) if evaluated_bits(record) is not None else validated_on(record)).words
        cells.append(("Bits per byte", f"{bits:.3f}", f"step {figures.exact(step)}, on {on}"))
    speed = median_speed(record)
    if math.isfinite(speed):
        cells.append(("Tokens per second", figures.short(speed), "median of the logged steps"))
    seconds = training_seconds(record)
    if seconds:
        cells.append(("Time in steps", figures.duration(seconds), "excluding validation and saving"))
    _, memory = find_range(record.column("memory_bytes"))
    if math.isfinite(memory):
        cells.append(("Peak memory", figures.size(memory), "of one process"))
    return sections.strip(cells) if cells else Markup()


def lowest_loss(record: RunRecord) -> tuple[float, int] | None:
    """The lowest loss of a validation during training, and its step."""
    found = [(number(line.get("val_loss")), int(line["step"])) for line in record.validation]
    return min((pair for pair in found if math.isfinite(pair[0])), default=None)


def training_seconds(record: RunRecord) -> float:
    """Seconds spent in steps: each line's mean per step, times the steps since the line before it."""
    import numpy as np

    gaps, seconds = np.diff(record.column("step"), prepend=0), record.column("step_s")
    is_known = np.isfinite(seconds)
    return float((gaps * seconds)[is_known].sum())


def tokens_seen(record: RunRecord) -> float:
    """Training tokens up to the last logged step."""
    return float(record.tokens_at([record.last_step])[0])


def median_speed(record: RunRecord) -> float:
    """Tokens per second of the middle logged step; NaN if none has them."""
    import numpy as np

    speeds = record.column("tokens_per_s")
    known = speeds[np.isfinite(speeds)]
    return float(np.median(known)) if len(known) else math.nan

"""Decides which few figures sum up a run: a sentence, a strip of key figures, and a row of the comparison."""

import math
import statistics
from collections.abc import Sequence

from packtrain.report import figures, sections
from packtrain.report.collect import RunRecord, number
from packtrain.report.markup import Child, Markup, el


def standfirst(record: RunRecord) -> Markup:
    """One sentence: size, tokens, and bits per byte compared with zlib's."""
    bits, step = _bits(record)
    size = number(record.manifest.get("parameters"))
    parts: list[Child] = []
    if math.isfinite(size):
        parts += ["A Llama of ", el("b", f"{figures.short(size)} parameters"), " "]
    else:
        parts.append("A Llama ")
    if not record.last_step:
        return el("p", *parts, "that has not logged a step yet.", class_="standfirst")
    parts += ["that has read ", el("b", f"{figures.short(record.tokens_at(record.last_step))} tokens")]
    if bits is None:
        return el("p", *parts, ".", class_="standfirst")
    parts += [
        " and needs ",
        el("b", f"{bits:.3f} bits"),
        f" per byte of text that it has not seen (step {figures.exact(step)})",
    ]
    zlib = _bits_of_zlib(record)
    model = record.evaluation.get("model")
    # Only `packtrain evaluate` measures on the same documents as the yardsticks.
    if zlib is not None and isinstance(model, dict) and number(model.get("bits_per_byte")) == bits:
        share = abs(1 - bits / zlib)
        parts.append(f", {share:.0%} {'less' if bits < zlib else 'more'} than zlib at its best ({zlib:.3f})")
    return el("p", *parts, ".", class_="standfirst")


def _bits(record: RunRecord) -> tuple[float | None, int]:
    """Bits per byte and their step: from the evaluation or, without one, from the last validation during training."""
    model = record.evaluation.get("model")
    if isinstance(model, dict) and math.isfinite(number(model.get("bits_per_byte"))):
        step = number(record.evaluation.get("step"))
        return number(model.get("bits_per_byte")), int(step) if math.isfinite(step) else record.last_step
    for line in reversed(record.validation):
        if math.isfinite(number(line.get("val_bpb"))):
            return number(line["val_bpb"]), int(line["step"])
    return None, 0


def _bits_of_zlib(record: RunRecord) -> float | None:
    rows = record.evaluation.get("yardsticks")
    for row in rows if isinstance(rows, list) else []:
        if (
            isinstance(row, dict)
            and str(row.get("name", "")).startswith("zlib")
            and number(row.get("bits_per_byte")) > 0
        ):
            return number(row["bits_per_byte"])
    return None


def byline(record: RunRecord) -> str:
    """How far the run has come, and where and when it ran."""
    planned, hardware = record.planned_steps, record.manifest.get("hardware")
    of = f" of {figures.exact(planned)}" if planned else ""
    words = [f"{figures.exact(record.last_step)}{of} steps logged"]
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
        tokens = record.tokens_at(record.last_step)
        cells.append(("Tokens seen", figures.short(tokens), figures.exact(tokens)))
    best = _lowest_loss(record)
    if best:
        cells.append(("Lowest held-out loss", f"{best[0]:.4f}", f"nats per token, step {figures.exact(best[1])}"))
    bits, step = _bits(record)
    if bits is not None:
        cells.append(("Bits per byte", f"{bits:.3f}", f"held out, step {figures.exact(step)}"))
    speeds = _finite(record.column("tokens_per_s"))
    if speeds:
        cells.append(("Tokens per second", figures.short(statistics.median(speeds)), "median of the logged steps"))
    seconds = _training_seconds(record)
    if seconds:
        cells.append(("Time in steps", figures.duration(seconds), "excluding validation and saving"))
    memory = _finite(record.column("memory_bytes"))
    if memory:
        cells.append(("Peak memory", figures.size(max(memory)), "of one process"))
    return sections.strip(cells) if cells else Markup()


def results(records: Sequence[RunRecord]) -> Markup:
    """A table with a row for each run."""
    rows = []
    for record in records:
        best, (bits, _) = _lowest_loss(record), _bits(record)
        speeds, size = _finite(record.column("tokens_per_s")), number(record.manifest.get("parameters"))
        seconds = _training_seconds(record)
        rows.append(
            (
                record.name,
                figures.short(size) if math.isfinite(size) else "–",
                figures.exact(record.last_step),
                figures.short(record.tokens_at(record.last_step)),
                f"{best[0]:.4f}" if best else "–",
                figures.decimal(bits),
                figures.short(statistics.median(speeds)) if speeds else "–",
                figures.duration(seconds) if seconds else "–",
            )
        )
    head = (
        "Run",
        "Parameters",
        "Steps",
        "Tokens",
        "Lowest held-out loss",
        "Bits per byte",
        "Median tokens/s",
        "Time in steps",
    )
    return sections.table(head, rows, numbers=range(1, 8))


def _lowest_loss(record: RunRecord) -> tuple[float, int] | None:
    found = [(number(line.get("val_loss")), int(line["step"])) for line in record.validation]
    return min((pair for pair in found if math.isfinite(pair[0])), default=None)


def _training_seconds(record: RunRecord) -> float:
    """Seconds spent in steps: each line's mean per step, times the steps since the line before it."""
    steps = [0, *(int(line["step"]) for line in record.training)]
    gaps = [after - before for before, after in zip(steps, steps[1:], strict=False)]
    times = zip(gaps, record.column("step_s"), strict=True)
    return sum(gap * seconds for gap, seconds in times if math.isfinite(seconds))


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]

"""Decides which curves are drawn for one run or several, and what is shown with each."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from packtrain.report import summary
from packtrain.report.collect import RunRecord
from packtrain.report.held_out import evaluated_on, group_by_text, validated_on
from packtrain.report.numbers import as_numbers, number
from packtrain.report.scales import count_finite, find_range, running_mean
from packtrain.report.series import MOST_DRAWN, Figure, Level, Mark, Series

if TYPE_CHECKING:
    import numpy as np

_VIEWS = ("steps", "tokens")
_MAX_MARKS = 40
# Below this many logged steps a running mean hides more than it shows.
_MIN_TO_SMOOTH = 40
_TRAINING, _HELD_OUT, _EVALUATED = 0, 1, 2


def learning(records: Sequence[RunRecord]) -> list[Figure]:
    """Loss and bits per byte. For a single run, one figure shows both splits; for several, each split has its own."""
    if len(records) == 1:
        return _drawable([_loss_of_one(records[0]), _bits_of_one(records[0])])
    training = Figure(
        "loss",
        "Training loss",
        "nats per token",
        tuple(_smoothed(r, i, r.name)[0] for i, r in enumerate(records)),
        note="Running means. Losses per token compare only between runs with the same tokenizer.",
        views=_VIEWS,
        offers_log=True,
    )
    letters = group_by_text([validated_on(record) for record in records])
    is_same = len(set(letters)) == 1
    names = [r.name if is_same else f"{r.name} ({letter})" for r, letter in zip(records, letters, strict=True)]
    note = "" if is_same else "Not all on the same held-out text: only curves with the same letter compare."
    held_out = Figure(
        "validation",
        "Held-out loss",
        "nats per token",
        tuple(_validation(r, "val_loss", i, names[i]) for i, r in enumerate(records)),
        note=note,
        views=_VIEWS,
        offers_log=True,
    )
    bits = Figure(
        "bits",
        "Bits per byte on held-out text",
        "lower is better",
        tuple(_validation(r, "val_bpb", i, names[i]) for i, r in enumerate(records)),
        note=note,
        views=_VIEWS,
        levels=_levels(records[0]) if _share_yardsticks(records) else (),
        offers_log=True,
    )
    return _drawable([training, held_out, bits])


def machinery(records: Sequence[RunRecord]) -> list[Figure]:
    """Learning rate, gradient norm, speed, memory and utilisation, over the same axis."""
    is_alone = len(records) == 1
    kinds: list[tuple[str, str, str, str, bool]] = [
        ("lr", "Learning rate", "per step", "rate", False),
        ("grad_norm", "Gradient norm", "before clipping", "decimal", True),
        ("tokens_per_s", "Speed", "training tokens per second, over all processes", "short", False),
        ("memory_bytes", "Memory", "peak so far in one process", "size", False),
        ("mfu", "Model FLOPs utilisation", "share of the device's bf16 peak", "decimal", False),
    ]
    drawn = []
    for name, title, unit, style, offers_log in kinds:
        series = tuple(
            Series(
                "" if is_alone else r.name,
                _positions(r),
                r.column(name),
                i,
                has_end_label=is_alone,
            )
            for i, r in enumerate(records)
        )
        drawn.append(
            Figure(
                name.replace("_", "-"),
                title,
                unit,
                series,
                views=_VIEWS[:1] if is_alone else _VIEWS,
                from_zero=True,
                offers_log=offers_log,
                height_px=170,
                number=style,  # type: ignore[arg-type]
                levels=_clip_level(records) if name == "grad_norm" else (),
            )
        )
    return _drawable(drawn)


def _loss_of_one(record: RunRecord) -> Figure:
    series = [*_smoothed(record, _TRAINING, "training"), _validation(record, "val_loss", _HELD_OUT, "held out")]
    is_smoothed = len(series) > 2
    is_thinned = len(record.training) > MOST_DRAWN
    thinned = f" Of {len(record.training):,} logged steps, the lowest and the highest of each stretch are drawn, so no spike is lost."
    notes = ["Thin line: each logged step. Thick line: the running mean." + thinned * is_thinned] if is_smoothed else []
    num_bad = len(record.training) - count_finite(record.column("loss"))
    if num_bad:
        notes.append(
            f"A cross at the top marks a step whose loss was not finite ({num_bad} of {len(record.training)})."
        )
    marks = _marks(record)
    if marks:
        notes.append(
            "Dotted lines: " + ", ".join(dict.fromkeys(mark.name.partition(" at ")[0] for mark in marks)) + "."
        )
    return Figure(
        "loss",
        "Loss",
        "nats per token",
        tuple(s for s in series if len(s.ys)),
        note=" ".join(notes),
        views=_VIEWS,
        marks=marks,
        offers_log=True,
        height_px=320,
    )


def _bits_of_one(record: RunRecord) -> Figure:
    note, levels = f"During training, each validation is on {validated_on(record).words}.", _levels(record)
    series = [_validation(record, "val_bpb", _HELD_OUT, "validation")]
    evaluated = summary.evaluated_bits(record)
    if evaluated is not None:
        step = summary.bits_per_byte(record)[1]
        at = ([float(step)], [float(record.tokens_at([step])[0])])
        series.append(Series("evaluation", at, [evaluated], _EVALUATED, "dots", has_end_label=False))
        note += f" The evaluation{' and the dashed lines are' if levels else ' is'} on {evaluated_on(record).words}."
    return Figure(
        "bits",
        "Bits per byte on held-out text",
        "lower is better" + ("; dashed lines: what simpler methods reach" if levels else ""),
        tuple(series),
        note=note,
        views=_VIEWS,
        levels=levels,
        offers_log=True,
        height_px=320,
    )


def _drawable(figures: Sequence[Figure]) -> list[Figure]:
    """The figures that have a finite value."""
    return [figure for figure in figures if any(count_finite(series.ys) for series in figure.series)]


def _positions(
    record: RunRecord, validation: Sequence[dict[str, Any]] | None = None
) -> "tuple[np.ndarray, np.ndarray]":
    """Steps and tokens of the training lines or of `validation`; a line that does not count tokens gets them from its step."""
    import numpy as np

    if validation is None:
        steps, tokens = record.column("step"), record.column("tokens")
    else:
        steps, tokens = (as_numbers([line.get(key) for line in validation]) for key in ("step", "tokens"))
    if np.isfinite(tokens).all():
        return steps, tokens
    return steps, np.where(np.isfinite(tokens), tokens, record.tokens_at(steps))


def _smoothed(record: RunRecord, colour: int, name: str) -> list[Series]:
    """The running mean of the training loss and its raw points; only the points if there are few."""
    positions, losses = _positions(record), record.column("loss")
    if len(losses) < _MIN_TO_SMOOTH:
        return [Series(name, positions, losses, colour)]
    mean = Series(f"{name}, running mean" if name == "training" else name, positions, _mean(losses), colour)
    return [mean, Series("each logged step", positions, losses, colour, "faint", has_end_label=False)]


def _mean(losses: "np.ndarray") -> "np.ndarray":
    return running_mean(losses, max(2, len(losses) // 40))


def _validation(record: RunRecord, key: str, colour: int, name: str) -> Series:
    values = as_numbers([line.get(key) for line in record.validation])
    return Series(name, _positions(record, record.validation), values, colour, "dots")


def _levels(record: RunRecord) -> tuple[Level, ...]:
    rows = record.evaluation.get("yardsticks")
    if not isinstance(rows, list):
        return ()
    found = [Level(str(row.get("name")), number(row.get("bits_per_byte"))) for row in rows if isinstance(row, dict)]
    # What knows nothing is far above every curve, and would flatten them.
    return tuple(level for level in found if math.isfinite(level.y) and level.name != "uniform")


def _share_yardsticks(records: Sequence[RunRecord]) -> bool:
    return all(record.evaluation.get("yardsticks") == records[0].evaluation.get("yardsticks") for record in records)


def _clip_level(records: Sequence[RunRecord]) -> tuple[Level, ...]:
    clips = {number(record.setting("train.grad_clip")) for record in records}
    clip = clips.pop() if len(clips) == 1 else math.nan
    highest = max((y for r in records if math.isfinite(y := find_range(r.column("grad_norm"))[1])), default=0.0)
    # A limit far above every value would flatten the curve.
    return (Level("clip at", clip),) if 0 < clip < 1.5 * highest else ()


def _marks(record: RunRecord) -> tuple[Mark, ...]:
    found = []
    for event in record.events:
        step, name = event.get("step"), str(event.get("event", ""))
        if isinstance(step, int) and 0 < step <= record.last_step and any(word in name for word in _MARKED):
            found.append(Mark(f"{name} at step {step}", (float(step), float(record.tokens_at([step])[0]))))
    return tuple(found[:_MAX_MARKS])


_MARKED = ("resum", "skip", "roll", "nonfinite", "non_finite", "non-finite")

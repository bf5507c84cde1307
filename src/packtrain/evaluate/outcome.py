"""Decides what an evaluation on text says: the figures of the model and of simpler methods, of one source or of a mixture."""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from packtrain.evaluate.held_out import combine
from packtrain.evaluate.loss import LossResult
from packtrain.evaluate.tally import Tally, find_intervals
from packtrain.evaluate.yardsticks import Yardstick

Protocol = Literal["rows", "documents"]


@dataclass(frozen=True)
class MeasuredPart:
    """What was measured of one source."""

    name: str
    share: float
    result: LossResult
    tally: Tally
    yardsticks: list[Yardstick]
    coverage: str


def describe_outcome(
    parts: Sequence[MeasuredPart],
    *,
    protocol: dict[str, Any],
    sees: str,
    step: int | None,
    average: str | None,
    text: dict[str, Any],
) -> dict[str, Any]:
    """The content of an evaluation's file, `seconds` excepted.

    `protocol` has its name and windows, `average` the kind of average that the weights are, `text` says what was measured on.
    For several sources, the figures are for text mixed by share, and `sources` has the same figures for each.
    """
    shares = [part.share for part in parts]
    result = combine(shares, [part.result for part in parts])
    outcome: dict[str, Any] = {
        "format": 1,
        "created": time.time(),
        "step": step,
        "average": average,
        "dataset": text,
        "protocol": protocol,
        "coverage": " ".join(part.coverage for part in parts),
        "model": _model(result, sees, parts),
        "yardsticks": _combine_yardsticks(parts),
    }
    if len(parts) == 1:
        return outcome | _breakdown(parts[0].tally)
    outcome["sources"] = [
        {
            "name": part.name,
            "share": part.share,
            "model": _model(part.result, sees, [part]),
            "yardsticks": _listed(part.yardsticks),
            **_breakdown(part.tally),
        }
        for part in parts
    ]
    return outcome


def _model(result: LossResult, sees: str, parts: Sequence[MeasuredPart]) -> dict[str, Any]:
    figures = {key: _finite(value) for key, value in dataclasses.asdict(result).items()}
    intervals = find_intervals([part.tally for part in parts], [part.share for part in parts])
    documents = sum(int((part.tally.tokens > 0).sum()) for part in parts)
    return {**figures, "num_documents": documents, "interval": intervals, "sees": sees}


def _breakdown(tally: Tally) -> dict[str, Any]:
    return {"by_length": tally.by_length(), "by_position": tally.by_position()}


def _combine_yardsticks(parts: Sequence[MeasuredPart]) -> list[dict[str, Any]]:
    """For a mixture, mean bits of a token over its mean bytes, both weighted by share, as for the model."""
    if len(parts) == 1:
        return _listed(parts[0].yardsticks)
    weights = [part.share * part.result.num_bytes / part.result.num_tokens for part in parts]
    sees = "what it sees of each source; the mean of the sources by share"
    combined = []
    # A source without training text has no unigram; then the mixture has none.
    names = [one.name for one in parts[0].yardsticks if all(one.name in _names(part) for part in parts)]
    for name in names:
        same = [next(one for one in part.yardsticks if one.name == name) for part in parts]
        bits = math.fsum(weight * one.bits_per_byte for weight, one in zip(weights, same, strict=True))
        combined.append(Yardstick(name, bits / math.fsum(weights) if any(weights) else math.nan, sees))
    return _listed(combined)


def _names(part: MeasuredPart) -> list[str]:
    return [one.name for one in part.yardsticks]


def _listed(yardsticks: list[Yardstick]) -> list[dict[str, Any]]:
    return [{"name": y.name, "bits_per_byte": _finite(y.bits_per_byte), "sees": y.sees} for y in yardsticks]


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None

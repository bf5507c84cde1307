"""Decides what a finished ladder says: the law over its runs, the check on its largest size, and the preset's loss."""

import itertools
import math
from collections.abc import Iterator, Sequence

from packtrain.errors import RunError
from packtrain.ladder.law import FREE_NUMBERS, Point, bootstrap, fit, interval
from packtrain.runs.ladder import HeldOutCheck, LadderRecord, Law, Prediction, RungRecord

NUM_DRAWS = 400
_SEED = 0
_FEWEST_SIZES = 2
_FEWEST_LENGTHS = 2
# Runs whose lengths differ by less are of one length.
_LEAST_SPREAD = 1.2


def conclude(record: LadderRecord) -> LadderRecord:
    """The ladder with its law, intervals, held-out check and prediction.

    Raises RunError if too few runs ended well to fit a law.
    """
    ended = [run for run in record.runs if run.loss is not None]
    _check_enough(record, ended)
    points = [_point(run) for run in ended]
    law = fit(points)
    laws = bootstrap(points, law, num_draws=NUM_DRAWS, seed=_SEED)
    checked = _check_largest(ended)
    intervals = {
        key: interval([getattr(drawn, key) for drawn in laws])
        for key in ("floor", "size_factor", "tokens_factor", "exponent")
    }
    return record.model_copy(
        update={
            "law": law,
            "law_intervals": intervals,
            "held_out": checked,
            "prediction": _predict(record, law, laws, checked, ended),
            "doubts": tuple(_doubt(ended)),
        }
    )


def _doubt(ended: Sequence[RungRecord]) -> Iterator[str]:
    """A power law falls less with each doubling of the tokens. Sizes whose loss falls more and more are not there yet."""
    sizes: dict[int, list[RungRecord]] = {}
    for run in sorted(ended, key=lambda run: run.tokens):
        sizes.setdefault(run.parameters, []).append(run)
    known = [_slopes(runs) for runs in sizes.values() if len(runs) > _FEWEST_LENGTHS]
    steeper = sum(slopes[-1] > slopes[0] for slopes in known)
    if 2 * steeper > len(known):
        yield (
            f"In {steeper} of {len(known)} sizes the loss falls faster with the last doubling of the tokens than with the first. A "
            "law falls more slowly each time, so these runs are at their beginning, where none holds: expect a much lower loss than "
            "predicted. Raise --budget."
        )


def _slopes(runs: Sequence[RungRecord]) -> list[float]:
    """By how much the loss of one size falls with each doubling of the tokens, from one length to the next."""
    return [
        ((first.loss or 0.0) - (second.loss or 0.0)) / math.log2(second.tokens / first.tokens)
        for first, second in itertools.pairwise(runs)
        if second.tokens > first.tokens
    ]


def _check_enough(record: LadderRecord, ended: Sequence[RungRecord]) -> None:
    sizes, lengths = {run.parameters for run in ended}, [run.tokens for run in ended]
    is_enough = len(ended) >= FREE_NUMBERS and len(sizes) >= _FEWEST_SIZES
    if is_enough and max(lengths) > _LEAST_SPREAD * min(lengths):
        return
    diverged = sum(run.state == "diverged" for run in record.runs)
    raise RunError(
        f"{len(ended)} of {len(record.runs)} runs, of {len(sizes)} sizes, ended with a loss ({diverged} diverged), and a law "
        f"takes {FREE_NUMBERS}, of {_FEWEST_SIZES} sizes and two lengths; lower optim.lr, and give another --out folder"
    )


def _check_largest(ended: Sequence[RungRecord]) -> HeldOutCheck | None:
    """The longest run of the largest size, by a law fitted to the other sizes; None if those are too few."""
    most = max(run.parameters for run in ended)
    others = [run for run in ended if run.parameters < most]
    if len(others) < FREE_NUMBERS or len({run.parameters for run in others}) < _FEWEST_SIZES:
        return None
    largest = max((run for run in ended if run.parameters == most), key=lambda run: run.tokens)
    law = fit([_point(run) for run in others])
    return HeldOutCheck(
        run=largest.name, predicted=law.predict(largest.parameters, largest.tokens), measured=largest.loss or math.nan
    )


def _predict(
    record: LadderRecord, law: Law, laws: Sequence[Law], checked: HeldOutCheck | None, ended: Sequence[RungRecord]
) -> Prediction:
    """The preset's loss. The interval is the bootstrap's, widened to the error of the held-out check if that is larger."""
    loss = law.predict(record.parameters, record.tokens)
    low, high = interval([drawn.predict(record.parameters, record.tokens) for drawn in laws])
    missed = abs(checked.error) if checked else 0.0
    low, high = min(low, loss / (1 + missed)), max(high, loss * (1 + missed))
    # The same for every run, as all read the same held-out rows.
    bits = next(run.bits_per_byte / run.loss for run in ended if run.bits_per_byte and run.loss)
    return Prediction(
        parameters=record.parameters,
        tokens=record.tokens,
        loss=loss,
        low=low,
        high=high,
        bits_per_byte=loss * bits,
        bits_per_byte_low=low * bits,
        bits_per_byte_high=high * bits,
    )


def _point(run: RungRecord) -> Point:
    assert run.loss is not None
    return Point(run.parameters, run.tokens, run.loss)

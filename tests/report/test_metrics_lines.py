"""Lines of metrics.jsonl become the same columns, whether Arrow reads them by the block or they are read one by one."""

import json
import random

import numpy as np
import pytest

from packtrain.report import metrics_lines
from packtrain.report.lines import parse_lines
from packtrain.report.numbers import as_numbers

_INSERTED = ["{", "}", "[", "]", ",", '"', "\n", "\0", "\r", " ", "\\", "é", "1", "-", "e", "01", ":", "\t", "\x01"]
_ODD_VALUES = [None, "nan", True, float("nan"), float("-inf"), 2**60 + 1, 10**30, 5e-324, 1.0, [1], {"a": 1}, "}{", -1]


def plain_line(chance: random.Random, step: int) -> str:
    if chance.random() < 0.1:
        return json.dumps({"step": step, "val_loss": chance.random(), "val_bpb": 1.5})
    line = {"step": step, "tokens": 4096 * step, "loss": chance.random() * 9, "lr": chance.random() * 1e-4}
    return json.dumps(line | ({"mfu": chance.random()} if chance.random() < 0.5 else {"attempt": "second"}))


def odd_line(chance: random.Random, step: int) -> str:
    text = plain_line(chance, step)
    at = chance.randrange(len(text))
    return chance.choice(
        [
            text[:at],
            text[:at] + chance.choice(_INSERTED) + text[at:],
            text + text,
            text.replace('"tokens"', '"loss"'),
            text.replace('"loss"', '"other"'),
            json.dumps(json.loads(text) | {chance.choice(["step", "loss", "lr", "mfu"]): chance.choice(_ODD_VALUES)}),
        ]
    )


def read_slowly(data: bytes) -> tuple[list[list[float]], list[dict], int]:
    """Every line by itself, and each that comes again takes away what was from its step on."""
    lines = [parse_lines(line, step_needed=True) for line in data.split(b"\n")]
    kept: list[list[dict]] = [[], []]
    for line in (line for found, _ in lines for line in found):
        for some, key in zip(kept, ("loss", "val_loss"), strict=True):
            if key in line:
                some[:] = [*(before for before in some if before["step"] < line["step"]), line]
    columns = [as_numbers([line.get(name) for line in kept[0]]).tolist() for name in metrics_lines._COLUMNS]
    return columns, kept[1], sum(broken for _, broken in lines)


@pytest.mark.parametrize("share_odd", [0.0, 0.03, 0.3])
def test_blocks_and_single_lines_give_the_same(monkeypatch: pytest.MonkeyPatch, share_odd: float) -> None:
    monkeypatch.setattr(metrics_lines, "_BLOCK_BYTES", 300)
    monkeypatch.setattr(metrics_lines, "_ARROW_BYTES", 0)
    chance, by_arrow = random.Random(7), 0
    for _ in range(60):
        step, lines = 0, []
        for _ in range(chance.randrange(1, 40)):
            step = max(0, step + chance.choice([1] * 20 + [-4]))
            lines.append((odd_line if chance.random() < share_odd else plain_line)(chance, step))
        data = ("\n".join(lines) + chance.choice(["\n", ""])).encode()
        found, num_broken = metrics_lines.parse_metrics(data)
        columns, validation, expected_broken = read_slowly(data)
        np.testing.assert_array_equal(found.training.table, columns)
        assert (repr(found.validation), num_broken) == (repr(validation), expected_broken)
        first = data[: 1 + data.find(b"\n", len(data) // 2)]
        parts = [metrics_lines.parse_metrics(part)[0] for part in (first, data[len(first) :])]
        np.testing.assert_array_equal((parts[0] + parts[1]).training.table, columns)
        by_arrow += metrics_lines._parse_plain(first) is not None
    assert by_arrow > (10 if share_odd < 0.1 else 0)


def test_a_spike_or_a_gap_among_many_lines_stays_where_it_is() -> None:
    losses: list[float | None] = [2.0] * 30_000
    losses[12_345], losses[29_999], losses[17_000] = 1e6, 77.25, None
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses)]
    training = metrics_lines.parse_metrics(("\n".join(lines) + "\n").encode())[0].training
    np.testing.assert_array_equal(training.column("loss"), np.array(losses, dtype=float))
    assert training.last_step == 29_999

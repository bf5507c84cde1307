"""metrics.jsonl: appended, torn lines cut, taken back to a checkpoint without a trace."""

import json
import math

from packtrain.runs.metrics import Events, JsonLines, read_jsonl, rewind_metrics


def test_lines_come_back_in_order(tmp_path):
    with JsonLines(tmp_path / "m.jsonl") as lines:
        for step in range(3):
            lines.append({"step": step, "loss": 1.5})
    assert [line["step"] for line in read_jsonl(tmp_path / "m.jsonl")] == [0, 1, 2]


def test_a_torn_last_line_is_not_read_and_is_cut_before_more_is_written(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_jsonl(path) == [{"step": 1}]
    with JsonLines(path) as lines:
        lines.append({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_file_of_nothing_but_a_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"st')
    JsonLines(path).close()
    assert path.read_text() == ""


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    with JsonLines(tmp_path / "m.jsonl") as lines:
        lines.append({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "loss": None, "grad_norm": None}


def test_rewinding_takes_out_what_came_after_and_keeps_the_rest_byte_for_byte(tmp_path):
    path = tmp_path / "m.jsonl"
    with JsonLines(path) as lines:
        for step in (1, 2, 3):
            lines.append({"step": step, "loss": 0.1 + 0.2})
    expected = "".join(path.read_text().splitlines(keepends=True)[:2])
    rewind_metrics(path, 2)
    assert path.read_text() == expected


def test_an_event_carries_its_time(tmp_path):
    with Events(tmp_path / "e.jsonl") as events:
        events.record("saved", step=4)
    (event,) = read_jsonl(tmp_path / "e.jsonl")
    assert (event["event"], event["step"]) == ("saved", 4)
    assert event["time"] > 1.7e9

"""Whether the GPU benchmark keeps its deadline and its figures, whatever happens to it, and runs from end to end."""

import json

import pytest
import torch
from benchmarks.gpu import worker
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.child import OUT_OF_MEMORY, Child
from benchmarks.gpu.schedule import MARGIN, RESERVE_S, Schedule

MACHINE = {
    "memory_gb": 80.0,
    "precision": "bf16",
    "without_fp8": None,
    "matmul": "bfloat16, 8192 cubed",
    "matmul_tflops": 700.0,
    "peak_tflops": 989.0,
    "versions": {},
    "priority": {},
    "products_tflops": {},
}
STEP = {"micro_batches": 16, "tokens_per_s": 1e5, "flops": 3e14, "mfu": 0.3, "peak_gb": 40.0, "computed_gb": 41.0}
PROFILE = {"step_ms": 1.0, "kernels_ms": 1.0, "launches": 1, "costliest": [{"kernel": "k", "ms": 1.0, "launches": 1}]}


class Card:
    """A pretended GPU: each task takes `seconds` of its clock, and `answer` may give other figures."""

    def __init__(self, seconds=10.0, answer=None):
        self.time, self.seconds, self.answer, self.tasks = 0.0, seconds, answer, []

    def now(self):
        return self.time

    def start(self, *_):
        card = self

        class Process:
            has_ended = False

            def read(self, _limit_s):
                card.time += 5.0
                return {"device": "H100", "torch": "2.11", "cuda": "12.8"}

            def run(self, task, limit_s):
                card.tasks.append(task)
                card.time += min(card.seconds, limit_s)
                figures = {"machine": MACHINE, "step": STEP, "profile": PROFILE}.get(task["case"], {"ms": 1.0})
                return (card.answer and card.answer(task)) or figures

            def end(self):
                pass

        return Process()

    def run(self, out, *arguments):
        return main(["--out", str(out), *arguments], self.now, self.start)


def read(out):
    return json.loads((out / "gpu.json").read_text())


def test_a_case_is_begun_only_if_it_is_expected_to_end_before_the_deadline():
    card = Card()
    schedule = Schedule(100 + RESERVE_S, card.now)
    assert schedule.fits(100 / MARGIN - 0.1) and not schedule.fits(100 / MARGIN + 0.1)
    card.time = 90
    assert schedule.limit_s(50) == pytest.approx(10)
    assert Schedule(None, card.now).fits(1e9)


def test_estimates_follow_what_the_card_took():
    schedule = Schedule(None, Card().now)
    schedule.learn("step", 10, 30)
    schedule.learn("attention", 10, 1)
    assert schedule.expect_s("step", 20) == pytest.approx(60)
    assert schedule.expect_s("attention", 20) == pytest.approx(2)
    # Fast kernels are no reason to expect a fast checkpoint, slow ones are to expect a slow one.
    assert schedule.expect_s("checkpoint", 20) == pytest.approx(31)
    schedule.learn("attention", 10, 1)
    assert schedule.expect_s("checkpoint", 20) == 20


@pytest.mark.parametrize("seconds", [2.0, 20.0, 70.0, 1000.0])
def test_a_run_ends_before_its_deadline_and_says_what_it_left_out(tmp_path, seconds):
    card = Card(seconds)
    card.run(tmp_path, "--deadline", "540")
    assert card.time <= 540
    found = read(tmp_path)
    names = {each["case"] for each in found["left out"]}
    assert bool(names) == (seconds > 2.0) and not names & set(found["cases"])
    assert all(each["case"] in (tmp_path / "gpu.md").read_text() for each in found["left out"])


def test_a_killed_run_loses_only_the_case_in_progress(tmp_path):
    whole = Card()
    whole.run(tmp_path / "whole")

    def kill(_task):
        if len(card.tasks) == 9:
            raise KeyboardInterrupt

    card = Card(answer=kill)
    with pytest.raises(KeyboardInterrupt):
        card.run(tmp_path / "killed")
    assert list(read(tmp_path / "killed")["cases"]) == list(read(tmp_path / "whole")["cases"])[:8]
    rest = Card()
    rest.run(tmp_path / "killed")
    # What was in progress is run again, and nothing else.
    strip = [[{**task, "folder": None} for task in tasks] for tasks in (card.tasks[:8] + rest.tasks, whole.tasks)]
    assert strip[0] == strip[1]


def test_rows_are_halved_until_they_fit_and_the_next_steps_begin_there(tmp_path):
    card = Card(answer=lambda task: {"failed": OUT_OF_MEMORY} if task["case"] == "step" and task["rows"] > 8 else None)
    card.run(tmp_path)
    rows = [task["rows"] for task in card.tasks if task["case"] in ("step", "profile")]
    assert rows[:5] == [32, 16, 8, 8, 8] and rows.count(64) == 1
    assert "64: out of memory" in (tmp_path / "gpu.md").read_text()


def test_a_check_that_fails_ends_with_an_error_and_is_run_again(tmp_path):
    card = Card(answer=lambda task: {"failed": "wrong"} if task["case"] == "gradients" else None)
    with pytest.raises(SystemExit):
        card.run(tmp_path)
    assert "**FAILED**: wrong" in (tmp_path / "gpu.md").read_text()
    again = Card()
    again.run(tmp_path)
    assert [task["case"] for task in again.tasks] == ["gradients"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"checks": {}, "cases": {}}'])
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    (tmp_path / "gpu.json").write_text(content)
    with pytest.raises(SystemExit, match="choose another --out"):
        Card().run(tmp_path)
    assert (tmp_path / "gpu.json").read_text() == content


def test_a_case_without_memory_is_told_and_the_next_one_runs(monkeypatch):
    def exhaust(_task, _device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setitem(worker.RUNS, "exhaust", exhaust)
    monkeypatch.setitem(worker.RUNS, "count", lambda task, _device: {"rows": task["rows"]})
    cpu = torch.device("cpu")
    assert worker.answer({"case": "exhaust"}, cpu) == {"failed": OUT_OF_MEMORY}
    assert worker.answer({"case": "count", "rows": 3}, cpu) == {"rows": 3}
    assert worker.answer({"case": "count"}, cpu) == {"failed": "KeyError: 'rows'"}


@pytest.mark.slow
def test_a_process_that_runs_over_is_ended(tmp_path):
    child = Child("cpu", tmp_path / "log", tmp_path / "compiled")
    assert child.read(60)["device"] == "CPU"
    task = {"case": "machine", "preset": "llama2-437m", "rows": 64}
    assert child.run(task, 0.1) == {"failed": "ended after 0 s"} and child.has_ended


@pytest.mark.very_slow
def test_all_of_it_runs_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    main(["--out", str(tmp_path), "--device", "cpu", "--presets", "demo", "--step-tokens", "512", "--rows", "1"])
    found = read(tmp_path)
    last = {name: tries[-1] for name, tries in found["cases"].items()}
    assert not [name for name, figures in last.items() if "failed" in figures]
    assert {"machine", "rotary", "loss", "gradients", "documents", "checkpoint", "resume"} <= set(last)
    assert last["resume"]["checkpoints_are_bitwise"] and last["checkpoint"]["save 2 is bitwise"]
    profile = next(figures for name, figures in last.items() if name.startswith("profile"))
    assert 0 < len(profile["costliest"]) <= 40
    assert all("fp8" in each["case"] for each in found["left out"])
    assert any((tmp_path / "compiled").iterdir())

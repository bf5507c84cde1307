"""Faults are injected (noise in the data, learning rates that ruin the weights, a step that hangs), and the run does what it promises."""

import json
import subprocess
import sys
import time
from collections import deque

import numpy as np
import pytest

from packtrain.config.guard import GuardConfig
from packtrain.errors import DivergedError, Interrupted, NonFiniteError
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train import stall
from packtrain.train.guards import Guard, robust_zscore
from packtrain.train.run import train
from packtrain.train.step import NOT_FINITE, StepResult
from tests.train.conftest import ROWS_PER_STEP, SENSITIVE, TINY
from tests.train.test_resume import StopAt, final_state


def events(folder, kind=None):
    return [e for e in read_jsonl(folder / "events.jsonl") if kind in (None, e["event"])]


def losses(folder):
    return {line["step"]: line["loss"] for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line}


def test_a_batch_of_noise_is_skipped_and_told(tiny, spoiled, tmp_path, caplog):
    folder = tmp_path / "run"
    train(tiny(*SENSITIVE, spoiled(20)), folder, resume=False)
    # A guard this sensitive may also take a batch of eight short rows for a spike.
    skipped = next(event for event in events(folder, "skipped") if event["step"] == 20)
    assert skipped["reason"] == "spike of the loss"
    assert "step 20 skipped: spike of the loss" in caplog.text
    assert float(skipped["loss"]) == losses(folder)[20] > losses(folder)[19]
    assert events(folder)[-1]["event"] == "finished" and not events(folder, "rolled_back")


@pytest.mark.slow
def test_a_stretch_of_noise_is_passed_over_and_a_resumed_run_does_so_again(tiny, spoiled, tmp_path):
    config = tiny(*SENSITIVE, spoiled(*range(19, 25)))
    train(config, tmp_path / "whole", resume=False)
    (back,) = events(tmp_path / "whole", "rolled_back")
    # 19 to 22 are one more than the patience; 18 is good, but only 17 was followed by a good step.
    assert (back["step"], back["to_step"], back["num_rollbacks"]) == (22, 16, 1)
    assert back["reason"] == "spike of the loss"
    assert back["loader"]["samples_consumed"] == 22 * ROWS_PER_STEP
    # 23 and 24 are still noise, and skipped.
    skipped = [e["step"] for e in events(tmp_path / "whole", "skipped")]
    assert skipped[:4] == [19, 20, 21, 22] and {17, 18} <= set(skipped[4:])
    lines = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 31))

    # Stopped before the rollback, right after it, and after its data: all end the same.
    for name, moments in {"before": (20,), "after": (18,), "late": (21, 27)}.items():
        folder = tmp_path / name
        is_after = name == "after"
        for moment in moments:
            stop = StopAt(moment) if not is_after else StopOnce(18, after=("rolled_back", folder))
            with pytest.raises(Interrupted):
                train(config, folder, resume=True, on_step=stop)
        train(config, folder, resume=True)
        assert final_state(folder) == final_state(tmp_path / "whole")


@pytest.mark.slow
def test_noise_at_every_other_step_is_passed_over_and_a_resumed_run_does_so_again(tiny, spoiled, tmp_path):
    config = tiny(*SENSITIVE, "guard.spike_zscore=5", spoiled(19, 21, 23, 25))
    train(config, tmp_path / "whole", resume=False)
    assert [e["step"] for e in events(tmp_path / "whole", "skipped")] == [19, 21, 23, 25]
    (back,) = events(tmp_path / "whole", "rolled_back")
    assert (back["step"], back["to_step"], back["loader"]["samples_consumed"]) == (25, 16, 25 * ROWS_PER_STEP)

    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", resume=True, on_step=StopAt(22))
    assert sum(checkpoint.find_newest(RunLayout(tmp_path / "parts")).state["guard"]["recent_skips"]) == 2
    train(config, tmp_path / "parts", resume=True)
    assert final_state(tmp_path / "parts") == final_state(tmp_path / "whole")


class StopOnce(StopAt):
    """Stops at the step only once such an event is recorded."""

    def __init__(self, step, *, after):
        super().__init__(step)
        self.after = after

    def __call__(self, record):
        kind, folder = self.after
        if events(folder, kind):
            super().__call__(record)


@pytest.mark.slow
def test_a_kill_between_rollback_and_next_checkpoint_is_made_good_from_the_events(tiny, spoiled, tmp_path):
    config = tiny(*SENSITIVE, spoiled(*range(19, 25)), "checkpoint.every=4")
    train(config, tmp_path / "whole", resume=False)

    def kill(record):
        if record["step"] == 17 and events(folder, "rolled_back"):
            raise KeyboardInterrupt

    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, resume=False, on_step=kill)
    assert RunLayout(folder).saved_steps()[-1] == events(folder, "rolled_back")[0]["to_step"] == 16
    train(config, folder, resume=True)
    assert len(events(folder, "rolled_back")) == 1
    assert final_state(folder) == final_state(tmp_path / "whole")


def test_without_a_checkpoint_to_go_back_to_the_run_stops(tiny, spoiled, tmp_path):
    config = tiny(*SENSITIVE, spoiled(*range(19, 25)), "checkpoint.every=0")
    with pytest.raises(DivergedError, match=r"4 steps in a row, up to step 22 .*no good checkpoint") as caught:
        train(config, tmp_path / "run", resume=False)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


@pytest.mark.slow
def test_rollbacks_are_counted_and_the_last_one_stops_the_run(tiny, spoiled, tmp_path):
    config = tiny(*SENSITIVE, spoiled(*range(27, 45)), "guard.max_rollbacks=2")
    with pytest.raises(DivergedError, match=r"after 2 rollbacks \(guard.max_rollbacks\)"):
        train(config, tmp_path / "run", resume=False)
    backs = events(tmp_path / "run", "rolled_back")
    assert [e["num_rollbacks"] for e in backs] == [1, 2]
    # Only noise followed the first rollback, so its checkpoint is no longer trusted.
    assert backs[1]["to_step"] < backs[0]["to_step"]


@pytest.mark.slow
def test_weights_that_an_update_ruined_are_taken_back(tiny, tmp_path, monkeypatch):
    """A learning rate explodes for one step: every later loss is a spike, whatever the data."""
    from packtrain.train import loop

    plain = loop.learning_rate

    def exploding(config, peak, step, num_steps):
        is_bad = step == 20 and not events(tmp_path / "run", "rolled_back")
        return 30.0 if is_bad else plain(config, peak, step, num_steps)

    monkeypatch.setattr(loop, "learning_rate", exploding)
    train(tiny(*SENSITIVE), tmp_path / "run", resume=False)
    (back,) = events(tmp_path / "run", "rolled_back")
    # Step 20 itself looked good, and was saved.
    assert (back["step"], back["to_step"]) == (24, 18)
    assert losses(tmp_path / "run")[30] < losses(tmp_path / "run")[18]


def test_spikes_are_left_alone_where_the_guard_is_off(tiny, spoiled, tmp_path):
    train(tiny(*SENSITIVE, spoiled(20), "guard.spike_zscore=0"), tmp_path / "run", resume=False)
    assert not events(tmp_path / "run", "skipped")


def test_the_guard_forgives_a_few_and_stops_a_run_that_is_lost():
    bad, good = StepResult(float("nan"), 1.0, NOT_FINITE), StepResult(2.0, 1.0)
    guard = Guard(GuardConfig(), "fp32")
    assert not any(guard.observe(bad) for _ in range(5))
    assert not any(guard.observe(good) for _ in range(20))
    assert [guard.observe(bad) for _ in range(6)] == [False] * 5 + [True]
    error = guard.explain_stop(31, bad)
    assert isinstance(error, NonFiniteError) and "6 steps in a row, up to step 31" in str(error)
    assert Guard(GuardConfig(patience=2), "fp16").patience == 25


def test_the_state_of_a_guard_is_json_and_comes_back():
    guard = Guard(GuardConfig(window=8), "fp32")
    for number in range(20):
        guard.observe(StepResult(1.0 + number / 7, 0.1 * number))
    guard.observe(StepResult(9.0, 9.0, "spike of the loss"))
    again = Guard(GuardConfig(window=8), "fp32", json.loads(json.dumps(guard.state())))
    assert again.state() == guard.state()
    assert len(guard.state()["losses"]) == 8 and guard.state()["recent_skips"] == [False] * 19 + [True]


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 20])
def test_skips_need_not_come_one_after_another(every):
    """Skips count among the last 4 × patience steps; the step to roll back to comes before all that count."""
    bad, good = StepResult(9.0, 1.0, "spike of the loss"), StepResult(2.0, 1.0)
    guard = Guard(GuardConfig(patience=5), "fp32")
    too_many = [step for step in range(1, 400) if guard.observe(good if step < 30 or step % every else bad)]
    if every >= 4:
        assert not too_many
        return
    first = next(step for step in range(30, 40) if step % every == 0)
    assert too_many[0] == first + 5 * every
    guard = Guard(GuardConfig(patience=5), "fp32")
    for step in range(1, too_many[0] + 1):
        # The state in a checkpoint is enough.
        guard = Guard(GuardConfig(patience=5), "fp32", json.loads(json.dumps(guard.state())))
        guard.observe(good if step < 30 or step % every else bad)
    assert guard.last_good_step(too_many[0]) == first - 2
    assert ("6 steps in a row" if every == 1 else f"6 of {5 * every + 1} steps") in str(
        guard.explain_stop(too_many[0], bad)
    )


def test_going_back_does_not_give_back_rollbacks():
    guard = Guard(GuardConfig(max_rollbacks=1), "fp32")
    assert guard.last_good_step(50) == 49
    guard.num_rollbacks = 1
    guard.restore({"num_rollbacks": 0})
    assert guard.num_rollbacks == 1 and guard.last_good_step(50) is None


def test_the_score_is_robust_and_of_the_logarithm():
    history = deque([2.0 * np.exp(0.1 * deviation) for deviation in (-1, -0.5, 0, 0.5, 1)] * 10 + [900.0])
    score = robust_zscore(2.0 * np.exp(0.5), history, 0.001)
    assert score == pytest.approx(0.5 / (1.4826 * 0.05), rel=0.02)
    assert robust_zscore(1.0, history, 0.001) < 0
    assert robust_zscore(2.2, deque([2.0] * 9), 0.1) == pytest.approx(np.log(1.1) / 0.1)
    assert robust_zscore(0.0, deque([0.0] * 9), 0.1) == 0


def test_nothing_is_judged_before_half_of_the_window_is_there():
    guard = Guard(GuardConfig(window=8), "fp32")
    for _ in range(3):
        guard.observe(StepResult(2.0, 1.0))
    assert guard.judge(1e9, 1e9) is None
    guard.observe(StepResult(2.0, 1.0))
    assert guard.judge(1e9, 1.0) == "spike of the loss"
    assert guard.judge(2.0, 1e9) == "spike of the gradient norm"
    assert guard.judge(1e-9, 1e-9) is None


def test_the_norm_of_a_single_batch_may_be_some_times_the_others():
    """As in healthy runs of the demo: norms stay within a tenth of the median, except for one batch in a thousand."""
    guard = Guard(GuardConfig(), "fp32")
    for number in range(128):
        guard.observe(StepResult(4.0 + 0.2 * (number % 3), 0.8 + 0.05 * (number % 4)))
    assert guard.judge(4.2, 2.5) is None and guard.judge(4.6, 0.9) is None
    assert guard.judge(4.2, 20.0) == "spike of the gradient norm"
    assert guard.judge(9.0, 0.9) == "spike of the loss"


NOT_FINITE_ON_ONE = """
import gc, sys, torch, torch.distributed as dist
from packtrain.data.feed.loader import Batch, Rows
from packtrain.data.feed.position import LoaderState
from packtrain.parallel.ranks import Ranks
from packtrain.parallel.wrap import replicate
from packtrain.config.model import ModelConfig
from packtrain.model.init import build
from packtrain.train.step import Placement, Precision, train_step

rank, cpu = int(sys.argv[1]), torch.device("cpu")
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
config = ModelConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=11)
model = build(config, seed=0)
trained = replicate(model, Ranks(rank, rank, 2), cpu)
if rank == 1:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float(sys.argv[3])
before = [p.detach().clone() for p in model.parameters()]
tokens = torch.arange(10)[None] + rank
batch = Batch(Rows(tokens[:, :-1], tokens[:, 1:]), state=LoaderState("", "", 0, 0, 0), num_targets=18)
result = train_step(
    trained, torch.optim.SGD(model.parameters(), lr=1.0), batch,
    Placement(cpu, Precision("fp32", "cpu", torch.amp.GradScaler("cpu", enabled=False)), 1, Ranks(rank, rank, 2)),
    grad_clip=1.0,
)
assert result.skipped == "not finite", result
assert all(torch.equal(p, q) or q.isnan().any() for p, q in zip(model.parameters(), before))
# A process that leaves while the other still communicates with it may end that one by a signal. A model that outlives the group
# would keep its threads until the interpreter ends.
del trained
gc.collect()
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_what_is_not_finite_on_one_rank_is_skipped_on_all(tmp_path):
    words = [str(tmp_path / "store"), "nan"]
    processes = [subprocess.Popen([sys.executable, "-c", NOT_FINITE_ON_ONE, str(rank), *words]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


@pytest.mark.very_slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_go_back_as_one_does(tiny, spoiled, tmp_path, mode):
    dataset = spoiled(*range(19, 25))
    train(tiny(*SENSITIVE, dataset), tmp_path / "one", resume=False)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "packtrain"]
    settings = [*TINY, *SENSITIVE, dataset, f"parallel.mode={mode}"]
    command = [*torchrun, "train", "demo", *settings, "--run-dir", str(tmp_path / "two")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    kept = ("event", "step", "reason", "to_step", "loader")
    told = [
        [{key: event.get(key) for key in kept} for event in events(tmp_path / name) if event["event"] in kinds]
        for name, kinds in (("one", ("skipped", "rolled_back")), ("two", ("skipped", "rolled_back")))
    ]
    assert told[0] == told[1]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


STALLED = """
import sys, time
from packtrain.config.load import load_run_config
from packtrain.train import loop
from packtrain.train.run import train

def hangs_here(*arguments):
    time.sleep(1.5)
    return check(*arguments)

check = loop.check_ids
loop.check_ids = hangs_here
train(load_run_config("demo", sys.argv[2:]).config, __import__("pathlib").Path(sys.argv[1]), resume=False)
"""


@pytest.mark.parametrize(("action", "code"), [("report", 0), ("stop", 4)])
@pytest.mark.slow
def test_a_step_that_hangs_is_reported_with_its_stack(dataset, tmp_path, action, code):
    folder = tmp_path / "run"
    settings = [*TINY, f"data.dataset={dataset}", "train.steps=1", "evaluate.every=0", "guard.stall_seconds=0.5"]
    command = [sys.executable, "-c", STALLED, str(folder), *settings, f"guard.stall_action={action}"]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == code
    (stalled,) = events(folder, "stalled")
    assert stalled["step"] == 1 and 0.5 <= stalled["seconds"] < 1.5
    stacks = (folder / "stalls" / "rank-0.txt").read_text()
    assert "hangs_here" in stacks and "step 1 has taken" in stacks


def test_a_stalled_process_that_is_to_end_gives_the_others_time_and_a_full_disk_does_not_hold_it(tmp_path, monkeypatch):
    """The second of two ranks reports, although a file blocks its folder, before the first one ends."""
    ended, ranks = [], []
    monkeypatch.setattr(stall.os, "_exit", lambda code: ended.append((code, time.monotonic())))
    (tmp_path / "in-the-way").mkdir()
    (tmp_path / "in-the-way" / "stalls").write_text("")
    for rank, folder in enumerate((tmp_path, tmp_path / "in-the-way")):
        config = GuardConfig(stall_seconds=0.4, stall_action="stop")
        ranks.append(stall.StallWatch(config, RunLayout(folder), rank, None))
    start = time.monotonic()
    with ranks[0] as first, ranks[1] as second, first.step(7), second.step(7):
        while len(ended) < 2 and time.monotonic() < start + 60:
            time.sleep(0.01)
    assert [code for code, _ in ended] == [4, 4]
    assert all(moment - start >= 0.6 for _, moment in ended)
    assert "step 7 has taken" in (tmp_path / "stalls" / "rank-0.txt").read_text()


def test_a_stall_by_default_is_many_times_the_median_step(tmp_path):
    watch = stall.StallWatch(GuardConfig(), RunLayout(tmp_path), 0, None)
    assert watch.limit_s() == float("inf")
    for _ in range(4):
        with watch.step(1):
            pass
    assert watch.limit_s() == 60.0
    watch._durations.extend([10.0] * 9)
    assert watch.limit_s() == 200.0


HANGS_ON_ONE = """
import os, sys, time
from packtrain.cli.main import main
from packtrain.train import loop

def hangs_here(batch, vocab_size):
    if os.environ["RANK"] == victim and batch.state.samples_consumed == 24:
        time.sleep(6)
    return check(batch, vocab_size)

victim, check = sys.argv.pop(1), loop.check_ids
loop.check_ids = hangs_here
main()
"""


@pytest.mark.very_slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(("action", "code"), [("report", 0), ("stop", 1)])
def test_a_stall_on_one_rank_is_reported_with_the_stack_of_each(dataset, tmp_path, victim, action, code):
    (tmp_path / "hangs.py").write_text(HANGS_ON_ONE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    settings = [*TINY, f"data.dataset={dataset}", "guard.stall_seconds=2", f"guard.stall_action={action}"]
    command = [*torchrun, tmp_path / "hangs.py", str(victim), "train", "demo", *settings, "--run-dir", tmp_path / "run"]
    # The launcher exits with 1 if a process exits with anything but 0.
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == code
    (stalled,) = events(tmp_path / "run", "stalled")
    assert stalled["step"] == 3
    stacks = [(tmp_path / "run" / "stalls" / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert "hangs_here" in stacks[victim] and "hangs_here" not in stacks[1 - victim]
    # The other waits for it.
    assert "train_step" in stacks[1 - victim]

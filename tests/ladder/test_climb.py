"""Does a ladder of seconds end with a law, continue after a stop, and refuse what is not its own?"""

import os
import signal

import pytest
from tests.corpora import recipe

from packtrain.config.load import load_run_config
from packtrain.config.run import RunConfig
from packtrain.data.format.shards import open_dataset
from packtrain.errors import ConfigError, DatasetError, Interrupted, RunError
from packtrain.ladder.budget import parse_budget
from packtrain.ladder.climb import climb, plan_ladder
from packtrain.ladder.conclude import conclude
from packtrain.prepare.run import prepare
from packtrain.report.ladder import build_ladder_page, write_ladder_report
from packtrain.runs.ladder import LADDER_FILE, read_ladder
from packtrain.train.run import train

BUDGET = parse_budget("1.8e10flops")


def preset(dataset, *settings):
    shape = (
        "model.hidden_size=128",
        "model.num_hidden_layers=2",
        "model.intermediate_size=256",
        "model.vocab_size=512",
    )
    length = ("data.seq_len=32", "train.global_batch_tokens=64", "train.steps=1000", "train.precision=fp32")
    words = (*shape, *length, f"data.dataset={dataset}", "evaluate.tokens=512", "evaluate.prompts=[]", *settings)
    return load_run_config("demo", words).config


@pytest.fixture(scope="module")
def ladder(dataset, tmp_path_factory):
    """A ladder that was stopped in its second run and continued: its folder, and what the stop said."""
    folder = tmp_path_factory.mktemp("ladder") / "tiny"
    first = []

    def stop_in_the_second_run(done, _):
        if not first:
            first.append(read_ladder(folder).runs[0].steps)
        if done > first[0] + 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stop:
        climb("tiny", preset(dataset), BUDGET, folder, on_step=stop_in_the_second_run)
    assert [run.state for run in read_ladder(folder).runs[:2]] == ["finished", "planned"]
    ended = []
    climb("tiny", preset(dataset), BUDGET, folder, on_end=ended.append)
    assert len(ended) == len(read_ladder(folder).runs) - 1
    return folder, str(stop.value)


@pytest.mark.slow
def test_a_ladder_predicts_the_preset_and_checks_itself(ladder):
    record = read_ladder(ladder[0])
    assert len({run.parameters for run in record.runs}) >= 3
    assert all(run.state == "finished" for run in record.runs)
    found = record.prediction
    assert found.low <= found.loss <= found.high
    assert found.loss < max(run.loss for run in record.runs)
    assert found.bits_per_byte / found.loss == pytest.approx(record.runs[0].bits_per_byte / record.runs[0].loss)
    assert abs(record.held_out.error) < 0.03
    assert record.law.predict(found.parameters, found.tokens) == pytest.approx(found.loss)


@pytest.mark.slow
def test_a_stopped_ladder_ends_as_one_that_never_stopped(ladder, tmp_path):
    folder, said = ladder
    record = read_ladder(folder)
    stopped = record.runs[1]
    assert stopped.name in said
    outcome = train(RunConfig.model_validate(stopped.config), tmp_path / "again", resume=False)
    assert outcome["val_loss"] == stopped.loss


@pytest.mark.slow
def test_a_finished_ladder_is_only_fitted_again(ladder, dataset):
    before = (ladder[0] / LADDER_FILE).read_bytes()
    climb("tiny", preset(dataset, "log.every=5"), BUDGET, ladder[0], on_end=pytest.fail)
    assert (ladder[0] / LADDER_FILE).read_bytes() == before


@pytest.mark.slow
def test_a_ladder_of_another_command_is_refused(ladder, dataset):
    with pytest.raises(RunError, match=r"--budget 1\.8e10flops instead of 1h"):
        climb("tiny", preset(dataset), parse_budget("1h"), ladder[0])
    with pytest.raises(RunError, match=r"optim\.lr=0.004 instead of 0.001"):
        climb("tiny", preset(dataset, "optim.lr=1e-3"), BUDGET, ladder[0])


def test_a_folder_of_anything_else_is_refused(dataset, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"does not hold a ladder \(it has notes.txt\); give another --out"):
        climb("tiny", preset(dataset), BUDGET, tmp_path)


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"format": 2}', b'{"format": 1}'])
def test_a_damaged_file_is_refused_in_a_sentence(dataset, tmp_path, torn):
    (tmp_path / LADDER_FILE).write_bytes(torn)
    with pytest.raises(RunError, match=r"ladder.json is (damaged|of another version).*--out"):
        climb("tiny", preset(dataset), BUDGET, tmp_path)


@pytest.mark.slow
def test_a_run_that_diverges_is_left_out_and_said(ladder):
    record = read_ladder(ladder[0])
    lost = record.runs[4].model_copy(update={"state": "diverged", "reason": "loss is NaN", "loss": None})
    runs = tuple(lost if run.name == lost.name else run for run in record.runs)
    less = conclude(record.model_copy(update={"runs": runs}))
    assert less.law is not None
    page = build_ladder_page("tiny", less)
    assert "diverged and is left out of the law: loss is NaN" in page


@pytest.mark.slow
def test_too_few_runs_are_refused(ladder):
    record = read_ladder(ladder[0])
    runs = tuple(
        run if index < 2 else run.model_copy(update={"state": "diverged", "loss": None})
        for index, run in enumerate(record.runs)
    )
    with pytest.raises(RunError, match=r"2 of \d+ runs, of 1 sizes?, ended with a loss"):
        conclude(record.model_copy(update={"runs": runs}))


@pytest.mark.slow
def test_the_page_has_the_picture(ladder, tmp_path):
    record = read_ladder(ladder[0])
    page = write_ladder_report(ladder[0], tmp_path / "page.html").read_text()
    assert page.count("<circle") == len(record.runs) + 1
    assert f"{record.prediction.loss:.4f}" in page
    waiting = tuple(run.model_copy(update={"state": "planned", "loss": None}) for run in record.runs)
    bare = {"runs": waiting, "law": None, "prediction": None, "held_out": None, "law_intervals": {}}
    assert "Nothing to draw yet" in build_ladder_page("tiny", record.model_copy(update=bare))


def test_repeated_text_is_told_before_the_first_step(dataset):
    planned = plan_ladder("tiny", preset(dataset, "train.steps=20000"), parse_budget("1e15flops"))
    assert min(run.tokens for run in planned.runs) == pytest.approx(160_000, rel=0.01)
    assert max(run.epochs for run in planned.runs) > 1
    assert "times over the training text" in planned.notes[-1]
    assert "expect a higher loss" in planned.notes[-1]


def test_what_a_ladder_cannot_be_made_of_is_refused(dataset, tiny_source, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.anneal_from"):
        plan_ladder("tiny", preset(dataset, "train.anneal_from=runs/x", "schedule.name=linear"), BUDGET)
    prepare(recipe("jsonl", tiny_source, source__id_column="id", split__validation_fraction=0.0), tmp_path / "whole")
    vocab = open_dataset(tmp_path / "whole").manifest.tokenizer.vocab_size
    with pytest.raises(DatasetError, match="has no validation split"):
        plan_ladder("tiny", preset(tmp_path / "whole", f"model.vocab_size={vocab}"), BUDGET)

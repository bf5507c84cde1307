"""A run that is stopped, killed or crashes, and then resumed, ends bitwise like an uninterrupted one."""

import os
import signal

import pytest

from packtrain.errors import CheckpointError, Interrupted
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train.run import train

TIMES = {"tokens_per_s", "step_s", "memory_bytes"}


def final_state(folder):
    """Everything that must be equal: weights, optimizer, position, metrics without times."""
    layout = RunLayout(folder)
    last = checkpoint.find_newest(layout)
    metrics = [{k: v for k, v in line.items() if k not in TIMES} for line in read_jsonl(layout.metrics)]
    return last.state, metrics, {name: tensor.numpy().tobytes() for name, tensor in last.read_whole().items()}


class StopAt:
    """Asks the run to stop, by a real signal, at the record of this step."""

    def __init__(self, step, kind="loss"):
        self.step, self.kind = step, kind

    def __call__(self, record):
        if record["step"] == self.step and self.kind in record:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("optim.name=adamw8bit",),
        ("optim.name=adamw4bit", "model.hidden_size=64"),
        ("optim.name=muon",),
        (
            "optim.name=normuon",
            "optim.momentum_warmup_steps=8",
            "optim.cautious_decay=true",
            "optim.decay_schedule=cosine",
        ),
        ("data.packing=bestfit", "data.document_mask=true", "train.dropout=0.2"),
        ("data.repack=true", "train.global_batch_tokens=8192", "evaluate.every=0"),
        ("train.precision=fp16",),
        pytest.param(("schedule.name=wsd", "model.qk_norm=true"), marks=pytest.mark.slow),
    ],
    ids=[
        "adamw",
        "adamw8bit",
        "adamw4bit",
        "muon",
        "normuon",
        "bestfit-masked-dropout",
        "repack",
        "fp16",
        "wsd-qknorm",
    ],
)
@pytest.mark.slow
def test_five_steps_restore_and_five_are_ten(tiny, tmp_path, settings):
    for name, library in (("adamw8bit", "bitsandbytes"), ("adamw4bit", "torchao")):
        if f"optim.name={name}" in settings:
            pytest.importorskip(library)
    config = tiny(*settings)
    train(config, tmp_path / "whole", resume=False)
    with pytest.raises(Interrupted, match="stopped by SIGTERM at step 5") as caught:
        train(config, tmp_path / "parts", resume=True, on_step=StopAt(5))
    assert caught.value.exit_code == 3
    outcome = train(config, tmp_path / "parts", resume=True)
    assert outcome["step"] == 10
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


def test_a_stop_at_a_step_that_is_to_be_validated_saves_first_and_validates_on_resume(tiny, tmp_path):
    train(tiny(), tmp_path / "whole", resume=False)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "parts", resume=False, on_step=StopAt(8))
    assert not any(
        line["step"] == 8 and "val_loss" in line for line in read_jsonl(tmp_path / "parts" / "metrics.jsonl")
    )
    train(tiny(), tmp_path / "parts", resume=True)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


def test_a_stop_at_the_last_step_is_told_and_its_validation_made_up_for(tiny, tmp_path):
    train(tiny(), tmp_path / "whole", resume=False)
    with pytest.raises(Interrupted, match="stopped by SIGTERM at step 10"):
        train(tiny(), tmp_path / "parts", resume=False, on_step=StopAt(10))
    assert train(tiny(), tmp_path / "parts", resume=True)["val_loss"] is not None
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


def test_a_finished_run_is_left_as_it_is(tiny, tmp_path):
    train(tiny(), tmp_path / "run", resume=False)
    before = final_state(tmp_path / "run")
    assert train(tiny(), tmp_path / "run", resume=True)["step"] == 10
    assert final_state(tmp_path / "run") == before


def test_a_run_whose_checkpoints_are_all_torn_does_not_begin_anew(tiny, tmp_path):
    config = tiny("train.steps=4")
    train(config, tmp_path / "run", resume=False)
    layout = RunLayout(tmp_path / "run")
    for step in layout.saved_steps():
        (layout.checkpoint(step) / "hashes.json").unlink()
    metrics = layout.metrics.read_bytes()
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of .*run is complete .* move .*checkpoints away to start over"
    ):
        train(config, tmp_path / "run", resume=True)
    assert layout.metrics.read_bytes() == metrics


def test_a_torn_checkpoint_is_passed_over_and_the_end_is_the_same(tiny, tmp_path):
    train(tiny(), tmp_path / "whole", resume=False)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "parts", resume=False, on_step=StopAt(7))
    (torn,) = RunLayout(tmp_path / "parts").checkpoint(7).glob("*.safetensors")
    torn.write_bytes(torn.read_bytes()[:1000])
    train(tiny(), tmp_path / "parts", resume=True)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


def test_half_written_files_of_a_killed_run_are_removed(tiny, tmp_path):
    run = tmp_path / "run"
    train(tiny("train.steps=4"), run, resume=False)
    left = [run / ".config.toml.0123456789ab.tmp", run / "checkpoints/step-00000002/.validation.json.0123456789ab.tmp"]
    for path in left:
        path.write_text("half")
    train(tiny("train.steps=4"), run, resume=True)
    assert not any(path.exists() for path in left)

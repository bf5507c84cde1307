"""A run's micro-batch for train.micro_batch_size=auto is chosen once, noted, and kept until a number is typed."""

import pytest
import torch
from safetensors.torch import load_file

from packtrain.runs.configuration import config_in_force
from packtrain.runs.layout import RunLayout
from packtrain.train import auto_rows
from packtrain.train.auto_rows import resolve_rows
from packtrain.train.resume import continue_config
from packtrain.train.run import train
from tests.train.conftest import place

AUTO = "train.micro_batch_size=auto"


def resolved(config, before=None, **where):
    return resolve_rows(config, before, place(1, **where)).train.micro_batch_size


def test_on_a_gpu_its_memory_decides(tiny, monkeypatch, caplog):
    config = tiny(AUTO, "model.hidden_size=1024", "model.num_hidden_layers=4", "train.global_batch_tokens=8192")
    rows = config.rows_per_step
    for gigabytes, expected in ((80, rows), (1, 1)):
        monkeypatch.setattr(auto_rows, "memory_bytes", lambda *_, size=gigabytes: size * 10**9)
        with caplog.at_level("INFO", "packtrain"):
            assert resolved(config, precision="bf16", device="cuda") == expected
        assert f"auto: {expected} rows, the most that fit in {gigabytes}.0 GB" in caplog.text


@pytest.mark.parametrize(("size", "world_size", "expected"), [(2, 1, 2), (2, 2, 2), (8, 2, 4), ("auto", 1, 8)])
def test_what_the_run_had_is_kept_if_it_divides_the_rows(tiny, size, world_size, expected):
    config, before = tiny(AUTO), tiny(f"train.micro_batch_size={size}")
    assert config.rows_per_step == 8
    assert resolved(config, before, world_size=world_size) == expected


def test_a_run_notes_its_choice_and_gives_the_bits_of_the_number(tiny, tmp_path):
    settings = ("train.steps=2", "evaluate.every=0")
    train(tiny(*settings, AUTO), tmp_path / "auto", resume=False)
    train(tiny(*settings, "train.micro_batch_size=8"), tmp_path / "eight", resume=False)
    layouts = [RunLayout(tmp_path / name) for name in ("auto", "eight")]
    assert [config_in_force(layout).train.micro_batch_size for layout in layouts] == [8, 8]
    auto, eight = (load_file(layout.checkpoint(2) / "rank-00000-00000.safetensors") for layout in layouts)
    assert all(torch.equal(auto[name], eight[name]) for name in eight)
    # Resumed: as it was; a typed number wins.
    assert continue_config(layouts[0], []).train.micro_batch_size == 8
    assert continue_config(layouts[0], ["train.micro_batch_size=2"]).train.micro_batch_size == 2
    outcome = train(tiny("train.steps=2", "evaluate.every=0", AUTO), tmp_path / "auto", resume=True)
    assert outcome["step"] == 2

"""parallel.mode=auto: copies if they fit, shards if only those do, and on resume what the run had."""

import re

import pytest

from packtrain.config.load import load_run_config
from packtrain.config.parallel import ParallelConfig
from packtrain.plan.memory import needed_bytes
from packtrain.train.parallel_mode import choose_mode, resolve_parallel_mode
from tests.train.conftest import place


@pytest.mark.parametrize(
    ("gigabytes", "mode", "said"),
    [
        (80, "ddp", r"auto: ddp; a copy of the model needs 2\d\.\d of 80\.0 GB"),
        (16, "fsdp", r"auto: fsdp; a copy of the model needs 2\d\.\d GB, a shard \d\.\d of 16\.0 GB"),
        (4, "ddp", "neither a copy of the model .* nor a shard"),
    ],
)
def test_shards_are_chosen_if_only_they_fit(caplog, gigabytes, mode, said):
    settings = ["model.hidden_size=2048", "model.intermediate_size=5632", "train.micro_batch_size=1"]
    config = load_run_config("llama2-437m", settings).config
    with caplog.at_level("INFO", "packtrain"):
        assert choose_mode(config, place(1, "bf16", 8, "cuda"), gigabytes * 10**9).mode == mode
    [record] = caplog.records
    assert re.search(said, record.getMessage())


def test_copies_of_several_processes_have_no_second_gradient(caplog):
    config = load_run_config("llama2-437m").config
    with caplog.at_level("INFO", "packtrain"):
        choose_mode(config, place(2, world_size=2), 10**12)
        in_lanes = config.model_copy(update={"parallel": ParallelConfig(lanes=2)})
        choose_mode(in_lanes, place(2, world_size=2), 10**12)
    computed = needed_bytes(
        load_run_config("llama2-437m", ["parallel.lanes=1"]).config, 2, "fp32", "cpu", accumulates=True
    )
    assert [record.args[0] for record in caplog.records] == [computed / 1e9] * 2


@pytest.mark.parametrize(
    ("before", "world_size", "expected"),
    [
        (None, 1, {"mode": "auto"}),
        (None, 2, {"mode": "ddp"}),
        ({"mode": "auto"}, 2, {"mode": "ddp"}),
        ({"mode": "fsdp"}, 2, {"mode": "fsdp"}),
        ({"mode": "fsdp"}, 1, {"mode": "fsdp"}),
        ({"mode": "fsdp", "shard_size": 2}, 4, {"mode": "fsdp", "shard_size": 2}),
        ({"mode": "fsdp", "shard_size": 2}, 3, {"mode": "fsdp"}),
    ],
)
def test_a_run_stays_as_it_was(before, world_size, expected):
    config = load_run_config("demo").config
    known = None if before is None else ParallelConfig(**before)
    done = resolve_parallel_mode(config, known, place(1, world_size=world_size))
    assert done.parallel == ParallelConfig(**expected)


@pytest.mark.parametrize("given", ["parallel.mode=ddp", "parallel.mode=fsdp"])
def test_what_is_asked_for_is_done(given):
    config = load_run_config("demo", [given]).config
    before = ParallelConfig(mode="fsdp")
    assert resolve_parallel_mode(config, before, place(1, world_size=2)) == config

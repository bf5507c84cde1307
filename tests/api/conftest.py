"""A tiny run, trained once in Python, for the tests of the functions."""

import pytest

import packtrain as pt

TINY = {
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.vocab_size": 512,
    "model.num_key_value_heads": None,
    "model.intermediate_size": 64,
    "data.seq_len": 32,
    "train.micro_batch_size": 4,
    "train.global_batch_tokens": 256,
    "train.steps": 8,
    "evaluate.every": 4,
    "evaluate.tokens": 256,
    "checkpoint.every": 4,
    "evaluate.prompts": [],
    "train.precision": "fp32",
    "log.every": 1,
    "schedule.warmup_steps": 2,
}


@pytest.fixture(scope="session")
def run(dataset, tmp_path_factory):
    """Folder of a run of 8 steps on `dataset`, validated and saved at steps 4 and 8; not to be changed."""
    folder = tmp_path_factory.mktemp("api") / "run"
    pt.train("demo", TINY, {"data.dataset": dataset}, run=folder)
    return folder

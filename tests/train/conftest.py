"""A small configuration that trains in a second, on the tiny dataset."""

import pytest

from packtrain.config.load import load_run_config

TINY = [
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=2",
    "model.intermediate_size=64",
    "model.vocab_size=512",
    "data.seq_len=32",
    "train.steps=10",
    "train.global_batch_tokens=256",
    "train.micro_batch_size=4",
    "train.precision=fp32",
    "train.device=cpu",
    "schedule.warmup_steps=2",
    "checkpoint.every=2",
    "evaluate.every=4",
    "evaluate.tokens=512",
    "evaluate.prompts=[]",
    "log.every=1",
]


@pytest.fixture
def tiny(dataset):
    """Makes the tiny configuration, with further key=value settings."""
    return lambda *settings: load_run_config("demo", [*TINY, f"data.dataset={dataset}", *settings]).config

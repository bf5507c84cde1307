"""A small configuration that trains in a second, on the tiny dataset, and copies of that dataset with noise in it."""

import shutil

import numpy as np
import pytest
import torch

from packtrain.config.load import load_run_config
from packtrain.data.feed.loader import step_rows
from packtrain.data.format.shards import open_dataset
from packtrain.data.rows.pack import plan
from packtrain.parallel.ranks import Ranks
from packtrain.train.step import Placement, Precision

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

# A window that a short run fills, and a threshold that tiny batches do not reach. Spoiled rows are not what was prepared.
SENSITIVE = (
    "data.verify=none",
    "guard.window=8",
    "guard.spike_zscore=4",
    "guard.patience=3",
    "train.steps=30",
    "checkpoint.keep=20",
)
VOCABULARY, SEQ_LEN, ROWS_PER_STEP, SEED = 512, 32, 8, 1337


def place(micro_batch_size, precision="fp32", world_size=1, device="cpu", is_sharded=False):
    """A placement in which nothing is computed."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    ranks = Ranks(0, 0, world_size, world_size)
    return Placement(torch.device(device), Precision(precision, device, scaler), micro_batch_size, ranks, is_sharded)


@pytest.fixture
def tiny(dataset):
    """Makes the tiny configuration, with further key=value settings."""
    return lambda *settings: load_run_config("demo", [*TINY, f"data.dataset={dataset}", *settings]).config


@pytest.fixture
def spoiled(dataset, tmp_path):
    """Makes a copy of the dataset in which the rows of the given steps are noise, and gives the setting that names it."""

    def spoil(*steps):
        folder = tmp_path / "spoiled"
        shutil.copytree(dataset, folder)
        split = open_dataset(folder).split("train")
        layout = plan(split, SEQ_LEN, "concat")
        (shard,) = (folder / "train").glob("*.tok")
        tokens = np.fromfile(shard, dtype="<u2")
        noise = np.random.default_rng(0)
        for step in steps:
            for row in step_rows(layout, SEED, (step - 1) * ROWS_PER_STEP, ROWS_PER_STEP):
                # Not the row's last token, which is the first input of the next row, in another step.
                part = slice(row * SEQ_LEN, (row + 1) * SEQ_LEN - 1)
                tokens[part] = noise.integers(0, VOCABULARY, tokens[part].shape)
        tokens.tofile(shard)
        return f"data.dataset={folder}"

    return spoil

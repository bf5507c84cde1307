"""A compiled run is the same run, from one graph for all blocks and one for the loss, whatever rows validation ends with."""

import functools

import pytest
import torch
from torch._dynamo.utils import counters

from packtrain.config.data import IGNORE_INDEX
from packtrain.data.feed.loader import Rows
from packtrain.evaluate.loss import pad
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train import setup
from packtrain.train.compilation import compile_model
from packtrain.train.run import train


@pytest.fixture
def graphs(monkeypatch):
    """Counts compiled graphs. They run through autograd's tracing but without Inductor, which takes minutes on two cores."""
    monkeypatch.setattr(setup, "compile_model", functools.partial(compile_model, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def losses(folder):
    lines = read_jsonl(RunLayout(folder).metrics)
    return [line.get("loss", line.get("val_loss")) for line in lines]


# 8 rows are 4, 4; the 15 held-out rows of two validations are 4, 4, 4, 3.
# Small steps, so that what compilation rounds differently stays small.
RUN = (
    *("model.num_hidden_layers=5", "train.steps=4", "evaluate.every=2", "evaluate.tokens=480"),
    *("optim.name=adamw", "optim.lr=3e-3", "optim.lr_scale.embedding=1", "optim.betas=[0.9,0.95]"),
    *("schedule.name=cosine", "schedule.min_lr_ratio=0.1"),
)


# Dynamo looks at .grad of what a block is called with.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # A block and a chunk of the loss, in training and in validation.
        ((), 4),
        # What is computed again is part of the block's graph.
        (("train.activation_gb=0.00045",), 4),
        (
            (
                "data.packing=bestfit",
                "data.document_mask=true",
                "train.precision=bf16",
                "evaluate.prompts=['a', 'b c']",
            ),
            4,
        ),
    ],
)
def test_all_blocks_and_all_rows_share_a_graph(tiny, tmp_path, graphs, settings, expected):
    train(tiny(*RUN, "parallel.lanes=1", *settings), tmp_path / "eager", resume=False)
    assert graphs() == 0
    train(tiny(*RUN, "train.compile=true", *settings), tmp_path / "compiled", resume=False)
    assert graphs() == expected
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)


def test_rows_that_fill_up_a_micro_batch_do_not_count():
    rows = Rows(torch.arange(6).view(2, 3), torch.arange(1, 7).view(2, 3))
    padded = pad(rows, 4)
    assert padded.inputs_BT.tolist() == [[0, 1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5]]
    assert padded.targets_BT.tolist() == [[1, 2, 3], [4, 5, 6], [IGNORE_INDEX] * 3, [IGNORE_INDEX] * 3]
    assert padded.segments_BT is None and rows.targets_BT.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert pad(rows, 2) is rows

"""Three steps of the demo model against recorded numbers: nothing that determines them changes by accident."""

import json
from pathlib import Path

import pytest
import torch

from packtrain.config.cpu import ALL_TORCH
from packtrain.config.load import load_run_config
from packtrain.data.feed.loader import Batch, Rows
from packtrain.data.feed.position import LoaderState
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.cpu.products import Products
from packtrain.model.init import build
from packtrain.model.roles import roles
from packtrain.optim.build import build_optimizer, set_learning_rate
from packtrain.optim.schedule import learning_rate
from packtrain.train.step import Placement, Precision, train_step

RECORDED = Path(__file__).with_name("step.json")
# The reference's optimizer and schedule, which the demo had when these numbers were recorded.
REFERENCE = [
    *("optim.name=adamw", "optim.lr=3e-3", "optim.lr_scale.embedding=1.0", "optim.betas=[0.9,0.95]"),
    *("schedule.name=cosine", "schedule.min_lr_ratio=0.1"),
]


def steps_of_the_demo_model(*, has_kernels=True):
    config = load_run_config("demo", ["model.vocab_size=4096", *REFERENCE]).config
    model = build(config.model, seed=1337)
    if has_kernels:
        use_cpu_kernels(model, Products.of(ALL_TORCH))
    optimizer = build_optimizer(config.optim, dict(model.named_parameters()), roles(model))
    precision = Precision("fp32", "cpu", torch.amp.GradScaler("cpu", enabled=False))
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        tokens = torch.randint(0, config.model.vocab_size, (4, 65), generator=generator)
        state = LoaderState("", "", 0, 0, 0)
        batch = Batch(Rows(tokens[:, :-1], tokens[:, 1:]), state=state, num_targets=256)
        set_learning_rate(optimizer, learning_rate(config.schedule, config.optim.lr, step, 10))
        result = train_step(
            model,
            optimizer,
            batch,
            Placement(torch.device("cpu"), precision, micro_batch_size=2),
            grad_clip=config.train.grad_clip,
        )
        yield {"loss": result.loss, "grad_norm": result.grad_norm}


@pytest.mark.parametrize("has_kernels", [False, True], ids=["equation", "cpu"])
def test_the_numbers_are_those_recorded(has_kernels):
    got = list(steps_of_the_demo_model(has_kernels=has_kernels))
    recorded = json.loads(RECORDED.read_text())
    advice = (
        f"the steps gave {json.dumps(got)}. A refactor must not do that: find what changed. If the numerics were changed on "
        f"purpose, show two loss curves in the pull request and write these numbers into {RECORDED.name}"
    )
    for new, old in zip(got, recorded, strict=True):
        assert new == pytest.approx(old, rel=2e-4), advice

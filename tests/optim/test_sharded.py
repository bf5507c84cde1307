"""Parameters that are cut over ranks step like whole ones, bit for bit; a cut through a block of states is refused."""

import subprocess
import sys

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from packtrain.errors import ConfigError
from packtrain.optim.blocks import check_division
from packtrain.train.setup import SHARDING

SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from packtrain.config.optim import OptimConfig
from packtrain.optim.base import WHOLE
from packtrain.optim.build import build_optimizer, export_state
from packtrain.train.setup import SHARDING

def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

rank, size, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method="file://{store}", rank=rank, world_size=size)
# Blocks of 128 and 256 fill `tall` and `embedding`; of `few` and `short` some ranks have no rows.
shapes = {{"tall": (64, 64), "wide": (8, 512), "few": (3, 1536), "odd": (7, 10), "again": (64, 64), "third": (64, 64), "short": (2, 9),
          "embedding": (128, 64), "norm": (96,)}}
roles = {{key: key if key in ("embedding", "norm") else "matrix" for key in shapes}}
mesh = init_device_mesh("cpu", (size,))
whole = {{key: torch.nn.Parameter(draw(1, *shape)) for key, shape in shapes.items()}}
parts = {{key: torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for key, p in whole.items()}}
copies = {{key: torch.nn.Parameter(p.detach().clone()) for key, p in whole.items()}}
optimizers = []
for parameters, sharding in ((whole, WHOLE), (parts, SHARDING), (copies, SHARDING)):
    optimizer = build_optimizer(OptimConfig(name=name, lr=0.02), parameters, roles, sharding=sharding)
    for seed in range(3):
        for number, (key, p) in enumerate(parameters.items()):
            p.grad = draw(100 * number + seed, *shapes[key])
            if parameters is parts:
                p.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
        optimizer.step()
        assert all(p.grad is None for p in parameters.values())
    optimizers.append(optimizer)
for key, p in whole.items():
    assert torch.equal(parts[key].full_tensor(), p), key
    assert torch.equal(copies[key], p), key
mine, theirs, others = (export_state(optimizer)[0] for optimizer in optimizers)
assert mine.keys() == theirs.keys() == others.keys()
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("name", "library", "size"),
    [
        pytest.param("adamw8bit", "bitsandbytes", 2, marks=pytest.mark.slow),
        pytest.param("adamw4bit", "torchao", 4, marks=pytest.mark.very_slow),
        pytest.param("muon", "torch", 3, marks=pytest.mark.slow),
        pytest.param("normuon", "torch", 3, marks=pytest.mark.slow),
    ],
)
def test_cut_parameters_step_like_whole_ones(tmp_path, name, library, size):
    pytest.importorskip(library)
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED.format(store=tmp_path / "store"))
    command = [sys.executable, str(script)]
    processes = [subprocess.Popen([*command, str(rank), str(size), name]) for rank in range(size)]
    assert [process.wait(timeout=120) for process in processes] == [0] * size


@pytest.fixture
def cut():
    """Makes parameters cut over so many processes, of which this one is the first and the others are not there."""

    def make(num_processes, **shapes):
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_processes)
        mesh = init_device_mesh("cpu", (num_processes,))
        cut = [distribute_tensor(torch.zeros(shape), mesh, [Shard(0)]) for shape in shapes.values()]
        return {"names": list(shapes), "params": cut}

    yield make
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("num_processes", "shapes", "remedy"),
    [
        (
            6,
            {"a": (512, 32), "b": (64, 100)},
            r"a of shape \[512, 32\] .* 6 .*; write parallel\.shard_size=2, or write",
        ),
        (
            3,
            {"a": (32, 64)},
            r"start a multiple of 2, 4, 8 or 16 processes and write that number as parallel\.shard_size, or",
        ),
        (3, {"a": (5, 1001)}, r"; write parallel\.mode=ddp, or write optim\.name=adamw"),
    ],
)
def test_a_cut_through_a_block_is_refused_with_what_fits(cut, num_processes, shapes, remedy):
    with pytest.raises(ConfigError, match=remedy):
        check_division("adamw4bit", [cut(num_processes, **shapes)], lambda _: True, 128, SHARDING)


def test_what_cuts_no_block_is_not_refused(cut):
    groups = [
        cut(4, whole=(1, 4097), rows=(8, 512), few=(3, 1536)),
        {"names": ["plain"], "params": [torch.zeros(7)]},
    ]
    check_division("adamw8bit", groups, lambda _: True, 256, SHARDING)

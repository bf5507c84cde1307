"""A step waits for the device once: nothing else in it needs a number from the device, a shape that depends on one, or host memory.

On the CPU nothing waits, so the tests look at what is called, by the model without the CPU's kernels.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from packtrain.config.optim import OptimConfig
from packtrain.model.attention import block_mask
from packtrain.model.fp8 import use_fp8
from packtrain.model.init import build
from packtrain.model.roles import roles
from packtrain.optim.build import build_optimizer, set_learning_rate
from packtrain.train.step import Placement, Precision, train_step
from tests.train.test_step import CONFIG, make_batch

# What Python calls to read a tensor, and what sends Python's numbers to a device, which waits as well.
ASKED = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "is_nonzero",
    "equal",
    "allclose",
)
SENT = ("tensor", "as_tensor", "asarray", "from_numpy")
# Operations that read a number, or whose result has a shape that depends on numbers.
OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero", "bincount")


class Calls(TorchFunctionMode):
    """Names of the functions called that wait."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ASKED + SENT:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Names of the operations run that wait."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.lstrip("_")
        by_truth = name.startswith("index") and any(
            index is not None and index.dtype == torch.bool
            for indices in args[1:]
            if isinstance(indices, list | tuple)
            for index in indices
        )
        if by_truth or any(name.startswith(part.lstrip("_")) for part in OPERATIONS):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def waits_of_a_step(optimizer_name, precision_name):
    """What a second step calls; the first may create what later steps reuse."""
    model = build(CONFIG, seed=1)
    if precision_name == "fp8":
        use_fp8(model, emulate=True)
    optimizer = build_optimizer(OptimConfig(name=optimizer_name), dict(model.named_parameters()), roles(model))
    scaler = torch.amp.GradScaler("cpu", enabled=precision_name == "fp16", init_scale=2.0**8)
    placement = Placement(torch.device("cpu"), Precision(precision_name, "cpu", scaler), micro_batch_size=4)
    batch = make_batch()

    def step():
        set_learning_rate(optimizer, 1e-3)
        return train_step(model, optimizer, batch, placement, grad_clip=1e-3, z_loss=1e-4)

    step()
    with Calls() as calls, Operations() as operations:
        assert step().is_applied
    return calls.seen, operations.seen


@pytest.mark.parametrize("precision_name", ["fp32", "bf16", "fp16", "fp8"])
@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
def test_a_step_asks_the_device_once(optimizer_name, precision_name):
    calls, operations = waits_of_a_step(optimizer_name, precision_name)
    assert (calls, operations) == (["tolist"], [])


def test_neither_does_a_document_mask_nor_an_optimizer_with_low_bit_states(monkeypatch):
    segments = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2]]).repeat(2, 32)
    with Calls() as calls, Operations() as operations:
        block_mask(segments)
    assert (calls.seen, operations.seen) == ([], [])
    library = pytest.importorskip("bitsandbytes.optim.optimizer")
    waited = []
    monkeypatch.setattr(library, "sync_gpu", waited.append)
    waits_of_a_step("adamw8bit", "fp32")
    assert not waited


def test_what_waits_is_seen():
    x = torch.arange(4.0)
    with Calls() as calls, Operations() as operations:
        assert float(x[x > 1].sum() * torch.tensor(1.0)) == 5
        assert x.any()
        x.nonzero()
    assert calls.seen == ["tensor", "__float__", "__bool__"]
    assert operations.seen == ["index", "local_scalar_dense", "local_scalar_dense", "nonzero"]

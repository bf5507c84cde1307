"""A GPU's tensors are copied from the stream that changes them, into one buffer that is counted before it is taken; no GPU is needed."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from packtrain.parallel.parts import TensorPart
from packtrain.runs.snapshot import Snapshot
from packtrain.runs.staging import Staging

SECOND = torch.device("cuda", 1)


class FakeCuda:
    """Notes in `calls` what is asked of `torch.cuda`, in order. `refuses`: no memory is page-locked."""

    def __init__(self, *, refuses=False):
        self.calls, self.refuses = [], refuses

    def current_stream(self, device=None):
        return FakeStream(self, f"training stream of {device}")

    def Stream(self, device):  # noqa: N802  torch's name
        return FakeStream(self, f"new stream of {device}")

    def cudart(self):
        return self

    def cudaHostRegister(self, _address, num_bytes, _flags):  # noqa: N802
        self.calls.append(f"lock {num_bytes}")
        return 1 if self.refuses else 0

    def cudaHostUnregister(self, _address):  # noqa: N802
        self.calls.append("unlock")
        return 0

    @contextlib.contextmanager
    def device(self, device):
        self.calls.append(f"use {device}")
        yield

    @contextlib.contextmanager
    def stream(self, stream):
        self.calls.append(f"enter {stream.name}")
        yield


class FakeStream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def record_event(self):
        return f"event of {self.name}"

    def wait_event(self, event):
        self.cuda.calls.append(f"wait for {event}")

    def synchronize(self):
        self.cuda.calls.append("synchronize")


def numbers():
    return {
        "weight": torch.arange(50.0).view(10, 5),
        "scale": torch.tensor(3.0),
        "codes": torch.arange(7, dtype=torch.uint8),
        "none": torch.empty(0, 4),
    }


def test_the_event_is_of_the_stream_of_the_tensors_device():
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensor = torch.empty(4, device=SECOND)
    made = Snapshot({"weight": TensorPart.whole(tensor)}, lambda _: True, Staging(lambda _: True, FakeCuda()))
    assert made._reached == "event of training stream of cuda:1"


def test_copies_wait_for_the_event_on_the_same_device_and_last_in_one_buffer():
    cuda, asked = FakeCuda(), []
    staging = Staging(lambda num_bytes: asked.append(num_bytes) or True, cuda)
    tensors = numbers()
    copies = staging.copy(tensors, SECOND, staging.mark(SECOND))
    assert cuda.calls == [
        "use cuda:1",
        "lock 384",
        "enter new stream of cuda:1",
        "wait for event of training stream of cuda:1",
        "synchronize",
    ]
    assert asked == [384], "200 + 4 + 7 bytes, each from a multiple of 64 on; not a power of two"
    for name, tensor in tensors.items():
        assert copies[name].dtype == tensor.dtype and torch.equal(copies[name], tensor)
    assert len({copy.untyped_storage().data_ptr() for copy in copies.values() if copy.numel()}) == 1
    tensors["weight"].zero_()
    assert copies["weight"][9, 4] == 49


def test_the_buffer_is_kept_for_saves_that_fit_it_and_freed_at_the_end():
    cuda, asked = FakeCuda(), []
    staging = Staging(lambda num_bytes: not asked.append(num_bytes), cuda)
    for _ in range(3):
        staging.copy(numbers(), SECOND, None)
    assert len(asked) == 1, "memory that the buffer has already is not asked for again"
    staging.copy({"larger": torch.zeros(1000)}, SECOND, None)
    staging.close()
    staging.close()
    assert [call for call in cuda.calls if "lock" in call] == ["lock 384", "unlock", "lock 4032", "unlock"]


@pytest.mark.parametrize("raises", [False, True])
def test_memory_that_cannot_be_locked_serves_too(raises, monkeypatch):
    cuda = FakeCuda(refuses=True)
    if raises:
        monkeypatch.setattr(FakeCuda, "cudart", lambda _: (_ for _ in ()).throw(RuntimeError("no cudart")))
    staging = Staging(lambda _: True, cuda)
    copies = staging.copy(numbers(), SECOND, None)
    assert copies["codes"].tolist() == [*range(7)]
    staging.close()
    assert "unlock" not in cuda.calls


def test_without_memory_nothing_is_copied_and_the_tensors_are_written_as_they_are():
    cuda = FakeCuda()
    assert Staging(lambda _: False, cuda).copy(numbers(), SECOND, None) is None
    assert cuda.calls == ["use cuda:1"]

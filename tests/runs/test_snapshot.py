"""What is written is what the tensors were when the save began, however slow the disk and whatever memory is left."""

import threading

import pytest
import torch

from packtrain.parallel.parts import TensorPart
from packtrain.runs.snapshot import Snapshot


def snapshot(*, has_memory):
    tensors = {name: torch.full((3,), float(number)) for number, name in enumerate("abc")}
    made = Snapshot({name: TensorPart.whole(tensor) for name, tensor in tensors.items()}, lambda _: has_memory)
    return made, tensors


def waiting(made):
    """A thread that waits until the tensors may change, as the one that trains does before its update."""
    thread = threading.Thread(target=made.wait_free)
    thread.start()
    while not made._is_wanted.is_set():
        thread.join(0.001)
    return thread


def test_what_is_not_yet_written_when_the_update_comes_is_copied():
    made, tensors = snapshot(has_memory=True)
    with made.take("b") as first:
        thread = waiting(made)
        assert thread.is_alive(), "the one that is being written may not change"
        assert first is not tensors["b"] and first.data_ptr() == tensors["b"].data_ptr()
    with made.take("a") as second:
        thread.join()
        for tensor in tensors.values():
            tensor.zero_().sub_(1)
        assert second.tolist() == [0.0] * 3
    with made.take("c") as third:
        assert third.tolist() == [2.0] * 3


def test_without_memory_the_update_waits_for_the_disk():
    made, tensors = snapshot(has_memory=False)
    thread = waiting(made)
    for name in "abc":
        with made.take(name) as taken:
            assert thread.is_alive()
            assert taken.data_ptr() == tensors[name].data_ptr()
    thread.join()


@pytest.mark.parametrize("num_taken", [0, 1, 3])
def test_nothing_waits_for_a_save_that_failed(num_taken):
    made, _ = snapshot(has_memory=False)
    thread = waiting(made)
    for name in "abc"[:num_taken]:
        with made.take(name):
            pass
    made.release()
    thread.join()

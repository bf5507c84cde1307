"""Decides where a checkpoint's bytes come from: the run's own tensors until they must change, then copies of the rest.

On a CPU, all cores compute, and a copy costs them as much as a direct write. A GPU's tensors are copied at once: the CPU is
idle, and the next update is near.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from packtrain.parallel.parts import TensorPart
from packtrain.runs.staging import Staging


class Snapshot:
    """The elements of `parts` as they are now, for one thread that writes them while another trains.

    `has_memory` says whether a copy of that many bytes fits into memory. `staging` holds the copies of a GPU's tensors.
    """

    def __init__(
        self, parts: Mapping[str, TensorPart], has_memory: Callable[[int], bool], staging: Staging | None = None
    ) -> None:
        self._tensors = {name: part.tensor.detach() for name, part in parts.items()}
        self._has_memory = has_memory
        self._is_wanted, self._is_free = threading.Event(), threading.Event()
        self._staging = staging or Staging(has_memory)
        self._gpu = next((tensor.device for tensor in self._tensors.values() if tensor.is_cuda), None)
        # The point in the GPU's queue at which the tensors have these values. A CPU has already computed them.
        self._reached = None if self._gpu is None else self._staging.mark(self._gpu)

    def wait_free(self) -> None:
        """Returns when the tensors are written or copied, so that they may change."""
        self._is_wanted.set()
        self._is_free.wait()

    def release(self) -> None:
        """Frees the tensors: the writing thread no longer needs them."""
        self._tensors.clear()
        self._is_free.set()

    def copy_from_gpu(self) -> None:
        """Copies tensors from a GPU, while it computes, if there is memory for the copies."""
        if self._gpu is None:
            return
        copies = self._staging.copy(self._tensors, self._gpu, self._reached)
        if copies is not None:
            self._tensors = copies
            self._is_free.set()

    @contextlib.contextmanager
    def take(self, name: str) -> Iterator[Tensor]:
        """The elements of one part, which do not change within the block. Take each part once."""
        if self._is_wanted.is_set() and not self._is_free.is_set():
            self._copy_rest()
        yield self._tensors.pop(name)
        if not self._tensors:
            self._is_free.set()

    def _copy_rest(self) -> None:
        if self._has_memory(self._num_bytes()):
            # With all of torch's threads: the training thread is waiting.
            self._tensors = {name: tensor.to("cpu", copy=True) for name, tensor in self._tensors.items()}
            self._is_free.set()

    def _num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

"""Decides where a GPU's tensors lie in host memory while they are written: in one buffer, page-locked once and kept for the next save."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# No element is wider, and a line of the processor's cache is as long.
_ALIGNMENT = 64


class Staging:
    """A buffer of host memory for copies of a GPU's tensors, as large as the largest save so far.

    torch's own page-locked memory comes in powers of two, for each tensor apart: 6.8 GB and more for the 5.2 GB of a
    437M model. This is one piece of the size that is needed. `has_memory` says whether that many bytes are left;
    it is asked before memory is taken, and not again for a save that fits into the buffer. `cuda` is `torch.cuda`.
    """

    def __init__(self, has_memory: Callable[[int], bool], cuda: Any = torch.cuda) -> None:
        self._has_memory, self._cuda = has_memory, cuda
        self._buffer: Tensor | None = None
        self._locked_by: torch.device | None = None

    def mark(self, device: torch.device) -> Any:
        """The point in the queue of `device` that the training thread has reached: an event of that device's stream."""
        return self._cuda.current_stream(device).record_event()

    def copy(self, tensors: Mapping[str, Tensor], device: torch.device, reached: Any) -> dict[str, Tensor] | None:
        """Copies of `tensors` as they were at the event `reached`; None if there is no memory for them.

        The copies last until the next call. The device computes meanwhile; this thread waits for the last of them.
        """
        starts, end = [], 0
        for tensor in tensors.values():
            starts.append(end)
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        # A thread begins with the first GPU, and would take memory for itself on it.
        with self._cuda.device(device):
            buffer = self._reserve(end, device)
            if buffer is None:
                return None
            copies = {
                name: buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                for start, (name, tensor) in zip(starts, tensors.items(), strict=True)
            }
            stream = self._cuda.Stream(device)
            with self._cuda.stream(stream):
                stream.wait_event(reached)
                for name, tensor in tensors.items():
                    copies[name].copy_(tensor, non_blocking=True)
            stream.synchronize()
        return copies

    def close(self) -> None:
        """Frees the buffer. Nothing may refer to copies any more."""
        if self._buffer is not None and self._locked_by is not None:
            with self._cuda.device(self._locked_by):
                self._cuda.cudart().cudaHostUnregister(self._buffer.data_ptr())
        self._buffer, self._locked_by = None, None

    def _reserve(self, num_bytes: int, device: torch.device) -> Tensor | None:
        if self._buffer is not None and self._buffer.nbytes >= num_bytes:
            return self._buffer
        self.close()
        if not self._has_memory(num_bytes):
            return None
        self._buffer = torch.empty(num_bytes, dtype=torch.uint8)
        # A GPU copies directly only to page-locked memory. If the system does not allow that much of it, the driver copies
        # by way of its own.
        with contextlib.suppress(RuntimeError):
            if int(self._cuda.cudart().cudaHostRegister(self._buffer.data_ptr(), num_bytes, 0)) == 0:
                self._locked_by = device
        return self._buffer

"""Decides how a process reads its parts of a checkpoint's tensors, however the run that wrote them was divided.

Reading and resharding are those of torch.distributed.checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata


@dataclass(frozen=True)
class TensorPart:
    """What one process holds of a tensor of shape `shape`: the box of `tensor`'s shape at `offset`.

    torch.distributed.checkpoint asks for parts through the methods with double underscores.
    """

    tensor: Tensor
    shape: torch.Size
    offset: torch.Size

    @classmethod
    def whole(cls, tensor: Tensor) -> "TensorPart":
        return cls(tensor, tensor.shape, torch.Size([0] * tensor.dim()))

    def size(self) -> torch.Size:
        return self.shape

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(self.offset, self.tensor.shape)]

    def __get_tensor_shard__(self, _: MetadataIndex) -> Tensor:
        return self.tensor


class StoredTensor(NamedTuple):
    """A whole tensor of a checkpoint."""

    shape: torch.Size
    dtype: torch.dtype


def read_parts(folder: Path, parts: Mapping[str, TensorPart]) -> None:
    """Fills the tensors of `parts` from the files of a checkpoint. Each name must be there, with the part's shape."""
    held = {name: part for name, part in parts.items() if part.tensor.numel()}
    if not held:
        return
    reader = HuggingFaceStorageReader(str(folder))
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=False)
    planner = _LoadPlanner()
    planner.set_up_planner(held, metadata)
    reader.read_data(planner.finish_plan(reader.prepare_local_plan(planner.create_local_plan())), planner).wait()


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Shape and type of each tensor of a checkpoint, by name. Raises ValueError if the files do not have all of its elements."""
    tensors = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for name, found in tensors.items():
        if isinstance(found, TensorStorageMetadata) and not _is_complete(found):
            raise ValueError(f"the parts of {name} do not make up a whole tensor")
    return {
        name: StoredTensor(found.size, found.properties.dtype)
        for name, found in tensors.items()
        if isinstance(found, TensorStorageMetadata)
    }


def _is_complete(stored: TensorStorageMetadata) -> bool:
    """Whether the stored boxes fill the tensor without overlapping. What no box holds would be read as whatever is in memory."""
    if sum(chunk.sizes.numel() for chunk in stored.chunks) != stored.size.numel():
        return False
    boxes = sorted((tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in stored.chunks if chunk.sizes.numel())
    if any(len(offset) != len(stored.size) or any(start < 0 for start in offset) for offset, _ in boxes):
        return False
    # A run divides tensors along their first dimension. Any other division would need a search for overlaps.
    ends = [0, *(offset[0] + size[0] for offset, size in boxes)] if len(boxes) > 1 else []
    return all(
        offset[0] == end and size[1:] == tuple(stored.size)[1:]
        for (offset, size), end in zip(boxes, ends, strict=False)
    )


class _LoadPlanner(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # The default would flatten containers, of which there are none, and accepts only tensors.
        self.flatten_state_dict = False
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].tensor

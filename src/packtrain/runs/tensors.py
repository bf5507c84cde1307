"""Decides how tensors lie in a checkpoint: every process writes its own parts, and any other division reads them back.

The files are safetensors in the layout of torch.distributed.checkpoint's Hugging Face storage: no pickle, each part
under its tensor's name, its offset in the file's header. Planning and resharding are torch's.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

# A file is put together in memory before it is written: the most that this takes, beside one tensor that is larger.
FILE_BYTES = 2**28


@dataclass(frozen=True)
class Part:
    """What one process holds of a tensor of shape `shape`: the box of `tensor`'s shape at `offset`.

    The methods between underscores are the protocol by which torch.distributed.checkpoint asks for parts.
    """

    tensor: Tensor
    shape: torch.Size
    offset: torch.Size

    @classmethod
    def whole(cls, tensor: Tensor) -> "Part":
        return cls(tensor, tensor.shape, torch.Size([0] * tensor.dim()))

    def size(self) -> torch.Size:
        return self.shape

    def on(self, tensor: Tensor) -> "Part":
        """The same box, held by another tensor."""
        return dataclasses.replace(self, tensor=tensor)

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        data = TensorWriteData(self._chunk(), TensorProperties.create_from_tensor(self.tensor), self.shape)
        return [WriteItem(MetadataIndex(name, self.offset), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()]

    def __get_tensor_shard__(self, _: MetadataIndex) -> Tensor:
        return self.tensor

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(self.offset, self.tensor.shape)


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint, put together from its parts."""

    shape: torch.Size
    dtype: torch.dtype


def write_parts(folder: Path, parts: Mapping[str, Part], *, rank: int) -> list[str]:
    """Writes the parts of one process into files of its own, flushed to the disk; the files' names.

    Parts without elements are left out. Raises the OSError that the disk gave.
    """
    held = {name: part for name, part in sorted(parts.items()) if part.tensor.numel()}
    if not held:
        return []
    writer = HuggingFaceStorageWriter(str(folder), _file_numbers(held), save_distributed=True)
    writer.set_up_storage_writer(is_coordinator=False)
    planner = _SavePlanner()
    planner.set_up_planner(held, is_coordinator=False)
    (plan,) = writer.prepare_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    # Files are numbered by process, so that none has to know what the others write.
    plan = dataclasses.replace(plan, storage_data={**plan.storage_data, "shard_index": rank + 1})
    results = writer.write_data(planner.finish_plan(plan), planner).wait()
    return sorted({result.storage_data.relative_path for result in results})


def read_parts(folder: Path, parts: Mapping[str, Part]) -> None:
    """Fills the tensors of `parts` from a checkpoint's files, however it was divided when it was written.

    Every name must be there, with the part's shape.
    """
    held = {name: part for name, part in parts.items() if part.tensor.numel()}
    if not held:
        return
    reader = HuggingFaceStorageReader(str(folder))
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=False)
    planner = _LoadPlanner()
    planner.set_up_planner(held, metadata)
    reader.read_data(planner.finish_plan(reader.prepare_local_plan(planner.create_local_plan())), planner).wait()


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Shape and type of every tensor of a checkpoint."""
    tensors = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: Stored(found.size, found.properties.dtype)
        for name, found in tensors.items()
        if isinstance(found, TensorStorageMetadata)
    }


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].tensor.detach()


class _LoadPlanner(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # The default would look into containers, of which there are none, and takes nothing but tensors.
        self.flatten_state_dict = False
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].tensor


def _file_numbers(parts: Mapping[str, Part]) -> dict[str, int]:
    """The file, counted from 1, that each part goes to, in order, filled up to FILE_BYTES."""
    numbers, number, filled = {}, 1, 0
    for name, part in parts.items():
        if filled and filled + part.tensor.nbytes > FILE_BYTES:
            number, filled = number + 1, 0
        filled += part.tensor.nbytes
        numbers[name] = number
    return numbers

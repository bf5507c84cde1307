"""Decides how tensors lie in a checkpoint: every process writes its own parts, and any other division reads them back.

The files are safetensors in the layout of torch.distributed.checkpoint's Hugging Face storage: no pickle, each part
under its tensor's name, its offset in the file's header. Reading and resharding are torch's. Its writer would hold up
all other threads while it puts a file together in memory.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from packtrain.data.atomic import flush_to_disk

# Where a GPU's tensors have no room in host memory as a whole, a file's at a time have.
FILE_BYTES = 2**30
# Names that torch's reader looks for in a file's header.
_PARTS_KEY, _OFFSETS_KEY = "DCP_SHARDING_INFO", "saved_offsets"


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

    Parts without elements are left out. Raises the OSError that the disk gave. Other threads run meanwhile.
    """
    names = []
    for number, held in enumerate(_files(parts)):
        path = folder / f"rank-{rank:05d}-{number:05d}.safetensors"
        offsets = {name: {_OFFSETS_KEY: list(part.offset)} for name, part in held.items()}
        tensors = {name: part.tensor.detach().to("cpu").contiguous() for name, part in held.items()}
        try:
            safetensors.torch.save_file(tensors, path, metadata={"format": "pt", _PARTS_KEY: json.dumps(offsets)})
        except safetensors.SafetensorError as error:
            # It writes from Rust and passes the system's error on as text.
            code = re.search(r"\(os error (\d+)\)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
        with path.open("rb") as file:
            flush_to_disk(file.fileno())
        names.append(path.name)
    return names


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


class _LoadPlanner(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # The default would look into containers, of which there are none, and takes nothing but tensors.
        self.flatten_state_dict = False
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].tensor


def _files(parts: Mapping[str, Part]) -> Iterator[dict[str, Part]]:
    """What goes into each file, in the order of names, filled up to FILE_BYTES."""
    held: dict[str, Part] = {}
    for name, part in sorted(parts.items()):
        if held and sum(each.tensor.nbytes for each in held.values()) + part.tensor.nbytes > FILE_BYTES:
            yield held
            held = {}
        if part.tensor.numel():
            held[name] = part
    if held:
        yield held

"""Decides how tensors lie in a checkpoint: every process writes its own parts, and any other division reads them back.

The files are safetensors in the layout of torch.distributed.checkpoint's Hugging Face storage: no pickle, each part
under its tensor's name, its offset in the file's header. Reading and resharding are torch's. Its writer puts a file
together in memory and holds up all other threads meanwhile; safetensors' own wants all of a file's tensors at once.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

from packtrain.storage.hashed_file import HashedFile

# Several files, so that several ranks can verify a checkpoint at once.
FILE_BYTES = 2**30
# Names that torch's reader looks for in a file's header.
_PARTS_KEY, _OFFSETS_KEY = "DCP_SHARDING_INFO", "saved_offsets"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


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


def write_parts(
    folder: Path,
    parts: Mapping[str, Part],
    *,
    rank: int,
    take: Callable[[str], AbstractContextManager[Tensor]] | None = None,
) -> dict[str, str]:
    """Writes the parts of one process into files of its own, flushed to the disk; the files' hashes by their names.

    `take` gives the elements of a part, by its name, while they are written; by default its tensor. Parts without elements are
    left out. Raises the OSError that the disk gave. Other threads run meanwhile.
    """
    hashes = {}
    for number, held in enumerate(_files(parts)):
        path = folder / f"rank-{rank:05d}-{number:05d}.safetensors"
        with HashedFile(path) as file:
            file.write(_header(held))
            for name, part in held.items():
                with nullcontext(part.tensor) if take is None else take(name) as tensor:
                    file.write(tensor.detach().to("cpu").contiguous())
            hashes[path.name] = file.finish()
    return hashes


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


def _header(parts: Mapping[str, Part]) -> Tensor:
    """What a safetensors file begins with: eight bytes of length, then types, shapes and places as JSON."""
    offsets = {name: {_OFFSETS_KEY: list(part.offset)} for name, part in parts.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", _PARTS_KEY: json.dumps(offsets)}}
    end = 0
    for name, part in parts.items():
        begin, end = end, end + part.tensor.nbytes
        shape = list(part.tensor.shape)
        entries[name] = {"dtype": _DTYPES[part.tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    # So that the elements begin where a reader may map them.
    text += b" " * (-len(text) % 8)
    return torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)


def _files(parts: Mapping[str, Part]) -> Iterator[dict[str, Part]]:
    """What goes into each file, filled up to FILE_BYTES: wide elements first, so that each lies at a multiple of its size."""
    held: dict[str, Part] = {}
    for name, part in sorted(parts.items(), key=lambda item: (-item[1].tensor.itemsize, item[0])):
        if held and sum(each.tensor.nbytes for each in held.values()) + part.tensor.nbytes > FILE_BYTES:
            yield held
            held = {}
        if part.tensor.numel():
            held[name] = part
    if held:
        yield held

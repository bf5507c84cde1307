"""Decides how a process writes its parts of a checkpoint's tensors: into its own safetensors files.

The files have the layout of torch.distributed.checkpoint's Hugging Face storage, so that its reader reads them: no pickle,
each part under its tensor's name, its offset in the file's header. torch's own writer builds a file in memory and blocks
all other threads meanwhile; safetensors' needs all tensors of a file at once.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from packtrain.parallel.parts import TensorPart
from packtrain.storage.hashed_file import HashedFile

# A limit on the size of a file, so that several ranks can verify a checkpoint at once.
FILE_BYTES = 2**30
# Keys that torch's reader expects in a file's header.
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


def write_parts(
    folder: Path,
    parts: Mapping[str, TensorPart],
    *,
    rank: int,
    take: Callable[[str], AbstractContextManager[Tensor]] | None = None,
) -> dict[str, str]:
    """Writes the parts of one process into files, flushes them to the disk, and returns their hashes by name.

    `take` gives the elements of a part by its name while they are written; the default is the part's tensor. Parts without
    elements are left out. Raises any OSError of the disk. Other threads run meanwhile.
    """
    hashes = {}
    for number, held in enumerate(_split_into_files(parts)):
        path = folder / f"rank-{rank:05d}-{number:05d}.safetensors"
        with HashedFile(path) as file:
            file.write(_header(held))
            for name, part in held.items():
                with nullcontext(part.tensor) if take is None else take(name) as tensor:
                    file.write(tensor.detach().to("cpu").contiguous())
            hashes[path.name] = file.finish()
    return hashes


def _header(parts: Mapping[str, TensorPart]) -> Tensor:
    """The beginning of a safetensors file: eight bytes of length, then types, shapes and positions as JSON."""
    offsets = {name: {_OFFSETS_KEY: list(part.offset)} for name, part in parts.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", _PARTS_KEY: json.dumps(offsets)}}
    end = 0
    for name, part in parts.items():
        begin, end = end, end + part.tensor.nbytes
        shape = list(part.tensor.shape)
        entries[name] = {"dtype": _DTYPES[part.tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    # Aligned, so that a reader can map the elements into memory.
    text += b" " * (-len(text) % 8)
    return torch.frombuffer(bytearray(len(text).to_bytes(8, "little") + text), dtype=torch.uint8)


def _split_into_files(parts: Mapping[str, TensorPart]) -> Iterator[dict[str, TensorPart]]:
    """The parts of each file, up to FILE_BYTES. Wide elements come first, so that each is aligned to its size."""
    held: dict[str, TensorPart] = {}
    for name, part in sorted(parts.items(), key=lambda item: (-item[1].tensor.itemsize, item[0])):
        if held and sum(each.tensor.nbytes for each in held.values()) + part.tensor.nbytes > FILE_BYTES:
            yield held
            held = {}
        if part.tensor.numel():
            held[name] = part
    if held:
        yield held

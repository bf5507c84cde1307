"""A file has the right bytes and hash, however the file system treats direct writes."""

import errno
import os
import subprocess
import sys

import pytest
import torch

from packtrain.storage.atomic import hash_file
from packtrain.storage.hashed_file import BUFFER_BYTES, HashedFile

DIRECT = getattr(os, "O_DIRECT", 0)


def pieces(*sizes):
    generator = torch.Generator().manual_seed(sum(sizes))
    return [torch.randint(256, (size,), dtype=torch.uint8, generator=generator) for size in sizes]


def check(path, tensors):
    with HashedFile(path) as file:
        for tensor in tensors:
            file.write(tensor)
        digest = file.finish()
    assert path.read_bytes() == b"".join(bytes(tensor.numpy()) for tensor in tensors)
    assert digest == hash_file(path)


@pytest.mark.parametrize(
    "sizes",
    [
        (),
        (0,),
        (1,),
        (4095, 1),
        (4096,),
        (4096, 1),
        (BUFFER_BYTES,),
        (BUFFER_BYTES - 1, 2),
        (3, 2 * BUFFER_BYTES + 8000, 5),
    ],
)
def test_all_bytes_arrive_whatever_their_number(tmp_path, sizes):
    check(tmp_path / "file", pieces(*sizes))


def test_an_existing_file_is_replaced(tmp_path):
    check(tmp_path / "file", pieces(10_000))
    check(tmp_path / "file", pieces(5))


def test_elements_of_any_type_are_taken_by_their_bytes(tmp_path):
    with HashedFile(tmp_path / "file") as file:
        file.write(torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
        file.write(torch.tensor(True))
        file.finish()
    assert (tmp_path / "file").read_bytes() == bytes.fromhex("803f00c001")


@pytest.mark.skipif(not DIRECT, reason="the system has no direct writes")
def test_a_file_system_without_direct_files_is_written_through_the_cache(tmp_path, monkeypatch):
    really_open = os.open

    def refusing(path, flags, *rest):
        if flags & DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        return really_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    check(tmp_path / "file", pieces(3, BUFFER_BYTES + 4096))


@pytest.mark.skipif(not DIRECT, reason="the system has no direct writes")
def test_a_file_system_that_refuses_the_first_direct_write_is_too(tmp_path, monkeypatch):
    import fcntl

    really_write = os.write

    def refusing(descriptor, data):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return really_write(descriptor, data)

    monkeypatch.setattr(os, "write", refusing)
    check(tmp_path / "file", pieces(3, BUFFER_BYTES + 4096))


def test_a_disk_that_takes_less_than_it_is_given_is_given_the_rest(tmp_path, monkeypatch):
    really_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: really_write(descriptor, data[:100_001]))
    check(tmp_path / "file", pieces(3, BUFFER_BYTES + 4096))


@pytest.mark.parametrize("limit", [4096, 100_000])
@pytest.mark.slow
def test_a_disk_that_is_full_says_so(tmp_path, limit):
    """A limit on the size of files, in a process of its own, fails as a full disk does."""
    script = (
        "import errno, resource, sys, torch\n"
        "from pathlib import Path\n"
        "from packtrain.storage.hashed_file import HashedFile\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n"
        "    with HashedFile(Path(sys.argv[1])) as file:\n"
        "        file.write(torch.ones(1_000_000))\n"
        "        file.finish()\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "file"], capture_output=True, text=True, check=True)
    assert done.stdout == "EFBIG\n"

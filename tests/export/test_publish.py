"""An export becomes visible complete or not at all, and never replaces what packtrain did not write."""

import errno
import os
import resource
from pathlib import Path

import pytest

from packtrain.errors import DiskFullError, ExportError
from packtrain.export.publish import SEAL, check_target, seal, staged
from packtrain.export.run import export_run


def publish(out: Path, content: str, *, overwrite: bool = False) -> None:
    with staged(out, overwrite=overwrite, needed_bytes=1) as folder:
        (folder / "weights").write_text(content)
        seal(folder, {"format": "test"})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_export_appears_under_its_name_and_alone(tmp_path):
    publish(tmp_path / "new" / "out", "a")
    assert names(tmp_path / "new") == {"out"}
    assert names(tmp_path / "new" / "out") == {"weights", SEAL}


@pytest.mark.parametrize("failure", [ExportError("no"), KeyboardInterrupt(), ValueError("bug")])
def test_a_failed_export_leaves_nothing_and_an_earlier_one_as_it_was(tmp_path, failure):
    publish(tmp_path / "out", "old")
    for out in (tmp_path / "out", tmp_path / "other"):
        with pytest.raises(type(failure)), staged(out, overwrite=True, needed_bytes=1) as folder:
            (folder / "weights").write_text("new")
            raise failure
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / "weights").read_text() == "old"


def test_an_earlier_export_is_replaced_only_on_request(tmp_path):
    publish(tmp_path / "out", "old")
    with pytest.raises(ExportError, match="--overwrite"):
        publish(tmp_path / "out", "new")
    assert (tmp_path / "out" / "weights").read_text() == "old"
    publish(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "weights").read_text() == "new"
    assert names(tmp_path) == {"out"}


def test_what_is_not_an_export_is_never_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    publish(tmp_path / "extended", "old")
    (tmp_path / "extended" / "notes.txt").write_text("mine")
    for name, says in (("file", "is a file"), ("folder", "not an export"), ("extended", r"notes\.txt")):
        with pytest.raises(ExportError, match=says):
            publish(tmp_path / name, "new", overwrite=True)
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "extended" / "notes.txt").read_text() == "mine"


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    check_target(tmp_path / "out", overwrite=False)
    publish(tmp_path / "out", "a")
    assert (tmp_path / "out" / "weights").read_text() == "a"


def test_what_a_killed_export_left_does_not_matter(tmp_path):
    publish(tmp_path / "out", "old")
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "weights").write_text("half")
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    with pytest.raises(ExportError, match="--overwrite"):
        publish(tmp_path / "out", "new")
    assert (tmp_path / "out" / "weights").read_text() == "old", "killed between two renames: the old one is restored"
    publish(tmp_path / "out", "new", overwrite=True)
    assert names(tmp_path) == {"out"}


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(DiskFullError, match="needs"), staged(tmp_path / "out", overwrite=False, needed_bytes=1 << 60):
        raise AssertionError("the block must not run")
    assert names(tmp_path) == set()


def test_a_disk_that_fills_up_leaves_the_earlier_export(tmp_path):
    publish(tmp_path / "out", "old")
    with pytest.raises(DiskFullError, match="full"), staged(tmp_path / "out", overwrite=True, needed_bytes=1) as folder:
        (folder / "weights").write_text("new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == {"out"}
    assert (tmp_path / "out" / "weights").read_text() == "old"


@pytest.mark.parametrize("format", ["hf", "gguf", "llama2c"])
def test_every_format_on_a_full_disk_leaves_nothing(make_run, tmp_path, format):
    """safetensors, the gguf library and NumPy each say it in their own way."""
    run, soft = make_run(), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = names(tmp_path)
    try:
        # The weights alone are 70 kB.
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, soft[1]))
        with pytest.raises(DiskFullError, match=f"the disk of {tmp_path} is full"):
            export_run(run, tmp_path / "out", format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert names(tmp_path) == before


def test_a_link_is_not_written_through(tmp_path):
    publish(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    (tmp_path / "away").symlink_to(tmp_path / "none")
    for name in ("out", "away"):
        with pytest.raises(ExportError, match="is a link to"):
            publish(tmp_path / name, "new", overwrite=True)
    assert (tmp_path / "real" / "weights").read_text() == "old" and not (tmp_path / "none").exists()


def test_a_second_export_to_the_same_folder_is_refused_while_the_first_one_runs(tmp_path):
    with staged(tmp_path / "out", overwrite=False, needed_bytes=1) as folder:
        (folder / "weights").write_text("first")
        with pytest.raises(ExportError, match="another process exports to"):
            publish(tmp_path / "out", "second", overwrite=True)
        publish(tmp_path / "beside", "a")
        seal(folder, {})
    assert (tmp_path / "out" / "weights").read_text() == "first"
    assert names(tmp_path) == {"out", "beside"}


@pytest.mark.parametrize("content", ["5", '{"files": 5}', '{"files": [[]]}', "[" * 100_000, "null"])
def test_a_seal_that_is_not_one_is_no_seal(tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SEAL).write_text(content)
    with pytest.raises(ExportError, match="is not an export made by packtrain"):
        publish(tmp_path / "out", "new", overwrite=True)


def test_a_pipe_in_the_place_of_the_seal_is_not_waited_for(tmp_path):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / SEAL)
    with pytest.raises(ExportError, match="is not an export made by packtrain"):
        publish(tmp_path / "out", "new", overwrite=True)

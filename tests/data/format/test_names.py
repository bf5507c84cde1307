"""No name in a dataset leads out of its folder, and no link or special file in it is followed, copied or waited for."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.corpora import recipe, reseal

from packtrain.data.format.shards import open_dataset
from packtrain.data.rows import plan_cache
from packtrain.data.rows.pack import plan
from packtrain.errors import DatasetError
from packtrain.prepare.run import prepare
from packtrain.storage.regular import IrregularFileError, read_regular

OUTSIDE = (
    "../victim/00000",
    "/etc/passwd",
    "00000/../../x",
    "..",
    ".",
    "",
    "0000",
    "00000\n",
    "٠٠٠٠٠",
    "00000\0",
    "a" * 5,
)


@pytest.fixture
def copy(tiny_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_shard_is_called_by_a_number(copy: Path, name: str) -> None:
    reseal(copy, lambda m: m["splits"]["train"][0].update(name=name))
    with pytest.raises(DatasetError, match=r"manifest\.json is damaged .*five digits"):
        open_dataset(copy)


def test_a_split_and_a_suffix_have_known_names(copy: Path) -> None:
    reseal(copy, lambda m: m["splits"].update({"../train": m["splits"].pop("train")}))
    with pytest.raises(DatasetError, match=r"splits\.\.\./train"):
        open_dataset(copy)
    reseal(
        copy,
        lambda m: m["splits"].update(train=[], validation=[{**m["splits"]["validation"][0], "files": {"../tok": {}}}]),
    )
    with pytest.raises(DatasetError, match="files"):
        open_dataset(copy)


def test_a_shard_is_named_once(copy: Path) -> None:
    reseal(copy, lambda m: m["splits"]["train"].append(m["splits"]["train"][0]))
    with pytest.raises(DatasetError, match="not in the order of their numbers"):
        open_dataset(copy)


def test_a_digit_changed_by_hand_is_noticed(copy: Path) -> None:
    path = copy / "manifest.json"
    tree = json.loads(path.read_text())
    for changed in (
        {**tree, "ledger": {**tree["ledger"], "bytes_per_token": 9.0}},
        {**tree, "checksum": None},
        {key: value for key, value in tree.items() if key != "checksum"},
        {**tree, "checksum": "0" * 64},
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(DatasetError, match="was changed since it was written"):
            open_dataset(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "notes", "folder"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_the_tokenizer_has_files_alone(copy: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = copy / "tokenizer" / name
    if path.exists():
        path.rename(tmp_path / name)
    (tmp_path / name).touch()
    if kind == "link":
        path.symlink_to(tmp_path / name)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    what = {"link": "a link", "pipe": "a named pipe", "folder": "a folder"}[kind]
    with pytest.raises(DatasetError, match=rf"the tokenizer is refused, because {name} is {what}"):
        open_dataset(copy)


def test_the_tokenizer_folder_is_no_link_either(copy: Path, tmp_path: Path) -> None:
    (copy / "tokenizer").rename(tmp_path / "elsewhere")
    (copy / "tokenizer").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="because tokenizer is a link"):
        open_dataset(copy)


@pytest.mark.parametrize(
    "name", ["manifest.json", "train/00000.tok", "train/00000.idx.npy", "validation/00000.src.parquet"]
)
def test_a_pipe_is_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(DatasetError, match=r"a named pipe|not a regular file"):
        open_dataset(copy)


def test_shards_on_another_disk_may_be_linked(copy: Path, tmp_path: Path) -> None:
    before = open_dataset(copy).split("train").read(0, 50).tolist()
    (copy / "train").rename(tmp_path / "train")
    (copy / "train").mkdir()
    for path in (tmp_path / "train").iterdir():
        (copy / "train" / path.name).symlink_to(path)
    assert open_dataset(copy).split("train").read(0, 50).tolist() == before


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "link") == b"text"
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(IrregularFileError):
            read_regular(path)


def test_who_may_not_read_a_dataset_is_told_so(copy: Path) -> None:
    if os.geteuid():
        (copy / "manifest.json").chmod(0)
        with pytest.raises(DatasetError, match=r"Permission denied: allow this user to read it"):
            open_dataset(copy)
        return
    copy.chmod(0o700)
    os.seteuid(65_534)
    try:
        with pytest.raises(DatasetError, match=r"Permission denied: allow this user to read it"):
            open_dataset(copy)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("old", [".work/../../victim", "/etc/passwd", ".work/tokens/../../x", "train/00000.tok"])
@pytest.mark.parametrize("new", ["train/00000.tok", "../victim", "tokenizer/x", "train/00000.tok\n"])
def test_a_publication_moves_nothing_else(
    tiny_source: Path, tiny_dataset: Path, tmp_path: Path, old: str, new: str
) -> None:
    out = tmp_path / "out"
    (out / ".work").mkdir(parents=True)
    publication = {"manifest": (tiny_dataset / "manifest.json").read_text(), "moves": [[old, new]]}
    (out / ".work/publication.json").write_text(json.dumps(publication))
    with pytest.raises(DatasetError, match=r"publication\.json is damaged"):
        prepare(recipe("jsonl", tiny_source), out)
    assert not (out / "manifest.json").exists()


def test_a_plan_stays_in_its_folder(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    split = open_dataset(copy).split("train")
    hashes = plan(split, 16, "bestfit").hash
    head = copy / "plans" / hashes / "plan.json"
    tree = json.loads(head.read_text())
    secret = tmp_path / "secret.bin"
    shutil.copyfile(copy / "plans" / hashes / "long_rows.bin", secret)
    tree["content"]["arrays"]["../../../secret"] = tree["content"]["arrays"]["long_rows"]
    tree["hash"] = plan_cache._hash(tree["content"])
    head.write_text(json.dumps(tree))
    assert plan_cache._load_or_warn(head.parent, lambda _: True) is None
    victim = tmp_path / "victim"
    victim.write_text("mine")
    shutil.rmtree(copy / "plans")
    (copy / "plans").mkdir()
    (copy / "plans" / ".lock").symlink_to(victim)
    plan(open_dataset(copy).split("train"), 16, "bestfit")
    assert victim.read_text() == "mine"

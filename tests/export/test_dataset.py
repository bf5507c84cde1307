"""A dataset that is exported for another program and imported again is the same dataset."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from packtrain.cli.diff import diff
from packtrain.cli.export import export
from packtrain.cli.import_ import import_
from packtrain.data.foreign import write as tokenfiles
from packtrain.data.format.manifest import SPLITS, TokenizerInfo
from packtrain.data.format.shards import Dataset, open_dataset
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.errors import ConfigError, DatasetError, ExportError, SourceError, TokenizerError
from packtrain.export.dataset import boundary
from packtrain.prepare.verify import verify
from packtrain.storage.atomic import hash_file
from tests.corpora import reseal

app = typer.Typer(pretty_exceptions_enable=False)
app.command("export")(export)
app.command("import")(import_)
app.command("diff")(diff)


# Several slices, so that streams are also read from the middle.
FINE = ("prepare.workers=1", "prepare.slice_documents=60")


def call(*words: object) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in words else result.stdout


def bring_in(path: Path | str, format: str, tokenizer: Path, out: Path, *words: object) -> Dataset:
    call("import", path, "--format", format, "--tokenizer", tokenizer, "--out", out, *FINE, *words, "--json")
    return open_dataset(out)


def contents(dataset: Dataset, side: str) -> list[bytes]:
    paths = sorted((dataset.folder / side).glob("*.src.parquet"))
    return [h for path in paths for h in pq.read_table(path)["hash"].to_pylist()]


def write_bin(path: Path, documents: list[list[int]]) -> None:
    path.parent.mkdir(exist_ok=True)
    np.array([i for ids in documents for i in ids], "<u2").tofile(path)


@pytest.mark.parametrize("format", ["nanogpt", "llmc", "megatron", "datatrove"])
def test_ids_documents_and_sides_come_back(
    dataset: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenfiles, "LLMC_FILE_TOKENS", 1000)
    shown = call("export", dataset, "--format", format, "--out", tmp_path / "out", "--json")
    given, back = (
        open_dataset(dataset),
        bring_in(tmp_path / "out", format, tmp_path / "out/tokenizer", tmp_path / "back"),
    )
    assert shown["documents"] == sum(given.split(name).num_documents for name in SPLITS)
    for name in SPLITS:
        a, b = given.split(name), back.split(name)
        assert np.array_equal(a.read(0, a.num_tokens), b.read(0, b.num_tokens))
        assert np.array_equal(a.document_ends, b.document_ends)
        assert a.utf8_bytes == b.utf8_bytes
        assert contents(given, name) == contents(back, name)
    assert back.manifest.tokenizer == given.manifest.tokenizer
    assert back.manifest.ledger["leaked_documents"] == 0
    assert back.manifest.ledger["imported"] == format
    assert len(verify(back.folder, rebuild=3).rebuilt) == 3


@pytest.mark.parametrize("format", ["megatron", "datatrove", "llmc"])
def test_files_are_read_from_any_file_system(dataset: Path, tmp_path: Path, format: str) -> None:
    """Here one in memory."""
    call("export", dataset, "--format", format, "--out", tmp_path / "out")
    fs = fsspec.filesystem("memory")
    fs.put(f"{tmp_path}/out/", f"/{format}/", recursive=True)
    back = bring_in(f"memory://{format}", format, dataset / "tokenizer", tmp_path / "back")
    for name in SPLITS:
        a, b = open_dataset(dataset).split(name), back.split(name)
        assert np.array_equal(a.read(0, a.num_tokens), b.read(0, b.num_tokens))
        assert np.array_equal(a.document_ends, b.document_ends)


@pytest.mark.very_slow
def test_any_number_of_workers_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    call("export", dataset, "--format", "datatrove", "--out", tmp_path / "out")
    bring_in(tmp_path / "out", "datatrove", dataset / "tokenizer", tmp_path / "one")
    bring_in(tmp_path / "out", "datatrove", dataset / "tokenizer", tmp_path / "two", "prepare.workers=2")
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    assert len(files) > 20
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_the_split_by_content_is_that_of_preparation(dataset: Path, tmp_path: Path) -> None:
    """So a document never is in training in an imported dataset and in validation in a prepared one."""
    call("export", dataset, "--format", "megatron", "--out", tmp_path / "out")
    back = bring_in(tmp_path / "out", "megatron", dataset / "tokenizer", tmp_path / "back", "--split", "content")
    for name in SPLITS:
        assert sorted(contents(open_dataset(dataset), name)) == sorted(contents(back, name))
    assert "leaked_documents" not in back.manifest.ledger


def test_a_dataset_whose_text_was_cut_comes_back_in_two_parts(dataset: Path, tmp_path: Path) -> None:
    from packtrain.config.load import load_recipe
    from packtrain.prepare.run import prepare
    from tests.corpora import sentences, write_jsonl

    path = write_jsonl(tmp_path / "a.jsonl", ["\n".join(sentences(30))])
    words = [
        "source.kind=jsonl",
        f"source.path={path}",
        f"tokenizer.name={dataset / 'tokenizer'}",
        "tokenizer.vocab_size=",
    ]
    prepare(load_recipe("stdlib", [*words, "split.by=tail", "prepare.workers=1"]).config, tmp_path / "cut")
    call("export", tmp_path / "cut", "--format", "megatron", "--out", tmp_path / "out")
    back = bring_in(tmp_path / "out", "megatron", dataset / "tokenizer", tmp_path / "back")
    for name in SPLITS:
        a, b = open_dataset(tmp_path / "cut").split(name), back.split(name)
        assert np.array_equal(a.read(0, a.num_tokens), b.read(0, b.num_tokens)) and a.num_documents == 1
    shown = call("diff", tmp_path / "cut", tmp_path / "back")
    assert "The same documents with the same ids on the same sides." in shown


@pytest.mark.slow
def test_a_stream_is_cut_at_the_token_given(dataset: Path, tmp_path: Path) -> None:
    write_bin(tmp_path / "bin/data.bin", [[0, 40 + i, 50, 9] for i in range(100)])
    back = bring_in(tmp_path / "bin/data.bin", "nanogpt", dataset / "tokenizer", tmp_path / "a", "--eot", 9)
    lengths = {name: np.diff(back.split(name).document_ends, prepend=0) for name in SPLITS}
    assert all((part == 4).all() for part in lengths.values())
    assert (back.manifest.tokenizer.adds_bos, back.manifest.tokenizer.adds_eos) == (True, False)
    assert back.manifest.recipe["source"]["eot_position"] == "end"
    shown = call(
        *("import", tmp_path / "bin", "--format", "nanogpt", "--tokenizer", dataset / "tokenizer", "--eot", "none"),
        *("--out", tmp_path / "b", "split.validation_fraction=0"),
    )
    assert "imported 1 documents, 400 ids, split by content" in shown


def test_copies_across_given_splits_leave_training_or_are_counted(dataset: Dataset, tmp_path: Path) -> None:
    tokenizer = dataset / "tokenizer"
    own = [[0, 60 + i, 61, 1] for i in range(20)]
    write_bin(tmp_path / "bin/train.bin", own)
    write_bin(tmp_path / "bin/val.bin", [*own[:3], own[0], [0, 99, 98, 1]])
    kept = bring_in(tmp_path / "bin", "nanogpt", tokenizer, tmp_path / "k", "split.keep_leaks=true")
    assert kept.manifest.ledger["leaked_documents"] == 4
    assert (kept.split("train").num_documents, kept.split("validation").num_documents) == (20, 5)
    apart = bring_in(tmp_path / "bin", "nanogpt", tokenizer, tmp_path / "a")
    assert apart.manifest.ledger["leaked_documents"] == 0
    assert apart.manifest.ledger["documents"]["in_validation"] == 3
    assert (apart.split("train").num_documents, apart.split("validation").num_documents) == (17, 5)
    dropped = bring_in(tmp_path / "bin", "nanogpt", tokenizer, tmp_path / "b", "dedup.exact=true")
    assert dropped.manifest.ledger["leaked_documents"] == 0
    assert (dropped.split("train").num_documents, dropped.split("validation").num_documents) == (17, 4)
    apart = bring_in(tmp_path / "bin", "nanogpt", tokenizer, tmp_path / "c", "--split", "content", "dedup.exact=true")
    assert apart.manifest.ledger["documents"]["duplicates"] == 4


def test_mistakes_get_one_sentence(dataset: Path, tmp_path: Path) -> None:
    tokenizer = dataset / "tokenizer"
    write_bin(tmp_path / "bin/train.bin", [[0, 5, 1], [0, 600, 1]])
    with pytest.raises(
        SourceError, match=r"train\.bin document 1 holds the id 600, but the tokenizer's ids go from 0 to 511"
    ):
        bring_in(tmp_path / "bin", "nanogpt", tokenizer, tmp_path / "a")
    write_bin(tmp_path / "bin/train.bin", [[0, 5, 1], [5, 1]])
    with pytest.raises(SourceError, match=r"document 1 has no BOS \(id 0\).*write tokenizer.bos=false"):
        bring_in(tmp_path / "bin", "nanogpt", tokenizer, tmp_path / "a", "tokenizer.bos=true")
    with pytest.raises(SourceError, match=r"the id 99999 does not occur in train\.bin"):
        bring_in(tmp_path / "bin", "nanogpt", tokenizer, tmp_path / "a", "--eot", 99999)
    with pytest.raises(ConfigError, match="--eot x is not an id"):
        bring_in(tmp_path / "bin", "nanogpt", tokenizer, tmp_path / "a", "--eot", "x")
    with pytest.raises(ConfigError, match=r"clean\.\* has no effect with source.kind=nanogpt"):
        bring_in(tmp_path / "bin", "nanogpt", tokenizer, tmp_path / "a", "clean.min_chars=5")
    with pytest.raises(TokenizerError):
        bring_in(tmp_path / "bin", "nanogpt", tmp_path, tmp_path / "a")
    for format in ("megatron", "datatrove"):
        with pytest.raises(SourceError, match=r"has no file ending in"):
            bring_in(tmp_path / "bin", format, tokenizer, tmp_path / "a")
    with pytest.raises(SourceError, match="does not exist"):
        bring_in(tmp_path / "none", "megatron", tokenizer, tmp_path / "a")
    (tmp_path / "bin/a.idx").touch()
    with pytest.raises(SourceError, match=r"a\.idx has no a\.bin beside it"):
        bring_in(tmp_path / "bin/a", "megatron", tokenizer, tmp_path / "a")
    assert not (tmp_path / "a/manifest.json").exists()


def test_an_export_is_refused_or_appears_complete(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write --format with one of nanogpt, llmc, megatron, datatrove"):
        call("export", dataset, "--out", tmp_path / "out")
    with pytest.raises(ExportError, match="did you mean megatron"):
        call("export", dataset, "--format", "megatrom", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="--dtype applies only to a model"):
        call("export", dataset, "--format", "llmc", "--dtype", "float16", "--out", tmp_path / "out")
    with pytest.raises(ExportError, match="is not an export made by packtrain"):
        call("export", dataset, "--format", "llmc", "--out", dataset)
    assert not (tmp_path / "out").exists()
    call("export", dataset, "--format", "llmc", "--out", tmp_path / "out")
    call("export", dataset, "--format", "nanogpt", "--out", tmp_path / "out", "--overwrite")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "train.bin",
        "val.bin",
        "tokenizer",
        "packtrain.json",
    }


SMALL_FILES = """
import resource, signal, sys
from packtrain.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
main()
"""


@pytest.mark.parametrize("large", ["ids", "tokenizer"])
@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing(dataset: Path, tmp_path: Path, large: str) -> None:
    """A limit on file size fails like a full disk."""
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    if large == "tokenizer":
        path = copy / "tokenizer" / "tokenizer.json"
        path.write_bytes(path.read_bytes() + b" " * 200_000)
        reseal(copy, lambda m: m["tokenizer"].update(hash=load_tokenizer(copy / "tokenizer").hash))
    else:
        copy = bring_in_large(tmp_path, dataset / "tokenizer")
    before = set(tmp_path.iterdir())
    words = ["export", copy, "--format", "nanogpt", "--out", tmp_path / "out"]
    command = [sys.executable, "-c", SMALL_FILES, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    assert "is full; free some space, or choose an --out on another disk" in " ".join(done.stderr.split())
    assert set(tmp_path.iterdir()) == before


def bring_in_large(folder: Path, tokenizer: Path) -> Path:
    write_bin(folder / "bin/train.bin", [[0, 9 + i, *[5] * 998, 1] for i in range(100)])
    return bring_in(folder / "bin", "nanogpt", tokenizer, folder / "large").folder


def test_a_plain_stream_that_merges_or_cuts_documents_is_refused(dataset: Path, tmp_path: Path) -> None:
    """A document with an EOS in the middle; only a format with an index keeps it in one piece."""
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    split = open_dataset(copy).split("train")
    path = copy / "train" / f"{split.shards[0].name}.tok"
    ids = np.fromfile(path, "<u2")
    ids[2] = open_dataset(copy).manifest.tokenizer.eos_id
    ids.tofile(path)
    reseal(copy, lambda m: m["splits"]["train"][0]["files"]["tok"].update(hash=hash_file(path)))
    with pytest.raises(ExportError, match=r"the nanogpt files .* do not read back as the same documents"):
        call("export", copy, "--format", "nanogpt", "--out", tmp_path / "out")
    call("export", copy, "--format", "datatrove", "--out", tmp_path / "out")


def test_the_boundary_is_the_token_between_documents() -> None:
    def info(bos: int | None, eos: int | None, adds_bos: bool, adds_eos: bool) -> TokenizerInfo:
        flags = {"adds_bos": adds_bos, "adds_eos": adds_eos}
        return TokenizerInfo(hash="", vocab_size=9, bos_id=bos, eos_id=eos, kind="other", **flags)

    assert boundary(info(1, 2, True, True)) == (2, "end")
    assert boundary(info(1, 2, True, False)) == (1, "begin")
    assert boundary(info(3, 3, True, True)) == (3, "both")
    assert boundary(info(1, 2, False, False)) == (None, "end")


@pytest.mark.parametrize("format", ["nanogpt", "llmc", "megatron", "datatrove"])
@pytest.mark.parametrize("name", ["train/00000.tok", "validation/00000.tok", "train/00000.idx.npy"])
def test_a_flipped_bit_is_not_exported(dataset: Path, tmp_path: Path, format: str, name: str) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    path = copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"shard {name.partition('.')[0]} is refused|is damaged"):
        call("export", copy, "--format", format, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_the_known_files_of_the_tokenizer_are_exported(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    (copy / "tokenizer" / "notes.txt").write_text("mine")
    call("export", copy, "--format", "llmc", "--out", tmp_path / "out")
    names = ("tokenizer.json", "tokenizer_config.json")
    assert sorted(path.name for path in (tmp_path / "out" / "tokenizer").iterdir()) == sorted(names)
    for name in names:
        assert (tmp_path / "out" / "tokenizer" / name).read_bytes() == (dataset / "tokenizer" / name).read_bytes()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (copy / "tokenizer" / "secret").symlink_to(secret)
    with pytest.raises(DatasetError, match="the tokenizer is refused, because secret is a link"):
        call("export", copy, "--format", "llmc", "--out", tmp_path / "other")

"""Whether the name of a dataset or tokenizer means the right files, on a hub and in a local copy."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.corpora import LLAMA2, files_of, sentences
from tests.prepare.sources.fake_hub import serving
from tests.prepare.sources.test_cards import select

from packtrain.config.load import load_recipe
from packtrain.errors import SourceError, TokenizerError
from packtrain.prepare.run import prepare
from packtrain.prepare.sources.hub import tokenizer_folder

CARD = {
    "configs": [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/*/*"}]},
        {"config_name": "sample-10BT", "data_files": [{"split": "train", "path": "sample/10BT/*"}]},
        {
            "config_name": "odd",
            "data_files": [{"split": "train", "path": ["x/*.parquet"]}, {"split": "test", "path": "y/*"}],
        },
    ]
}
NAMES = [
    "README.md",
    "data/CC-MAIN-2013-20/a.parquet",
    "sample/10BT/000_00000.parquet",
    "sample/10BT/001_00000.parquet",
    "sample/100BT/000_00000.parquet",
    "x/a.parquet",
    "y/b.parquet",
]
FINEWEB_EDU = [
    "text",
    "id",
    "dump",
    "url",
    "file_path",
    "language",
    "language_score",
    "token_count",
    "score",
    "int_score",
]


@pytest.mark.parametrize(
    ("card", "config", "split", "chosen"),
    [
        (CARD, "sample-10BT", "train", NAMES[2:4]),
        (CARD, None, "train", NAMES[1:2]),
        (CARD, "odd", "train", ["x/a.parquet"]),
        (CARD, "odd", "test", ["y/b.parquet"]),
        ({}, "sample-10BT", "train", NAMES[2:4]),
        ({}, "sample-100BT", "train", NAMES[4:5]),
        ({}, "x", "train", ["x/a.parquet"]),
    ],
)
def test_which_files(card: dict, config: str | None, split: str, chosen: list[str]) -> None:
    assert select(NAMES, card, config, split) == chosen


def test_split_by_file_name() -> None:
    names = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/validation-0.parquet"]
    assert select(names, {}, None, "train") == names[:2]
    assert select(names, {}, None, "validation") == names[2:]


@pytest.mark.parametrize(
    ("card", "config", "split", "sentence"),
    [
        (
            CARD,
            "sample-10BTT",
            "train",
            r"no configuration 'sample-10BTT'; write source\.config= with one of sample-10BT",
        ),
        (CARD, "odd", "dev", r"no split 'dev'; write source\.split= with one of train, test"),
        ({}, "sample-350BT", "train", "no parquet files in sample/350BT or sample-350BT or 350BT"),
    ],
)
def test_what_is_not_there(card: dict, config: str, split: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        select(NAMES, card, config, split)


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "a/b/c"])
def test_a_tokenizer_name_that_is_neither(name: str) -> None:
    with pytest.raises(TokenizerError, match="neither a folder nor a hub name"):
        tokenizer_folder(name, None)


def write_fineweb(folder: Path) -> None:
    """Two files with exactly FineWeb-Edu's columns."""
    folder.mkdir(parents=True)
    for number in range(2):
        texts = sentences(60, seed=number)
        columns = {
            "text": texts,
            "id": [f"<urn:uuid:{number}-{i}>" for i in range(60)],
            "dump": ["CC-MAIN-2013-20"] * 60,
            "url": ["http://example.com"] * 60,
            "file_path": ["s3://x"] * 60,
            "language": ["en"] * 60,
            "language_score": [0.9] * 60,
            "token_count": [len(t) // 4 for t in texts],
            "score": [3.1] * 60,
            "int_score": [3] * 60,
        }
        assert list(columns) == FINEWEB_EDU
        pq.write_table(pa.table(columns), folder / f"{number:03d}_00000.parquet", row_group_size=16)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "fineweb-edu"
    write_fineweb(folder / "sample" / "10BT")
    write_fineweb(folder / "sample" / "100BT")
    (folder / "sample" / "100BT" / "001_00000.parquet").unlink()
    return folder


def fineweb(path: Path, *settings: str):
    words = ["tokenizer.name=", "tokenizer.vocab_size=300", "prepare.workers=1", f"source.path={path}", *settings]
    return load_recipe("fineweb-edu-10bt", words).config


def test_a_local_copy_is_prepared_from_the_repository_or_its_folder(repository: Path, tmp_path: Path) -> None:
    for name, folder in (("a", repository), ("b", repository / "sample" / "10BT"), ("c", repository / "sample")):
        prepared = prepare(fineweb(folder), tmp_path / name)
        assert prepared.manifest.ledger["documents"]["in"] == 120
    shards = [files_of(tmp_path / name / "train") for name in "abc"]
    assert shards[0] == shards[1] == shards[2]


@pytest.mark.skipif(not LLAMA2.is_dir(), reason="the Llama-2 tokenizer is not on this machine")
@pytest.mark.slow
def test_fineweb_with_the_llama2_tokenizer_from_folders(repository: Path, tmp_path: Path) -> None:
    words = [f"source.path={repository}", f"tokenizer.name={LLAMA2}", "prepare.workers=1"]
    manifest = prepare(load_recipe("fineweb-edu-10bt", words).config, tmp_path / "out").manifest
    assert (manifest.dtype, manifest.tokenizer.vocab_size, manifest.tokenizer.bos_id) == ("u2", 32_000, 1)
    assert manifest.source_revision is None


OFFLINE = """
import sys
from packtrain.config.load import load_recipe
from packtrain.prepare.sources.hub import find_dataset_files, tokenizer_folder
from packtrain.errors import PacktrainError
for call in (lambda: find_dataset_files(load_recipe("fineweb-edu-100bt").config.source),
             lambda: tokenizer_folder("KoboldAI/llama2-tokenizer", None)):
    try:
        call()
    except PacktrainError as error:
        print(error.exit_code, error)
"""


def run_with_hub(code: str, endpoint: str, cache: Path, *arguments: str) -> str:
    """A process of its own, as the hub's address is read when its library is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_without_a_network_each_error_says_what_to_fetch(tmp_path: Path) -> None:
    # Nothing listens on port 9 of this machine.
    dataset, tokenizer = run_with_hub(OFFLINE, "http://127.0.0.1:9", tmp_path).splitlines()
    assert dataset.startswith(
        "2 the dataset HuggingFaceFW/fineweb-edu (revision 87f09149ef4734204d70ed1d046ddc9ca3f2b8f9)"
    )
    assert "--include 'sample/100BT/*' --local-dir FOLDER`, then write source.path=FOLDER" in dataset
    assert tokenizer.startswith("2 the tokenizer KoboldAI/llama2-tokenizer cannot be reached")
    assert "tokenizer.json and tokenizer_config.json" in tokenizer
    assert tokenizer.endswith("then write tokenizer.name=FOLDER")


ONLINE = """
import sys
from pathlib import Path
from packtrain.config.load import load_recipe
from packtrain.prepare.run import prepare
words = ["tokenizer.name=someone/tokenizer", "prepare.workers=2", "prepare.slice_documents=40"]
prepared = prepare(load_recipe("fineweb-edu-10bt", words).config, Path(sys.argv[1]))
print(prepared.manifest.source_revision, prepared.manifest.ledger["documents"]["in"])
"""


@pytest.mark.slow
def test_from_a_hub_as_from_a_local_copy(repository: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/10BT/*\n---\n"
    repositories = {"HuggingFaceFW/fineweb-edu": repository, "someone/tokenizer": tiny_dataset / "tokenizer"}
    with serving(repositories, cards={"HuggingFaceFW/fineweb-edu": card}) as endpoint:
        printed = run_with_hub(ONLINE, endpoint, tmp_path / "cache", str(tmp_path / "hub"))
    assert printed.split() == ["87f09149ef4734204d70ed1d046ddc9ca3f2b8f9", "120"]
    words = [f"source.path={repository}", f"tokenizer.name={tiny_dataset / 'tokenizer'}", "prepare.slice_documents=40"]
    prepare(load_recipe("fineweb-edu-10bt", [*words, "prepare.workers=1"]).config, tmp_path / "local")
    assert files_of(tmp_path / "hub" / "train") == files_of(tmp_path / "local" / "train")

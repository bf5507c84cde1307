"""A dataset made on an object store: the same bytes as on a disk, one writer at a time, and clear refusals."""

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.corpora import files_of, recipe, sentences, write_jsonl

from packtrain.config.load import to_toml
from packtrain.data.format.shards import open_dataset
from packtrain.errors import DatasetError, Interrupted
from packtrain.prepare.ranges import prepare_range
from packtrain.prepare.run import prepare, prepare_tokenizer
from packtrain.prepare.verify import verify
from packtrain.storage import remote
from packtrain.storage.locks import LOCK
from packtrain.storage.remote import RemoteStore
from packtrain.storage.store import LocalStore, Store, open_store

SETTINGS: dict[str, Any] = {"source__id_column": "id", "prepare__slice_documents": 50}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """URL of a bucket of an S3 that runs in this process, and that other processes reach too."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            patch.setenv(key, "us-east-1")
        # What an earlier server of this process held is still there.
        name = f"bucket-{uuid.uuid4().hex}"
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
        yield f"s3://{name}"
    server.stop()


@pytest.fixture
def memory() -> Iterator[str]:
    """URL of an empty folder in this process's memory."""
    name = uuid.uuid4().hex
    yield f"memory://{name}"
    fs = fsspec.filesystem("memory")
    if fs.exists(f"/{name}"):
        fs.rm(f"/{name}", recursive=True)


def fetched(url: str, folder: Path) -> dict[str, bytes]:
    """Every file below a URL, by relative name."""
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    fs.get(path + "/", str(folder), recursive=True)
    return files_of(folder)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_an_object_store_gets_the_same_bytes(
    bucket: str, tiny_source: Path, tiny_dataset: Path, tmp_path: Path, workers: int
) -> None:
    url = f"{bucket}/same{workers}"
    prepared = prepare(recipe("jsonl", tiny_source, prepare__workers=workers, **SETTINGS), url)
    assert prepared.where == url
    assert fetched(url, tmp_path / "out") == files_of(tiny_dataset)
    assert prepare(recipe("jsonl", tiny_source, **SETTINGS), url).was_finished
    with pytest.raises(DatasetError, match=r"another recipe or of other source files; choose another --out"):
        prepare(recipe("jsonl", tiny_source, split__salt="x", **SETTINGS), url)


def test_interrupted_work_is_resumed(memory: str, tiny_source: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    made = recipe("jsonl", tiny_source, **SETTINGS)

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        prepare(made, memory, on_progress=interrupt)
    store = open_store(memory)
    done = len([name for name in store.names(".work/tokens") if name.endswith(".json")])
    again = prepare(made, memory)
    assert (again.scanned, again.tokenized) == (0, 4 - done)
    assert 0 < done < 4
    assert fetched(memory, tmp_path / "out") == files_of(tiny_dataset)


def test_ranges_near_copies_and_a_function_give_the_same_bytes(memory: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def documents():\n    yield from (f'document {i} of ' * 9 for i in range(200))\n"
    )
    made = recipe(
        "function",
        source__function=f"{tmp_path}/mine.py:documents",
        prepare__slice_documents=30,
        dedup__near=True,
        dedup__near_threshold=0.95,
    )
    for part in (0, 1, 0):
        prepare_range(made, memory, f"{part}/2")
    prepare(made, memory, is_begun=True)
    prepare(made, tmp_path / "clean")
    assert fetched(memory, tmp_path / "out") == files_of(tmp_path / "clean")


def test_a_tokenizer_alone_is_the_same(memory: str, tiny_source: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    prepare_tokenizer(recipe("jsonl", tiny_source, **SETTINGS), memory)
    assert fetched(memory, tmp_path / "out") == files_of(tiny_dataset / "tokenizer")


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_a_kill_during_publication_is_made_up_for(
    memory: str, tiny_source: Path, tiny_dataset: Path, tmp_path: Path, kept: int
) -> None:
    # Some files are copied to their places and not removed from the old ones, which a store cannot do at once.
    files = files_of(tiny_dataset)
    moves = [(f".work/tokens/{number}", name) for number, name in enumerate(files) if name != "manifest.json"]
    store = open_store(memory)
    for number, (old, new) in enumerate(moves):
        store.write(old, files[new])
        if number < kept:
            store.write(new, files[new])
    publication = {"manifest": files["manifest.json"].decode(), "moves": moves}
    store.write(".work/publication.json", json.dumps(publication).encode())
    assert prepare(recipe("jsonl", tiny_source, **SETTINGS), memory).was_finished
    assert fetched(memory, tmp_path / "out") == files


@pytest.mark.very_slow
def test_kills_do_not_change_the_bytes(bucket: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", sentences(800))
    made = recipe("jsonl", source, prepare__slice_documents=40, prepare__workers=2)
    (tmp_path / "made.toml").write_text(to_toml(made))
    url = f"{bucket}/killed"
    command = [sys.executable, "-m", "packtrain", "prepare", str(tmp_path / "made.toml"), "--out", url, "--json"]
    for wait in (6, 8):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    prepare(made, tmp_path / "clean")
    assert fetched(url, tmp_path / "out") == files_of(tmp_path / "clean")


@pytest.fixture
def fast_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_BEAT_S", 0.05)
    monkeypatch.setattr(remote, "_DEAD_AFTER_S", 2.0)


@pytest.fixture(params=["memory", "bucket"])
def store(request: pytest.FixtureRequest) -> Store:
    request.getfixturevalue("fast_beats")
    return open_store(f"{request.getfixturevalue(request.param)}/lock-{uuid.uuid4().hex}")


def test_a_second_writer_is_refused(store: Store) -> None:
    with store.lock():
        with pytest.raises(DatasetError, match=r"being prepared by another process; .*\(it runs on "):
            store.lock().__enter__()
    assert not store.exists(LOCK)


def test_of_two_at_once_one_gets_it(store: Store) -> None:
    outcomes: list[str] = []
    both = threading.Barrier(2)

    def take() -> None:
        both.wait()
        try:
            with store.lock():
                time.sleep(1.0)
                outcomes.append("held")
        except DatasetError:
            outcomes.append("refused")

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


@pytest.mark.usefixtures("fast_beats")
def test_a_writer_that_stands_still_is_replaced_whatever_the_clock_says(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(memory)
    store.write(LOCK, json.dumps({"host": "gone", "token": "x", "beat": 7}).encode())
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with store.lock() as check:
        check()


def test_a_writer_that_was_replaced_publishes_nothing(store: Store) -> None:
    with store.lock() as check:
        store.write(LOCK, json.dumps({"host": "other", "token": "x", "beat": 0}).encode())
        with pytest.raises(DatasetError, match=r"another process took .* over"):
            check()
    # The other's lock is left alone.
    assert json.loads(store.read(LOCK))["token"] == "x"


def test_a_folder_with_other_files_is_refused(memory: str, tiny_source: Path) -> None:
    open_store(memory).write("thesis.tex", b"years of work")
    with pytest.raises(DatasetError, match="contains other files, which are left alone"):
        prepare(recipe("jsonl", tiny_source), memory)
    assert open_store(memory).names("") == {"thesis.tex"}


@pytest.mark.usefixtures("bucket")
def test_stores_that_cannot_be_opened_or_reached_are_refused(tiny_source: Path) -> None:
    with pytest.raises(DatasetError, match=r"--out nosuch://bucket/a cannot be opened: Protocol not known"):
        prepare(recipe("jsonl", tiny_source), "nosuch://bucket/a")
    with pytest.raises(DatasetError, match=r"s3://no-such-bucket/a cannot be reached or written"):
        prepare(recipe("jsonl", tiny_source), "s3://no-such-bucket/a")


def test_a_dataset_on_a_store_is_not_trained_on_or_verified_there() -> None:
    for use in (open_dataset, verify):
        with pytest.raises(
            DatasetError, match=r"s3://bucket/D is on an object store.*copy it.*\.get\('s3://bucket/D/'"
        ):
            use(Path("s3://bucket/D"))


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}/a") == LocalStore(tmp_path / "a") == open_store(tmp_path / "a")
    assert isinstance(open_store("memory://x"), RemoteStore)
    assert Path(open_store("a").where).is_absolute()

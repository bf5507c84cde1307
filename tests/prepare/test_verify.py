"""Whether verification finds damage, and makes slices again from the source."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from tests.corpora import recipe, reseal, sentences, write_jsonl

from packtrain.data.format.manifest import Manifest, read_manifest
from packtrain.errors import DatasetError
from packtrain.prepare.run import prepare
from packtrain.prepare.verify import verify


@pytest.fixture
def copy(tiny_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))


def rewrite_ids(folder: Path, change: Callable[[np.ndarray], None]) -> None:
    """Change the ids of a shard, and its hash in the manifest with them, as a faulty program would."""
    path = folder / "train/00001.tok"
    ids = np.fromfile(path, "<u2")
    change(ids)
    path.write_bytes(ids.tobytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"][1]["files"]["tok"]["hash"] = xxhash.xxh3_128_hexdigest(ids.tobytes())
    (folder / "manifest.json").write_bytes(Manifest.model_validate(manifest).to_bytes())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_whole_dataset(tiny_dataset: Path) -> None:
    seen: list[tuple[int, int]] = []
    outcome = verify(tiny_dataset, on_progress=lambda *a: seen.append(a))
    files = [p for name in ("train", "validation") for p in (tiny_dataset / name).iterdir()]
    assert outcome.shards * 3 == len(files)
    assert outcome.bytes_read == sum(p.stat().st_size for p in files) == seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(
    "name", ["train/00000.tok", "train/00001.idx.npy", "train/00002.src.parquet", "validation/00000.tok"]
)
def test_one_flipped_bit_is_found(copy: Path, name: str) -> None:
    flip(copy / name)
    with pytest.raises(DatasetError, match=rf"shard {name.split('.')[0]} is refused: the content of .* changed"):
        verify(copy)


def set_first(ids: np.ndarray) -> None:
    ids[0] = 9


def set_last(ids: np.ndarray) -> None:
    ids[-1] = 9


def set_large(ids: np.ndarray) -> None:
    ids[5] = 299


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_first, "document 0 does not begin with BOS"),
        (set_last, r"document \d+ does not end with EOS"),
        (set_large, None),
    ],
)
def test_ids_are_looked_at_besides_hashes(copy: Path, change: Callable[[np.ndarray], None], reason: str | None) -> None:
    rewrite_ids(copy, change)
    manifest = json.loads((copy / "manifest.json").read_text())
    if reason is None and manifest["splits"]["train"][1]["max_id"] == 299:
        manifest["splits"]["train"][1]["max_id"] = 298
        (copy / "manifest.json").write_bytes(Manifest.model_validate(manifest).to_bytes())
    with pytest.raises(DatasetError, match=reason or "its largest id is 299, the manifest says"):
        verify(copy)


def test_slices_are_made_again_and_equal(tiny_dataset: Path) -> None:
    outcome = verify(tiny_dataset, rebuild=2, seed=1)
    assert len(outcome.rebuilt) == 2
    assert outcome.rebuilt[0].startswith("slice 0000")
    assert len(verify(tiny_dataset, rebuild=100).rebuilt) == 4


def test_a_rebuild_finds_what_hashes_cannot(copy: Path) -> None:
    def change(ids: np.ndarray) -> None:
        ids[3], ids[4] = ids[4] if ids[4] != ids[3] else 5, ids[3]

    rewrite_ids(copy, change)
    verify(copy)
    with pytest.raises(DatasetError, match=r"train/00001\.tok is not what the source gives now"):
        verify(copy, rebuild=4)


def test_a_rebuild_from_where_the_source_is_now(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(60))
    prepare(recipe("jsonl", path), tmp_path / "out")
    moved = tmp_path / "moved"
    moved.mkdir()
    path.rename(moved / "a.jsonl")
    assert len(verify(tmp_path / "out", rebuild=1, source_path=str(moved / "a.jsonl")).rebuilt) == 1
    write_jsonl(moved / "a.jsonl", sentences(59))
    with pytest.raises(DatasetError, match="its source has other content now"):
        verify(tmp_path / "out", rebuild=1, source_path=str(moved / "a.jsonl"))


def test_a_rebuild_of_a_function(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("def documents():\n    yield from (f'number {i} of many' for i in range(80))\n")
    prepare(recipe("function", source__function=f"{script}:documents"), tmp_path / "out")
    assert len(verify(tmp_path / "out", rebuild=1).rebuilt) == 1


def test_a_shard_swapped_for_another_is_named(copy: Path) -> None:
    for suffix in ("tok", "idx.npy", "src.parquet"):
        shutil.copyfile(copy / f"train/00002.{suffix}", copy / f"train/00001.{suffix}")
    with pytest.raises(
        DatasetError, match=r"shard train/00001 is refused: 00001\.tok has \d+ bytes, but the manifest says"
    ):
        verify(copy)
    for suffix in ("tok", "idx.npy", "src.parquet"):
        size = read_manifest(copy).splits["train"][1].files[suffix].size
        data = (copy / f"train/00002.{suffix}").read_bytes()
        (copy / f"train/00001.{suffix}").write_bytes(data[:size].ljust(size, b"\0"))
    with pytest.raises(DatasetError, match=r"shard train/00001 is refused: "):
        verify(copy)


def test_a_shard_on_the_other_side_is_found_even_if_the_manifest_agrees(copy: Path) -> None:
    for suffix in ("tok", "idx.npy", "src.parquet"):
        shutil.copyfile(copy / f"train/00001.{suffix}", copy / f"validation/00001.{suffix}")

    def move(tree: dict) -> None:
        splits, ledger = tree["splits"], tree["ledger"]
        splits["validation"] = [s for s in splits["validation"] if s["name"] != "00001"]
        splits["validation"] = sorted([*splits["validation"], splits["train"].pop(1)], key=lambda s: s["name"])
        for unit in ("documents", "tokens", "utf8_bytes"):
            for side in ("train", "validation"):
                ledger[unit][side] = sum(shard[unit] for shard in splits[side])
            if unit == "tokens":
                ledger[unit]["in"] = sum(ledger[unit][side] for side in ("train", "validation"))
            else:
                left_out = [v for k, v in ledger[unit].items() if k not in ("in", "train", "validation", "dropped")]
                ledger[unit]["in"] = sum(ledger[unit][side] for side in ("train", "validation")) + sum(left_out)
        kept = sum(ledger["documents"][side] for side in ("train", "validation"))
        tree["length_histogram"] = {"1": kept}

    reseal(copy, move)
    with pytest.raises(DatasetError, match="validation/00001 is refused: document 0 of it belongs to the other side"):
        verify(copy)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t["ledger"]["documents"].update(duplicates=4), "200 documents came in, but 199 are accounted for"),
        (
            lambda t: t["ledger"]["tokens"].update(
                {"in": t["ledger"]["tokens"]["in"] + 1, "train": t["ledger"]["tokens"]["train"] + 1}
            ),
            r"it says \d+ tokens of train, the shards have",
        ),
        (lambda t: t["length_histogram"].update({"1": 1}), "the length histogram has 196 documents of 195"),
    ],
)
def test_a_ledger_that_does_not_balance_is_refused(copy: Path, change: Callable[[dict], None], reason: str) -> None:
    reseal(copy, change)
    with pytest.raises(DatasetError, match=reason):
        verify(copy)

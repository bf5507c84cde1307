"""Whether texts are equal as defined, documents keep their side, the first of equal ones stays, and random splits leak as expected."""

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpora import is_validation

from packtrain.config.split import SplitConfig
from packtrain.prepare.copies.equal import (
    ENTRY,
    Sides,
    add_documents,
    add_numbered,
    expect_random_split_leak,
    hash_content,
    mark_copies,
    normalise,
)
from packtrain.storage import buckets as buckets_module
from packtrain.storage.buckets import Buckets

PAIRS = st.lists(st.tuples(st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.integers(0, 3)), max_size=60)


def find_copies(hashes: np.ndarray, folder: Path, parts: int = 1) -> tuple[list[bool], dict[int, int]]:
    """Which of hashes, uint64[n, 2], came before, and the sizes of the groups; they are handed over in several parts."""
    is_copy = np.zeros(len(hashes), dtype=np.bool_)
    with Buckets(folder / "sort", ENTRY, len(hashes)) as buckets:
        start = 0
        for part in np.array_split(hashes, parts):
            add_documents(buckets, part, start)
            start += len(part)
        sizes = mark_copies(buckets, is_copy)
    assert not (folder / "sort").exists()
    return is_copy.tolist(), sizes


@given(PAIRS, st.sampled_from([1, 3, 1000]), st.sampled_from([2, 16, 1000]))
def test_the_first_of_equal_hashes_stays(pairs: list[tuple[int, int]], bucket: int, chunk: int) -> None:
    hashes = np.array(pairs, dtype=np.uint64).reshape(-1, 2)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets_module, "_BUCKET_RECORDS", bucket)
        patch.setattr(buckets_module, "_CHUNK_RECORDS", chunk)
        is_copy, sizes = find_copies(hashes, Path(folder), parts=3)
    seen: set[tuple[int, int]] = set()
    expected = []
    for pair in pairs:
        expected.append(pair in seen)
        seen.add(pair)
    assert is_copy == expected
    counts = [pairs.count(pair) for pair in seen]
    assert sizes == {size: counts.count(size) for size in sorted(set(counts))}


@given(
    PAIRS, st.lists(st.booleans(), min_size=60, max_size=60), st.sampled_from([1, 3, 1000]), st.sampled_from([2, 16])
)
def test_of_documents_on_both_sides_those_of_training_are_marked(
    pairs: list[tuple[int, int]], held: list[bool], bucket: int, chunk: int
) -> None:
    hashes, is_held = np.array(pairs, dtype=np.uint64).reshape(-1, 2), np.array(held[: len(pairs)], dtype=np.bool_)
    is_copy, sides = np.zeros(len(pairs), np.bool_), Sides(is_held, np.zeros(len(pairs), np.bool_))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets_module, "_BUCKET_RECORDS", bucket)
        patch.setattr(buckets_module, "_CHUNK_RECORDS", chunk)
        with Buckets(Path(folder) / "sort", ENTRY, len(pairs)) as buckets:
            for numbers in (np.flatnonzero(is_held), np.flatnonzero(~is_held)):
                add_numbered(buckets, hashes[numbers], numbers)
            sizes = mark_copies(buckets, is_copy, sides)
    both = [pair for pair, is_val in zip(pairs, held, strict=False) if is_val]
    assert sides.is_leak.tolist() == [not v and pair in both for pair, v in zip(pairs, held, strict=False)]
    sided = list(zip(pairs, held, strict=False))
    assert is_copy.tolist() == [own in sided[:at] for at, own in enumerate(sided)]
    assert sum(size * count for size, count in sizes.items()) == len(pairs)
    assert sum(sizes.values()) == len(set(pairs))


def test_buckets_and_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**64, (5_000, 2), dtype=np.uint64)[draw.integers(0, 3_000, 9_000)]
    whole = find_copies(hashes, tmp_path)
    monkeypatch.setattr(buckets_module, "_BUCKET_RECORDS", 16)
    monkeypatch.setattr(buckets_module, "_CHUNK_RECORDS", 10)
    assert find_copies(hashes, tmp_path, parts=7) == whole


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "sort").mkdir()
    (tmp_path / "sort" / "200.bucket").write_bytes(b"rubbish")
    assert find_copies(np.zeros((3, 2), dtype=np.uint64), tmp_path) == ([False, True, True], {3: 1})


def test_leak_is_what_random_splits_show() -> None:
    draw = random.Random(0)
    groups = {1: 400, 2: 200, 5: 40}
    documents = [(size, g) for size, count in groups.items() for g in range(count) for _ in range(size)]
    leaked = held_out = 0
    for _ in range(200):
        sides = [draw.random() < 0.1 for _ in documents]
        in_training = {d for d, is_held in zip(documents, sides, strict=True) if not is_held}
        held = [d for d, is_held in zip(documents, sides, strict=True) if is_held]
        held_out += len(held)
        leaked += sum(d in in_training for d in held)
    assert expect_random_split_leak(groups, 0.1) == pytest.approx(leaked / held_out, abs=0.02)


def test_no_copies_leak_nothing() -> None:
    assert expect_random_split_leak({1: 10}, 0.1) == 0.0
    assert expect_random_split_leak({}, 0.1) == 0.0


def test_case_and_whitespace_do_not_make_another_document() -> None:
    assert hash_content("The  Cat\n sat") == hash_content("the cat sat ")
    assert hash_content("the cat sat") != hash_content("the cats at")
    assert hash_content("STRASSE") == hash_content("straße")


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_the_fast_path_is_the_plain_definition(text: str) -> None:
    assert normalise(text) == " ".join(text.casefold().split()).encode()


def test_share_is_what_was_asked_for_and_salts_differ() -> None:
    hashes = [hash_content(f"document {i}") for i in range(20_000)]
    first, second = SplitConfig(), SplitConfig(salt="another")
    sides = [is_validation(h, first) for h in hashes]
    # Four standard deviations of a binomial share of 0.1 over 20,000 are 0.0085.
    assert abs(sum(sides) / len(sides) - 0.1) < 0.0085
    both = sum(a and is_validation(h, second) for a, h in zip(sides, hashes, strict=True))
    assert abs(both / len(sides) - 0.01) < 0.003


@given(st.binary(min_size=16, max_size=16), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_share_holds_out_all_that_a_smaller_does(content: bytes, a: float, b: float) -> None:
    low, high = sorted((a, b))
    if is_validation(content, SplitConfig(validation_fraction=low)):
        assert is_validation(content, SplitConfig(validation_fraction=high))


@given(st.binary(min_size=16, max_size=16))
def test_no_share_holds_out_nothing(content: bytes) -> None:
    assert not is_validation(content, SplitConfig(validation_fraction=0.0))

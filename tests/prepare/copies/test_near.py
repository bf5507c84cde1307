"""Near copies: signatures against exact Jaccard similarity, clusters against all pairs, and what prepare makes of them."""

import itertools
import random
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.corpora import files_of, recipe, sentences, texts_of, write_jsonl

from packtrain.config.recipe import DedupConfig
from packtrain.data.format.shards import open_dataset
from packtrain.errors import ConfigError
from packtrain.prepare.copies import signatures as signatures_module
from packtrain.prepare.copies.clusters import _Forest, estimate_similarity, mark_near_copies
from packtrain.prepare.copies.signatures import Signatures, make_signer, pack_signatures
from packtrain.prepare.run import prepare
from packtrain.prepare.verify import verify
from packtrain.storage import buckets as buckets_module

NEAR = DedupConfig(near=True)


def ngrams(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """What two documents are compared by, the plain way."""
    words = "".join(c if c.isalnum() or c == "_" else " " for c in text.casefold()).split()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)} or {tuple(words)}


def jaccard(one: str, other: str) -> float:
    a, b = ngrams(one), ngrams(other)
    return len(a & b) / len(a | b)


def perturbed(text: str, changes: int, draw: random.Random) -> str:
    """The text with some of its words replaced, in other case, and with another punctuation."""
    words = text.split()
    for at in draw.sample(range(len(words)), changes):
        words[at] = f"other{draw.randrange(10**6)}"
    return " ".join(word.upper() if draw.random() < 0.1 else word for word in words).replace(",", " -")


def documents(count: int, seed: int = 0) -> list[str]:
    """Different documents of some 350 words."""
    parts = sentences(count * 10, seed)
    return [" ".join(parts[i * 10 : i * 10 + 10]) for i in range(count)]


def mixed(count: int, seed: int = 0) -> list[str]:
    """Documents, for a third of them near copies, and for a tenth exact ones, in random order."""
    draw = random.Random(seed)
    originals = documents(count, seed)
    near = [
        perturbed(text, draw.randint(1, 2), draw) for text in originals[: count // 3] for _ in range(draw.randint(1, 3))
    ]
    texts = originals + near + originals[: count // 10]
    draw.shuffle(texts)
    return texts


def test_the_share_of_equal_entries_estimates_the_jaccard_similarity(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = documents(20)
    pairs = [(text, perturbed(text, changes, draw)) for text in texts for changes in (0, 1, 3, 8, 20, 60)]
    sign = make_signer(NEAR)
    (tmp_path / "a").write_bytes(pack_signatures([sign(one) for one, _ in pairs], NEAR))
    (tmp_path / "b").write_bytes(pack_signatures([sign(other) for _, other in pairs], NEAR))
    numbers = np.arange(len(pairs))
    found = estimate_similarity(Signatures([tmp_path / "a", tmp_path / "b"], NEAR), numbers, numbers + len(pairs))
    exact = np.array([jaccard(one, other) for one, other in pairs])
    deviation = np.sqrt(exact * (1 - exact) / 112)
    assert (np.abs(found - exact) <= 5 * deviation).all()
    assert abs((found - exact).mean()) < 0.01


def test_case_punctuation_and_spacing_make_no_difference() -> None:
    sign = make_signer(NEAR)
    assert (sign("One, two; three -- four five SIX!") == sign("one two\n\nthree four five six")).all()


@pytest.mark.parametrize(("one", "other"), [("???", "!!!"), ("a b", "a b c"), ("あいうえおかき", "あいうえおかく")])
def test_what_has_no_ngram_in_common_is_not_alike(one: str, other: str) -> None:
    sign = make_signer(DedupConfig(near=True, near_words=7))
    assert (sign(one) == sign(other)).mean() < 0.1


def test_each_character_is_a_word_where_no_spaces_are_put() -> None:
    sign = make_signer(NEAR)
    text = "色は匂へど散りぬるを我が世誰ぞ常ならむ有為の奥山今日越えて浅き夢見じ酔ひもせず" * 3
    assert (sign(text) == sign(text.replace("今日", "昨日", 1))).mean() > 0.8


def test_a_text_without_spaces_is_taken_in_pieces() -> None:
    draw = random.Random(0)
    text = draw.randbytes(200_000).hex()
    sign = make_signer(NEAR)
    assert (sign(text) == sign(text[:-2] + "zz")).mean() > 0.95
    assert (sign(text) == sign(draw.randbytes(200_000).hex())).mean() < 0.1


def test_long_documents_are_taken_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    [text] = documents(1)
    whole = make_signer(NEAR)(text)
    for size in (5, 6, 100):
        monkeypatch.setattr(signatures_module, "_RUN_WORDS", size)
        assert (make_signer(NEAR)(text) == whole).all()


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40), st.integers(1, 5))
def test_the_forest_joins_what_chains_of_pairs_join(pairs: list[tuple[int, int]], parts: int) -> None:
    forest = _Forest(20)
    for part in np.array_split(np.array(pairs, dtype=np.int64).reshape(-1, 2), parts):
        forest.join(part[:, 0], part[:, 1])
    expected = list(range(20))
    for _ in range(20):
        for one, other in pairs:
            expected[one] = expected[other] = min(expected[one], expected[other])
    assert forest.flatten().tolist() == expected


def test_a_long_chain_is_joined_at_once() -> None:
    forest = _Forest(100_000)
    forest.join(np.arange(99_999), np.arange(1, 100_000))
    assert not forest.flatten().any()


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=8, max_size=8), min_size=1, max_size=14),
    st.sampled_from([0.5, 0.75, 1.0]),
    st.sampled_from([3, 1000]),
    st.data(),
)
def test_it_is_sound_and_leaves_no_like_pair(
    rows: list[list[int]], threshold: float, size: int, data: st.DataObject
) -> None:
    config = DedupConfig(near=True, near_bands=4, near_band_rows=2, near_threshold=threshold)
    is_copy = np.array([data.draw(st.booleans()) for _ in rows])
    cut = data.draw(st.integers(0, len(rows)))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets_module, "_BUCKET_RECORDS", size)
        patch.setattr(buckets_module, "_CHUNK_RECORDS", size)
        paths = [Path(name) / part for part in ("a", "b")]
        for path, part in zip(paths, (rows[:cut], rows[cut:]), strict=True):
            path.write_bytes(pack_signatures([np.array(row, dtype=np.uint32) for row in part], config))
        first = mark_near_copies(Signatures(paths, config), is_copy, config, Path(name) / "sort").tolist()
    alike = {
        (i, j)
        for i, j in itertools.combinations(np.flatnonzero(~is_copy).tolist(), 2)
        if any(rows[i][b : b + 2] == rows[j][b : b + 2] for b in (0, 2, 4, 6))
        and sum(x == y for x, y in zip(rows[i], rows[j], strict=True)) >= threshold * 8
    }
    reachable = list(range(len(rows)))
    for _ in rows:
        for i, j in alike:
            reachable[i] = reachable[j] = min(reachable[i], reachable[j])
    assert all(reachable[i] == reachable[f] and f <= i and first[f] == f for i, f in enumerate(first))
    assert not [pair for pair in alike if first[pair[0]] == pair[0] and first[pair[1]] == pair[1]]


def test_it_finds_what_all_pairs_find(tmp_path: Path) -> None:
    texts = mixed(60)
    sign = make_signer(NEAR)
    (tmp_path / "a").write_bytes(pack_signatures([sign(text) for text in texts], NEAR))
    is_copy = np.zeros(len(texts), dtype=np.bool_)
    found = mark_near_copies(Signatures([tmp_path / "a"], NEAR), is_copy, NEAR, tmp_path / "sort").tolist()
    sets = [ngrams(text) for text in texts]
    expected = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        likeness = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        assert not 0.5 < likeness < 0.8, "the texts must be clearly alike or clearly not for this comparison"
        if likeness >= 0.75:
            expected[j] = min(expected[j], expected[i])
    assert found == expected


def test_on_real_text_it_finds_what_is_clearly_alike_and_no_other(tmp_path: Path) -> None:
    topics = pytest.importorskip("pydoc_data.topics").topics
    draw = random.Random(0)
    originals = [text for _, text in sorted(topics.items()) if 150 < len(text.split()) < 1500]
    changed = [
        perturbed(text, int(len(text.split()) * share), draw) for share in (0.005, 0.02, 0.1) for text in originals
    ]
    texts = originals + changed
    draw.shuffle(texts)
    sign = make_signer(NEAR)
    (tmp_path / "a").write_bytes(pack_signatures([sign(text) for text in texts], NEAR))
    is_copy = np.zeros(len(texts), dtype=np.bool_)
    first = mark_near_copies(Signatures([tmp_path / "a"], NEAR), is_copy, NEAR, tmp_path / "sort").tolist()
    sets = [ngrams(text) for text in texts]
    connected = list(range(len(texts)))
    clearly = 0
    for i, j in itertools.combinations(range(len(texts)), 2):
        common = len(sets[i] & sets[j])
        likeness = common / (len(sets[i]) + len(sets[j]) - common)
        if likeness >= 0.9:
            clearly += 1
            assert first[i] == first[j]
        if likeness >= 0.55:
            low, high = sorted((connected[i], connected[j]))
            connected = [low if c == high else c for c in connected]
    assert clearly > 20
    assert all(connected[i] == connected[f] for i, f in enumerate(first))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("near") / "a.jsonl", mixed(60))


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("near") / "out"
    prepare(recipe("jsonl", source, dedup__near=True, prepare__slice_documents=20), out)
    return out


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(source: Path, dataset: Path, tmp_path: Path) -> None:
    for workers in (2, 3):
        made = recipe("jsonl", source, dedup__near=True, prepare__slice_documents=20, prepare__workers=workers)
        prepare(made, tmp_path / str(workers))
        assert files_of(tmp_path / str(workers)) == files_of(dataset)


def test_same_documents_however_the_source_is_cut(source: Path, dataset: Path, tmp_path: Path) -> None:
    prepare(recipe("jsonl", source, dedup__near=True, prepare__slice_documents=7), tmp_path / "out")
    assert texts_of(tmp_path / "out") == texts_of(dataset)


def test_the_first_stays_and_the_ledger_balances(dataset: Path) -> None:
    ledger = open_dataset(dataset).manifest.ledger
    kept: list[str] = []
    dropped = {"duplicates": 0, "near_duplicates": 0}
    copied = {"duplicates": 0, "near_duplicates": 0}
    seen: set[str] = set()
    for text in mixed(60):
        text = "\n".join(line.rstrip() for line in text.strip().split("\n"))
        key = " ".join(text.casefold().split())
        kind = "duplicates" if key in seen else "near_duplicates" if any(jaccard(text, k) > 0.6 for k in kept) else None
        seen.add(key)
        if kind is None:
            kept.append(text)
            continue
        dropped[kind] += 1
        copied[kind] += len(text.encode())
    assert sorted(texts_of(dataset)) == sorted(kept)
    assert {kind: ledger["documents"][kind] for kind in dropped} == dropped
    assert {kind: ledger["utf8_bytes"][kind] for kind in copied} == copied
    assert dropped["near_duplicates"] > 20


def test_samples_name_both_documents_and_show_where_they_differ(dataset: Path) -> None:
    samples = open_dataset(dataset).manifest.ledger["samples"]["near_duplicates"]
    texts = mixed(60)
    assert len(samples) == 3
    for sample in samples:
        found = re.match(r"a\.jsonl row (\d+), some (\d+)% like a\.jsonl row (\d+), which stays: ", sample)
        assert found is not None
        near, percent, stays = map(int, found.groups())
        assert abs(jaccard(texts[near], texts[stays]) - percent / 100) < 0.2


def test_nothing_like_it_is_on_the_other_side(dataset: Path) -> None:
    train, validation = (texts_of(dataset, [name]) for name in ("train", "validation"))
    assert train
    assert validation
    assert max(jaccard(one, other) for one in train for other in validation) < 0.6


def test_added_files_leave_every_document_on_its_side_or_drop_it(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", mixed(60))
    draw = random.Random(5)
    # Before and behind the old file, new documents and near copies of old ones.
    write_jsonl(folder / "0.jsonl", documents(20, seed=8) + [perturbed(t, 2, draw) for t in documents(60)[:20]])
    write_jsonl(folder / "b.jsonl", documents(20, seed=9) + [perturbed(t, 2, draw) for t in documents(60)[20:40]])
    prepare(recipe("jsonl", folder, dedup__near=True, prepare__slice_documents=20), tmp_path / "out")
    old, new = (
        {name: set(texts_of(where, [name])) for name in ("train", "validation")}
        for where in (dataset, tmp_path / "out")
    )
    assert not old["train"] & new["validation"]
    assert not old["validation"] & new["train"]
    assert old["train"] & new["train"]


def test_a_rebuilt_slice_is_the_same(dataset: Path) -> None:
    assert len(verify(dataset, rebuild=3, seed=0).rebuilt) == 3


def test_without_near_they_stay(source: Path, dataset: Path, tmp_path: Path) -> None:
    ledger = prepare(recipe("jsonl", source), tmp_path / "out").manifest.ledger
    near = open_dataset(dataset).manifest.ledger
    assert ledger["documents"]["duplicates"] == near["documents"]["duplicates"]
    assert ledger["documents"]["near_duplicates"] == 0
    assert "near_duplicates" not in ledger["samples"]


def test_a_missing_library_is_named_before_anything_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(ConfigError, match=r"pip install 'packtrain\[near\]'"):
        prepare(recipe("jsonl", source, dedup__near=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"near": True, "exact": False}, "drops exact copies as well"),
        ({"near_threshold": 0.9}, "dedup.near_threshold has no effect without dedup.near"),
        ({"near": True, "near_threshold": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_take_effect_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DedupConfig.model_validate(settings)

"""Whether the yardsticks see what they say they see, and match their definitions."""

import math
import zlib
from collections import Counter

import numpy as np
import pytest

from packtrain.data.feed.loader import read_rows
from packtrain.data.format.shards import Dataset
from packtrain.data.rows.pack import plan
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.evaluate.loss import HeldOut, choose_held_out
from packtrain.evaluate.yardsticks import (
    compress,
    document_texts,
    measure_yardsticks,
    pairs_of_rows,
    sample_stream,
    sample_training,
    token_statistics,
)
from tests.evaluate.conftest import SEQ_LEN, texts


@pytest.fixture(scope="module")
def held_out(dataset: Dataset, tokenizer: Tokenizer) -> HeldOut:
    return choose_held_out(plan(dataset.split("validation"), SEQ_LEN, "concat"), tokenizer, adds_bos=True, tokens=640)


def naive_bigram(counted: list[int], vocab_size: int) -> np.ndarray:
    """p[previous, next] by definition, with dictionaries."""
    count, pairs = Counter(counted), Counter(zip(counted, counted[1:], strict=False))
    unigram = [(count[v] + 1) / (len(counted) + vocab_size) for v in range(vocab_size)]
    p = np.tile(unigram, (vocab_size, 1))
    for previous in range(vocab_size):
        after = {b: c for (a, b), c in pairs.items() if a == previous}
        if after:
            n, d = sum(after.values()), len(after)
            p[previous] = [(after.get(v, 0) + d * unigram[v]) / (n + d) for v in range(vocab_size)]
    return p


def test_token_statistics_are_by_their_definition(dataset: Dataset, tokenizer: Tokenizer, held_out: HeldOut) -> None:
    counted = dataset.split("train").read(0, dataset.split("train").num_tokens).tolist()
    p = naive_bigram(counted, tokenizer.vocab_size)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    rows = read_rows(held_out.plan, held_out.rows)
    is_target = rows.targets_BT >= 0
    inputs, targets = rows.inputs_BT[is_target].tolist(), rows.targets_BT[is_target].tolist()
    count = Counter(counted)
    unigram = -sum(math.log((count[t] + 1) / (len(counted) + tokenizer.vocab_size)) for t in targets)
    bigram = -sum(math.log(p[i, t]) for i, t in zip(inputs, targets, strict=True))
    uniform = held_out.num_tokens * math.log(tokenizer.vocab_size)
    found = token_statistics(pairs_of_rows(held_out), [np.array(counted)], tokenizer.vocab_size)
    assert found == pytest.approx((uniform, unigram, bigram))
    assert found[2] < found[1] < found[0]


def test_without_text_to_count_every_token_is_as_likely(tokenizer: Tokenizer, held_out: HeldOut) -> None:
    nothing = [np.zeros(0, dtype=np.int64)]
    uniform = held_out.num_tokens * math.log(tokenizer.vocab_size)
    found = token_statistics(pairs_of_rows(held_out), nothing, tokenizer.vocab_size)
    assert found == pytest.approx((uniform, uniform, uniform))


def test_compressors_get_whole_documents(tokenizer: Tokenizer, held_out: HeldOut) -> None:
    found = [text.decode() for text in document_texts(held_out, tokenizer)]
    assert set(found) < set(texts())
    touched = {piece.document for row in held_out.rows.tolist() for piece in held_out.plan.sources(row)}
    assert len(found) == len(set(found)) == len(touched)


def test_all_rows_give_all_documents(dataset: Dataset, tokenizer: Tokenizer) -> None:
    split = dataset.split("validation")
    everything = choose_held_out(plan(split, SEQ_LEN, "bestfit"), tokenizer, adds_bos=True, tokens=None)
    assert sum(len(text) for text in document_texts(everything, tokenizer)) == split.utf8_bytes == everything.num_bytes


def test_zlib_is_the_better_of_one_stream_and_one_by_one() -> None:
    alike = [b"the same words again and again, " * 3 for _ in range(50)]
    found, xz, zstd = compress(alike)
    # zlib.compress adds 6 bytes of header and checksum.
    stream = len(zlib.compress(b"".join(alike), 9)) - 6
    assert found.bits_per_byte == pytest.approx(8 * stream / sum(map(len, alike)), rel=0.05)
    assert "one stream" in found.sees
    noise = [np.random.default_rng(seed).integers(0, 256, 40, dtype=np.uint8).tobytes() for seed in range(3)]
    assert 8 < compress(noise)[0].bits_per_byte < 10
    assert 0 < xz.bits_per_byte < 8
    assert 0 < zstd.bits_per_byte < 8


def test_nothing_to_compress_gives_no_figure() -> None:
    assert all(math.isnan(y.bits_per_byte) for y in compress([]))


def test_a_long_stream_is_sampled_from_end_to_end(dataset: Dataset) -> None:
    train = dataset.split("train")
    whole = sample_stream(train, 10**9)
    assert len(whole) == 1 and len(whole[0]) == train.num_tokens
    windows = sample_stream(train, 512)
    assert sum(map(len, windows)) == 512
    assert windows[0].tolist() == train.read(0, 2).tolist()
    assert windows[-1].tolist() == train.read(train.num_tokens - 2, train.num_tokens).tolist()


def test_all_are_measured_and_say_what_they_see(dataset: Dataset, tokenizer: Tokenizer, held_out: HeldOut) -> None:
    seen: list[tuple[int, int]] = []
    train = dataset.split("train")
    texts_read = document_texts(held_out, tokenizer, lambda done, total: seen.append((done, total)))
    size = tokenizer.vocab_size
    found = measure_yardsticks(pairs_of_rows(held_out), texts_read, held_out.num_bytes, sample_training(train), size)
    assert [y.name for y in found] == ["uniform", "unigram", "bigram", "zlib -9", "xz -9", "zstd -19"]
    assert all(0 < y.bits_per_byte < 12 and y.sees for y in found)
    counted = [np.asarray(train.read(0, train.num_tokens), dtype=np.int64)]
    _, nats, _ = token_statistics(pairs_of_rows(held_out), counted, size)
    assert found[1].bits_per_byte == pytest.approx(nats / math.log(2) / held_out.num_bytes)
    assert seen[-1][0] == seen[-1][1]

"""Estimates from a sample: which rows it takes, what it says of copies, and how near it comes to what prepare finds."""

import random
from pathlib import Path

import numpy as np
import pytest
from tests.corpora import recipe, sentences, write_jsonl

from packtrain.errors import ConfigError, SourceError
from packtrain.prepare.estimate import estimate
from packtrain.prepare.run import prepare
from packtrain.prepare.sources.slices import Part, Slice, Slicing
from packtrain.prepare.steps import sampling
from packtrain.prepare.steps.sampling import bound_copies, draw_sample


def plan_of(parts: list[tuple[int, int]]) -> Slicing:
    """A plan over one file of parts of (rows, bytes)."""
    starts = np.cumsum([0, *(rows for rows, _ in parts)]).tolist()
    made = [Part("f", "f", first, rows, size, "") for first, (rows, size) in zip(starts, parts, strict=False)]
    return Slicing(tuple(Slice(number, (part,)) for number, part in enumerate(made)), None)


@pytest.mark.parametrize(
    "parts", [[(1, 1 << 20)] * 10_000, [(65_536, 1 << 28)] * 300, [(1_000_000, 1 << 33)], [(1, 1 << 30)] * 3]
)
def test_it_takes_its_share_and_never_more_than_there_is(parts: list[tuple[int, int]]) -> None:
    plan = plan_of(parts)
    found = draw_sample(plan)
    size = sum(part.size for piece in found.slices for part in piece.parts)
    rows = {part.first_row: part.rows for piece in plan.slices for part in piece.parts}
    assert not found.is_whole
    assert all(part.rows <= rows[part.first_row] for piece in found.slices for part in piece.parts)
    # Where a document is larger than a run, it is taken whole.
    assert size <= max(1.05 * (64 << 20), 64 * parts[0][1] / parts[0][0])
    assert size >= 0.9 * (64 << 20) or all(part.rows == 1 for piece in found.slices for part in piece.parts)


@pytest.mark.slow
def test_it_comes_from_all_over_the_source_and_is_the_same_each_time() -> None:
    plan = plan_of([(100, 1 << 20)] * 10_000)
    found = draw_sample(plan)
    assert found == draw_sample(plan)
    firsts = [part.first_row for piece in found.slices for part in piece.parts]
    assert [len(runs) for runs in found.runs] == [4] * 16
    assert max(b - a for a, b in zip(firsts, firsts[1:], strict=False)) < 2.1 * plan.rows / 64


def test_a_small_source_is_read_whole() -> None:
    plan = plan_of([(10, 1000)] * 5)
    assert draw_sample(plan).is_whole
    assert draw_sample(plan).slices == plan.slices


@pytest.mark.parametrize("groups", ["none", "pairs", "neighbours", "crowds"])
def test_the_bounds_hold(groups: str) -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(20):
        count = 16_000
        number = np.arange(count)
        if groups == "pairs":
            number[draw.random(count) < 0.3] //= 2
            number = draw.permutation(number)
        elif groups == "neighbours":
            repeats = draw.random(count) < 0.3
            number[1:][repeats[1:]] = number[:-1][repeats[1:]]
        elif groups == "crowds":
            number = draw.permutation(np.where(draw.random(count) < 0.5, number % 250, number))
        true = 1 - len(np.unique(number)) / count
        # A tenth of each of 64 stretches.
        starts = np.arange(64) * 250 + draw.integers(0, 225, 64)
        pieces = [np.stack([number[s : s + 25], number[s : s + 25]], axis=1).astype(np.uint64) for s in starts]
        found = bound_copies(pieces, 0.1)
        held += found.at_least <= true and (found.at_most is None or true <= found.at_most)
    assert held >= 18


def test_no_copies_in_a_small_share_say_little() -> None:
    pieces = [np.arange(200, dtype=np.uint64).reshape(-1, 2) + np.uint64(1000 * i) for i in range(64)]
    assert bound_copies(pieces, 0.0001).at_most is None
    assert bound_copies(pieces, 0.5).at_most == pytest.approx(0, abs=0.01)
    assert bound_copies(pieces, 0.5, has_near=True).at_most is None


def test_of_the_whole_source_they_are_known() -> None:
    found = bound_copies([np.array([[1, 1], [2, 2], [1, 1]], dtype=np.uint64)], 1.0)
    assert found.seen == found.at_least == found.at_most == pytest.approx(1 / 3)


def test_nothing_says_nothing() -> None:
    assert bound_copies([], 0.1).at_most is None


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    texts = sentences(6000)
    texts = [text for text in texts for _ in range(2 if draw.random() < 0.1 else 1)]
    return write_jsonl(tmp_path_factory.mktemp("large") / "a.jsonl", [*texts, *[""] * 60])


def test_of_a_small_source_it_is_what_prepare_finds(tiny_source: Path, tmp_path: Path) -> None:
    made = recipe("jsonl", tiny_source, source__id_column="id", prepare__slice_documents=50)
    found = estimate(made)
    ledger = prepare(made, tmp_path / "out").manifest.ledger
    assert found["sample"]["is_whole"]
    for name in ("train", "validation"):
        assert found["documents"][name] == ledger["documents"][name]
        assert found["tokens"][name] == ledger["tokens"][name]
        assert found["utf8_bytes"][name] == ledger["utf8_bytes"][name]
    assert found["duplicates"]["at_most"] == found["duplicates"]["at_least"] == ledger["duplicate_rate"]
    assert found["tokens"]["relative_error"] == 0.0


@pytest.mark.slow
def test_a_sample_comes_near(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LEAST_BYTES", large.stat().st_size // 5)
    made = recipe("jsonl", large, prepare__slice_documents=200)
    found = estimate(made)
    ledger = prepare(made, tmp_path / "out").manifest.ledger
    tokens = found["tokens"]["train"] + found["tokens"]["validation"]
    assert not found["sample"]["is_whole"]
    # The tokenizer is another, as it is trained on less.
    assert tokens == pytest.approx(ledger["tokens"]["in"], rel=0.1)
    assert found["tokens"]["validation"] / tokens == pytest.approx(0.1, abs=0.001)
    assert found["duplicates"]["at_least"] <= ledger["duplicate_rate"] <= (found["duplicates"]["at_most"] or 1.0)
    final = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found["disk"]["final"] == pytest.approx(final, rel=0.3)
    assert found["disk"]["at_most_while_working"] > found["disk"]["final"]
    assert found["time"]["hours"] > 0


@pytest.mark.slow
def test_it_is_the_same_for_any_number_of_workers(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LEAST_BYTES", 50_000)
    one, two = (estimate(recipe("jsonl", large, prepare__workers=n, dedup__near=True)) for n in (1, 2))
    assert one.pop("time")["workers"] != two.pop("time")["workers"]
    assert one == two


def test_a_function_has_to_say_how_many(tmp_path: Path) -> None:
    path = tmp_path / "f.py"
    path.write_text("def documents():\n    i = 0\n    while True:\n        i += 1\n        yield f'document {i}'\n")
    settings = {"source__function": f"{path}:documents"}
    with pytest.raises(ConfigError, match=r"write source\.max_documents=N"):
        estimate(recipe("function", **settings))
    assert estimate(recipe("function", source__max_documents=100, **settings))["source"]["rows"] == 100


def test_what_prepare_would_refuse_is_refused(tmp_path: Path) -> None:
    nothing = write_jsonl(tmp_path / "nothing.jsonl", ["", " "])
    with pytest.raises(SourceError, match="no document is left after cleaning"):
        estimate(recipe("jsonl", nothing))
    with pytest.raises(SourceError, match="the validation side of the split is empty"):
        estimate(recipe("jsonl", write_jsonl(tmp_path / "one.jsonl", ["a single document"])))
    assert estimate(recipe("jsonl", tmp_path / "one.jsonl", split__validation_fraction=0.0))["tokens"]["train"] > 0


def test_a_sample_may_lie_on_one_side_alone(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LEAST_BYTES", 1000)
    found = estimate(recipe("jsonl", large, split__validation_fraction=0.0001))
    assert found["tokens"]["train"] > 1000 * found["tokens"]["validation"]

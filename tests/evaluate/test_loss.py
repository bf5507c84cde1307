"""Whether the held-out loss is that of the logits over a fixed choice of rows, on any number of ranks."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers

from packtrain.data.feed.datasets import as_run_datasets
from packtrain.data.feed.loader import read_rows
from packtrain.data.format.shards import Dataset
from packtrain.data.rows.pack import plan
from packtrain.data.rows.plan import RowPlan
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.evaluate.held_out import choose_parts
from packtrain.evaluate.loss import HeldOut, choose_held_out, evaluate_rows, prefix_length
from packtrain.model.llama import Llama
from tests.evaluate.conftest import SEQ_LEN, make_dataset

Packing = Literal["concat", "bestfit"]


def held_out_of(dataset: Dataset, tokenizer: Tokenizer, tokens: int | None, packing: Packing = "concat") -> HeldOut:
    rows = plan(dataset.split("validation"), SEQ_LEN, packing)
    return choose_held_out(rows, tokenizer, adds_bos=dataset.manifest.tokenizer.adds_bos, tokens=tokens)


def naive_nats(model: Llama, layout: RowPlan, *, document_mask: bool) -> float:
    """Cross-entropy over every row of a plan, one row at a time, from the logits."""
    total = 0.0
    for row in range(layout.num_rows):
        rows = read_rows(layout, np.array([row]), document_mask=document_mask)
        logits = model(rows.inputs_BT, segments_BT=rows.segments_BT, positions_BT=rows.positions_BT)
        total += float(F.cross_entropy(logits[0].double(), rows.targets_BT[0], ignore_index=-100, reduction="sum"))
    return total


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_the_loss_is_that_of_the_logits(
    dataset: Dataset, tokenizer: Tokenizer, model: Llama, packing: Packing, document_mask: bool
) -> None:
    held_out = held_out_of(dataset, tokenizer, None, packing)
    nats = evaluate_rows(model, held_out, micro_batch_size=5, document_mask=document_mask)
    with torch.no_grad():
        expected = naive_nats(model, held_out.plan, document_mask=document_mask)
    assert nats == pytest.approx(expected, rel=1e-6)
    result = held_out.result(expected)
    assert result.num_tokens == dataset.split("validation").num_tokens
    assert result.loss == pytest.approx(expected / result.num_tokens)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.bits_per_byte == pytest.approx(expected / math.log(2) / dataset.split("validation").utf8_bytes)


@pytest.mark.parametrize("world_size", [2, 3, 7, 500])
def test_the_ranks_sums_add_up(dataset: Dataset, tokenizer: Tokenizer, model: Llama, world_size: int) -> None:
    held_out = held_out_of(dataset, tokenizer, None)
    alone = evaluate_rows(model, held_out, micro_batch_size=8)
    shares = [
        evaluate_rows(model, held_out, micro_batch_size=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert math.fsum(share for share in shares if share is not None) == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_all_rows_stand_for_every_byte_of_the_split(dataset: Dataset, tokenizer: Tokenizer, packing: Packing) -> None:
    held_out = held_out_of(dataset, tokenizer, None, packing)
    assert held_out.rows.tolist() == list(range(held_out.plan.num_rows))
    assert held_out.num_bytes == dataset.split("validation").utf8_bytes


def test_the_choice_is_fixed_bounded_and_spread(dataset: Dataset, tokenizer: Tokenizer) -> None:
    train_rows = plan(dataset.split("train"), 4, "concat")
    chosen = [choose_held_out(train_rows, tokenizer, adds_bos=True, tokens=1003) for _ in range(2)]
    assert chosen[0].rows.tolist() == chosen[1].rows.tolist()
    assert len(set(chosen[0].rows.tolist())) == 1003 // 4
    assert chosen[0].num_tokens <= 1003
    # Each quarter of the split has some rows, and at most one and a half times its share.
    quarters = np.bincount(chosen[0].rows * 4 // train_rows.num_rows, minlength=4)
    assert quarters.min() > 0.5 * 250 / 4 and quarters.max() < 1.5 * 250 / 4
    assert len(choose_held_out(train_rows, tokenizer, adds_bos=True, tokens=1).rows) == 1


def test_training_state_is_left_alone(dataset: Dataset, tokenizer: Tokenizer, model: Llama) -> None:
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    evaluate_rows(model, held_out_of(dataset, tokenizer, 200), micro_batch_size=2)
    assert model.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters() if p.grad is not None)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_a_smaller_split_is_used_whole(dataset: Dataset, tokenizer: Tokenizer, packing: Packing) -> None:
    split = dataset.split("validation")
    held_out = held_out_of(dataset, tokenizer, split.num_tokens, packing)
    assert len(held_out.rows) * SEQ_LEN > split.num_tokens, "no row is left unfilled"
    assert held_out.num_tokens == split.num_tokens


def test_progress_and_stopping(dataset: Dataset, tokenizer: Tokenizer, model: Llama) -> None:
    held_out = held_out_of(dataset, tokenizer, 10 * SEQ_LEN)
    seen: list[tuple[int, int]] = []
    evaluate_rows(model, held_out, micro_batch_size=4, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]
    model.train()
    stopped = evaluate_rows(model, held_out, micro_batch_size=4, should_stop=lambda: True)
    assert stopped is None and model.training


def make_llama_like(folder: Path) -> Tokenizer:
    """A BPE like Llama 2's: a space before the text, ▁ for spaces, single bytes for everything else."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz", "▁t"]
    raw = RawTokenizer(
        models.BPE(
            {p: i for i, p in enumerate(pieces)}, [("▁", "t")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder.mkdir()
    raw.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_space_before_each_document_is_no_byte_of_text(tmp_path: Path, adds_bos: bool) -> None:
    tokenizer = make_llama_like(tmp_path / "tokenizer")
    assert prefix_length(tokenizer) == 1
    dataset = make_dataset(
        tmp_path,
        f"tokenizer.name={tmp_path / 'tokenizer'}",
        "tokenizer.vocab_size=",
        f"tokenizer.bos={str(adds_bos).lower()}",
    )
    for packing in ("concat", "bestfit"):
        held_out = held_out_of(dataset, tokenizer, None, packing)
        assert held_out.num_bytes == dataset.split("validation").utf8_bytes


def test_every_chosen_row_counts_its_bytes_with_byte_fallback(tmp_path: Path) -> None:
    """The tokens of a row, decoded by hand, have as many bytes as the row is said to stand for."""
    tokenizer = make_llama_like(tmp_path / "tokenizer")
    dataset = make_dataset(tmp_path, f"tokenizer.name={tmp_path / 'tokenizer'}", "tokenizer.vocab_size=")
    held_out = held_out_of(dataset, tokenizer, 10 * SEQ_LEN)
    names = {index: token for token, index in tokenizer.raw.get_vocab().items()}
    expected = begun = fallbacks = 0
    for row in held_out.rows.tolist():
        targets = read_rows(held_out.plan, np.array([row])).targets_BT.numpy()[0]
        for token in (names[index] for index in targets[targets != -100].tolist()):
            fallbacks += token.startswith("<0x")
            expected += 0 if token in ("<s>", "</s>") else 1 if token.startswith("<0x") else len(token)
        begun += sum(piece.start <= 1 < piece.start + piece.length for piece in held_out.plan.sources(row))
    assert fallbacks > 10
    assert held_out.num_bytes == expected - begun


def test_the_text_that_a_tokenizer_loses_counts(tmp_path: Path) -> None:
    raw = RawTokenizer(models.BPE({c: i for i, c in enumerate(["<s>", "</s>", *"bcdefghijklmnopqrstuvwxyz "])}, []))
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens(["<s>", "</s>"])
    (tmp_path / "tokenizer").mkdir()
    raw.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    words = (f"tokenizer.name={tmp_path / 'tokenizer'}", "tokenizer.vocab_size=", "tokenizer.allow_loss=true")
    dataset, tokenizer = make_dataset(tmp_path, *words), load_tokenizer(tmp_path / "tokenizer")
    assert prefix_length(tokenizer) == 0
    split = dataset.split("validation")
    assert held_out_of(dataset, tokenizer, None).num_bytes < split.utf8_bytes
    (part,) = choose_parts(as_run_datasets(dataset), SEQ_LEN, "concat", tokenizer, None)
    assert part.held_out.num_bytes == split.utf8_bytes


def test_byte_level_vocabularies_have_no_prefix(tokenizer: Tokenizer) -> None:
    assert prefix_length(tokenizer) == 0


def test_figures_that_cannot_be_are_not_made_up(dataset: Dataset, tokenizer: Tokenizer) -> None:
    held_out = held_out_of(dataset, tokenizer, 100)
    assert held_out.result(1e9).perplexity == math.inf
    assert math.isnan(held_out.result(math.nan).loss)
    assert math.isnan(HeldOut(held_out.plan, held_out.rows, 3, 0).result(1.0).bits_per_byte)

"""Whether log-probabilities that are summed up a block of the vocabulary at a time are those of all logits in float64."""

import pytest
import torch

from packtrain.config.model import ModelConfig
from packtrain.errors import NonFiniteError
from packtrain.evaluate import scores
from packtrain.evaluate.scores import log_probabilities, rank_targets
from packtrain.model.cpu import measured
from packtrain.model.cpu.products import Products
from packtrain.model.cpu.timing import Rates
from packtrain.model.init import build
from packtrain.model.llama import Llama

VOCABULARY, SIZE = 101, 16


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(scores, "_BLOCK_POSITIONS", 7)
    monkeypatch.setattr(scores, "_BLOCK_TOKENS", 30)


def make_model(scale: float = 1.0) -> Llama:
    shape = {"hidden_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = build(ModelConfig.model_validate(shape | {"vocab_size": VOCABULARY}), seed=0)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn(VOCABULARY, SIZE, generator=torch.Generator().manual_seed(1)) * scale)
    return model


def draw(num_positions: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, and three targets at every other position: the first token, the last, and any."""
    generator = torch.Generator().manual_seed(2)
    hidden_ND = torch.randn(num_positions, SIZE, generator=generator)
    at_P = torch.arange(0, num_positions, 2).repeat_interleave(3)
    targets_P = torch.randint(VOCABULARY, at_P.shape, generator=generator)
    targets_P[0::3], targets_P[1::3] = 0, VOCABULARY - 1
    return hidden_ND, at_P, targets_P


# Logits within 16 of 0, and hundreds from it, where the tokens of a block may all be improbable.
@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.usefixtures("small_blocks")
@torch.no_grad()
def test_they_are_those_of_all_logits(scale):
    model, (hidden_ND, at_P, targets_P) = make_model(scale), draw()
    logits_NV = hidden_ND.double() @ model.lm_head.weight.double().t()
    expected_P = logits_NV.log_softmax(-1)[at_P, targets_P]
    found_P, is_best_P = rank_targets(model, hidden_ND, at_P, targets_P)
    torch.testing.assert_close(found_P.double(), expected_P, rtol=1e-6, atol=1e-5)
    assert torch.equal(found_P, log_probabilities(model, hidden_ND, at_P, targets_P))
    assert torch.equal(is_best_P, logits_NV.argmax(-1)[at_P] == targets_P)
    best_N = logits_NV.argmax(-1)
    assert rank_targets(model, hidden_ND, torch.arange(24), best_N)[1].all()
    # A position has the same in any company, as far as float32 goes.
    alone_P = torch.cat(
        [
            log_probabilities(model, hidden_ND[n : n + 1], at_P[at_P == n] - n, targets_P[at_P == n])
            for n in range(0, 24, 2)
        ]
    )
    torch.testing.assert_close(alone_P, found_P, rtol=1e-6, atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
@torch.no_grad()
def test_of_equal_logits_the_first_token_is_the_likeliest():
    model, (hidden_ND, _, _) = make_model(), draw()
    model.lm_head.weight.zero_()
    for rows in ([40, 80], [80, 95], [2, 3]):
        model.lm_head.weight[rows] = 1.0
        is_up_N = hidden_ND.sum(-1) > 0
        likeliest_N = torch.where(is_up_N, torch.tensor(rows[0]), torch.tensor(0 if rows[0] else 1))
        found = rank_targets(model, hidden_ND, torch.arange(24), likeliest_N)[1]
        assert found.all() and not rank_targets(model, hidden_ND, torch.arange(24), torch.full((24,), rows[1]))[1].any()
        model.lm_head.weight.zero_()


@pytest.mark.usefixtures("small_blocks")
@torch.no_grad()
def test_nothing_asked_is_nothing_and_damaged_weights_are_named():
    model, (hidden_ND, at_P, targets_P) = make_model(), draw()
    none = torch.zeros(0, dtype=torch.int64)
    assert [len(found) for found in rank_targets(model, hidden_ND, none, none)] == [0, 0]
    assert len(log_probabilities(model, hidden_ND[:0], none, none)) == 0
    with torch.autocast("cpu", torch.bfloat16):
        rounded_P = log_probabilities(model, hidden_ND, at_P, targets_P)
    assert 0 < (rounded_P - log_probabilities(model, hidden_ND, at_P, targets_P)).abs().max() < 0.2
    model.lm_head.weight[70] = torch.nan
    with pytest.raises(NonFiniteError, match="damaged"):
        log_probabilities(model, hidden_ND, at_P, targets_P)


def test_the_library_is_measured_for_a_large_vocabulary_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(scores, "can_use_onednn", lambda _: True)
    asked: list[str] = []

    def measure(products, _dtype, num_threads):
        asked.extend(product.name for product in products)
        return {product.name: Rates(1.0, 2.0 if num_threads == 7 else 1.0) for product in products}

    monkeypatch.setattr(measured, "time_products", measure)
    scores._choose_products.cache_clear()
    try:
        float32 = torch.float32
        for _ in range(2):
            assert scores._choose_products(float32, 32_000, 288, 7).of_outputs.takes(288, 1000)
            assert not scores._choose_products(float32, 32_000, 288, 8).of_outputs.takes(288, 1000)
            # Kept for the next process.
            scores._choose_products.cache_clear()
        assert asked == ["outputs 2048x288x1024"] * 2
        assert scores._choose_products(float32, 4_096, 128, 7) == Products.by_maker() and len(asked) == 2
    finally:
        scores._choose_products.cache_clear()

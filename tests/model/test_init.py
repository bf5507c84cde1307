"""Initial weights: the spread of every parameter, and what they do and do not depend on."""

import math

import pytest
import torch

from packtrain.model.init import build

from .tiny import tiny

WIDE = {"hidden_size": 256, "intermediate_size": 384, "vocab_size": 512, "initializer_range": 0.02}


@pytest.mark.parametrize(("init", "scaled"), [("gpt2", ("o_proj", "down_proj")), ("llama2c", ("o_proj", "up_proj"))])
def test_spread_of_every_parameter(init, scaled):
    config = tiny(init=init, tie_word_embeddings=False, num_hidden_layers=3, qk_norm=True, **WIDE)
    model = build(config, seed=1)
    assert len(dict(model.named_parameters())) == 3 * 11 + 3
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        wanted = 0.02 / math.sqrt(2 * 3) if name.split(".")[-2] in scaled else 0.02
        # The spread of a standard deviation of n normal numbers is 1/sqrt(2n).
        margin = 5 / math.sqrt(2 * parameter.numel())
        assert parameter.std().item() == pytest.approx(wanted, rel=margin), name
        assert abs(parameter.mean().item()) < 5 * wanted / math.sqrt(parameter.numel()), name


@pytest.mark.parametrize("init", ["depth", "zero_out"])
def test_what_the_blocks_add_is_scaled_by_depth_or_zero(init):
    config = tiny(init=init, embedding_range=0.5, num_hidden_layers=3, **WIDE)
    for name, parameter in build(config, seed=1).named_parameters():
        if "norm" in name:
            continue
        wanted = 0.5 if "embed" in name else 0.02
        if name.split(".")[-2] in ("o_proj", "down_proj"):
            wanted = 0.0 if init == "zero_out" else 0.02 / math.sqrt(2 * (int(name.split(".")[2]) + 1))
        margin = 5 / math.sqrt(2 * parameter.numel())
        assert parameter.std().item() == pytest.approx(wanted, rel=margin), name


def test_blocks_that_add_nothing_are_the_identity():
    """Without a change from its blocks, a model's output depends on the last token alone."""
    model = build(tiny(init="zero_out"), seed=1)
    ids = torch.tensor([[5, 9, 7], [1, 2, 7]])
    logits = model(ids)
    # The output projection may compute the rows of one product in different orders.
    torch.testing.assert_close(logits[0, -1], logits[1, -1])
    assert not torch.allclose(logits[0, 0], logits[1, 0])


def test_a_parameter_depends_on_seed_and_name_only():
    shallow = dict(build(tiny(num_hidden_layers=1), seed=7).named_parameters())
    deep = dict(build(tiny(num_hidden_layers=1, vocab_size=97), seed=7).named_parameters())
    name = "model.layers.0.mlp.gate_proj.weight"
    assert torch.equal(shallow[name], deep[name])
    assert not torch.equal(shallow[name], shallow["model.layers.0.mlp.up_proj.weight"])
    assert not torch.equal(shallow[name], dict(build(tiny(), seed=8).named_parameters())[name])


def test_the_global_generator_is_neither_used_nor_moved():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = build(tiny(), seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    second = build(tiny(), seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tied_weights_are_one_parameter():
    model = build(tiny(), seed=1)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    apart = build(tiny(tie_word_embeddings=False), seed=1)
    assert not torch.equal(apart.lm_head.weight, apart.model.embed_tokens.weight)

"""What each parameter is."""

from collections import Counter

from packtrain.model.init import build
from packtrain.model.roles import Role, roles

from .tiny import tiny


def test_every_parameter_has_its_role():
    model = build(tiny(tie_word_embeddings=False, qk_norm=True), seed=0, device="meta")
    found = roles(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert found["model.embed_tokens.weight"] is Role.EMBEDDING
    assert found["lm_head.weight"] is Role.OUTPUT
    assert found["model.norm.weight"] is found["model.layers.1.self_attn.q_norm.weight"] is Role.NORM
    assert Counter(found.values()) == {Role.MATRIX: 14, Role.NORM: 9, Role.EMBEDDING: 1, Role.OUTPUT: 1}


def test_a_tied_output_is_listed_once_as_the_embedding():
    found = roles(build(tiny(), seed=0, device="meta"))
    assert "lm_head.weight" not in found
    assert Role.OUTPUT not in found.values()


def test_a_bias_is_a_bias():
    import torch

    assert roles(torch.nn.ModuleDict({"q_proj": torch.nn.Linear(2, 2)}))["q_proj.bias"] is Role.BIAS

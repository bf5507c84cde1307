"""Parameters and FLOPs counted without torch are those of the model that is built."""

import pytest
import torch
from tests.model.tiny import VARIANTS, random_tokens, tiny
from torch.utils.flop_counter import FlopCounterMode

from packtrain.config.load import load_run_config
from packtrain.model.init import build
from packtrain.plan.parameters import flops_per_token, num_parameters, parameters_by_part


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=lambda c: "-".join(c) or "plain")
def test_parameters_are_those_of_the_model(changes):
    config = tiny(**changes)
    model = build(config, seed=0, device="meta")
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())
    parts = parameters_by_part(config)
    assert parts["feed-forward"] == sum(p.numel() for name, p in model.named_parameters() if ".mlp." in name)
    assert parts["norms"] == sum(p.numel() for name, p in model.named_parameters() if "norm" in name)


def test_flops_of_the_reference_job():
    config = load_run_config("llama2-437m").config.model
    assert flops_per_token(config, 1024) == 6 * 437_584_896 + 12 * 32 * 1024 * 1024
    separate = config.model_copy(update={"tie_word_embeddings": False})
    assert flops_per_token(separate, 1024) == flops_per_token(config, 1024)


def test_flops_are_those_that_torch_counts():
    config = tiny(vocab_size=512, num_key_value_heads=2)
    model, tokens = build(config, seed=0).double(), random_tokens(2, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    # The counter sees only the forward products with weights, which are a third of the FLOPs: it knows neither the CPU's
    # attention kernel nor oneDNN's products in float32.
    assert 3 * counter.get_total_flops() == pytest.approx(2 * 64 * flops_per_token(config, 0), rel=0.01)

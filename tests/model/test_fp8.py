"""fp8: the blocks' products are taken in it, forward and backward, and everything else of a model is as it was."""

import collections
import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from packtrain.errors import ConfigError
from packtrain.model.fp8 import use_fp8, what_is_missing, without_fp8
from packtrain.model.init import build

from .tiny import tiny

CONFIG = tiny(num_key_value_heads=2, initializer_range=0.02)
MATRICES = 2 * 7


class Roundings(TorchDispatchMode):
    """Counts tensors that are rounded to an fp8 type."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        dtype = (kwargs or {}).get("dtype")
        if func is torch.ops.aten._to_copy.default and dtype is not None and dtype.itemsize == 1:
            self.counts[dtype] += 1
        return func(*args, **(kwargs or {}))


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 97, (2, 2, 16), generator=generator)


@pytest.mark.parametrize("num_recomputed", [0, 2])
def test_all_three_products_of_every_matrix_of_a_block_are_taken_in_fp8(num_recomputed):
    model = build(CONFIG, seed=1)
    assert use_fp8(model, emulate=True) == 0
    model.recompute(num_recomputed)
    inputs, targets = batch()
    with Roundings() as forward, torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(inputs, targets)
    assert forward.counts == {torch.float8_e4m3fn: 2 * MATRICES}
    with Roundings() as backward:
        loss.backward()
    # The gradient of the result for both products; the other operand of each; and what was computed again.
    again = 2 * MATRICES if num_recomputed else 0
    assert backward.counts == {torch.float8_e4m3fn: 2 * MATRICES + again, torch.float8_e5m2: 2 * MATRICES}


def test_loss_and_gradients_are_float32_s_but_for_rounding():
    def outcome(model, dtype):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = model(*batch())
        loss.backward()
        return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    exact, half = build(CONFIG, seed=1), build(CONFIG, seed=1)
    rounded = copy.deepcopy(exact)
    use_fp8(rounded, emulate=True)
    loss, gradient = outcome(exact, None)
    half_loss, half_gradient = outcome(half, torch.bfloat16)
    rounded_loss, rounded_gradient = outcome(rounded, torch.bfloat16)
    assert all(parameter.grad.dtype == torch.float32 for parameter in rounded.parameters())
    assert rounded_loss == pytest.approx(loss, rel=1e-2)
    assert rounded_loss != half_loss
    errors = [1 - torch.cosine_similarity(gradient, other, dim=0).item() for other in (half_gradient, rounded_gradient)]
    assert errors[0] < errors[1] < 0.02


def test_weights_and_their_names_stay_what_they_are():
    model = build(CONFIG, seed=1)
    before = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()}
    parameters = [name for name, _ in model.named_parameters()]
    use_fp8(model, emulate=True)
    assert {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()} == before
    assert [name for name, _ in model.named_parameters()] == parameters
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("is_tied", [True, False])
def test_without_fp8_it_is_the_model_that_it_was_in_the_same_memory(is_tied):
    config = CONFIG.model_copy(update={"tie_word_embeddings": is_tied})
    model = build(config, seed=1)
    inputs, _ = batch()
    expected = model(inputs)
    assert without_fp8(model) is model
    use_fp8(model, emulate=True)
    assert not torch.equal(model(inputs), expected)
    plain = without_fp8(model.eval())
    assert not plain.training
    assert torch.equal(plain(inputs), expected)
    pairs = zip(plain.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)


def test_a_side_that_is_not_a_multiple_of_16_stays_as_it_was():
    model = build(tiny(intermediate_size=72), seed=1)
    assert use_fp8(model, emulate=True) == 2 * 3
    assert type(model.model.layers[0].mlp.down_proj) is torch.nn.Linear
    assert type(model.model.layers[0].self_attn.q_proj) is not torch.nn.Linear
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(*batch()).backward()
    with pytest.raises(ConfigError, match=r"a block has none with model\.hidden_size=40; write a multiple of 16"):
        use_fp8(build(tiny(hidden_size=40), seed=1))


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_only_gpus_that_have_the_units_can(device):
    assert "compute capability 8.9 or more (Ada, Hopper or newer)" in what_is_missing(torch.device(device))

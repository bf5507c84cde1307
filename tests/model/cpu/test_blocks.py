"""The CPU's kernels compute the equation, keep every parameter, and give way to a compiler."""

import copy

import pytest
import torch

from packtrain.config.data import IGNORE_INDEX
from packtrain.model.cpu.blocks import CpuBlock, CpuLlama, CpuRMSNorm, use_cpu_kernels
from packtrain.model.fp8 import use_fp8
from packtrain.model.init import build
from packtrain.model.llama import Block, Llama

from ..tiny import VARIANTS, built, random_tokens, tiny, with_cpu_kernels


def loss_and_gradients(model, **arguments):
    tokens, targets = random_tokens(2, 40), random_tokens(2, 40, seed=1)
    targets[:, ::3] = IGNORE_INDEX
    loss = model(tokens, targets, **arguments)
    return loss, torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=lambda c: "-".join(c) or "plain")
@pytest.mark.parametrize("arguments", [{}, {"z_loss": 0.01}, {"segments_BT": torch.arange(40).expand(2, 40) // 9}])
def test_kernels_compute_the_equation(changes, arguments):
    equation = built(tiny(**changes))
    kernels = with_cpu_kernels(copy.deepcopy(equation))
    tokens = random_tokens(2, 40)
    torch.testing.assert_close(kernels(tokens), equation(tokens), rtol=1e-4, atol=1e-5)
    (loss, gradients), (wanted, wanted_gradients) = (loss_and_gradients(m, **arguments) for m in (kernels, equation))
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for a, b in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_parameters_stay_what_they_are():
    model = built(tiny(qk_norm=True))
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    use_cpu_kernels(model)
    use_cpu_kernels(model)
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
    assert model.lm_head.weight is model.model.embed_tokens.weight
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(CpuLlama), kinds.count(CpuBlock), kinds.count(CpuRMSNorm)) == (1, 2, 9)
    assert Llama not in kinds and Block not in kinds


def test_the_gradient_of_a_tied_embedding_is_that_of_the_loss_completed():
    model = with_cpu_kernels(built(tiny()))
    made = []

    def remember(tensors):
        made.extend(tensor.data_ptr() for tensor in tensors if tensor is not None)

    loss = model(random_tokens(2, 40), random_tokens(2, 40, seed=1))
    loss.grad_fn.register_hook(lambda inputs, _outputs: remember(inputs))
    loss.backward()
    assert model.model.embed_tokens.weight.grad.data_ptr() in made


def test_fp8_layers_are_not_bypassed():
    model = build(tiny(), seed=0)
    use_fp8(model, emulate=True)
    with pytest.raises(AssertionError, match="fp8"):
        use_cpu_kernels(model)


def test_a_compiler_sees_the_equation(monkeypatch):
    equation = built(tiny())
    kernels = with_cpu_kernels(copy.deepcopy(equation))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    (loss, gradients), (wanted, wanted_gradients) = (loss_and_gradients(m) for m in (kernels, equation))
    assert torch.equal(loss, wanted)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted_gradients, strict=True))

"""The loss without logits is the loss with them, gradients included."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from packtrain.config.data import IGNORE_INDEX
from packtrain.model import loss as loss_file
from packtrain.model.cpu import loss as cpu_loss_file
from packtrain.model.cpu.loss import cpu_chunk_loss as chunk_loss_with
from packtrain.model.cpu.products import Products
from packtrain.model.loss import chunk_loss, linear_cross_entropy

from .tiny import built, random_tokens, tiny

PRODUCTS = Products.by_maker()
cpu_chunk_loss = functools.partial(chunk_loss_with, PRODUCTS)


def plain(hidden_ND, weight_VD, targets_N):
    return F.cross_entropy(F.linear(hidden_ND, weight_VD), targets_N, ignore_index=IGNORE_INDEX, reduction="sum")


def problem(dtype=torch.float32, rows=37, ignored=5):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 16, generator=draw, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, generator=draw, dtype=dtype, requires_grad=True)
    targets = torch.randint(50, (rows,), generator=draw)
    targets[torch.randperm(rows, generator=draw)[:ignored]] = IGNORE_INDEX
    return hidden, weight, targets


@pytest.fixture(params=["equation", "cpu"])
def of_chunk(request):
    """How the loss of a chunk is computed, and who multiplies for its gradients."""
    is_cpu = request.param == "cpu"
    return {"of_chunk": cpu_chunk_loss if is_cpu else chunk_loss, "products": PRODUCTS if is_cpu else None}


@pytest.fixture(params=[1, 8, 37, 1000])
def chunk(request, monkeypatch):
    monkeypatch.setattr(loss_file, "chunk_rows", lambda _vocab_size, _device: request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("ignored", [0, 5, 37])
def test_equals_plain_in_float64(ignored, of_chunk):
    hidden, weight, targets = problem(torch.float64, ignored=ignored)
    got = linear_cross_entropy(hidden, weight, targets, **of_chunk)
    wanted = plain(hidden, weight, targets)
    torch.testing.assert_close(got, wanted)
    scale = 0.37
    for a, b in zip(
        torch.autograd.grad(got * scale, (hidden, weight)),
        torch.autograd.grad(wanted * scale, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_rows_that_are_widened_together_change_no_gradient(monkeypatch, z_loss):
    hidden, weight, targets = problem()

    def gradients(wide_rows):
        monkeypatch.setattr(cpu_loss_file, "WIDE_ROWS", wide_rows)
        with torch.autocast("cpu", torch.bfloat16):
            loss = linear_cross_entropy(hidden, weight, targets, z_loss, cpu_chunk_loss, PRODUCTS)
        return loss, torch.autograd.grad(loss, (hidden, weight))

    together, wanted = gradients(1000)
    rounded = hidden.bfloat16(), weight.bfloat16()
    torch.testing.assert_close(together, plain(*(x.float() for x in rounded), targets), rtol=0.01, atol=0)
    for wide_rows in (1, 7, 32):
        loss, found = gradients(wide_rows)
        torch.testing.assert_close(loss, together)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_extreme_logits_stay_finite(of_chunk):
    hidden, weight, targets = problem()
    with torch.no_grad():
        hidden.mul_(1000)
    got = linear_cross_entropy(hidden, weight, targets, **of_chunk)
    torch.testing.assert_close(got, plain(hidden, weight, targets), rtol=1e-5, atol=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got, (hidden, weight)))


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_form_for_compiled_code_is_the_other_form(monkeypatch, z_loss):
    hidden, weight, targets = problem()
    wanted = linear_cross_entropy(hidden, weight, targets, z_loss)
    gradients = torch.autograd.grad(wanted, (hidden, weight))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    got = linear_cross_entropy(hidden, weight, targets, z_loss)
    torch.testing.assert_close(got, wanted)
    for a, b in zip(torch.autograd.grad(got, (hidden, weight)), gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_no_gradient_is_computed_if_none_is_needed():
    hidden, weight, targets = problem()
    with torch.no_grad():
        got = linear_cross_entropy(hidden, weight, targets)
    assert not got.requires_grad
    torch.testing.assert_close(got, plain(hidden, weight, targets).detach())


def test_threads_do_not_share_logits(of_chunk):
    problems = [problem(rows=rows) for rows in (300, 301, 300, 301)] * 4
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda p: linear_cross_entropy(*p, **of_chunk).detach(), problems))
    for loss, given in zip(got, problems, strict=True):
        torch.testing.assert_close(loss, plain(*given).detach())


def test_a_second_backward_fails_instead_of_being_wrong():
    hidden, weight, targets = problem()
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_an_out_of_range_target_is_refused(of_chunk):
    hidden, weight, targets = problem()
    targets[0] = 50
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        linear_cross_entropy(hidden, weight, targets, **of_chunk)


@pytest.mark.parametrize("tied", [True, False])
def test_of_the_whole_model(tied):
    model = built(tiny(tie_word_embeddings=tied))
    tokens, targets = random_tokens(2, 40), random_tokens(2, 40, seed=1)
    targets[:, ::3] = IGNORE_INDEX
    parameters = list(model.parameters())
    got = model(tokens, targets)
    wanted = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    assert got.dtype == torch.float32 and got.shape == ()
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    for a, b in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("ignored", [0, 5])
def test_z_loss_moves_the_gradient_and_not_the_value(ignored, of_chunk):
    hidden, weight, targets = problem(torch.float64, ignored=ignored)
    got = linear_cross_entropy(hidden, weight, targets, 0.03, **of_chunk)
    wanted = plain(hidden, weight, targets)
    torch.testing.assert_close(got, wanted)
    log_z = F.linear(hidden, weight).logsumexp(-1)[targets != IGNORE_INDEX]
    total = wanted + 0.03 * log_z.square().sum()
    for a, b in zip(
        torch.autograd.grad(got, (hidden, weight)), torch.autograd.grad(total, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_gradients_of_the_total_are_the_slopes_of_its_value(of_chunk):
    hidden, weight, targets = problem(torch.float64, rows=7, ignored=2)

    def total(hidden, weight):
        return loss_file._LinearCrossEntropy.apply(
            hidden, weight, targets, torch.float64, True, 0.03, *of_chunk.values()
        )[0]

    gradients = torch.autograd.grad(total(hidden, weight), (hidden, weight))
    draw = torch.Generator().manual_seed(1)
    for _ in range(5):
        towards = [torch.randn(t.shape, generator=draw, dtype=t.dtype) for t in (hidden, weight)]
        ahead, behind = (
            total(*(t.detach() + step * d for t, d in zip((hidden, weight), towards, strict=True)))
            for step in (1e-6, -1e-6)
        )
        slope = sum((g * d).sum() for g, d in zip(gradients, towards, strict=True))
        torch.testing.assert_close((ahead - behind) / 2e-6, slope, rtol=1e-6, atol=1e-6)

"""The model is Hugging Face's, causal, and the same through a cache, a mask, autocast and a device move."""

import pytest
import torch
from torch.nn import functional as F

from packtrain.config.data import IGNORE_INDEX
from packtrain.config.load import load_run_config
from packtrain.model.attention import block_mask, document_mask
from packtrain.model.init import build
from packtrain.model.llama import Llama

from .reference import hugging_face
from .tiny import VARIANTS, built, random_tokens, tiny, with_cpu_kernels


class ConcatenatingCache:
    """The cache protocol in its shortest form."""

    def __init__(self, num_layers: int) -> None:
        self.held: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * num_layers

    @property
    def length(self) -> int:
        return 0 if self.held[-1] is None else self.held[-1][0].shape[2]

    def update(self, layer_index, k_BGTK, v_BGTK):
        if self.held[layer_index] is not None:
            k, v = self.held[layer_index]
            k_BGTK, v_BGTK = torch.cat((k, k_BGTK), 2), torch.cat((v, v_BGTK), 2)
        self.held[layer_index] = (k_BGTK, v_BGTK)
        return k_BGTK, v_BGTK


@pytest.fixture(params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def variant(request) -> Llama:
    return built(tiny(**VARIANTS[request.param])).eval()


@pytest.fixture(params=[False, True], ids=["equation", "cpu"])
def model(request, variant) -> Llama:
    return with_cpu_kernels(variant) if request.param else variant


@torch.no_grad()
def test_logits_are_hugging_faces(model):
    tokens = random_tokens(2, 100)
    theirs = hugging_face(model)(tokens).logits
    ours = model(tokens)
    assert theirs.std() > 0.3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_gradients_are_hugging_faces(model):
    tokens = random_tokens(2, 40)
    theirs = hugging_face(model)
    logits = theirs(tokens).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").backward()
    model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name], rtol=1e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[30], [1] * 30, [7, 1, 12, 10], [29, 1]], ids=str)
def test_cache_changes_nothing(model, chunks):
    tokens = random_tokens(2, 30)
    cache = ConcatenatingCache(model.config.num_hidden_layers)
    logits = [model(part, cache=cache) for part in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(logits, 1), hugging_face(model)(tokens).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_later_tokens_change_nothing_before(model):
    tokens = random_tokens(1, 24)
    changed = tokens.clone()
    changed[:, 16:] = (changed[:, 16:] + 1) % model.config.vocab_size
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :16], after[:, :16])
    assert not torch.allclose(before[:, 16:], after[:, 16:])


def test_document_mask_is_separate_documents(model):
    lengths = (5, 1, 11, 7)
    tokens = random_tokens(2, sum(lengths))
    targets = random_tokens(2, sum(lengths), seed=1)
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1).int()
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    apart = [model(t, y) for t, y in zip(tokens.split(lengths, 1), targets.split(lengths, 1), strict=True)]
    together = model(tokens, targets, segments_BT=segments, positions_BT=positions)
    torch.testing.assert_close(together, sum(apart), rtol=1e-5, atol=0)
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(sum(apart), parameters)
    got = torch.autograd.grad(together, parameters)
    for name, a, b in zip(names, got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def test_segments_may_differ_by_row():
    model = built(tiny(num_key_value_heads=2))
    tokens = random_tokens(2, 12)
    segments = torch.tensor([[0] * 12, [0] * 5 + [1] * 7], dtype=torch.int32)
    positions = torch.stack([torch.arange(12), torch.cat([torch.arange(5), torch.arange(7)])])
    logits = model(tokens, segments_BT=segments, positions_BT=positions)
    torch.testing.assert_close(logits[0], model(tokens[:1])[0])
    torch.testing.assert_close(logits[1, 5:], model(tokens[1:, 5:])[0])


def test_block_mask_lets_through_what_the_bool_mask_does():
    segments = torch.tensor([[0] * 100 + [1] * 156, [3] * 200 + [4] * 56], dtype=torch.int32)
    dense = document_mask(segments)
    blocks = block_mask(segments)
    b, h, q, k = (torch.arange(n) for n in (2, 1, 256, 256))
    seen = blocks.mask_mod(b[:, None, None, None], h[:, None, None], q[:, None], k)
    assert torch.equal(seen, dense)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_by_blocks_is_attention_by_bool_mask():
    from packtrain.model.attention import attend

    segments = torch.tensor([[0] * 100 + [1] * 28], dtype=torch.int32)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 128, 16, generator=draw) for heads in (4, 2, 2))
    torch.testing.assert_close(attend(q, k, v, block_mask(segments)), attend(q, k, v, document_mask(segments)))


@pytest.mark.gpu
def test_document_mask_on_cuda_is_that_of_the_cpu():
    model = built(tiny(num_key_value_heads=2))
    tokens, targets = random_tokens(2, 128), random_tokens(2, 128, seed=1)
    segments = torch.tensor([[0] * 50 + [1] * 78, [2] * 128], dtype=torch.int32)
    positions = torch.stack([torch.cat([torch.arange(50), torch.arange(78)]), torch.arange(128)])
    wanted = model(tokens, targets, segments_BT=segments, positions_BT=positions)
    got = model.cuda()(tokens.cuda(), targets.cuda(), segments_BT=segments.cuda(), positions_BT=positions.cuda())
    torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=0)
    got.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_kernels", [False, True])
def test_autocast_stays_near_float32(dtype, has_kernels):
    model = built(tiny(num_key_value_heads=2, qk_norm=True))
    if has_kernels:
        model = with_cpu_kernels(model)
    tokens, targets = random_tokens(2, 32), random_tokens(2, 32, seed=1)
    wanted = model(tokens, targets)
    wanted_grads = torch.autograd.grad(wanted, list(model.parameters()))
    with torch.autocast("cpu", dtype=dtype):
        got = model(tokens, targets)
    grads = torch.autograd.grad(got, list(model.parameters()))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=0.01, atol=0)
    for a, b in zip(grads, wanted_grads, strict=True):
        assert a.dtype == torch.float32
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.995
    with torch.autocast("cpu", dtype=dtype):
        assert model(tokens).dtype == torch.float32


def test_positions_are_not_rounded_by_a_narrow_model():
    exact = built(tiny())
    narrow = built(tiny()).to(torch.bfloat16)
    assert narrow.model.rotary.frequencies == exact.model.rotary.frequencies
    assert narrow.model.rotary(torch.tensor([1000])).cos.dtype == torch.float32


def test_state_dict_holds_parameters_only():
    model = built(tiny(tie_word_embeddings=False))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("preset", ["llama2-437m", "llama2-437m-h16", "llama2-437m-h8"])
def test_reference_size_is_exact(preset):
    model = build(load_run_config(preset).config.model, seed=0, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 437_584_896
    assert all(p.is_meta for p in model.parameters())


@torch.no_grad()
def test_a_model_from_meta_computes_after_loading():
    model = built(tiny())
    with torch.device("meta"):
        empty = Llama(model.config)
    empty.to_empty(device="cpu")
    empty.tie_weights()
    empty.load_state_dict(model.state_dict())
    tokens = random_tokens(1, 20)
    assert torch.equal(empty(tokens), model(tokens))


@pytest.mark.very_slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses what torch itself deprecates
@pytest.mark.parametrize("has_kernels", [False, True])
def test_compiled_is_eager(has_kernels):
    model = built(tiny(num_key_value_heads=2))
    if has_kernels:
        model = with_cpu_kernels(model)
    tokens, targets = random_tokens(2, 32), random_tokens(2, 32, seed=1)
    targets[0, :5] = IGNORE_INDEX
    wanted = model(tokens, targets)
    wanted_grads = torch.autograd.grad(wanted, list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True)
    got = compiled(tokens, targets)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)
    for a, b in zip(torch.autograd.grad(got, list(model.parameters())), wanted_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_kernels", [False, True])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_blocks_that_are_computed_again_change_no_bit(num_blocks, has_kernels):
    plain, again = (with_cpu_kernels(build(tiny(), seed=0)) if has_kernels else build(tiny(), seed=0) for _ in "ab")
    again.recompute(num_blocks)
    tokens, segments = random_tokens(2, 16), torch.arange(16).div(5, rounding_mode="floor").expand(2, 16)
    for model in (plain, again):
        model(tokens, tokens, segments_BT=segments).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), again.parameters(), strict=True))

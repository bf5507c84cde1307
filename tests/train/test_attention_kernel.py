"""The kernel of attention on a GPU is the one that is measured to be fastest there, chosen once and kept."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from packtrain.config.load import load_run_config
from packtrain.errors import ConfigError
from packtrain.train.attention_kernel import measure_kernel, resolve_attention, use_attention
from tests.train.conftest import place

GPU = place(8, "bf16", device="cuda")


def config(*settings):
    return load_run_config("llama2-437m", settings).config


def chosen(seconds, *settings, before=None, where=GPU):
    """The kernel that is chosen if a measurement gives these seconds, and the names of what was measured."""
    asked = []

    def measure(_config, _placement, name):
        asked.append(name)
        return seconds[name]

    return resolve_attention(config(*settings), before, where, measure).train.attention, asked


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"flash": 0.8e-3, "cudnn": 0.5e-3, "efficient": 1.2e-3}, "cudnn"),
        ({"flash": 0.4e-3, "cudnn": 0.5e-3, "efficient": 1.2e-3}, "flash"),
        ({"flash": 0.8e-3, "cudnn": None, "efficient": 1.2e-3}, "flash"),
        ({"flash": None, "cudnn": None, "efficient": 1.2e-3}, "efficient"),
    ],
)
def test_the_fastest_that_can_compute_is_chosen(seconds, expected, caplog):
    with caplog.at_level("INFO", "packtrain"):
        assert chosen(seconds) == (expected, ["flash", "cudnn", "efficient"])
    assert f"train.attention=auto: {expected} (measured forward and backward: " in caplog.text
    assert ("cudnn" in caplog.text) == (seconds["cudnn"] is not None)


def test_without_a_kernel_torch_chooses(caplog):
    assert chosen(dict.fromkeys(("flash", "cudnn", "efficient")))[0] == "torch"
    assert "torch chooses" in caplog.text


SECONDS = {"flash": 2.0, "cudnn": 1.0, "efficient": 3.0}


@pytest.mark.parametrize(
    ("settings", "where", "expected"),
    [
        (["train.attention=efficient"], GPU, "efficient"),
        (["train.attention=torch"], GPU, "torch"),
        (["train.deterministic=true"], GPU, "flash"),
        (["data.document_mask=true"], GPU, "auto"),
        ([], place(8, "fp32", device="cuda"), "auto"),
        ([], place(8, "bf16"), "auto"),
    ],
)
def test_nothing_is_measured_where_nothing_is_chosen(settings, where, expected):
    assert chosen(SECONDS, *settings, where=where) == (expected, [])


def test_a_run_keeps_what_it_had():
    assert chosen(SECONDS, before=config("train.attention=flash")) == ("flash", [])
    assert chosen(SECONDS, before=config())[0] == "cudnn"
    assert chosen(SECONDS, "train.attention=torch", before=config("train.attention=flash")) == ("torch", [])


def test_kernels_that_add_in_any_order_are_refused_in_a_deterministic_run():
    with pytest.raises(ConfigError, match=r"write train\.attention=flash"):
        config("train.deterministic=true", "train.attention=cudnn")


def test_a_measurement_times_what_a_device_computes():
    small = load_run_config("demo", ["data.seq_len=32"]).config
    here = place(2, "bf16")
    assert measure_kernel(small, here, "flash") > 0
    assert measure_kernel(small, here, "cudnn") is None


def test_the_choice_comes_first_and_ends_with_the_run():
    def order():
        return torch._C._get_sdp_priority_order()

    draw = torch.Generator().manual_seed(0)
    q = torch.randn(1, 2, 8, 16, generator=draw)
    before, plain = order(), scaled_dot_product_attention(q, q, q, is_causal=True)
    with use_attention(config("train.attention=cudnn")):
        assert order()[0] == int(torch.nn.attention.SDPBackend.CUDNN_ATTENTION.value)
        # Where it cannot compute, another one does.
        assert torch.equal(scaled_dot_product_attention(q, q, q, is_causal=True), plain)
        mask = torch.ones(8, 8, dtype=torch.bool).tril()
        torch.testing.assert_close(scaled_dot_product_attention(q, q, q, attn_mask=mask), plain)
    with use_attention(config("train.attention=torch")):
        assert order() == before
    assert order() == before


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["flash", "cudnn", "efficient"])
def test_every_kernel_gives_the_gradients_of_float32(name):
    draw = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 4, 256, 32, generator=draw).cuda().requires_grad_() for _ in range(3)]
    narrow = [x.detach().bfloat16().requires_grad_() for x in exact]
    with use_attention(config(f"train.attention={name}")):
        got = scaled_dot_product_attention(*narrow, is_causal=True)
        gradients = torch.autograd.grad(got.float().square().sum(), narrow)
    wanted = scaled_dot_product_attention(*exact, is_causal=True)
    for a, b in zip(gradients, torch.autograd.grad(wanted.square().sum(), exact), strict=True):
        assert torch.cosine_similarity(a.float().flatten(), b.flatten(), dim=0) > 0.999

"""What a block keeps for its backward pass is what the planner computes: by autograd's hooks, and by the compiler's partitioner.

Everything runs on fake tensors of the real sizes. The CPU's operations stand in for CUDA's, which keep the same; only its
RMSNorm keeps more, so a function with the gradient of CUDA's replaces it.
"""

from contextlib import nullcontext

import pytest
import torch
import torch._functorch.config as functorch_config
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from packtrain.config.load import load_run_config
from packtrain.model.layers import Rotation
from packtrain.model.llama import Block
from packtrain.plan.activations import activation_bytes, block_bytes_per_token, blocks_to_recompute, share_to_keep

ROWS, T = 8, 1024
SHAPES = {
    "437m": (),
    "grouped": ("model.num_key_value_heads=8",),
    "head norms": ("model.qk_norm=true", "model.num_attention_heads=8"),
    "small": ("model.hidden_size=288", "model.intermediate_size=768", "model.num_attention_heads=6"),
}


class FusedNorm(torch.autograd.Function):
    """Keeps what the gradient of CUDA's RMSNorm keeps: its input and 1/rms."""

    @staticmethod
    def forward(ctx, x, _shape, weight, eps):
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rstd)
        return x * rstd * weight

    @staticmethod
    def backward(_ctx, _gradient):
        raise AssertionError("nothing is computed here")


def model_config(name):
    return load_run_config("llama2-437m", SHAPES[name]).config.model


def make(config):
    """A block, its input, and its rotation; call it under a FakeTensorMode."""
    block = Block(config, 0)
    x_BTD = torch.empty(ROWS, T, config.hidden_size, requires_grad=True)
    return block, x_BTD, Rotation(*(torch.empty(1, T, 1, config.head_size // 2) for _ in range(2)))


def cast(precision):
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()


def kept_bytes(tensors):
    """Bytes per token of the tensors that have a number for each token; others are weights, their copies and the rotation's."""
    storages = {t.untyped_storage()._cdata: t for t in tensors if t.numel() % (ROWS * T) == 0 and t.shape[0] != 1}
    of_tokens = [t for t in storages.values() if t.shape[0] in (ROWS, ROWS * T)]
    return sum(t.untyped_storage().nbytes() for t in of_tokens) / (ROWS * T)


def kept_by_autograd(config, precision):
    kept = []
    with FakeTensorMode():
        block, x_BTD, rotation = make(config)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), cast(precision):
            out = block(x_BTD, rotation)
        assert out.shape == x_BTD.shape
    return kept_bytes(kept)


def kept_by_the_compiler(config, precision, share=1.0):
    """Of the saved activations of the forward graph, as AOTAutograd's partitioner divides the traced graph for Inductor."""
    kept = []

    def partition(joint, inputs, **options):
        forward, backward = min_cut_rematerialization_partition(joint, inputs, **options)
        results = forward.graph.output_node().args[0]
        kept.extend(node.meta["val"] for node in results[options["num_fwd_outputs"] :])
        return forward, backward

    def leave(graph, _inputs):
        return graph

    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=leave, bw_compiler=leave, partition_fn=partition, decompositions=select_decomp_table()
    )
    with FakeTensorMode(allow_non_fake_inputs=True), functorch_config.patch(activation_memory_budget=share):
        block, x_BTD, rotation = make(config)
        with cast(precision):
            torch.compile(block, backend=backend, dynamic=False)(x_BTD, rotation)
    torch._dynamo.reset()
    assert kept
    return kept_bytes(kept)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", SHAPES)
def test_eager_blocks_keep_what_is_computed(name, precision, monkeypatch):
    monkeypatch.setattr(F, "rms_norm", FusedNorm.apply)
    config = model_config(name)
    assert kept_by_autograd(config, precision) == block_bytes_per_token(config, precision, "eager")


SLOW = [("grouped", "bf16"), ("head norms", "bf16"), ("small", "bf16"), ("437m", "fp32")]


@pytest.mark.parametrize(
    ("name", "precision"), [("437m", "bf16"), *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_compiled_blocks_keep_what_is_computed(name, precision):
    config = model_config(name)
    assert kept_by_the_compiler(config, precision) == block_bytes_per_token(config, precision, "compiled")


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes", [6.0, 4.0, 2.0, 1.2])
def test_compiled_blocks_keep_no_more_than_a_budget(gigabytes):
    config, tokens = model_config("437m"), ROWS * T
    share = share_to_keep(config, tokens, "bf16", gigabytes * 1e9)
    assert 0 <= share < 1
    outside = (
        activation_bytes(config, tokens, "bf16", config.num_hidden_layers)
        - tokens * config.num_hidden_layers * 4 * 1024
    )
    kept = config.num_hidden_layers * tokens * kept_by_the_compiler(config, "bf16", share) + outside
    assert kept <= gigabytes * 1e9
    # The compiler's choices are few, but it does not fall back to the least.
    assert share == 0 or kept > 0.5 * gigabytes * 1e9


def test_a_budget_of_compiled_blocks_is_a_share():
    config, tokens = model_config("437m"), ROWS * T
    everything, least = (
        activation_bytes(config, tokens, "bf16", n, kernels="compiled") for n in (0, config.num_hidden_layers)
    )
    assert share_to_keep(config, tokens, "bf16", None) == share_to_keep(config, tokens, "bf16", everything) == 1
    assert share_to_keep(config, tokens, "bf16", least) == 0
    assert 0 < share_to_keep(config, tokens, "bf16", (everything + least) / 2) < 0.6
    count = blocks_to_recompute
    assert count(config, tokens, "bf16", least, kernels="compiled") == 0
    assert count(config, tokens, "bf16", least - 1, kernels="compiled") is None

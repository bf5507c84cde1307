"""Counts made without torch are those of the model that is built and trained."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from tests.model.tiny import VARIANTS, random_tokens, tiny, with_cpu_kernels
from tests.profiled import highest_bytes
from torch.profiler import ProfilerActivity, profile

from packtrain.config.load import load_run_config
from packtrain.config.model import ModelConfig
from packtrain.model.init import build
from packtrain.plan.devices import peak_flops
from packtrain.plan.memory import activation_bytes, blocks_to_recompute, memory, needed_bytes, peak_bytes
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
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny(vocab_size=512, num_key_value_heads=2)
    model, tokens = build(config, seed=0).double(), random_tokens(2, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    # The counter knows neither the attention kernel of the CPU nor oneDNN's products in float32.
    # It sees the forward products with weights: a third of all.
    assert 3 * counter.get_total_flops() == pytest.approx(2 * 64 * flops_per_token(config, 0), rel=0.01)


SHAPE = ModelConfig(
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=352,
    vocab_size=2048,
)


@pytest.mark.parametrize("num_recomputed", [0, 3, 4])
@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize(("precision", "margin"), [("fp32", 0.05), ("bf16", 0.12)])
def test_computed_memory_is_what_torch_allocates(precision, margin, accumulates, num_recomputed):
    model, tokens = with_cpu_kernels(build(SHAPE, seed=0)), random_tokens(4, 128, SHAPE.vocab_size)
    model.recompute(num_recomputed)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        for _ in range(2 if accumulates else 1):
            narrow = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
            with narrow:
                loss = model(tokens, tokens)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    parts = memory(SHAPE, 4, 128, "adamw", precision, num_recomputed=num_recomputed)
    measured = highest_bytes(record) + parts["weights"] + parts["optimizer"]
    assert measured == pytest.approx(peak_bytes(parts, accumulates=accumulates), rel=margin)


def test_fp8_copies_take_a_byte_where_bf16_ones_take_two():
    rounded, half = (memory(SHAPE, 4, 128, "adamw", precision, "cuda") for precision in ("fp8", "bf16"))
    assert half.pop("copies") == 2 * rounded.pop("copies") > 0
    assert rounded == half


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_lane_has_gradients_and_a_chunk_of_logits(precision):
    alone, lanes = (memory(SHAPE, 64, 1024, "adamw", precision, num_lanes=n) for n in (1, 2))
    assert lanes.pop("gradients") == 2 * alone.pop("gradients")
    assert lanes.pop("logits") == 2 * alone.pop("logits")
    assert lanes == alone
    # Rows that do not fill a chunk together are not counted twice.
    assert memory(SHAPE, 2, 16, num_lanes=2)["logits"] == memory(SHAPE, 2, 16)["logits"]


def test_optimizer_memory():
    names = ("adamw", "adamw8bit", "adamw4bit", "muon")
    parts = {name: memory(SHAPE, 1, 16, name)["optimizer"] for name in names}
    assert parts["adamw"] == 8 * num_parameters(SHAPE)
    assert parts["adamw8bit"] == pytest.approx(2.04 * num_parameters(SHAPE), rel=0.01)
    assert parts["adamw4bit"] == pytest.approx(1.07 * num_parameters(SHAPE), rel=0.01)
    embedding_and_norms = 2048 * 128 + parameters_by_part(SHAPE)["norms"]
    assert parts["muon"] == 4 * num_parameters(SHAPE) + 4 * embedding_and_norms


def test_as_few_blocks_are_computed_again_as_the_budget_needs():
    everything = activation_bytes(SHAPE, 512, "fp32")
    assert blocks_to_recompute(SHAPE, 512, "fp32", None) == blocks_to_recompute(SHAPE, 512, "fp32", everything) == 0
    assert blocks_to_recompute(SHAPE, 512, "fp32", everything - 1) == 1
    least = activation_bytes(SHAPE, 512, "fp32", 4)
    assert blocks_to_recompute(SHAPE, 512, "fp32", least) == 4
    assert blocks_to_recompute(SHAPE, 512, "fp32", least - 1) is None


def test_the_reference_job_fits_the_cpu_under_a_budget():
    config = load_run_config("llama2-437m", ["train.activation_gb=0.2", "train.micro_batch_size=1"]).config
    assert needed_bytes(config, 1, "fp32", "cpu", accumulates=False) < 5.8e9


def test_counting_needs_no_torch():
    code = (
        "import sys; from packtrain.plan import memory, devices; from packtrain.config.load import load_run_config; "
        "size.memory(load_run_config('llama2-437m').config.model, 1, 1024); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("AMD EPYC", None),
    ],
)
def test_peak_rate_is_known_or_none(name, peak):
    assert peak_flops(name) == peak

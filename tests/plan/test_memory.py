"""Memory computed without torch is what training allocates."""

from contextlib import nullcontext

import pytest
import torch
from tests.model.tiny import random_tokens, with_cpu_kernels
from tests.profiled import highest_bytes
from torch.profiler import ProfilerActivity, profile

from packtrain.config.load import load_run_config
from packtrain.config.model import ModelConfig
from packtrain.model.dropout import row_keys
from packtrain.model.init import build
from packtrain.model.llama import Llama
from packtrain.plan.activations import activation_bytes, blocks_to_recompute
from packtrain.plan.memory import memory, needed_bytes, peak_bytes
from packtrain.plan.parameters import num_parameters, parameters_by_part

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
@pytest.mark.parametrize(("precision", "margin"), [("fp32", 0.05), pytest.param("bf16", 0.12, marks=pytest.mark.slow)])
def test_computed_memory_is_what_torch_allocates(precision, margin, accumulates, num_recomputed):
    assert_computed_is_allocated(precision, margin, accumulates, num_recomputed)


def test_dropout_keeps_a_byte_for_each_number():
    assert_computed_is_allocated("fp32", 0.05, False, 0, dropout=0.1)
    plain, dropped = (activation_bytes(SHAPE, 512, "fp32", 3, has_dropout) for has_dropout in (False, True))
    assert dropped - plain == 512 * 128 * (1 + 2)


def assert_computed_is_allocated(precision, margin, accumulates, num_recomputed, dropout=0.0):
    model, tokens = with_cpu_kernels(build(SHAPE, seed=0)), random_tokens(4, 128, SHAPE.vocab_size)
    model.recompute(num_recomputed)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    drops = {"dropout": dropout, "keys_B2": row_keys(0, 1, range(4))} if dropout else {}

    def step():
        for _ in range(2 if accumulates else 1):
            narrow = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
            with narrow:
                loss = model(tokens, tokens, **drops)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    parts = memory(SHAPE, 4, 128, "adamw", precision, num_recomputed=num_recomputed, has_dropout=dropout > 0)
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
    names = ("adamw", "adamw8bit", "adamw4bit", "muon", "normuon")
    parts = {name: memory(SHAPE, 1, 16, name)["optimizer"] for name in names}
    assert parts["adamw"] == 8 * num_parameters(SHAPE)
    assert parts["adamw8bit"] == pytest.approx(2.04 * num_parameters(SHAPE), rel=0.01)
    assert parts["adamw4bit"] == pytest.approx(1.07 * num_parameters(SHAPE), rel=0.01)
    embedding_and_norms = 2048 * 128 + parameters_by_part(SHAPE)["norms"]
    assert parts["muon"] == 4 * num_parameters(SHAPE) + 4 * embedding_and_norms
    with torch.device("meta"):
        weights = dict(Llama(SHAPE).named_parameters())
    rows = sum(p.shape[0] for name, p in weights.items() if "layers" in name and p.dim() == 2)
    assert parts["normuon"] == parts["muon"] + 4 * rows


def test_only_as_many_blocks_are_recomputed_as_the_budget_needs():
    everything = activation_bytes(SHAPE, 512, "fp32")
    assert blocks_to_recompute(SHAPE, 512, "fp32", None) == blocks_to_recompute(SHAPE, 512, "fp32", everything) == 0
    assert blocks_to_recompute(SHAPE, 512, "fp32", everything - 1) == 1
    least = activation_bytes(SHAPE, 512, "fp32", 4)
    assert blocks_to_recompute(SHAPE, 512, "fp32", least) == 4
    assert blocks_to_recompute(SHAPE, 512, "fp32", least - 1) is None


def test_the_reference_job_fits_the_cpu_under_a_budget():
    config = load_run_config("llama2-437m", ["train.activation_gb=0.2", "train.micro_batch_size=1"]).config
    assert needed_bytes(config, 1, "fp32", "cpu", accumulates=False) < 5.8e9

"""A plan's figures follow from the configuration, fit what they say fits, and agree with the presets' headers."""

from importlib.resources import files

import pytest

from packtrain.config.load import load_run_config
from packtrain.plan.memory import memory, peak_bytes
from packtrain.plan.outlook import compute_plan


def plan(*settings, preset="llama2-437m", **options):
    return compute_plan(load_run_config(preset, settings).config, **options)


def test_figures_of_the_reference_job():
    figures = plan("train.tokens=10_000_000_000", price_per_hour=2.0, gpus=8)
    assert figures["parameters"]["total"] == 437_584_896 == sum(figures["parameters"].values()) / 2
    assert figures["steps"] == 19_073
    assert figures["flops"] == figures["tokens"] * figures["flops_per_token"]
    h100 = next(row for row in figures["devices"] if row["device"] == "H100")
    assert h100["hours"] == pytest.approx(figures["flops"] / (989.4e12 * 0.4 * 8) / 3600)
    assert h100["cost"] == pytest.approx(h100["hours"] * 8 * 2.0)


def test_the_micro_batch_that_fits_does_and_one_more_does_not():
    figures = plan("train.precision=bf16")
    config = load_run_config("llama2-437m").config
    rows = figures["micro_batch_that_fits"]["24 GB"]
    assert rows > 0

    def needed(rows):
        parts = memory(config.model, rows, 1024, "adamw8bit", "bf16", "cuda")
        return peak_bytes(parts, accumulates=True) * 1.1 + 1e9

    assert needed(rows) <= 24e9 < needed(rows + 1)


def test_a_model_that_does_not_fit_one_gpu_fits_eight_that_share_it():
    settings = ["model.hidden_size=4096", "model.intermediate_size=11008", "model.num_attention_heads=32"]
    ways = {way["gpus"]: way for way in plan(*settings, "train.micro_batch_size=1")["sharded"]}
    assert list(ways) == [1, 2, 4, 8]
    assert ways[1]["micro_batch_that_fits"]["40 GB"] == 0 < ways[8]["micro_batch_that_fits"]["40 GB"]
    one, eight = ways[1]["parts_bytes"], ways[8]["parts_bytes"]
    assert all(eight[part] == one[part] // 8 for part in ("weights", "gradients", "optimizer"))
    assert eight["activations"] == one["activations"] and eight["gathered"] > 4 * 32000 * 4096
    assert ways[1]["peak_bytes"] > ways[2]["peak_bytes"] > ways[8]["peak_bytes"]


def test_no_more_gpus_share_the_model_than_a_step_has_rows():
    ways = plan("train.global_batch_tokens=3072", "train.micro_batch_size=2")["sharded"]
    assert [(way["gpus"], way["micro_batch_size"]) for way in ways] == [(1, 2), (2, 1)]


def test_a_model_too_large_for_a_gpu_fits_no_row():
    figures = plan("model.hidden_size=8192", "optim.name=adamw")
    assert figures["micro_batch_that_fits"]["12 GB"] == 0


@pytest.mark.parametrize(
    "preset", ["llama2-15m", "llama2-42m", "llama2-110m", "llama2-437m", "llama2-437m-h16", "llama2-437m-h8"]
)
def test_a_presets_header_gives_the_micro_batches_that_the_plan_computes(preset):
    header = (files("packtrain.config") / "presets" / f"{preset}.toml").read_text()
    fits = plan(preset=preset)["micro_batch_that_fits"]
    said = ", ".join(f"{fits[size]} in {size}" for size in ("12 GB", "24 GB", "40 GB", "80 GB"))
    assert f"# Largest train.micro_batch_size on one GPU (computed): {said}.\n" in header


def test_a_budget_for_activations_shows_in_the_plan():
    budget = ("train.activation_gb=0.2", "train.micro_batch_size=1", "train.precision=fp32")
    assert plan(*budget, "train.compile=false")["memory"]["blocks_computed_again"] == 32
    figures = plan(*budget)
    # Compiled, each block keeps a part.
    memory_of_gpu = figures["memory"]
    assert (memory_of_gpu["kernels"], memory_of_gpu["blocks_computed_again"]) == ("compiled", 0)
    assert memory_of_gpu["is_reduced_by_compiler"] and memory_of_gpu["parts_bytes"]["activations"] == 2e8
    assert (
        figures["this_machine"]["needed_bytes"]
        < 5.8e9
        < plan("train.precision=fp32", "train.micro_batch_size=1")["this_machine"]["needed_bytes"]
    )


def test_the_length_is_an_epoch_of_the_dataset(dataset):
    from packtrain.data.format.shards import open_dataset

    figures = plan(f"data.dataset={dataset}", "train.steps=", "train.global_batch_tokens=2048", preset="demo")
    tokens = open_dataset(dataset).split("train").num_tokens
    assert figures["steps"] == -(-tokens // 2048)
    assert plan()["steps"] is None

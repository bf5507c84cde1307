"""train.micro_batch_size=auto takes what fits by the plan: powers of two, divisors of a rank's rows, with a margin."""

import pytest

from packtrain.config.load import load_run_config
from packtrain.plan.fit import Machine, fit_run
from packtrain.plan.memory import fits
from packtrain.plan.rows import MARGIN, choose_rows, choose_rows_of_ranks

AUTO = "train.micro_batch_size=auto"


def config(*settings, preset="llama2-437m"):
    return load_run_config(preset, [AUTO, *settings]).config


@pytest.mark.parametrize("gigabytes", [12, 16, 24, 40, 80])
def test_the_largest_power_of_two_that_fits_is_taken(gigabytes):
    given, memory = config(), gigabytes * 10**9
    rows = choose_rows(given, 512, memory, "bf16", "cuda")
    assert rows.bit_count() == 1
    room = round(memory * (1 - MARGIN))
    assert fits(given, rows, room, "bf16", "cuda") and not fits(given, 2 * rows, room, "bf16", "cuda")
    assert fit_run(given, Machine("GPU", memory, "bf16")).micro_batch_size == rows


@pytest.mark.parametrize(
    ("rows_per_rank", "expected"),
    [(512, 32), (64, 32), (16, 16), (96, 32), (12, 12), (15, 15), (7, 7), (1, 1), (58, 29), (61, 1)],
)
def test_a_ranks_rows_are_a_multiple(rows_per_rank, expected):
    assert choose_rows(config(), rows_per_rank, 80 * 10**9, "bf16", "cuda") == expected


def test_a_card_that_is_too_small_gets_one_row():
    assert choose_rows(config(), 512, 10**9, "bf16", "cuda") == 1


@pytest.mark.parametrize(("rows_per_rank", "expected"), [(512, 8), (12, 6), (4, 4), (7, 7), (11, 1)])
def test_other_devices_take_the_default(rows_per_rank, expected):
    assert choose_rows(config(), rows_per_rank, 10**12, "fp32", "cpu") == expected


def test_a_number_stays():
    given = load_run_config("llama2-437m", ["train.micro_batch_size=12"]).config
    assert choose_rows(given, 512, 10**9, "bf16", "cuda") == 12 == given.rows_per_pass
    assert config().rows_per_pass == 8 and config("train.global_batch_tokens=4096").rows_per_pass == 4


def test_ranks_share_the_model_if_no_copy_fits():
    # The weights, gradients and states of a copy take 16 bytes a parameter: 7 GB.
    large = "optim.name=adamw"
    alone, shared = (choose_rows_of_ranks(config(large), count, 8 * 10**9, "bf16", "cuda") for count in (1, 8))
    assert alone == 1 and shared >= 2
    assert choose_rows_of_ranks(config(large, "parallel.mode=ddp"), 8, 8 * 10**9, "bf16", "cuda") == 1
    assert choose_rows_of_ranks(config(large, "parallel.mode=fsdp"), 8, 8 * 10**9, "bf16", "cuda") == shared

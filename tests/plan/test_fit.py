"""A run that does not fit a device is told what would, and what it is told does fit."""

import pytest

from packtrain.config.load import load_run_config
from packtrain.plan.fit import Machine, fit_run

SEVEN_BILLION = (
    "model.hidden_size=4096",
    "model.intermediate_size=11008",
    "model.num_attention_heads=32",
    "train.micro_batch_size=1",
)


def fit(gigabytes, count=1, *settings):
    machine = Machine("a GPU", round(gigabytes * 1e9), "bf16", num_devices=count)
    config = load_run_config("llama2-437m", settings).config
    return fit_run(config, machine), config, machine, settings


def applied(found):
    first, _, machine, settings = found
    return fit_run(load_run_config("llama2-437m", [*settings, *first.remedy]).config, machine)


def test_what_fits_has_no_problem():
    found, *_ = fit(24)
    assert found.is_enough and found.problem is None and found.remedy == ()
    assert found.largest_micro_batch == 8, "12 rows fit, which do not divide a step"


@pytest.mark.parametrize(
    ("gigabytes", "count", "settings", "keys"),
    [
        (24, 1, ("train.micro_batch_size=64",), ["train.micro_batch_size"]),
        (60, 8, (*SEVEN_BILLION, "parallel.mode=ddp"), ["parallel.mode", "train.micro_batch_size"]),
        (8.0, 1, (), ["train.micro_batch_size", "train.activation_gb"]),
        (9.5, 1, ("optim.name=adamw",), ["optim.name", "train.micro_batch_size"]),
    ],
)
def test_the_remedy_fits(gigabytes, count, settings, keys):
    found = fit(gigabytes, count, *settings)
    first = found[0]
    assert not first.is_enough
    assert [word.partition("=")[0] for word in first.remedy] == keys
    assert first.problem is not None and first.problem.endswith(", which fits")
    after = applied(found)
    assert after.is_enough and after.problem is None


def test_what_fits_nowhere_says_so():
    found, *_ = fit(10, 2, *SEVEN_BILLION)
    assert not found.is_enough and found.remedy == ()
    assert found.problem is not None and "not even one row fits" in found.problem


def test_auto_takes_shards_if_only_those_fit_as_training_does():
    assert fit(60, 8, *SEVEN_BILLION)[0].mode == "fsdp"
    assert fit(24, 8)[0].mode == "ddp"
    assert fit(24, 8, "parallel.mode=fsdp")[0].mode == "fsdp"


def test_rows_that_do_not_divide_are_a_problem_before_the_run_starts():
    assert "not a multiple of 3 devices; take 2" in (fit(24, 3)[0].problem or "")
    uneven = fit(24, 1, "train.micro_batch_size=6")
    assert uneven[0].is_enough and uneven[0].remedy == ("train.micro_batch_size=4",)
    assert applied(uneven).problem is None


def test_a_budget_that_cannot_be_kept_is_a_problem():
    found = fit(24, 1, "train.activation_gb=0.01")
    assert found[0].demand_bytes is None and "train.activation_gb" in (found[0].problem or "")
    assert applied(found).is_enough

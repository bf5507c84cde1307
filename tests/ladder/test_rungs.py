"""Are the runs of a ladder the preset's family, and do they cost what the budget allows?"""

import pytest

from packtrain.config.load import load_run_config
from packtrain.errors import ConfigError
from packtrain.ladder.budget import parse_budget
from packtrain.ladder.family import choose_sizes, configure, count_flops, list_models
from packtrain.ladder.rungs import Target, choose_rungs, cost
from packtrain.plan.parameters import num_parameters

REFERENCE = load_run_config("llama2-437m").config
TOKENS = 8_700_000_000


def target(config=REFERENCE, tokens=TOKENS):
    return Target(config, num_parameters(config.model), tokens)


def at_100_gflops(config):
    return count_flops(config.model, config.data.seq_len, 1) / 1e11


def test_shapes_keep_the_ratios_of_the_preset():
    model = REFERENCE.model
    small = next(m for m in list_models(model) if m.hidden_size == 256)
    assert (small.num_hidden_layers, small.num_attention_heads, small.head_size) == (8, 8, 32)
    assert (small.intermediate_size, small.vocab_size, small.kv_heads) == (688, 32_000, 8)
    grouped = model.model_copy(update={"num_key_value_heads": 8})
    assert next(m for m in list_models(grouped) if m.hidden_size == 256).kv_heads == 2
    assert all(num_parameters(m) <= num_parameters(model) / 2 for m in list_models(model))


def test_sizes_are_spread_over_a_factor_of_eight():
    counts = [num_parameters(m) for m in choose_sizes(list_models(REFERENCE.model), 20)]
    assert len(counts) == 4
    assert counts[-1] / counts[0] == pytest.approx(8, rel=0.1)
    assert all(1.5 < b / a < 2.7 for a, b in zip(counts, counts[1:], strict=False))


def test_rate_and_batch_follow_the_named_powers():
    model = list_models(REFERENCE.model)[3]
    tokens = 50_000_000
    run = configure(REFERENCE, TOKENS, model, tokens, 65_536)
    size, length = num_parameters(model) / num_parameters(REFERENCE.model), tokens / TOKENS
    assert run.optim.lr == pytest.approx(3e-4 * size**-0.713 * length**0.307)
    assert run.train.global_batch_tokens == round(512 * length**0.571) * 1024
    assert run.train.steps * run.train.global_batch_tokens == pytest.approx(tokens, rel=0.01)
    assert run.rows_per_step % run.train.micro_batch_size == 0
    assert (run.optim.name, run.schedule.name, run.evaluate.every) == ("adamw8bit", "cosine", run.train.steps)


@pytest.mark.parametrize("text", ["30m", "8h", "1e15flops"])
def test_a_ladder_costs_no_more_than_its_budget(text):
    budget = parse_budget(text)
    rungs = choose_rungs(target(), budget, at_100_gflops)
    assert len(rungs) in (9, 12)
    assert cost(rungs, budget) <= budget.amount
    assert min(rung.steps for rung in rungs) >= 50


def test_more_budget_buys_larger_models():
    largest = [choose_rungs(target(), parse_budget(b), at_100_gflops)[-1].parameters for b in ("8h", "2d", "60d")]
    assert largest[0] < largest[1] < largest[2]


def test_a_budget_that_is_too_small_names_one_that_would_do():
    with pytest.raises(ConfigError, match=r"too small.*write --budget (\d+m)") as refusal:
        choose_rungs(target(), parse_budget("5s"), at_100_gflops)
    enough = parse_budget(str(refusal.value).rsplit(" ", 1)[1])
    assert cost(choose_rungs(target(), enough, at_100_gflops), enough) <= enough.amount


def test_a_preset_smaller_than_any_rung_is_refused():
    tiny = load_run_config("demo", ["model.hidden_size=32", "model.num_attention_heads=2"]).config
    with pytest.raises(ConfigError, match=r"has .* parameters, and a ladder needs 3 sizes"):
        choose_rungs(target(tiny, 10**6), parse_budget("30m"), at_100_gflops)


def test_budgets_are_read():
    assert parse_budget("1h30m").amount == 5400
    assert parse_budget("90 min").amount == 5400
    assert parse_budget("2.5e15 FLOPs").is_flops
    for wrong in ("", "30", "-5m", "soon", "0m", "m30", "1e99flops", "nanm"):
        with pytest.raises(ConfigError, match="--budget"):
            parse_budget(wrong)

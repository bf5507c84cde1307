"""Decides which runs a budget buys: how many sizes, how large, and how many tokens each is trained on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from packtrain.config.model import ModelConfig
from packtrain.config.run import RunConfig
from packtrain.errors import ConfigError
from packtrain.ladder.budget import Budget
from packtrain.ladder.family import FEWEST_SIZES, choose_sizes, configure, count_flops, list_models
from packtrain.plan.parameters import num_parameters

LENGTHS = (0.25, 0.5, 1.0)
"""Every size is trained on these shares of the longest run's tokens, each in a run of its own with a whole schedule."""
LENGTH_RULE = (
    "every size on a quarter, a half and all of the same number of tokens: half of the preset's, or ten for each parameter of the "
    "largest size if that is less; but enough for the shortest run to see each token of the vocabulary 50 times on average and to "
    "take 400 steps, and never more than the preset's"
)
_MOST_TOKENS_PER_PARAMETER = 10.0
_MOST_SHARE = 0.5
_FEWEST_STEPS = 50
WANTED_STEPS = 400
"""With fewer, how many steps a run takes counts for more than its size."""
SEEN_OF_EACH_TOKEN = 50
"""With less, a run still learns how frequent each token is: its loss falls faster and faster, as no law of this form does."""
_FEWEST_HELD_OUT = 65_536
# What a kill may cost; a signal costs nothing.
_SECONDS_BETWEEN_SAVES = 60.0

# Seconds of this machine per token, for a run's model and batch.
Rate = Callable[[RunConfig], float]


@dataclass(frozen=True)
class Rung:
    """One run of the ladder, before it is trained."""

    config: RunConfig
    parameters: int
    tokens: int
    flops: float
    seconds: float
    """Of this machine when it is idle."""

    @property
    def steps(self) -> int:
        return self.tokens // self.config.train.global_batch_tokens

    @property
    def name(self) -> str:
        return f"{self.parameters}-parameters-{self.tokens}-tokens"


@dataclass(frozen=True)
class Target:
    """The run that the ladder predicts."""

    config: RunConfig
    parameters: int
    tokens: int

    @property
    def flops(self) -> float:
        return count_flops(self.config.model, self.config.data.seq_len, self.tokens)


def choose_rungs(target: Target, budget: Budget, rate: Rate) -> list[Rung]:
    """The runs with the largest models that the budget buys, smallest first; lengths by LENGTH_RULE.

    If the budget does not buy that for the smallest sizes, they are trained on fewer tokens. `rate` is asked only for the
    sizes that come into question. Raises ConfigError if the budget is too small for any ladder, or the preset for any size.
    """
    models = list_models(target.config.model)
    best: list[Rung] = []
    for top in range(FEWEST_SIZES - 1, len(models)):
        sizes = choose_sizes(models, top)
        longest = min(_MOST_SHARE * target.tokens, _MOST_TOKENS_PER_PARAMETER * num_parameters(sizes[-1]))
        seen = SEEN_OF_EACH_TOKEN * target.config.model.vocab_rows / LENGTHS[0]
        longest = min(max(longest, seen, _least_tokens(target, sizes, WANTED_STEPS)), target.tokens)
        longest = max(longest, _least_tokens(target, sizes, _FEWEST_STEPS))
        if best and _guess_cost(target, budget, sizes, best, longest) > budget.amount:
            break
        rungs = make_rungs(target, sizes, longest, rate)
        if cost(rungs, budget) > budget.amount:
            return best or _shorten(target, budget, sizes, longest, rate)
        best = rungs
    return best


def make_rungs(target: Target, sizes: Sequence[ModelConfig], longest: float, rate: Rate) -> list[Rung]:
    """A run for each size and each of LENGTHS, the longest on about `longest` tokens."""
    config = target.config
    # Validation must not cost more than training; all runs read the same rows.
    held_out = min(config.evaluate.tokens, max(_FEWEST_HELD_OUT, round(longest / 8)))
    rungs = []
    for model in sizes:
        configs = [configure(config, target.tokens, model, round(share * longest), held_out) for share in LENGTHS]
        per_token = rate(configs[-1])
        for run in configs:
            steps = run.train.steps or 0
            tokens = steps * run.train.global_batch_tokens
            # A forward pass is a third of a training step's FLOPs.
            seconds = per_token * (tokens + held_out / 3)
            every = math.ceil(steps * _SECONDS_BETWEEN_SAVES / seconds)
            saved = run.checkpoint.model_copy(update={"every": every if every < steps else 0})
            rungs.append(
                Rung(
                    config=run.model_copy(update={"checkpoint": saved}),
                    parameters=num_parameters(model),
                    tokens=tokens,
                    flops=count_flops(model, config.data.seq_len, tokens),
                    seconds=seconds,
                )
            )
    return rungs


def cost(rungs: Sequence[Rung], budget: Budget) -> float:
    """What the runs take, in the budget's unit."""
    return sum(rung.flops if budget.is_flops else rung.seconds for rung in rungs)


def _least_tokens(target: Target, sizes: Sequence[ModelConfig], steps: int) -> float:
    """Fewest tokens of the longest run with which the shortest run of each size has that many steps."""
    longest = float(target.config.data.seq_len)
    while True:
        shortest = [configure(target.config, target.tokens, model, round(LENGTHS[0] * longest), 1) for model in sizes]
        if min(run.train.steps or 0 for run in shortest) >= steps:
            return longest
        longest *= 1.1


def _guess_cost(
    target: Target, budget: Budget, sizes: Sequence[ModelConfig], before: Sequence[Rung], longest: float
) -> float:
    """What larger sizes take at the least, from the largest size of the ladder `before`; saves measuring hopeless ones."""
    largest, length = before[-1], target.config.data.seq_len
    per_flop = 1.0 if budget.is_flops else 0.7 * largest.seconds / largest.flops
    return per_flop * sum(LENGTHS) * sum(count_flops(model, length, round(longest)) for model in sizes)


def _shorten(target: Target, budget: Budget, sizes: Sequence[ModelConfig], longest: float, rate: Rate) -> list[Rung]:
    """The smallest ladder with as many tokens as the budget buys. Raises ConfigError if those are too few."""
    least = _least_tokens(target, sizes, _FEWEST_STEPS)
    while longest > least:
        longest = max(least, longest * 0.95)
        rungs = make_rungs(target, sizes, longest, rate)
        if cost(rungs, budget) <= budget.amount:
            return rungs
    needed = cost(make_rungs(target, sizes, least, rate), budget)
    write = f"{1.05 * needed:.1e}flops" if budget.is_flops else f"{math.ceil(1.05 * needed / 60)}m"
    raise ConfigError(
        f"--budget {budget.text} is too small: the smallest ladder for this preset takes {budget.describe(needed)} on this "
        f"machine; write --budget {write}"
    )

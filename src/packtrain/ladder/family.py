"""Decides which small models belong to a preset's family, and how each is trained: shape, batch, learning rate, warm-up."""

import math

from packtrain.config.model import ModelConfig
from packtrain.config.run import RunConfig
from packtrain.errors import ConfigError
from packtrain.plan.parameters import flops_per_token, num_parameters

FEWEST_SIZES, MOST_SIZES = 3, 4
SHAPE_RULE = (
    "the preset's ratio of width to depth (two layers or more), of feed-forward width to width and of query heads to key and "
    "value heads, its head width, its tokenizer, its row length"
)
RATE_RULE = (
    "learning rate and batch follow Step Law (Li et al. 2025, arXiv 2503.04715) from the preset's own: the rate as N^-0.713 D^0.307, "
    "the batch as D^0.571, for N parameters and D tokens"
)
# Powers of FLOPs (DeepSeek LLM, arXiv 2401.02954) would give larger models fewer steps on the same tokens, which hides
# in short runs what size gains.
_RATE_POWERS, _BATCH_POWER = (-0.713, 0.307), 0.571
# The smallest model: narrower ones have too few directions for a token.
_LEAST_WIDTH, _LEAST_HEAD, _LEAST_LAYERS = 32, 8, 2
# A rung is at most this share of the preset, so that the ladder predicts something that it has not seen.
_MOST_SHARE = 0.5
# The largest rung over the smallest.
_MOST_SPREAD = 8.0
_MULTIPLE_OF_INNER_WIDTH = 16
# A short run warms up for a longer share of its steps, as a run that is shorter than its warm-up does.
_LEAST_WARMUP = 0.05


def list_models(model: ModelConfig) -> list[ModelConfig]:
    """The models of the family with at most half of the preset's parameters, smallest first.

    Heads are halved in width until there are enough sizes. Raises ConfigError if even then there are too few.
    """
    head = model.head_size
    while True:
        widths = range(math.ceil(_LEAST_WIDTH / head) * head, model.hidden_size, head)
        models = [_shrink(model, width, head) for width in widths]
        models = [small for small in models if num_parameters(small) <= _MOST_SHARE * num_parameters(model)]
        if len(models) >= MOST_SIZES or head % 4 or head // 2 < _LEAST_HEAD:
            break
        head //= 2
    if len(models) < FEWEST_SIZES:
        raise ConfigError(
            f"the model has {num_parameters(model):,} parameters, and a ladder needs {FEWEST_SIZES} sizes of at most half of "
            f"that, {_LEAST_WIDTH} wide or wider, of which its family has {len(models)}; train the model itself with "
            "`packtrain train`, which takes less than a ladder"
        )
    return models


def choose_sizes(models: list[ModelConfig], top: int) -> list[ModelConfig]:
    """Up to four models, smallest first: `models[top]`, and those nearest to equal ratios from it to an eighth of its parameters."""
    counts = [math.log(num_parameters(model)) for model in models]
    lowest = max(counts[0], counts[top] - math.log(_MOST_SPREAD))
    number = min(MOST_SIZES, top + 1)
    chosen = [top]
    for place in range(number - 2, -1, -1):
        wanted = lowest + (counts[top] - lowest) * place / (number - 1)
        # As many smaller models must be left as there are places below this one.
        chosen.append(min(range(place, chosen[-1]), key=lambda index: abs(counts[index] - wanted)))
    return [models[index] for index in reversed(chosen)]


def configure(
    preset: RunConfig, preset_tokens: int, model: ModelConfig, tokens: int, held_out_tokens: int
) -> RunConfig:
    """The run that trains `model` for about `tokens` as the preset would: its optimizer and schedule, scaled by RATE_RULE."""
    length = preset.data.seq_len
    size, share = num_parameters(model) / num_parameters(preset.model), tokens / preset_tokens
    rows = max(1, round(preset.rows_per_step * share**_BATCH_POWER))
    steps = max(1, round(tokens / (rows * length)))
    preset_steps = max(1, preset_tokens // preset.train.global_batch_tokens)
    warm = max(preset.schedule.warmup_steps / preset_steps, _LEAST_WARMUP)
    changed = preset.model_dump() | {"model": model.model_dump()}
    changed["train"] |= {
        "steps": steps,
        "tokens": None,
        "epochs": None,
        "global_batch_tokens": rows * length,
        "micro_batch_size": largest_divisor(rows, preset.rows_per_pass),
    }
    changed["optim"] |= {"lr": preset.optim.lr * size ** _RATE_POWERS[0] * share ** _RATE_POWERS[1]}
    changed["schedule"] |= {"warmup_steps": min(math.ceil(steps * warm), steps - 1)}
    changed["evaluate"] |= {"every": steps, "tokens": held_out_tokens, "prompts": ()}
    changed["checkpoint"] |= {"every": 0, "keep": 1, "keep_every": 0}
    return RunConfig.model_validate(changed)


def count_flops(model: ModelConfig, seq_len: int, tokens: int) -> float:
    """FLOPs of training on that many tokens."""
    return flops_per_token(model, seq_len) * tokens


def largest_divisor(count: int, most: int) -> int:
    """The largest number up to `most` that `count` is a multiple of."""
    return next(size for size in range(min(count, most), 0, -1) if count % size == 0)


def _shrink(model: ModelConfig, width: int, head: int) -> ModelConfig:
    share = width / model.hidden_size
    heads = width // head if model.head_dim is None else max(1, round(model.num_attention_heads * share))
    wanted = max(1, heads * model.kv_heads // model.num_attention_heads)
    inner = round(model.intermediate_size * share / _MULTIPLE_OF_INNER_WIDTH) * _MULTIPLE_OF_INNER_WIDTH
    changed = model.model_dump() | {
        "hidden_size": width,
        "num_hidden_layers": max(_LEAST_LAYERS, math.floor(model.num_hidden_layers * share + 0.5)),
        "num_attention_heads": heads,
        "num_key_value_heads": largest_divisor(heads, wanted),
        "head_dim": None if model.head_dim is None else head,
        "intermediate_size": max(_MULTIPLE_OF_INNER_WIDTH, inner),
    }
    return ModelConfig.model_validate(changed)

"""Decides the options of `packtrain generate`: one for each setting of generation, with its default."""

from pathlib import Path
from typing import Annotated, Any

import typer

from packtrain.errors import ConfigError
from packtrain.generate.settings import BEYOND, GenerateSettings

DEFAULT = GenerateSettings()


def _option(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=text)


Prompt = Annotated[
    list[str] | None,
    _option(
        "--prompt",
        "TEXT",
        "Text to continue; - reads it from standard input. Can be given again. Without it: a conversation.",
    ),
]
Prompts = Annotated[
    Path | None,
    _option(
        "--prompts", "FILE", "A file with a prompt on each line, or a .jsonl file with strings or {'prompt': TEXT}."
    ),
]
MaxTokens = Annotated[int, _option("--max-tokens", "N", "Generate N tokens at most.")]
MinTokens = Annotated[int, _option("--min-tokens", "N", "Do not end before N tokens.")]
Temperature = Annotated[
    float, _option("--temperature", "T", "Divide the logits by T; 0 always takes the likeliest token.")
]
TopK = Annotated[int, _option("--top-k", "K", "Sample from the K likeliest tokens; 0 for all.")]
TopP = Annotated[float, _option("--top-p", "P", "Sample from the likeliest tokens whose probabilities add up to P.")]
MinP = Annotated[
    float, _option("--min-p", "P", "Sample from tokens at least P times as likely as the likeliest; 0 for all.")
]
TypicalP = Annotated[
    float,
    _option("--typical-p", "P", "Sample from the most typical tokens whose probabilities add up to P; 1 for all."),
]
RepetitionPenalty = Annotated[
    float, _option("--repetition-penalty", "X", "Above 1, tokens that the text already has become less likely.")
]
FrequencyPenalty = Annotated[
    float, _option("--frequency-penalty", "X", "Take X from a token's logit each time the continuation has it.")
]
PresencePenalty = Annotated[
    float, _option("--presence-penalty", "X", "Take X from the logit of each token that the continuation has.")
]
NoRepeatNgram = Annotated[int, _option("--no-repeat-ngram", "N", "No sequence of N tokens comes twice; 0 allows it.")]
LogitBias = Annotated[
    list[str] | None,
    _option("--logit-bias", "ID=X", "Add X, from -100 to 100, to the logit of this token id. Can be given again."),
]
Seed = Annotated[int | None, _option("--seed", "N", "The same seed gives the same text.")]
Stop = Annotated[list[str] | None, _option("--stop", "TEXT", "Stop at this string. Can be given again.")]
StopTokenId = Annotated[
    list[int] | None, _option("--stop-token-id", "ID", "Stop at this token id. Can be given again.")
]
Count = Annotated[int, _option("--n", "N", "Continue each prompt N times; the i-th time with the seed plus i.")]
BeyondOption = Annotated[
    str | None,
    _option(
        "--beyond",
        "|".join(BEYOND),
        "Past the model's context: refuse and end; read the last part of a longer prompt; or also slide on. "
        "Default: error, and in a conversation truncate.",
    ),
]
Logprobs = Annotated[
    int | None, _option("--logprobs", "N", "With --json: each token's log-probability and N alternatives.")
]
WeightsOption = Annotated[
    str,
    _option(
        "--weights", "float32|bfloat16|int8", "Hold the weights in fewer bits, on the CPU; what that costs is measured."
    ),
]


def read_bias(words: list[str] | None) -> dict[int, float]:
    """The biases of `ID=X` words. Raises ConfigError for a word of another form."""
    bias = {}
    for word in words or ():
        token_id, _, value = word.partition("=")
        try:
            bias[int(token_id)] = float(value)
        except ValueError:
            raise ConfigError(f"--logit-bias {word} is not ID=X; write for example --logit-bias 13=-100") from None
    return bias

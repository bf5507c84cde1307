"""Decides the settings of generation and their defaults; imports nothing heavy, so that `--help` can show them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from packtrain.errors import ConfigError

Beyond = Literal["error", "truncate", "slide"]
BEYOND: tuple[Beyond, ...] = ("error", "truncate", "slide")
MOST_ALTERNATIVES = 20


@dataclass(frozen=True)
class GenerateSettings:
    """How a prompt is continued. Filters apply in Hugging Face's order: the bias, the penalties and bans, then temperature,
    top-k, top-p, min-p and typical-p.

    max_tokens           tokens to generate at most
    temperature          divides the logits; 0 always takes the likeliest token (greedy)
    top_k                keep the k likeliest tokens; 0 keeps all
    top_p                keep the fewest likeliest tokens whose probability sums to p (arXiv 1904.09751); 1 keeps all
    min_p                keep tokens at least this share as likely as the likeliest (arXiv 2407.01082); 0 keeps all
    repetition_penalty   makes tokens of the text so far less likely (CTRL, arXiv 1909.05858, section 4.1); 1 for none
    seed                 the same seed gives the same text; None draws one
    stop                 strings that end the text; they are not part of it
    typical_p            keep the tokens nearest to the expected surprise whose probability sums to p (arXiv 2202.00666)
    frequency_penalty    taken from a token's logit each time that the continuation already has it (OpenAI)
    presence_penalty     taken once from the logit of each token that the continuation already has (OpenAI)
    no_repeat_ngram      no sequence of this many tokens comes twice; 0 allows it
    logit_bias           added to the logits of these token ids; -100 bans a token, 100 forces it
    min_tokens           the text does not end before this many tokens
    stop_token_ids       ids that end the text, as the end-of-text token does
    n                    how many continuations of each prompt; the i-th has the seed plus i
    beyond               what happens past the model's context. error: a longer prompt is refused, and the text ends where the
                         context is full. truncate: of a longer prompt, the last part is read. slide: also, when the context
                         is full, its last half is read again and the text continues
    logprobs             report each token's log-probability and those of this many alternatives; None for neither

    Raises ConfigError for a value outside its range.
    """

    max_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    beyond: Beyond = "error"
    logprobs: int | None = None

    def __post_init__(self) -> None:
        penalty = "a number from -2 to 2, for example 0.5"
        needs = {
            "max_tokens": (self.max_tokens >= 1, "a whole number of at least 1"),
            "temperature": (0.0 <= self.temperature < float("inf"), "a number of at least 0 (greedy), for example 0.8"),
            "top_k": (self.top_k >= 0, "a whole number of at least 1, or 0 to keep all"),
            "top_p": (0.0 < self.top_p <= 1.0, "a number above 0 and up to 1, for example 0.95"),
            "min_p": (0.0 <= self.min_p <= 1.0, "a number from 0 to 1, for example 0.05"),
            "repetition_penalty": (0.0 < self.repetition_penalty < float("inf"), "a number above 0, for example 1.1"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "a whole number of at least 0"),
            "stop": ("" not in self.stop, "strings of at least one character"),
            "typical_p": (0.0 < self.typical_p <= 1.0, "a number above 0 and up to 1, for example 0.95"),
            "frequency_penalty": (-2.0 <= self.frequency_penalty <= 2.0, penalty),
            "presence_penalty": (-2.0 <= self.presence_penalty <= 2.0, penalty),
            "no_repeat_ngram": (self.no_repeat_ngram >= 0, "a whole number of at least 1, or 0 to allow it"),
            "logit_bias": (_is_bias(self.logit_bias), "numbers from -100 to 100 by token id, for example {13: -100}"),
            "min_tokens": (0 <= self.min_tokens <= self.max_tokens, "a whole number from 0 to max_tokens"),
            "stop_token_ids": (all(i >= 0 for i in self.stop_token_ids), "token ids of at least 0"),
            "n": (1 <= self.n <= 128, "a whole number from 1 to 128"),
            "beyond": (self.beyond in BEYOND, f"one of {', '.join(BEYOND)}"),
            "logprobs": (
                self.logprobs is None or 0 <= self.logprobs <= MOST_ALTERNATIVES,
                f"a whole number from 0 to {MOST_ALTERNATIVES}, or None",
            ),
        }
        for name, (fits, need) in needs.items():
            if not fits:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; give {need}")


def _is_bias(bias: Mapping[int, float]) -> bool:
    return all(i >= 0 and isfinite(value) and -100 <= value <= 100 for i, value in bias.items())

"""Decides the settings of generation and their defaults; imports nothing heavy, so that `--help` can show them."""

from dataclasses import dataclass

from packtrain.errors import ConfigError


@dataclass(frozen=True)
class GenerateSettings:
    """How a prompt is continued. The filters apply in the order penalty, temperature, top-k, top-p, min-p.

    max_tokens           tokens to generate at most
    temperature          divides the logits; 0 always takes the likeliest token (greedy)
    top_k                keep the k likeliest tokens; 0 keeps all
    top_p                keep the fewest likeliest tokens whose probability sums to p (arXiv 1904.09751); 1 keeps all
    min_p                keep tokens at least this share as likely as the likeliest (arXiv 2407.01082); 0 keeps all
    repetition_penalty   makes tokens of the text so far less likely (CTRL, arXiv 1909.05858, section 4.1); 1 for none
    seed                 the same seed gives the same text; None draws one
    stop                 strings that end the text; they are not part of it

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

    def __post_init__(self) -> None:
        needs = {
            "max_tokens": (self.max_tokens >= 1, "a whole number of at least 1"),
            "temperature": (0.0 <= self.temperature < float("inf"), "a number of at least 0 (greedy), for example 0.8"),
            "top_k": (self.top_k >= 0, "a whole number of at least 1, or 0 to keep all"),
            "top_p": (0.0 < self.top_p <= 1.0, "a number above 0 and up to 1, for example 0.95"),
            "min_p": (0.0 <= self.min_p <= 1.0, "a number from 0 to 1, for example 0.05"),
            "repetition_penalty": (0.0 < self.repetition_penalty < float("inf"), "a number above 0, for example 1.1"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "a whole number of at least 0"),
            "stop": ("" not in self.stop, "strings of at least one character"),
        }
        for name, (fits, need) in needs.items():
            if not fits:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; give {need}")

"""Decides which token comes next, from logits: pure functions, applied in Hugging Face's order.

Shapes: V vocabulary. A token that is filtered out has the logit -inf.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from packtrain.generate.settings import GenerateSettings


def choose(logits_V: Tensor, history: Sequence[int], settings: GenerateSettings, generator: torch.Generator) -> int:
    """The next token after `history` (the prompt and its continuation), drawn with `generator` unless temperature is 0."""
    penalized_V = penalize_repetition(logits_V, history, settings.repetition_penalty)
    if settings.temperature == 0.0:
        return int(penalized_V.argmax())
    kept_V = penalized_V / settings.temperature
    kept_V = keep_top_k(kept_V, settings.top_k)
    kept_V = keep_top_p(kept_V, settings.top_p)
    kept_V = keep_min_p(kept_V, settings.min_p)
    return int(torch.multinomial(kept_V.softmax(-1), 1, generator=generator))


def penalize_repetition(logits_V: Tensor, history: Sequence[int], penalty: float) -> Tensor:
    """Logits of the tokens in `history` made less likely: divided by `penalty` if positive, else multiplied.

    CTRL (arXiv 1909.05858, section 4.1) only divides. Negative logits are multiplied, as is common practice, because
    division would make their tokens likelier.
    """
    if penalty == 1.0 or not history:
        return logits_V
    seen = torch.tensor(sorted(set(history)), device=logits_V.device)
    picked = logits_V[seen]
    return logits_V.index_put((seen,), torch.where(picked > 0, picked / penalty, picked * penalty))


def keep_top_k(logits_V: Tensor, k: int) -> Tensor:
    """Only the `k` likeliest tokens, and those as likely as the k-th. `k` of 0 keeps all."""
    if k == 0 or k >= logits_V.shape[-1]:
        return logits_V
    smallest = logits_V.topk(k).values[-1]
    return logits_V.masked_fill(logits_V < smallest, -torch.inf)


def keep_top_p(logits_V: Tensor, p: float) -> Tensor:
    """Only the fewest likeliest tokens whose probabilities sum to at least `p` (nucleus, arXiv 1904.09751, eq. 2)."""
    if p >= 1.0:
        return logits_V
    probabilities_V = logits_V.softmax(-1)
    # Sorting 32,000 logits takes a quarter of the time of a small model's pass, and the few likeliest nearly always reach p.
    likeliest, order = probabilities_V.topk(min(1024, len(logits_V)))
    before = likeliest.cumsum(-1) - likeliest
    if before[-1] < p:
        likeliest, order = probabilities_V.sort(descending=True)
        before = likeliest.cumsum(-1) - likeliest
    kept = order[before < p]
    return torch.full_like(logits_V, -torch.inf).index_copy(0, kept, logits_V[kept])


def keep_min_p(logits_V: Tensor, p: float) -> Tensor:
    """Only tokens whose probability is at least `p` times that of the likeliest (arXiv 2407.01082)."""
    if p == 0.0:
        return logits_V
    probabilities_V = logits_V.softmax(-1)
    return logits_V.masked_fill(probabilities_V < p * probabilities_V.max(), -torch.inf)

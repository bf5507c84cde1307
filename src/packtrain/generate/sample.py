"""Decides which token comes next, from logits: pure functions, applied in Hugging Face's order.

Shapes: V vocabulary. A token that is filtered out has the logit -inf.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from packtrain.generate.settings import GenerateSettings


def choose(
    logits_V: Tensor,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    settings: GenerateSettings,
    generator: torch.Generator,
    end_ids: Sequence[int] = (),
) -> int:
    """The next token after `prompt_ids` and its continuation `token_ids`, drawn with `generator` unless temperature is 0.

    `end_ids` end the text, and are not chosen before `settings.min_tokens`.
    """
    penalized_V = penalize(logits_V, prompt_ids, token_ids, settings, end_ids)
    if settings.temperature == 0.0:
        return int(penalized_V.argmax())
    kept_V = penalized_V / settings.temperature
    kept_V = keep_top_k(kept_V, settings.top_k)
    kept_V = keep_top_p(kept_V, settings.top_p)
    kept_V = keep_min_p(kept_V, settings.min_p)
    kept_V = keep_typical(kept_V, settings.typical_p)
    return int(torch.multinomial(kept_V.softmax(-1), 1, generator=generator))


def penalize(
    logits_V: Tensor,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    settings: GenerateSettings,
    end_ids: Sequence[int] = (),
) -> Tensor:
    """Logits after everything that makes single tokens less or more likely, whatever the others are."""
    logits_V = add_bias(logits_V, settings.logit_bias)
    if settings.repetition_penalty != 1.0:
        logits_V = penalize_repetition(logits_V, [*prompt_ids, *token_ids], settings.repetition_penalty)
    logits_V = penalize_frequency(logits_V, token_ids, settings.frequency_penalty, settings.presence_penalty)
    banned: list[int] = []
    if settings.no_repeat_ngram:
        banned += repeats([*prompt_ids, *token_ids], settings.no_repeat_ngram)
    if len(token_ids) < settings.min_tokens:
        banned += end_ids
    if not banned:
        return logits_V
    banned_V = logits_V.index_fill(0, torch.tensor(banned), -torch.inf)
    # If nothing is left to choose, a ban is broken: a text has to continue.
    return banned_V if bool(banned_V.isfinite().any()) else logits_V


def add_bias(logits_V: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Logits with `bias` added to its tokens. Ids outside the vocabulary have no effect."""
    known = {token_id: value for token_id, value in bias.items() if token_id < len(logits_V)}
    if not known:
        return logits_V
    return logits_V.index_add(0, torch.tensor(list(known)), torch.tensor(list(known.values()), dtype=logits_V.dtype))


def penalize_frequency(logits_V: Tensor, token_ids: Sequence[int], frequency: float, presence: float) -> Tensor:
    """Logits less `frequency` times the count of each token in `token_ids`, and less `presence` if it is there at all.

    The formula of OpenAI's API reference. As in vLLM, the prompt does not count.
    """
    if not token_ids or frequency == presence == 0.0:
        return logits_V
    counts = Counter(token_ids)
    taken = torch.tensor([-frequency * count - presence for count in counts.values()], dtype=logits_V.dtype)
    return logits_V.index_add(0, torch.tensor(list(counts)), taken)


def repeats(ids: Sequence[int], length: int) -> list[int]:
    """The ids that would make the end of `ids` a sequence of `length` that is already there."""
    if len(ids) < length:
        return []
    end = list(ids[len(ids) - length + 1 :])
    return sorted({ids[i + length - 1] for i in range(len(ids) - length + 1) if list(ids[i : i + length - 1]) == end})


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


def keep_typical(logits_V: Tensor, p: float) -> Tensor:
    """Only the tokens whose surprise is nearest to the expected one, until their probabilities sum to `p`.

    Locally typical sampling (arXiv 2202.00666, section 4).
    """
    if p >= 1.0:
        return logits_V
    log_p_V = logits_V.log_softmax(-1)
    p_V = log_p_V.exp()
    entropy = -(log_p_V * p_V).nansum()
    order = (-log_p_V - entropy).abs().argsort(stable=True)
    ordered = p_V[order].cumsum(-1)
    last = int((ordered < p).sum())
    kept = order[: min(last, len(order) - 1) + 1]
    return torch.full_like(logits_V, -torch.inf).index_copy(0, kept, logits_V[kept])

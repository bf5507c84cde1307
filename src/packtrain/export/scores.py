"""Decides which scores make a sentencepiece reader merge as a tokenizer's list of merges does: llama.cpp and run.c read scores."""

from packtrain.data.tokens.tokenizer import Tokenizer


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The merges of a BPE in order; older files write a pair as one string."""
    pairs = (tokenizer.spec.get("model") or {}).get("merges") or []
    split = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in pairs)
    return [(left, right) for left, right in split]


def score_tokens(tokenizer: Tokenizer) -> list[float]:
    """A score for each id, float[vocab_size]: a token that is merged earlier has a higher one. What is not merged has 0.

    Such a reader joins the neighbours whose joined text has the highest score, wherever they were cut.
    """
    scores, ids = [0.0] * tokenizer.vocab_size, tokenizer.raw.get_vocab(with_added_tokens=True)
    order = -1.0
    for left, right in merges_of(tokenizer):
        token = ids[left + right]
        if scores[token] == 0.0:
            scores[token] = order
            order -= 1.0
    return scores


def find_unlisted_merge(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """Two tokens that this tokenizer never merges, although their joined text is a token; None if there are none.

    A reader that merges by scores would join them. sentencepiece's own vocabularies list every such pair.
    """
    vocabulary = (tokenizer.spec.get("model") or {}).get("vocab") or {}
    special = {token["content"] for token in tokenizer.added_tokens}
    listed = set(merges_of(tokenizer))
    joined = {left + right for left, right in listed}
    for token in vocabulary:
        if token in special or token not in joined:
            continue
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair not in listed and all(part in vocabulary and part not in special for part in pair):
                return pair
    return None

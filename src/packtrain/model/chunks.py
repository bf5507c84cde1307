"""Decides how many of the loss's logits exist at once; needs no torch, so that memory can be planned without it."""

# CPU: 128 MB in float32, one to two percent faster a step than 64 MB, as measured. Elsewhere: large enough that the
# products outweigh adding to the weight's gradient, which happens once per chunk.
_CHUNK_LOGITS = {"cpu": 2**25}
_CHUNK_LOGITS_ELSEWHERE = 2**26

WIDE_ROWS = 32
"""Rows of 16-bit logits that the loss widens to float32 at a time on the CPU: few enough to stay in its caches."""


def chunk_rows(vocab_size: int, device: str) -> int:
    """Tokens in a chunk: those whose logits exist at once."""
    return max(1, _CHUNK_LOGITS.get(device, _CHUNK_LOGITS_ELSEWHERE) // vocab_size)

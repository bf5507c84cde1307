"""Decides how many of the loss's logits exist at once; needs no torch, so that memory can be planned without it."""

WIDE_ROWS = 32
"""Rows of 16-bit logits that the loss widens to float32 at a time on the CPU: few enough to stay in its caches."""


def chunk_rows(vocab_size: int, device: str) -> int:
    """Tokens in a chunk: those whose logits exist at once."""
    if device == "cpu":
        # 128 MB in float32, one to two percent faster a step than 64 MB, as measured.
        return max(1, 2**25 // vocab_size)
    # Large enough that the products outweigh adding to the weight's gradient, which happens once per chunk. A power of two,
    # so that it divides the tokens of most micro-batches: a smaller last chunk would be compiled separately.
    return 2 ** max(0, (2**26 // vocab_size).bit_length() - 1)

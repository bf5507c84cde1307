"""Decides what a run's samples continue if it names no prompts: the openings of a few held-out documents, always the same."""

from packtrain.data.feed.datasets import RunDatasets
from packtrain.data.tokens.tokenizer import Tokenizer

_MOST_PROMPTS = 3
# More are not read of a document, and no more of its characters are shown.
_MOST_TOKENS, _MOST_CHARS = 32, 40


def choose_prompts(datasets: RunDatasets, tokenizer: Tokenizer, seq_len: int) -> tuple[str, ...]:
    """Openings of up to three validation documents, from the beginning, the middle and the end of the split.

    Each is the beginning of a document's first line: at most half of the document and of `seq_len` tokens, and whole words if
    it has any. Empty without a validation split.
    """
    held_out = [split for split in (part.dataset.split("validation") for part in datasets.parts) if split.num_tokens]
    found: dict[str, None] = {}
    for split in held_out[:_MOST_PROMPTS]:
        for at in range(_MOST_PROMPTS):
            # Not the ends of all documents, of which there may be millions.
            shard = at * len(split.shards) // _MOST_PROMPTS
            ends = split.shard_ends(shard)
            number = at * len(ends) // _MOST_PROMPTS
            begin = sum(before.tokens for before in split.shards[:shard])
            start, end = begin + (int(ends[number - 1]) if number else 0), begin + int(ends[number])
            ids = split.read(start, min(end, start + min(_MOST_TOKENS, max(2, seq_len // 2)))).tolist()
            prompt = _cut_opening(tokenizer.decode(ids), is_whole=end - start <= len(ids))
            if prompt and len(tokenizer.encode(prompt)) + 1 < seq_len:
                found[prompt] = None
    return tuple(found)[:_MOST_PROMPTS]


def _cut_opening(text: str, *, is_whole: bool) -> str:
    # Half of a character is decoded as this sign.
    text = text.rstrip("\ufffd").strip()
    most = min(_MOST_CHARS, max(1, len(text) // 2)) if is_whole else _MOST_CHARS
    line = text.partition("\n")[0]
    if len(line) <= most:
        return line.strip()
    words, space, _ = line[: most + 1].rpartition(" ")
    return (words if space and words.strip() else line[:most]).strip()

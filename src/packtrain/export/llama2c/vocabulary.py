"""Decides what tokenizer.bin has in it: for each id a score and its text, from which run.c encodes and decodes."""

import struct
from pathlib import Path

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.export.llama2c.numbering import Numbering, bytes_of
from packtrain.export.scores import score_tokens


def write_vocabulary(tokenizer: Tokenizer, numbering: Numbering, path: Path) -> None:
    """Writes the longest length, then score, length and text of each row of the embedding."""
    tokens = {index: token for token, index in tokenizer.raw.get_vocab(with_added_tokens=True).items()}
    added, scores = {token["id"] for token in tokenizer.added_tokens}, score_tokens(tokenizer)
    entries: list[tuple[float, bytes]] = []
    for new, old in enumerate(numbering.old_ids):
        if old in (tokenizer.bos_id, tokenizer.eos_id):
            # As llama2.c's own tokenizers have them: on a line of their own.
            text = f"\n{tokens[old]}\n".encode()
        elif old in tokens:
            text = tokens[old].encode() if old in added else bytes_of(tokenizer, tokens[old])
        else:
            # run.c does not take an empty text.
            text = f"<unused {new}>".encode()
        entries.append((scores[old] if old < len(scores) else 0.0, text))
    with path.open("wb") as file:
        file.write(struct.pack("<I", max(len(text) for _, text in entries)))
        for score, text in entries:
            file.write(struct.pack("<fI", score, len(text)) + text)

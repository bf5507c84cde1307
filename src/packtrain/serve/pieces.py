"""Decides how a single token is shown: its text and its bytes, which decoding it alone would not give."""

from functools import lru_cache

from tokenizers import pre_tokenizers

from packtrain.data.tokens.tokenizer import Tokenizer

_SPACE = "▁"


class TokenTable:
    """The bytes and the text of each id of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {token["id"]: str(token["content"]) for token in tokenizer.added_tokens}
        self.longest = max(1, int(tokenizer.token_bytes().max()))
        """Bytes that one token stands for at most."""
        self.bytes_of = lru_cache(maxsize=1 << 16)(self._bytes_of)

    def text_of(self, token_id: int) -> str:
        """The token's text; `bytes:\\xe2\\x82` for a part of a character, as OpenAI writes it."""
        data = self.bytes_of(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._tokenizer.raw.id_to_token(token_id)
        if piece is None:
            return b""
        if self._tokenizer.kind == "byte-level":
            if all(character in _BYTE_OF for character in piece):
                return bytes(_BYTE_OF[character] for character in piece)
            return piece.encode()
        if piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6:
            return bytes([int(piece[3:5], 16)])
        if self._tokenizer.kind == "sentencepiece":
            return piece.replace(_SPACE, " ").encode()
        return self._tokenizer.decode([token_id]).encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The byte of each character of GPT-2's byte-level alphabet: printable bytes stand for themselves, others follow U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    table = {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
    assert table.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return table


_BYTE_OF = _byte_level_alphabet()

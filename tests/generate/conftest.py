"""Small tokenizers of the two kinds that generation has to get right."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer

TEXT = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps.",
    "def main():\n    return [x for x in range(10)]\n",
    "Zürich, naïve café — “quotes” … 北京 東京 한국 🙂 👩‍👩‍👧",
    "a  b   c\td\n\n\ne",
]


def save(raw: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    folder.mkdir()
    raw.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def make_byte_level(folder: Path, vocab_size: int = 400) -> Tokenizer:
    """A byte-level BPE with <s> and </s>, trained on TEXT."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT, trainer)
    return save(raw, folder)


def make_llama_like(folder: Path) -> Tokenizer:
    """A BPE like Llama 2's: a space before the text, ▁ for spaces, single bytes for everything else."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", *"abcdefghijklmnopqrstuvwxyzT.,()é", "▁t", "▁a", "he", "▁T", "▁the", "▁▁"]
    vocab = {piece: i for i, piece in enumerate(pieces + words)}
    merges = [("▁", "t"), ("▁", "a"), ("h", "e"), ("▁", "T"), ("▁t", "he"), ("▁", "▁")]
    raw = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    return save(raw, folder)


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_byte_level(tmp_path_factory.mktemp("tokenizers") / "byte-level")


@pytest.fixture(scope="session")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_llama_like(tmp_path_factory.mktemp("tokenizers") / "llama-like")


@pytest.fixture(params=["byte_level", "llama_like"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)

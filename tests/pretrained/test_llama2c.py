"""Decides whether files of llama2.c, its own and a trained one, are read as its run.c reads them, and others are refused."""

import struct

import pytest
import torch
from torch.nn import functional as F

from packtrain.errors import ModelError, TokenizerError
from packtrain.pretrained.files import load_model
from packtrain.pretrained.open import open_model, read_files
from packtrain.pretrained.parity import measure_parity
from tests.corpora import SHARED
from tests.pretrained.written import write_llama2c

TRAINED = SHARED / "yardsticks" / "llama2c" / "model5000.bin"
LLAMA2 = SHARED / "llama2-tokenizer"


@pytest.mark.parametrize(("version", "is_tied"), [(0, True), (0, False), (1, False), (1, True), (2, False)])
def test_logits_are_those_of_the_model_and_of_run_c(make_folder, tmp_path, version, is_tied):
    folder = make_folder(tie_word_embeddings=is_tied, rms_norm_eps=1e-5)
    files = read_files(write_llama2c(folder, tmp_path / "model.bin", version))
    assert files.config.kv_heads == 2 and files.config.tie_word_embeddings == is_tied
    tokens_BT = torch.arange(60).reshape(1, 60) * 7 % 325
    with torch.no_grad():
        ours, source = load_model(files)(tokens_BT), open_model(folder).model(tokens_BT)
    # int8 in groups of eight, dequantised.
    torch.testing.assert_close(ours, source, atol=0.5 if version == 2 else 2e-5, rtol=1e-4)
    found = measure_parity(files)
    assert found.max_difference < 2e-5 and "run.c" in found.reference
    path = tmp_path / "model.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"its header makes .* bytes, and it has"):
        read_files(path)


def write_bin(path, pieces):
    data = struct.pack("<i", 9)
    for text, score in pieces:
        data += struct.pack("<fi", score, len(text.encode())) + text.encode()
    path.write_bytes(data)


def test_the_tokenizer_beside_it_is_found_by_its_size(make_folder, tmp_path):
    texts = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{n:02X}>" for n in range(256)), " ", "a", "b", "ab", " ab"]
    pieces = [(text, -float(n)) for n, text in enumerate(texts)]
    pieces += [(f"x{n}", -1e6 - n) for n in range(325 - len(pieces))]
    path = write_llama2c(make_folder(), tmp_path / "model.bin")
    (tmp_path / "hf").rename(tmp_path.parent / f"{tmp_path.name}-hf")
    with pytest.raises(TokenizerError, match=r"has no tokenizer for model.bin; put its tokenizer.model"):
        open_model(path)
    write_bin(tmp_path / "tokenizer.bin", pieces[:-1])
    with pytest.raises(TokenizerError, match=r"tokenizer.bin: it was cut short"):
        open_model(path)
    write_bin(tmp_path / "tokenizer.bin", [*pieces, ("more", 0.0)])
    with pytest.raises(TokenizerError, match="it has more tokens than the model"):
        open_model(path)
    write_bin(tmp_path / "tokenizer.bin", pieces)
    opened = open_model(path)
    tokenizer = opened.tokenizer
    assert (tokenizer.bos_token, tokenizer.bos_id, tokenizer.eos_id, opened.add_bos) == ("<s>", 1, 2, True)
    assert [texts[i] for i in tokenizer.encode("ab ab€")] == [" ab", " ab", "<0xE2>", "<0x82>", "<0xAC>"]
    assert tokenizer.decode(tokenizer.encode("ab  ab\n€")) == "ab  ab\n€"
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<i", 9) + struct.pack("<fi", 0.0, -5) * 325)
    with pytest.raises(TokenizerError, match="cut short"):
        open_model(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"short", "has 5 bytes, too few"),
        (struct.pack("<7i", 1 << 30, 1, 1, 1, 1, 1, 1) + b"0" * 300, "header has dim 1073741824"),
        (struct.pack("<7i", 32, 48, 1 << 23, 4, 2, 325, 64) + b"0" * 300, "it is not a file of llama2.c"),
        (struct.pack("<7i", 32, 48, 2, 5, 2, 325, 64) + b"0" * 300, "header has 5 heads and dim 32"),
        (struct.pack("<7i", 32, 48, 2, 4, -2, 325, 64) + b"0" * 300, "header has num_kv_heads -2"),
        (struct.pack("<Ii", 0x616B3432, 9) + b"0" * 300, "version 9, and packtrain knows legacy, 1 and 2"),
        (struct.pack("<Ii7iB", 0x616B3432, 2, 32, 48, 2, 4, 2, 325, 64, 1) + b"\0" * 300, "a group size of 0"),
        (b"PK\x03\x04" + b"0" * 300, "it is a pickle, which can run any code"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, content, sentence):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=sentence):
        read_files(path)


@pytest.mark.skipif(not TRAINED.exists(), reason="needs the trained file of the yardsticks")
@pytest.mark.slow
def test_a_trained_file_tells_a_story_at_about_the_loss_that_was_published():
    opened = open_model(TRAINED)
    assert measure_parity(read_files(TRAINED)).max_difference < 1e-4
    greedy = [1]
    with torch.no_grad():
        for _ in range(60):
            greedy.append(int(opened.model(torch.tensor([greedy]))[0, -1].argmax()))
        text = "He wanted to play with the ball, but it was too big. His mom saw that he was sad and gave him a hug."
        ids = torch.tensor([[1, *opened.tokenizer.encode(text)]])
        loss = F.cross_entropy(opened.model(ids)[0, :-1], ids[0, 1:])
    assert opened.tokenizer.decode(greedy).startswith("Once upon a time, there was a little girl named Lily. She l")
    # Published: 0.7366 nats a character on held-out stories. These sentences were made up here, and begin nowhere.
    assert 0.5 < float(loss) < 1.0


@pytest.mark.skipif(not LLAMA2.exists(), reason="needs Llama-2's tokenizer")
@pytest.mark.slow
def test_a_sentencepiece_model_gives_the_ids_of_its_own_tokenizer_json(tmp_path):
    from packtrain.data.tokens.tokenizer import load_tokenizer
    from packtrain.pretrained.llama2c_tokenizer import read_tokenizer_beside
    from packtrain.pretrained.vocabulary import STRINGS, find_difference

    (tmp_path / "tokenizer.model").write_bytes((LLAMA2 / "tokenizer.model").read_bytes())
    ours, theirs = read_tokenizer_beside(tmp_path / "model.bin", 32_000), load_tokenizer(LLAMA2)
    assert find_difference(ours, theirs) is None
    assert all(ours.encode(text) == theirs.encode(text) for text in STRINGS)
    with pytest.raises(TokenizerError, match="it has 32000 tokens, and the model 325"):
        read_tokenizer_beside(tmp_path / "model.bin", 325)


@pytest.mark.skipif(not TRAINED.exists(), reason="needs the sentencepiece model of the yardsticks")
def test_a_folder_with_a_sentencepiece_model_alone_is_read(make_folder):
    # As a folder of Llama 2 was.
    folder = make_folder(vocab_size=105)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes((TRAINED.parent / "tok105.model").read_bytes())
    opened = open_model(folder)
    assert opened.add_bos and opened.tokenizer.decode(opened.tokenizer.encode("Once upon")) == "Once upon"
    assert opened.tokenizer.hash == open_model(TRAINED).tokenizer.hash
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": false}')
    assert not open_model(folder).add_bos
    (folder / "tokenizer.model").write_bytes(b"\xff" * 99)
    with pytest.raises(TokenizerError, match=r"tokenizer.model cannot be read"):
        open_model(folder)

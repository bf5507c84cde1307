"""Decides whether a GGUF is read as llama.cpp and the gguf library read it, and what it cannot be is refused in a sentence."""

import struct

import numpy as np
import pytest
import torch

from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.errors import ModelError, TokenizerError
from packtrain.pretrained import llama_cpp
from packtrain.pretrained.gguf import read_file
from packtrain.pretrained.open import open_model, read_files, read_files_to_train
from packtrain.pretrained.parity import measure_parity
from packtrain.pretrained.vocabulary import STRINGS, find_difference
from tests.pretrained.test_huggingface import LLAMA3
from tests.pretrained.written import add_byte_level, write_gguf

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, "F32"),
        ({"tie_word_embeddings": True}, "F16"),
        ({"head_dim": 12, "num_key_value_heads": 1, "rope_parameters": LLAMA3 | {"rope_theta": 500.0}}, "BF16"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, "F32"),
        ({"qwen3": True, "head_dim": 16, "tie_word_embeddings": True}, "F32"),
    ],
    ids=["F32", "tied F16", "llama3 BF16", "linear", "qwen3"],
)
def test_weights_and_shape_are_those_of_the_model_it_was_written_from(make_folder, tmp_path, settings, dtype):
    folder = make_folder(**settings)
    path = write_gguf(folder, tmp_path / "model.gguf", dtype)
    ours, source = read_files(path), read_files(folder)
    free = {"initializer_range", "rope_scaling"}
    assert ours.config.model_dump(exclude=free) == source.config.model_dump(exclude=free) | {
        "head_dim": source.config.head_size,
        "rms_norm_eps": pytest.approx(source.config.rms_norm_eps),
    }
    assert (ours.config.rope_scaling is None) == (source.config.rope_scaling is None)
    if ours.config.rope_scaling is not None:
        scaling = source.config.rope_scaling.model_dump()
        assert ours.config.rope_scaling.model_dump() == {
            key: value if isinstance(value, str) else pytest.approx(value) for key, value in scaling.items()
        }
    for name, _ in open_model(path).model.named_parameters():
        rounded = source.read(name) if "norm" in name else source.read(name).to(ours.read_stored(name).dtype).float()
        assert torch.equal(ours.read(name), rounded), name
    opened, own = open_model(path), load_tokenizer(folder)
    assert opened.context_length == 64 and opened.add_bos and find_difference(opened.tokenizer, own) is None
    assert all(opened.tokenizer.encode(text) == own.encode(text) for text in STRINGS)


def test_tensors_are_those_of_the_library(make_folder, tmp_path):
    path = write_gguf(make_folder(), tmp_path / "model.gguf", "BF16")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    ours = read_file(path)
    theirs = found["blk.1.ffn_down.weight"]
    values = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
    assert np.array_equal(ours.read("model.layers.1.mlp.down_proj.weight").numpy(), values)


def test_q8_0_is_read_as_the_library_reads_it_and_not_trained(make_folder, tmp_path):
    path = write_gguf(make_folder(), tmp_path / "model.gguf", "Q8_0")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    model = open_model(path).model
    for theirs, ours in (
        ("blk.1.ffn_up", "model.layers.1.mlp.up_proj"),
        ("blk.0.ffn_down", "model.layers.0.mlp.down_proj"),
    ):
        stored = found[f"{theirs}.weight"]
        values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        assert np.array_equal(model.get_parameter(f"{ours}.weight").detach().numpy(), values), theirs
    # Its rows are 48 long, so they have no whole blocks.
    assert (
        found["blk.1.ffn_up.weight"].tensor_type.name == "Q8_0"
        and found["blk.0.ffn_down.weight"].tensor_type.name == "F32"
    )
    with pytest.raises(
        ModelError, match=r"cannot be trained further: its weights were rounded to Q8_0.*F32, F16 or BF16"
    ):
        read_files_to_train(path)


@pytest.mark.skipif(llama_cpp.find_version() is None, reason="xllamacpp is not installed")
@pytest.mark.parametrize(("dtype", "most"), [("F32", 1e-5), ("BF16", 1e-1)])
def test_log_probabilities_are_those_of_llama_cpp(make_folder, tmp_path, dtype, most):
    rope = LLAMA3 | {"rope_theta": 500.0}
    found = measure_parity(read_files(write_gguf(make_folder(rope_parameters=rope), tmp_path / "model.gguf", dtype)))
    assert found.reference.startswith("llama.cpp") and found.compared == "log-probabilities"
    assert found.max_difference < most


def test_a_rotation_of_another_pairing_is_noticed(make_folder, tmp_path, monkeypatch):
    path = write_gguf(make_folder(), tmp_path / "model.gguf")
    monkeypatch.setattr(llama_cpp, "find_version", lambda: None)
    assert measure_parity(read_files(path)).reference.startswith("transformers")
    monkeypatch.setattr("packtrain.pretrained.gguf.separate_rows", lambda rows, _: rows)
    with pytest.raises(ModelError, match="packtrain's logits differ from those of transformers"):
        measure_parity(read_files(path))


def test_other_kinds_are_refused(make_folder, tmp_path):
    folder, path = make_folder(), tmp_path / "model.gguf"

    def refuses(sentence, error=ModelError, **options):
        write_gguf(folder, path, **options)
        with pytest.raises(error, match=sentence):
            open_model(path)

    refuses("token_embd.weight is stored as Q4_0, and only F32, F16, BF16 and Q8_0", dtype="Q4_0")
    refuses("its expert_count is not that", add=lambda w: w.add_expert_count(4))
    refuses("stretched by yarn", add=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN))
    refuses("it has biases", add=lambda w: w.add_tensor("blk.0.attn_q.bias", np.zeros(32, np.float32)))
    refuses("llama.block_count is None", skip=("block_count",))
    refuses("blk.0.attn_k|self_attn.k_proj.weight is missing", skip=("blk.0.attn_k",))
    refuses(
        "rope_freqs.weight is not llama3's",
        add=lambda w: w.add_tensor("rope_freqs.weight", np.array([1, 3, 1, 2], np.float32)),
    )
    refuses("has no vocabulary", TokenizerError, tokenizer=False)
    own = load_tokenizer(folder)
    refuses(
        "cuts text in the way 'strange'",
        TokenizerError,
        tokenizer=False,
        add=lambda w: add_byte_level(w, own, 325, pre="strange"),
    )
    nan = np.full(32, np.nan, np.float32)
    refuses(
        "norm.weight has values that are infinite",
        skip=("output_norm",),
        add=lambda w: w.add_tensor("output_norm.weight", nan),
    )


def header(num_tensors=0, num_values=0, body=b""):
    return struct.pack("<4sIQQ", b"GGUF", 3, num_tensors, num_values) + body


STRING = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"GGUF", "header is damaged"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "not a little-endian GGUF of version 2 or 3"),
        (header(num_values=1 << 60), "values and tensors follow, and the file ends before"),
        (header(num_tensors=1 << 63), "follow, and the file ends before"),
        # Arrays of a quintillion zeros, strings and arrays.
        (header(num_values=1, body=STRING + struct.pack("<IIQ", 9, 0, 1 << 60) + b"0" * 99), "values follow, and"),
        (header(num_values=1, body=STRING + struct.pack("<IIQ", 9, 8, 1 << 60) + b"0" * 99), "values follow, and"),
        (header(num_values=1, body=STRING + struct.pack("<IIQ", 9, 9, 1 << 60) + b"0" * 99), "values follow, and"),
        (header(num_values=1, body=struct.pack("<Q", 1 << 62) + b"0" * 99), "characters follow, and"),
        (header(num_values=1, body=STRING + struct.pack("<I", 99) + b"0" * 99), "unknown type 99"),
        (header(num_values=2, body=2 * (STRING + struct.pack("<IB", 0, 1)) + b"0" * 99), "it has k twice"),
        (
            header(num_tensors=1, body=STRING + struct.pack("<IQQQQIQ", 4, *[1 << 40] * 4, 0, 0)),
            "behind the file's end",
        ),
        (header(num_tensors=1, body=STRING + struct.pack("<I", 1 << 31) + b"0" * 99), "has 2147483648 dimensions"),
        (header(num_tensors=1, body=STRING + struct.pack("<IQIQ", 1, 33, 8, 0) + b"0" * 99), "in blocks of 32 values"),
        (header(num_tensors=1, body=STRING + struct.pack("<IIQ", 0, 8, 0) + b"0" * 99), "in blocks of 32 values"),
        (
            header(num_tensors=1, body=STRING + struct.pack("<IQIQ", 1, 4, 0, 1 << 63) + b"0" * 99),
            "behind the file's end",
        ),
        (header(num_values=1, body=struct.pack("<Q", 1) + b"\xff" + b"0" * 99), "header is damaged"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path, content, sentence):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=sentence):
        open_model(path)


def test_a_file_that_was_cut_anywhere_is_refused(make_folder, tmp_path):
    path = write_gguf(make_folder(), tmp_path / "model.gguf")
    whole = path.read_bytes()
    for length in (*range(8, len(whole), len(whole) // 40), len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            open_model(path)
    path.write_bytes(whole)
    # A folder with one is that one.
    assert open_model(tmp_path).name == tmp_path.name
    (tmp_path / "other.gguf").write_bytes(whole)
    with pytest.raises(ModelError, match="has 2 GGUF files"):
        open_model(tmp_path)


def test_a_sentencepiece_vocabulary_gives_the_ids_of_its_merges(make_folder, tmp_path):
    letters = ["▁", "a", "b", "c", "é"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *letters, "ab", "▁ab", "ca", "bc"]
    scores = [0.0] * 259 + [-50.0] * 5 + [-2.0, -3.0, -4.0, -1.0]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 9]

    def add(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list(pieces + [f"[PAD{n}]" for n in range(len(pieces), 325)])
        writer.add_token_scores(scores + [0.0] * (325 - len(scores)))
        writer.add_token_types(kinds + [5] * (325 - len(kinds)))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_space_prefix(True)

    opened = open_model(write_gguf(make_folder(), tmp_path / "model.gguf", tokenizer=False, add=add))
    tokenizer = opened.tokenizer
    assert opened.add_bos and tokenizer.vocab_size == len(pieces) and tokenizer.kind == "sentencepiece"

    def cut(text):
        return [pieces[i] for i in tokenizer.encode(text)]

    # bc has the highest score, so ab is not merged where it overlaps.
    assert cut("abc ab") == ["▁", "a", "bc", "▁ab"] and cut("é€") == ["▁", "é", "<0xE2>", "<0x82>", "<0xAC>"]
    for text in ("abc  ab", " a", "€ 🙂\n", "<s>"):
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text

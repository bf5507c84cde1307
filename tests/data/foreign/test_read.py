"""Files of other programs are read as those programs wrote them. Each golden file was made by the program itself."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packtrain.config.recipe import SourceConfig
from packtrain.data.foreign import megatron as megatron_files
from packtrain.data.foreign import streams
from packtrain.data.foreign.read import TokenFormat, open_ids
from packtrain.data.foreign.streams import EotPosition, IdStream
from packtrain.errors import SourceError
from packtrain.prepare.sources.imported import token_files

# megatron-core 0.16.1, IndexedDatasetBuilder(dtype=uint16): add_document([1..6], lengths [2, 4]); add_item([7, 8]);
# end_document(). The second, of int32: add_document([1, 70000], lengths [2]).
MEGATRON = (
    "01000200030004000500060007000800",
    "4d4d4944494458000001000000000000000803000000000000000300000000000000020000000400000002000000000000000000000004000000"
    "000000000c00000000000000000000000000000002000000000000000300000000000000",
)
MEGATRON_INT32 = (
    "0100000070110100",
    "4d4d494449445800000100000000000000040100000000000000020000000000000002000000000000000000000000000000000000000100000000"
    "000000",
)
# datatrove 0.10.1, TokenizedFile(token_size=2 and 4, save_final_metadata=True): write([1, 2, 3]); write([4]); write([5, 65535]).
DATATROVE = (
    "01000200030004000500ffff",
    "030000000000000004000000000000000600000000000000",
    "677074327c320a360a362e30302054",
)
DATATROVE_WIDE = ("0100000002000000030000000400000005000000ffff0000", DATATROVE[1], "677074327c340a360a362e30302054")


def documents(stream: IdStream) -> list[list[int]]:
    return [ids.tolist() for ids in stream.documents(0, 0)]


def megatron(folder: Path, golden: tuple[str, str] = MEGATRON) -> Path:
    (folder / "a.bin").write_bytes(bytes.fromhex(golden[0]))
    (folder / "a.idx").write_bytes(bytes.fromhex(golden[1]))
    return folder / "a.idx"


def datatrove(folder: Path, golden: tuple[str, str, str] = DATATROVE) -> Path:
    for ending, content in zip(("", ".index", ".metadata"), golden, strict=True):
        (folder / f"a.ds{ending}").write_bytes(bytes.fromhex(content))
    return folder / "a.ds"


def llmc(path: Path, ids: list[int], dtype: str = "<u2", magic: int = 20240520, version: int = 1) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    path.write_bytes(header.tobytes() + np.array(ids, dtype).tobytes())
    return path


def opened(kind: TokenFormat, path: Path | str, eot: int | None = None, position: EotPosition = "end") -> IdStream:
    return open_ids(kind, str(path), "a file", eot, position)


def test_megatron(tmp_path: Path) -> None:
    assert documents(opened("megatron", megatron(tmp_path))) == [[1, 2, 3, 4, 5, 6], [7, 8]]
    assert documents(opened("megatron", megatron(tmp_path, MEGATRON_INT32))) == [[1, 70000]]


def test_datatrove(tmp_path: Path) -> None:
    for golden in (DATATROVE, DATATROVE_WIDE):
        assert documents(opened("datatrove", datatrove(tmp_path, golden))) == [[1, 2, 3], [4], [5, 65535]]
        (tmp_path / "a.ds.metadata").unlink()
        assert documents(opened("datatrove", tmp_path / "a.ds")) == [[1, 2, 3], [4], [5, 65535]]
    (tmp_path / "a.ds.metadata").write_text("a|b|4\n6\n")
    (tmp_path / "a.ds.index").unlink()
    assert documents(opened("datatrove", tmp_path / "a.ds", eot=4)) == [[1, 2, 3, 4], [5, 65535]]


def test_llmc(tmp_path: Path) -> None:
    narrow = llmc(tmp_path / "a.bin", [9, 1, 2, 9, 3])
    assert documents(opened("llmc", narrow, eot=9, position="begin")) == [[9, 1, 2], [9, 3]]
    wide = llmc(tmp_path / "b.bin", [9, 128000, 2], "<u4", 20240801, 7)
    assert documents(opened("llmc", wide, eot=9, position="begin")) == [[9, 128000, 2]]
    both = f"{narrow}\n{llmc(tmp_path / 'c.bin', [4, 9, 5])}"
    assert documents(opened("llmc", both, eot=9, position="begin")) == [[9, 1, 2], [9, 3, 4], [9, 5]]


def test_nanogpt(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(np.array([1, 2, 0, 3, 0, 0, 4], "<u2").tobytes())
    assert documents(opened("nanogpt", path, eot=0)) == [[1, 2, 0], [3, 0], [0], [4]]
    assert documents(opened("nanogpt", path)) == [[1, 2, 0, 3, 0, 0, 4]]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=12),
    st.sampled_from(["end", "begin", "both"]),
    st.integers(1, 5),
)
def test_documents_are_told_apart_whatever_the_size_of_a_read(
    tmp_path: Path, texts: list[list[int]], position: EotPosition, chunk: int
) -> None:
    wanted = [[0] * (position != "end") + text + [0] * (position != "begin") for text in texts]
    path = tmp_path / "a.bin"
    path.write_bytes(np.array([i for ids in wanted for i in ids], "<u2").tobytes())
    stream = opened("nanogpt", path, eot=0, position=position)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "READ_IDS", chunk)
        assert documents(stream) == wanted
        start = 0
        for row, ids in enumerate(wanted):
            assert [d.tolist() for d in stream.documents(row, start)] == wanted[row:]
            start += len(ids)
    assert stream.guess_position(position) == position


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=9), st.integers(1, 7))
def test_a_megatron_document_is_all_its_sequences(tmp_path: Path, lengths: list[list[int]], chunk: int) -> None:
    sequences = [length for document in lengths for length in document]
    ids = np.arange(sum(sequences), dtype="<u2")
    borders = np.cumsum([0, *(len(document) for document in lengths)])
    ends = np.cumsum([sum(document) for document in lengths])
    header = np.array((1, 8, len(sequences), len(borders)), megatron_files.MEGATRON_HEADER)
    pointers = 2 * (np.cumsum(sequences) - sequences)
    parts = (np.array(sequences, "<i4"), pointers.astype("<i8"), borders.astype("<i8"))
    content = megatron_files.MEGATRON_MAGIC + header.tobytes() + b"".join(part.tobytes() for part in parts)
    (tmp_path / "a.idx").write_bytes(content)
    (tmp_path / "a.bin").write_bytes(ids.tobytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "READ_IDS", chunk)
        patch.setattr(megatron_files, "READ_IDS", chunk)
        patch.setattr(streams, "_READ_DOCUMENTS", 2)
        found = documents(opened("megatron", tmp_path / "a.idx"))
    assert found == [part.tolist() for part in np.split(ids, ends)[:-1]]


def cut(path: Path, size: int = 1) -> None:
    path.write_bytes(path.read_bytes()[:-size])


def put(path: Path, at: int, value: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + value + data[at + len(value) :])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: cut(f / "a.bin"), "not a whole number of ids of 2 bytes"),
        (lambda f: cut(f / "a.bin", 2), "accounts for 8 ids, but its .bin has 7"),
        (lambda f: cut(f / "a.idx"), "but 3 sequences and 3 document borders take 94"),
        (lambda f: (f / "a.idx").write_bytes(b"MMIDIDX\0\0\1"), "is cut short"),
        (lambda f: (f / "a.idx").write_bytes(b"rubbish"), "is not a Megatron index"),
        (lambda f: put(f / "a.idx", 9, b"\2"), "has version 2"),
        (lambda f: put(f / "a.idx", 17, b"\7"), "id type 7; only version 1 with integer ids can be read"),
        (lambda f: put(f / "a.idx", 18, b"\xff" * 8), "18446744073709551615 sequences"),
        (
            lambda f: put(f / "a.idx", 34, b"\xff" * 4),
            "sequence 0 does not begin where|sequence 1 does not begin where",
        ),
        (lambda f: put(f / "a.idx", 54, b"\3"), "sequence 1 does not begin where the one before it ends"),
        (lambda f: put(f / "a.idx", 78, b"\x7f"), "is before the one before it, or beyond the 3 sequences"),
        (lambda f: put(f / "a.idx", 86, b"\2"), "its documents end at number 2"),
    ],
)
def test_a_damaged_megatron_index_is_refused(tmp_path: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    path = megatron(tmp_path)
    spoil(tmp_path)
    with pytest.raises(SourceError, match=sentence):
        opened("megatron", path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: cut(f / "a.ds"), "has 11 bytes, but its index ends at 6 ids of 2 bytes"),
        (lambda f: cut(f / "a.ds.index"), "which is not a whole number of document ends"),
        (lambda f: put(f / "a.ds.index", 16, b"\xff" * 7), "they do not belong together"),
        (lambda f: put(f / "a.ds.index", 0, b"\5"), "ends before the one before it"),
        (lambda f: (f / "a.ds.metadata").write_text("gpt2"), "the first line of .* does not say whether"),
        (lambda f: [(f / "a.ds.metadata").unlink(), (f / "a.ds.index").unlink()], "which say how wide its ids are"),
    ],
)
def test_a_damaged_datatrove_file_is_refused(tmp_path: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    path = datatrove(tmp_path)
    spoil(tmp_path)
    with pytest.raises(SourceError, match=sentence):
        opened("datatrove", path)


def test_damaged_plain_files_are_refused(tmp_path: Path) -> None:
    path = llmc(tmp_path / "a.bin", [1, 2, 3])
    with pytest.raises(SourceError, match=r"begins with the header of an llm\.c file"):
        opened("nanogpt", path)
    cut(path, 2)
    with pytest.raises(SourceError, match="has 2 ids, but its header says 3"):
        opened("llmc", path)
    cut(path)
    with pytest.raises(SourceError, match="not a whole number of ids"):
        opened("llmc", path)
    path.write_bytes(b"\1\2\3")
    with pytest.raises(SourceError, match=r"is not an llm\.c data file"):
        opened("llmc", path)
    with pytest.raises(SourceError, match="not a whole number of ids of 2 bytes"):
        opened("nanogpt", path)
    with pytest.raises(SourceError, match="different widths"):
        opened("llmc", f"{llmc(path, [1])}\n{llmc(tmp_path / 'b.bin', [1], '<u4', 20240801, 7)}")


def test_a_document_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(np.ones(100, "<u2").tobytes())
    monkeypatch.setattr(streams, "READ_IDS", 10)
    monkeypatch.setattr(streams, "MAX_DOCUMENT_TOKENS", 50)
    with pytest.raises(SourceError, match="give the id that stands between documents with --eot ID"):
        documents(opened("nanogpt", path, eot=0))


def spoil(draw: random.Random, data: bytes) -> bytes:
    """The data with a byte, a number or a piece changed, as a bad disk, a cut transfer or a wrong program leaves it."""
    at = draw.randrange(len(data) + 1)
    number = draw.choice([2**63 - 1, -(2**63), -1, 2**40, 2**31, 0]).to_bytes(8, "little", signed=True)
    return draw.choice(
        [
            data[:at],
            data[:at] + data[at + 1 :],
            data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :],
            data[:at] + number + data[at + 8 :],
            data[:at] + bytes(8) + data[at:],
            b"",
        ]
    )


@pytest.mark.parametrize("kind", ["nanogpt", "llmc", "megatron", "datatrove"])
def test_spoiled_files_give_ids_or_a_sentence(tmp_path: Path, kind: TokenFormat) -> None:
    ids = np.array([1, 2, 9, 3, 9, 9, 4], "<u2")
    path = tmp_path / "a.bin"
    if kind == "nanogpt":
        path.write_bytes(ids.tobytes())
    else:
        path = {"llmc": lambda: llmc(path, ids.tolist()), "megatron": lambda: megatron(tmp_path)}.get(
            kind, lambda: datatrove(tmp_path)
        )()
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    draw = random.Random(kind)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(300):
        for file, data in whole.items():
            file.write_bytes(data)
        file = draw.choice(sorted(whole))
        file.write_bytes(spoil(draw, whole[file]))
        try:
            stream = opened(kind, path, eot=9, position=draw.choice(["end", "begin", "both"]))
            assert sum(map(len, documents(stream))) == stream.tokens
            outcomes["read"] += 1
        except SourceError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


def test_what_is_beside_an_index_must_be_a_file(tmp_path: Path) -> None:
    # A pipe would never end.
    source = SourceConfig(kind="megatron", path=str(megatron(tmp_path)))
    (tmp_path / "a.bin").unlink()
    os.mkfifo(tmp_path / "a.bin")
    with pytest.raises(SourceError, match=r"has no a\.bin beside it"):
        token_files(source)
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(SourceError, match=r"has no a\.bin beside it"):
        token_files(source)
    path = datatrove(tmp_path)
    (tmp_path / "a.ds.index").unlink()
    (tmp_path / "a.ds.metadata").unlink()
    os.mkfifo(tmp_path / "a.ds.index")
    with pytest.raises(SourceError, match=r"neither .* nor .*metadata beside it"):
        opened("datatrove", path)

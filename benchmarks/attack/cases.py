"""Decides which inputs of the kinds that went wrong in the field are prepared, and what is right for each."""

import gzip
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from benchmarks.attack.outcome import READ_RIGHT, Trial, run_command
from benchmarks.attack.tokenizers import TOKENIZERS

_NO_VALIDATION = "split.validation_fraction=0"


class Case(NamedTuple):
    """Files of a source, the settings to prepare it with, and the texts that must be in the dataset, in any order."""

    kind: str
    name: str
    files: Mapping[str, bytes]
    settings: Sequence[str]
    texts: Sequence[str]
    may_refuse: bool = False
    """Whether a refusal is right as well."""


def lines_of(*texts: str, key: str = "text") -> bytes:
    return b"".join(json.dumps({key: text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def table_of(**columns: Any) -> bytes:
    out = BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def _compressed() -> list[Case]:
    zst = zstandard.ZstdCompressor().compress
    two, one = lines_of("first", "second"), lines_of("third")
    names = {
        "A.JSONL.GZ": gzip.compress(two),
        "A.Jsonl.Zst": zst(two),
        "A.JSONL": two,
        "a.NDJSON.gz": gzip.compress(two),
        "a.jsonl.gz": gzip.compress(two[:12]) + gzip.compress(two[12:]),
        "a.jsonl": gzip.compress(two),
        "b.jsonl.gz": two,
        "c.jsonl": zst(two),
        "d.jsonl.bz2": b"BZh91AY&SY" + bytes(40),
    }
    return [
        Case("compression and endings", name, {name: data, "z.jsonl": one}, ["source.kind=jsonl"], _three(), True)
        for name, data in names.items()
    ]


def _three() -> list[str]:
    return ["first", "second", "third"]


def _arrays() -> list[Case]:
    texts = [f"document {n}" for n in range(400)]
    rows = [{"text": text} for text in texts]
    forms = {
        "one line": json.dumps(rows),
        "indented": json.dumps(rows, indent=2),
        "in an object": json.dumps({"data": rows}),
        "of strings": json.dumps(texts),
        "no line ends": "".join(json.dumps(row) for row in rows),
        "one object over many lines": json.dumps(rows[0], indent=4),
    }
    cases = []
    for name, text in forms.items():
        found = ["small", *(texts[:1] if name.startswith("one object") else texts)]
        files = {"big.json": text.encode(), "small.jsonl": lines_of("small")}
        cases.append(Case("JSON that is not lines", name, files, ["source.kind=jsonl"], found, True))
    return cases


def _delimited() -> list[Case]:
    tsv = b'text\tid\nFirst\t1\n"Second\t2\nThird\t3\nFourth"\t4\n'
    plain = ["First", '"Second', "Third", 'Fourth"']
    csv = ["source.kind=csv"]
    return [
        Case("quotes and delimiters", "tsv with single quotes", {"a.tsv": tsv}, csv, plain, True),
        Case(
            "quotes and delimiters",
            "the same, never closed",
            {"a.tsv": tsv[:-5]},
            csv,
            [*plain[:3], "Fourth"][:4],
            True,
        ),
        Case("quotes and delimiters", "quoting=none", {"a.tsv": tsv}, [*csv, "source.quoting=none"], plain),
        Case("quotes and delimiters", "semicolons", {"a.csv": b"id;text\n1;one, two\n"}, csv, ["one, two"], True),
        Case(
            "quotes and delimiters",
            "semicolons named",
            {"a.csv": b"id;text\n1;one, two\n"},
            [*csv, "source.delimiter=;"],
            ["one, two"],
        ),
        Case(
            "quotes and delimiters",
            "pipes named",
            {"a.csv": b"id|text\n1|one\n2|two\n"},
            [*csv, "source.delimiter=|"],
            ["one", "two"],
        ),
        Case(
            "quotes and delimiters",
            "tabs in a csv",
            {"a.csv": b"id\ttext\n1\tone\n"},
            [*csv, "source.delimiter=\\t"],
            ["one"],
        ),
        Case(
            "quotes and delimiters", "a BOM before the header", {"a.csv": b"\xef\xbb\xbftext,id\none,1\n"}, csv, ["one"]
        ),
    ]


def _null_columns() -> list[Case]:
    some = table_of(text=["one", "two"])
    shards = {
        "all rows null": table_of(text=pa.nulls(3)),
        "no rows": table_of(text=pa.nulls(0)),
        "null in a struct": table_of(text=pa.array([None, None], pa.string())),
        "binary": table_of(text=pa.array([], pa.binary())),
    }
    settings = ["source.kind=parquet", "source.max_bad_fraction=1"]
    return [
        Case("parquet columns of null", name, {"a.parquet": some, "b.parquet": data}, settings, ["one", "two"])
        for name, data in shards.items()
    ]


def _nested() -> list[Case]:
    inner = pa.StructArray.from_arrays([pa.array(["one", None])], ["text"])
    json_line = b'{"content": {"text": "one"}, "meta": 1}\n'
    at, jsonl, parquet = "source.text_column=content.text", "source.kind=jsonl", "source.kind=parquet"
    forms: list[tuple[str, str, bytes, list[str]]] = [
        ("jsonl", "a.jsonl", json_line, [jsonl, at]),
        ("a key with a dot", "a.jsonl", lines_of("one", key="content.text"), [jsonl, at]),
        ("three levels", "a.jsonl", b'{"a":{"b":{"c":"one"}}}\n', [jsonl, "source.text_column=a.b.c"]),
        ("parquet", "a.parquet", table_of(content=inner), [parquet, at, "source.max_bad_fraction=1"]),
        ("parquet, a name with a dot", "a.parquet", table_of(**{"content.text": ["one"]}), [parquet, at]),
        ("not named", "a.jsonl", json_line, [jsonl]),
    ]
    return [
        Case("nested text", name, {file: data}, settings, ["one"], may_refuse=name == "not named")
        for name, file, data, settings in forms
    ]


def _control_characters() -> list[Case]:
    between = {
        "form feed": "\x0c",
        "vertical tab": "\x0b",
        "file separator": "\x1c",
        "next line": "\x85",
        "group separator": "\x1d",
    }
    cases = [
        Case(
            "words kept apart",
            name,
            {"a.txt": f"page one{mark}page two".encode()},
            ["source.kind=text"],
            ["page one page two"],
        )
        for name, mark in between.items()
    ]
    return [case._replace(settings=[*case.settings, "compare=words"]) for case in cases]


def _cards() -> list[Case]:
    files = {name: table_of(text=[name]) for name in ("web/train.parquet", "web/test.parquet", "books/train.parquet")}
    train = ["web/train.parquet", "books/train.parquet"]
    default = "configs:\n- config_name: default\n  "
    web = ["web/train.parquet"]
    cards: dict[str, tuple[str, list[str], bool]] = {
        "data_dir": (default + "data_dir: web\n", web, False),
        "data_dir and data_files": (default + "data_dir: web\n  data_files: train.parquet\n", web, False),
        "a mapping of splits": (default + "data_files:\n    train: web/train.parquet\n", web, True),
        "patterns that match nothing": (default + "data_files: nothing/*.parquet\n", [], True),
        "not a mapping": ("configs: default\n", train, True),
        "not YAML": ("configs: [unclosed\n", train, True),
        "a colon in a value": ("pretty_name: My: dataset: x\n", train, True),
        "a number as a name": ("configs:\n- config_name: 3\n  data_files: web/train.parquet\n", web, True),
    }
    return [
        Case("hub cards", name, {**files, "README.md": f"---\n{card}---\n".encode()}, ["source.kind=hf"], texts, may)
        for name, (card, texts, may) in cards.items()
    ]


def _tokenizers() -> list[Case]:
    text = "café naïve 日本 😀 Plain  words\n\tand tabs "
    return [
        Case(
            "tokenizers",
            name,
            {"a.jsonl": lines_of(text)},
            ["source.kind=jsonl", f"tokenizer={name}"],
            [text.strip()],
            True,
        )
        for name in TOKENIZERS
    ]


CASES: tuple[Case, ...] = tuple(
    case
    for make in (_compressed, _arrays, _delimited, _null_columns, _nested, _control_characters, _cards, _tokenizers)
    for case in make()
)


def attack_case(number: int) -> Trial:
    """Prepare one of the cases, and compare the texts in the dataset with those that must be in it."""
    case = CASES[number]
    with tempfile.TemporaryDirectory(prefix="packtrain-attack-") as work:
        folder = Path(work)
        for name, data in case.files.items():
            path = folder / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        settings = [word for word in case.settings if not word.startswith(("compare=", "tokenizer="))]
        chosen = next((word.partition("=")[2] for word in case.settings if word.startswith("tokenizer=")), "byte-level")
        TOKENIZERS[chosen](folder / "tokenizer")
        settings += ["tokenizer.vocab_size=", "tokenizer.name=tokenizer"]
        words = (
            "prepare",
            "stdlib",
            "source.path=source",
            *settings,
            _NO_VALIDATION,
            "prepare.workers=1",
            "--out",
            "ds",
            "--json",
        )
        ended = run_command(words, folder)
        in_words = "compare=words" in case.settings
        outcome = ended.judge(lambda: _same_texts(folder / "ds", case.texts, in_words))
    is_right = outcome == READ_RIGHT or case.may_refuse
    detail = "" if is_right else f"{case.kind}, {case.name}: exit {ended.code} {ended.err[-600:]}"
    return Trial(f"case: {case.kind}", case.name, outcome, detail)


def _same_texts(dataset: Path, texts: Sequence[str], in_words: bool) -> bool:
    from packtrain.data.format.shards import open_dataset
    from packtrain.data.tokens.tokenizer import load_tokenizer

    opened = open_dataset(dataset)
    tokenizer = load_tokenizer(opened.tokenizer_folder)
    split = opened.split("train")
    found, start = [], 0
    for end in split.document_ends.tolist():
        found.append(tokenizer.decode(split.read(start, end).tolist()))
        start = end
    if in_words:
        return [text.split() for text in found] == [text.split() for text in texts]
    same: Callable[[Sequence[str]], list[str]] = sorted
    return same(found) == same(texts)

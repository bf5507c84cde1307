"""Decides how source files are attacked: rubbish and odd but valid files of each kind, compared with a plain reference reader."""

import csv
import gzip
import io
import json
import random
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from benchmarks.attack.damage import NONSENSE
from benchmarks.attack.outcome import READ_RIGHT, REFUSED, SAID, TRACEBACK, WRONG, Trial
from packtrain.config.recipe import Recipe
from packtrain.errors import PacktrainError
from packtrain.prepare.sources.documents import plan_slices, read_rows
from packtrain.prepare.sources.slices import Row
from packtrain.storage.store import LocalStore

_BOM = b"\xef\xbb\xbf"
_ENDS = ("\n", "\n", "\r\n", "\n\n")
_TEXTS = (
    *(
        "a",
        "plain words",
        "two\nlines",
        "tab\there",
        'quote " inside',
        "comma, inside",
        "semi; colon",
        "café 日本 😀",
        " ",
    ),
    *(
        "\u2028line separator",
        "\x85",
        "\x0c",
        "'",
        "\\n",
        "NULL",
        "nan",
        "<sep>",
        "{}",
        "[1]",
        "\ufeff",
        "x" * 5_000,
        "-",
        "=1+1",
    ),
)
_MARKS = (
    b"\n",
    b"\r",
    b'"',
    b",",
    b"\t",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\x00",
    _BOM,
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\x1f\x8b",
)
_PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".GZ": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


class Made(NamedTuple):
    """A generated file: its name without compression, its bytes, the texts that it holds in order, and the settings to read it."""

    name: str
    data: bytes
    texts: list[str] | None
    """None: rubbish, of which nobody can say what it holds."""
    settings: dict[str, Any]


def make_jsonl(draw: random.Random) -> Made:
    end = draw.choice(_ENDS)
    texts = [draw.choice(_TEXTS) for _ in range(draw.randint(1, 12))]
    nested = draw.random() < 0.2
    ascii_only = draw.random() < 0.5
    records = [{"id": n, **({"doc": {"text": text}} if nested else {"text": text})} for n, text in enumerate(texts)]
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    data = (end.join(lines) + draw.choice(["", end])).encode()
    settings = {"text_column": "doc.text"} if nested else {}
    return Made("a.jsonl", draw.choice([b"", _BOM]) + data, texts, settings)


def make_json_array(draw: random.Random) -> Made:
    texts = [draw.choice(_TEXTS) for _ in range(draw.randint(1, 12))]
    data = json.dumps([{"text": text} for text in texts], indent=draw.choice([None, 1, 4])).encode()
    return Made("a.json", draw.choice([b"", b"\n ", _BOM]) + data + draw.choice([b"", b"\n"]), texts, {})


def make_csv(draw: random.Random) -> Made:
    texts = [draw.choice(_TEXTS) for _ in range(draw.randint(1, 12))]
    delimiter = draw.choice([",", ",", "\t", ";", "|"])
    end = draw.choice(["\n", "\r\n"])
    out = io.StringIO(newline="")
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(["id", "text"])
    writer.writerows([n, text] for n, text in enumerate(texts))
    data = out.getvalue().encode()
    settings = {"delimiter": delimiter} if delimiter in ";|" or draw.random() < 0.5 else {}
    name = "a.tsv" if delimiter == "\t" and not settings else "a.csv"
    if name == "a.tsv" or delimiter == "\t":
        settings["quoting"] = "minimal"
    return Made(name, draw.choice([b"", _BOM]) + data.removesuffix(draw.choice([b"", end.encode()])), texts, settings)


def make_text(draw: random.Random) -> Made:
    separator = draw.choice([None, "<sep>", "\n\n\n", "\x0c"])
    texts = [draw.choice(_TEXTS) for _ in range(draw.randint(1, 8))]
    texts = [text for text in texts if separator is None or (separator not in text and separator[0] not in text)] or [
        "a"
    ]
    # At the beginning of a file it is a byte order mark, and no text.
    texts[0] = texts[0].removeprefix("\ufeff") or "a"
    if separator is None:
        return Made("a.txt", draw.choice([b"", _BOM]) + "\n".join(texts).encode(), ["\n".join(texts)], {})
    return Made("a.txt", separator.join(texts).encode(), texts, {"separator": separator})


def make_parquet(draw: random.Random) -> Made:
    texts = [draw.choice([*_TEXTS, None]) for _ in range(draw.randint(1, 12))]
    column: Any = pa.array(texts, pa.string())
    column = draw.choice([column, column.cast(pa.large_string()), column.cast(pa.binary()), column.dictionary_encode()])
    nested = draw.random() < 0.2 and not pa.types.is_dictionary(column.type)
    table = pa.table({"doc": pa.StructArray.from_arrays([column], ["text"])} if nested else {"text": column})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=draw.randint(1, 5), compression=draw.choice(["none", "snappy", "zstd"]))
    found = [text for text in texts if text is not None]
    return Made("a.parquet", out.getvalue(), found, {"text_column": "doc.text"} if nested else {})


def make_rubbish(draw: random.Random) -> Made:
    """A valid file of some kind with rubbish in it, or nothing but rubbish."""
    made = draw.choice([make_jsonl, make_json_array, make_csv, make_text, make_parquet])(draw)
    data = made.data if draw.random() < 0.8 else b""
    for _ in range(draw.randint(1, 5)):
        at = draw.randrange(len(data) + 1)
        piece = draw.choice([*_MARKS, draw.randbytes(3), b"[" * 3_000, b'{"a":' * 3_000, b'{"text": 1}\n', b'"text"'])
        data = data[:at] + piece + data[at + draw.choice([0, 0, 1, 30]) :]
    return Made(made.name, data, None, made.settings)


def attack_source(seed: int) -> Trial:
    """Write a generated file, read it, and compare with what was put in. Of rubbish, only that it is read or refused."""
    draw = random.Random(f"source {seed}")
    make = draw.choice([make_jsonl, make_json_array, make_csv, make_text, make_parquet, make_rubbish, make_rubbish])
    made = make(draw)
    pack = draw.choice(["", "", *_PACK]) if made.name != "a.parquet" else ""
    kind = {"a.jsonl": "jsonl", "a.json": "jsonl", "a.txt": "text", "a.parquet": "parquet"}.get(made.name, "csv")
    target = f"{kind} file" if made.texts is not None else "rubbish as a source"
    what = "odd but valid" if made.texts is not None else "rubbish"
    with tempfile.TemporaryDirectory(prefix="packtrain-attack-") as work:
        folder = Path(work)
        path = folder / (made.name + pack)
        path.write_bytes(_PACK[pack](made.data))
        if draw.random() < 0.05:
            data = path.read_bytes()
            path.write_bytes(data[: draw.randrange(len(data) + 1)])
            made = made._replace(texts=None)
        detail = f"seed {seed}: {path.name} {made.settings} {made.data[:300]!r}"
        try:
            rows = _read(kind, path, made.settings, folder, draw.choice([1, 3, 1000]))
        except PacktrainError as error:
            return Trial(target, what, REFUSED, "" if made.texts is None else f"{detail}: {error}")
        except Exception:  # noqa: BLE001  whatever else it is, it is what we look for
            return Trial(target, what, TRACEBACK, f"{detail} {traceback.format_exc()[-1200:]}")
    if made.texts is None:
        return Trial(target, what, READ_RIGHT)
    found = [row.text for row in rows if row.text is not None]
    if found == made.texts:
        return Trial(target, what, READ_RIGHT)
    is_counted = len(found) + sum(row.problem is not None for row in rows) >= len(made.texts)
    is_part = all(text in made.texts for text in found)
    return Trial(target, what, SAID if is_counted and is_part else WRONG, f"{detail}: {found!r:.300}")


def attack_card(seed: int) -> Trial:
    """A local copy of a hub dataset with a card that means nonsense."""
    draw = random.Random(f"card {seed}")
    with tempfile.TemporaryDirectory(prefix="packtrain-attack-") as work:
        folder = Path(work) / "hub"
        for name in ("web/train-00000.parquet", "books/train.parquet", "data/validation-0.parquet"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"text": [name]}), folder / name)
        card = _make_card(draw)
        (folder / "README.md").write_bytes(card)
        settings = {
            "config": draw.choice([None, "default", "web", "1", "*", "../x"]),
            "split": draw.choice(["train", "x"]),
        }
        detail = f"seed {seed}: {card[:400]!r} {settings}"
        try:
            _read("hf", folder, settings, Path(work), 100)
        except PacktrainError:
            return Trial("hub card", "nonsense", REFUSED)
        except Exception:  # noqa: BLE001  whatever else it is, it is what we look for
            return Trial("hub card", "nonsense", TRACEBACK, f"{detail} {traceback.format_exc()[-1200:]}")
    return Trial("hub card", "nonsense", READ_RIGHT)


def _make_card(draw: random.Random) -> bytes:
    values: list[Any] = [
        *NONSENSE,
        "train",
        "web/*",
        "**",
        "[",
        "a: b",
        ["web/*.parquet"],
        {"split": "train", "path": "web/*"},
    ]
    files: Any = draw.choice(
        [*values, [{"split": "train", "path": draw.choice(values)}], {"train": draw.choice(values)}]
    )
    entry = {
        "config_name": draw.choice(["default", "web", *values]),
        "data_files": files,
        "data_dir": draw.choice([*values, "web"]),
    }
    for key in list(entry):
        if draw.random() < 0.3:
            del entry[key]
    configs = draw.choice([[entry], [entry, entry], entry, draw.choice(values), [draw.choice(values)]])
    text = json.dumps({"configs": configs, "license": draw.choice(values)}).encode("utf-8", "surrogatepass")
    if draw.random() < 0.3:
        at = draw.randrange(len(text) + 1)
        text = (
            text[:at]
            + draw.choice([b"\x00", b"\xff", b"]", b"&a *a", b": :", b"\t", b"!!python/object:os.system x"])
            + text[at:]
        )
    return b"---\n" + text + draw.choice([b"\n---\n", b"\n", b""]) + b"# Card\n"


def _read(kind: str, path: Path, settings: dict[str, Any], folder: Path, most: int) -> list[Row]:
    tree = {
        "source": {"kind": kind, "path": str(path), **settings},
        "tokenizer": {"vocab_size": 300},
        "prepare": {"slice_documents": most},
    }
    made = Recipe.model_validate(tree)
    plan = plan_slices(made, LocalStore(folder / "store"))
    return [row for piece in plan.slices for row in read_rows(piece, made.source)]

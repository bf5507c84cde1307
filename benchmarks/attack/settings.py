"""Decides how settings are attacked: KEY=VALUE words, presets and recipes that are valid in form and mean nonsense, or are rubbish."""

import json
import random
import tempfile
import tomllib
import traceback
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.attack.damage import change_somewhere, pick_nonsense
from benchmarks.attack.outcome import READ_RIGHT, REFUSED, TRACEBACK, WRONG, Trial
from packtrain.config.load import dotted_keys, load_recipe, load_run_config, to_toml
from packtrain.config.recipe import Recipe
from packtrain.config.run import RunConfig
from packtrain.config.shipped import Kind, shipped
from packtrain.errors import PacktrainError

_WORDS = (
    *(
        "",
        "0",
        "-1",
        "1",
        "1e9",
        "1e999",
        "nan",
        "inf",
        "true",
        "TRUE",
        "null",
        "None",
        "1_000",
        "0x10",
        "01",
        "½",
        "١",
    ),
    *(
        "auto",
        "cpu",
        "[]",
        "{}",
        "[1,",
        "{a=1}",
        '{"a": 1}',
        "[" * 5_000,
        "{" * 5_000,
        '{"a":' * 5_000,
        "=",
        "a=b",
        "a.b",
    ),
    *(
        "'",
        '"',
        '"x"',
        "\x00",
        "\x1b[31m",
        "\u202e",
        "\udc80",
        "x" * 10_000,
        "9" * 5_000,
        "1979-05-27",
        "{x",
        "../x",
        "~",
        "$HOME",
    ),
)
_KINDS: tuple[tuple[Any, Any, Kind], ...] = ((RunConfig, load_run_config, "presets"), (Recipe, load_recipe, "recipes"))


def attack_words(seed: int) -> Trial:
    """One to three KEY=VALUE words on a shipped preset or recipe."""
    draw = random.Random(f"words {seed}")
    cls, load, kind = draw.choice(_KINDS)
    keys = [key for key, _ in dotted_keys(cls)]
    words = []
    for _ in range(draw.randint(1, 3)):
        key = draw.choice(keys) if draw.random() < 0.95 else draw.choice(["", ".", "model", "a.b.c", "model..x", "é"])
        value = draw.choice(_WORDS) if draw.random() < 0.7 else json.dumps(pick_nonsense(draw))
        words.append(draw.choice([f"{key}={value}"] * 20 + [key, f"={value}", value]))
    target = draw.choice([*shipped(kind), "nothing", "", "\x00", "a.toml"])
    return _judge("settings typed", load, target, words, f"seed {seed}")


def attack_file(seed: int) -> Trial:
    """A TOML file: a shipped preset or recipe with nonsense in it, or with damaged text."""
    draw = random.Random(f"file {seed}")
    cls, load, kind = draw.choice(_KINDS)
    with tempfile.TemporaryDirectory(prefix="packtrain-attack-") as work:
        path = Path(work) / draw.choice(["a.toml", "a.toml", "a b.toml", "\u202ea.toml"])
        text = shipped(kind)[draw.choice(list(shipped(kind)))]
        if draw.random() < 0.6:
            tree: Any = tomllib.loads(text)
            for key in draw.sample([key for key, _ in dotted_keys(cls) if key.count(".") == 1], 3):
                section, name = key.split(".")
                tree.setdefault(section, {}).setdefault(name, pick_nonsense(draw))
            for _ in range(draw.randint(1, 3)):
                tree = change_somewhere(tree, draw) if isinstance(tree, dict) else tree
            try:
                data = tomli_w.dumps(tree).encode("utf-8", "surrogatepass")
            except (TypeError, AttributeError, ValueError):
                data = b"model = 3\n"
        else:
            data = _damage_text(text.encode(), draw)
        path.write_bytes(data)
        return _judge("settings in a file", load, str(path), [], f"seed {seed}")


def _damage_text(data: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        piece = draw.choice(
            [b"\x00", b"[", b"]]", b"=", b'"', b"\n", b"\xff", b"\r", b"[" * 5_000, b"x = {" * 3_000, b"#", b"'''"]
        )
        data = data[:at] + piece + data[at + draw.choice([0, 1, 20]) :]
    return data


def _judge(target: str, load: Any, name: str, words: list[str], what: str) -> Trial:
    detail = f"{what}: {name[:80]} {[word[:200] for word in words]}"
    try:
        loaded = load(name, words).config
        with tempfile.TemporaryDirectory(prefix="packtrain-attack-") as work:
            path = Path(work) / "again.toml"
            path.write_text(to_toml(loaded), encoding="utf-8")
            again = load(str(path)).config
    except PacktrainError as error:
        return Trial(target, "nonsense", REFUSED if str(error) else WRONG, "" if str(error) else detail)
    except Exception:  # noqa: BLE001  whatever else it is, it is what we look for
        return Trial(target, "nonsense", TRACEBACK, f"{detail} {traceback.format_exc()[-1200:]}")
    return Trial(target, "nonsense", *((READ_RIGHT, "") if again == loaded else (WRONG, detail)))

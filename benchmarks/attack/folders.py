"""Decides how prepared datasets, runs and exports are attacked: one damage to one file, then one command, whose result is judged."""

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from benchmarks.attack import damage
from benchmarks.attack.outcome import BAD, WRONG, Ended, Trial, run_command
from benchmarks.attack.sound import (
    DATASET_COMMANDS,
    EXPORT_COMMANDS,
    RUN_COMMANDS,
    Command,
    copy_sound,
    read_results,
)
from packtrain.data.format.manifest import canonical_json
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.errors import PacktrainError

# What is attacked, where its files are, and what the commands need beside it.
TARGETS: dict[str, tuple[str, tuple[str, ...], Mapping[str, Command]]] = {
    "dataset": ("ds", ("ds", "run", "sound-ds"), DATASET_COMMANDS),
    "run": ("run", ("ds", "run"), RUN_COMMANDS),
    "export": ("out", ("ds", "run", "out", "tokens"), EXPORT_COMMANDS),
}
_ESCAPES = (
    "../victim/00000",
    "/etc/passwd",
    "../../victim/00000",
    "x/../../victim/00000",
    "..",
    "",
    "a\0b",
    "00000/../00000",
)


def results_of_sound(sound: Path, target: str) -> dict[str, tuple[Ended, dict[str, str]]]:
    """For each command on the undamaged folders, how it ends and what it gives."""
    _, names, commands = TARGETS[target]
    found = {}
    for name, command in commands.items():
        with tempfile.TemporaryDirectory(prefix="packtrain-attack-") as work:
            folder = Path(work)
            copy_sound(sound, folder, names)
            ended = run_command(command.words, folder)
            found[name] = ended, read_results(command, ended, folder)
    return found


def attack_folder(
    sound: Path, target: str, seed: int, expected: Mapping[str, tuple[Ended, dict[str, str]]], keep: Path | None = None
) -> Trial:
    """Damage a copy of the sound folders as `seed` says, run a command on it, and judge. Bad ones are kept in `keep`."""
    draw = random.Random(f"{target} {seed}")
    top, names, commands = TARGETS[target]
    name = draw.choice(list(commands))
    if target == "export" and name == "import":
        top = "tokens"
    command = commands[name]
    with tempfile.TemporaryDirectory(prefix="packtrain-attack-") as work:
        folder = Path(work)
        copy_sound(sound, folder, names)
        (folder / "victim").mkdir()
        (folder / "victim" / "00000.tok").write_bytes(b"keep")
        path = draw.choice(sorted(p for p in (folder / top).rglob("*") if p.is_file() and p.name != ".lock"))
        what, may_differ = _damage(path, folder / top, draw)
        # Token files of nanoGPT hold no hash: other ids are other ids.
        may_differ |= top == "tokens"
        is_same = path.is_file() and _reads_the_same(path, sound / path.relative_to(folder))
        ended = run_command(command.words, folder)
        sound_end, right = expected[name]

        def is_right() -> bool:
            if may_differ:
                return True
            if name == "verify" and not is_same:
                return False
            return read_results(command, ended, folder) == right

        outcome = ended.judge(is_right, sound_end)
        if sorted(p.name for p in (folder / "victim").iterdir()) != ["00000.tok"] or _escaped(folder, what, ended):
            outcome = WRONG
        where = path.relative_to(folder).as_posix()
        if keep is not None and outcome in BAD:
            shutil.copytree(folder, keep / f"{target}-{seed}", symlinks=True, ignore=_special)
        detail = f"seed {seed}: {what} {where}, then {name}: exit {ended.code} {ended.err[-1500:]}"
        return Trial(target, what, outcome, detail if outcome in BAD else "")


def _damage(path: Path, top: Path, draw: random.Random) -> tuple[str, bool]:
    """Damage the file; what was done, and whether the folder is sound again as far as its hashes can say."""
    is_text = path.suffix in (".json", ".toml", ".jsonl")
    if is_text and draw.random() < 0.5:
        damage.change_tree(path, draw)
        if path.suffix == ".json" and draw.random() < 0.5:
            return "nonsense with hashes that fit", _refit(path, top)
        return "nonsense", False
    if path.name == "manifest.json" and top.name == "ds" and draw.random() < 0.5:
        _rename_shard(path, draw.choice(_ESCAPES))
        return "a name outside the folder", _refit(path, top)
    chosen = draw.choice(damage.DAMAGES)
    chosen(path, draw)
    return chosen.__name__.replace("_", " "), False


def _refit(path: Path, top: Path) -> bool:
    """Make the hashes over a JSON file fit it again. Whether any hash covers it."""
    if path.name == "manifest.json" and top.name == "ds":
        tree = json.loads(path.read_text("utf-8", "surrogatepass"))
        if isinstance(tree, dict):
            tree.pop("checksum", None)
            try:
                tree["checksum"] = hashlib.sha256(canonical_json(tree)).hexdigest()
            except (TypeError, UnicodeEncodeError):
                return True
            path.write_bytes(json.dumps(tree).encode("utf-8", "surrogatepass"))
        return True
    hashes = path.parent / "hashes.json"
    if path.name != "hashes.json" and hashes.is_file():
        listed: Any = json.loads(hashes.read_text())
        if isinstance(listed, dict) and path.name in listed:
            listed[path.name] = xxhash.xxh3_128_hexdigest(path.read_bytes())
            hashes.unlink()
            hashes.write_text(json.dumps(listed))
            return True
    return False


def _rename_shard(manifest: Path, name: str) -> None:
    tree = json.loads(manifest.read_text())
    tree["splits"]["train"][0]["name"] = name
    manifest.unlink()
    manifest.write_text(json.dumps(tree))


def _escaped(folder: Path, what: str, ended: Ended) -> bool:
    """Whether a name outside the folder was followed, or something outside was changed."""
    followed = what == "a name outside the folder" and ended.code == 0
    return followed or (folder / "victim" / "00000.tok").read_bytes() != b"keep"


def _reads_the_same(path: Path, sound: Path) -> bool:
    if path.read_bytes() == sound.read_bytes():
        return True
    try:
        if path.name == "tokenizer_config.json":
            # It has keys that mean nothing here.
            return load_tokenizer(path.parent).files() == load_tokenizer(sound.parent).files()
        return path.suffix == ".json" and json.loads(path.read_bytes()) == json.loads(sound.read_bytes())
    except PacktrainError:
        return False
    except (ValueError, RecursionError):
        return False


def _special(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_fifo()]

"""Decides what a path holds, by looking: its endings, first bytes and first lines, and the setting that each of them needs."""

import ast
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from packtrain.config.recipe import Recipe
from packtrain.config.shipped import shipped
from packtrain.errors import SourceError
from packtrain.prepare.sources.columns import list_names
from packtrain.prepare.sources.documents import SOURCE_KINDS
from packtrain.prepare.sources.glimpse import see_columns, see_kind
from packtrain.prepare.sources.listing import list_files
from packtrain.prepare.sources.separators import END_OF_TEXT, count_documents, list_choices
from packtrain.prepare.sources.slices import SourceFile
from packtrain.storage.files import open_raw, reading, strip_compression

# The recipe of each kind of files.
_RECIPES = {"parquet": "parquet", "jsonl": "jsonl", "csv": "csv", "text": "text-folder"}
_NAMES = {"parquet": "parquet", "jsonl": "jsonl", "csv": "csv", "text": "plain text"}
_TOKEN_FILES = (".bin", ".idx", ".ds")
# What stands beside the text of a folder.
_BESIDE = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|citation)(\..*)?"
    r"|(dataset_infos?|(\w+_)?config|special_tokens_map|tokenizer|vocab)\.json",
    re.IGNORECASE,
)
_SHARD = re.compile(r"\w+-\d{5}-of-\d{5}\.parquet")
# A text of this size is rarely a single document.
_LARGE_BYTES = 1_000_000
_USUAL_COLUMNS = ("text", "content")


class PathContent(NamedTuple):
    """What a path is: the recipe and the settings that read it, and why, in words."""

    recipe: str
    settings: tuple[str, ...]
    kind: str
    why: str


def resolve_target(target: str, words: Sequence[str]) -> tuple[str, list[str], PathContent | None]:
    """A recipe and its settings, from the name of one or from a path to text; what was found, if it is a path.

    Raises SourceError if the path holds nothing that can be read, or if it is unclear how, with the choices to type.
    """
    if target in shipped("recipes") or target.endswith(".toml"):
        return target, list(words), None
    with suppress(OSError, ValueError):
        if "://" in target or any(c in target for c in "*?[") or Path(target).expanduser().exists():
            found = look(target, words)
            return found.recipe, [*found.settings, *words], found
    if "/" in target:
        on_hub = (
            f"; if it is a dataset of the Hugging Face hub, write `packtrain prepare parquet source.kind=hf source.repo={target} --out "
            "DATASET`"
        )
        raise SourceError(
            f"{target} is neither a recipe nor a file or folder that is there; check the path"
            + (on_hub if re.fullmatch(r"[\w.-]+/[\w.-]+", target) else "")
        )
    return target, list(words), None


def look(path: str, words: Sequence[str] = ()) -> PathContent:
    """What a path is: a Python file, a copy of a hub repository, or files of one kind; `words` are the settings that are typed."""
    typed = {word.partition("=")[0] for word in words}
    if path.endswith(".py") and Path(path).expanduser().is_file():
        return _look_at_python(path)
    every = list_files(path, ("",))
    is_one = len(every) == 1
    files = [file for file in every if file.size and (is_one or not _BESIDE.fullmatch(file.name.rpartition("/")[2]))]
    if not files:
        raise SourceError(
            f"{path} has no text: {'no file' if not every else 'nothing but ' + list_names(f.name for f in every)}"
        )
    kinds = _sort(path, files)
    if len(kinds) > 1:
        choices = " or ".join(f"`{_command(kind, path)}`" for kind in kinds)
        held = ", ".join(f"{len(named)} {_NAMES[kind]} ({named[0].name})" for kind, named in kinds.items())
        raise SourceError(f"{path} has files of several kinds: {held}; choose one: {choices}")
    [(kind, named)] = kinds.items()
    if kind == "parquet" and _is_hub_copy(every, named):
        why = f"a copy of a hub repository: {_count(named)} in its layout, of which the split train is read"
        columns = _choose_column(path, kind, named[0], typed)
        return PathContent("parquet", ("source.kind=hf", f"source.path={path}", *columns), "hf", why)
    ending = _ending(named[0])
    takes = {file.name for file in every if _ending(file) in SOURCE_KINDS[kind].suffixes}
    is_as_found = is_one or takes == {file.name for file in named} or (kind == "text" and bool(takes))
    # The pattern leaves out what stands beside the text; it takes compressed files too.
    where = path if is_as_found else f"{path.rstrip('/')}/**/*{ending}*"
    settings = [f"source.path={where}", *_settings_of(path, kind, named, typed)]
    left = len(files) - len(named)
    why = f"{_NAMES[kind]}: {_count(named)}" + (f"; {left} others are passed over" if left else "")
    return PathContent(_RECIPES[kind], tuple(settings), kind, why)


def describe_other_kind(recipe: Recipe) -> str | None:
    """What to say if a local path is certainly of another kind than the recipe reads, with the command to type."""
    path, kind = recipe.source.path, recipe.source.kind
    if path is None or "://" in path or kind not in _RECIPES:
        return None
    try:
        found = look(path, ("source.text_column=", "source.separator="))
    except SourceError:
        return None
    if found.kind in (kind, "hf") or (kind, found.kind) == ("jsonl", "text"):
        return None
    wanted = _NAMES[kind]
    return f"{path} is {found.why}, and not {wanted}; write `packtrain prepare {shlex.quote(path)} --out DATASET`"


def describe_one_document(recipe: Recipe) -> str | None:
    """What to say of one large text file that becomes a single document, with the separators that would cut it."""
    source = recipe.source
    is_cut = source.separator is not None or recipe.split.by == "tail"
    if source.kind != "text" or is_cut or source.path is None or not Path(source.path).expanduser().is_file():
        return None
    [file] = list_files(source.path, ("",))
    counts = count_documents(file) if file.size >= _LARGE_BYTES else {}
    if not counts:
        return None
    return (
        f"{source.path} ({file.size:,} bytes) becomes one document; to cut it into several, write {list_choices(counts)}, or "
        "split.by=tail to hold out its end"
    )


def _settings_of(path: str, kind: str, files: Sequence[SourceFile], typed: set[str]) -> list[str]:
    if kind == "text":
        is_told = typed & {"source.separator", "split.by"}
        return [] if is_told or len(files) > 1 else _choose_separator(path, files[0])
    return _choose_column(path, kind, files[0], typed)


def _choose_separator(path: str, file: SourceFile) -> list[str]:
    """Of a single file of text. Raises SourceError with the choices, unless the file says itself where documents end."""
    counts = count_documents(file)
    if END_OF_TEXT in counts:
        return [f"source.separator={END_OF_TEXT}"]
    if not counts:
        return []
    raise SourceError(
        f"{path} is one text file of {file.size:,} bytes; say what is between its documents: {list_choices(counts)}, or write "
        "split.by=tail if it is one text, whose end is held out"
    )


def _look_at_python(path: str) -> PathContent:
    try:
        tree = ast.parse(Path(path).expanduser().read_bytes())
    except (SyntaxError, ValueError) as error:
        raise SourceError(
            f"{path} is not Python ({error}); fix it, or write `{_command('text', path)}` for its text"
        ) from None
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if "documents" not in names:
        raise SourceError(
            f"{path} has no function `documents` (its functions are {list_names(names)}); write `packtrain prepare python "
            f"source.function={shlex.quote(path)}:FUNCTION --out DATASET`, or `{_command('text', path)}` for its text"
        )
    return PathContent(
        "python", (f"source.function={path}:documents",), "function", "a Python file with a function `documents`"
    )


def _sort(path: str, files: Sequence[SourceFile]) -> dict[str, list[SourceFile]]:
    """The files by kind. If some have an ending of a kind, the others are left out."""
    endings: dict[str, list[SourceFile]] = {}
    for file in files:
        endings.setdefault(_ending(file), []).append(file)
    known: dict[str, list[SourceFile]] = {}
    for ending, named in endings.items():
        kind = next((kind for kind in _RECIPES if ending in SOURCE_KINDS[kind].suffixes), None)
        if kind is not None:
            known.setdefault(see_kind(named[0], kind), []).extend(named)
    if known:
        return known
    if set(endings) & set(_TOKEN_FILES):
        raise SourceError(
            f"{path} has token files ({list_names(file.name for file in files)}); write `packtrain import {shlex.quote(path)} "
            "--format FORMAT --tokenizer NAME --out DATASET`"
        )
    if len(endings) > 1:
        most = Counter({ending or "no ending": len(named) for ending, named in endings.items()}).most_common(6)
        held = ", ".join(f"{count} with {ending}" for ending, count in most)
        globbed = shlex.quote(f"{path.rstrip('/')}/**/*.EXT")
        raise SourceError(
            f"{path} has no parquet, jsonl, csv or text, by the endings of its files ({held}); write `packtrain prepare {globbed} "
            "--out DATASET` with the ending of those that are text"
        )
    [named] = endings.values()
    return {see_kind(named[0], None): list(named)}


def _is_hub_copy(every: Sequence[SourceFile], parquet: Sequence[SourceFile]) -> bool:
    """Whether a folder has a dataset card with front matter, or parquet files with the names that the hub gives."""
    if len(every) == 1:
        return False
    for file in every:
        if file.name == "README.md":
            with reading(file.name), open_raw(file.url) as card:
                return card.read(8).removeprefix(b"\xef\xbb\xbf").startswith(b"---")
    return any(_SHARD.fullmatch(file.name.rpartition("/")[2]) for file in parquet)


def _choose_column(path: str, kind: str, file: SourceFile, typed: set[str]) -> list[str]:
    """The settings for the column of the text, and for the delimiter. Raises SourceError with the columns if it is not obvious."""
    texts, delimiter = see_columns(file, kind)
    is_unusual = delimiter is not None and "source.delimiter" not in typed
    settings = [f"source.delimiter={delimiter}"] if is_unusual else []
    if "source.text_column" in typed or "text" in texts:
        return settings
    usual = [name for wanted in _USUAL_COLUMNS for name in texts if name.lower() == wanted]
    chosen = usual[:1] or (texts if len(texts) == 1 else [])
    if not chosen:
        held = f"its columns with text are {list_names(texts)}" if texts else "it has no column with text"
        example = shlex.quote(f"source.text_column={texts[0] if texts else 'NAME'}")
        raise SourceError(f"{path} is {_NAMES[kind]}, and {held}; name the one to read, as in {example}")
    return [*settings, f"source.text_column={chosen[0]}"]


def _ending(file: SourceFile) -> str:
    return Path(strip_compression(file.name).lower()).suffix


def _count(files: Sequence[SourceFile]) -> str:
    return files[0].name if len(files) == 1 else f"{len(files):,} files, such as {files[0].name}"


def _command(kind: str, path: str) -> str:
    return f"packtrain prepare {_RECIPES[kind]} {shlex.quote(f'source.path={path}')} --out DATASET"

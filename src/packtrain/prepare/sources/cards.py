"""Decides which files of a hub repository are each split of a configuration, by the rules of the `datasets` library.

The rules: https://huggingface.co/docs/hub/datasets-data-files-configuration. Whatever that library refuses is refused, and so is
what it would read that is not parquet.
"""

import difflib
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from packtrain.errors import SourceError
from packtrain.prepare.sources.columns import list_names

Splits = dict[str, list[str]]

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_BESIDE_WORD = "[-._ 0-9]"
_OF_FOLDERS = ("**/{0}/**", "**/{0}{1}*/**", "**/*{1}{0}/**", "**/*{1}{0}{1}*/**")
_OF_FILES = ("**/{0}{1}*", "**/*{1}{0}{1}*")
_SHARD = re.compile(r"(?P<split>[^/]+)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
# What `datasets` reads besides parquet, and could be the text of a repository.
_OTHER_FORMATS = ("csv", "tsv", "json", "jsonl", "ndjson", "arrow", "txt", "xml", "tar", "zip", "h5", "hdf5", "lance")
_NOT_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json")
_MOST_NAMED = 6
_ADVICE = "fix its README.md, or write source.path= with the folder, or a pattern, of the parquet files that you mean"


def take_split(splits: Splits, split: str) -> list[str]:
    """The parquet files of a split, if it is made of them: as in `datasets`, by the most frequent format.

    Raises SourceError for a split that is not there, or has another format.
    """
    if split not in splits:
        raise SourceError(f"the dataset has no split '{split}'; write source.split= with one of {list_names(splits)}")
    parquet, others = _tell_formats(splits[split])
    if not parquet or len(others) > len(parquet):
        raise _other_formats(split, parquet, others)
    return sorted(parquet)


def find_splits(names: Sequence[str], card: Any, config: str | None, split: str = "train") -> Splits:
    """The files of every split of a configuration, from all file names of a repository. The split that is wanted has some.

    If the dataset card lists configurations, it decides. Otherwise a configuration is a folder of this name (`sample-10BT` is
    `sample/10BT`, `sample-10BT` or `10BT`) or, in a copy of that folder, the files at its top. Raises SourceError for an unknown
    configuration, and for a card that `datasets` would refuse.
    """
    data = sorted(name for name in names if _is_data(name))
    configs = read_card(card)
    if configs:
        chosen = _choose(configs, config)
        folder, patterns = _clean_folder(chosen), chosen.get("data_files")
        if patterns is None:
            found = default_splits(_inside(data, folder), split)
        else:
            found = _match_all(patterns, _inside(names, folder), split)
        # What a card lists is meant as a whole.
        parquet, others = _tell_formats(found.get(split, ()))
        if others:
            raise _other_formats(split, parquet, others)
        if not found:
            raise SourceError(f"the dataset's card names the folder {folder or '.'}, which has no data; {_ADVICE}")
        return {key: [folder + name for name in files] for key, files in found.items()}
    for folder in config_folders(config):
        inside = _inside(data, f"{folder}/")
        if inside:
            return {key: [f"{folder}/{n}" for n in files] for key, files in default_splits(inside, split).items()}
    top = [name for name in data if "/" not in name]
    if config is None or config == "default" or top:
        return default_splits(data if config in (None, "default") else top, split)
    folders = list_names(sorted({name.rpartition("/")[0] for name in data})[:_MOST_NAMED])
    raise SourceError(
        f"there are no parquet files in {' or '.join(config_folders(config))} for source.config={config}, only in {folders}; "
        "write source.config= with one of these, or source.path= with the folder that holds the files"
    )


def default_splits(names: Sequence[str], split: str) -> Splits:
    """The splits of a repository whose card names no files: by the names of its folders and files."""
    names = [name for name in names if _count_hidden(name) == (0, 0)]
    in_data = [name for name in names if name.startswith("data/")]
    splits = _splits_of_shards(in_data, "data/")
    if splits:
        rest = set(in_data).difference(*splits.values())
        return {**_splits_of_words(sorted(rest)), **splits}
    splits = _splits_of_words(names) or ({"train": list(names)} if names else {})
    # A copy of the folder `data` alone.
    shards = {} if any("/" in name for name in names) else _splits_of_shards(names, "")
    return {**splits, **shards} if split not in splits and split in shards else splits


def config_folders(config: str | None) -> Iterator[str]:
    """The folders that may have the files of a configuration, the likeliest first."""
    if config:
        yield config.replace("-", "/")
        yield config
        yield config.rpartition("-")[2]


def is_parquet(name: str) -> bool:
    """Whether a file is parquet by its name. A compressed one is too, and is refused when it is opened."""
    return bool(re.search(r"\.parquet(\.(gz|zst|xz|bz2|lz4))?$", name.lower()))


def read_card(card: Any) -> dict[str, dict[str, Any]]:
    """The configurations of a card's YAML, by name; none if it lists none. Raises SourceError for a card of another form."""
    if not isinstance(card, Mapping):
        raise _bad_card(f"its front matter is {_kind(card)}", "write a mapping of keys to values")
    configs = card.get("configs")
    if not configs:
        return {}
    if not isinstance(configs, list) or not all(isinstance(entry, Mapping) for entry in configs):
        raise _bad_card(f"`configs` is {_kind(configs)}", "write a list of mappings with config_name and data_files")
    found: dict[str, dict[str, Any]] = {}
    for entry in configs:
        name = entry.get("config_name")
        if not isinstance(name, str) or not name:
            raise _bad_card(f"a config_name is {_kind(name)}", "write each as a text, a number in quotes")
        if name in found:
            raise _bad_card(f"two configurations are called '{name[:40]}'", "give each its own name")
        found[name] = dict(entry)
    return found


def _choose(configs: Mapping[str, dict[str, Any]], config: str | None) -> dict[str, Any]:
    if config is None:
        named = [name for name, entry in configs.items() if name == "default" or entry.get("default")]
        defaults = list(configs) if len(configs) == 1 else named
        if len(defaults) != 1:
            what = "has several default configurations" if defaults else "has no default configuration"
            raise SourceError(f"the dataset {what}; write source.config= with one of {list_names(defaults or configs)}")
        config = defaults[0]
    if config not in configs:
        near = list_names(difflib.get_close_matches(config, configs, n=3, cutoff=0.5) or configs)
        raise SourceError(f"the dataset has no configuration '{config}'; write source.config= with one of {near}")
    if configs[config].get("filters") is not None:
        raise _bad_card("it chooses rows with `filters`, which is not read", "write source.filter= and source.path=")
    return configs[config]


def _clean_folder(config: Mapping[str, Any]) -> str:
    folder = config.get("data_dir")
    if not folder:
        return ""
    if not isinstance(folder, str):
        raise _bad_card(f"`data_dir` is {_kind(folder)}", "write a folder of the repository")
    return f"{_clean(folder, 'data_dir')}/".removeprefix("./")


def _clean(path: str, key: str) -> str:
    """A path of a card in its simplest form; it must be inside of the repository."""
    clean = posixpath.normpath(path) if path else ""
    if "://" in path or "::" in path or path.startswith(("/", "~")) or clean.split("/")[0] == "..":
        raise _bad_card(f"`{key}` names {path[:80]!r}, which is outside of the repository", "name files inside of it")
    return clean


def _match_all(data_files: Any, names: Sequence[str], split: str) -> Splits:
    """The files of each split that `data_files` lists; only those of the wanted split must exist."""
    by_split = _list_patterns(data_files)
    if split not in by_split:
        return {key: [] for key in by_split}
    return {key: _match(patterns, names, is_wanted=key == split) for key, patterns in by_split.items()}


def _list_patterns(data_files: Any) -> dict[str, list[str]]:
    if isinstance(data_files, str):
        return {"train": [data_files]}
    if not isinstance(data_files, list):
        raise _bad_data_files(data_files)
    if not any(isinstance(entry, Mapping) for entry in data_files):
        return {"train": _check_texts(data_files)}
    found: dict[str, list[str]] = {}
    for entry in data_files:
        split = entry.get("split") if isinstance(entry, Mapping) and len(entry) == 2 else None
        if not isinstance(split, str) or not _SPLIT_NAME.fullmatch(split) or split in found:
            raise _bad_data_files(entry)
        paths = entry.get("path")
        found[split] = _check_texts(paths if isinstance(paths, list) else [paths])
    return found


def _check_texts(patterns: list[Any]) -> list[str]:
    wrong = [pattern for pattern in patterns if not isinstance(pattern, str)]
    if wrong:
        raise _bad_data_files(wrong[0])
    return patterns


def _match(patterns: Sequence[str], names: Sequence[str], *, is_wanted: bool) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        try:
            matched = _glob(_clean(pattern, "data_files"), names)
        except SourceError:
            if is_wanted:
                raise
            continue
        # As in `datasets`, a name must exist, and a pattern may match nothing beside others that do.
        if not matched and is_wanted and not re.search(r"[*?[]", pattern):
            raise SourceError(f"the dataset's card names the file {pattern[:80]!r}, which is not there; {_ADVICE}")
        found.update(dict.fromkeys(matched))
    if not found and is_wanted:
        raise SourceError(
            f"the dataset's card has the pattern {list_names(patterns)}, which matches no file; {_ADVICE}"
        )
    return sorted(found)


def _glob(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern matches; one that is hidden, or in a folder like __pycache__, only if the pattern says so."""
    from fsspec.utils import glob_translate

    try:
        matches = re.compile(glob_translate(pattern)).match
    except (ValueError, re.error) as error:
        raise _bad_card(
            f"the pattern {pattern[:80]!r} cannot be read ({error})", "write ** only between slashes"
        ) from None
    hidden = _count_hidden(pattern)
    return [name for name in names if matches(name) and _count_hidden(name) == hidden]


def _count_hidden(path: str) -> tuple[int, int]:
    parts = path.split("/")
    return sum(part.startswith(".") for part in parts), sum(part.startswith("__") for part in parts[:-1])


def _splits_of_shards(names: Iterable[str], folder: str) -> Splits:
    splits: Splits = {}
    for name in names:
        shard = _SHARD.fullmatch(name.removeprefix(folder))
        if shard:
            splits.setdefault(shard["split"], []).append(name)
    wrong = [name for name in splits if folder and not _SPLIT_NAME.fullmatch(name)]
    if wrong:
        raise SourceError(f"a split of the dataset is called {wrong[0][:40]!r}, which `datasets` refuses; {_ADVICE}")
    return splits


def _splits_of_words(names: Sequence[str]) -> Splits:
    """By the words for splits in the names of folders, or else of files."""
    splits: Splits = {}
    for patterns in (_OF_FOLDERS, _OF_FILES):
        for split, words in _KEYWORDS.items():
            globs = [pattern.format(word, _BESIDE_WORD) for word in words for pattern in patterns]
            matched = sorted({name for glob in globs for name in _glob(glob, names)})
            splits.update({split: matched} if matched else {})
        if splits:
            break
    return splits


def _tell_formats(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The parquet files, and the files of other formats that `datasets` reads."""
    data = [name for name in names if _is_data(name)]
    return [name for name in data if is_parquet(name)], [name for name in data if not is_parquet(name)]


def _is_data(name: str) -> bool:
    base = posixpath.basename(name)
    is_other = base not in _NOT_DATA and not set(base.lower().split(".")[1:]).isdisjoint(_OTHER_FORMATS)
    return is_other or is_parquet(name)


def _inside(names: Iterable[str], folder: str) -> list[str]:
    return [name.removeprefix(folder) for name in names if name.startswith(folder)]


def _kind(value: Any) -> str:
    """A value of a card in a word, as it may be endless."""
    words = {"NoneType": "missing", "str": "a text", "int": "a number", "list": "a list", "dict": "a mapping"}
    return words.get(type(value).__name__, f"a {type(value).__name__}")


def _bad_card(what: str, instead: str) -> SourceError:
    return SourceError(f"the dataset's card (README.md) cannot be followed: {what}; {instead}, or leave the file out")


def _bad_data_files(value: Any) -> SourceError:
    return _bad_card(
        f"`data_files` holds {_kind(value)} that is not understood",
        "write a path, a list of paths, or a list of mappings with exactly `split` and `path`, each split once",
    )


def _other_formats(split: str, parquet: Sequence[str], others: Sequence[str]) -> SourceError:
    return SourceError(
        f"the split '{split}' has {len(parquet)} parquet files and {len(others)} of other formats "
        f"({list_names(others[:_MOST_NAMED])}), and only parquet is read from a repository; write "
        "source.revision=refs/convert/parquet, the hub's own conversion, or download it and name its files with source.path= and "
        "source.kind=jsonl, csv, text or parquet"
    )

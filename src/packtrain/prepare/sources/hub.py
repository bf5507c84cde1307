"""Decides which files on the Hugging Face hub, or in a local copy, the name of a dataset or tokenizer means."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packtrain.config.recipe import SourceConfig
from packtrain.errors import PacktrainError, SourceError, TokenizerError
from packtrain.prepare.sources.cards import (
    config_folders,
    default_splits,
    find_splits,
    is_parquet,
    read_card,
    take_split,
)
from packtrain.prepare.sources.listing import list_files
from packtrain.prepare.sources.slices import SourceFile
from packtrain.storage.files import filesystem, network_errors, open_raw, reading

_TIMEOUT_S = 20
_CARD, _MORE_CARD = "README.md", ".huggingface.yaml"
_MOST_CARD_BYTES = 32 << 20
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def find_dataset_files(source: SourceConfig) -> tuple[list[SourceFile], str | None]:
    """The parquet files of a configuration and split of a hub dataset, and the commit they are read at.

    With `source.path` they come from a local copy of the repository, or from a folder of its parquet files, and there is no
    commit; a path of files, not of a folder, means all of them as `train`. Names are relative to the common folder of all splits
    of the configuration, so all three give the same dataset, and files of two splits never share a name. Raises SourceError if
    nothing matches, or the hub cannot be reached.
    """
    commit = None
    if source.path is None:
        files, card, commit = _on_hub(source)
        splits = find_splits(list(files), card, source.config, source.split)
        names = take_split(splits, source.split)
    elif _is_folder(source.path):
        files, card = _local_copy(source.path)
        splits = find_splits(list(files), card, source.config, source.split)
        names = take_split(splits, source.split)
    else:
        files = {file.name: file for file in list_files(source.path, (".parquet",))}
        splits = {**default_splits(list(files), source.split), "train": list(files)}
        if source.split not in splits:
            raise SourceError(
                f"none of the files of source.path={source.path} is named after the split '{source.split}'; name others, or their folder"
            )
        names = splits[source.split]
    folder = _common_folder({*names, *(name for split in splits.values() for name in split if is_parquet(name))})
    return [SourceFile(name.removeprefix(folder), files[name].url, files[name].size) for name in names], commit


def tokenizer_folder(name: str, revision: str | None) -> Path:
    """The folder with the tokenizer.json that a hub name or a folder means; downloads it if it is not cached.

    Raises TokenizerError if there is none, or if the hub cannot be reached and nothing is cached.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise TokenizerError(f"tokenizer.name={name} is neither a folder nor a hub name such as owner/name")
    at = f" --revision {revision}" if revision else ""
    advice = (
        f"on a machine with a network, fetch {' and '.join(_TOKENIZER_FILES[:2])} of the model repository {name} with "
        f"`hf download {name}{at} --include 'tokenizer*' --local-dir FOLDER`, then write tokenizer.name=FOLDER"
    )
    with _hub_errors(f"the tokenizer {name}", advice, TokenizerError):
        return _fetch_tokenizer(name, revision)


def _fetch_tokenizer(name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    unreachable: tuple[type[Exception], ...] = (OSError, *network_errors())
    try:
        # Asked first: without a network, a download retries for half a minute.
        info = HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_S)
    except HfHubHTTPError:
        raise
    except unreachable as error:
        try:
            return Path(hf_hub_download(name, "tokenizer.json", revision=revision, local_files_only=True)).parent
        except LocalEntryNotFoundError:
            raise error from None
    there = {sibling.rfilename for sibling in info.siblings or []}
    if "tokenizer.json" not in there:
        raise TokenizerError(
            f"the repository {name} has no tokenizer.json, the format that packtrain reads; name another tokenizer, or a "
            "folder with a tokenizer.json converted from it"
        )
    fetched = [hf_hub_download(name, file, revision=info.sha) for file in _TOKENIZER_FILES if file in there]
    return Path(fetched[0]).parent


def _is_folder(path: str) -> bool:
    fs, root = filesystem(path)
    with reading(path):
        return bool(fs.isdir(root))


def _local_copy(path: str) -> tuple[dict[str, SourceFile], Any]:
    files = {file.name: file for file in list_files(path, ("",))}
    urls = {_CARD: files[_CARD].url} if _CARD in files else {}
    hidden = Path(path).expanduser() / _MORE_CARD
    if hidden.is_file():
        urls[_MORE_CARD] = str(hidden)
    return files, _merge_cards({name: _read_text(url, name) for name, url in urls.items()})


def _read_text(url: str, name: str) -> str:
    with reading(name), open_raw(url) as file:
        data = file.read(_MOST_CARD_BYTES + 1)
    if len(data) > _MOST_CARD_BYTES:
        raise SourceError(f"the dataset's card ({name}) has more than {_MOST_CARD_BYTES:,} bytes; leave the file out")
    return data.decode("utf-8", "replace").replace("\r\n", "\n")


def _on_hub(source: SourceConfig) -> tuple[dict[str, SourceFile], Any, str | None]:
    from huggingface_hub import HfApi, hf_hub_download

    assert source.repo is not None
    folder = next(config_folders(source.config), None)
    at = f" --revision {source.revision}" if source.revision else ""
    include = f" --include '{folder}/*'" if folder else " --include '*.parquet'"
    what = f"the parquet files under {folder}/" if folder else "its parquet files"
    advice = (
        f"on a machine with a network, fetch {what} with `hf download {source.repo} --repo-type dataset{at}{include} "
        "--local-dir FOLDER`, then write source.path=FOLDER"
    )
    texts: dict[str, str] = {}
    with _hub_errors(f"the dataset {source.repo} (revision {source.revision or 'main'})", advice, SourceError):
        info = HfApi().dataset_info(source.repo, revision=source.revision, timeout=_TIMEOUT_S, files_metadata=True)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
        for name in {_CARD, _MORE_CARD} & set(sizes):
            path = hf_hub_download(source.repo, name, repo_type="dataset", revision=info.sha)
            texts[name] = _read_text(path, name)
    root = f"hf://datasets/{source.repo}@{info.sha}"
    return (
        {name: SourceFile(name, f"{root}/{name}", size) for name, size in sizes.items()},
        _merge_cards(texts),
        info.sha,
    )


@contextmanager
def _hub_errors(what: str, advice: str, error_class: type[PacktrainError]) -> Iterator[None]:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    unreachable: tuple[type[Exception], ...] = (OSError, HfHubHTTPError, *network_errors())
    try:
        yield
    except GatedRepoError:
        raise error_class(
            f"{what} requires you to accept its terms; accept them on its page, then run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise error_class(f"{what} is not on the hub, or private; check the name, or run `hf auth login`") from None
    except HFValidationError as error:
        raise error_class(f"{what} is not a valid name on the hub ({error}); write owner/name") from None
    except unreachable as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise error_class(f"{what} cannot be reached ({reason}); {advice}") from None


def _read_card(text: str, card: str) -> Any:
    """The YAML at the head of a README.md, or all of a .yaml file."""
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if card == _CARD:
        found = REGEX_YAML_BLOCK.search(text.removeprefix("\ufeff"))
        text = found[2] if found else ""
    try:
        value = yaml.safe_load(text)
    # Some texts make PyYAML raise what it does not document.
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        mark = getattr(error, "problem_mark", None)
        where = type(error).__name__ if mark is None else f"at line {mark.line + 1 + (card == _CARD)}"
        raise SourceError(
            f"the dataset's card ({card}) cannot be followed: its front matter is not YAML ({where}); fix it, or leave the file out"
        ) from None
    return {} if value is None else value


def _merge_cards(texts: dict[str, str]) -> Any:
    """As in `datasets`: the keys of .huggingface.yaml replace those of README.md."""
    cards = [_read_card(texts[name], name) for name in (_CARD, _MORE_CARD) if name in texts]
    for card in cards:
        read_card(card)
    return {key: value for card in cards for key, value in card.items()}


def _common_folder(names: Iterable[str]) -> str:
    folders = [posixpath.dirname(name) for name in names]
    common = posixpath.commonpath(folders) if folders else ""
    return f"{common}/" if common else ""

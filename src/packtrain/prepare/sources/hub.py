"""Decides which files on the Hugging Face hub, or in a local copy, the name of a dataset or tokenizer means."""

import difflib
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packtrain.config.recipe import SourceConfig
from packtrain.errors import PacktrainError, SourceError, TokenizerError
from packtrain.prepare.sources.listing import list_files
from packtrain.prepare.sources.slices import SourceFile
from packtrain.storage.files import network_errors

_TIMEOUT_S = 20
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def find_dataset_files(source: SourceConfig) -> tuple[list[SourceFile], str | None]:
    """The parquet files of a configuration and split of a hub dataset, and the commit they are read at.

    With `source.path` they come from a local copy of the repository, or from a folder of its parquet files, and there is no
    commit. Names are relative to the files' common folder, so all three give the same dataset. Raises SourceError if nothing
    matches, or the hub cannot be reached.
    """
    if source.path is not None:
        files, commit = _local_copy(source), None
    else:
        files, commit = _on_hub(source)
    folder = _common_folder([file.name for file in files])
    return [SourceFile(f.name.removeprefix(folder), f.url, f.size) for f in files], commit


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


def select(names: Sequence[str], card: dict[str, Any], config: str | None, split: str) -> list[str]:
    """From all file names of a repository, the parquet files of a configuration's split.

    If the dataset card lists configurations, it decides. Otherwise the usual layouts do: a folder named after the
    configuration (`sample-10BT` is `sample/10BT` or `10BT`), the files at the top, or without a configuration every file;
    and of these the ones named after the split, if there are any. Raises SourceError for an unknown configuration or split.
    """
    parquet = sorted(n for n in names if n.endswith(".parquet"))
    patterns = _card_patterns(card, config, split)
    if patterns:
        from fsspec.utils import glob_translate

        matchers = [re.compile(glob_translate(pattern)) for pattern in patterns]
        listed = [n for n in parquet if any(m.match(n) for m in matchers)]
        if listed:
            return listed
    for folder in _config_folders(config):
        inside = [n for n in parquet if n.startswith(folder + "/")]
        if inside:
            return _of_split(inside, split)
    top = [n for n in parquet if "/" not in n]
    if top or config is None or not parquet:
        return _of_split(top or parquet, split)
    there = ", ".join(sorted({n.rpartition("/")[0] for n in parquet})[:6])
    raise SourceError(
        f"there are no parquet files in {' or '.join(_config_folders(config))} for source.config={config}, only in {there}; "
        "write source.config= with one of these, or source.path= with the folder that holds the files"
    )


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


def _local_copy(source: SourceConfig) -> list[SourceFile]:
    assert source.path is not None
    files = list_files(source.path, (".parquet",))
    folder = Path(source.path).expanduser()
    if not folder.is_dir():
        return files
    by_name = {file.name: file for file in files}
    names = select(list(by_name), _card_of(folder / "README.md"), source.config, source.split)
    return [by_name[name] for name in names]


def _on_hub(source: SourceConfig) -> tuple[list[SourceFile], str | None]:
    from huggingface_hub import HfApi

    assert source.repo is not None
    folder = next(_config_folders(source.config), None)
    at = f" --revision {source.revision}" if source.revision else ""
    include = f" --include '{folder}/*'" if folder else " --include '*.parquet'"
    what = f"the parquet files under {folder}/" if folder else "its parquet files"
    advice = (
        f"on a machine with a network, fetch {what} with `hf download {source.repo} --repo-type dataset{at}{include} "
        "--local-dir FOLDER`, then write source.path=FOLDER"
    )
    with _hub_errors(f"the dataset {source.repo} (revision {source.revision or 'main'})", advice, SourceError):
        info = HfApi().dataset_info(source.repo, revision=source.revision, timeout=_TIMEOUT_S, files_metadata=True)
    sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
    card = info.card_data.to_dict() if info.card_data else {}
    names = select(list(sizes), card, source.config, source.split)
    if not names:
        raise SourceError(
            f"the dataset {source.repo} has no parquet files for source.config={source.config} source.split={source.split}; "
            "try source.revision=refs/convert/parquet, the hub's own conversion"
        )
    root = f"hf://datasets/{source.repo}@{info.sha}"
    return [SourceFile(name, f"{root}/{name}", sizes[name]) for name in names], info.sha


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


def _card_of(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    from huggingface_hub import metadata_load

    return metadata_load(path) or {}


def _card_patterns(card: dict[str, Any], config: str | None, split: str) -> list[str]:
    configs = {c.get("config_name", "default"): c for c in card.get("configs") or [] if c.get("data_files")}
    if not configs:
        return []
    if config is None:
        default = [c for c in configs.values() if c.get("default") or c.get("config_name") == "default"]
        chosen = default[0] if default else next(iter(configs.values()))
    elif config in configs:
        chosen = configs[config]
    else:
        near = difflib.get_close_matches(config, configs, n=3, cutoff=0.5) or list(configs)[:6]
        raise SourceError(
            f"the dataset has no configuration '{config}'; write source.config= with one of {', '.join(near)}"
        )
    files = chosen["data_files"]
    entries = files if isinstance(files, list) else [files]
    by_split: dict[str, list[str]] = {}
    for entry in entries:
        name, paths = (entry.get("split", "train"), entry["path"]) if isinstance(entry, dict) else ("train", entry)
        by_split.setdefault(name, []).extend([paths] if isinstance(paths, str) else paths)
    if split not in by_split:
        raise SourceError(f"the dataset has no split '{split}'; write source.split= with one of {', '.join(by_split)}")
    return by_split[split]


def _config_folders(config: str | None) -> Iterator[str]:
    if config:
        yield config.replace("-", "/")
        yield config
        yield config.rpartition("-")[2]


def _of_split(names: Sequence[str], split: str) -> list[str]:
    """The names whose file or folder is named after the split; all names if there are none."""
    named = [n for n in names if re.search(rf"(^|/){re.escape(split)}([-./_]|$)", n)]
    return named or list(names)


def _common_folder(names: Iterable[str]) -> str:
    folders = [posixpath.dirname(name) for name in names]
    common = posixpath.commonpath(folders) if folders else ""
    return f"{common}/" if common else ""

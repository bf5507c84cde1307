"""Decides how an export is uploaded to the Hugging Face hub: whole, to a private repository, and never by itself."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packtrain.errors import ExportError
from packtrain.pretrained.trained_on import SEAL
from packtrain.storage.atomic import hash_file
from packtrain.storage.json_file import parse_json
from packtrain.storage.regular import read_regular

_ATTRIBUTES = ".gitattributes"
"""Of the repository itself: it says which files are of type LFS."""


def check_repo(repo: str) -> None:
    """Raises ExportError unless `repo` can be a repository's name with its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        is_valid = repo.count("/") == 1 and all(repo.split("/"))
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise ExportError(f"'{repo}' is not a repository of the hub; write --push owner/name, as in --push me/my-model")


def upload(folder: Path, repo: str, *, public: bool = False) -> str:
    """Uploads a whole export and gives the repository's address.

    A new repository is private unless `public`; one that exists stays as it is. What an earlier upload had and this export has
    not is deleted there. Raises ExportError as said in `packtrain.push`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    check_repo(repo)
    seal = _check_whole(folder)
    if get_token() is None:
        raise ExportError(
            f"there is no token to upload {folder} with; set HF_TOKEN to one that may write, from "
            "https://huggingface.co/settings/tokens, or run `hf auth login`"
        )
    api = HfApi()
    with _explained(folder, repo):
        address = api.create_repo(repo, repo_type="model", private=not public, exist_ok=True)
        old = set(api.list_repo_files(repo)) - {*seal["files"], SEAL, _ATTRIBUTES}
        adds = [CommitOperationAdd(name, folder / name) for name in sorted(seal["files"])]
        adds.append(CommitOperationAdd(SEAL, (json.dumps(_without_folders(seal), indent=2) + "\n").encode()))
        deletions = [CommitOperationDelete(name) for name in sorted(old)]
        api.create_commit(repo, [*adds, *deletions], commit_message="Upload by packtrain")
    return str(address)


def _check_whole(folder: Path) -> dict[str, Any]:
    """What an export's seal says. Raises ExportError if the folder is none, or a file is not the one that was checked."""
    try:
        seal: dict[str, Any] = parse_json(read_regular(folder / SEAL))
        files: dict[str, str] = seal["files"]
        changed = [name for name, known in files.items() if hash_file(folder / name) != known]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ExportError(f"{folder} is not a whole export made by packtrain; export the model again") from None
    if changed:
        raise ExportError(f"{folder / changed[0]} has changed since it was exported; export the model again")
    return seal


def _without_folders(seal: dict[str, Any]) -> dict[str, Any]:
    """The seal as others get it: where the datasets were on this machine is nobody else's business."""
    if not isinstance(seal.get("datasets"), list):
        return seal
    parts = (part for part in seal["datasets"] if isinstance(part, dict))
    kept = [{key: value for key, value in part.items() if key != "folder"} for part in parts]
    return {**seal, "datasets": kept}


@contextlib.contextmanager
def _explained(folder: Path, repo: str) -> Iterator[None]:
    """Turns what the hub or the network refuses into one sentence, which says how to try again."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    again = f"the export is whole; upload it with `packtrain export {folder} --push {repo}`"
    unreachable: tuple[type[Exception], ...] = (*_connection_errors(), OSError)
    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except OfflineModeIsEnabled:
        raise ExportError(f"HF_HUB_OFFLINE is set, so nothing was uploaded; {again} without it") from None
    except HfHubHTTPError as error:
        code = None if error.response is None else error.response.status_code
        reason = {401: "the token is not valid", 403: f"the token may not write to {repo}"}.get(code or 0)
        said = " ".join(str(error.server_message or error).split())[:200]
        raise ExportError(f"the hub refused the upload ({reason or said}); {again}") from None
    except unreachable as error:
        raise ExportError(f"the hub cannot be reached ({_shorten(error)}); {again}") from None
    except (ValueError, RuntimeError) as error:
        # Of one of the files: what LFS or Xet says of it, such as that there is no room for it.
        raise ExportError(f"the hub did not take the files ({_shorten(error.__cause__ or error)}); {again}") from None
    finally:
        if not were_off:
            enable_progress_bars()


def _shorten(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _connection_errors() -> tuple[type[Exception], ...]:
    """Those of the library that makes connections, which is another in each version of huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception))

"""Models on the Hub: found in its cache or fetched, and uploaded."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from dualtower.errors import ModelFolderError
from dualtower.hub.model_folder import CONFIG, README, TOKENIZER, WEIGHTS, FolderParts, current_folder, write_folder

__all__ = ["find_folder", "push_folder"]


def find_folder(name: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """Return the folder of a model: `name` itself, or the cached copy of a Hub repository.

    Raises:
        ModelFolderError: Neither a folder nor a model that the Hub or its cache has.
    """
    folder = current_folder(Path(name))
    if folder.is_dir():
        return folder
    advice = "give a folder that save_pretrained wrote, or user/name of a model on the Hub"
    if isinstance(name, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise ModelFolderError(f"no model {str(name)!r}: there is no such folder; {advice}")
    from huggingface_hub import snapshot_download

    patterns = [CONFIG, WEIGHTS, README, f"{TOKENIZER}/*"]
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=local_files_only)
    except Exception as error:  # the client's own classes, those of its HTTP library, and the operating system's
        raise ModelFolderError(
            f"no model {name!r}: there is no such folder, and the Hub answers: {_first_line(error)}; {advice}"
        ) from error
    return Path(found)


def push_folder(
    repo_id: str, parts: FolderParts, *, private: bool | None, revision: str | None, commit_message: str
) -> str:
    """Upload a model folder to the Hub and return the commit's URL.

    Raises:
        ModelFolderError: The Hub refused (not logged in, no such user, no network).
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="dualtower")
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_folder(Path(temporary) / "model", parts)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                delete_patterns=f"{TOKENIZER}/*",  # another tokenizer may have other files
            )
        except Exception as error:  # as above
            raise ModelFolderError(
                f"the Hub did not take {repo_id!r}: {_first_line(error)}. Log in with: hf auth login"
            ) from error
    return str(commit.commit_url)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__

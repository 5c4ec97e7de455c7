"""Tables of text in a Hub dataset, downloaded to be read as local ones are: by all of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualtower.data.layout import METADATA, Layout
from dualtower.data.tables import TABLE_SUFFIXES

__all__ = ["download_tables"]


def download_tables(builder: Any, repo: str) -> Layout | None:
    """Fetch the files of a dataset that `datasets` would read as CSV, JSON or an image folder with such metadata.

    Args:
        builder: Result of `datasets.load_dataset_builder`.
        repo: Dataset id on the Hub.

    Returns:
        Their layout; None where the dataset consists of other files, such as Parquet, whose types are their own.
    """
    from huggingface_hub import snapshot_download

    builder_name = type(builder).__module__.rpartition(".")[2]
    if builder_name not in ("csv", "json", "imagefolder"):
        return None
    prefix = f"hf://datasets/{repo}@"
    splits: dict[str, list[str]] = {}
    revisions, wanted = set(), []
    for split, urls in builder.config.data_files.items():
        for url in urls:
            revision, _, path = url.removeprefix(prefix).partition("/")
            if not url.startswith(prefix):  # elsewhere on the web
                return None
            revisions.add(revision)
            wanted.append(path)
            if builder_name != "imagefolder" or Path(path).name in METADATA:
                splits.setdefault(str(split), []).append(path)
    tables = [path for paths in splits.values() for path in paths]
    if not tables or len(revisions) > 1 or any(Path(path).suffix.lower() not in TABLE_SUFFIXES for path in tables):
        return None
    folder = Path(snapshot_download(repo, repo_type="dataset", revision=revisions.pop(), allow_patterns=wanted))
    return Layout(folder, builder_name, {split: [folder / path for path in paths] for split, paths in splits.items()})

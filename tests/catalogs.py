"""Small catalogs on disk, in every format that a shop may have, for the tests of the data rooms."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from dualtower.data.cards import CardSource, Columns, DataCard, Splits

COLORS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "white": (250, 250, 250)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`datasets` converts what it reads into its cache, and rows are kept beside it: each test gets its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "rows-cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def jpeg(color: str, width: int = 12) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, 16), COLORS[color]).save(stream, "JPEG")
    return stream.getvalue()


def rows(count: int = 4, start: int = 0) -> list[dict[str, Any]]:
    """Products with two rows each: sku-0 and sku-1 are the same mug in different words and images."""
    names = list(COLORS)
    return [
        {
            "sku": f"sku-{i}",
            "item": f"mug-{i // 2}",
            "brand": "Acme" if i % 2 else None,
            "title": f"{names[i // 2 % 4]} mug {i // 2}",
            "color": names[i // 2 % 4],
            "photo": jpeg(names[i // 2 % 4], width=12 + i),
        }
        for i in range(start, start + count)
    ]


def card(
    *, text: str | list[str] = "title", image: str | None = "photo", splits: Splits | None = None, **columns: Any
) -> DataCard:
    columns = {"id": "sku", "product_id": "item", "attributes": ["color"], **columns}
    return DataCard(
        name="shop",
        title="A shop",
        columns=Columns(text=text, image=image, **columns),
        source=CardSource(),
        splits=splits or Splits(by_hash=None),
    )


def write_parquet(file: Path, table: Sequence[dict[str, Any]], *, photos: str = "bytes") -> Path:
    """`photos` is bytes, Image (as `datasets` writes it), or relative (files beside the table)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if photos == "relative":
        dataset = datasets.Dataset.from_list(with_files(file.parent, table))
    else:
        dataset = datasets.Dataset.from_list(list(table))
        if photos == "Image":
            dataset = dataset.cast_column("photo", datasets.Image())
    dataset.to_parquet(str(file))
    return file.parent


def write_csv(file: Path, table: Sequence[dict[str, Any]], *, delimiter: str = ",") -> Path:
    listed = with_files(file.parent, table)
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=listed[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(listed)
    return file.parent


def write_jsonl(file: Path, table: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in with_files(file.parent, table)))
    return file.parent


def write_image_folder(folder: Path, table: Sequence[dict[str, Any]], *, kind: str = "csv") -> Path:
    """Images beside a metadata file; `datasets` calls their column ``image``."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{("file_name" if k == "photo" else k): v for k, v in row.items()} for row in with_files(folder, table)]
    if kind == "csv":
        with (folder / "metadata.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=listed[0])
            writer.writeheader()
            writer.writerows(listed)
    else:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return folder


def write_tar(file: Path, table: Sequence[dict[str, Any]]) -> Path:
    """A WebDataset shard."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for row in table:
            about = {k: v for k, v in row.items() if k != "photo"}
            parts = {"jpg": row["photo"], "txt": row["title"].encode(), "json": json.dumps(about).encode()}
            for extension, content in parts.items():
                entry = tarfile.TarInfo(f"{row['sku']}.{extension}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return file.parent


def with_files(folder: Path, table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their photos written below `folder` and replaced by relative paths."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    listed = []
    for row in table:
        if row["photo"] is not None:
            (folder / "photos" / f"{row['sku']}.jpg").write_bytes(row["photo"])
        listed.append({**row, "photo": f"photos/{row['sku']}.jpg"})
    return listed

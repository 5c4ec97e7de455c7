"""Embed a catalog with many workers: each writes whole shards, and whatever is there is not done again.

A shard is a Parquet file of some thousand rows, named by a hash of their ids and put in place by a rename; each row
says what it was made from. So a worker that is lost costs its shard only, two workers that do the same one do no harm,
and a run that is started again does what is missing. One process then brings the shards into the catalog.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualtower.data.items import ItemDataset
from dualtower.errors import CatalogError, MissingExtra
from dualtower.files import atomic_write
from dualtower.models.dual_tower import DualTower
from dualtower.search.ingest.embed import BLOCK, Indexed, Target, digest_of, embed
from dualtower.search.records import CatalogInfo, EmbeddedItem
from dualtower.types import Item

__all__ = ["Shard", "embed_shard", "embed_with_ray", "import_shards", "plan_shards", "read_shard"]

ROWS = 2048


@dataclass(frozen=True)
class Shard:
    """Some rows to be looked at, and embedded where they are new, together.

    Attributes:
        path: File to be written.
        rows: Numbers of the rows.
        held: The digest of each row that the catalog holds; empty where it does not hold the row.
    """

    path: Path
    rows: tuple[int, ...]
    held: tuple[str, ...]


def plan_shards(items: Sequence[Item], info: CatalogInfo, folder: Path, *, held: dict[str, str]) -> list[Shard]:
    """Divide all rows into shards; every process that plans the same rows plans the same shards.

    No image is read for it: which rows have changed is found out by the worker that has a shard.

    Args:
        items: All rows.
        info: Info of the catalog.
        folder: For the files.
        held: Id -> digest of what the catalog holds already.
    """
    ids = items.columns.ids if isinstance(items, ItemDataset) else [item.id for item in items]
    shards = []
    for start in range(0, len(ids), ROWS):
        some = ids[start : start + ROWS]
        rows = tuple(range(start, start + len(some)))
        digests = tuple(held.get(row_id, "") for row_id in some)
        content = [info.fingerprint, *(f"{row_id} {digest}" for row_id, digest in zip(some, digests, strict=True))]
        name = hashlib.blake2b("\n".join(content).encode(errors="surrogatepass"), digest_size=12).hexdigest()
        shards.append(Shard(folder / f"{name}.parquet", rows, digests))
    return shards


def embed_shard(shard: Shard, model: DualTower, items: Sequence[Item], info: CatalogInfo, **options: Any) -> None:
    """Embed the rows of a shard that are new and write it, unless just these lie there.

    Raises:
        CatalogError: The file system refused.
    """
    rows = [items[i] for i in shard.rows]
    digests = [digest_of(item) for item in rows]
    changed = [i for i, digest in enumerate(digests) if digest != shard.held[i]]
    if _holds(shard, {rows[i].id: digests[i] for i in changed}):
        return
    embedded = list(embed(model.for_inference(), [rows[i] for i in changed], info, **options))
    columns: dict[str, Any] = {
        "id": [row.id for row in embedded],
        "product_id": [row.product_id for row in embedded],
        "title": [row.title for row in embedded],
        "attributes": [json.dumps(dict(row.attributes), ensure_ascii=False) for row in embedded],
        "digest": [row.digest for row in embedded],
        "image": pa.array([row.image for row in embedded], pa.binary()),
    }
    for vector_name in info.vector_names:
        vectors = [
            None if vector_name not in i.vectors else np.float16(i.vectors[vector_name]).tobytes() for i in embedded
        ]
        columns[f"vector/{vector_name}"] = pa.array(vectors, pa.binary())
    try:
        with atomic_write(shard.path) as partial:
            pq.write_table(pa.table(columns), partial)
    except OSError as error:
        raise CatalogError(f"cannot write {shard.path}: {error}. Shards that are there stay") from error


def read_shard(shard: Shard, info: CatalogInfo) -> Iterator[EmbeddedItem]:
    """The items of a shard.

    Raises:
        CatalogError: The file is missing or broken.
    """
    try:
        rows = pq.read_table(shard.path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"cannot read {shard.path}: {error}; remove it and start again") from error
    for row in rows:
        vectors = {
            vector_name: np.frombuffer(row[f"vector/{vector_name}"], np.float16)
            for vector_name in info.vector_names
            if row[f"vector/{vector_name}"] is not None
        }
        plain = (row["id"], row["product_id"], row["title"], json.loads(row["attributes"]))
        yield EmbeddedItem(*plain, vectors, row["image"], row["digest"])


def import_shards(store: Target, shards: Sequence[Shard], *, total: int) -> Indexed:
    """Bring shards into a store; each file is removed once its rows are accepted.

    Raises:
        CatalogError: A shard is missing or broken.
    """
    written = 0
    for shard in shards:
        embedded = list(read_shard(shard, store.info))
        for start in range(0, len(embedded), BLOCK):
            store.upsert(embedded[start : start + BLOCK])
        shard.path.unlink()
        written += len(embedded)
    if shards and not any(shards[0].path.parent.iterdir()):
        shards[0].path.parent.rmdir()
    return Indexed(written, total - written)


def _holds(shard: Shard, wanted: dict[str, str]) -> bool:
    """Whether the file of a shard is whole and of just these rows, id -> digest."""
    try:
        held = pq.read_table(shard.path, columns=["id", "digest"]).to_pydict()
    except (OSError, pa.ArrowException):
        return False
    return dict(zip(held["id"], held["digest"], strict=True)) == wanted


def embed_with_ray(
    shards: Sequence[Shard],
    model: str,
    load: Any,
    info: CatalogInfo,
    *,
    workers: int,
    address: str | None = None,
    device: str = "auto",
) -> None:
    """Embed shards with Ray Data; a worker that is lost is replaced, and its shard done again.

    Args:
        shards: From `plan_shards`; their folder must be one that all workers reach.
        model: Folder or Hub id of the model.
        load: Loads the products; called once in every worker.
        info: Info of the catalog.
        workers: How many.
        address: Address of a Ray cluster; None takes the one that is there, or starts one on this machine.
        device: Where each worker embeds, see `dualtower.device.find_device`.

    Raises:
        MissingExtra: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray") from None

    class Embedder:
        """One worker: a model and the products."""

        def __init__(self) -> None:
            placed = DualTower.from_pretrained(model).placed(device)
            self.model, self.items = placed.for_inference(info.precision), load()
            self.shards: list[Shard] = ray.get(planned)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            for number in batch["id"].tolist():
                embed_shard(self.shards[number], self.model, self.items, info)
            return batch

    if not shards:
        return
    if not ray.is_initialized():
        ray.init(address=address, logging_level="warning", include_dashboard=False)
    planned = ray.put(list(shards))
    gpus = 0.0 if device == "cpu" else ray.cluster_resources().get("GPU", 0.0)
    share = min(1.0, gpus / workers) if gpus else None  # Ray shows a worker no GPU that it was not given
    numbers = ray.data.from_items([{"id": i} for i in range(len(shards))], override_num_blocks=len(shards))
    numbers.map_batches(Embedder, batch_size=1, concurrency=workers, num_gpus=share).materialize()

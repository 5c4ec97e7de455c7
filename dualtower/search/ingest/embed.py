"""From products to a catalog: embed what is new or has changed, block by block, each committed before the next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from dualtower.data.items import ItemDataset
from dualtower.errors import BrokenImage, CatalogError, DataError
from dualtower.models.dual_tower import DualTower
from dualtower.models.precision import ROWS, TowerPrecision, WantedPrecision, inference_precision, measure_precision
from dualtower.search.ingest.thumbnails import image_bytes, make_thumbnail
from dualtower.search.records import CatalogInfo, EmbeddedItem, stored_attributes
from dualtower.search.store import Store, create_store, open_store, store_exists
from dualtower.types import Item

__all__ = [
    "Indexed",
    "Target",
    "attribute_types_of",
    "check_model",
    "digest_of",
    "embed",
    "index_products",
    "notes_on_rows",
    "open_or_create",
    "precision_to_index",
    "unseen_rows",
]

BLOCK = 512
"""Rows that are embedded and committed at a time: what a killed run has to do again."""


@dataclass(frozen=True)
class Indexed:
    """What was done.

    Attributes:
        written: Rows that were embedded.
        unchanged: Rows that stood in the catalog already.
    """

    written: int
    unchanged: int


class Target(Protocol):
    """What rows are brought into: a store, or a catalog folder."""

    @property
    def info(self) -> CatalogInfo:
        """What it holds."""

    def digests(self) -> dict[str, str]:
        """Id -> digest of all rows."""

    def upsert(self, items: Sequence[EmbeddedItem]) -> None:
        """Add rows, replacing those with the same ids."""


def open_or_create(
    where: str | Path,
    model: DualTower,
    *,
    name: str,
    attributes: Mapping[str, str],
    card: str = "",
    precision: Callable[[], TowerPrecision] | None = None,
) -> Store:
    """Open a store that this model may write to, or make it.

    Args:
        where: Folder of a catalog, or ``milvus://host:port/name``.
        model: Whose vectors it holds.
        name: Folder or Hub id of the model, so that a search can load it.
        attributes: Attribute -> ``text`` or ``number``.
        card: Name of the data card.
        precision: Chooses in what the rows of a new one are embedded; None is what the model computes in.

    Raises:
        CatalogError: It holds vectors of another model.
    """
    if store_exists(where):
        store = open_store(where)
        check_model(store.info, model)
        return store
    model.config.require_tower("cannot index")
    vector_names = (*model.config.modalities, "product") if model.fusion is not None else model.config.modalities
    read = model.config.fusion.attributes if model.config.fusion else None
    info = CatalogInfo(
        model=str(Path(name).resolve()) if Path(name).exists() else name,
        fingerprint=model.fingerprint,
        dim=model.config.embed_dim,
        vector_names=vector_names,
        attributes=dict(attributes),
        card=card,
        embedded_attributes=tuple(attribute for attribute in attributes if read and attribute in read.names),
        precision=model.precision if precision is None else precision(),
    )
    return create_store(where, info)


def precision_to_index(model: DualTower, items: Sequence[Item], wanted: WantedPrecision) -> TowerPrecision:
    """Choose what to embed a catalog in: what was asked for, what the accelerator has, or what is fastest here.

    Args:
        model: On the device that it will embed on.
        items: Their first titles are what the text tower is tried on.
        wanted: ``auto``, ``fp32`` or ``bf16``.
    """
    if wanted != "auto" or model.device.type != "cpu":
        return inference_precision(model.device, wanted)
    first = (items[i] for i in range(min(ROWS, len(items))))
    titles = [item.texts[0] for item in first if item.texts]
    tokens = model.collator().tokens(titles or ["-"]) if model.text_tower is not None else None
    return measure_precision(model.for_inference(), tokens)


def check_model(info: CatalogInfo, model: DualTower) -> None:
    """Refuse a model whose vectors would not fit those of a catalog.

    Raises:
        CatalogError: It is another model.
    """
    if model.fingerprint != info.fingerprint:
        raise CatalogError(
            f"the catalog holds vectors of model {info.fingerprint} ({info.model}), this one is {model.fingerprint}; "
            "vectors of two models do not compare. Index into a new folder"
        )


def attribute_types_of(items: ItemDataset, numeric: Sequence[str] = ()) -> dict[str, str]:
    """Attribute -> ``number`` where the card says so or every value is one, else ``text``."""
    vector_names = {}
    for name, values in items.columns.attributes.items():
        known = (value for value in values if value is not None and value != "")
        of_numbers = {isinstance(v, int | float) and not isinstance(v, bool) for v in known}
        numbers = of_numbers == {True}
        vector_names[name] = "number" if name in numeric or numbers else "text"
    return vector_names


def index_products(
    target: Target,
    model: DualTower,
    items: Sequence[Item],
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> Indexed:
    """Bring a store up to date with some products; may be killed and called again at any time.

    Args:
        target: A store of this model, see `open_or_create`.
        model: Embeds.
        items: Rows. What it holds beside them stays.
        batch_size: Rows per forward pass.
        progress: Show a progress bar.

    Raises:
        BrokenImage: An image cannot be decoded. What was committed before stays.
    """
    check_model(target.info, model)
    held, model = target.digests(), model.for_inference()
    written = 0
    with tqdm(total=len(items), unit="row", disable=not progress) as bar:
        for start in range(0, len(items), BLOCK):
            block = [items[i] for i in range(start, min(start + BLOCK, len(items)))]
            new = [item for item in block if held.get(item.id) != digest_of(item)]
            target.upsert(list(embed(model, new, target.info, batch_size=batch_size)))
            written += len(new)
            bar.update(len(block))
    return Indexed(written, len(items) - written)


def embed(
    model: DualTower,
    items: Sequence[Item],
    info: CatalogInfo,
    *,
    batch_size: int = 256,
) -> Iterator[EmbeddedItem]:
    """Make items of products: vectors of every kind that a product and the store have.

    A row has one vector of each kind: that of its first caption; the mean of those of its images, of which the first
    is shown; and the fused one of the first caption and the first image (`notes_on_rows`).
    """
    if not items:
        return
    vectors: list[dict[str, Any]] = [{} for _ in items]
    with_images = [i for i, item in enumerate(items) if item.image is not None and "image" in info.vector_names]
    titled = [i for i, item in enumerate(items) if item.texts and "text" in info.vector_names]
    if with_images:
        for i, vector in zip(
            with_images, _image_vectors(model, [items[i] for i in with_images], batch_size), strict=True
        ):
            vectors[i]["image"] = vector
    if titled:
        texts = model.encode_text([items[i].texts[0] for i in titled], batch_size=batch_size)
        for i, vector in zip(titled, texts, strict=True):
            vectors[i]["text"] = vector
    if "product" in info.vector_names:
        fused = model.encode_product(
            text=[item.texts[0] if item.texts else None for item in items],
            image=[item.image for item in items],
            attributes=[dict(item.attributes) for item in items],
            batch_size=batch_size,
        )
        for i, vector in enumerate(fused):
            vectors[i]["product"] = vector
    for item, made in zip(items, vectors, strict=True):
        yield EmbeddedItem(
            id=item.id,
            product_id=item.product_id,
            title=item.texts[0] if item.texts else "",
            attributes=stored_attributes(info, item.id, item.attributes),
            vectors=made,
            image=None if item.image is None else make_thumbnail(item.image),
            digest=digest_of(item),
        )


def digest_of(item: Item) -> str:
    """A hash of all that a row is made from."""
    digest = hashlib.blake2b(digest_size=12)
    plain = [item.product_id, list(item.texts), dict(item.attributes)]
    digest.update(json.dumps(plain, ensure_ascii=False, default=str).encode())
    for image in item.images:
        digest.update(image_bytes(image))
    return digest.hexdigest()


def unseen_rows(items: ItemDataset, model: DualTower) -> int:
    """Count the rows that lack what a model with one tower embeds: no search will find them.

    Raises:
        DataError: All rows do.
    """
    model.config.require_tower("cannot index")
    if len(model.config.modalities) > 1:
        return 0
    (modality,) = model.config.modalities
    lacking = items.images.sizes() < 0 if modality == "image" else [not captions for captions in items.columns.texts]
    unseen = int(np.sum(lacking))
    if unseen and unseen == len(items):
        raise DataError(
            f"no row of {items.card} has an {modality}, and this model embeds nothing else; name the column of the "
            f"{modality}s in the card, or index with another model"
        )
    return unseen


def notes_on_rows(items: ItemDataset, model: DualTower) -> list[str]:
    """Sentences about what a catalog makes of rows with several images or captions, or without what is embedded."""
    notes, modalities = [], model.config.modalities
    if unseen := unseen_rows(items, model):
        notes.append(
            f"{unseen:,} rows have no {modalities[0]}, which is all that this model embeds: no search finds them"
        )
    with_images = len(np.unique(items.extra_images.rows)) if "image" in modalities else 0
    if with_images:
        notes.append(
            f"{with_images:,} rows have several images: their image vector is the mean of all, the first is shown"
        )
    titled = sum(len(captions) > 1 for captions in items.columns.texts) if "text" in modalities else 0
    if titled:
        notes.append(f"{titled:,} rows have several captions: their text vector is that of the first, their title")
    return notes


def _image_vectors(model: DualTower, items: Sequence[Item], batch_size: int) -> np.ndarray:
    """A vector per row: the mean over its images, of unit length under cosine; an error names the image."""
    images = [(row, number, image) for row, item in enumerate(items) for number, image in enumerate(item.images)]
    try:
        vectors = model.encode_image([image for _, _, image in images], batch_size=batch_size)
    except BrokenImage as error:
        row, number, _ = images[int(str(error.row))]
        name = items[row].id + (f", image {number + 1}" if number else "")
        raise BrokenImage("index", name, error.reason) from error
    if len(images) == len(items):
        return vectors
    counts = np.array([len(item.images) for item in items])
    means = np.add.reduceat(vectors, np.cumsum(counts) - counts) / counts[:, None]
    if model.config.similarity == "cosine":
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    several = counts > 1
    vectors = vectors[np.cumsum(counts) - counts]
    vectors[several] = means[several]
    return vectors

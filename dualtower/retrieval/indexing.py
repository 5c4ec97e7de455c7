"""From products to a catalogue: embed what is new or has changed, block by block, each committed before the next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from dualtower.data.products import Products
from dualtower.errors import BrokenImage, CatalogueError, DataError
from dualtower.model import DualTower
from dualtower.precision import ROWS, TowerPrecision, WantedPrecision, inference_precision, measure_precision
from dualtower.retrieval.records import CatalogueInfo, Item, stored_attributes
from dualtower.retrieval.shown import picture_bytes, shown_picture
from dualtower.retrieval.store import Store, create_store, open_store, store_exists
from dualtower.types import Product

__all__ = [
    "Indexed",
    "Target",
    "attribute_kinds",
    "check_model",
    "digest_of",
    "embed",
    "index_products",
    "open_or_create",
    "precision_to_index",
    "said_of_rows",
    "unseen_rows",
]

BLOCK = 512
"""Rows that are embedded and committed at a time: what a killed run has to do again."""


@dataclass(frozen=True)
class Indexed:
    """What was done.

    Attributes:
        written: Rows that were embedded.
        unchanged: Rows that stood in the catalogue already.
    """

    written: int
    unchanged: int


class Target(Protocol):
    """What rows are brought into: a store, or a catalogue folder."""

    @property
    def info(self) -> CatalogueInfo:
        """What it holds."""

    def digests(self) -> dict[str, str]:
        """Id -> digest of all rows."""

    def upsert(self, items: Sequence[Item]) -> None:
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
        where: Folder of a catalogue, or ``milvus://host:port/name``.
        model: Whose vectors it holds.
        name: Folder or Hub id of the model, so that a search can load it.
        attributes: Attribute -> ``text`` or ``number``.
        card: Name of the data card.
        precision: Chooses in what the rows of a new one are embedded; None is what the model computes in.

    Raises:
        CatalogueError: It holds vectors of another model.
    """
    if store_exists(where):
        store = open_store(where)
        check_model(store.info, model)
        return store
    kinds = (*model.config.modalities, "product") if model.fusion is not None else model.config.modalities
    read = model.config.fusion.attributes if model.config.fusion else None
    info = CatalogueInfo(
        model=str(Path(name).resolve()) if Path(name).exists() else name,
        fingerprint=model.fingerprint,
        dim=model.config.embed_dim,
        kinds=kinds,
        attributes=dict(attributes),
        card=card,
        embedded_attributes=tuple(attribute for attribute in attributes if read and attribute in read.names),
        precision=model.precision if precision is None else precision(),
    )
    return create_store(where, info)


def precision_to_index(model: DualTower, products: Sequence[Product], wanted: WantedPrecision) -> TowerPrecision:
    """Choose what to embed a catalogue in: what was asked for, what the accelerator has, or what is fastest here.

    Args:
        model: On the device that it will embed on.
        products: Their first titles are what the text tower is tried on.
        wanted: ``auto``, ``fp32`` or ``bf16``.
    """
    if wanted != "auto" or model.device.type != "cpu":
        return inference_precision(model.device, wanted)
    first = (products[i] for i in range(min(ROWS, len(products))))
    titles = [product.texts[0] for product in first if product.texts]
    tokens = model.collator().tokens(titles or ["-"]) if model.text_tower is not None else None
    return measure_precision(model.for_inference(), tokens)


def check_model(info: CatalogueInfo, model: DualTower) -> None:
    """Refuse a model whose vectors would not fit those of a catalogue.

    Raises:
        CatalogueError: It is another model.
    """
    if model.fingerprint != info.fingerprint:
        raise CatalogueError(
            f"the catalogue holds vectors of model {info.fingerprint} ({info.model}), this one is {model.fingerprint}; "
            "vectors of two models do not compare. Index into a new folder"
        )


def attribute_kinds(products: Products, numeric: Sequence[str] = ()) -> dict[str, str]:
    """Attribute -> ``number`` where the card says so or every value is one, else ``text``."""
    kinds = {}
    for name, values in products.attributes.items():
        known = [value for value in values if value is not None and value != ""]
        numbers = bool(known) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
        kinds[name] = "number" if name in numeric or numbers else "text"
    return kinds


def index_products(
    target: Target,
    model: DualTower,
    products: Sequence[Product],
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> Indexed:
    """Bring a store up to date with some products; may be killed and called again at any time.

    Args:
        target: Of this model, see `open_or_create`.
        model: Embeds.
        products: Rows. What it holds beside them stays.
        batch_size: Rows per forward pass.
        progress: Show a progress bar.

    Raises:
        BrokenImage: A picture cannot be decoded. What was committed before stays.
    """
    check_model(target.info, model)
    held, model = target.digests(), model.for_inference()
    written = 0
    with tqdm(total=len(products), unit="row", disable=not progress) as bar:
        for start in range(0, len(products), BLOCK):
            block = [products[i] for i in range(start, min(start + BLOCK, len(products)))]
            new = [product for product in block if held.get(product.id) != digest_of(product)]
            target.upsert(list(embed(model, new, target.info, batch_size=batch_size)))
            written += len(new)
            bar.update(len(block))
    return Indexed(written, len(products) - written)


def embed(
    model: DualTower,
    products: Sequence[Product],
    info: CatalogueInfo,
    *,
    batch_size: int = 256,
) -> Iterator[Item]:
    """Make items of products: vectors of every kind that a product and the store have.

    A row has one vector of each kind: that of its first caption; the mean of those of its pictures, of which the first
    is shown; and the fused one of the first caption and the first picture (`said_of_rows`).
    """
    if not products:
        return
    vectors: list[dict[str, Any]] = [{} for _ in products]
    pictured = [i for i, product in enumerate(products) if product.image is not None and "image" in info.kinds]
    titled = [i for i, product in enumerate(products) if product.texts and "text" in info.kinds]
    if pictured:
        for i, vector in zip(pictured, _image_vectors(model, [products[i] for i in pictured], batch_size), strict=True):
            vectors[i]["image"] = vector
    if titled:
        texts = model.encode_text([products[i].texts[0] for i in titled], batch_size=batch_size)
        for i, vector in zip(titled, texts, strict=True):
            vectors[i]["text"] = vector
    if "product" in info.kinds:
        fused = model.encode_product(
            text=[product.texts[0] if product.texts else None for product in products],
            image=[product.image for product in products],
            attributes=[dict(product.attributes) for product in products],
            batch_size=batch_size,
        )
        for i, vector in enumerate(fused):
            vectors[i]["product"] = vector
    for product, made in zip(products, vectors, strict=True):
        yield Item(
            id=product.id,
            product_id=product.product_id,
            title=product.texts[0] if product.texts else "",
            attributes=stored_attributes(info, product.id, product.attributes),
            vectors=made,
            picture=None if product.image is None else shown_picture(product.image),
            digest=digest_of(product),
        )


def digest_of(product: Product) -> str:
    """A hash of all that a row is made from."""
    digest = hashlib.blake2b(digest_size=12)
    plain = [product.product_id, list(product.texts), dict(product.attributes)]
    digest.update(json.dumps(plain, ensure_ascii=False, default=str).encode())
    for image in product.images:
        digest.update(picture_bytes(image))
    return digest.hexdigest()


def unseen_rows(products: Products, model: DualTower) -> int:
    """Count the rows that lack what a model with one tower embeds: no search will find them.

    Raises:
        DataError: All rows do.
    """
    if len(model.config.modalities) > 1:
        return 0
    (modality,) = model.config.modalities
    lacking = products.pictures.sizes() < 0 if modality == "image" else [not captions for captions in products.texts]
    unseen = int(np.sum(lacking))
    if unseen and unseen == len(products):
        raise DataError(
            f"no row of {products.card} has an {modality}, and this model embeds nothing else; name the column of the "
            f"{modality}s in the card, or index with another model"
        )
    return unseen


def said_of_rows(products: Products, model: DualTower) -> list[str]:
    """Sentences about what a catalogue makes of rows with several pictures or captions, or without what is embedded."""
    said, modalities = [], model.config.modalities
    if unseen := unseen_rows(products, model):
        said.append(
            f"{unseen:,} rows have no {modalities[0]}, which is all that this model embeds: no search finds them"
        )
    pictured = len(np.unique(products.further.rows)) if "image" in modalities else 0
    if pictured:
        said.append(
            f"{pictured:,} rows have several pictures: their picture vector is the mean of all, the first is shown"
        )
    titled = sum(len(captions) > 1 for captions in products.texts) if "text" in modalities else 0
    if titled:
        said.append(f"{titled:,} rows have several captions: their text vector is that of the first, their title")
    return said


def _image_vectors(model: DualTower, products: Sequence[Product], batch_size: int) -> np.ndarray:
    """A vector per row: the mean over its pictures, of unit length under cosine; an error names the picture."""
    images = [
        (row, number, image) for row, product in enumerate(products) for number, image in enumerate(product.images)
    ]
    try:
        vectors = model.encode_image([image for _, _, image in images], batch_size=batch_size)
    except BrokenImage as error:
        row, number, _ = images[int(str(error.row))]
        name = products[row].id + (f", picture {number + 1}" if number else "")
        raise BrokenImage("index", name, error.reason) from error
    if len(images) == len(products):
        return vectors
    counts = np.array([len(product.images) for product in products])
    means = np.add.reduceat(vectors, np.cumsum(counts) - counts) / counts[:, None]
    if model.config.similarity == "cosine":
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    several = counts > 1
    vectors = vectors[np.cumsum(counts) - counts]
    vectors[several] = means[several]
    return vectors

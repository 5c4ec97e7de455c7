"""Rows with several pictures and several captions: read, drawn in training, measured, indexed."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
import shops
from shops import own_cache  # noqa: F401

from dualtower.data.batches import BatchPlan, Collator, PixelCache, training_loader
from dualtower.data.cards import DataCard
from dualtower.data.check import check_card
from dualtower.data.images import ImageSettings
from dualtower.data.loading import find_broken_images, load_products
from dualtower.data.products import Products
from dualtower.errors import BrokenImage
from dualtower.types import Product

FRONT, BACK, SIDE = shops.jpeg("red"), shops.jpeg("green"), shops.jpeg("blue")
ALBUMS = [(FRONT, BACK), (SIDE,), (None, BACK, None, SIDE), (BACK,)]


def table(albums: list[tuple[bytes | None, ...]] = ALBUMS) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key != "photo"} | {"album": list(album)}
        for row, album in zip(shops.rows(len(albums)), albums, strict=True)
    ]


def saved(folder: Path, rows: list[dict[str, Any]], feature: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    dataset = datasets.Dataset.from_list(rows)
    if feature is not None:
        dataset = dataset.cast_column("album", feature)
    dataset.to_parquet(str(folder / "train.parquet"))
    return folder


def load(folder: Path, card: DataCard | None = None, **options: Any) -> Products:
    return load_products(card or shops.card(image="album"), "train", source=folder, **options)


def albums_of(products: Products) -> list[tuple[Any, ...]]:
    return [product.images for product in products]


@pytest.mark.parametrize("kind", ["bytes", "Image", "paths", "columns"])
def test_every_picture_of_a_row_is_read(tmp_path: Path, kind: str) -> None:
    card = shops.card(image="album")
    if kind == "columns":
        rows = table()
        for row in rows:
            row |= dict(zip("abcd", row.pop("album") + [None] * 4, strict=False))
        products = load(saved(tmp_path, rows), shops.card(image=["a", "b", "c", "d"]))
    elif kind == "paths":
        for name, content in (("f", FRONT), ("b", BACK), ("s", SIDE)):
            (tmp_path / f"{name}.jpg").write_bytes(content)
        names = {FRONT: "f.jpg", BACK: "b.jpg", SIDE: "s.jpg", None: None}
        products = load(saved(tmp_path, table([tuple(names[p] for p in album) for album in ALBUMS])), card)
    else:
        products = load(saved(tmp_path, table(), None if kind == "bytes" else datasets.List(datasets.Image())))
    read = [tuple(p.read_bytes() if isinstance(p, Path) else p for p in album) for album in albums_of(products)]
    assert read == [(FRONT, BACK), (SIDE,), (BACK, SIDE), (BACK,)]
    assert [products[i].image == products.pictures[i] for i in range(4)] == [True] * 4
    assert albums_of(pickle.loads(pickle.dumps(products))) == albums_of(products)
    chosen = products.select([2, 0])
    assert albums_of(chosen) == [albums_of(products)[2], albums_of(products)[0]]
    both = Products.concatenate([chosen, products.select([1, 3])])
    assert albums_of(both) == [albums_of(products)[i] for i in (2, 0, 1, 3)]
    assert albums_of(Products.from_rows(list(products))) == albums_of(products)


def test_a_row_without_any_picture_is_named_and_a_broken_second_one_too(tmp_path: Path) -> None:
    folder = saved(tmp_path, table([(FRONT, BACK), (None,), (BACK, b"no picture"), (SIDE,)]))
    with pytest.raises(BrokenImage, match="no picture"):
        load(folder)
    kept = load(folder, on_error="skip")
    assert kept.ids == ["sku-0", "sku-3"]
    assert [str(error.row) for error in kept.skipped] == ["sku-1", "sku-2, picture 2"]
    unchecked = load(folder, check_images=False)
    assert [str(error.row) for error in find_broken_images(unchecked)] == ["sku-1", "sku-2, picture 2"]


def test_fingerprint_and_duplicates_look_at_every_picture(tmp_path: Path) -> None:
    one, other = (saved(tmp_path / name, table([(FRONT, back)])) for name, back in (("a", BACK), ("b", SIDE)))
    assert load(one).fingerprint != load(other).fingerprint
    single = Products.from_rows([Product("a", "a", ("mug",), FRONT)])
    alone = json.dumps(["a", "a", ["mug"], hashlib.blake2b(FRONT, digest_size=16).hexdigest()])
    assert single.fingerprint == hashlib.blake2b(alone.encode(), digest_size=6).hexdigest()  # as before
    report = check_card(shops.card(image="album"), source=saved(tmp_path / "c", table()))
    assert (report.pictures.values, report.pictures.rows) == (2, 5)  # BACK three times, SIDE twice


def drawn_colours(products: Products, epochs: int, **options: Any) -> list[set[tuple[int, int]]]:
    """Per row, the (main colour, caption length) pairs that training saw."""
    settings = ImageSettings(height=16, width=12)
    collator = Collator(_Lengths(), settings, cache=PixelCache(products, settings) if options.pop("cache") else None)
    plan = BatchPlan(products, batch_size=len(products))
    seen: list[set[tuple[int, int]]] = [set() for _ in products.ids]
    for epoch in range(epochs):
        plan.set_epoch(epoch)
        for batch in training_loader(products, plan, collator):
            for row_id, pixels, tokens in zip(batch.ids, batch.pixels, batch.tokens["input_ids"], strict=True):
                colour = int(pixels.float().mean((1, 2)).argmax())
                seen[products.ids.index(row_id)].add((colour, int(tokens[0])))
    return seen


class _Lengths:
    """A tokenizer of lengths."""

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Any]:
        import torch

        lengths = torch.tensor([[len(text)] for text in texts])
        return {"input_ids": lengths, "attention_mask": lengths}


@pytest.mark.parametrize("cache", [False, True])
def test_training_draws_one_picture_and_one_caption_per_visit(cache: bool) -> None:
    rows = [
        Product("a", "a", ("x", "yy", "zzz"), FRONT, more_images=(BACK,)),
        Product("b", "b", ("x",), SIDE),
        Product("c", "c", ("x",), BACK, more_images=(SIDE, FRONT)),
    ]
    seen = drawn_colours(Products.from_rows(rows), 60, cache=cache)
    assert seen[0] == {(colour, length) for colour in (0, 1) for length in (1, 2, 3)}
    assert seen[1] == {(2, 1)}
    assert seen[2] == {(1, 1), (2, 1), (0, 1)}

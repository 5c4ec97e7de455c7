"""Rows with several images and several captions: read, drawn in training, measured, indexed."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import catalogs
import datasets
import factories
import numpy as np
import pytest
from catalogs import own_cache  # noqa: F401
from test_catalog import stored_vectors
from test_cli import command

from dualtower.curation.check import check_card
from dualtower.data.batches import Collator, PixelCache, training_loader
from dualtower.data.cards import DataCard
from dualtower.data.items import ItemDataset
from dualtower.data.loading import find_broken_images, load_items
from dualtower.data.sampling import BatchSampler
from dualtower.data.transforms.images import ImageSettings
from dualtower.errors import BrokenImage, DataError, QrelsError
from dualtower.evaluation import Qrels, evaluate
from dualtower.evaluation.exports import save_run
from dualtower.search.ingest.embed import digest_of, embed
from dualtower.search.local.catalog import Catalog
from dualtower.types import Item

FRONT, BACK, SIDE = catalogs.jpeg("red"), catalogs.jpeg("green"), catalogs.jpeg("blue")
ALBUMS = [(FRONT, BACK), (SIDE,), (None, BACK, None, SIDE), (BACK,)]


def table(albums: list[tuple[bytes | None, ...]] = ALBUMS) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key != "photo"} | {"album": list(album)}
        for row, album in zip(catalogs.rows(len(albums)), albums, strict=True)
    ]


def saved(folder: Path, rows: list[dict[str, Any]], feature: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    dataset = datasets.Dataset.from_list(rows)
    if feature is not None:
        dataset = dataset.cast_column("album", feature)
    dataset.to_parquet(str(folder / "train.parquet"))
    return folder


def load(folder: Path, card: DataCard | None = None, **options: Any) -> ItemDataset:
    return load_items(card or catalogs.card(image="album"), "train", source=folder, **options)


def albums_of(items: ItemDataset) -> list[tuple[Any, ...]]:
    return [product.images for product in items]


@pytest.mark.parametrize("kind", ["bytes", "Image", "paths", "columns"])
def test_every_image_of_a_row_is_read(tmp_path: Path, kind: str) -> None:
    card = catalogs.card(image="album")
    if kind == "columns":
        rows = table()
        for row in rows:
            row |= dict(zip("abcd", row.pop("album") + [None] * 4, strict=False))
        items = load(saved(tmp_path, rows), catalogs.card(image=["a", "b", "c", "d"]))
    elif kind == "paths":
        for name, content in (("f", FRONT), ("b", BACK), ("s", SIDE)):
            (tmp_path / f"{name}.jpg").write_bytes(content)
        names = {FRONT: "f.jpg", BACK: "b.jpg", SIDE: "s.jpg", None: None}
        items = load(saved(tmp_path, table([tuple(names[p] for p in album) for album in ALBUMS])), card)
    else:
        items = load(saved(tmp_path, table(), None if kind == "bytes" else datasets.List(datasets.Image())))
    read = [tuple(p.read_bytes() if isinstance(p, Path) else p for p in album) for album in albums_of(items)]
    assert read == [(FRONT, BACK), (SIDE,), (BACK, SIDE), (BACK,)]
    assert [items[i].image == items.images[i] for i in range(4)] == [True] * 4
    assert albums_of(pickle.loads(pickle.dumps(items))) == albums_of(items)
    chosen = items.select([2, 0])
    assert albums_of(chosen) == [albums_of(items)[2], albums_of(items)[0]]
    both = ItemDataset.concatenate([chosen, items.select([1, 3])])
    assert albums_of(both) == [albums_of(items)[i] for i in (2, 0, 1, 3)]
    assert albums_of(ItemDataset.from_rows(list(items))) == albums_of(items)


def test_a_row_without_any_image_is_named_and_a_broken_second_one_too(tmp_path: Path) -> None:
    folder = saved(tmp_path, table([(FRONT, BACK), (None,), (BACK, b"no image"), (SIDE,)]))
    with pytest.raises(BrokenImage, match="no image"):
        load(folder)
    kept = load(folder, on_error="skip")
    assert kept.ids == ["sku-0", "sku-3"]
    assert [str(error.row) for error in kept.skipped] == ["sku-1", "sku-2, image 2"]
    unchecked = load(folder, check_images=False)
    assert [str(error.row) for error in find_broken_images(unchecked)] == ["sku-1", "sku-2, image 2"]


def test_fingerprint_and_duplicates_look_at_every_image(tmp_path: Path) -> None:
    one, other = (saved(tmp_path / name, table([(FRONT, back)])) for name, back in (("a", BACK), ("b", SIDE)))
    assert load(one).fingerprint != load(other).fingerprint
    single = ItemDataset.from_rows([Item("a", "a", ("mug",), FRONT)])
    alone = json.dumps(["a", "a", ["mug"], hashlib.blake2b(FRONT, digest_size=16).hexdigest()])
    assert single.fingerprint == hashlib.blake2b(alone.encode(), digest_size=6).hexdigest()  # as before
    report = check_card(catalogs.card(image="album"), source=saved(tmp_path / "c", table()))
    assert (report.images.values, report.images.rows) == (2, 5)  # BACK three times, SIDE twice


def drawn_colors(items: ItemDataset, epochs: int, **options: Any) -> list[set[tuple[int, int]]]:
    """Per row, the (main color, caption length) pairs that training saw."""
    settings = ImageSettings(height=16, width=12)
    collator = Collator(_Lengths(), settings, cache=PixelCache(items, settings) if options.pop("cache") else None)
    plan = BatchSampler(items, batch_size=len(items))
    seen: list[set[tuple[int, int]]] = [set() for _ in items.ids]
    for epoch in range(epochs):
        plan.set_epoch(epoch)
        for batch in training_loader(items, plan, collator):
            for row_id, pixels, tokens in zip(batch.ids, batch.pixels, batch.tokens["input_ids"], strict=True):
                color = int(pixels.float().mean((1, 2)).argmax())
                seen[items.ids.index(row_id)].add((color, int(tokens[0])))
    return seen


class _Lengths:
    """A tokenizer of lengths."""

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Any]:
        import torch

        lengths = torch.tensor([[len(text)] for text in texts])
        return {"input_ids": lengths, "attention_mask": lengths}


@pytest.mark.parametrize("cache", [False, True])
def test_training_draws_one_image_and_one_caption_per_visit(cache: bool) -> None:
    rows = [
        Item("a", "a", ("x", "yy", "zzz"), FRONT, more_images=(BACK,)),
        Item("b", "b", ("x",), SIDE),
        Item("c", "c", ("x",), BACK, more_images=(SIDE, FRONT)),
    ]
    seen = drawn_colors(ItemDataset.from_rows(rows), 60, cache=cache)
    assert seen[0] == {(color, length) for color in (0, 1) for length in (1, 2, 3)}
    assert seen[1] == {(2, 1)}
    assert seen[2] == {(1, 1), (2, 1), (0, 1)}


CAPTIONS = {"a front": 5, "a back": 35, "b": 22, "b too": 60, "c": 80}
IMAGES = {b"A1": 0, b"A2": 40, b"B": 20, b"C": 90}


class Angles:
    """Embeds everything at an angle in the plane, so that the nearest angle is the best hit."""

    config = SimpleNamespace(similarity="cosine")
    fingerprint = "angles"

    def encode_text(self, texts: list[str], **options: Any) -> np.ndarray:
        return self._vectors([CAPTIONS[text] for text in texts])

    def encode_image(self, images: Any, **options: Any) -> np.ndarray:
        return self._vectors([IMAGES[image] for image in images])

    def _vectors(self, degrees: list[int]) -> np.ndarray:
        angles = np.deg2rad(np.array(degrees, np.float64))
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def three_rows() -> ItemDataset:
    return ItemDataset.from_rows(
        [
            Item("a", "A", ("a front", "a back"), b"A1", more_images=(b"A2",)),
            Item("b", "B", ("b", "b too"), b"B"),
            Item("c", "C", ("c",), b"C"),
        ]
    )


def test_every_caption_is_a_query_and_every_image_is_searched() -> None:
    """By hand: text -> image orders are a b a#2 c; a#2 b a c; b ..; a#2 c b a; c .. (distances of the angles)."""
    result = evaluate(Angles(), three_rows(), ks=(1, 2), bootstrap=0)
    forward, backward, among = result.directions.values()
    assert forward.queries.keys == ["a", "a#2", "b", "b#2", "c"]
    assert forward.gallery.keys == ["a", "a#2", "b", "c"]
    assert forward.per_query["recall@1"].tolist() == [0.5, 0.5, 1, 0, 1]
    assert forward.per_query["recall@2"].tolist() == [0.5, 0.5, 1, 0, 1]
    assert forward.per_query["hit@1"].tolist() == [1, 1, 1, 0, 1]
    assert forward.per_query["median_rank"].tolist() == [1, 1, 1, 3, 1]
    assert backward.per_query["recall@1"].tolist() == [0.5, 0.5, 0.5, 1]
    assert backward.per_query["hit@1"].tolist() == [1, 1, 1, 1]
    assert backward.per_query["recall@2"].tolist() == [0.5, 0.5, 0.5, 1]
    assert among.queries.keys == ["a", "a#2", "b", "c"] and among.ranks.judged.tolist() == [0, 1]
    assert among.per_query["hit@1"].tolist() == [0, 0] and among.per_query["hit@2"].tolist() == [1, 1]
    protocol = result.report.protocol
    assert {key: protocol[key] for key in ("captions", "captions_per_row", "images", "images_per_row")} == {
        "captions": 5, "captions_per_row": 5 / 3, "images": 4, "images_per_row": 4 / 3,
    }  # fmt: skip
    note = result.report.table().splitlines()[-1]
    assert note == "Every caption is a query and every image is searched: 3 rows have 5 captions and 4 images."
    once = ItemDataset.from_rows([Item("c", "C", ("c",), b"C"), Item("b", "B", ("b",), b"B")])
    assert "Every" not in evaluate(Angles(), once, ks=(1,), bootstrap=0).report.table()


def test_a_relevance_file_names_rows_and_means_every_image_of_them() -> None:
    queries = Qrels(("1", "2"), ("a front", "b too"), ({"a": 2}, {"b": 1, "c": 1}), name="mine")
    result = evaluate(Angles(), three_rows(), queries=queries, ks=(1, 2, 3), bootstrap=0)
    forward, backward = result.directions.values()
    assert [forward.relevant_to(q).tolist() for q in (0, 1)] == [[0, 1], [2, 3]]
    assert forward.per_query["recall@1"].tolist() == [0.5, 0]
    assert forward.per_query["recall@2"].tolist() == [0.5, 0.5]
    assert forward.per_query["recall@3"].tolist() == [1, 1]
    assert forward.per_query["hit@1"].tolist() == [1, 0]
    assert [backward.queries.keys[i] for i in backward.ranks.judged] == ["a", "a#2", "b", "c"]
    assert "captions" not in result.report.protocol and result.report.protocol["images"] == 4
    with pytest.raises(QrelsError, match="1 document ids of mine are not among the 3 ids"):
        evaluate(Angles(), three_rows(), queries=Qrels(("1",), ("b",), ({"a#2": 1, "b": 1},), name="mine"))


def test_a_row_is_one_document_of_a_run_file(tmp_path: Path) -> None:
    queries = Qrels(("1", "2"), ("a front", "b too"), ({"a": 2}, {"b": 1, "c": 1}), name="mine")
    save_run(tmp_path / "run", evaluate(Angles(), three_rows(), queries=queries, ks=(1,), bootstrap=0), tag="t")
    found = [line.split()[:4] for line in (tmp_path / "run").read_text().splitlines()]
    first, second = ("a", "b", "c"), ("a", "c", "b")  # a by its second image, at 40 degrees
    assert found == [[q, "Q0", d, str(n)] for q, ds in (("1", first), ("2", second)) for n, d in enumerate(ds, 1)]


def test_equal_captions_of_one_product_stay_one_query() -> None:
    rows = [
        Item("a", "A", ("a front", "b"), b"A1"),
        Item("x", "A", ("b", "a back"), b"A2"),
        Item("b", "B", ("b",), b"B"),
    ]
    result = evaluate(Angles(), ItemDataset.from_rows(rows), ks=(1,), bootstrap=0)
    assert result.directions["text_to_image"].queries.keys == ["a", "a#2", "x#2", "b"]
    assert result.directions["text_to_image"].queries.texts == ["a front", "b", "a back", "b"]


def test_ids_that_look_like_a_second_image_are_refused() -> None:
    rows = [Item("a", "A", ("a front",), b"A1", more_images=(b"A2",)), Item("a#2", "B", ("b",), b"B")]
    with pytest.raises(DataError, match=r"id 'a#2'.*second image"):
        evaluate(Angles(), ItemDataset.from_rows(rows), ks=(1,), bootstrap=0)


def test_a_catalog_holds_the_mean_of_a_rows_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = factories.spread_model()
    model.save_pretrained(tmp_path / "model")
    albums = [(FRONT, BACK), (SIDE,), (BACK, SIDE, FRONT)]
    source = saved(tmp_path / "data", table(albums))
    card = "---\nname: shop\ncolumns: {id: sku, text: [title, color], image: album}\nsplits: {by_hash: null}\n---\n"
    (tmp_path / "card.md").write_text(card)
    words = ("index", tmp_path / "model", "--data.card", tmp_path / "card.md", "--data.source", source)
    assert command(*words, "--out", tmp_path / "shop", "--precision", "fp32") == 0
    printed = capsys.readouterr().out
    assert "2 rows have several images: their image vector is the mean of all" in printed
    assert "3 rows have several captions: their text vector is that of the first" in printed
    catalog = Catalog(tmp_path / "shop")
    held = stored_vectors(catalog, catalog.get([f"sku-{i}" for i in range(3)]), "image").astype(np.float32)
    for vector, album in zip(held, albums, strict=True):
        mean = model.encode_image(list(album)).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=2e-3)
    items = load(source)
    assert digest_of(items[0]) != digest_of(replace(items[0], more_images=(SIDE,)))
    broken = replace(items[0], more_images=(BACK, b"no image"))
    with pytest.raises(BrokenImage, match="sku-0, image 3"):
        list(embed(model, [items[1], broken], catalog.info))

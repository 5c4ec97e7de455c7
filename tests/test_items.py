"""Products are checked rows: a good row keeps everything, a bad row is named."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import catalogs
import numpy as np
import pytest
from catalogs import own_cache  # noqa: F401

from dualtower.data.cards import DataCard, HashSplit, Splits, load_card
from dualtower.data.items import ItemDataset
from dualtower.data.loading import find_broken_images, load_items
from dualtower.data.splits import split_names
from dualtower.errors import BrokenImage, CardError, ConfigError, DataError, RowError, SourceError, UnknownSplit
from dualtower.training.config import DataConfig
from dualtower.types import Item, product_code


def load(tmp_path: Path, table: list[dict[str, Any]], card: DataCard | None = None, **options: Any) -> ItemDataset:
    return load_items(
        card or catalogs.card(), "train", source=catalogs.write_parquet(tmp_path / "train.parquet", table), **options
    )


def test_rows(tmp_path: Path) -> None:
    items = load(tmp_path, catalogs.rows())
    assert len(items) == 4
    assert items[1] == Item(
        id="sku-1",
        product_id="mug-0",
        texts=("red mug 0",),
        image=catalogs.rows()[1]["photo"],
        attributes={"color": "red"},
    )
    assert items[-1].id == "sku-3"
    assert [p.id for p in items[1:3]] == ["sku-1", "sku-2"]
    assert items.codes.dtype == np.int64
    assert items.codes.tolist() == [product_code(p) for p in items.product_ids]
    with pytest.raises(IndexError):
        items[4]


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("{brand} {title}", [("red mug 0",), ("Acme red mug 0",)]),
        (["title", "{brand} {title}"], [("red mug 0",), ("red mug 0", "Acme red mug 0")]),
        ("a {color} one", [("a red one",), ("a red one",)]),
        ("names", [("mug", "cup"), ("mug", "cup")]),
        ("{names}", [("mug, cup",), ("mug, cup",)]),
    ],
)
def test_captions(tmp_path: Path, text: str | list[str], captions: list[tuple[str, ...]]) -> None:
    table = [{**row, "names": ["mug", "cup", ""]} for row in catalogs.rows(2)]
    assert load(tmp_path, table, catalogs.card(text=text)).texts == captions


def test_title_as_identity(tmp_path: Path) -> None:
    table = catalogs.rows(3)
    table[1]["title"] = "RED  Ｍug 0 "
    items = load(tmp_path, table, catalogs.card(product_id="normalized_text"))
    assert items.product_ids == ["red mug 0", "red mug 0", "green mug 1"]
    assert items.texts[1] == ("RED  Ｍug 0",)


def test_without_ids_rows_are_numbered(tmp_path: Path) -> None:
    items = load(tmp_path, catalogs.rows(2), catalogs.card(id=None, product_id=None))
    assert items.ids == items.product_ids == ["train-0", "train-1"]


def test_without_images(tmp_path: Path) -> None:
    items = load(tmp_path, catalogs.rows(2), catalogs.card(image=None))
    assert items[0].image is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"title": ""}, "empty text"),
        ({"title": "  \n "}, "empty text"),
        ({"title": None}, "empty text"),
        ({"sku": "sku-0"}, "duplicate id"),
        ({"sku": None}, "missing id"),
        ({"item": None}, "missing product id"),
        ({"photo": None}, "no image"),
        ({"photo": b""}, "empty file"),
        ({"photo": b"a text file"}, "not an image"),
        ({"photo": catalogs.jpeg("red", 300)[:700]}, "cannot be decoded"),
    ],
)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    table = catalogs.rows(4)
    table[2].update(change)
    with pytest.raises(RowError, match=reason) as caught:
        load(tmp_path, table)
    assert str(tmp_path) in str(caught.value) and "(train)" in str(caught.value)
    assert "2" in str(caught.value.row)
    assert "--data.on_error skip" in str(caught.value)

    kept = load(tmp_path, table, on_error="skip")
    assert kept.ids == ["sku-0", "sku-1", "sku-3"]
    assert [error.reason.startswith(reason) for error in kept.skipped] == [True]
    assert kept[2].image == table[3]["photo"]


def test_missing_files_and_text_files_named_jpg(tmp_path: Path) -> None:
    folder = catalogs.write_csv(tmp_path / "train.csv", catalogs.rows(4))
    (folder / "photos" / "sku-1.jpg").unlink()
    (folder / "photos" / "sku-2.jpg").write_text("buy milk")
    with pytest.raises(BrokenImage, match=r"sku-1: no image at .*sku-1\.jpg"):
        load_items(catalogs.card(), "train", source=folder)
    kept = load_items(catalogs.card(), "train", source=folder, on_error="skip")
    assert kept.ids == ["sku-0", "sku-3"]
    assert [error.row for error in kept.skipped] == ["sku-1", "sku-2"]


def test_unchecked_images_can_be_checked_later(tmp_path: Path) -> None:
    table = catalogs.rows(4)
    table[3]["photo"] = b"no image"
    items = load(tmp_path, table, check_images=False)
    assert len(items) == 4
    assert [(e.row, e.where) for e in find_broken_images(items)] == [("sku-3", "shop (train)")]


def test_fingerprint_of_a_missing_file(tmp_path: Path) -> None:
    folder = catalogs.write_csv(tmp_path / "train.csv", catalogs.rows(2))
    (folder / "photos" / "sku-1.jpg").unlink()
    items = load_items(catalogs.card(), "train", source=folder, check_images=False)
    assert items.image_digests[1] == b""
    assert len(items.fingerprint) == 12


def test_over_long_title_is_kept(tmp_path: Path) -> None:
    table = catalogs.rows(1)
    table[0]["title"] = "mug " * 25_000
    assert len(load(tmp_path, table).texts[0][0]) == 99_999


def test_nothing_usable(tmp_path: Path) -> None:
    table = [{**row, "photo": b"?"} for row in catalogs.rows(2)]
    with pytest.raises(SourceError, match=r"no usable row; the first of 2 bad rows: .*not an image"):
        load(tmp_path, table, on_error="skip")


def test_wrong_column_lists_the_columns(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="no column 'titel', which the card names as text") as caught:
        load(tmp_path, catalogs.rows(1), catalogs.card(text="{brand} {titel}"))
    assert "brand, color, item, photo, sku, title" in str(caught.value)
    assert "Did you mean 'title'" in str(caught.value)


def three_splits(folder: Path) -> Path:
    for name, start in (("train", 0), ("validation", 4), ("test", 6)):
        catalogs.write_parquet(folder / f"{name}.parquet", catalogs.rows(2, start=start))
    return folder


def test_named_splits(tmp_path: Path) -> None:
    folder = three_splits(tmp_path / "shop")
    card = catalogs.card(splits=Splits(named={"train": "train", "held_out": "test"}, by_hash=HashSplit()))
    assert split_names(card, source=folder) == ["train", "held_out"]
    assert load_items(card, "held_out", source=folder).ids == ["sku-6", "sku-7"]
    everything = load_items(card, "all", source=folder)
    assert (everything.ids, everything.split) == (["sku-0", "sku-1", "sku-6", "sku-7"], "all")
    assert everything[3].image == catalogs.rows(8)[7]["photo"]
    with pytest.raises(UnknownSplit, match="no split of shop 'test'; known: all, held_out, train"):
        load_items(card, "test", source=folder)


def test_an_id_in_two_splits(tmp_path: Path) -> None:
    folder = three_splits(tmp_path / "shop")
    catalogs.write_parquet(folder / "test.parquet", catalogs.rows(2, start=1))
    with pytest.raises(RowError, match=r"\(test\), row 0 \(id sku-1\): duplicate id"):
        load_items(catalogs.card(), "all", source=folder)
    kept = load_items(catalogs.card(), "all", source=folder, on_error="skip")
    assert kept.ids == ["sku-0", "sku-1", "sku-4", "sku-5", "sku-2"]
    assert len(kept.skipped) == 1


def test_splits_that_the_source_lacks(tmp_path: Path) -> None:
    folder = three_splits(tmp_path / "shop")
    card = catalogs.card(splits=Splits(named={"train": "training"}, by_hash=None))
    with pytest.raises(
        CardError,
        match=r"no split 'training', .* the source has train, validation, .* Did you mean 'train'",
    ):
        load_items(card, "train", source=folder)


@pytest.mark.parametrize("column", ["product_id", "color", "id"])
def test_split_by_hash(tmp_path: Path, column: str) -> None:
    rule = HashSplit(column, validation=0.2, test=0.3)
    card = catalogs.card(splits=Splits(named={"train": "train", "test": "test"}, by_hash=rule))
    table = [{**row, "color": f"color {i % 50}"} for i, row in enumerate(catalogs.rows(300))]
    folder = catalogs.write_parquet(tmp_path / "data.parquet", table)
    assert split_names(card, source=folder) == ["train", "validation", "test"]
    splits = {name: load_items(card, name, source=folder) for name in ("train", "validation", "test")}
    assert sorted(i for s in splits.values() for i in s.ids) == sorted(row["sku"] for row in table)
    assert load_items(card, "all", source=folder).ids == [row["sku"] for row in table]
    for share, name in ((0.5, "train"), (0.2, "validation"), (0.3, "test")):
        assert len(splits[name]) / 300 == pytest.approx(share, abs=0.2)
    values = {
        name: set({"product_id": s.product_ids, "color": s.attributes["color"], "id": s.ids}[column])
        for name, s in splits.items()
    }
    assert not values["train"] & values["test"] and not values["train"] & values["validation"]

    longer = catalogs.write_parquet(tmp_path / "longer" / "data.parquet", [*table, *catalogs.rows(20, start=300)])
    assert set(splits["test"].ids) <= set(load_items(card, "test", source=longer).ids)


def test_hash_of_an_unknown_column(tmp_path: Path) -> None:
    card = catalogs.card(splits=Splits(by_hash=HashSplit("colr")))
    with pytest.raises(CardError, match=r"names as splits.by_hash; .* Did you mean 'color'"):
        load(tmp_path, catalogs.rows(2), card)


def test_a_held_out_file_alone_is_not_divided(tmp_path: Path) -> None:
    folder = catalogs.write_parquet(tmp_path / "test.parquet", catalogs.rows(40))
    card = catalogs.card(splits=Splits(named={"train": "train", "test": "test"}, by_hash=HashSplit()))
    assert len(load_items(card, "test", source=folder)) == 40


def test_select_and_concatenate(tmp_path: Path) -> None:
    items = load(tmp_path, catalogs.rows(6))
    picked = items.select([5, 0, 2])
    assert [p.id for p in picked] == ["sku-5", "sku-0", "sku-2"]
    assert picked[0] == items[5] and picked.select([1])[0] == items[0]
    others = ItemDataset.from_rows([Item("x", "y", ("z",), image=b"?", attributes={"size": 7})])
    joined = ItemDataset.concatenate([picked, others])
    assert [p.id for p in joined] == ["sku-5", "sku-0", "sku-2", "x"]
    assert [p.image for p in joined] == [*(p.image for p in picked), b"?"]
    assert joined.attributes == {"color": ["blue", "red", "green", None], "size": [None, None, None, 7]}
    assert (joined.card, joined.split) == ("shop+in-memory", "train+all")
    with pytest.raises(DataError, match="stands for more than one row"):
        ItemDataset.concatenate([picked, items])
    with pytest.raises(DataError, match="nothing to concatenate"):
        ItemDataset.concatenate([])


def test_a_sample_holds_whole_products_and_that_of_fewer_rows() -> None:
    items = load_items(load_card("synthetic"), "test")
    few, more = items.sample(50), items.sample(300)
    for part, most in ((few, 50), (more, 300)):
        assert most - 8 < len(part) <= most, "no more than one product is missing"
        whole = np.flatnonzero(np.isin(items.codes, part.codes))
        assert list(part.columns.ids) == [items.columns.ids[row] for row in whole.tolist()]
    assert set(few.columns.ids) < set(more.columns.ids)
    assert len(items.sample(1)) == 4, "one product at least"
    assert list(items.sample(len(items)).columns.ids) == list(items.columns.ids)
    with pytest.raises(ConfigError, match=r"data\.max_rows is 0; it must be at least 1, or None for all rows"):
        DataConfig(max_rows=0)


def test_fingerprint(tmp_path: Path) -> None:
    items = load(tmp_path / "a", catalogs.rows(4))
    from_files = load_items(
        catalogs.card(), "train", source=catalogs.write_csv(tmp_path / "train.csv", catalogs.rows(4))
    )
    assert items.fingerprint == from_files.fingerprint == ItemDataset.from_rows(list(items)).fingerprint
    assert items.fingerprint != items.select([0, 1, 3, 2]).fingerprint
    for change in ({"title": "cup"}, {"item": "cup"}, {"sku": "cup"}, {"photo": catalogs.jpeg("red", 99)}):
        table = catalogs.rows(4)
        table[1].update(change)
        assert load(tmp_path / str(change)[2:5], table).fingerprint != items.fingerprint


def test_pickles_as_a_file_name(tmp_path: Path) -> None:
    """Loader workers that are spawned get the products pickled: images must stay on disk."""
    table = [{**row, "photo": os.urandom(200_000)} for row in catalogs.rows(10)]
    items = load(tmp_path, table, check_images=False)
    pickled = pickle.dumps(items)
    assert len(pickled) < 20_000
    assert pickle.loads(pickled)[7] == items[7]


def test_drawn_catalog() -> None:
    card = load_card("synthetic")
    assert split_names(card) == ["train", "validation", "test"]
    items = load_items(card, "validation")
    assert (items.card, items.split) == ("synthetic", "validation")
    assert items[0].image.startswith(b"\x89PNG")
    with pytest.raises(SourceError, match="no source at somewhere"):  # of rows in the same columns
        load_items(card, "train", source="somewhere")


INTERRUPT = """
import io, os, signal, sys, threading, time
from PIL import Image
from dualtower.data import loading, items
from dualtower.types import Item
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin deaf to it
Image.effect_noise((500, 500), 50).save(buffer := io.BytesIO(), "PNG")  # milliseconds each: minutes for all
rows = items.ItemDataset.from_rows([Item(str(i), str(i), ("t",), image=buffer.getvalue()) for i in range(10**5)])
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
begin = time.monotonic()  # not with the imports, which a busy machine may need half a minute for
try:
    loading.find_broken_images(rows)
except KeyboardInterrupt:
    sys.exit(42 if time.monotonic() - begin < 30 else "stopped too late")
"""


def test_ctrl_c_stops_the_check() -> None:
    assert subprocess.run([sys.executable, "-c", INTERRUPT], timeout=300).returncode == 42


@pytest.mark.shared
def test_real_products(shared_fashion: Path) -> None:
    card = load_card("fashion_products")
    sizes = {"train": 39_248, "validation": 1_957, "test": 2_867}
    parts = [load_items(card, s, source=shared_fashion, check_images=s == "test") for s in sizes]
    assert [len(part) for part in parts] == list(sizes.values())
    everything = load_items(card, "all", source=shared_fashion, check_images=False)
    assert everything.fingerprint == ItemDataset.concatenate(parts).fingerprint
    assert set(everything.attributes) == {"masterCategory", "subCategory", "articleType", "baseColour", "usage"}

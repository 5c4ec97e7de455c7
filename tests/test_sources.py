"""The same catalog is the same, in whichever format it lies on disk or on the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import catalogs
import pytest
from catalogs import own_cache  # noqa: F401
from fake_hub import HubStandIn

from dualtower.data.cards import CardSource, DataCard, Splits
from dualtower.data.items import ItemDataset
from dualtower.data.loading import load_items
from dualtower.data.sources import open_source
from dualtower.data.splits import split_names
from dualtower.errors import CardError, RowError, SourceError, UnknownName


def same_as(items: ItemDataset, table: list[dict]) -> None:
    assert sorted(items.ids) == [row["sku"] for row in table]
    by_id = {product.id: product for product in items}
    for row in table:
        product = by_id[row["sku"]]
        assert (product.product_id, product.texts) == (row["item"], (row["title"],))
        assert product.attributes == {"color": row["color"]}
        encoded = product.image if isinstance(product.image, bytes) else product.image.read_bytes()
        assert encoded == row["photo"]


@pytest.mark.parametrize("photos", ["bytes", "Image", "relative"])
def test_parquet(tmp_path: Path, photos: str) -> None:
    folder = catalogs.write_parquet(tmp_path / "shop" / "train.parquet", catalogs.rows(), photos=photos)
    (folder / "queries.json").write_text('{"other": "files do not matter"}')
    same_as(load_items(catalogs.card(), "train", source=folder), catalogs.rows())


@pytest.mark.parametrize(("name", "delimiter"), [("train.csv", ","), ("train.tsv", "\t")])
def test_csv_with_relative_paths(tmp_path: Path, name: str, delimiter: str) -> None:
    folder = catalogs.write_csv(tmp_path / name, catalogs.rows(), delimiter=delimiter)
    same_as(load_items(catalogs.card(), "train", source=folder), catalogs.rows())


def test_csv_values_are_kept_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("sku,item,title,color\n007,01,None,null\n008,,1.50,\n")
    items = load_items(catalogs.card(image=None, product_id=None), "train", source=tmp_path)
    assert (items.ids, items.texts) == (["007", "008"], [("None",), ("1.50",)])
    assert items.attributes == {"color": ["null", ""]}
    with pytest.raises(RowError, match=r"1 \(id 008\): missing product id"):
        load_items(catalogs.card(image=None), "train", source=tmp_path)


def test_image_folder_with_a_missing_image(tmp_path: Path) -> None:
    folder = catalogs.write_image_folder(tmp_path / "shop", catalogs.rows())
    (folder / "photos" / "sku-1.jpg").unlink()
    kept = load_items(catalogs.card(image="image"), "train", source=folder, on_error="skip")
    assert kept.ids == ["sku-0", "sku-2", "sku-3"]
    assert "no image at" in kept.skipped[0].reason


def test_json_lines(tmp_path: Path) -> None:
    folder = catalogs.write_jsonl(tmp_path / "train.jsonl", catalogs.rows())
    same_as(load_items(catalogs.card(), "train", source=folder), catalogs.rows())


def test_one_file(tmp_path: Path) -> None:
    folder = catalogs.write_csv(tmp_path / "train.csv", catalogs.rows())
    (folder / "test.csv").write_text("not,read\n")
    same_as(load_items(catalogs.card(), "train", source=folder / "train.csv"), catalogs.rows())


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_image_folder(tmp_path: Path, kind: str) -> None:
    folder = catalogs.write_image_folder(tmp_path / "shop", catalogs.rows(), kind=kind)
    same_as(load_items(catalogs.card(image="image"), "train", source=folder), catalogs.rows())


def test_image_folder_with_splits(tmp_path: Path) -> None:
    catalogs.write_image_folder(tmp_path / "shop" / "train", catalogs.rows(4))
    catalogs.write_image_folder(tmp_path / "shop" / "test", catalogs.rows(2, start=4))
    card = catalogs.card(image="image")
    assert split_names(card, source=tmp_path / "shop") == ["train", "test"]
    same_as(load_items(card, "train", source=tmp_path / "shop"), catalogs.rows(4))
    same_as(load_items(card, "test", source=tmp_path / "shop"), catalogs.rows(2, start=4))


def test_web_dataset(tmp_path: Path) -> None:
    catalogs.write_tar(tmp_path / "shop" / "train-000000.tar", catalogs.rows(4))
    catalogs.write_tar(tmp_path / "shop" / "train-000001.tar", catalogs.rows(2, start=4))
    card = catalogs.card(text="txt", image="jpg", id="json.sku", product_id="json.item", attributes=["json.color"])
    items = load_items(card, "train", source=tmp_path / "shop")
    assert items.ids == [f"sku-{i}" for i in range(6)]
    assert items.texts[5] == ("blue mug 2",)
    assert items.attributes["json.color"] == ["red", "red", "green", "green", "blue", "blue"]
    assert items[5].image == catalogs.rows(6)[5]["photo"]


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train.parquet", "train"),
        ("train-00000-of-00003.parquet", "train"),
        ("training_set.parquet", "train"),
        ("val.parquet", "validation"),
        ("shop_dev.parquet", "validation"),
        ("test/part-0.parquet", "test"),
        ("products.parquet", "train"),
        ("products-0007.parquet", "train"),
        ("my shop.parquet", "train"),
        ("contest.parquet", "train"),
        ("0000.parquet", "train"),
    ],
)
def test_split_of_a_file(tmp_path: Path, file: str, split: str) -> None:
    catalogs.write_parquet(tmp_path / "shop" / file, catalogs.rows(1))
    assert list(open_source(catalogs.card(), source=tmp_path / "shop").splits) == [split]


def test_named_splits_may_be_file_patterns(tmp_path: Path) -> None:
    catalogs.write_parquet(tmp_path / "shop [new]" / "autumn-1.parquet", catalogs.rows(2))
    catalogs.write_parquet(tmp_path / "shop [new]" / "winter-1.parquet", catalogs.rows(2, start=2))
    catalogs.write_parquet(tmp_path / "shop [new]" / "winter-2.parquet", catalogs.rows(2, start=4))
    card = catalogs.card(splits=Splits(named={"train": "winter-*.parquet", "test": "autumn-1.parquet"}))
    assert load_items(card, "train", source=tmp_path / "shop [new]").ids == ["sku-2", "sku-3", "sku-4", "sku-5"]
    assert load_items(card, "test", source=tmp_path / "shop [new]").ids == ["sku-0", "sku-1"]


def test_path_in_the_card_is_relative_to_the_card(tmp_path: Path) -> None:
    catalogs.write_csv(tmp_path / "train.csv", catalogs.rows())
    (tmp_path / "cards").mkdir()
    card = DataCard(
        name="shop",
        title="A shop",
        columns=catalogs.card().columns,
        source=CardSource(path="../train.csv"),
        splits=Splits(by_hash=None),
        path=tmp_path / "cards" / "shop.md",
    )
    same_as(load_items(card, "train"), catalogs.rows())


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no source at .*nowhere; give a folder"):
        open_source(catalogs.card(), source=tmp_path / "nowhere")
    with pytest.raises(SourceError, match="names no source"):
        open_source(catalogs.card())


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    with pytest.raises(SourceError, match="is empty"):
        open_source(catalogs.card(), source=tmp_path / "shop")


def test_folder_without_a_table(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "a.jpg").write_bytes(catalogs.jpeg("red"))
    with pytest.raises(SourceError, match=r"add a metadata\.csv"):
        open_source(catalogs.card(), source=tmp_path / "shop")


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl", "train.tar"])
def test_unreadable_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{ this is none of these formats")
    with pytest.raises(SourceError, match=r"cannot read .*train\."):
        open_source(catalogs.card(), source=tmp_path / name)


def test_unknown_builder(tmp_path: Path) -> None:
    folder = catalogs.write_csv(tmp_path / "train.csv", catalogs.rows())
    card = DataCard(name="s", title="s", columns=catalogs.card().columns, source=CardSource(builder="csw"))
    with pytest.raises(UnknownName, match="Did you mean 'csv'"):
        open_source(card, source=folder)


def test_urls_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("sku,item,title,color,photo\n1,1,mug,red,https://example.org/1.jpg\n")
    with pytest.raises(CardError, match="URLs; download"):
        load_items(catalogs.card(), "train", source=tmp_path)


def test_column_that_holds_no_images(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"sku": 1, "item": 1, "title": "mug", "color": "red", "photo": 17}\n')
    with pytest.raises(CardError, match="'photo' holds int64, not images"):
        load_items(catalogs.card(), "train", source=tmp_path)


HUB_CARD = """---
name: shop
title: A shop on the Hub
source: {hub: user/shop}
columns: {id: sku, product_id: item, text: title, image: photo, attributes: [color]}
splits: {named: {train: train, test: test}}
---
"""
LOAD = """
import json, sys
from dualtower.data.cards import load_card
from dualtower.data.loading import load_items
from dualtower.errors import SourceError
card, source, *splits = sys.argv[1:]
try:
    for split in splits:
        items = load_items(load_card(card), split, source=source or None, check_images=False)
        print(json.dumps([items.ids, items[0].image.hex(), items.fingerprint]))
except SourceError as error:
    print(error)
"""


@pytest.fixture
def shop_on_the_hub(tmp_path: Path) -> Path:
    repo = tmp_path / "repo"
    catalogs.write_parquet(repo / "data" / "train-00000-of-00001.parquet", catalogs.rows(4), photos="Image")
    catalogs.write_parquet(repo / "data" / "test-00000-of-00001.parquet", catalogs.rows(2, start=4), photos="Image")
    (tmp_path / "shop.md").write_text(HUB_CARD)
    return repo


def test_hub_dataset(tmp_path: Path, shop_on_the_hub: Path) -> None:
    with HubStandIn(tmp_path) as hub:
        hub.add_repo("dataset", "user/shop", shop_on_the_hub)
        ids, first, fingerprint = json.loads(hub.run(LOAD, str(tmp_path / "shop.md"), "", "test"))
    assert ids == ["sku-4", "sku-5"]
    assert bytes.fromhex(first) == catalogs.rows(5)[4]["photo"]
    assert fingerprint == load_items(catalogs.card(), "test", source=shop_on_the_hub).fingerprint


def test_another_hub_dataset_in_place_of_the_cards(tmp_path: Path, shop_on_the_hub: Path) -> None:
    with HubStandIn(tmp_path) as hub:
        hub.add_repo("dataset", "user/copy", shop_on_the_hub)
        ids, _, _ = json.loads(hub.run(LOAD, str(tmp_path / "shop.md"), "hub:user/copy", "train"))
        complaint = hub.run(LOAD, str(tmp_path / "shop.md"), "hub:user/missing", "train")
    assert ids == ["sku-0", "sku-1", "sku-2", "sku-3"]
    assert "cannot load 'user/missing' from the Hub" in complaint and "--data.source" in complaint


READ = """
import json, sys
from dualtower.data.cards import Columns, DataCard, Splits
from dualtower.data.loading import load_items
repo, image = sys.argv[1:]
columns = Columns("title", id="sku", image=image or None, attributes=["color"])
items = load_items(DataCard("shop", columns, splits=Splits(by_hash=None)), "train", source=f"hub:{repo}")
print(json.dumps([items.ids, items.texts, items.attributes["color"]]))
"""


def test_tables_on_the_hub_are_read_as_local_ones(tmp_path: Path) -> None:
    """What `datasets` would make of them: 7, no title, and no color."""
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text("sku,title,color\n007,None,NA\n")
    (tmp_path / "csv" / "test.csv").write_text("sku,title,color\n008,mug,red\n")
    (tmp_path / "jsonl").mkdir()
    lines = [{"sku": "007", "title": "None", "color": "NA"}, {"sku": 8, "title": "mug", "color": "red"}]
    (tmp_path / "jsonl" / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "folder" / "train"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(catalogs.jpeg("red"))
    (folder / "metadata.csv").write_text("file_name,sku,title,color\na.jpg,007,None,NA\n")
    with HubStandIn(tmp_path) as hub:
        for name in ("csv", "jsonl", "folder"):
            hub.add_repo("dataset", f"user/{name}", tmp_path / name)
        read = {
            name: json.loads(hub.run(READ, f"user/{name}", "image" if name == "folder" else ""))
            for name in ("csv", "jsonl", "folder")
        }
    assert read["csv"] == read["folder"] == [["007"], [["None"]], ["NA"]]
    assert read["jsonl"] == [["007", "8"], [["None"], ["mug"]], ["NA", "red"]]


@pytest.mark.shared
def test_fashion_products_from_the_hub(tmp_path: Path, shared_fashion: Path) -> None:
    """The Hub dataset has one split, which the card divides by a hash of the title."""
    repo = tmp_path / "repo" / "data"
    repo.mkdir(parents=True)
    for number, name in enumerate(("validation", "test")):  # some real rows are enough
        shutil.copy(shared_fashion / f"{name}.parquet", repo / f"train-0000{number}-of-00002.parquet")
    with HubStandIn(tmp_path) as hub:
        hub.add_repo("dataset", "ashraq/fashion-product-images-small", tmp_path / "repo")
        printed = hub.run(LOAD, "fashion_products", "", "train", "validation", "test").splitlines()
    names = ("train", "validation", "test")
    splits = {name: json.loads(line)[0] for name, line in zip(names, printed, strict=True)}
    assert sum(len(ids) for ids in splits.values()) == len(set().union(*splits.values())) == 1_957 + 2_867
    shares = {split: len(ids) / (1_957 + 2_867) for split, ids in splits.items()}
    assert shares == pytest.approx({"train": 0.85, "validation": 0.05, "test": 0.1}, abs=0.03)

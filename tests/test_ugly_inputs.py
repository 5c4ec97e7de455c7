"""Catalogs as shops really have them: each is read rightly, or refused in one line that says what to do."""

from __future__ import annotations

import base64
import json
import logging
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import catalogs
import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from catalogs import own_cache  # noqa: F401

from dualtower.curation.check import check_card
from dualtower.data.cards import CardSource, Columns, DataCard, HashSplit, Splits
from dualtower.data.loading import load_items
from dualtower.data.splits import split_names
from dualtower.errors import DualTowerError

LONGEST_LINE = 300
PHOTO = catalogs.jpeg("red")
HEADER = "sku,title,color\n"


@dataclass
class Ugly:
    """One input.

    Attributes:
        make: Writes it into a folder; returns the source where that is not the folder.
        ids: What is read, in order; None for what is refused.
        texts: First captions, where they are worth a look.
        colors: Values of the attribute, likewise.
        refused: What the message must say.
        card: Columns and options that differ from the usual ones.
    """

    make: Callable[[Path], Path | None]
    ids: list[str] | None = None
    texts: list[str] | None = None
    colors: list[Any] | None = None
    refused: str | None = None
    card: dict[str, Any] = field(default_factory=dict)

    def read_as(self) -> DataCard:
        changed = {"text": "title", "id": "sku", "attributes": ["color"], **self.card}
        source = CardSource(options=changed.pop("options", {}))
        splits = changed.pop("splits", Splits(by_hash=None))
        return DataCard(name="shop", columns=Columns(**changed), source=source, splits=splits)


def text(name: str, content: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode(encoding))

    return make


def lines(*rows: Any, name: str = "shop.jsonl") -> Callable[[Path], None]:
    return text(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def columns(name: str, **values: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(values), folder / name)

    return make


def both(*makers: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for maker in makers:
            maker(folder)

    return make


def photos(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(PHOTO)

    return make


def row(sku: Any, title: Any = "mug", **more: Any) -> dict[str, Any]:
    return {"sku": sku, "title": title, "color": "red", **more}


def parts(*skus: str) -> dict[str, list[str]]:
    return {"sku": list(skus), "title": ["mug"] * len(skus), "color": ["red"] * len(skus)}


def late_number(folder: Path) -> None:
    """One number among strings, farther down than the 10 MB that a reader may look at to guess types."""
    lines(*(row(f"sku{i}", 'a "mug"' + " " * 1_000) for i in range(12_000)), row(7))(folder)


def saved_to_disk(folder: Path) -> None:
    table = [row(f"a{i}", photo=PHOTO) for i in range(2)]
    dataset = datasets.Dataset.from_list(table).cast_column("photo", datasets.Image())
    datasets.DatasetDict({"train": dataset.select([1, 0])}).save_to_disk(folder)


def saved_single(folder: Path) -> None:
    datasets.Dataset.from_list([row("a"), row("b")]).save_to_disk(folder)


def saved_with_a_split_called_all(folder: Path) -> None:
    dataset = datasets.Dataset.from_list([row("a"), row("b")])
    datasets.DatasetDict({"train": dataset, "all": dataset}).save_to_disk(folder)


def classes_and_json(folder: Path) -> None:
    features = datasets.Features(
        {
            "sku": datasets.Value("int32"),
            "title": datasets.Value("string"),
            "color": datasets.ClassLabel(names=["red"]),
        }
    )
    dataset = datasets.Dataset.from_list([{"sku": 7, "title": "mug", "color": 0}], features=features)
    dataset.to_parquet(folder / "shop.parquet")


def mixed_types_in_parquet(folder: Path) -> None:
    dataset = datasets.Dataset.from_dict(
        {"sku": ["a", 1], "title": ["mug", "cup"], "color": ["red", "red"]}, on_mixed_types="use_json"
    )
    dataset.to_parquet(folder / "shop.parquet")


def spark(folder: Path) -> None:
    for i in range(3):
        columns(f"part-0000{i}-4f0d-c000.snappy.parquet", **parts(f"a{i}"))(folder)
    for name in ("_SUCCESS", ".part-00000-4f0d-c000.snappy.parquet.crc", "_temporary/0/part-1.parquet"):
        text(name, "not rows")(folder)


def mixed_web_dataset(folder: Path) -> None:
    catalogs.write_tar(folder / "a.tar", [row("a", photo=PHOTO), row("b", photo=PHOTO)])
    with tarfile.open(folder / "b.tar", "w"):
        pass


UNQUOTED = "sku,title,color\n007,None,NA\n08,null,\n9,nan,n/a\n"
BASE64 = base64.b64encode(catalogs.jpeg("red", 900)).decode()
WITH_PHOTO: dict[str, Any] = {"image": "photo"}

UGLY: dict[str, Ugly] = {
    "ids with zeros, words that look missing": Ugly(
        text("shop.csv", UNQUOTED), ["007", "08", "9"], ["None", "null", "nan"], ["NA", "", "n/a"]
    ),
    "image folder with such a metadata.csv": Ugly(
        both(photos("a.jpg"), text("metadata.csv", "file_name,sku,title,color\na.jpg,007,None,NA\n")),
        ["007"],
        ["None"],
        ["NA"],
        card={"image": "image"},
    ),
    "image folder with a number among the ids": Ugly(
        both(
            photos("a.jpg", "b.jpg"),
            lines({"file_name": "a.jpg", **row("x")}, {"file_name": "b.jpg", **row(7)}, name="metadata.jsonl"),
        ),
        ["x", "7"],
        card={"image": "image"},
    ),
    "image folder that leads out of itself": Ugly(
        both(photos("a.jpg"), text("metadata.csv", "file_name,sku,title,color\n../../a.jpg,1,mug,red\n")),
        refused="leads out of the folder",
        card={"image": "image"},
    ),
    "image folder with metadata.parquet": Ugly(
        both(photos("a.jpg"), columns("metadata.parquet", file_name=["a.jpg"], **parts("007"))),
        ["007"],
        card={"image": "image"},
    ),
    "image folders by category": Ugly(
        both(
            photos("mugs/a.jpg", "hats/b.jpg"),
            text("mugs/metadata.csv", "file_name,sku,title,color\na.jpg,a,mug,red\n"),
            text("hats/metadata.csv", "file_name,sku,title\nb.jpg,b,hat\n"),
        ),
        ["b", "a"],
        colors=[None, "red"],
        card={"image": "image"},
    ),
    "a number among ids of JSON Lines": Ugly(lines(row("sku0"), row(1), row("2")), ["sku0", "1", "2"]),
    "a number after 10 MB of strings": Ugly(late_number, [*(f"sku{i}" for i in range(12_000)), "7"]),
    "a truth value and a list among titles": Ugly(
        lines(row("a", "mug"), row("b", True), row("c", ["cup", "beaker"])), ["a", "b", "c"], ["mug", "true", "cup"]
    ),
    "dates and big numbers in JSON": Ugly(
        lines(row(12345678901234567890, "2024-01-01"), row(1, "2024-01-02T10:00:00Z")),
        ["12345678901234567890", "1"],
        ["2024-01-01", "2024-01-02T10:00:00Z"],
    ),
    "a column only in some lines": Ugly(
        lines({"sku": "a", "title": "mug"}, row("b")), ["a", "b"], colors=[None, "red"]
    ),
    "a list of rows as JSON": Ugly(text("shop.json", json.dumps([row("a"), row(7)], indent=1)), ["a", "7"]),
    "rows under a key": Ugly(
        text("shop.json", json.dumps({"rows": [row("a")]}, indent=1)), ["a"], card={"options": {"field": "rows"}}
    ),
    "rows under a key that nobody named": Ugly(
        text("shop.json", json.dumps({"rows": [row("a")]}, indent=1)), refused="field: rows"
    ),
    "a torn last line": Ugly(
        text("shop.jsonl", json.dumps(row("a")) + '\n{"sku": "b", "ti'), refused="line 2 not JSON"
    ),
    "a line that is no object": Ugly(text("shop.jsonl", '{"sku": "a", "title": "b"}\n17\n'), refused="line 2 is a int"),
    "settings beside the rows": Ugly(
        both(lines(row("a")), text("config.json", '{"model": "clip"}'), text("state.json", "{}")), ["a"]
    ),
    "settings beside a JSON table": Ugly(
        both(text("shop.json", json.dumps([row("a")])), text("config.json", '{"model": "clip"}')), ["a"]
    ),
    "semicolons": Ugly(text("shop.csv", "sku;title;color\n1;mug, white;red\n"), ["1"], ["mug, white"], ["red"]),
    "semicolons and decimal commas": Ugly(
        text("shop.csv", "sku;title;color\n1;mug;1.234,5\n2;cup;2\n"),
        ["1", "2"],
        colors=[1234.5, 2.0],
        card={"options": {"decimal": ",", "thousands": "."}},
    ),
    "latin-1": Ugly(text("shop.csv", HEADER + "1,Café crème,grün\n", "latin-1"), ["1"], ["Café crème"], ["grün"]),
    "a byte-order mark": Ugly(text("shop.csv", HEADER + "1,杯子,red\n", "utf-8-sig"), ["1"], ["杯子"]),
    "UTF-16": Ugly(text("shop.tsv", "sku\ttitle\tcolor\n1\t杯子\tred\n", "utf-16"), ["1"], ["杯子"]),
    "GB 18030": Ugly(text("shop.csv", HEADER + "1,蓝色杯子,red\n", "gb18030"), refused="encoding: gb18030"),
    "GB 18030, said": Ugly(
        text("shop.csv", HEADER + "1,蓝色杯子,red\n", "gb18030"),
        ["1"],
        ["蓝色杯子"],
        card={"options": {"encoding": "gb18030"}},
    ),
    "more fields than the header": Ugly(text("shop.csv", HEADER + "1,mug,red,left\n"), refused="more fields"),
    "more fields in one row": Ugly(text("shop.csv", HEADER + "1,mug,red\n2,mug,red,left\n"), refused="line 3"),
    "two columns of one name": Ugly(
        text("shop.csv", "sku,title,title\n1,mug,cup\n"), refused="several columns 'title'"
    ),
    "spaces in the header": Ugly(text("shop.csv", "sku , title, color\n1,mug,red\n"), ["1"], ["mug"], ["red"]),
    "a header and nothing else": Ugly(text("shop.csv", HEADER), refused="no usable row"),
    "an empty file": Ugly(text("shop.csv", ""), refused="is empty"),
    "a shard with a column more, CSV": Ugly(
        both(text("a.csv", "sku,title\n1,mug\n"), text("b.csv", HEADER + "2,mug,red\n")),
        ["1", "2"],
        colors=[None, "red"],
    ),
    "a shard with a column more, Parquet": Ugly(
        both(columns("a.parquet", sku=["1"], title=["mug"]), columns("b.parquet", **parts("2"))),
        ["1", "2"],
        colors=[None, "red"],
    ),
    "numbers in one shard, texts in another": Ugly(
        both(columns("a.parquet", **{**parts("x"), "sku": [7]}), columns("b.parquet", **parts("b"))), ["7", "b"]
    ),
    "an empty shard": Ugly(both(columns("a.parquet", **parts("1")), columns("b.parquet", **parts())), ["1"]),
    "0 rows": Ugly(columns("shop.parquet", **parts()), refused="no usable row"),
    "months": Ugly(
        both(columns("january.parquet", **parts("1")), columns("february.parquet", **parts("2"))), ["2", "1"]
    ),
    "Spark": Ugly(spark, ["a0", "a1", "a2"]),
    "all.parquet": Ugly(columns("all.parquet", **parts("1")), ["1"]),
    "notebook checkpoints": Ugly(
        both(
            text("shop.csv", HEADER + "1,mug,red\n"), text(".ipynb_checkpoints/shop-checkpoint.csv", HEADER + "1,a,b\n")
        ),
        ["1"],
    ),
    "resource forks": Ugly(
        both(text("shop.csv", HEADER + "1,mug,red\n"), text("._shop.csv", "\0\5\26"), text("__MACOSX/x.csv", "\0")),
        ["1"],
    ),
    "save_to_disk": Ugly(saved_to_disk, ["a1", "a0"], card=WITH_PHOTO),
    "save_to_disk, one dataset": Ugly(saved_single, ["a", "b"]),
    "save_to_disk, a split called all": Ugly(saved_with_a_split_called_all, refused="'all' means every row"),
    "save_to_disk, only its Arrow file": Ugly(text("data-00000-of-00001.arrow", "?"), refused="dataset_dict.json"),
    "base64": Ugly(columns("shop.parquet", photo=[BASE64, BASE64], **parts("1", "2")), ["1", "2"], card=WITH_PHOTO),
    "data: URLs": Ugly(lines(row("a", photo=f"data:image/jpeg;base64,{BASE64}")), ["a"], card=WITH_PHOTO),
    "small images in base64": Ugly(
        columns("shop.parquet", photo=[base64.b64encode(PHOTO).decode()], **parts("1")), ["1"], card=WITH_PHOTO
    ),
    "a path of 900 characters": Ugly(
        columns("shop.parquet", photo=["folder/" * 128 + "a.jpg"], **parts("1")),
        refused=r"no image at \.\.\. .*a\.jpg",
        card=WITH_PHOTO,
    ),
    "ids of two types in a tar": Ugly(
        lambda folder: catalogs.write_tar(folder / "a.tar", [row("a", photo=PHOTO), row(7, photo=PHOTO)]) and None,
        refused="cannot read",
        card={"text": "txt", "id": "json.sku", "attributes": ["json.color"]},
    ),
    "98,000 characters that are no image": Ugly(
        columns("shop.parquet", photo=["no image! " * 8_000], **parts("1")), refused="neither paths", card=WITH_PHOTO
    ),
    "base64 of a text": Ugly(
        columns("shop.parquet", photo=[base64.b64encode(b"buy milk" * 999).decode()], **parts("1")),
        refused="not an image",
        card=WITH_PHOTO,
    ),
    "an id of 98,000 characters": Ugly(
        columns("shop.parquet", photo=[None], **parts("1" * 98_000)), refused="no image", card=WITH_PHOTO
    ),
    "a thousand columns, none of them ours": Ugly(
        columns("shop.parquet", **{f"column_number_{i}": [1] for i in range(1_000)}), refused="no column 'title'"
    ),
    "texts that are not marked as such": Ugly(
        columns("shop.parquet", sku=[b"a"], title=["Käse".encode()], color=[b"red"]), ["a"], ["Käse"], ["red"]
    ),
    "whole numbers with a gap": Ugly(
        columns("shop.parquet", sku=[1.0, 2.0], title=["mug", "cup"], color=[38.0, None]),
        ["1", "2"],
        colors=[38.0, None],
    ),
    "dates and decimals": Ugly(
        columns("shop.parquet", sku=[1, 2], title=["mug", "cup"], color=[date(2024, 1, 1), None]),
        ["1", "2"],
        colors=["2024-01-01", None],
    ),
    "prices": Ugly(columns("shop.parquet", sku=[1], title=["mug"], color=[Decimal("9.99")]), ["1"], colors=[9.99]),
    "dictionary columns": Ugly(
        columns("shop.parquet", **{**parts("1"), "color": pa.array(["red"]).dictionary_encode()}),
        ["1"],
        colors=["red"],
    ),
    "classes": Ugly(classes_and_json, ["7"], colors=["red"]),
    "JSON in Parquet": Ugly(mixed_types_in_parquet, ["a", "1"]),
    "not Parquet": Ugly(text("shop.parquet", "PAR1 but not really"), refused="cannot read"),
    "an empty tar": Ugly(
        mixed_web_dataset, ["a", "b"], card={"text": "txt", "id": "json.sku", "attributes": ["json.color"]}
    ),
    "a split that is called otherwise": Ugly(
        both(columns("train.parquet", **parts("1")), columns("val.parquet", **parts("2"))),
        refused="Did you mean 'validation'",
        card={"splits": Splits(named={"train": "train", "validation": "val"})},
    ),
    "a pattern without files": Ugly(
        columns("train.parquet", **parts("1")),
        refused="no file matches 'holdout-",
        card={"splits": Splits(named={"train": "train", "test": "holdout-*.parquet"})},
    ),
}


@pytest.fixture(autouse=True)
def _short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are measured without pytest's long paths."""
    (tmp_path / "shop").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", UGLY)
def test_each_is_read_or_refused_in_one_line(name: str) -> None:
    ugly = UGLY[name]
    source = ugly.make(Path("shop")) or Path("shop")
    if ugly.refused is not None:
        with pytest.raises(DualTowerError, match=ugly.refused) as caught:
            load_items(ugly.read_as(), "train", source=source)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < LONGEST_LINE
        return
    items = load_items(ugly.read_as(), "train", source=source)
    assert items.ids == ugly.ids
    if ugly.texts is not None:
        assert [captions[0] for captions in items.texts] == ugly.texts
    if ugly.colors is not None:
        assert items.attributes["color"] == ugly.colors
    if ugly.card.get("image"):
        assert all(map(len, items.image_digests))


@pytest.mark.parametrize("name", UGLY)
def test_data_check_says_the_same(name: str) -> None:
    ugly = UGLY[name]
    source = ugly.make(Path("shop")) or Path("shop")
    try:
        report = check_card(ugly.read_as(), source=source)
    except DualTowerError as error:
        assert ugly.ids is None
        assert "\n" not in str(error) and len(str(error)) < LONGEST_LINE
        return
    assert report.splits[0].rows == len(ugly.ids or [])
    assert all(len(line) < LONGEST_LINE for line in report.bad_rows)


def test_there_are_forty() -> None:
    assert len(UGLY) >= 40


@pytest.mark.parametrize("name", ["months", "Spark", "semicolons", "save_to_disk, one dataset"])
def test_a_whole_is_divided_by_hash(name: str) -> None:
    ugly = UGLY[name]
    ugly.make(Path("shop"))
    card = replace(ugly.read_as(), splits=Splits(by_hash=HashSplit("id", 0.3, 0.3)))
    assert split_names(card, source="shop") == ["train", "validation", "test"]
    assert load_items(card, "all", source="shop").ids == ugly.ids


def test_files_are_splits_where_the_card_says_so() -> None:
    for month in ("january-1", "january-2", "february"):
        columns(f"{month}.parquet", **parts(month))(Path("shop"))
    card = DataCard("shop", Columns("title", id="sku"), splits=Splits({"train": "january", "test": "february"}))
    assert load_items(card, "train", source="shop").ids == ["january-1", "january-2"]
    assert load_items(card, "test", source="shop").ids == ["february"]
    by_pattern = replace(card, splits=Splits({"train": "train", "test": "feb*.parquet"}))
    assert load_items(by_pattern, "train", source="shop").ids == ["january-1", "january-2"]
    assert load_items(by_pattern, "all", source="shop").ids == ["january-1", "january-2", "february"]


def test_a_column_that_a_split_lacks_is_said(caplog: pytest.LogCaptureFixture) -> None:
    columns("train.parquet", **parts("a"))(Path("shop"))
    columns("test.parquet", sku=["b"], title=["mug"])(Path("shop"))
    card = UGLY["months"].read_as()
    with caplog.at_level(logging.WARNING, logger="dualtower"):
        assert load_items(card, "test", source="shop").attributes == {"color": [None]}
    assert "split test has no column color" in caplog.text


def test_tables_of_another_kind_are_named(caplog: pytest.LogCaptureFixture) -> None:
    columns("shop.parquet", **parts("a"))(Path("shop"))
    lines(row("b"), name="more.jsonl")(Path("shop"))
    with caplog.at_level(logging.WARNING, logger="dualtower"):
        assert load_items(UGLY["months"].read_as(), "train", source="shop").ids == ["a"]
    assert "shop is read as parquet; left out: more.jsonl" in caplog.text


def test_a_changed_file_is_read_again() -> None:
    text("shop.csv", HEADER + "1,mug,red\n")(Path("shop"))
    card = UGLY["semicolons"].read_as()
    assert load_items(card, "train", source="shop").ids == ["1"]
    text("shop.csv", HEADER + "2,mug,red\n3,cup,red\n")(Path("shop"))
    assert load_items(card, "train", source="shop").ids == ["2", "3"]

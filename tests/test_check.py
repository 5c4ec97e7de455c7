"""The report finds what was planted, and on real products what is known of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import catalogs
import pytest
from catalogs import own_cache  # noqa: F401

from dualtower.cli import main
from dualtower.curation.check import Leak, Repeated, check_card
from dualtower.data.cards import load_card


def test_planted_faults(tmp_path: Path) -> None:
    train, test = catalogs.rows(6), catalogs.rows(4, start=6)
    train[1]["photo"] = train[0]["photo"]  # identical images
    train[2]["title"] = ""
    train[3]["photo"] = None
    train[4]["photo"] = b"a text file"
    train[5]["title"] = "mug " * 500
    test[0]["photo"] = train[0]["photo"]  # leaks
    test[1]["item"] = "mug-0"
    test[2]["title"] = "RED mug 0"
    test[2]["sku"] = "sku-0"
    test[3]["sku"] = "sku-6"
    test[3]["color"] = None
    for name, table in (("train", train), ("test", test)):
        catalogs.write_parquet(tmp_path / "shop" / f"{name}.parquet", table)

    report = check_card(catalogs.card(), source=tmp_path / "shop")
    by_split = {split.split: split for split in report.splits}
    assert (by_split["train"].rows, by_split["train"].products, by_split["train"].over_long) == (3, 2, 1)
    assert by_split["train"].left_out == {"empty text": 1, "missing image": 1, "broken image": 1}
    assert (by_split["test"].rows, by_split["test"].left_out) == (3, {"duplicate id": 1})
    assert report.products == Repeated(values=1, rows=3, largest=3, example="sku-0")
    assert report.titles == Repeated(values=2, rows=4, largest=2, example="sku-0")
    assert report.images == Repeated(values=1, rows=3, largest=3, example="sku-0")
    assert report.duplicate_ids == 1
    assert report.leaks == [Leak(splits=("train", "test"), products=1, images=1, titles=1)]
    color = report.attributes[0]
    assert (color.name, color.different, color.missing) == ("color", 3, 0)
    assert color.top[0] == ("red", 3)
    assert len(report.bad_rows) == 4

    text = report.to_markdown()
    assert "| train | 3 | 2 | 1 | 0 | 1 | 1 | 1 |" in " ".join(text.split())
    assert "- 1 groups of byte-identical images: 3 rows, the largest 3 (row sku-0)" in text
    assert "duplicate id" in text and "not an image" in text
    assert json.loads(json.dumps(report.to_dict()))["leaks"][0]["splits"] == ["train", "test"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"photo": catalogs.jpeg("red", 12)}, "1 groups of byte-identical images; 1 images shared by train and test"),
        ({"item": "mug-0"}, "1 products shared by train and test"),
        ({"title": "Red MUG 0"}, "1 titles shared by train and test"),
        ({"sku": "sku-0"}, "1 ids stand in more than one split"),
        ({"photo": b"a text file"}, "1 rows cannot be used"),
    ],
)
def test_strict_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], problem: str | None
) -> None:
    catalogs.write_parquet(tmp_path / "shop" / "train.parquet", catalogs.rows(4))
    catalogs.write_parquet(tmp_path / "shop" / "test.parquet", [{**row, **change} for row in catalogs.rows(1, start=4)])
    (tmp_path / "shop.md").write_text(
        "---\nname: shop\nsource: {path: shop}\ncolumns: {id: sku, product_id: item, text: title, image: photo}\n---\n"
    )
    check = ["data", "check", str(tmp_path / "shop.md"), "--json", str(tmp_path / "report.json")]
    main(check)
    if problem is None:
        main([*check, "--strict"])
        return
    with pytest.raises(SystemExit) as exited:
        main([*check, "--strict"])
    assert exited.value.code == f"DataError: shop: {problem}"  # Python prints such a code and exits with 1
    assert "# shop" in capsys.readouterr().out and (tmp_path / "report.json").exists()


def test_a_split_without_a_usable_row_is_reported(tmp_path: Path) -> None:
    folder = catalogs.write_parquet(tmp_path / "train.parquet", [{**r, "title": ""} for r in catalogs.rows(30)])
    report = check_card(catalogs.card(), source=folder)
    assert (report.splits[0].rows, report.splits[0].left_out) == (0, {"empty text": 30})
    assert "- and 20 more" in report.to_markdown()


def test_drawn_catalog_is_clean() -> None:
    drawn = load_card("synthetic")
    small = replace(drawn, source=replace(drawn.source, options={"products": 200, "views": 1}))
    report = check_card(small)
    assert sum(s.rows for s in report.splits) == 200
    assert [s.split for s in report.splits] == ["train", "validation", "test"]
    assert all(not s.left_out for s in report.splits) and not report.bad_rows
    assert all(leak.products == leak.images == 0 for leak in report.leaks)


@pytest.mark.shared
def test_real_products(shared_fashion: Path) -> None:
    report = check_card(load_card("fashion_products"), source=shared_fashion)
    assert {s.split: s.rows for s in report.splits} == {"train": 39_248, "validation": 1_957, "test": 2_867}
    assert not any(s.left_out or s.over_long for s in report.splits)
    assert (report.titles.values, report.titles.rows, report.titles.largest) == (5_089, 18_360, 82)
    assert report.images.values == 651
    assert report.duplicate_ids == 0
    assert all(leak.images == 0 for leak in report.leaks)
    different = {a.name: a.different for a in report.attributes}
    assert different == {"masterCategory": 7, "subCategory": 45, "articleType": 141, "baseColour": 46, "usage": 8}


def test_a_look_at_a_catalog_needs_no_torch() -> None:
    """Which takes 250 MB and more than a second."""
    script = "import sys, dualtower.curation.check, dualtower.data.loading; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

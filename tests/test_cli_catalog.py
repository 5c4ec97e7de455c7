"""The commands on a catalog, from index to outliers, as somebody types them."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from test_cli import CARDS, OWN_CARD, command, model

from dualtower.data.synthetic.catalog import synthesize_catalog
from dualtower.search.ann.index import METHODS
from dualtower.search.ann.index_cache import read_index_info
from dualtower.search.local.store import LocalStore

__all__ = ["model"]  # the fixture


@pytest.fixture(scope="module")
def indexed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic test split as a catalog."""
    folder = tmp_path_factory.mktemp("indexed") / "shop"
    assert command("index", model, "--data.card", CARDS / "synthetic.md", "--split", "test", "--out", folder) == 0
    return folder


@pytest.fixture
def shop(indexed: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(indexed, tmp_path / "shop")


def test_index_again_embeds_nothing(indexed: Path, model: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("index", model, "--data.card", CARDS / "synthetic.md", "--split", "test", "--out", indexed)
    assert command(*words) == 0
    assert "0 rows embedded" in capsys.readouterr().out


def hits(capsys: pytest.CaptureFixture, *words: object) -> list[dict]:
    capsys.readouterr()
    assert command("search", *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"hits", "cursor"}
    return found["hits"]


def test_search_by_words_image_both_and_likeness(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    product = synthesize_catalog(split="test")[0]
    assert isinstance(product.image, bytes)
    (tmp_path / "photo.png").write_bytes(product.image)
    by_image = hits(capsys, shop, "--image", tmp_path / "photo.png", "--limit", "3")
    assert by_image[0]["score"] == pytest.approx(1, abs=2e-3)  # of itself; untrained, it finds others as good
    by_words = hits(capsys, shop, "--text", "blue mug", "--where", "object = 'mug' and color in ('blue', 'red')")
    assert {hit["row"]["attributes"]["object"] for hit in by_words} == {"mug"}
    both = hits(capsys, shop, "--text", "mug", "--image", tmp_path / "photo.png", "--weights", "0", "1", "--limit", "3")
    assert [hit["id"] for hit in both] == [hit["id"] for hit in by_image]
    alike = hits(capsys, shop, "--similar", product.id)
    assert product.product_id not in {hit["product_id"] for hit in alike}
    titles = hits(capsys, shop, "--image", tmp_path / "photo.png", "--target", "text", "--not", "lamp", "--every-row")
    assert len(titles) == 10
    assert command("search", shop, "--text", "mug", "--where", "object = 'nothing'") == 0
    assert "nothing found" in capsys.readouterr().out


def test_rows_come_and_go(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("data", "synthesize", tmp_path / "more", "--split", "validation") == 0
    card = tmp_path / "card.md"
    card.write_text(OWN_CARD.format(folder=tmp_path / "more").replace("[object, color]", "[object, color, material]"))
    new = synthesize_catalog(split="validation")
    assert command("upsert", shop, tmp_path / "more", "--card", card) == 0
    assert f"{len(new)} rows written" in capsys.readouterr().out
    assert hits(capsys, shop, "--similar", new[0].id)
    assert command("delete", shop, new[0].id, "nothing") == 0
    assert "1 of 2 rows removed" in capsys.readouterr().out
    assert command("compact", shop) == 0
    assert "1 slots freed" in capsys.readouterr().out
    assert command("upsert", shop, tmp_path / "more") == 0  # by the card of the catalog, whose own rows are drawn
    assert f"{len(new)} rows written" in capsys.readouterr().out
    assert command("verify", shop) == 0
    assert "all whole" in capsys.readouterr().out
    (vectors,) = (shop / "vectors").glob("*-image.f16")
    vectors.write_bytes(b"\xff" + vectors.read_bytes()[1:])
    assert command("verify", shop) == 1
    assert "has changed on the disk" in capsys.readouterr().out


def test_attributes_change_without_embedding(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second, *_ = synthesize_catalog(split="test")
    stamp = {path: path.stat().st_mtime_ns for path in (shop / "vectors").iterdir()}
    table = tmp_path / "colors.csv"
    table.write_text(f"id,color,material\n{first.id},007,\n{second.id},,tin\n")
    assert command("update", shop, table) == 0
    assert "2 rows changed, 0 unchanged" in capsys.readouterr().out
    (hit,) = hits(capsys, shop, "--text", "mug", "--where", "color = '007'")
    assert hit["id"] == first.id and hit["row"]["title"] == first.texts[0]
    assert hit["row"]["attributes"] == {**first.attributes, "color": "007"}
    (hit,) = hits(capsys, shop, "--text", "mug", "--where", "material = 'tin'")
    assert hit["row"]["attributes"] == {**second.attributes, "material": "tin"}
    assert {path: path.stat().st_mtime_ns for path in (shop / "vectors").iterdir()} == stamp
    assert command("update", shop, table) == 0
    assert "0 rows changed, 2 unchanged" in capsys.readouterr().out
    table.write_text(f"id,color\nnobody,red\n{first.id},red\n")
    assert command("update", shop, table) == 1
    printed = capsys.readouterr().out
    assert "row 0: no row 'nobody'" in printed and "--on-error skip" in printed
    assert command("update", shop, table, "--on-error", "skip") == 0
    printed = capsys.readouterr().out
    assert "left out 1 rows" in printed and "1 rows changed" in printed
    table.write_text(f"id,title\n{first.id},new\n")
    assert command("update", shop, table) == 1
    assert "column 'title' is no attribute of this catalog" in capsys.readouterr().out
    table.write_text("sku,color\n1,red\n")
    assert command("update", shop, table) == 1
    assert "no column 'id' with the ids; it has: sku, color" in capsys.readouterr().out


def test_rows_with_numbers_that_are_none_stay_out(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("data", "synthesize", tmp_path / "rows", "--split", "validation") == 0
    metadata = tmp_path / "rows" / "metadata.jsonl"
    rows = [json.loads(line) | {"price": 5.0 + i} for i, line in enumerate(metadata.read_text().splitlines()[:40])]
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = tmp_path / "card.md"
    card.write_text(OWN_CARD.format(folder=tmp_path / "rows").replace("[object, color]", "[object, price]"))
    shop = tmp_path / "shop"
    assert command("index", model, "--data.card", card, "--out", shop) == 0
    capsys.readouterr()
    for bad in (float("nan"), float("inf"), "cheap"):
        rows[3]["price"] = bad
        metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for words in (("upsert", shop, tmp_path / "rows"), ("index", model, "--data.card", card, "--out", shop)):
            assert command(*words) == 1
            printed = capsys.readouterr().out
            assert "row 3" in printed and "column 'price' is" in printed, printed
    assert command("upsert", shop, tmp_path / "rows", "--on-error", "skip") == 0
    assert "left out 1 rows" in capsys.readouterr().out
    found = hits(capsys, shop, "--text", "mug", "--where", "price < 20", "--limit", "40", "--every-row")
    assert len(found) == 15 and {hit["row"]["attributes"]["price"] for hit in found} == {5.0 + i for i in range(15)}


def test_tune_keeps_the_best(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "queries.txt").write_text("blue mug\nred lamp\n\nstriped cushion\n")
    assert command("tune", shop, "--methods", "flat", "hnsw", "--queries", tmp_path / "queries.txt") == 0
    printed = capsys.readouterr().out
    assert printed.count("measuring flat, hnsw on") == 2  # before minutes of silence
    assert "image vectors:" in printed and "| hnsw | queries | 100% |" in " ".join(printed.split())
    info = read_index_info(shop / "cache", "image")
    assert info is not None and info.method in METHODS and hits(capsys, shop, "--text", "mug")


def test_a_cache_that_is_gone_or_damaged_is_made_anew(shop: Path, model: Path, capsys: pytest.CaptureFixture) -> None:
    again = ("index", model, "--data.card", CARDS / "synthetic.md", "--split", "test", "--out", shop)
    for words in (("compact", shop), ("tune", shop, "--methods", "flat"), again):
        shutil.rmtree(shop / "cache")
        assert hits(capsys, shop, "--text", "mug") and command(*words) == 0
        assert not LocalStore(shop).is_stale(thorough=True), words
    for path in (shop / "cache").glob("*-image-*.faiss"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert hits(capsys, shop, "--text", "mug") and command(*again) == 0
    assert "0 rows embedded" in capsys.readouterr().out and not LocalStore(shop).is_stale(thorough=True)


def test_labels_and_outliers(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("classify", shop, "--attribute", "object", "--out", tmp_path / "labels.csv") == 0
    assert "of the rows got the label" in capsys.readouterr().out and (tmp_path / "labels.csv").exists()
    assert command("classify", shop, "--labels", "mug", "lamp", "--prompt", "a {}") == 0
    assert command("outliers", shop, "--out", tmp_path / "odd", "--number", "5") == 0
    assert (tmp_path / "odd" / "images" / "5.jpg").exists()


def test_damage_in_a_catalog_and_beside_one(
    shop: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its own model looks at it; a whole photo of it is found again."""
    assert command("outliers", shop, "--method", "reconstruction", "--out", tmp_path / "alone", "--number", "2") == 0
    assert "576 images of" in capsys.readouterr().out and (tmp_path / "alone" / "images" / "2.png").exists()
    (tmp_path / "new").mkdir()
    product = synthesize_catalog(split="test")[0]
    assert isinstance(product.image, bytes)
    (tmp_path / "new" / "photo.png").write_bytes(product.image)
    words = ("--clean", shop, "--method", "patch", "--out", tmp_path / "beside")
    assert command("outliers", tmp_path / "new", *words) == 0
    assert "0 of 1 images" in capsys.readouterr().out
    words = ("--split", "validation", "--clean", CARDS / "synthetic.md", "--max-clean", "300", "--model", model)
    card = CARDS / "synthetic.md"
    assert command("outliers", card, *words, "--method", "reconstruction", "--out", tmp_path / "cards") == 0
    assert "of 192 images of synthetic (validation)" in capsys.readouterr().out
    assert command("outliers", card, *words, "--clean-split", "trian", "--out", tmp_path / "cards") == 1
    assert "Did you mean 'train'?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("search", "nowhere", "--text", "x"), "no catalog in nowhere"),
        (("search", "SHOP"), "nothing to search with"),
        (("search", "SHOP", "--image", "no.png"), "no.png"),
        (("search", "SHOP", "--similar", "nobody"), "no row 'nobody'"),
        (("search", "SHOP", "--text", "x", "--where", "objekt = 'mug'"), "Did you mean 'object'"),
        (("search", "SHOP", "--text", "x", "--model", "nowhere"), "nowhere"),
        (("upsert", "SHOP", "no_folder", "--card", CARDS / "fashion_products.md"), "no_folder"),
        (("tune", "SHOP", "--methods", "hsnw"), "Did you mean 'hnsw'"),
        (("classify", "SHOP"), "either --labels or an --attribute"),
        (("classify", "SHOP", "--attribute", "objekt"), "object"),
        (("classify", "SHOP", "--labels", "a", "b", "--prompt", "x"), "no place for the label"),
        (("serve", "nowhere", "--port", "0"), "no catalog in nowhere"),
        (("serve", "SHOP", "--queue", "0"), "queue is 0; it must be at least 1"),
        (("serve", "SHOP", "--token-file", "no_file"), "cannot read the token file"),
    ],
)
def test_wrong_words_are_named(words: tuple, message: str, shop: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(*(shop if word == "SHOP" else word for word in words)) == 1
    assert message in capsys.readouterr().out


def test_a_port_in_use_is_named(shop: Path, capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert command("serve", shop, "--port", str(port)) == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().out


def test_a_port_that_another_process_takes_meanwhile_is_named(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from dualtower.search import engine

    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        opened = engine.open_engine

        def slowly(*args: object, **options: object) -> object:
            other.listen()
            return opened(*args, **options)

        monkeypatch.setattr(engine, "open_engine", slowly)
        assert command("serve", shop, "--port", str(port)) == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().out

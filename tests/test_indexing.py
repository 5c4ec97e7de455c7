"""From products to a catalogue: everything once, and again only what has changed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_catalogue import stored_vectors
from test_serving import products

from dualtower import Product
from dualtower.data.products import Products
from dualtower.errors import BrokenImage, CatalogueError
from dualtower.model import DualTower
from dualtower.retrieval.catalogue import Catalogue
from dualtower.retrieval.indexing import attribute_kinds, index_products, open_or_create
from dualtower.retrieval.labels import classify, write_labels
from dualtower.retrieval.local import LocalStore
from dualtower.retrieval.outliers import find_outliers, write_outliers
from dualtower.retrieval.records import Item
from dualtower.retrieval.shown import media_type, shown_picture

KINDS = {"colour": "text", "price": "number"}


@pytest.fixture
def model(tmp_path: Path) -> DualTower:
    tiny.spread_model().save_pretrained(tmp_path / "model")
    return DualTower.from_pretrained(tmp_path / "model")


@pytest.fixture
def catalogue(tmp_path: Path, model: DualTower) -> Catalogue:
    open_or_create(tmp_path / "shop", model, name=str(tmp_path / "model"), attributes=KINDS, card="tiny").close()
    return Catalogue(tmp_path / "shop")


def test_vectors_are_the_models(catalogue: Catalogue, model: DualTower) -> None:
    rows = products(10)
    index_products(catalogue, model, rows, batch_size=4)
    stored = catalogue.get([row.id for row in rows])
    for kind, wanted in [
        ("image", model.encode_image([row.image for row in rows])),
        ("text", model.encode_text([row.texts[0] for row in rows])),
    ]:
        held = stored_vectors(catalogue, stored, kind).astype(np.float32)
        np.testing.assert_allclose(held, wanted, atol=1e-3)
    assert catalogue.picture("r3") == rows[3].image


def test_only_what_has_changed_is_embedded(catalogue: Catalogue, model: DualTower) -> None:
    rows = products(12)
    assert index_products(catalogue, model, rows).written == 12
    assert index_products(catalogue, model, rows).unchanged == 12
    rows[3] = replace(rows[3], texts=("Puma red dress",))
    rows[4] = replace(rows[4], attributes={"colour": "red", "price": 1.0})
    rows[5] = replace(rows[5], image=rows[6].image)
    done = index_products(catalogue, model, rows)
    assert (done.written, done.unchanged) == (3, 9)
    assert catalogue.get(["r3"])[0].title == "Puma red dress" and len(catalogue) == 12


def test_a_row_may_lack_its_picture_or_its_title(catalogue: Catalogue, model: DualTower) -> None:
    picture = tiny.png(tiny.picture())
    index_products(catalogue, model, [Product("t", "t", ("red mug",)), Product("i", "i", (), picture)])
    assert [row.kinds for row in catalogue.get(["t", "i"])] == [("text",), ("image",)]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_serving import products
from dualtower.model import DualTower
from dualtower.retrieval import indexing
from dualtower.retrieval.catalogue import Catalogue
indexing.BLOCK = 10
model, catalogue = DualTower.from_pretrained({model!r}), Catalogue({shop!r})
blocks, embed = 0, indexing.embed
def counted(*args, **more):
    global blocks
    blocks += 1
    print("block", len(args[1]), flush=True)
    if blocks == {stop}:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(*args, **more)
indexing.embed = counted
print(indexing.index_products(catalogue, model, products(60)), flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_embeds_nothing_twice(catalogue: Catalogue, tmp_path: Path) -> None:
    def run(stop: int) -> subprocess.CompletedProcess:
        names = {"tests": str(Path(__file__).parent), "model": str(tmp_path / "model"), "shop": str(tmp_path / "shop")}
        code = KILLED.format(**names, stop=stop)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    assert run(stop=4).returncode == -signal.SIGKILL
    assert len(catalogue) == 30 and catalogue.verify() == []
    again = run(stop=0)
    assert [int(n) for n in re.findall(r"block (\d+)", again.stdout)] == [0, 0, 0, 10, 10, 10], again.stderr
    assert len(catalogue) == 60 and catalogue.verify() == []


def test_another_model_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    other = tiny.model("bow", seed=1)
    with pytest.raises(CatalogueError, match="vectors of two models do not compare"):
        index_products(catalogue, other, products(3))
    with pytest.raises(CatalogueError, match="vectors of two models do not compare"):
        open_or_create(tmp_path / "shop", other, name="x", attributes=KINDS)


def test_a_broken_picture_names_its_row(catalogue: Catalogue, model: DualTower, tmp_path: Path) -> None:
    rows = products(6)
    for image, reason in [(b"nothing", "not a picture"), (tmp_path / "missing.png", "No such file")]:
        rows[4] = replace(rows[4], image=image)
        with pytest.raises(BrokenImage, match=f"r(ow )?.*{reason}"):
            index_products(catalogue, model, rows)
    assert len(catalogue) == 0


def test_large_and_strange_pictures_are_shown_as_smaller_ones() -> None:
    large = tiny.png(tiny.picture(0, (1200, 800)))
    shown = shown_picture(large)
    assert media_type(shown) == "image/jpeg" and len(shown) < len(large)
    assert media_type(b"<svg onload=alert(1)>") is None and media_type(tiny.png(tiny.picture())) == "image/png"


def test_kinds_of_attributes() -> None:
    rows = [
        Product("a", "a", ("x",), None, {"price": 3, "size": "M", "year": 2010, "none": None}),
        Product("b", "b", ("y",), None, {"price": 4.5, "size": 7, "year": None, "none": None}),
    ]
    kinds = attribute_kinds(Products.from_rows(rows))
    assert kinds == {"price": "number", "size": "text", "year": "number", "none": "text"}


def test_labels(catalogue: Catalogue, model: DualTower, tmp_path: Path) -> None:
    index_products(catalogue, model, products(30))
    store = LocalStore(tmp_path / "shop")
    found = classify(store, model, attribute="colour")
    assert set(found.labels) == {"red", "blue", "green"} and len(found.ids) == 30 and found.accuracy is not None
    texts = model.encode_text(list(found.labels))
    images = model.encode_image([row.image for row in products(30)])
    wanted = {f"r{i}": int(best) for i, best in enumerate((images @ texts.T).argmax(1))}
    agree = sum(wanted[row_id] == number for row_id, number in zip(found.ids, found.chosen.tolist(), strict=True))
    assert agree >= 28 and "| label | rows |" in " ".join(found.table().split())  # float16 may turn a tie
    write_labels(found, tmp_path / "labels.csv")
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 31


def test_outliers(catalogue: Catalogue, tmp_path: Path) -> None:
    """Vectors around one direction, but for one odd picture, and one title that belongs elsewhere."""
    generator = np.random.default_rng(0)
    middle = generator.normal(size=12)
    near = middle + 0.3 * generator.normal(size=(2, 60, 12))
    near[0, 17], near[1, 17], near[1, 41] = -middle, -middle, generator.normal(size=12)
    near /= np.linalg.norm(near, axis=2, keepdims=True)
    picture = tiny.png(tiny.picture())
    catalogue.upsert(
        [
            Item(f"r{i}", f"p{i}", "a <b>title</b>", {}, {"image": near[0, i], "text": near[1, i]}, picture)
            for i in range(60)
        ]
    )
    store = LocalStore(tmp_path / "shop")
    found = find_outliers(store, neighbours=5)
    assert [store.catalogue.at([number])[number].id for number in found.numbers[:2].tolist()] == ["r17", "r41"]
    assert found.odd[0] > 5 and found.apart[1] > 3 and abs(found.apart[0]) < 3
    table = write_outliers(found, store, tmp_path / "report", number=5)
    assert "r17" in table and "<b>" not in table and (tmp_path / "report" / "pictures" / "1.jpg").exists()
    assert len((tmp_path / "report" / "report.md").read_text().splitlines()) == 11

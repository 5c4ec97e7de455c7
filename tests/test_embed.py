"""From products to a catalog: everything once, and again only what has changed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import factories
import numpy as np
import pytest
from test_catalog import stored_vectors
from test_serving import items

from dualtower import Item
from dualtower.curation.outliers import find_outliers, write_outliers
from dualtower.curation.zero_shot import classify, write_labels
from dualtower.data.items import ItemDataset
from dualtower.errors import BrokenImage, CatalogError
from dualtower.models.dual_tower import DualTower
from dualtower.search.ingest.embed import attribute_types_of, index_products, open_or_create
from dualtower.search.ingest.thumbnails import make_thumbnail, media_type
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.store import LocalStore
from dualtower.search.records import EmbeddedItem

KINDS = {"color": "text", "price": "number"}


@pytest.fixture
def model(tmp_path: Path) -> DualTower:
    factories.spread_model().save_pretrained(tmp_path / "model")
    return DualTower.from_pretrained(tmp_path / "model")


@pytest.fixture
def catalog(tmp_path: Path, model: DualTower) -> Catalog:
    open_or_create(tmp_path / "shop", model, name=str(tmp_path / "model"), attributes=KINDS, card="tiny").close()
    return Catalog(tmp_path / "shop")


def test_vectors_are_the_models(catalog: Catalog, model: DualTower) -> None:
    rows = items(10)
    index_products(catalog, model, rows, batch_size=4)
    stored = catalog.get([row.id for row in rows])
    for kind, wanted in [
        ("image", model.encode_image([row.image for row in rows])),
        ("text", model.encode_text([row.texts[0] for row in rows])),
    ]:
        held = stored_vectors(catalog, stored, kind).astype(np.float32)
        np.testing.assert_allclose(held, wanted, atol=1e-3)
    assert catalog.image("r3") == rows[3].image


def test_only_what_has_changed_is_embedded(catalog: Catalog, model: DualTower) -> None:
    rows = items(12)
    assert index_products(catalog, model, rows).written == 12
    assert index_products(catalog, model, rows).unchanged == 12
    rows[3] = replace(rows[3], texts=("Puma red dress",))
    rows[4] = replace(rows[4], attributes={"color": "red", "price": 1.0})
    rows[5] = replace(rows[5], image=rows[6].image)
    done = index_products(catalog, model, rows)
    assert (done.written, done.unchanged) == (3, 9)
    assert catalog.get(["r3"])[0].title == "Puma red dress" and len(catalog) == 12


def test_a_row_may_lack_its_image_or_its_title(catalog: Catalog, model: DualTower) -> None:
    photo = factories.png(factories.photo())
    index_products(catalog, model, [Item("t", "t", ("red mug",)), Item("i", "i", (), photo)])
    assert [row.vector_names for row in catalog.get(["t", "i"])] == [("text",), ("image",)]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_serving import items
from dualtower.models.dual_tower import DualTower
from dualtower.search.ingest import embed as room
from dualtower.search.local.catalog import Catalog
room.BLOCK = 10
model, catalog = DualTower.from_pretrained({model!r}), Catalog({shop!r})
blocks, embed = 0, room.embed
def counted(*args, **more):
    global blocks
    blocks += 1
    print("block", len(args[1]), flush=True)
    if blocks == {stop}:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(*args, **more)
room.embed = counted
print(room.index_products(catalog, model, items(60)), flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_embeds_nothing_twice(catalog: Catalog, tmp_path: Path) -> None:
    def run(stop: int) -> subprocess.CompletedProcess:
        names = {"tests": str(Path(__file__).parent), "model": str(tmp_path / "model"), "shop": str(tmp_path / "shop")}
        code = KILLED.format(**names, stop=stop)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    assert run(stop=4).returncode == -signal.SIGKILL
    assert len(catalog) == 30 and catalog.verify() == []
    again = run(stop=0)
    assert [int(n) for n in re.findall(r"block (\d+)", again.stdout)] == [0, 0, 0, 10, 10, 10], again.stderr
    assert len(catalog) == 60 and catalog.verify() == []


def test_another_model_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    other = factories.model("bow", seed=1)
    with pytest.raises(CatalogError, match="vectors of two models do not compare"):
        index_products(catalog, other, items(3))
    with pytest.raises(CatalogError, match="vectors of two models do not compare"):
        open_or_create(tmp_path / "shop", other, name="x", attributes=KINDS)


def test_a_broken_image_names_its_row(catalog: Catalog, model: DualTower, tmp_path: Path) -> None:
    rows = items(6)
    for image, reason in [(b"nothing", "not an image"), (tmp_path / "missing.png", "No such file")]:
        rows[4] = replace(rows[4], image=image)
        with pytest.raises(BrokenImage, match=f"r(ow )?.*{reason}"):
            index_products(catalog, model, rows)
    assert len(catalog) == 0


def test_large_and_strange_images_are_shown_as_smaller_ones() -> None:
    large = factories.png(factories.photo(0, (1200, 800)))
    shown = make_thumbnail(large)
    assert media_type(shown) == "image/jpeg" and len(shown) < len(large)
    assert media_type(b"<svg onload=alert(1)>") is None and media_type(factories.png(factories.photo())) == "image/png"


def test_kinds_of_attributes() -> None:
    rows = [
        Item("a", "a", ("x",), None, {"price": 3, "size": "M", "year": 2010, "none": None}),
        Item("b", "b", ("y",), None, {"price": 4.5, "size": 7, "year": None, "none": None}),
    ]
    kinds = attribute_types_of(ItemDataset.from_rows(rows))
    assert kinds == {"price": "number", "size": "text", "year": "number", "none": "text"}


def test_labels(catalog: Catalog, model: DualTower, tmp_path: Path) -> None:
    index_products(catalog, model, items(30))
    store = LocalStore(tmp_path / "shop")
    found = classify(store, model, attribute="color")
    assert set(found.labels) == {"red", "blue", "green"} and len(found.ids) == 30 and found.accuracy is not None
    texts = model.encode_text(list(found.labels))
    images = model.encode_image([row.image for row in items(30)])
    wanted = {f"r{i}": int(best) for i, best in enumerate((images @ texts.T).argmax(1))}
    all_reduce_max = sum(
        wanted[row_id] == number for row_id, number in zip(found.ids, found.chosen.tolist(), strict=True)
    )
    assert all_reduce_max >= 28 and "| label | rows |" in " ".join(found.table().split())  # float16 may turn a tie
    write_labels(found, tmp_path / "labels.csv")
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 31


def test_outliers(catalog: Catalog, tmp_path: Path) -> None:
    """Vectors around one direction, but for one odd image, and one title that belongs elsewhere."""
    generator = np.random.default_rng(0)
    middle = generator.normal(size=12)
    near = middle + 0.3 * generator.normal(size=(2, 60, 12))
    near[0, 17], near[1, 17], near[1, 41] = -middle, -middle, generator.normal(size=12)
    near /= np.linalg.norm(near, axis=2, keepdims=True)
    photo = factories.png(factories.photo())
    catalog.upsert(
        [
            EmbeddedItem(f"r{i}", f"p{i}", "a <b>title</b>", {}, {"image": near[0, i], "text": near[1, i]}, photo)
            for i in range(60)
        ]
    )
    store = LocalStore(tmp_path / "shop")
    found = find_outliers(store, neighbors=5)
    assert [store.catalog.at([number])[number].id for number in found.numbers[:2].tolist()] == ["r17", "r41"]
    assert found.odd[0] > 5 and found.apart[1] > 3 and abs(found.apart[0]) < 3
    table = write_outliers(found, store, tmp_path / "report", number=5)
    assert "r17" in table and "<b>" not in table and (tmp_path / "report" / "images" / "1.jpg").exists()
    assert len((tmp_path / "report" / "report.md").read_text().splitlines()) == 11

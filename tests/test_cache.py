"""The cache of a catalog: only ever a quicker way to what the rows say, whatever has become of its files."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_catalog import DIM, info

from dualtower.search.ann import index_cache
from dualtower.search.ann.index import IndexInfo
from dualtower.search.ann.index_cache import load_index, read_index_info
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.store import LocalStore
from dualtower.search.queries import Query
from dualtower.search.records import EmbeddedItem


def rows(first: int, last: int, seed: int = 0) -> list[EmbeddedItem]:
    """Row i has price i, and vectors of a seed."""
    draws = np.random.default_rng([seed, first]).normal(size=(last - first, 2, DIM)).astype(np.float16)
    return [
        EmbeddedItem(f"{seed}-{i}", f"{seed}-{i}", "", {"color": "Red", "price": float(i)}, {"image": a, "text": b})
        for i, (a, b) in enumerate(draws, first)
    ]


def found(store: LocalStore, where: str = "") -> list[tuple[str, float]]:
    query = Query(np.ones(DIM, np.float32), "text", where, limit=1000)
    return [(hit.id, round(hit.score, 5)) for hit in store.search(query).hits]


def truth(catalog_items: list[EmbeddedItem], least: float = 0) -> list[tuple[str, float]]:
    scored = [(-float(np.float32(item.vectors["text"]).sum()), item.id) for item in catalog_items]
    chosen = [pair for pair, item in zip(scored, catalog_items, strict=True) if item.attributes["price"] >= least]
    return [(row_id, pytest.approx(-score, abs=1e-4)) for score, row_id in sorted(chosen)]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    Catalog.create(tmp_path / "shop", info()).close()
    made = LocalStore(tmp_path / "shop")
    made.upsert(rows(0, 300))
    return made


@pytest.mark.parametrize("while_open", [False, True])
def test_a_cache_of_other_rows_does_not_count(tmp_path: Path, store: LocalStore, while_open: bool) -> None:
    """Rows and vectors are restored from a backup, and go on from there to the same numbers with other rows."""
    folder, backup = store.catalog.folder, tmp_path / "backup"
    store.close()
    shutil.copytree(folder, backup)
    store.upsert(rows(300, 350, seed=1))
    store.rebuild(methods=dict.fromkeys(store.info.vector_names, "hnsw"))
    assert found(store, "price >= 300") == truth(rows(300, 350, seed=1), 300)
    store.close()
    for path in (*folder.glob("rows.sqlite*"), *(folder / "vectors").iterdir()):
        path.unlink()
    for path in (*backup.glob("rows.sqlite*"), *(backup / "vectors").iterdir()):
        shutil.copy(path, folder / path.relative_to(backup))
    again = store if while_open else LocalStore(folder)
    again.upsert([*rows(300, 325, seed=2), *rows(325, 350, seed=3)])
    assert again.catalog.verify() == [] and again.is_stale()
    now = [*rows(0, 300), *rows(300, 325, seed=2), *rows(325, 350, seed=3)]
    assert found(again, "price >= 300") == truth(now, 300) and found(again) == truth(now)
    again.rebuild()
    assert not again.is_stale(thorough=True) and found(LocalStore(folder)) == truth(now)


def flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def cut(path: Path, dice: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content))])


def fill(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(path.stat().st_size))


def unlink(path: Path, dice: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, cut, fill, unlink])
def test_whatever_becomes_of_the_cache(
    store: LocalStore, damage: Callable[[Path, random.Random], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Searches say the truth, what cannot be used is logged, and a rebuild heals it."""
    dice, folder = random.Random(damage.__name__), store.catalog.folder
    store.rebuild(methods=dict.fromkeys(store.info.vector_names, "hnsw"))
    whole = shutil.copytree(folder / "cache", folder.with_name("whole"))
    for name in [*(path.name for path in whole.iterdir()), *["view.npz"] * 9]:
        damage(folder / "cache" / name, dice)
        caplog.clear()
        hurt = LocalStore(folder)
        assert found(hurt, "price >= 100") == truth(rows(0, 300), 100), name
        if name.endswith((".faiss", ".json")):
            assert hurt.is_stale(thorough=True), name
            assert damage is unlink or any("cannot be used" in line for line in caplog.messages), name
        hurt.upsert(rows(0, 1))
        hurt.rebuild()
        assert not LocalStore(folder).is_stale(thorough=True)
        shutil.rmtree(folder / "cache")
        shutil.copytree(whole, folder / "cache")  # of older rows now, but still of these
        again = LocalStore(folder)
        assert again._index(again.searcher.views.current(), "text").info.method == "hnsw"


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "null",
        "7",
        '{"kind": "image", "method": "flat", "generation": 0, "covered": 5}',  # as an older version wrote it
        '{"index": {"color": "red"}, "checksum": "x"}',
    ],
)
def test_manifests_of_any_kind_do_no_harm(store: LocalStore, manifest: str, caplog: pytest.LogCaptureFixture) -> None:
    store.rebuild()
    (store.catalog.folder / "cache" / "nearest-text.json").write_text(manifest)
    again = LocalStore(store.catalog.folder)
    with caplog.at_level(logging.WARNING):
        assert found(again) == truth(rows(0, 300)) and again.is_stale()
    assert "nearest-text.json cannot be used" in caplog.text
    again.rebuild()
    assert not again.is_stale()


def test_a_changed_effort_is_found(store: LocalStore) -> None:
    """It would cost recall, silently."""
    store.rebuild(methods=dict.fromkeys(store.info.vector_names, "hnsw"))
    path = store.catalog.folder / "cache" / "nearest-text.json"
    manifest = json.loads(path.read_text())
    assert read_index_info(path.parent, "text") is not None
    manifest["index"]["search_budgets"] = [1] * len(manifest["index"]["search_budgets"])
    path.write_text(json.dumps(manifest))
    assert read_index_info(path.parent, "text") is None


def test_no_cache_at_all(store: LocalStore) -> None:
    shutil.rmtree(store.catalog.folder / "cache")
    again = LocalStore(store.catalog.folder)
    assert found(again) == truth(rows(0, 300)) and again.is_stale()
    again.compact()
    assert not again.is_stale(thorough=True) and len(list((store.catalog.folder / "cache").iterdir())) == 5


def test_an_index_that_is_replaced_while_it_is_read_is_no_damage(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A rebuild removes the file of the index before, which a reader may just be about to open."""
    store.rebuild()
    cache, went_through = store.catalog.folder / "cache", store.catalog.went_through
    check, rebuilt = index_cache._check_file, list[bool]()

    def slow(info: IndexInfo, folder: Path) -> None:
        if not rebuilt:
            rebuilt.append(True)
            store.upsert(rows(300, 301))
            store.rebuild()
            assert not (folder / info.file).exists()
        check(info, folder)

    monkeypatch.setattr(index_cache, "_check_file", slow)
    index = load_index(cache, "image", went_through)
    assert index is not None and index.info.covered == 301 and not caplog.records

"""What a search sees is one state of the catalog, whatever other processes do to it meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from test_catalog import ATTRIBUTES, DIM, info

from dualtower.errors import CatalogError
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.searcher import exact_scores
from dualtower.search.local.store import LocalStore
from dualtower.search.local.vector_file import VectorReader
from dualtower.search.queries import Query
from dualtower.search.records import EmbeddedItem

ROWS, STILL = 400, 100
"""Rows of the catalog, and how many of them no writer touches."""


def versioned(row_id: int, version: int) -> EmbeddedItem:
    """A row that says in its title, its attributes and its vectors which version it is."""
    vectors = np.random.default_rng([row_id, version]).normal(size=(2, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return EmbeddedItem(
        str(row_id),
        f"p{row_id}",
        f"{row_id} {version}",
        {"color": f"c{row_id}", "price": float(version)},
        {"image": vectors[0], "text": vectors[1]},
        f"{row_id} {version}".encode(),
    )


WRITER = """
import random, sys
sys.path.insert(0, {tests!r})
from test_snapshots import ROWS, STILL, versioned
from dualtower.errors import CatalogError
from dualtower.search.local.catalog import Catalog
catalog, dice, version = Catalog({folder!r}), random.Random({seed}), {seed}
print("ready", flush=True)
while True:
    version += 10
    some = [i for i in range(STILL, ROWS) if i % 2 == {seed} % 2]
    catalog.upsert([versioned(i, version) for i in sorted(dice.sample(some, 20))])
    catalog.delete([str(i) for i in dice.sample(some, 3)])
"""
REWRITER = """
import random, sys
sys.path.insert(0, {tests!r})
from test_snapshots import ROWS, versioned
from dualtower.errors import CatalogError
from dualtower.search.local.catalog import Catalog
catalog = Catalog({folder!r})
print("ready", flush=True)
while True:
    catalog.upsert([versioned(i, 0) for i in random.sample(range(ROWS), 50)])
"""
COMPACTOR = """
from dualtower.errors import CatalogError
from dualtower.search.local.catalog import Catalog
catalog = Catalog({folder!r})
print("ready", flush=True)
while True:
    catalog.compact()
"""


@contextmanager
def beside(folder: Path, *scripts: str) -> Iterator[None]:
    """Processes that work on a catalog for ever."""
    processes = []
    try:
        for seed, script in enumerate(scripts):
            code = script.format(tests=str(Path(__file__).parent), folder=str(folder), seed=seed)
            processes.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield
        assert [process.poll() for process in processes] == [None] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def turns(catalog: Catalog) -> Iterator[int]:
    """0, 1, 2 ... until the catalog has been compacted a few times, and at least forty."""
    first, end = catalog.state.generation, time.monotonic() + 60
    turn = 0
    while turn < 40 or catalog.state.generation < first + 6:
        assert time.monotonic() < end, (turn, catalog.state)
        yield turn
        turn += 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    catalog = Catalog.create(tmp_path / "shop", info(attributes=ATTRIBUTES))
    catalog.upsert([versioned(i, 0) for i in range(ROWS)])
    catalog.close()
    return catalog.folder


def wrong_hits(store: LocalStore, seed: int) -> list[str]:
    """Search for one of the rows that nobody touches; what is wrong with the answer."""
    row_id = seed % STILL
    vector = versioned(row_id, 0).vectors["image"].astype(np.float32)
    hits = store.search(Query(vector, limit=50)).hits
    problems = [] if hits and hits[0].id == str(row_id) else [f"row {row_id} is lost"]
    if len(hits) != 50 or len({hit.id for hit in hits}) != 50:
        problems.append(f"{len({hit.id for hit in hits})} rows in {len(hits)} hits")
    for hit in hits:
        number, version = map(int, hit.row["title"].split())
        held = versioned(number, version)
        score = float(exact_scores(np.float16(held.vectors["image"])[None], vector)[0])
        told = (hit.id, hit.product_id, hit.row["attributes"])
        if told != (held.id, held.product_id, held.attributes) or hit.score != score:
            problems.append(f"{hit} is none of the versions of its row; version {version} scores {score}")
    return problems


@pytest.mark.parametrize("tries", [5, 0])
def test_every_hit_is_a_version_of_its_row(folder: Path, monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
    """Also where compactions are always quicker than a search, and no page is short by what they drop."""
    monkeypatch.setattr("dualtower.search.local.searcher.TRIES", tries)
    store = LocalStore(folder)
    assert wrong_hits(store, 0) == []

    def search(seed: int) -> list[str]:
        return [problem for i in turns(store.catalog) for problem in wrong_hits(store, 40 * seed + i)]

    with beside(folder, WRITER, WRITER, COMPACTOR), ThreadPoolExecutor(3) as pool:
        found = [problem for of_thread in pool.map(search, range(3)) for problem in of_thread]
    assert not found, (len(found), found[:3])


def test_the_vector_of_a_row_is_its_own(folder: Path) -> None:
    store = LocalStore(folder)
    with beside(folder, REWRITER, COMPACTOR):
        vectors = [store.vector(str(asked % ROWS), "text") for asked in turns(store.catalog)]
    wanted = [versioned(asked % ROWS, 0).vectors["text"].astype(np.float16) for asked in range(len(vectors))]
    assert [i for i, held in enumerate(vectors) if held is None or (held != wanted[i]).any()] == []


def test_verify_beside_writers_raises_no_false_alarm(folder: Path) -> None:
    catalog = Catalog(folder)
    with beside(folder, WRITER, WRITER, COMPACTOR):
        alarms = [problem for _ in turns(catalog) for problem in catalog.verify()]
    assert not alarms, alarms[:3]


def test_a_file_that_vanishes_while_it_is_opened_is_too_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: True)  # as it did a moment before
    with pytest.raises(CatalogError, match="holds 0 of 2 vectors"):
        VectorReader(tmp_path / "0-image.f16", 4, 2)

"""Search over a catalog: what a plain scan over all rows finds, in the same order, page by page."""

from __future__ import annotations

import base64
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_catalog import ATTRIBUTES, DIM, info

from dualtower.errors import ConfigError, CursorError, FilterError
from dualtower.search.ann.index import METHODS, RowSelection, build_index
from dualtower.search.filters import matches, parse_filter
from dualtower.search.local import searcher as search_room
from dualtower.search.local import vector_file as vectors_room
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.columns import Columns
from dualtower.search.local.store import LocalStore
from dualtower.search.queries import _PAYLOAD, _SIGNATURE, Cursor, Page, Query, encode_cursor
from dualtower.search.records import EmbeddedItem
from dualtower.search.store import Store

COLORS = ["Red", "Blue", "Green", None]
KINDS = {name: "number" if kind == "number" else "text" for name, kind in ATTRIBUTES.items()}
FILTERS = [
    "",
    "color = 'Red'",
    "color in ('Red', 'Blue') and price < 40",
    "not (color = 'Red' or price >= 20)",
    "color != 'Red'",
    "price >= 10 and price <= 12.5",
    "color = 'Mauve'",
]


def some_item(dice: random.Random, row_id: str) -> EmbeddedItem:
    """Vectors of few distinct values, so that equal scores are common; several rows of a product."""
    vector = np.array([dice.choice([-1, 0, 1]) for _ in range(DIM)], np.float32)
    price = dice.choice([None, *range(0, 60, 5)])
    return EmbeddedItem(
        id=row_id,
        product_id=f"p{int(row_id) // 3}",
        title=f"title {row_id}",
        attributes={"color": dice.choice(COLORS), "price": price},
        vectors={"image": vector, "text": -vector} if dice.random() < 0.9 else {"text": -vector},
    )


def plain_search(catalog_items: dict[str, EmbeddedItem], query: Query, count: int) -> list[tuple[str, float]]:
    """The obvious way: score every row, sort, keep the best row of each product."""
    part = parse_filter(query.where, KINDS) if query.where else None
    hidden = {catalog_items[row_id].product_id for row_id in query.without if row_id in catalog_items}
    rows = [
        (-float(np.float32(item.vectors[query.vector_name]) @ query.vector), item.id, item.product_id)
        for item in catalog_items.values()
        if query.vector_name in item.vectors and (part is None or matches(part, item.attributes))
    ]
    found, seen = [], set()
    for score, row_id, product in sorted(rows):
        if product in hidden or (query.group_by_product and product in seen):
            continue
        seen.add(product)
        found.append((row_id, -score))
    return found[:count]


def some_query(dice: random.Random) -> Query:
    vector = np.array([dice.choice([-1, -0.5, 0, 1]) for _ in range(DIM)], np.float32)
    without = frozenset([str(dice.randrange(120))]) if dice.random() < 0.3 else frozenset()
    kind = dice.choice(["image", "text"])
    return Query(
        vector,
        kind,
        dice.choice(FILTERS),
        dice.choice([1, 3, 7, 50]),
        group_by_product=dice.random() < 0.5,
        without=without,
    )


def changed_attributes(dice: random.Random, held: dict[str, EmbeddedItem], store: Store) -> dict[str, EmbeddedItem]:
    """Change some attributes of some rows; the rows as they must be now."""
    ids = dice.sample(sorted(held), min(4, len(held)))
    changes = {i: {"price": dice.choice([None, 5.0, 55.0]), "color": dice.choice(COLORS)} for i in ids}
    store.update_attributes(changes)
    return {i: replace(held[i], attributes=changes[i]) for i in ids}


def pages(store: Store, query: Query, number: int) -> list[Page]:
    found = [store.search(query)]
    while found[-1].cursor and len(found) < number:
        found.append(store.search(replace(query, vector=None, cursor=found[-1].cursor)))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_random_operations_agree_with_a_plain_scan(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    Catalog.create(tmp_path / "shop", info()).close()
    store, held = LocalStore(tmp_path / "shop"), {}
    for step in range(60):
        if dice.random() < 0.5:
            written = {i: some_item(dice, i) for i in {str(dice.randrange(120)) for _ in range(dice.randrange(1, 12))}}
            store.upsert(list(written.values()))
            held |= written
        elif dice.random() < 0.6:
            gone = [str(dice.randrange(120)) for _ in range(4)]
            assert store.delete(gone) == len({i for i in gone if i in held})
            held = {i: item for i, item in held.items() if i not in gone}
        elif step % 7 == 0:
            store.compact()
        else:
            held |= changed_attributes(dice, held, store)
        query = some_query(dice)
        got = [(hit.id, hit.score) for page in pages(store, query, 3) for hit in page.hits]
        assert got == plain_search(held, query, 3 * query.limit), (seed, step, query)
        assert len(store) == len(held)
        queries = [some_query(dice) for _ in range(4)] + [query, replace(query, vector_name="sound"), query]
        *together, wrong, again = store.search_many(queries)
        assert [page.to_dict() for page in [*together, again]] == [
            store.search(q).to_dict() for q in [*queries[:5], query]
        ]
        assert isinstance(wrong, ConfigError)
    assert store.catalog.verify() == []


def test_pages_stay_as_they_were_while_the_catalog_changes(tmp_path: Path) -> None:
    dice = random.Random(5)
    Catalog.create(tmp_path / "shop", info()).close()
    store = LocalStore(tmp_path / "shop")
    catalog_items = {str(i): some_item(dice, str(i)) for i in range(90)}
    store.upsert(list(catalog_items.values()))
    query = Query(np.ones(DIM, np.float32), "text", limit=10, group_by_product=False)
    wanted = [row_id for row_id, _ in plain_search(catalog_items, query, 31)]
    page = store.search(query)
    seen = [hit.id for hit in page.hits]
    store.upsert(
        [replace(catalog_items[wanted[15]], title="renamed", vectors={"text": np.ones(DIM)})]
    )  # now the very best
    store.upsert([replace(catalog_items["0"], id="1000", product_id="new", vectors={"text": np.ones(DIM)})])
    store.delete([wanted[20]])
    store.update_attributes({wanted[16]: {"price": 77.5}})
    second = store.search(replace(query, cursor=page.cursor))
    seen += [hit.id for hit in second.hits]
    assert next(hit for hit in second.hits if hit.id == wanted[15]).row["title"] == "renamed"
    assert next(hit for hit in second.hits if hit.id == wanted[16]).row["attributes"]["price"] == 77.5
    store.catalog.compact()
    seen += [hit.id for hit in store.search(replace(query, vector=None, cursor=second.cursor)).hits]
    assert seen == [row_id for row_id in wanted if row_id != wanted[20]]


def clustered(number: int, dim: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(60, dim))
    found = centers[generator.integers(0, 60, number)] + 0.4 * generator.normal(size=(number, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """So many rows that filters leave more than are looked at one by one."""
    folder = tmp_path_factory.mktemp("large") / "shop"
    catalog = Catalog.create(folder, info(dim=32, vector_names=("image", "text")))
    vectors, texts = clustered(6000, 32), clustered(6000, 32, seed=1)
    catalog.upsert(
        [
            EmbeddedItem(str(i), str(i), "", {"color": COLORS[i % 4], "price": float(i % 100)}, {"image": v, "text": t})
            for i, (v, t) in enumerate(zip(vectors, texts, strict=True))
        ]
    )
    return LocalStore(folder)


@pytest.mark.parametrize("method", METHODS)
def test_every_index_finds_what_a_scan_finds(large: LocalStore, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_room, "SMALL", 0)  # as if the file were large
    monkeypatch.setattr(vectors_room, "FEW_READ", 500)
    large.delete([str(i) for i in range(0, 300, 3)])
    large.rebuild(methods={"image": method, "text": "flat"}, recall=0.95)
    large.upsert([EmbeddedItem("new", "new", "", {"color": "Red"}, {"image": clustered(1, 32, seed=9)[0]})])
    view = large.searcher.views.current()
    index = large._index(view, "image")
    assert index.info.method == method and index.info.recall is not None and index.info.recall >= 0.95
    reader = view.vectors["image"]
    everything = reader.run(0, view.state.next_slot).astype(np.float32)
    assert (
        index.exact or 500 < min(index.info.selectivities) * len(view) < 600
    )  # hardly more than are looked at one by one
    for where in ("", "color = 'Red'", "price < 30", "price < 9"):
        part = parse_filter(where, KINDS) if where else None
        slots = view.selection("image", part).slots
        found = wanted = 0
        for vector in clustered(40, 32, seed=7):
            best = np.sort(everything[slots] @ vector)[-10]
            hits = large.search(Query(vector, "image", where)).hits
            found, wanted = found + sum(hit.score >= best - 1e-5 for hit in hits), wanted + 10
        assert found / wanted >= 0.9, (method, where, found / wanted)
    queries = [Query(vector, "image") for vector in clustered(9, 32, seed=8)]
    assert [page.to_dict() for page in large.search_many(queries)] == [large.search(q).to_dict() for q in queries]
    assert large.search(Query(clustered(1, 32, seed=9)[0], "image")).hits[0].id == "new"
    large.delete(["new"])


def test_a_filter_far_from_the_query_is_still_answered(large: LocalStore) -> None:
    """Rows of one cluster only, asked from another: a fixed number of probes would not reach them."""
    view = large.searcher.views.current()
    reader = view.vectors["image"]
    vectors = reader.run(0, view.state.next_slot).astype(np.float32)
    query = vectors[5]
    far = np.argsort(vectors @ query)[:800]
    mask = np.zeros(len(vectors), bool)
    mask[far] = True
    index = build_index(reader, vector_name="image", state=view.state, method="ivf-sq8")
    (found,) = index.search(query[None], RowSelection(mask, filtered=True), 30, search_budget=700)
    best = far[np.argsort(-(vectors[far] @ query))][:10]
    assert len(set(found.tolist()) & set(best.tolist())) >= 9 and mask[found].all()


def test_a_damaged_index_is_not_read(large: LocalStore) -> None:
    large.rebuild(methods={"image": "ivf-sq8", "text": "flat"}, recall=0.9)
    fresh = LocalStore(large.catalog.folder)
    query = Query(clustered(1, 32, seed=3)[0], "image")
    wanted = fresh.search(query).hits
    view = fresh.searcher.views.current()
    assert fresh._index(view, "image").info.method == "ivf-sq8" and not fresh.is_stale()
    (path,) = (large.catalog.folder / "cache").glob("*-image-*.faiss")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = LocalStore(large.catalog.folder)
    assert again._index(again.searcher.views.current(), "image").info.method == "flat"
    assert len({hit.id for hit in wanted} & {hit.id for hit in again.search(query).hits}) >= 8


def test_counts(large: LocalStore) -> None:
    counts = large.counts("price < 50")
    assert {value for value, _ in counts["color"].values} == {"Red", "Blue", "Green"}
    assert (counts["price"].low, counts["price"].high) == (0, 49)
    assert large.counts("color = 'none'")["price"].low is None


def test_bad_questions_are_named(large: LocalStore) -> None:
    query = Query(np.ones(32, np.float32))
    for bad, error, message in [
        ({"vector_name": "product"}, ConfigError, "no 'product' vectors"),
        ({"vector": np.ones(7, np.float32)}, ConfigError, r"shape \(7,\)"),
        ({"where": "colr = 'Red'"}, FilterError, "no attribute 'colr'.*Did you mean 'color'"),
        ({"cursor": "xyz"}, CursorError, "the cursor is broken"),
    ]:
        with pytest.raises(error, match=message):
            large.search(replace(query, **bad))
    for given, message in [
        ({"limit": 0}, "limit is 0"),
        ({"vector": None}, "needs a vector"),
        ({"vector": np.full(32, np.nan)}, "not finite"),
        ({"vector": np.full(32, 3e38, np.float32)}, "beyond 1,000,000"),
    ]:
        with pytest.raises(ConfigError, match=message):
            replace(query, **given)
    cursor = large.search(query).cursor
    with pytest.raises(CursorError, match="another search"):
        large.search(replace(query, cursor=cursor, where="price < 3"))
    assert large.search(replace(query, vector=None, cursor=cursor)).hits


def forged(cursor: str, **changed: Any) -> str:
    """A cursor that says something else."""
    signature, told = (part := base64.urlsafe_b64decode(cursor))[:_SIGNATURE], part[_SIGNATURE:]
    names = ("search", "sequence", "hits", "score", "length")
    fields = dict(zip(names, _PAYLOAD.unpack_from(told), strict=True))
    rest = told[_PAYLOAD.size :]
    if "vector" in changed:
        rest = rest[: fields["length"]] + np.asarray(changed.pop("vector"), "<f4").tobytes()
    return base64.urlsafe_b64encode(signature + _PAYLOAD.pack(*{**fields, **changed}.values()) + rest).decode()


def test_cursors_that_somebody_made_up_are_refused(large: LocalStore) -> None:
    query = Query(np.ones(32, np.float32), limit=3)
    cursor = large.search(query).cursor
    assert cursor is not None and large.search(replace(query, cursor=forged(cursor))).hits
    for changed in [
        {"vector": np.full(32, 3e38)},  # finite, but no product with it is
        {"vector": np.full(32, 1.0001)},
        {"hits": 5000},
        {"vector": np.full(32, np.nan)},
        {"vector": np.ones(7)},
        {"score": np.nan},
        {"score": np.inf},
        {"sequence": 2**62},
        {"sequence": -1},
        {"hits": -1},
        {"hits": 2**40},
        {"length": 2**32 - 1},
        {"length": 10_000},
        {"search": b"12345678"},
    ]:
        with pytest.raises(CursorError):
            large.search(replace(query, cursor=forged(cursor, **changed)))
    nested = base64.urlsafe_b64encode(b"[" * 14_000).decode()
    for broken in ["", "A", "é", "a b", nested, cursor[:-8], cursor[: len(cursor) // 2], cursor * 100]:
        with pytest.raises(CursorError):
            large.search(replace(query, cursor=broken))


def test_cursors_are_of_their_catalog_and_outlive_its_being_opened(tmp_path: Path) -> None:
    catalog_items = [EmbeddedItem(str(i), str(i), "", {}, {"image": np.eye(DIM)[i % DIM]}) for i in range(20)]
    cursors = []
    for name in ("shop", "twin"):
        Catalog.create(tmp_path / name, info()).upsert(catalog_items)
        cursors.append(LocalStore(tmp_path / name).search(Query(np.ones(DIM, np.float32), limit=3)).cursor)
    again = LocalStore(tmp_path / "shop")
    assert again.search(Query(None, limit=3, cursor=cursors[0])).hits
    with pytest.raises(CursorError, match="another catalog"):
        again.search(Query(None, limit=3, cursor=cursors[1]))


def test_no_change_of_a_cursor_is_more_than_a_refusal(large: LocalStore) -> None:
    query, dice = Query(np.ones(32, np.float32), limit=3), random.Random(7)
    told = base64.urlsafe_b64decode(str(large.search(query).cursor))
    for _ in range(500):
        changed = bytearray(told)
        for _ in range(dice.randrange(1, 4)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        answers = large.search_many([replace(query, cursor=base64.urlsafe_b64encode(changed).decode()), query])
        assert isinstance(answers[0], Page | CursorError | ConfigError) and isinstance(answers[1], Page)
        if isinstance(answers[0], Page):
            assert changed == told


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("title = 'not'", {"a"}),
        (f"title != '{'not ' * 500}'", {"a", "b"}),
        (f"title != '{'(' * 100}'", {"a", "b"}),
        (f'title != "{"not(" * 500}"', {"a", "b"}),
        ("`not (` = 'x' or title = 'a not b'", {"b"}),
        ("not title = 'not' and not not title = 'a not b'", {"b"}),
    ],
)
def test_words_of_the_filter_mean_nothing_in_quotes(where: str, ids: set[str]) -> None:
    rows = {"a": {"title": "not", "not (": "y"}, "b": {"title": "a not b", "not (": "z"}}
    part = parse_filter(where, {"title": "text", "not (": "text"})
    assert {row_id for row_id, row in rows.items() if matches(part, row)} == ids


@pytest.mark.parametrize("where", ["(" * 41 + "a = 1" + ")" * 41, "not " * 401 + "a = 1", "not('" + "(" * 50])
def test_filters_that_nest_too_deep_are_refused(where: str) -> None:
    with pytest.raises(FilterError, match=r"at most \d+ are read|cannot be read"):
        parse_filter(where, {"a": "number"})


def test_a_long_filter_takes_no_more_memory_than_its_parts() -> None:
    columns, rows = Columns({"price": "number"}), 20_000
    columns = columns.extended([[{"price": float(i)} for i in range(rows)]], rows)
    part = parse_filter(" or ".join(f"price={i}" for i in range(300)), {"price": "number"})
    tracemalloc.start()
    try:
        found = columns.satisfies(part)
        assert found.sum() == 300 and tracemalloc.get_traced_memory()[1] < 10 * rows
    finally:
        tracemalloc.stop()


def test_no_search_orders_the_whole_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_room, "MAX_ORDERED", 200)
    Catalog.create(tmp_path / "shop", info()).close()
    store, dice = LocalStore(tmp_path / "shop"), np.random.default_rng(0)
    vectors = dice.standard_normal((1000, DIM)).astype(np.float32)
    store.upsert([EmbeddedItem(str(i), str(i), "", {}, {"image": vector}) for i, vector in enumerate(vectors)])
    query, newest = Query(vectors[0]), store.catalog.state.sequence
    assert [len(page.hits) for page in pages(store, query, 12)] == [10] * 12
    forged = replace(query, vector=None, cursor=encode_cursor(query, Cursor(vectors[0], newest, 10, -1e6), store.info))
    with pytest.raises(ConfigError, match="more than 200 rows"):
        store.search(forged)
    for nothing in (0.0, 1e-30):
        with pytest.raises(ConfigError, match="zero"):
            Query(np.full(DIM, nothing, np.float32))

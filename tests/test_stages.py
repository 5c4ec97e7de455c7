"""Search in stages: what the re-ranker and others put in order, against sorting by hand, page by page."""

from __future__ import annotations

import base64
import io
import json
import logging
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import factories
import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import command
from test_serving import TOKEN, WRITER, Server, items, start

from dualtower import DualTower, RerankerConfig
from dualtower.errors import ConfigError, CursorError
from dualtower.inference.pair_scoring import score_pairs
from dualtower.search.engine import SearchEngine, SearchRequest, open_engine
from dualtower.search.ingest.embed import embed, index_products, open_or_create
from dualtower.search.queries import Page, Query
from dualtower.search.reranking import OVERHEAD, RerankStage, TokenCache
from dualtower.search.stages import MARK
from dualtower.search.store import Store, open_store
from dualtower.types import Hit

ROWS = 60
PLAIN = SearchRequest(text="navy blue mug", limit=100)
KINDS = {"color": "text", "price": "number"}


def reranking_model(*, own_towers: bool = False) -> DualTower:
    """An untrained model whose re-ranker has strong opinions."""
    towers = {"text": factories.TEXT["bow"], "image": factories.IMAGE["resnet"]} if own_towers else {}
    made = factories.spread_model(reranker=RerankerConfig(layers=1, width=16, heads=2, **towers))
    torch.manual_seed(0)
    torch.nn.init.normal_(made.reranker.score[-1].weight, std=2)
    made.reranker.weight.fill_(0.7)
    return made


def make_shop(folder: Path, model: DualTower, where: str | None = None) -> str:
    """A model folder and a store of its vectors."""
    model.save_pretrained(folder / "model")
    where = where or str(folder / "shop")
    saved = DualTower.from_pretrained(folder / "model")
    store = open_or_create(where, saved, name=str(folder / "model"), attributes=KINDS, card="tiny")
    index_products(store, saved, items(ROWS))
    store.close()
    return where


@pytest.fixture(scope="module", params=[False, True], ids=["towers of the model", "own towers"])
def either_shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shop(tmp_path_factory.mktemp("either"), reranking_model(own_towers=request.param))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> str:
    """For tests that change nothing."""
    return make_shop(tmp_path_factory.mktemp("shared"), reranking_model())


@pytest.fixture
def own_shop(tmp_path: Path) -> str:
    """For tests that change it."""
    return make_shop(tmp_path, reranking_model())


def by_hand(store: Store, model: DualTower, question: SearchRequest, top: int) -> list[tuple[str, float]]:
    """The obvious way: all rows one by one, the first `top` scored as pairs and sorted, then one row per product."""
    vector = model.encode_text([question.text])[0]
    hits = store.search(Query(vector, where=question.where, limit=1000, group_by_product=False)).hits
    best = hits[:top]
    photos = [store.image(hit.id) for hit in best]
    added = score_pairs(model, [question.text], photos, np.array([(0, i) for i in range(len(best))]))
    best = [replace(h, score=h.score + float(more) / model.scale) for h, more in zip(best, added, strict=True)]
    found, seen = [], set()
    for hit in [*sorted(best, key=lambda h: -h.score), *hits[top:]]:
        if not (question.group_by_product and hit.product_id in seen):
            found.append((hit.id, hit.score))
            seen.add(hit.product_id)
    return found


def pages(engine: SearchEngine, question: SearchRequest) -> Iterator[Page]:
    while True:
        page = engine.find(question)
        yield page
        if page.cursor is None:
            return
        question = replace(question, cursor=page.cursor)


def ids(page: Page) -> list[str]:
    return [hit.id for hit in page.hits]


@pytest.mark.parametrize("where", ["", "color = 'red'"])
@pytest.mark.parametrize("group_by_product", [True, False])
@pytest.mark.parametrize("top", [1, 13, 60, 100])
def test_the_order_is_that_of_the_obvious_way(either_shop: str, top: int, group_by_product: bool, where: str) -> None:
    engine = open_engine(either_shop, device="cpu", rerank=top)
    question = replace(PLAIN, group_by_product=group_by_product, where=where)
    page = engine.find(question)
    wanted = by_hand(engine.store, DualTower.from_pretrained(engine.store.info.model), question, top)
    assert ids(page) == [row_id for row_id, _ in wanted]
    assert [hit.score for hit in page.hits] == pytest.approx([score for _, score in wanted], abs=1e-4)
    assert page.reranked == min(top, 20 if where else 60) and page.cursor is None
    plain = open_engine(either_shop, device="cpu").find(question)
    assert plain.reranked is None and (top == 1 or ids(plain) != ids(page)), "else this test says little"


@pytest.mark.parametrize("group_by_product", [True, False])
@pytest.mark.parametrize("limit", [1, 4, 10, 29, 30, 60])
def test_all_pages_are_one_long_list(shop: str, limit: int, group_by_product: bool) -> None:
    engine = open_engine(shop, device="cpu", rerank=20)
    whole = engine.find(replace(PLAIN, group_by_product=group_by_product))
    parts = list(pages(engine, replace(PLAIN, group_by_product=group_by_product, limit=limit)))
    assert [hit for part in parts for hit in part.hits] == whole.hits and whole.cursor is None
    assert {len(part.hits) for part in parts[:-1]} <= {limit} and parts[-1].hits
    assert {part.reranked for part in parts} == {20}


@pytest.mark.parametrize(("limit", "number"), [(30, 1), (10, 3), (29, 2)])
def test_no_page_is_empty_where_only_further_rows_of_the_same_products_lie_behind(
    shop: str, limit: int, number: int
) -> None:
    engine = open_engine(shop, device="cpu", rerank=59)
    parts = list(pages(engine, replace(PLAIN, limit=limit)))
    assert len(parts) == number and sum(len(part.hits) for part in parts) == 30 and all(part.hits for part in parts)


def test_many_questions_at_once_get_their_own_answers(shop: str) -> None:
    engine = open_engine(shop, device="cpu", rerank=20)
    begun = engine.find(replace(PLAIN, limit=3))
    asked = [
        replace(PLAIN, limit=7),
        SearchRequest(image=factories.png(factories.photo(3))),
        SearchRequest(text="red dress", limit=3, where="price < 30"),
        SearchRequest(text="red dress", where="nothing = 3"),
        replace(PLAIN, limit=3, cursor=begun.cursor),
        replace(PLAIN, limit=3, cursor=f"{MARK}xyz"),
        SearchRequest(),
    ]
    for question, answer in zip(asked, engine.find_many(asked), strict=True):
        try:
            alone = engine.find(question)
        except Exception as error:
            assert type(answer) is type(error) and str(answer) == str(error)
        else:
            assert isinstance(answer, Page) and ids(answer) == ids(alone) and answer.reranked == alone.reranked


def test_no_change_of_the_catalog_makes_pages_overlap_or_skip(own_shop: str) -> None:
    engine, dice = open_engine(own_shop, device="cpu", rerank=30), random.Random(0)
    writer, model = open_store(own_shop), DualTower.from_pretrained(open_store(own_shop).info.model)
    whole = ids(engine.find(replace(PLAIN, group_by_product=False)))
    question, seen, gone = replace(PLAIN, group_by_product=False, limit=7), [], set()
    while True:
        page = engine.find(question)
        seen += ids(page)
        if page.cursor is None:
            break
        left = [row_id for row_id in whole if row_id not in seen and row_id not in gone]
        question = replace(question, cursor=page.cursor)
        if len(left) < 2:
            continue
        changed, deleted = dice.sample(left, 2)
        product = replace(items(ROWS)[int(changed[1:])], image=factories.png(factories.photo(100 + len(seen))))
        writer.upsert(list(embed(model, [product, replace(product, id=f"new{len(seen)}")], writer.info)))
        writer.delete([deleted])
        gone.add(deleted)
    assert seen == [row_id for row_id in whole if row_id not in gone]


def test_rows_of_later_pages_are_filtered_as_they_are_now(own_shop: str) -> None:
    engine = open_engine(own_shop, device="cpu", rerank=30)
    question = replace(PLAIN, where="color = 'red'", limit=3)
    whole = ids(engine.find(replace(question, limit=100)))
    first = engine.find(question)
    engine.store.update_attributes({whole[3]: {"color": "blue"}, whole[4]: {"price": 7.5}})
    second = engine.find(replace(question, cursor=first.cursor))
    assert ids(second) == whole[4:6] and second.hits[0].row["attributes"]["price"] == 7.5


def test_a_changed_row_is_seen_anew_and_the_others_are_not(own_shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(own_shop, device="cpu", rerank=60)
    read, photo = [], engine.store.image
    monkeypatch.setattr(engine.store, "image", lambda row_id: read.append(row_id) or photo(row_id))
    before = engine.find(PLAIN)
    assert sorted(read) == sorted(f"r{i}" for i in range(ROWS))
    read.clear()
    assert engine.find(replace(PLAIN, text="white tote bag")).reranked == 60 and read == []
    model = DualTower.from_pretrained(engine.store.info.model)
    changed = replace(items(ROWS)[8], image=factories.png(factories.photo(555)))
    engine.store.upsert(list(embed(model, [changed], engine.store.info)))
    engine.store.update_attributes({"r9": {"price": 1.0}})  # which changes no image
    after = engine.find(PLAIN)
    assert read == ["r8"]
    wanted = by_hand(engine.store, model, PLAIN, 60)
    assert ids(after) == [row_id for row_id, _ in wanted]
    assert {h.id: h.score for h in after.hits}.get("r8") != {h.id: h.score for h in before.hits}.get("r8")


def test_a_small_cache_changes_no_result(shop: str) -> None:
    engine = open_engine(shop, device="cpu", rerank=60)
    stage = RerankStage(engine.model, engine.store, max_bytes=6000)
    small = SearchEngine(engine.store, engine.model, stages=[stage], depth=60)
    for question in (PLAIN, replace(PLAIN, text="white tote bag"), PLAIN):
        found, wanted = small.find(question), engine.find(question)
        assert ids(found) == ids(wanted)
        assert [h.score for h in found.hits] == pytest.approx([h.score for h in wanted.hits], abs=1e-5)
        assert 0 < stage.tokens.bytes <= 6000 and 0 < len(stage.tokens) < 60


def test_what_was_not_asked_for_the_longest_makes_room() -> None:
    def states(numbers: int) -> factories.Any:
        from dualtower.models.heads.reranker import TokenStates

        return TokenStates(torch.zeros(1, numbers // 4, 1), None, torch.zeros(1, 0))

    cache = TokenCache(3 * (OVERHEAD + 400))
    for key in "abc":
        cache.put(key, states(400))
    cache.get("a")
    cache.put("d", states(400))
    with pytest.raises(KeyError):
        cache.get("b")
    assert len(cache) == 3 and cache.bytes == cache.max_bytes
    cache.put("a", None)
    assert cache.get("a") is None and cache.bytes == cache.max_bytes - 400
    cache.put("e", states(4 * cache.max_bytes))
    assert len(cache) == 0 and cache.bytes == 0


@pytest.mark.parametrize(
    "question",
    [
        SearchRequest(image=factories.png(factories.photo(3))),
        SearchRequest(text="mug", image=factories.png(factories.photo(3))),
        SearchRequest(text="mug", negative_texts=("red",)),
        SearchRequest(text="mug", target="text"),
        SearchRequest(text="mug", text_weight=-1.0),
    ],
)
def test_what_the_re_ranker_was_not_trained_for_is_answered_as_before_and_said(
    shop: str, question: SearchRequest
) -> None:
    with_stage, without = open_engine(shop, device="cpu", rerank=20), open_engine(shop, device="cpu")
    page, plain = with_stage.find(question), without.find(question)
    assert page.hits == plain.hits and page.reranked == 0 and page.to_dict()["reranked"] == 0
    assert set(plain.to_dict()) == {"hits", "cursor"}
    assert ids(with_stage.find(replace(question, cursor=page.cursor))) == ids(
        without.find(replace(question, cursor=plain.cursor))
    )
    similar = with_stage.similar("r3")
    assert similar is not None and similar.reranked == 0


class Dearest:
    """A shop's own ranking: by price, where it is asked for something."""

    def for_request(self, question: SearchRequest):
        return None if "cheap" in question.text else self.sort

    @staticmethod
    def sort(hits: list[Hit]) -> list[Hit]:
        return sorted(hits, key=lambda hit: -(hit.row["attributes"]["price"] or 0))


class Reverse:
    def for_request(self, question: SearchRequest):
        return lambda hits: hits[::-1]


def test_stages_of_others_follow_each_other(shop: str) -> None:
    plain = open_engine(shop, device="cpu")
    first = plain.find(replace(PLAIN, group_by_product=False)).hits[:10]
    engine = SearchEngine(plain.store, plain.model, stages=[Dearest()], depth=10)
    found = engine.find(replace(PLAIN, group_by_product=False))
    assert found.hits[:10] == Dearest.sort(first) and found.reranked == 10
    twice = SearchEngine(plain.store, plain.model, stages=[Dearest(), Reverse()], depth=10)
    assert twice.find(replace(PLAIN, group_by_product=False)).hits[:10] == Dearest.sort(first)[::-1]
    cheap = replace(PLAIN, text="cheap mug")
    assert engine.find(cheap).hits == plain.find(cheap).hits and engine.find(cheap).reranked == 0
    assert twice.find(cheap).reranked == 10


def test_images_that_cannot_be_seen_are_told_once_and_keep_their_place(
    own_shop: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(own_shop, device="cpu", rerank=20)
    plain = engine.store.search(Query(engine.model.encode_text([PLAIN.text])[0], group_by_product=False, limit=3)).hits
    store = engine.store
    for hit, photo in zip(plain, [b"no image", None, None], strict=True):
        catalog_items = list(embed(engine.model, [items(ROWS)[int(hit.id[1:])]], store.info))
        store.upsert([replace(catalog_items[0], image=photo)])
    with caplog.at_level(logging.WARNING):
        page = engine.find(replace(PLAIN, group_by_product=False))
        engine.find(PLAIN)
    told = [r.getMessage() for r in caplog.records if "cannot see the image" in r.getMessage()]
    assert len(told) == 3 and "'" + plain[0].id + "'" in told[0] and "it has none" in told[1]
    unseen = [hit for hit in page.hits if hit.id in {h.id for h in plain}]
    assert [hit.id for hit in unseen] == [hit.id for hit in plain]
    gained = [hit.score - old.score for hit, old in zip(unseen, plain, strict=True)]
    assert gained == pytest.approx([gained[0]] * 3, abs=1e-5)


def test_cursors_are_refused_where_they_do_not_belong(shop: str, tmp_path: Path) -> None:
    engine = open_engine(shop, device="cpu", rerank=20)
    question = replace(PLAIN, limit=3)
    cursor = engine.find(question).cursor
    assert cursor is not None and cursor.startswith(MARK)
    later = engine.find(replace(question, cursor=cursor))
    assert open_engine(shop, device="cpu").find(replace(question, cursor=cursor)).hits == later.hits
    plain = open_engine(shop, device="cpu").find(question).cursor
    assert plain is not None and engine.find(replace(question, cursor=plain)).reranked == 0
    told = bytearray(base64.urlsafe_b64decode(cursor.removeprefix(MARK)))
    told[-20] ^= 1
    for wrong in [
        MARK,
        MARK + "xyz",
        MARK + plain,
        cursor.removeprefix(MARK),
        cursor[:-8],
        MARK + base64.urlsafe_b64encode(told).decode(),
    ]:
        with pytest.raises(CursorError):
            engine.find(replace(question, cursor=wrong))
    with pytest.raises(CursorError, match="another search"):
        engine.find(replace(question, text="red mug", cursor=cursor))
    twin = open_engine(make_shop(tmp_path, reranking_model()), device="cpu", rerank=20)
    with pytest.raises(CursorError, match="another catalog"):
        twin.find(replace(question, cursor=cursor))


def test_bad_depths_and_missing_heads_are_named(shop: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for depth in (0, 101):
        with pytest.raises(ConfigError, match=f"the best {depth} rows.*1 to 100"):
            open_engine(shop, device="cpu", rerank=depth)
    without = make_shop(tmp_path, factories.spread_model())
    with pytest.raises(ConfigError, match="no re-ranker"):
        open_engine(without, device="cpu", rerank=20)
    model = reranking_model()
    model.reranker.weight.zero_()
    with caplog.at_level(logging.WARNING):
        RerankStage(model, open_store(shop))
    assert "weight of 0" in caplog.text


def test_milvus_answers_alike(shop: str, tmp_path: Path) -> None:
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    where = make_shop(tmp_path, DualTower.from_pretrained(open_store(shop).info.model), f"milvus:{tmp_path}/m.db/shop")
    local, remote = (open_engine(place, device="cpu", rerank=20) for place in (shop, where))
    for question in (replace(PLAIN, limit=7), replace(PLAIN, limit=7, where="price < 40", group_by_product=False)):
        (wanted, found) = ([hit for page in pages(f, question) for hit in page.hits] for f in (local, remote))
        assert [hit.id for hit in found] == [hit.id for hit in wanted]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=1e-3)
    stage = remote.stages[0]
    assert isinstance(stage, RerankStage) and len(stage.tokens) >= 20
    best = remote.find(replace(PLAIN, group_by_product=False)).hits[0]
    changed = replace(items(ROWS)[int(best.id[1:])], image=factories.png(factories.photo(777)))
    remote.store.upsert(list(embed(remote.model, [changed], remote.store.info)))
    after = remote.find(replace(PLAIN, group_by_product=False))
    wanted = by_hand(remote.store, remote.model, replace(PLAIN, group_by_product=False), 20)
    assert ids(after) == [row_id for row_id, _ in wanted]
    remote.store.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "token").write_text(TOKEN)
    served = make_shop(folder, reranking_model())
    running = start(Path(served), "--token-file", str(folder / "token"), "--rerank", "20", "--device", "cpu")
    yield running, served
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=30) in (0, -signal.SIGTERM)


def test_the_service_re_ranks_and_says_so(server: tuple[Server, str]) -> None:
    running, served = server
    engine = open_engine(served, device="cpu", rerank=20)
    with running.client() as client:
        body = {"text": PLAIN.text, "limit": 7, "where": "price < 50"}
        found, cursor, reranked = [], None, set()
        while True:
            answer = client.post("/search", json={**body, "cursor": cursor} if cursor else body).json()
            found, cursor, reranked = found + answer["hits"], answer["cursor"], reranked | {answer["reranked"]}
            if cursor is None:
                break
        wanted = engine.find(replace(PLAIN, where="price < 50"))
        assert [hit["id"] for hit in found] == ids(wanted) and reranked == {20}
        assert [hit["score"] for hit in found] == pytest.approx([h.score for h in wanted.hits], abs=1e-5)
        photo = base64.b64encode(factories.png(factories.photo(3))).decode()
        assert client.post("/search", json={"image": photo}).json()["reranked"] == 0
        assert client.get("/items/r3/similar").json()["reranked"] == 0
        assert "reranked" in client.get("/openapi.json").json()["components"]["schemas"]["Answer"]["properties"]
        first = client.post("/search", files={"text": (None, PLAIN.text), "limit": (None, "3")}).json()
        form = {"text": (None, PLAIN.text), "limit": (None, "3"), "cursor": (None, first["cursor"])}
        assert client.post("/search", files=form).json()["reranked"] == 20
        item = {"id": "r0", "product_id": "p0", "title": factories.TITLES[0], "image": photo}
        assert client.put("/items", json=[item], headers=WRITER).status_code == 200
        after = client.post("/search", json={"text": PLAIN.text, "limit": 100, "group_by_product": False}).json()
        wanted = by_hand(engine.store, engine.model, replace(PLAIN, group_by_product=False), 20)
        assert [hit["id"] for hit in after["hits"]] == [row_id for row_id, _ in wanted]


def test_the_longest_cursors_are_taken(server: tuple[Server, str]) -> None:
    running, _ = server
    dice = random.Random(0)
    with running.client() as client:
        rows = [
            {"id": "".join(chr(dice.randrange(0x4E00, 0x9FFF)) for _ in range(500)), "title": "x", "image": p}
            for p in [base64.b64encode(factories.png(factories.photo(900 + i))).decode() for i in range(40)]
        ]
        assert client.put("/items", json=rows, headers=WRITER).status_code == 200
        body = {"text": "x", "limit": 1, "group_by_product": False}
        first = client.post("/search", json=body).json()
        second = client.post("/search", json={**body, "cursor": first["cursor"]}).json()
        assert len(second["hits"]) == 1 and second["reranked"] == 20
        gone = [client.delete(f"/items/{row['id']}", headers=WRITER).status_code for row in rows]
        assert set(gone) == {200}


def test_a_service_without_a_re_ranker_does_not_start(tmp_path: Path) -> None:
    where = make_shop(tmp_path, factories.spread_model())
    words = [sys.executable, "-m", "dualtower", "serve", where, "--port", "0", "--rerank", "20", "--device", "cpu"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "no re-ranker" in ended.stderr and "Traceback" not in ended.stderr


def test_the_command_re_ranks(shop: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("search", shop, "--text", PLAIN.text, "--rerank", 20, "--json", "--device", "cpu")
    assert command(*words, "--limit", 7) == 0
    first = json.loads(capsys.readouterr().out)
    assert command(*words, "--limit", 7, "--cursor", first["cursor"]) == 0
    second = json.loads(capsys.readouterr().out)
    wanted = open_engine(shop, device="cpu", rerank=20).find(PLAIN)
    assert [hit["id"] for hit in first["hits"] + second["hits"]] == ids(wanted)[:14]
    assert first["reranked"] == second["reranked"] == 20
    Image.new("RGB", (30, 40)).save(buffer := io.BytesIO(), "PNG")
    (tmp_path / "photo.png").write_bytes(buffer.getvalue())
    for wrong, message in [
        (("--similar", "r3"), "--similar has none"),
        (("--image", tmp_path / "photo.png"), "words alone"),
        (("--text", "mug", "--image", tmp_path / "photo.png"), "words alone"),
        (("--text", "mug", "--target", "text"), "words alone"),
        (("--text", "mug", "--not", "red"), "words alone"),
        (("--text", "mug", "--rerank", "101"), "1 to 100"),
    ]:
        assert command("search", shop, "--device", "cpu", *(() if "101" in wrong else ("--rerank", 20)), *wrong) == 1
        assert message in capsys.readouterr().out
    without = make_shop(tmp_path, factories.spread_model())
    assert command("search", without, "--text", "mug", "--rerank", 20) == 1
    assert "no re-ranker" in capsys.readouterr().out

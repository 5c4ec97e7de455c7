"""Many workers embed one catalogue: the same rows as one process, and a lost worker costs its shard only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from test_catalogue import stored_vectors
from test_serving import products

from dualtower.errors import CatalogueError
from dualtower.model import DualTower
from dualtower.retrieval import shards as room
from dualtower.retrieval.catalogue import Catalogue
from dualtower.retrieval.indexing import index_products, open_or_create
from dualtower.retrieval.shards import embed_shard, import_shards, plan_shards, read_shard
from dualtower.retrieval.store import Store

KINDS = {"colour": "text", "price": "number"}


@pytest.fixture
def model(tmp_path: Path) -> DualTower:
    tiny.spread_model().save_pretrained(tmp_path / "model")
    return DualTower.from_pretrained(tmp_path / "model")


def make(folder: Path, model: DualTower) -> Store:
    return open_or_create(folder, model, name="model", attributes=KINDS)


def vectors_of(catalogue: Catalogue) -> dict[str, list]:
    rows = catalogue.get(sorted(catalogue.digests()))
    held = {kind: stored_vectors(catalogue, rows, kind) for kind in ("image", "text")}
    return {
        row.id: [row.title, row.attributes, *(held[kind][i].tolist() for kind in held)] for i, row in enumerate(rows)
    }


def test_shards_hold_what_one_process_writes(tmp_path: Path, model: DualTower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROWS", 16)
    rows, plain, store = products(50), make(tmp_path / "plain", model), make(tmp_path / "shop", model)
    index_products(plain, model, rows, batch_size=16)
    planned = plan_shards(rows, store.info, tmp_path / "shards", held={})
    assert [len(shard.rows) for shard in planned] == [16, 16, 16, 2]
    assert planned == plan_shards(rows, store.info, tmp_path / "shards", held={})
    for shard in planned:
        embed_shard(shard, model, rows, store.info, batch_size=16)
    written = planned[0].path.stat().st_mtime_ns
    embed_shard(planned[0], model, rows, store.info)
    assert planned[0].path.stat().st_mtime_ns == written  # it was there
    assert import_shards(store, planned, total=50).written == 50 and not (tmp_path / "shards").exists()
    both = [vectors_of(Catalogue(tmp_path / name)) for name in ("plain", "shop")]
    assert both[0] == both[1]
    assert plan_shards(rows, store.info, tmp_path / "shards", held=store.digests()) == []


def test_a_broken_shard_is_named(tmp_path: Path, model: DualTower) -> None:
    rows, store = products(4), make(tmp_path / "shop", model)
    (shard,) = plan_shards(rows, store.info, tmp_path / "shards", held={})
    with pytest.raises(CatalogueError, match="cannot read"):
        list(read_shard(shard, store.info))
    shard.path.parent.mkdir()
    shard.path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(CatalogueError, match="remove it and start again"):
        import_shards(store, [shard], total=4)


def drawn(folder: Path) -> list[str]:
    """Arguments of `dualtower index` for the drawn catalogue."""
    card = Path(__file__).parent.parent / "data_cards" / "drawn.md"
    return ["index", str(folder / "model"), "--data.card", str(card), "--split", "test", "--out", str(folder / "shop")]


def test_two_processes_share_the_work(tmp_path: Path, model: DualTower) -> None:
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "dualtower", *drawn(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", *["torch.distributed.run", *command[1:]]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("rows embedded") == 1
    shop = Catalogue(tmp_path / "shop")
    assert len(shop) == len(shop.digests()) > 100 and shop.verify() == []


@pytest.mark.timeout(300)
def test_ray(tmp_path: Path, model: DualTower) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "dualtower", *drawn(tmp_path), "--engine", "ray", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(Catalogue(tmp_path / "shop")) > 100

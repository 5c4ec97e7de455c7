"""Many workers embed one catalog: the same rows as one process, and a lost worker costs its shard only."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import factories
import pytest
from processes import torchrun
from test_catalog import stored_vectors
from test_serving import items

from dualtower.data.image_columns import ImageColumn
from dualtower.data.items import ItemDataset
from dualtower.errors import CatalogError
from dualtower.models.dual_tower import DualTower
from dualtower.search.ingest import shards as room
from dualtower.search.ingest.embed import Indexed, digest_of, index_products, open_or_create
from dualtower.search.ingest.shards import embed_shard, import_shards, plan_shards, read_shard
from dualtower.search.local.catalog import Catalog
from dualtower.search.store import Store

KINDS = {"color": "text", "price": "number"}


@pytest.fixture
def model(tmp_path: Path) -> DualTower:
    factories.spread_model().save_pretrained(tmp_path / "model")
    return DualTower.from_pretrained(tmp_path / "model")


def make(folder: Path, model: DualTower) -> Store:
    return open_or_create(folder, model, name="model", attributes=KINDS)


def vectors_of(catalog: Catalog) -> dict[str, list]:
    rows = catalog.get(sorted(catalog.digests()))
    held = {kind: stored_vectors(catalog, rows, kind) for kind in ("image", "text")}
    return {
        row.id: [row.title, row.attributes, *(held[kind][i].tolist() for kind in held)] for i, row in enumerate(rows)
    }


def test_shards_hold_what_one_process_writes(tmp_path: Path, model: DualTower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROWS", 16)
    rows, plain, store = items(50), make(tmp_path / "plain", model), make(tmp_path / "shop", model)
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
    both = [vectors_of(Catalog(tmp_path / name)) for name in ("plain", "shop")]
    assert both[0] == both[1]
    again = plan_shards(rows, store.info, tmp_path / "shards", held=store.digests())
    for shard in again:
        embed_shard(shard, model, rows, store.info)
    assert import_shards(store, again, total=50) == Indexed(0, 50)


def test_no_image_is_read_to_plan(tmp_path: Path, model: DualTower, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that has changed between two runs is embedded anew, though its shard lies there."""
    monkeypatch.setattr(room, "ROWS", 4)
    rows, store = items(10), make(tmp_path / "shop", model)
    whole = ItemDataset.from_rows(rows)
    with monkeypatch.context() as patched:
        patched.setattr(ImageColumn, "__getitem__", lambda *_: pytest.fail("an image was read"))
        planned = plan_shards(whole, store.info, tmp_path / "shards", held={"r0": "x"})
    for shard in planned:
        embed_shard(shard, model, whole, store.info)
    stamps = [shard.path.stat().st_mtime_ns for shard in planned]
    rows[5] = replace(rows[5], image=factories.png(factories.photo(77)))
    for shard in planned:
        embed_shard(shard, model, rows, store.info)
    changed = [shard.path.stat().st_mtime_ns != stamp for shard, stamp in zip(planned, stamps, strict=True)]
    assert changed == [False, True, False]
    planned[0].path.write_bytes(b"PAR1 and nothing else")
    embed_shard(planned[0], model, rows, store.info)
    assert import_shards(store, planned, total=10).written == 10
    assert store.digests() == {row.id: digest_of(row) for row in rows}


def test_a_broken_shard_is_named(tmp_path: Path, model: DualTower) -> None:
    rows, store = items(4), make(tmp_path / "shop", model)
    (shard,) = plan_shards(rows, store.info, tmp_path / "shards", held={})
    with pytest.raises(CatalogError, match="cannot read"):
        list(read_shard(shard, store.info))
    shard.path.parent.mkdir()
    shard.path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(CatalogError, match="remove it and start again"):
        import_shards(store, [shard], total=4)


def drawn(folder: Path) -> list[str]:
    """Arguments of `dualtower index` for the synthetic catalog."""
    card = Path(__file__).parent.parent / "data_cards" / "synthetic.md"
    return ["index", str(folder / "model"), "--data.card", str(card), "--split", "test", "--out", str(folder / "shop")]


def test_two_processes_share_the_work(tmp_path: Path, model: DualTower) -> None:
    done = torchrun("-m", "dualtower", *drawn(tmp_path))
    assert done.stdout.count("rows embedded") == 1
    shop = Catalog(tmp_path / "shop")
    assert len(shop) == len(shop.digests()) > 100 and shop.verify() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray(tmp_path: Path, model: DualTower) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "dualtower", *drawn(tmp_path), "--backend", "ray", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(Catalog(tmp_path / "shop")) > 100


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_asks_for_gpus(tmp_path: Path, model: DualTower) -> None:
    """Of a cluster that says that it has one; what the worker was given is written down."""
    pytest.importorskip("ray")
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        import ray
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from dualtower.models.dual_tower import DualTower
        from dualtower.search.ingest.embed import open_or_create
        from dualtower.search.ingest.shards import embed_with_ray, import_shards, plan_shards

        folder = Path({str(tmp_path)!r})
        def load():
            from test_serving import items
            (folder / "given").write_text(str(len(ray.get_gpu_ids())))
            return items(6)

        if __name__ == "__main__":
            path = sys.path[0]
            ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="error",
                     runtime_env={{"env_vars": {{"PYTHONPATH": ":".join(p for p in sys.path if p)}}}})
            model = DualTower.from_pretrained(folder / "model")
            store = open_or_create(folder / "shop", model, name="model", attributes={KINDS!r})
            shards = plan_shards(load(), store.info, folder / "shards", held={{}})
            embed_with_ray(shards, str(folder / "model"), load, store.info, workers=1)
            print(import_shards(store, shards, total=6).written, (folder / "given").read_text())
    """)
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.stdout.split()[-2:] == ["6", "1"], done.stdout + done.stderr[-3000:]

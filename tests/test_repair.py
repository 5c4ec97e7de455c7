"""Damage is found, never hidden, and repaired as far as the rest of the catalog tells what was there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import factories
import numpy as np
import pytest
from test_catalog import info, item, stored_vectors
from test_serving import items

from dualtower.cli import main
from dualtower.errors import CatalogError
from dualtower.files import write_text_atomically
from dualtower.models.dual_tower import DualTower
from dualtower.search.ingest.embed import index_products, open_or_create
from dualtower.search.local.catalog import Catalog
from dualtower.search.local.connection_pool import Database
from dualtower.search.local.repair import repair
from dualtower.search.local.scratch import scratch_folder
from dualtower.search.local.store import LocalStore
from dualtower.search.queries import Query

KINDS = {"color": "text", "price": "number"}
ROWS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualTower:
    folder = tmp_path_factory.mktemp("model") / "model"
    factories.spread_model().save_pretrained(folder)
    return DualTower.from_pretrained(folder)


@pytest.fixture
def shop(tmp_path: Path, model: DualTower) -> Path:
    store = open_or_create(tmp_path / "shop", model, name="none", attributes=KINDS)
    index_products(store, model, items(ROWS))
    store.close()
    return tmp_path / "shop"


def alter(shop: Path, statement: str) -> None:
    """What a bad sector, or somebody with a database tool, does."""
    connection = sqlite3.connect(shop / "rows.sqlite")
    assert connection.execute(statement).rowcount == 1
    connection.commit()
    connection.close()


def test_a_file_that_has_lost_vectors_is_not_written_to(shop: Path) -> None:
    catalog = Catalog(shop)
    path = catalog.vectors("image").path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CatalogError, match=r"holds 10 of 20 vectors.*dualtower repair .*shop"):
        catalog.upsert([item("new", 1, vectors={"text": np.ones(12)})])
    assert path.read_bytes() == whole[: len(whole) // 2] and len(catalog) == ROWS
    with pytest.raises(CatalogError, match="holds 10 of 20 vectors"):
        LocalStore(shop).search(Query(np.ones(12, np.float32)))


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE rows SET attributes = json_set(attributes, '$.price', 1.23) WHERE id = 'r3'", "row 'r3': its title"),
        ("UPDATE rows SET title = title || '!' WHERE id = 'r3'", "row 'r3': its title"),
        ("UPDATE rows SET product_id = 'p0' WHERE id = 'r3'", "row 'r3': its title"),
        ("UPDATE rows SET title = CAST(x'ff00fe' AS TEXT) WHERE id = 'r3'", "row 'r3': its title"),
        ("UPDATE rows SET attributes = '{' WHERE id = 'r3'", "row 'r3': its title"),
        ("UPDATE rows SET removed_at = 1 WHERE id = 'r3'", "row 'r3': its title"),
        ("UPDATE images SET bytes = substr(bytes, 1, 50) WHERE number = 3", "row 'r3': its thumbnail"),
        ("DELETE FROM images WHERE number = 3", "row 'r3': its thumbnail"),
        ("UPDATE state SET sequence = 0", "do not fit"),
        ("UPDATE state SET token = 7", "not the last one"),
        ("DELETE FROM rows WHERE number = 3", "19 versions of rows"),
    ],
)
def test_alterations_are_found(shop: Path, statement: str, found: str) -> None:
    alter(shop, statement)
    problem, *more = Catalog(shop).verify()
    assert found in problem and (not more or "state" in statement)


@pytest.mark.parametrize("title", ["'cheap'", "CAST(x'ff00fe' AS TEXT)"])
def test_an_altered_row_is_not_shown(shop: Path, title: str, caplog: pytest.LogCaptureFixture) -> None:
    alter(shop, f"UPDATE rows SET title = {title} WHERE id = 'r3'")
    store = LocalStore(shop)
    hits = store.search(Query(np.ones(12, np.float32), limit=50, group_by_product=False)).hits
    assert len(hits) == ROWS - 1 and "r3" not in {hit.id for hit in hits} and store.get(["r3"]) == []
    assert "have changed on the disk" in caplog.text


def test_what_can_be_made_anew_is(shop: Path, model: DualTower) -> None:
    before, catalog = Catalog(shop), Catalog(shop)
    rows = before.get([f"r{i}" for i in range(ROWS)])
    held = {kind: stored_vectors(before, rows, kind) for kind in ("image", "text")}
    text, image = (catalog.vectors(kind).path for kind in ("text", "image"))
    image.unlink()
    content = bytearray(text.read_bytes())
    content[5] ^= 16
    text.write_bytes(content)
    alter(shop, "UPDATE rows SET title = 'cheap' WHERE id = 'r3'")
    alter(shop, "UPDATE rows SET attributes = '{' WHERE id = 'r6'")
    alter(shop, "UPDATE images SET bytes = x'00' WHERE number = 4")
    alter(shop, "DELETE FROM images WHERE number = 5")
    done = repair(LocalStore(shop), lambda: model)
    assert sorted(done.lost) == ["r3", "r6"] and sorted(done.without_thumbnail) == ["r4", "r5"]
    healed = sorted({f"r{i}" for i in range(ROWS)} - {"r3", "r4", "r5", "r6"})
    assert sorted(done.embedded) == healed
    left = [json.loads(line) for line in (shop / "lost.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in left) == ["r3", "r6"] and "cheap" in [row["title"] for row in left]
    again = Catalog(shop)
    assert again.verify() == [] and len(again) == ROWS - 2 and not LocalStore(shop).is_stale(thorough=True)
    for number, row in enumerate(rows):
        found = again.get([row.id])
        if row.id in healed:
            assert found[0].title == row.title and found[0].vector_names == ("image", "text")
            for kind in ("image", "text"):
                np.testing.assert_allclose(stored_vectors(again, found, kind)[0], held[kind][number], atol=2e-3)
        elif row.id in ("r4", "r5"):
            assert found[0].vector_names == ("text",) and again.image(row.id) is None
    store = LocalStore(shop)
    assert index_products(store, model, items(ROWS)).written == ROWS  # all were touched: the source brings them back
    assert again.verify() == [] and again.image("r5") == items(ROWS)[5].image


def test_a_whole_catalog_is_left_alone(shop: Path) -> None:
    store = LocalStore(shop)
    store.rebuild()
    state = store.catalog.state

    def none() -> DualTower:
        raise AssertionError

    done = repair(store, none)
    assert (done.embedded, done.without_thumbnail, done.lost) == ([], [], []) and store.catalog.state == state


def test_a_database_beyond_repair_is_said(shop: Path, model: DualTower) -> None:
    alter(shop, "DELETE FROM rows WHERE number = 3")
    with pytest.raises(CatalogError, match=r"beyond repair: 19 versions.*index into a new folder"):
        repair(LocalStore(shop), lambda: model)


def test_the_commands(shop: Path, model: DualTower, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "model")
    Catalog(shop).vectors("text").path.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"1 problems in(.|\n)*dualtower repair"):
        main(["verify", str(shop)])
    main(["repair", str(shop), "--model", str(tmp_path / "model")])
    main(["verify", str(shop)])
    told = capsys.readouterr().out
    assert "20 rows embedded anew" in told and "20 rows, all whole" in told


def test_compaction_gives_space_back(tmp_path: Path) -> None:
    catalog = Catalog.create(tmp_path / "shop", info())
    catalog.upsert([item(str(i), i, image=os.urandom(20_000)) for i in range(200)])
    catalog.delete([str(i) for i in range(0, 200, 2)])
    size = sum(path.stat().st_size for path in catalog.folder.glob("rows.sqlite*"))
    catalog.compact()
    assert sum(path.stat().st_size for path in catalog.folder.glob("rows.sqlite*")) < 0.3 * size
    assert catalog.verify() == [] and len(catalog) == 100
    log = catalog.folder / "rows.sqlite-wal"
    catalog.delete(["1"])
    before = log.stat().st_size
    other = sqlite3.connect(catalog.folder / "rows.sqlite")  # keeps the log from being cut, as a reader does
    other.execute("BEGIN")
    other.execute("SELECT * FROM state").fetchall()
    catalog.compact()
    assert log.stat().st_size < before + 500_000  # of 2 MB of images, none is written anew
    other.close()


def test_files_on_their_way_never_meet(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as one, scratch_folder(tmp_path) as other:
        assert one != other and one.exists() and other.exists()
    killed = "import os, sys, pathlib; from dualtower.search.local.scratch import scratch_folder\n"
    killed += "with scratch_folder(pathlib.Path(sys.argv[1])) as f: (f / 'x').write_text('x'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], timeout=60)
    assert len(list(tmp_path.iterdir())) == 1
    with scratch_folder(tmp_path):
        assert len(list(tmp_path.iterdir())) == 1  # what the killed one left has gone
    assert not list(tmp_path.iterdir())


def test_files_have_the_mode_of_the_umask(shop: Path, model: DualTower, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        model.save_pretrained(tmp_path / "saved")
        write_text_atomically(tmp_path / "saved.txt", "text")
        LocalStore(shop).rebuild()
        LocalStore(shop).compact()
    finally:
        os.umask(before)
    files = [*(tmp_path / "saved").rglob("*"), *shop.rglob("*"), tmp_path / "saved.txt"]
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files if path.is_file()}
    assert "model.safetensors" in modes and set(modes.values()) == {"0o644"}, modes


SEARCH = """
    import mmap, os, sys  # numpy imports mmap late
    from pathlib import Path
    import numpy as np
    from dualtower.errors import CatalogError
    from dualtower.search.local.store import LocalStore
    from dualtower.search.queries import Query
    if os.getuid() == 0:  # whom no mode of a file keeps from writing; what is imported lies where only root may read
        os.setgid(65534); os.setuid(65534)
    store = LocalStore(sys.argv[1])
    try:
        (Path(sys.argv[1]) / "x").write_text("x")
    except OSError:
        pass
    else:
        sys.exit("the folder can be written to")
    hits = store.search(Query(np.ones(12, np.float32), limit=50, group_by_product=False)).hits
    print(len(hits), len(store.catalog.verify()))
    try:
        store.delete(["r1"])
    except CatalogError as error:
        print(error)
"""


@pytest.mark.parametrize("log_left", [False, True])
def test_a_folder_that_cannot_be_written_to_is_searched(shop: Path, log_left: bool) -> None:
    parent = Path("/tmp") / f"dualtower-read-only-{os.getpid()}"  # pytest's own folders are closed to other users
    try:
        parent.mkdir()
        folder = Path(shutil.copytree(shop, parent / "shop"))
        if log_left:  # by a writer that was killed
            script = "import os, sys; from dualtower.search.local.catalog import Catalog\n"
            script += "c = Catalog(sys.argv[1]); c.delete(['r2']); os.kill(os.getpid(), 9)"
            subprocess.run([sys.executable, "-c", script, str(folder)], timeout=60)
            assert (folder / "rows.sqlite-wal").stat().st_size > 0
        for path in [*folder.rglob("*"), folder, parent]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        command = [sys.executable, "-c", textwrap.dedent(SEARCH), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == f"{ROWS - log_left} 0" and "readonly" in done.stdout
    finally:
        for path in [parent, *parent.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(parent)


@pytest.mark.parametrize("content", [None, "{", '{"model": "another"}'])
def test_what_a_catalog_is_can_be_lost_and_is_written_anew(
    shop: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shop / "catalog.json"
    written = path.read_text()
    path.unlink() if content is None else path.write_text(content)
    main(["repair", str(shop)])
    assert "catalog.json was lost or altered" in capsys.readouterr().out
    assert path.read_text() == written and Catalog(shop).verify() == []


def test_verify_compares_what_a_catalog_is(shop: Path) -> None:
    path = shop / "catalog.json"
    path.write_text(path.read_text().replace('"none"', '"some"'))
    assert Catalog(shop).verify() == [f"{path} is not as it was written"]


def test_verify_tells_of_the_cache_and_is_content(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LocalStore(shop).rebuild()
    view = shop / "cache" / "view.npz"
    content = bytearray(view.read_bytes())
    content[len(content) // 2] ^= 1
    view.write_bytes(content)
    main(["verify", str(shop)])
    out = capsys.readouterr().out
    assert "all whole" in out and "the view in" in out and "index of" not in out
    LocalStore(shop).compact()
    main(["verify", str(shop)])
    assert "cache" not in capsys.readouterr().out


def test_no_connection_outlives_the_file_that_it_was_opened_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as writer:
        writer.executescript("CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (1)")
        database = Database(path)
        database._read_only = True  # as of a folder that belongs to somebody else
        with database.connection() as held:
            assert held.execute("SELECT COUNT(*) FROM t").fetchall() == [(1,)]
            time.sleep(0.05)
            writer.executescript("INSERT INTO t VALUES (2)")
            assert database.read("SELECT COUNT(*) FROM t") == [(2,)]
        for _ in range(3):
            assert database.read("SELECT COUNT(*) FROM t") == [(2,)]
        assert held not in database._idle
        database.close()


def test_a_row_whose_vector_has_changed_is_no_hit(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalog = Catalog(shop)
    vectors = np.memmap(catalog.vectors("image").path, np.float16, "r+", shape=(ROWS, catalog.info.dim))
    query = np.asarray(vectors[3], np.float32)
    vectors[7] = 2 * vectors[3]  # it would be the best
    vectors.flush()
    hits = LocalStore(shop).search(Query(query, "image", limit=ROWS, group_by_product=False)).hits
    damaged = catalog.verify()
    assert len(damaged) == 1 and len(hits) == ROWS - 1
    assert not any(f"row {hit.id!r}" in damaged[0] for hit in hits) and "has changed on the disk" in caplog.text

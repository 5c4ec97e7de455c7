"""Rows stay on disk: read once, known again by what they were made from, and never trusted where they are damaged."""

from __future__ import annotations

import gc
import json
import math
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import catalogs
import numpy as np
import pytest
from catalogs import own_cache  # noqa: F401

from dualtower.data.batches import training_loader
from dualtower.data.cards import HashSplit, Splits
from dualtower.data.items import ItemDataset
from dualtower.data.loading import load_items
from dualtower.data.rows import source as row_source
from dualtower.data.rows import table as row_table
from dualtower.data.rows.blocks import ROWS_AT_ONCE, Block
from dualtower.data.rows.cache import row_file
from dualtower.data.rows.check import bad_rows
from dualtower.data.rows.file import RowFile
from dualtower.data.rows.table import IdIndex, InMemoryRows, RowTable
from dualtower.data.sampling import BatchSampler
from dualtower.errors import RowError
from dualtower.types import product_code

KEY = "0123456789abcdef" * 2


def block(ids: list[str], **attributes: list[Any]) -> Block:
    texts = [(f"title of {row_id}", "another") for row_id in ids]
    return Block(ids, [f"p-{row_id}" for row_id in ids], texts, attributes, [None] * len(ids), None)


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "rows-cache" / "dualtower" / "rows").glob("*"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Splits whose rows were read from the source."""
    seen: list[str] = []
    real = row_source.read_blocks

    def noted(*given: Any, **named: Any) -> Iterator[Block]:
        seen.append(named["split"])
        return real(*given, **named)

    monkeypatch.setattr(row_source, "read_blocks", noted)
    return seen


def test_rows_are_read_once(tmp_path: Path, read: list[str]) -> None:
    file = catalogs.write_parquet(tmp_path / "train.parquet", catalogs.rows(6))
    first = load_items(catalogs.card(), "train", source=file)
    again = load_items(catalogs.card(), "train", source=file)
    assert read == ["train"] and len(kept(tmp_path)) == 1
    assert list(first) == list(again) and first.fingerprint == again.fingerprint


def test_files_that_nobody_opens_go_after_a_month(tmp_path: Path, read: list[str]) -> None:
    old, used, new = (
        catalogs.write_parquet(tmp_path / name / "train.parquet", catalogs.rows(4)) for name in ("old", "used", "new")
    )
    for source in (old, used):
        load_items(catalogs.card(), "train", source=source)
    for file in kept(tmp_path):
        os.utime(file, (0, 0))
    load_items(catalogs.card(), "train", source=used)
    load_items(catalogs.card(), "train", source=new)
    assert len(kept(tmp_path)) == 2
    for source in (used, new, old):
        load_items(catalogs.card(), "train", source=source)
    assert len(read) == 4, "only the old one is read again"


def longer(file: Path) -> None:
    catalogs.write_parquet(file, catalogs.rows(8))


def touched(file: Path) -> None:
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1_000_000_000))


def moved(file: Path) -> None:
    file.rename(file.with_name("train-1.parquet"))


@pytest.mark.parametrize("change", [longer, touched, moved])
def test_another_source_is_read_anew(tmp_path: Path, read: list[str], change: Callable[[Path], None]) -> None:
    file = catalogs.write_parquet(tmp_path / "shop" / "train.parquet", catalogs.rows(6)) / "train.parquet"
    load_items(catalogs.card(), "train", source=file.parent)
    change(file)
    assert len(load_items(catalogs.card(), "train", source=file.parent)) == (8 if change is longer else 6)
    assert read == ["train", "train"]


@pytest.mark.parametrize(
    "columns",
    [{"text": "{brand} {title}"}, {"id": None}, {"product_id": "normalized_text"}, {"attributes": ["brand"]}],
)
def test_another_card_is_read_anew(tmp_path: Path, read: list[str], columns: dict[str, Any]) -> None:
    file = catalogs.write_parquet(tmp_path / "train.parquet", catalogs.rows(6))
    for card in (catalogs.card(), catalogs.card(**columns), catalogs.card()):
        load_items(card, "train", source=file)
    assert read == ["train", "train"]


def test_numbers_are_checked_anew_where_the_card_declares_them(tmp_path: Path) -> None:
    table = [{**row, "color": "red"} for row in catalogs.rows(4)]
    file = catalogs.write_parquet(tmp_path / "train.parquet", table)
    assert len(load_items(catalogs.card(), "train", source=file)) == 4
    with pytest.raises(RowError, match="'red', which is no number"):
        load_items(catalogs.card(numeric=["color"]), "train", source=file)


def test_the_splits_of_a_rule_share_one_file(tmp_path: Path, read: list[str]) -> None:
    rule = HashSplit("color", validation=0.2, test=0.3)
    card = catalogs.card(splits=Splits(by_hash=rule))
    table = [{**row, "color": f"color {i % 50}"} for i, row in enumerate(catalogs.rows(300))]
    file = catalogs.write_parquet(tmp_path / "data.parquet", table)
    splits = {name: load_items(card, name, source=file) for name in ("train", "validation", "test")}
    assert read == ["train"]
    for name, low, high in (("test", 0.0, 0.3), ("validation", 0.3, 0.5), ("train", 0.5, 1.0)):
        wanted = [row["sku"] for row in table if low <= product_code(row["color"]) / 2**63 < high]
        assert splits[name].ids == wanted


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 64
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(b"PAR1" * 100)


def of_others(path: Path) -> None:
    made = row_file("f" * 32, lambda: iter([block(["x", "y"])]), where="elsewhere")
    path.write_bytes(made.path.read_bytes())
    made.path.unlink()


@pytest.mark.parametrize("damage", [flipped, cut, emptied, foreign, of_others])
def test_a_damaged_file_is_made_anew(
    tmp_path: Path, read: list[str], damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    file = catalogs.write_parquet(tmp_path / "train.parquet", catalogs.rows(6))
    whole = list(load_items(catalogs.card(), "train", source=file))
    (path,) = kept(tmp_path)
    damage(path)
    assert list(load_items(catalogs.card(), "train", source=file)) == whole
    assert read == ["train", "train"] and f"{path} is damaged" in caplog.text
    assert list(load_items(catalogs.card(), "train", source=file)) == whole and len(read) == 2


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    made = row_file(KEY, lambda: iter([block(["a", "b"], price=[1.5, None])]), where="shop")
    content = made.path.read_bytes()
    for place in range(0, len(content), 7):
        made.path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        again = row_file(KEY, lambda: iter([block(["new"], price=[2.0])]), where="shop")
        assert len(again) == 1, f"byte {place}"


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    file = catalogs.write_parquet(tmp_path / "train.parquet", catalogs.rows(6))
    items = load_items(catalogs.card(), "train", source=file)
    assert items.ids == [f"sku-{i}" for i in range(6)]
    assert "cannot keep the rows of" in caplog.text and "temporary file" in caplog.text
    (temporary,) = (tmp_path / "temporary").glob("*.arrow")
    assert pickle.loads(pickle.dumps(items)).ids == items.ids
    load_items(catalogs.card(), "train", source=file)
    assert read == ["train", "train"]
    del items
    gc.collect()
    assert not temporary.exists()


FULL = """
import logging, resource, signal, sys
from pathlib import Path
import datasets
from dualtower.data.rows.blocks import Block
from dualtower.data.rows.cache import row_file
from dualtower.errors import SourceError
logging.basicConfig(stream=sys.stdout)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
ids = [str(i) for i in range(9_999)]
block = Block(ids, ids, [(i,) for i in ids], {}, [None] * len(ids), None)
try:
    row_file("0" * 32, lambda: iter([block] * 3), where="the shop")
except SourceError as error:
    print("refused:", error)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", FULL], env=environment, capture_output=True, text=True, check=False)
    assert "refused: no room for the rows of the shop" in done.stdout, done.stdout + done.stderr
    assert "TMPDIR" in done.stdout and "cannot keep the rows of the shop" in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "nothing half-written is left"


def test_an_error_of_the_source_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def broken() -> Iterator[Block]:
        yield block(["a"])
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        row_file(KEY, broken, where="shop")
    assert kept(tmp_path) == []


def test_attributes_come_back_as_they_were(tmp_path: Path) -> None:
    """Of one type or of several, from the first block or only later."""
    blocks = [
        block(["a", "b"], mixed=[1, 2], late=[None, None], text=["x", ""], number=[1.5, None], yes=[True, None]),
        block(
            ["c", "d"], mixed=["1", 2.0], late=["z", None], text=["ü", None], number=[math.inf, -0.0], yes=[False] * 2
        ),
        block(["e"], mixed=[{"k": [1, None]}], late=[None], text=["\ud800"], number=[3.0], yes=[None]),
        block(["f"], mixed=[True], late=["y"], text=["7"], number=[None], yes=[True]),
    ]
    made = row_file(KEY, lambda: iter(blocks), where="shop")
    for opened in (made, RowFile(made.path), pickle.loads(pickle.dumps(made))):
        told = RowTable([opened])
        assert list(told.ids) == ["a", "b", "c", "d", "e", "f"]
        assert list(told.texts)[4] == ("title of e", "another")
        for name, column in told.attributes.items():
            wanted = [value for some in blocks for value in some.attributes[name]]
            assert repr(list(column)) == repr(wanted), name


def test_a_huge_number_and_many_blocks(tmp_path: Path) -> None:
    ids = [[f"{b}-{i}" for i in range(100)] for b in range(30)]
    numbers = [[b * 100 + i if b < 29 else 2**70 for i in range(100)] for b in range(30)]
    made = row_file(KEY, lambda: (block(i, n=n) for i, n in zip(ids, numbers, strict=True)), where="shop")
    told = RowTable([made])
    assert list(told.attributes["n"]) == [n for some in numbers for n in some]
    order = np.random.default_rng(0).permutation(3000)
    flat = [row_id for some in ids for row_id in some]
    assert told.ids.at(order) == [flat[i] for i in order] == list(told.select(order).ids)
    assert told.ids[5:2000:7] == flat[5:2000:7] and told.ids[-1] == flat[-1] and told.ids[::-1] == flat[::-1]
    assert told.codes("id").tolist() == list(map(product_code, flat))


def test_several_stores_are_one_table(tmp_path: Path) -> None:
    made = row_file(KEY, lambda: iter([block(["a", "b", "c"], price=[1, 2, 3])]), where="shop")
    held = InMemoryRows(["x", "y"], ["p", "p"], [("t",), ("u", "v")], {"size": ["S", "M"]})
    table = RowTable.concatenate([RowTable([made]).select(np.array([2, 0])), RowTable([held])])
    assert list(table.ids) == ["c", "a", "x", "y"] and table.texts[3] == ("u", "v")
    assert {name: list(column) for name, column in table.attributes.items()} == {
        "price": [3, 1, None, None],
        "size": [None, None, "S", "M"],
    }
    assert table.codes("product_id").tolist() == [product_code(p) for p in ("p-c", "p-a", "p", "p")]
    mixed = table.select(np.array([3, 1, 2]))
    assert mixed.ids.at(np.array([2, 0, 1])) == ["x", "y", "a"]
    with pytest.raises(IndexError):
        table.select(np.array([4]))
    with pytest.raises(IndexError):
        table.ids[4]


def test_rows_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"sku-{i}" for i in range(50)]
    for code in (product_code, lambda text: product_code(text) % 7):  # the second one gives many ids one code
        monkeypatch.setattr(row_table, "product_code", code)
        index = IdIndex(RowTable([InMemoryRows(ids, ids, [("t",)] * 50, {})]))
        assert index.rows(["sku-7", "sku-0", "sku-49", "sku-7"]).tolist() == [7, 0, 49, 7]
        with pytest.raises(KeyError, match="stranger"):
            index.rows(["sku-1", "stranger"])


def reference(ids: list[str], problems: list[str | None], taken: set[str]) -> dict[int, str]:
    """The rule, row by row."""
    found: dict[int, str] = {}
    for i, (row_id, problem) in enumerate(zip(ids, problems, strict=True)):
        reason = problem if problem == "missing id" else "duplicate id" if row_id in taken else problem
        if reason is None:
            taken.add(row_id)
        else:
            found[i] = reason
    return found


@pytest.mark.parametrize("seed", range(20))
def test_of_two_rows_with_one_id_the_first_good_one_stays(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(seed)
    if seed % 2:  # different ids with one code
        monkeypatch.setattr(row_table, "product_code", lambda text: product_code(text) % 5)
    ids = [dice.choice(["", "a", "b", "c", "d", "e", f"only {i}"]) for i in range(40)]
    problems = [dice.choice([None, None, "empty text"]) if row_id else "missing id" for row_id in ids]
    made = row_file(None, lambda: iter([replace(block(ids), problems=problems)]), where="shop")
    earlier = RowTable([InMemoryRows(["b", "z"], ["b", "z"], [("t",)] * 2, {})])
    found = bad_rows(made, np.arange(40), [earlier], where="shop")
    assert {row: error.reason for row, error in found.items()} == reference(ids, problems, {"b", "z"})
    assert list(found) == sorted(found)
    assert [str(e.row) for e in found.values()] == [f"{i} (id {ids[i]})" if ids[i] else str(i) for i in found]


def test_more_rows_than_a_block(tmp_path: Path) -> None:
    count = 2 * ROWS_AT_ONCE + 500
    file = tmp_path / "train.csv"
    lines = [f"{i},{i // 2},mug {i},{'' if i < ROWS_AT_ONCE else i % 7}" for i in range(count)]
    lines[count - 3] = "5,1,a second five,1"
    file.write_text("sku,item,title,color\n" + "\n".join(lines) + "\n")
    items = load_items(catalogs.card(image=None), "train", source=file, on_error="skip")
    assert [str(error) for error in items.skipped] == [f"{file} (train), row {count - 3} (id 5): duplicate id"]
    good = [i for i in range(count) if i != count - 3]
    assert items.ids == [str(i) for i in good] and items.texts[-1] == (f"mug {count - 1}",)
    assert items.attributes["color"] == [None if i < ROWS_AT_ONCE else i % 7 for i in good]
    rows = [items[i] for i in (0, 15_000, count - 2)]
    assert [row.id for row in rows] == ["0", "15000", str(count - 1)]
    assert ItemDataset.from_rows(list(items)).rows_fingerprint == items.rows_fingerprint


def test_a_visit_says_what_the_row_says(tmp_path: Path) -> None:
    file = catalogs.write_parquet(tmp_path / "train.parquet", catalogs.rows(6))
    items = load_items(catalogs.card(attributes=["color", "brand"], text=["title", "brand"]), "train", source=file)
    for row, whole in enumerate(items):
        for draw in range(4):
            visited = items.visit(row, draw)
            first = draw % len(whole.texts)
            assert visited == replace(whole, texts=whole.texts[first:] + whole.texts[:first])
            assert (
                visited.attributes
                == dict(visited.attributes)
                == {n: items.attributes[n][row] for n in whole.attributes}
            )
            assert pickle.loads(pickle.dumps(visited)) == visited


def frozen(items: list[Any]) -> int:
    return gc.get_freeze_count()


def test_a_worker_lets_the_garbage_collector_pass_over_what_it_shares(tmp_path: Path) -> None:
    """A collection writes to every object, and so copies what the fork shares with the trainer."""
    file = catalogs.write_parquet(tmp_path / "train.parquet", catalogs.rows(6))
    items = load_items(catalogs.card(), "train", source=file)
    collator: Any = frozen
    before = gc.get_freeze_count()
    counts = list(training_loader(items, BatchSampler(items, batch_size=3), collator, workers=1))
    assert min(counts) > before + 10_000 and gc.get_freeze_count() == before


def test_the_fingerprint_of_rows_is_that_of_whole_lists(tmp_path: Path) -> None:
    """Checkpoints hold it: a run that was begun before must find the same."""
    import hashlib

    items = load_items(
        catalogs.card(attributes=["color", "brand"]),
        "train",
        source=catalogs.write_parquet(tmp_path / "train.parquet", catalogs.rows(6)),
    )
    state = hashlib.blake2b(digest_size=6)
    for row in zip(items.ids, items.product_ids, items.texts, strict=True):
        state.update(json.dumps(row).encode())
    for name, values in sorted(items.attributes.items()):
        state.update(json.dumps([name, values], default=str).encode())
    assert items.rows_fingerprint == state.hexdigest()


MEMORY = """
import json, sys
from pathlib import Path
import datasets
from dualtower.data.cards import Columns, DataCard, Splits
from dualtower.data.loading import load_items

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

columns = Columns("title", id="sku", product_id="item", attributes=["color"])
before = anonymous()
items = load_items(DataCard("shop", columns, splits=Splits(by_hash=None)), "train", source=sys.argv[1])
print(json.dumps([len(items), anonymous() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for memory")
def test_rows_take_no_memory(tmp_path: Path) -> None:
    """As Python objects these rows took 120 MB and more."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    count = 200_000
    columns = {
        "sku": [f"sku-{i}" for i in range(count)],
        "item": [f"item-{i // 2}" for i in range(count)],
        "title": [f"a blue mug of the series {i}" for i in range(count)],
        "color": [f"color {i % 50}" for i in range(count)],
    }
    parquet.write_table(pa.table(columns), tmp_path / "train.parquet")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    for _ in range(2):
        words = [sys.executable, "-c", MEMORY, str(tmp_path / "train.parquet")]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        rows, added = json.loads(done.stdout.splitlines()[-1])
    assert rows == count and added < 70, added


def test_two_processes_make_the_same_file(tmp_path: Path) -> None:
    file = catalogs.write_csv(tmp_path / "shop" / "train.csv", catalogs.rows(50))
    source = str(file)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    running = [
        subprocess.Popen([sys.executable, "-c", MEMORY, source], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate()[0] for process in running]
    assert [json.loads(out.splitlines()[-1])[0] for out in said] == [50, 50, 50]
    assert len(kept(tmp_path)) == 1

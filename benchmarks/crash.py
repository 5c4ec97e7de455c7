"""Kill processes that change a catalog at random moments, and see whether anything is lost, or shown wrongly.

    python benchmarks/crash.py --kills 200

Two processes write and delete, each its own rows, and rebuild indexes; a third compacts without pause. They say before
and after each step what they do. Two readers search all the while, and compare every hit with the version of the row
that it claims to be: product, attributes and score, which follow from its title. One of the three changing processes
gets SIGKILL at a random moment. Then the catalog must hold what that one was told is done, with the step that was
under way done wholly or not at all, and `verify` must be clean beside the others, which go on.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from common import save_results

from dualtower.search.local.catalog import Catalog
from dualtower.search.local.searcher import exact_scores
from dualtower.search.local.store import LocalStore
from dualtower.search.queries import Query
from dualtower.search.records import CatalogInfo, EmbeddedItem

DIM, IDS, STILL = 16, 300, 50
"""Numbers per vector, rows of each writer, and rows that nobody changes."""
INFO = CatalogInfo("none", "none", DIM, ("image", "text"), {"color": "text"})
ROLES = ("a", "b", "compact", "read1", "read2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--work", nargs=3, metavar=("ROLE", "FOLDER", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        role, folder, seed = args.work
        work(role, LocalStore(folder), random.Random(f"{role}{seed}"), int(seed))
    during, searches = run(Path(tempfile.mkdtemp()) / "shop", kills=args.kills)
    rows = [[step, str(count)] for step, count in during.most_common()]
    save_results(
        "crash",
        title=f"{args.kills} SIGKILLs among two writers and a compactor: no accepted write lost, no half of one "
        f"seen, verify clean after each, and every hit of {searches:,} searches beside them right",
        tables=[(["killed during", "times"], rows)],
        values={"kills": args.kills, "searches": searches, **during},
    )


def run(folder: Path, *, kills: int, longest: float = 1.0) -> tuple[Counter[str], int]:
    """Let all work, and kill one of those that change the catalog after the other.

    Args:
        folder: Where the catalog is made.
        kills: How often.
        longest: Seconds between a kill and the next, at most.

    Returns:
        Which steps were under way, how often each, and the number of searches.

    Raises:
        AssertionError: Something was lost, or shown wrongly.
    """
    catalog = Catalog.create(folder, INFO)
    catalog.upsert([item(f"s{i}", "0") for i in range(STILL)])
    dice, during = random.Random(0), Counter[str]()
    held: dict[str, dict[str, str]] = {"a": {}, "b": {}}
    workers = {role: Worker(role, folder, 0) for role in ROLES}
    try:
        for kill in range(kills):
            time.sleep(dice.uniform(0, longest))
            role = dice.choice(ROLES[:3])
            done, asked = workers[role].kill()
            if role in held:
                held[role] = check(catalog, role, held[role], done, asked)
            if problems := catalog.verify():
                raise AssertionError("\n".join(problems))
            during[asked[0] if asked else "nothing"] += 1
            workers[role] = Worker(role, folder, kill + 1)
            print(f"{kill + 1} of {kills}: killed {role} during {asked[:1]}, {len(catalog)} rows", flush=True)
        searches = sum(int(workers[role].last()) for role in ROLES[3:])
        for role in ("a", "b"):
            held[role] = check(catalog, role, held[role], *workers[role].kill())
    finally:
        for worker in workers.values():
            worker.end()
    store = LocalStore(folder)
    seen = dict(store.counts()["color"].values)
    if seen != {"red": STILL + len(held["a"]) + len(held["b"])} or store.catalog.verify():
        raise AssertionError(f"the search sees {seen}")
    return during, searches


class Worker:
    """A process, and what it has said so far."""

    def __init__(self, role: str, folder: Path, seed: int) -> None:
        command = [sys.executable, __file__, "--work", role, str(folder), str(seed)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline()]
        self._reader = threading.Thread(target=self.lines.extend, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def kill(self) -> tuple[list[list[str]], list[str]]:
        """Kill it; the steps that it has done, and the one that was under way."""
        self.process.kill()
        if self.process.wait() != -signal.SIGKILL:
            raise AssertionError(f"{self.process.args} ended by itself: {self.process.returncode}")
        self._reader.join()
        done: list[list[str]] = []
        asked: list[str] = []
        for words in (line.split() for line in self.lines if line.endswith("\n")):
            if words == ["done"]:
                done.append(asked)
            asked = [] if words == ["done"] else words
        return done, asked

    def last(self) -> str:
        """The last line; raises where it has ended, as it does on a wrong hit."""
        if self.process.poll() is not None:
            raise AssertionError(f"{self.process.args} ended by itself: {self.process.returncode}")
        return self.lines[-1]

    def end(self) -> None:
        """Kill it, if it runs."""
        self.process.kill()
        self.process.wait()


def check(catalog: Catalog, role: str, held: dict[str, str], done: list[list[str]], asked: list[str]) -> dict[str, str]:
    """Compare a writer's rows with what it was told; returns id -> title of what is there."""
    for step in done:
        held = after(held, step)
    ids = [row_id for row_id in catalog.digests() if row_id.startswith(role)]
    found = {row.id: row.title for row in catalog.get(ids)}
    if found not in (held, after(held, asked)):
        raise AssertionError(f"{role}, killed during {asked}: {found} is neither before nor after, which is {held}")
    return found


def after(held: dict[str, str], asked: list[str]) -> dict[str, str]:
    """What a step makes of some rows, id -> title."""
    if asked[:1] == ["upsert"]:
        return {**held, **{row_id: f"{row_id}|{asked[1]}" for row_id in asked[2:]}}
    return {i: title for i, title in held.items() if i not in asked[1:]} if asked[:1] == ["delete"] else held


def work(role: str, store: LocalStore, dice: random.Random, seed: int) -> None:
    """What one of the processes does for ever."""
    number = 0
    while True:
        number += 1
        if role.startswith("read"):
            search(store, dice)
            print(number, flush=True)
            continue
        ids = sorted({f"{role}{dice.randrange(IDS)}" for _ in range(dice.randrange(1, 40))})
        step = "compact" if role == "compact" else dice.choices(["upsert", "delete", "rebuild"], [6, 3, 1])[0]
        version = f"{seed}.{number}"
        print(step, *{"upsert": [version, *ids], "delete": ids}.get(step, []), flush=True)
        if step == "upsert":
            store.upsert([item(row_id, version) for row_id in ids])
        elif step == "delete":
            store.delete(ids)
        elif step == "compact":
            store.catalog.compact()
        else:
            store.rebuild(threads=1)
        print("done", flush=True)


def search(store: LocalStore, dice: random.Random) -> None:
    """Search for a row that nobody changes, and compare every hit with the version that it claims to be."""
    wanted = item(f"s{dice.randrange(STILL)}", "0")
    vector = wanted.vectors["image"].astype(np.float32)
    hits = store.search(Query(vector, limit=30)).hits
    if not hits or hits[0].id != wanted.id or len({hit.id for hit in hits}) < STILL * 3 // 5:
        raise AssertionError(f"{wanted.id} is lost among {len(hits)} hits")
    for hit in hits:
        held = item(*hit.row["title"].split("|"))
        score = float(exact_scores(held.vectors["image"][None], vector)[0])
        if (hit.id, hit.product_id, hit.row["attributes"], hit.score) != (
            held.id,
            held.product_id,
            held.attributes,
            score,
        ):
            raise AssertionError(f"{hit} is no version of its row; that version scores {score}")


def item(row_id: str, version: str) -> EmbeddedItem:
    """A version of a row; all of it follows from its title."""
    title = f"{row_id}|{version}"
    vectors = np.random.default_rng(zlib.crc32(title.encode())).normal(size=(2, DIM))
    image, text = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    return EmbeddedItem(row_id, f"p{row_id}", title, {"color": "red"}, {"image": image, "text": text}, b"image" * 50)


if __name__ == "__main__":
    main()

"""Kill a writer at random moments, and see whether anything that it had accepted is lost.

    python benchmarks/crash.py --kills 200

A process writes, deletes, compacts and rebuilds the indexes of a catalogue, and says before and after each step what it
does. It gets SIGKILL at a random moment. Then the catalogue must hold what was accepted, with the step that was under
way done wholly or not at all, and `verify` must be clean. The next process goes on with the same catalogue.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from common import save_results

from dualtower.retrieval.catalogue import Catalogue
from dualtower.retrieval.local import LocalStore
from dualtower.retrieval.records import CatalogueInfo, Item

DIM = 16
IDS = 300
INFO = CatalogueInfo("none", "none", DIM, ("image", "text"), {"colour": "text"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_for_ever(args.write, args.seed)
    folder = Path(tempfile.mkdtemp()) / "shop"
    Catalogue.create(folder, INFO).close()
    held: dict[str, str] = {}
    during: Counter[str] = Counter()
    for kill in range(args.kills):
        held, step = kill_writer(folder, held, seed=kill)
        during[step] += 1
        print(f"{kill + 1} of {args.kills}: killed during {step}, {len(held)} rows whole", flush=True)
    rows = [[step, str(count)] for step, count in during.most_common()]
    save_results(
        "crash",
        title=f"{args.kills} SIGKILLs: no accepted write lost, no half of one seen, verify clean after each",
        tables=[(["killed during", "times"], rows)],
        values={"kills": args.kills, **during},
    )


def kill_writer(folder: Path, held: dict[str, str], *, seed: int, longest: float = 1.0) -> tuple[dict[str, str], str]:
    """Let a process write until it is killed, and check what is there.

    Args:
        folder: The catalogue.
        held: Id -> title of what it holds.
        seed: Of what is written, and of the moment.
        longest: Seconds from its first step to the kill.

    Returns:
        What it holds now, and the step that was under way.
    """
    command = [sys.executable, __file__, "--write", str(folder), "--seed", str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    seconds = random.Random(seed).uniform(0, longest)
    threading.Timer(seconds, os.kill, (process.pid, signal.SIGKILL)).start()
    lines += process.stdout.readlines()
    if process.wait() != -signal.SIGKILL:
        raise AssertionError(f"the writer ended by itself: {process.returncode}")
    asked: list[str] = []
    for line in lines:
        if line.endswith("\n"):
            words = line.split()
            held, asked = (after(held, asked), []) if words == ["done"] else (held, words)
    store = LocalStore(folder)
    found = {row.id: row.title for row in store.get(list(store.digests()))}
    if found not in (held, after(held, asked)):
        raise AssertionError(f"killed after {seconds:.3f} s during {asked}: {found} is neither before nor after")
    if problems := store.catalogue.verify():
        raise AssertionError("\n".join(problems))
    seen = dict(store.counts()["colour"].values).get("red", 0)
    if seen != len(found):
        raise AssertionError(f"the search sees {seen} of {len(found)} rows")
    store.close()
    return found, asked[0] if asked else "nothing"


def after(held: dict[str, str], asked: list[str]) -> dict[str, str]:
    """What a step makes of a catalogue, id -> title."""
    if asked[:1] == ["upsert"]:
        return {**held, **dict.fromkeys(asked[2:], asked[1])}
    return {i: title for i, title in held.items() if i not in asked[1:]} if asked[:1] == ["delete"] else held


def write_for_ever(folder: Path, seed: int) -> None:
    """The process that is killed."""
    store, dice = LocalStore(folder), random.Random(seed)
    number = 0
    while True:
        number += 1
        ids = sorted({str(dice.randrange(IDS)) for _ in range(dice.randrange(1, 40))}, key=int)
        step = dice.choices(["upsert", "delete", "compact", "rebuild"], [6, 3, 1, 1])[0]
        title = f"{seed}.{number}"
        told: Iterable[str] = {"upsert": [title, *ids], "delete": ids}.get(step, [])
        print(step, *told, flush=True)
        if step == "upsert":
            store.upsert([item(row_id, title, dice) for row_id in ids])
        elif step == "delete":
            store.delete(ids)
        elif step == "compact":
            store.catalogue.compact()
        else:
            store.rebuild(threads=1)
        print("done", flush=True)


def item(row_id: str, title: str, dice: random.Random) -> Item:
    """A row with random vectors."""
    image, text = np.random.default_rng(dice.randrange(2**32)).normal(size=(2, DIM)).astype(np.float16)
    return Item(row_id, f"p{row_id}", title, {"colour": "red"}, {"image": image, "text": text}, b"picture" * 50)


if __name__ == "__main__":
    main()

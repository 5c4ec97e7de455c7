"""What it costs to load a catalog: seconds, and memory per process, per loader worker and of the check.

Rows are made by code: Parquet with an id, a product id, a title, two attributes and a tiny image. Every figure comes
from a process of its own; memory is what cannot be taken away again (``RssAnon``, sampled), not the mapped files.

    python benchmarks/loading.py --rows 10000,100000,1000000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import save_results

CARD = """---
name: synthetic
columns: {id: id, product_id: product, text: title, image: image, attributes: [color, price], numeric: [price]}
splits: {by_hash: null}
---
"""
WORKERS = 2
BATCH = 256
VISITED = 400  # batches that the workers make: 102,400 rows
TASKS = ("load", "again", "workers", "check")


def make(folder: Path, rows: int) -> None:
    """Write a catalog of Parquet files of 100,000 rows; images of 8x8 pixels, many of them alike."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from PIL import Image

    rng = np.random.default_rng(0)
    images = []
    for _ in range(2000):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(stream, "JPEG")
        images.append(stream.getvalue())
    words = [f"word{i}" for i in range(5000)]
    folder.mkdir()
    for start in range(0, rows, 100_000):
        numbers = range(start, min(start + 100_000, rows))
        drawn = rng.integers(0, len(words), (len(numbers), 6))
        columns = {
            "id": [f"sku-{i:09d}" for i in numbers],
            "product": [f"item-{i // 2:09d}" for i in numbers],
            "title": [" ".join(words[j] for j in row) for row in drawn.tolist()],
            "image": pa.array([images[i % len(images)] for i in numbers], pa.binary()),
            "color": [f"color {i % 40}" for i in numbers],
            "price": rng.uniform(1, 100, len(numbers)).round(2),
        }
        parquet.write_table(pa.table(columns), folder / f"train-{start:09d}.parquet", row_group_size=10_000)


def anonymous(process: int | str = "self") -> float:
    """MB of a process that belong to no file."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def unshared(process: int) -> float:
    """MB that a process has written to and shares with no other one."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


class Peak:
    """The most anonymous memory of this process while it is open."""

    def __enter__(self) -> Peak:
        self.most, self._done = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def measure(task: str, card_file: Path, source: Path) -> dict[str, float]:
    """Run one task in this process."""
    import datasets  # so that what its import takes is not counted as the rows'

    from dualtower.curation.check import check_card
    from dualtower.data.cards import load_card
    from dualtower.data.loading import load_items

    if task == "workers":  # torch comes with these, and a check does without
        from dualtower.data.batches import Collator, training_loader
        from dualtower.data.sampling import BatchSampler
        from dualtower.data.transforms.images import ImageSettings
    datasets.disable_progress_bars()
    card = load_card(card_file)
    before, begin = anonymous(), time.perf_counter()
    with Peak() as peak:
        if task == "check":
            check_card(card, source=source)
        else:
            items = load_items(card, "train", source=source, check_images=False)
    figures = {"seconds": time.perf_counter() - begin, "peak": peak.most, "adds_peak": peak.most - before}
    figures["adds"] = anonymous() - before
    if task == "workers":
        plan = BatchSampler(items, batch_size=BATCH)
        loader = training_loader(items, plan, Collator(None, ImageSettings(8, 8)), workers=WORKERS)
        plan.set_epoch(0)
        figures |= _workers(iter(loader))
    return figures


def _workers(batches: Iterator[Any]) -> dict[str, float]:
    for number, _ in enumerate(batches):
        if number == min(VISITED, 30):
            early = [unshared(worker) for worker in _children()]
        if number == VISITED:
            break
    late = [(unshared(worker), anonymous(worker)) for worker in _children()]
    return {
        "worker_unshared": max(own for own, _ in late),
        "worker_unshared_early": max(early, default=float("nan")),
        "worker_anonymous": max(anon for _, anon in late),
    }


def _children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [child for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def in_own_process(task: str, folder: Path) -> dict[str, float]:
    """`measure` in a new process, whose caches lie in the folder."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HOME": str(folder / "hf")}
    words = [sys.executable, __file__, "--task", task, "--folder", str(folder)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measured(rows: int) -> dict[str, dict[str, float]]:
    """Every task on a catalog of so many rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "shop", rows)
        (folder / "synthetic.md").write_text(CARD)
        return {task: in_own_process(task, folder) for task in TASKS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        print(json.dumps(measure(given.task, given.folder / "synthetic.md", given.folder / "shop")))
        return
    values = {int(rows): measured(int(rows)) for rows in given.rows.split(",")}
    header = ["rows", "first load", "later loads", "loading adds, first", "later", "a worker has of its own"]
    table = [
        [
            f"{rows:,}",
            f"{of['load']['seconds']:.1f} s",
            f"{of['again']['seconds']:.1f} s",
            f"{of['load']['adds']:.0f} MB (peak {of['load']['adds_peak']:.0f})",
            f"{of['again']['adds']:.0f} MB (peak {of['again']['adds_peak']:.0f})",
            f"{of['workers']['worker_unshared']:.0f} MB",
            f"{of['check']['seconds']:.1f} s, {of['check']['peak']:.0f} MB",
        ]
        for rows, of in values.items()
    ]
    notes = (
        "Parquet with images of 8x8 pixels, made by the script; each figure from a process of its own, once. The "
        "first load includes the conversion to Arrow by `datasets`. Memory is anonymous (RssAnon): mapped files can be "
        f"taken away by the system at any time. A worker's is what it shares with no other process (Private_Dirty) "
        f"after {VISITED} batches of {BATCH} for {WORKERS} workers; `data check` decodes every image, and "
        "its peak is that of the whole process, with all that it imports."
    )
    save_results(
        "loading",
        title="Loading a catalog",
        tables=[([*header, "data check: time, peak"], table)],
        values={str(rows): of for rows, of in values.items()},
        notes=notes,
    )


if __name__ == "__main__":
    main()

"""Commands that look after a catalogue: compare it with its checksums, mend it, tidy it up, choose its indexes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from dualtower.cli.catalogue import open_local
from dualtower.cli.placing import say_where, to_place
from dualtower.errors import CatalogueError, UnknownName
from dualtower.markdown import markdown_table

if TYPE_CHECKING:
    from dualtower.retrieval.tune import Measured

__all__ = ["Compact", "Repair", "Tune", "Verify"]


@dataclass(frozen=True)
class Verify:
    """Read a whole catalogue and compare every row, picture and vector with its checksum, and its cache, too."""

    catalogue: Positional[Path]
    """Folder of the catalogue."""

    def run(self) -> None:
        store = open_local(self.catalogue)
        if problems := store.catalogue.verify():
            advice = f"`dualtower repair {self.catalogue}` heals what the rest of it still tells"
            raise CatalogueError("\n".join([f"{len(problems)} problems in {self.catalogue}:", *problems[:50], advice]))
        unchecked = store.catalogue.unchecked()
        without = f", except {unchecked:,} pictures of an older format, which kept no checksums" if unchecked else ""
        print(f"{len(store):,} rows, all whole{without}")
        for problem in store.cache_problems():
            print(f"{problem}; searches are right without it, and `dualtower compact {self.catalogue}` makes it anew")


@dataclass(frozen=True)
class Repair:
    """Make a damaged catalogue whole again: embed what has lost its vectors, remove what nothing tells any more."""

    catalogue: Positional[Path]
    """Folder of the catalogue."""
    model: str | None = None
    """Where the model lies now, if it has moved since the catalogue was made."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.model import DualTower
        from dualtower.retrieval.catalogue import ABOUT, Catalogue
        from dualtower.retrieval.repair import LOST, repair

        if Catalogue.mend_info(self.catalogue):
            print(f"{self.catalogue / ABOUT} was lost or altered, and is written anew")
        store = open_local(self.catalogue)
        done = repair(store, lambda: to_place(DualTower.from_pretrained(self.model or store.info.model), self.device))
        for ids, what in (
            (done.embedded, "rows embedded anew from their stored title and picture"),
            (done.without_picture, "rows have lost their picture"),
            (done.lost, f"rows removed, as they had changed on the disk; {self.catalogue / LOST} keeps what is left"),
        ):
            if ids:
                print(f"{len(ids):,} {what}: {', '.join(ids[:10])}{' ...' if len(ids) > 10 else ''}")
        if done.embedded or done.without_picture or done.lost:
            print(
                "`dualtower index` with the data that the catalogue was made from brings these rows back as they were"
            )
        print(f"{len(store):,} rows, all whole")


@dataclass(frozen=True)
class Compact:
    """Drop what is gone for good, and build the indexes anew."""

    catalogue: Positional[Path]
    """Folder of the catalogue."""

    def run(self) -> None:
        store = open_local(self.catalogue)
        print(f"{store.compact():,} slots freed; {len(store):,} rows in {self.catalogue}")


@dataclass(frozen=True)
class Tune:
    """Measure indexes on real queries, and keep the quickest that reaches a recall."""

    catalogue: Positional[Path]
    """Folder of the catalogue."""
    recall: float = 0.98
    """The recall@10 that an index must reach, against exact search."""
    methods: tuple[str, ...] = ("flat", "ivf-sq8", "ivf-pq", "hnsw")
    """Indexes to try."""
    megabytes: float | None = None
    """Most memory that the index of one kind of vectors may take."""
    queries: Path | None = None
    """Text file with one query per line; default titles and pictures of the catalogue itself."""
    model: str | None = None
    """Where the model lies now, if it has moved; only read with --queries."""
    device: str = "auto"
    """Where to compute the queries: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.retrieval.finder import open_finder
        from dualtower.retrieval.index_cache import save_index
        from dualtower.retrieval.nearest import METHODS
        from dualtower.retrieval.tune import tune

        if unknown := [name for name in self.methods if name not in METHODS]:
            raise UnknownName("method", unknown[0], METHODS)
        store = open_local(self.catalogue)
        given = None
        if self.queries is not None:
            lines = [line for line in self.queries.read_text(encoding="utf-8").splitlines() if line.strip()]
            model = open_finder(self.catalogue, self.model, device=self.device).model
            say_where(model)
            given = {"queries": model.encode_text(lines)}
        view = store.searcher.views.current()
        for kind in store.info.kinds:
            print(f"measuring {', '.join(self.methods)} on {kind} vectors, which may take minutes", flush=True)
            best, rows = tune(
                view, kind, recall=self.recall, methods=self.methods, megabytes=self.megabytes, queries=given
            )
            save_index(best, store.catalogue.folder / "cache")
            print(f"\n{kind} vectors: {best.info.method} is kept\n\n{measured_table(rows)}")


def measured_table(rows: Sequence[Measured]) -> str:
    """Markdown of what was measured."""
    header = ["index", "queries", "rows that a filter leaves", "effort", "recall@10", "p50", "p99", "memory"]
    cells = [
        [
            row.method,
            row.queries,
            f"{row.share:.0%}",
            row.effort,
            f"{row.recall:.3f}",
            f"{row.p50:.2f} ms",
            f"{row.p99:.2f} ms",
            f"{row.megabytes:.0f} MiB",
        ]
        for row in rows
    ]
    return markdown_table(header, cells, left=(0, 1))

"""Commands that look after a catalog: compare it with its checksums, mend it, tidy it up, choose its indexes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from dualtower.cli.catalog import open_local
from dualtower.cli.placing import say_where, to_place
from dualtower.errors import CatalogError, UnknownName
from dualtower.markdown import markdown_table

if TYPE_CHECKING:
    from dualtower.search.ann.tuning import Measured

__all__ = ["Compact", "Repair", "Tune", "Verify"]


@dataclass(frozen=True)
class Verify:
    """Read a whole catalog and compare every row, image and vector with its checksum, and its cache, too."""

    catalog: Positional[Path]
    """Folder of the catalog."""

    def run(self) -> None:
        store = open_local(self.catalog)
        if problems := store.catalog.verify():
            advice = f"`dualtower repair {self.catalog}` heals what the rest of it still tells"
            raise CatalogError("\n".join([f"{len(problems)} problems in {self.catalog}:", *problems[:50], advice]))
        print(f"{len(store):,} rows, all whole")
        for problem in store.cache_problems():
            print(f"{problem}; searches are right without it, and `dualtower compact {self.catalog}` makes it anew")


@dataclass(frozen=True)
class Repair:
    """Make a damaged catalog whole again: embed what has lost its vectors, remove what nothing tells any more."""

    catalog: Positional[Path]
    """Folder of the catalog."""
    model: str | None = None
    """Where the model lies now, if it has moved since the catalog was made."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.models.dual_tower import DualTower
        from dualtower.search.local.info_file import ABOUT, mend_info
        from dualtower.search.local.repair import LOST, repair

        if mend_info(self.catalog):
            print(f"{self.catalog / ABOUT} was lost or altered, and is written anew")
        store = open_local(self.catalog)
        done = repair(store, lambda: to_place(DualTower.from_pretrained(self.model or store.info.model), self.device))
        for ids, what in (
            (done.embedded, "rows embedded anew from their stored title and image"),
            (done.without_thumbnail, "rows have lost their thumbnail"),
            (done.lost, f"rows removed, as they had changed on the disk; {self.catalog / LOST} keeps what is left"),
        ):
            if ids:
                print(f"{len(ids):,} {what}: {', '.join(ids[:10])}{' ...' if len(ids) > 10 else ''}")
        if done.embedded or done.without_thumbnail or done.lost:
            print("`dualtower index` with the data that the catalog was made from brings these rows back as they were")
        print(f"{len(store):,} rows, all whole")


@dataclass(frozen=True)
class Compact:
    """Drop what is gone for good, and build the indexes anew."""

    catalog: Positional[Path]
    """Folder of the catalog."""

    def run(self) -> None:
        store = open_local(self.catalog)
        print(f"{store.compact():,} slots freed; {len(store):,} rows in {self.catalog}")


@dataclass(frozen=True)
class Tune:
    """Measure indexes on real queries, and keep the quickest that reaches a recall."""

    catalog: Positional[Path]
    """Folder of the catalog."""
    recall: float = 0.98
    """The recall@10 that an index must reach, against exact search."""
    methods: tuple[str, ...] = ("flat", "ivf-sq8", "ivf-pq", "hnsw")
    """Indexes to try."""
    megabytes: float | None = None
    """Most memory that the index of one kind of vectors may take."""
    queries: Path | None = None
    """Text file with one query per line; default titles and images of the catalog itself."""
    model: str | None = None
    """Where the model lies now, if it has moved; only read with --queries."""
    device: str = "auto"
    """Where to compute the queries: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.search.ann.index import METHODS
        from dualtower.search.ann.index_cache import save_index
        from dualtower.search.ann.tuning import tune
        from dualtower.search.engine import open_engine

        if unknown := [name for name in self.methods if name not in METHODS]:
            raise UnknownName("method", unknown[0], METHODS)
        store = open_local(self.catalog)
        given = None
        if self.queries is not None:
            lines = [line for line in self.queries.read_text(encoding="utf-8").splitlines() if line.strip()]
            model = open_engine(self.catalog, self.model, device=self.device).model
            say_where(model)
            given = {"queries": model.encode_text(lines)}
        view = store.searcher.views.current()
        for vector_name in store.info.vector_names:
            print(f"measuring {', '.join(self.methods)} on {vector_name} vectors, which may take minutes", flush=True)
            best, rows = tune(
                view, vector_name, recall=self.recall, methods=self.methods, megabytes=self.megabytes, queries=given
            )
            save_index(best, store.catalog.folder / "cache")
            print(f"\n{vector_name} vectors: {best.info.method} is kept\n\n{measured_table(rows)}")


def measured_table(rows: Sequence[Measured]) -> str:
    """Markdown of what was measured."""
    header = ["index", "queries", "rows that a filter leaves", "effort", "recall@10", "p50", "p99", "memory"]
    cells = [
        [
            row.method,
            row.queries,
            f"{row.selectivity:.0%}",
            row.search_budget,
            f"{row.recall:.3f}",
            f"{row.p50:.2f} ms",
            f"{row.p99:.2f} ms",
            f"{row.megabytes:.0f} MiB",
        ]
        for row in rows
    ]
    return markdown_table(header, cells, left=(0, 1))

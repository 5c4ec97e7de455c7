"""Compaction: the live vectors in files of their own, and nothing of what is dead."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dualtower.files import sync
from dualtower.search.local.schema import set_columns
from dualtower.search.local.scratch import scratch_folder
from dualtower.search.local.snapshot import Snapshot
from dualtower.search.local.vector_file import VectorFile

if TYPE_CHECKING:
    from dualtower.search.local.catalog import Catalog

__all__ = ["compact"]

_AT_ONCE = 65536


def compact(catalog: Catalog) -> int:
    """See `Catalog.compact`.

    The vectors of a snapshot are copied while writers go on; only what came meanwhile is copied under their lock.
    Versions that died meanwhile stay for the next compaction. No row and no image is written anew.
    """
    folder = catalog.folder / "vectors"
    with scratch_folder(folder) as scratch:
        with catalog.snapshot() as snapshot:
            dead = snapshot.removals(since=-1)
            new = _copy(catalog, snapshot, [number for number, _ in dead], scratch)
        with catalog.writing() as (connection, state):
            if state.generation != snapshot.state.generation:
                return 0  # another compaction was quicker
            kept = snapshot.state.next_slot - len(dead)
            for vector_name, file in new.items():
                later = catalog.vectors(vector_name, state.generation).open(state.next_slot)
                file.write(kept, later.run(snapshot.state.next_slot, state.next_slot))
                file.path.rename(catalog.vectors(vector_name, state.generation + 1).path)
            sync(folder)
            _forget(connection, snapshot.state.sequence)
            slots = state.next_slot - len(dead)
            catalog.advance(connection, state, generation=state.generation + 1, next_slot=slots)
    _remove_old_files(folder, state.generation + 1)
    return len(dead)


def _copy(catalog: Catalog, snapshot: Snapshot, dead: list[int], scratch: Path) -> dict[str, VectorFile]:
    """Write the vectors of all versions but some."""
    numbers, _ = snapshot.numbers(below=snapshot.state.next_number)
    slots = np.flatnonzero(~np.isin(numbers, dead))
    new = {
        vector_name: VectorFile(scratch / vector_name, catalog.info.dim) for vector_name in catalog.info.vector_names
    }
    for vector_name, file in new.items():
        file.write(0, snapshot.vectors[vector_name].gather(slots[:0]))
        for start in range(0, len(slots), _AT_ONCE):
            file.write(start, snapshot.vectors[vector_name].gather(slots[start : start + _AT_ONCE]))
    return new


def _forget(connection: sqlite3.Connection, sequence: int) -> None:
    """Drop the versions that had died as of a sequence number."""
    connection.execute("DELETE FROM rows WHERE removed_at <= ?", (sequence,))
    # A search that began before pages on as of then: a row that was replaced since must not vanish from it.
    set_columns(connection, f"sequence != created AND sequence <= {sequence}", sequence="created")


def _remove_old_files(folder: Path, generation: int) -> None:
    for path in folder.glob("*-*.f16"):
        if int(path.name.split("-")[0]) < generation:
            path.unlink(missing_ok=True)

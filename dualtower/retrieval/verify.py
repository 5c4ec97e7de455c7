"""Looks for what is wrong with a catalogue's files."""

from __future__ import annotations

import json
from collections.abc import Iterator

from dualtower.retrieval.records import CatalogueInfo
from dualtower.retrieval.snapshot import Snapshot
from dualtower.retrieval.vectors import crc_of

__all__ = ["problems_of"]


def problems_of(snapshot: Snapshot, info: CatalogueInfo) -> Iterator[str]:
    """What is wrong with one state of a catalogue, for people."""
    yield from (str(row[0]) for row in snapshot.connection.execute("PRAGMA integrity_check") if row[0] != "ok")
    ((versions, last),) = snapshot.connection.execute("SELECT COUNT(*), MAX(number) FROM rows")
    if versions != snapshot.state.next_slot or (versions and last >= snapshot.state.next_number):
        yield f"there are {versions} versions of rows up to number {last}, but {snapshot.state} says otherwise"
        return  # which slot belongs to which row is not known
    slot = 0
    for rows in snapshot.versions("id, checksums, died"):
        held = {kind: reader.run(slot, slot + len(rows)) for kind, reader in snapshot.vectors.items()}
        for i, (row_id, checksums, died) in enumerate(rows):
            for kind, crc in zip(info.kinds, json.loads(checksums), strict=died is None):
                if crc is not None and died is None and crc_of(held[kind][i]) != crc:
                    yield f"row {row_id!r}: its {kind} vector (slot {slot + i}) has changed on the disk"
        slot += len(rows)

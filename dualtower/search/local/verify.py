"""Looks for what is wrong with a catalog's files, by checksums that were written with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from dualtower.search.local.schema import WHOLE
from dualtower.search.local.snapshot import Snapshot
from dualtower.search.local.vector_file import crcs_of
from dualtower.search.records import CatalogInfo

__all__ = ["Damage", "damages_of", "problems_of", "structure_of"]


@dataclass(frozen=True)
class Damage:
    """A part of a version of a row that is not as it was written.

    Attributes:
        number: Number of the version.
        id: Id of the row, as it stands there.
        part: ``row`` for its columns, ``thumbnail``, or a kind of vectors.
    """

    number: int
    id: str
    part: str

    def __str__(self) -> str:
        if self.part == "row":
            return f"row {self.id!r}: its title, attributes or other columns have changed on the disk"
        part = "thumbnail" if self.part == "thumbnail" else f"{self.part} vector"
        return f"row {self.id!r}: its {part} has changed on the disk"


def problems_of(snapshot: Snapshot, info: CatalogInfo) -> Iterator[str]:
    """What is wrong with one state of a catalog, for people."""
    structure = structure_of(snapshot)
    yield from structure
    if not structure:  # else it is not known which vector belongs to which row
        yield from map(str, damages_of(snapshot, info))


def structure_of(snapshot: Snapshot) -> list[str]:
    """What is wrong with the database as a whole."""
    found = [str(row[0]) for row in snapshot.connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    state = snapshot.state
    versions, last, latest = snapshot.connection.execute(
        "SELECT COUNT(*), MAX(number), MAX(MAX(sequence), IFNULL(MAX(removed_at), 0), IFNULL(MAX(updated), 0)) "
        "FROM rows"
    ).fetchone()
    if versions != state.next_slot or (versions and (last >= state.next_number or latest > state.sequence)):
        found.append(f"{versions} versions of rows up to number {last} and change {latest} do not fit {state}")
    if not snapshot.has_been(state):
        found.append(f"{state} is not the last one that the catalog remembers")
    return found


def damages_of(snapshot: Snapshot, info: CatalogInfo) -> Iterator[Damage]:
    """Versions whose columns, images or vectors do not fit their checksums; of the dead, columns only."""
    altered = snapshot.connection.execute(f"SELECT number, CAST(id AS BLOB) FROM rows WHERE NOT {WHOLE}")
    rows = [Damage(number, row_id.decode(errors="replace"), "row") for number, row_id in altered]
    yield from rows
    images = snapshot.connection.execute(
        "SELECT number, id FROM rows LEFT JOIN images USING (number) WHERE removed_at IS NULL AND image IS NOT NULL "
        f"AND {WHOLE} AND (bytes IS NULL OR crc32(bytes) != image)"
    )
    yield from (Damage(number, row_id, "thumbnail") for number, row_id in images)
    altered_numbers, slot = {damage.number for damage in rows}, 0
    for versions in snapshot.versions("number, CAST(id AS BLOB), CAST(checksums AS BLOB), removed_at"):
        held = {
            vector_name: crcs_of(reader.run(slot, slot + len(versions)))
            for vector_name, reader in snapshot.vectors.items()
        }
        for i, (number, row_id, checksums, removed_at) in enumerate(versions):
            if removed_at is None and number not in altered_numbers:
                for vector_name, crc in zip(info.vector_names, json.loads(checksums), strict=True):
                    if crc is not None and held[vector_name][i] != crc:
                        yield Damage(number, row_id.decode(), vector_name)
        slot += len(versions)

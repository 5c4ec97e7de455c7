"""Looks for what is wrong with a catalogue's files, by checksums that were written with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from dualtower.retrieval.records import CatalogueInfo
from dualtower.retrieval.schema import WHOLE
from dualtower.retrieval.snapshot import Snapshot
from dualtower.retrieval.vectors import crcs_of

__all__ = ["Damage", "damages_of", "problems_of", "structure_of", "unchecked_pictures"]


@dataclass(frozen=True)
class Damage:
    """A part of a version of a row that is not as it was written.

    Attributes:
        number: Of the version.
        id: Of the row, as it stands there.
        part: ``row`` for its columns, ``picture``, or a kind of vectors.
    """

    number: int
    id: str
    part: str

    def __str__(self) -> str:
        if self.part == "row":
            return f"row {self.id!r}: its title, attributes or other columns have changed on the disk"
        part = "picture" if self.part == "picture" else f"{self.part} vector"
        return f"row {self.id!r}: its {part} has changed on the disk"


def problems_of(snapshot: Snapshot, info: CatalogueInfo) -> Iterator[str]:
    """What is wrong with one state of a catalogue, for people."""
    structure = structure_of(snapshot)
    yield from structure
    if not structure:  # else it is not known which vector belongs to which row
        yield from map(str, damages_of(snapshot, info))


def structure_of(snapshot: Snapshot) -> list[str]:
    """What is wrong with the database as a whole."""
    found = [str(row[0]) for row in snapshot.connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    state = snapshot.state
    versions, last, latest = snapshot.connection.execute(
        "SELECT COUNT(*), MAX(number), MAX(MAX(sequence), IFNULL(MAX(died), 0), IFNULL(MAX(updated), 0)) FROM rows"
    ).fetchone()
    if versions != state.next_slot or (versions and (last >= state.next_number or latest > state.sequence)):
        found.append(f"{versions} versions of rows up to number {last} and change {latest} do not fit {state}")
    if not snapshot.has_been(state):
        found.append(f"{state} is not the last one that the catalogue remembers")
    return found


def damages_of(snapshot: Snapshot, info: CatalogueInfo) -> Iterator[Damage]:
    """Versions whose columns, pictures or vectors do not fit their checksums; of the dead, columns only."""
    altered = snapshot.connection.execute(f"SELECT number, CAST(id AS BLOB) FROM rows WHERE NOT {WHOLE}")
    rows = [Damage(number, row_id.decode(errors="replace"), "row") for number, row_id in altered]
    yield from rows
    pictures = snapshot.connection.execute(
        "SELECT number, id FROM rows LEFT JOIN pictures USING (number) WHERE died IS NULL AND picture IS NOT NULL "
        f"AND {WHOLE} AND (bytes IS NULL OR crc32(bytes) != picture)"
    )
    yield from (Damage(number, row_id, "picture") for number, row_id in pictures)
    altered_numbers, slot = {damage.number for damage in rows}, 0
    for versions in snapshot.versions("number, CAST(id AS BLOB), CAST(checksums AS BLOB), died"):
        held = {kind: crcs_of(reader.run(slot, slot + len(versions))) for kind, reader in snapshot.vectors.items()}
        for i, (number, row_id, checksums, died) in enumerate(versions):
            if died is None and number not in altered_numbers:
                for kind, crc in zip(info.kinds, json.loads(checksums), strict=True):
                    if crc is not None and held[kind][i] != crc:
                        yield Damage(number, row_id.decode(), kind)
        slot += len(versions)


def unchecked_pictures(snapshot: Snapshot) -> int:
    """Pictures that were written by the first format, which kept no checksums of them."""
    found = snapshot.connection.execute("SELECT COUNT(*) FROM pictures JOIN rows USING (number) WHERE picture IS NULL")
    return int(found.fetchone()[0])

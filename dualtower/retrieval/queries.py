"""What a search is asked for, what it answers, and where its pages begin and end; the same for every store."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualtower.errors import ConfigError, CursorError
from dualtower.retrieval.records import CatalogueInfo
from dualtower.types import Hit

__all__ = ["BROKEN", "Page", "Place", "Query", "begin", "fingerprint_of", "read_signed", "sign_cursor", "write_cursor"]

MOST_HITS = 1000
FARTHEST = 10_000
"""Hits that paging reaches."""
LEAST, LARGEST = 1e-6, 1e6
"""Bounds of the largest number of a query vector, whatever the sign. To all zeros everything is alike."""
_SIGNATURE, _FINGERPRINT = 16, 8
"""Bytes, of BLAKE2b (RFC 7693), that a cursor begins with, and of the search that they sign first."""
_TOLD = struct.Struct("<8sqqdI")  # what a cursor says before the row's id and the vector, see `Place`
BROKEN = "the cursor is broken; leave it out to begin at the first page"
OF_ANOTHER = "the cursor belongs to another catalogue; leave it out to begin at the first page"


@dataclass(frozen=True, eq=False)
class Query:
    """What is searched for.

    Attributes:
        vector: float32 ``[D]``; None where the cursor, which carries it, is given.
        kind: Vectors that it is compared with: ``image``, ``text`` or ``product``.
        where: A filter, see `dualtower.retrieval.filters`; empty is none.
        limit: Hits per page.
        cursor: Of the page before; None is the first page.
        grouped: One hit per product, its best row.
        without: Ids of rows whose products must not be found, such as the one that similar ones are sought for.
        key: What the vector was made from, such as a text, so that a cursor of another search is told apart.
    """

    vector: np.ndarray | None
    kind: str = "image"
    where: str = ""
    limit: int = 10
    cursor: str | None = None
    grouped: bool = True
    without: frozenset[str] = frozenset()
    key: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MOST_HITS:
            raise ConfigError(f"limit is {self.limit}; it must be from 1 to {MOST_HITS}")
        if self.vector is None and self.cursor is None:
            raise ConfigError("a query needs a vector, or the cursor of a page before")
        if self.vector is not None and not _is_usable(self.vector):
            raise ConfigError(
                f"the query vector is zero, or holds numbers that are not finite, or beyond {LARGEST:,.0f}"
            )


@dataclass(frozen=True)
class Page:
    """Some hits.

    Attributes:
        hits: Best first.
        cursor: Of the page after them; None where there are no more.
        reranked: How many of the best rows the stages of the search have put in a new order; 0 where they had nothing
            to say about this question, and None where the search has no stages.
    """

    hits: list[Hit]
    cursor: str | None
    reranked: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the API answers and ``--json`` prints."""
        hits = [{"id": h.id, "product_id": h.product_id, "score": h.score, "row": dict(h.row)} for h in self.hits]
        found: dict[str, Any] = {"hits": hits, "cursor": self.cursor}
        return found if self.reranked is None else {**found, "reranked": self.reranked}


@dataclass(frozen=True)
class Place:
    """Where a page ends: query, state of the catalogue that the search began at, hits so far, score and id of the last.

    The vector goes with the cursor: embedded once more, in another batch, it would differ in its last bits, and so
    would the scores that tell pages apart.
    """

    vector: np.ndarray
    sequence: int
    hits: int = 0
    score: float = float("inf")
    id: str = ""


def begin(query: Query, info: CatalogueInfo, *, newest: int) -> Place:
    """Where a query's page begins.

    Args:
        query: With or without a cursor.
        info: What the store holds.
        newest: Sequence number of its newest state.

    Raises:
        ConfigError: The store has no vectors of that kind, the vector does not fit, or paging does not reach so far.
        CursorError: The cursor is broken, or of another search or catalogue.
    """
    if query.kind not in info.kinds:
        raise ConfigError(f"no {query.kind!r} vectors in this catalogue; it has: {', '.join(info.kinds)}")
    place = _read_cursor(query, info, newest=newest)
    if place.vector.shape != (info.dim,):
        raise ConfigError(f"the query has shape {place.vector.shape}, the catalogue {info.dim} numbers")
    if place.hits + query.limit > FARTHEST:
        raise ConfigError(f"paging ends after {FARTHEST:,} hits; narrow the search with a filter")
    return place


def write_cursor(query: Query, place: Place, info: CatalogueInfo) -> str:
    """A cursor for the page after a place."""
    row_id = place.id.encode(errors="surrogatepass")
    told = _TOLD.pack(fingerprint_of(query), place.sequence, place.hits, place.score, len(row_id))
    told += row_id + place.vector.astype("<f4").tobytes()
    return sign_cursor(told, info)


def sign_cursor(told: bytes, info: CatalogueInfo, *, purpose: bytes = b"") -> str:
    """What a cursor says, signed: one that somebody made up could ask for the work of all pages.

    Args:
        told: Begins with the fingerprint of its query.
        info: Of the catalogue, whose key signs.
        purpose: Tells kinds of cursors apart: what was signed for one is nothing for another.
    """
    return base64.urlsafe_b64encode(_signature(told, info, purpose) + told).decode()


def read_signed(cursor: str, query: Query, info: CatalogueInfo, *, purpose: bytes = b"") -> bytes:
    """What `sign_cursor` was given; nothing of it is believed before its signature is found to be this catalogue's.

    Raises:
        CursorError: The cursor is broken, or of another search or catalogue.
    """
    try:
        signed = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError as error:
        raise CursorError(BROKEN) from error
    told = signed[_SIGNATURE:]
    if len(told) < _FINGERPRINT:
        raise CursorError(BROKEN)
    if told[:_FINGERPRINT] != fingerprint_of(query):
        raise CursorError("the cursor belongs to another search; ask the same query again, or leave the cursor out")
    if not hmac.compare_digest(signed[:_SIGNATURE], _signature(told, info, purpose)):
        raise CursorError(OF_ANOTHER)
    return told


def _read_cursor(query: Query, info: CatalogueInfo, *, newest: int) -> Place:
    """Where the page before ended, or the beginning."""
    if query.cursor is None:
        return Place(np.ascontiguousarray(query.vector, np.float32), newest)
    told = read_signed(query.cursor, query, info)
    try:
        _, sequence, hits, score, length = _TOLD.unpack_from(told)
        row_id = told[_TOLD.size : _TOLD.size + length].decode(errors="surrogatepass")
        vector = np.frombuffer(told, "<f4", offset=_TOLD.size + length).astype(np.float32)
    except (ValueError, struct.error) as error:
        raise CursorError(BROKEN) from error
    if sequence > newest:  # such as of a backup that was put back
        raise CursorError(OF_ANOTHER)
    return Place(vector, sequence, hits, score, row_id)


def _is_usable(vector: np.ndarray) -> bool:
    """Whether products with vectors of a catalogue, whose numbers are at most 65,504, stay finite and differ."""
    return bool(LEAST <= np.abs(vector).max(initial=0) <= LARGEST)


def _signature(told: bytes, info: CatalogueInfo, purpose: bytes = b"") -> bytes:
    key = info.cursor_key.encode()
    return hashlib.blake2b(told, key=key, digest_size=_SIGNATURE, person=purpose).digest()


def fingerprint_of(query: Query) -> bytes:
    """Tells a search from others, whatever its page: the first bytes of what its cursors say."""
    asked = repr((query.key, query.kind, query.where, query.grouped, sorted(query.without)))
    return hashlib.blake2b(asked.encode(errors="surrogatepass"), digest_size=_FINGERPRINT).digest()

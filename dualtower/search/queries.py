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
from dualtower.search.records import CatalogInfo
from dualtower.types import Hit

__all__ = [
    "BROKEN",
    "Cursor",
    "Page",
    "Query",
    "decode_cursor",
    "encode_cursor",
    "fingerprint_of",
    "read_signed",
    "sign_cursor",
]

MAX_HITS = 1000
MAX = 10_000
"""Hits that paging reaches."""
MIN, LARGEST = 1e-6, 1e6
"""Bounds of the largest number of a query vector, whatever the sign. To all zeros everything is alike."""
_SIGNATURE, _FINGERPRINT = 16, 8
"""Bytes, of BLAKE2b (RFC 7693), that a cursor begins with, and of the search that they sign first."""
_PAYLOAD = struct.Struct("<8sqqdI")  # what a cursor says before the row's id and the vector, see `Cursor`
BROKEN = "the cursor is broken; leave it out to begin at the first page"
OF_ANOTHER = "the cursor belongs to another catalog; leave it out to begin at the first page"


@dataclass(frozen=True, eq=False)
class Query:
    """What is searched for.

    Attributes:
        vector: float32 ``[D]``; None where the cursor, which carries it, is given.
        vector_name: Vectors that it is compared with: ``image``, ``text`` or ``product``.
        where: A filter, see `dualtower.search.filters`; empty is none.
        limit: Hits per page.
        cursor: Cursor of the page before; None is the first page.
        group_by_product: One hit per product, its best row.
        without: Ids of rows whose products must not be found, such as the one that similar ones are sought for.
        key: What the vector was made from, such as a text, so that a cursor of another search is told apart.
    """

    vector: np.ndarray | None
    vector_name: str = "image"
    where: str = ""
    limit: int = 10
    cursor: str | None = None
    group_by_product: bool = True
    without: frozenset[str] = frozenset()
    key: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_HITS:
            raise ConfigError(f"limit is {self.limit}; it must be from 1 to {MAX_HITS}")
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
        cursor: Cursor of the page after them; None where there are no more.
        reranked: How many of the best rows the stages of the search have put in a new order; 0 where they had nothing
            to say about this request, and None where the search has no stages.
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
class Cursor:
    """Where a page ends: query, state of the catalog that the search began at, hits so far, score and id of the last.

    The vector goes with the cursor: embedded once more, in another batch, it would differ in its last bits, and so
    would the scores that tell pages apart.
    """

    vector: np.ndarray
    sequence: int
    hits: int = 0
    score: float = float("inf")
    id: str = ""


def decode_cursor(query: Query, info: CatalogInfo, *, newest: int) -> Cursor:
    """Where a query's page begins.

    Args:
        query: With or without a cursor.
        info: What the store holds.
        newest: Sequence number of its newest state.

    Raises:
        ConfigError: The store has no vectors of that kind, the vector does not fit, or paging does not reach so far.
        CursorError: The cursor is broken, or of another search or catalog.
    """
    if query.vector_name not in info.vector_names:
        raise ConfigError(f"no {query.vector_name!r} vectors in this catalog; it has: {', '.join(info.vector_names)}")
    position = _read_cursor(query, info, newest=newest)
    if position.vector.shape != (info.dim,):
        raise ConfigError(f"the query has shape {position.vector.shape}, the catalog {info.dim} numbers")
    if position.hits + query.limit > MAX:
        raise ConfigError(f"paging ends after {MAX:,} hits; narrow the search with a filter")
    return position


def encode_cursor(query: Query, position: Cursor, info: CatalogInfo) -> str:
    """A cursor for the page after a place."""
    row_id = position.id.encode(errors="surrogatepass")
    payload = _PAYLOAD.pack(fingerprint_of(query), position.sequence, position.hits, position.score, len(row_id))
    payload += row_id + position.vector.astype("<f4").tobytes()
    return sign_cursor(payload, info)


def sign_cursor(payload: bytes, info: CatalogInfo, *, purpose: bytes = b"") -> str:
    """What a cursor says, signed: one that somebody made up could ask for the work of all pages.

    Args:
        payload: Begins with the fingerprint of its query.
        info: Info of the catalog, whose key signs.
        purpose: Tells kinds of cursors apart: what was signed for one is nothing for another.
    """
    return base64.urlsafe_b64encode(_signature(payload, info, purpose) + payload).decode()


def read_signed(cursor: str, query: Query, info: CatalogInfo, *, purpose: bytes = b"") -> bytes:
    """What `sign_cursor` was given; nothing of it is believed before its signature is found to be this catalog's.

    Raises:
        CursorError: The cursor is broken, or of another search or catalog.
    """
    try:
        signed = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError as error:
        raise CursorError(BROKEN) from error
    payload = signed[_SIGNATURE:]
    if len(payload) < _FINGERPRINT:
        raise CursorError(BROKEN)
    if payload[:_FINGERPRINT] != fingerprint_of(query):
        raise CursorError("the cursor belongs to another search; ask the same query again, or leave the cursor out")
    if not hmac.compare_digest(signed[:_SIGNATURE], _signature(payload, info, purpose)):
        raise CursorError(OF_ANOTHER)
    return payload


def _read_cursor(query: Query, info: CatalogInfo, *, newest: int) -> Cursor:
    """Where the page before ended, or the beginning."""
    if query.cursor is None:
        return Cursor(np.ascontiguousarray(query.vector, np.float32), newest)
    payload = read_signed(query.cursor, query, info)
    try:
        _, sequence, hits, score, length = _PAYLOAD.unpack_from(payload)
        row_id = payload[_PAYLOAD.size : _PAYLOAD.size + length].decode(errors="surrogatepass")
        vector = np.frombuffer(payload, "<f4", offset=_PAYLOAD.size + length).astype(np.float32)
    except (ValueError, struct.error) as error:
        raise CursorError(BROKEN) from error
    if sequence > newest:  # such as of a backup that was put back
        raise CursorError(OF_ANOTHER)
    return Cursor(vector, sequence, hits, score, row_id)


def _is_usable(vector: np.ndarray) -> bool:
    """Whether products with vectors of a catalog, whose numbers are at most 65,504, stay finite and differ."""
    return bool(MIN <= np.abs(vector).max(initial=0) <= LARGEST)


def _signature(payload: bytes, info: CatalogInfo, purpose: bytes = b"") -> bytes:
    key = info.cursor_key.encode()
    return hashlib.blake2b(payload, key=key, digest_size=_SIGNATURE, person=purpose).digest()


def fingerprint_of(query: Query) -> bytes:
    """Tells a search from others, whatever its page: the first bytes of what its cursors say."""
    asked = repr((query.key, query.vector_name, query.where, query.group_by_product, sorted(query.without)))
    return hashlib.blake2b(asked.encode(errors="surrogatepass"), digest_size=_FINGERPRINT).digest()

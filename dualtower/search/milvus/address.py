"""Addresses of Milvus collections, and the connection to one; what is secret in them is never shown.

::

    milvus:shop.db/shop                                   Milvus Lite in a file, which needs no server
    milvus://host:19530/shop                              a server; the port may be left out
    milvus://host/winter/shop                             in its database `winter`
    milvus://host/shop?secure=1                           over TLS
    milvus://user:password@host/shop?secure=1             as somebody

The token or ``user:password`` of a server is better given in the environment, as ``DUALTOWER_MILVUS_TOKEN``: commands
are seen by everybody on a machine. A certificate of one's own authority is named by gRPC's
``GRPC_DEFAULT_SSL_ROOTS_FILE_PATH``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from dualtower.errors import CatalogError, ConfigError, MissingExtra

__all__ = ["TOKEN_VARIABLE", "Address", "connect", "parse_address", "shown_address", "talking"]

TOKEN_VARIABLE = "DUALTOWER_MILVUS_TOKEN"
PORT = 19530
_EXAMPLES = "write milvus://host:19530/name, milvus://host/database/name?secure=1 or milvus:FILE.db/name"


@dataclass(frozen=True)
class Address:
    """Where a collection lies.

    Attributes:
        uri: Address of the server or file, as pymilvus takes it.
        collection: Its name.
        database: Database of the server; empty is the default one.
        token: What the server asks for; never shown.
        shown: The address for messages, without what is secret.
    """

    uri: str
    collection: str
    database: str = ""
    token: str = field(default="", repr=False)
    shown: str = ""


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        ConfigError: It names no server or file, or no collection, or says something unknown.
    """
    shown = shown_address(text)
    if not text.startswith("milvus://"):
        file, _, name = text.removeprefix("milvus:").rpartition("/")
        if not file:
            raise ConfigError(f"{shown!r} names no collection; {_EXAMPLES}")
        return Address(str(Path(file).resolve()), _checked(name, shown), shown=shown)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or PORT
    except ValueError:  # its message holds what was given
        raise ConfigError(f"{shown!r} is no address; {_EXAMPLES}") from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    secure = options.pop("secure", "0")
    if options or secure not in ("0", "1"):
        raise ConfigError(f"{shown!r} says something unknown behind the question mark; it may say secure=1 or secure=0")
    *database, name = parts.path.removeprefix("/").split("/")
    if not host or len(database) > 1:
        raise ConfigError(f"{shown!r} names no server or no collection; {_EXAMPLES}")
    token = os.environ.get(TOKEN_VARIABLE, "")
    if parts.username:
        token = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    host = f"[{host}]" if ":" in host else host
    uri = f"{'https' if secure == '1' else 'http'}://{host}:{port}"
    return Address(uri, _checked(name, shown), "".join(database), token, shown)


def shown_address(where: str | Path) -> str:
    """A folder or an address of Milvus for messages: without user and password."""
    return re.sub(r"^(milvus://)[^/]*@", r"\1", str(where))


def connect(address: Address) -> Any:
    """A client of pymilvus.

    Raises:
        CatalogError: The server does not answer, or does not let us in.
        MissingExtra: pymilvus is not installed.
    """
    try:
        import pymilvus
    except ImportError:
        raise MissingExtra("pymilvus", "milvus") from None
    with talking(address, f"cannot connect to Milvus at {address.shown}"):
        return pymilvus.MilvusClient(address.uri, token=address.token, db_name=address.database)


@contextlib.contextmanager
def talking(address: Address, failure: str = "") -> Iterator[None]:
    """Turn what pymilvus raises into an error of ours.

    Raises:
        CatalogError: Milvus refused, or does not answer.
    """
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        reason = " ".join(str(error.message).split())[:300]
        for secret in filter(None, (address.token, address.token.partition(":")[2])):
            reason = reason.replace(secret, "…")
        message = f"{failure or f'Milvus at {address.shown} refused'}: {reason}"
        # Without its cause, whose trace would show the arguments of the connection.
        raise CatalogError(message) from None


def _checked(name: str, shown: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w{0,200}", name, re.ASCII):
        raise ConfigError(f"{shown!r} names no collection, which consists of letters, digits and _; {_EXAMPLES}")
    return name

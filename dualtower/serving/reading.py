"""From a request to what it says, without a byte read for those who may not, and within bounds for all others."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Coroutine
from dataclasses import replace
from email.message import Message
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from dualtower.search.engine import SearchRequest
from dualtower.serving.guards import Refused, may_write
from dualtower.serving.schemas import MAX_CURSOR, SearchIn

__all__ = ["BoundedRequest", "JsonGauge", "read_search_request", "route_for"]

DEEPEST = 8
"""Lists and objects within each other."""
MAX_VALUES = 100_000
"""Values in a writer's JSON: 200 rows of a hundred attributes each, and more."""
LARGE = 1 << 20
"""Bytes of a body that is read in one go; a multiple of four characters, as base64 comes."""
MAX_ASKED = 200
"""Values of a request's JSON."""
_MARK = re.compile(rb'[][{},"]')
_STRING = re.compile(rb'(?>[^"\\]+|\\.)*+', re.DOTALL)


class JsonGauge:
    """Counts, while a JSON text arrives, how deep it nests and how many values it has.

    A list takes some fifty times the memory of its two characters. What has more than it may is refused before it is
    parsed, and before the rest of it has come.

    Args:
        most: Values: elements of lists, names and values of objects.
        deepest: Lists and objects within each other.
    """

    def __init__(self, *, most: int, deepest: int = DEEPEST) -> None:
        self._most, self._deepest = most, deepest
        self._depth = self._values = 0
        self._in_string, self._held = False, b""

    def feed(self, chunk: bytes) -> None:
        """Count what has come.

        Raises:
            Refused: It is too much.
        """
        chunk, self._held = self._held + chunk, b""
        at = 0
        while at < len(chunk):
            at = self._past_string(chunk, at) if self._in_string else self._past_mark(chunk, at)

    def _past_string(self, chunk: bytes, at: int) -> int:
        found = _STRING.match(chunk, at)
        assert found is not None  # it matches nothing, too
        at = found.end()
        if chunk[at : at + 1] == b"\\":  # what it stands before is still to come
            self._held = chunk[at:]
            return len(chunk)
        self._in_string = at == len(chunk)
        return at + 1

    def _past_mark(self, chunk: bytes, at: int) -> int:
        found = _MARK.search(chunk, at)
        if found is None:
            return len(chunk)
        mark = found[0]
        self._in_string = mark == b'"'
        self._depth += (mark in b"[{") - (mark in b"]}")
        self._values += mark not in b"]}"
        if self._depth > self._deepest:
            raise Refused(422, f"the JSON nests more than {self._deepest} deep")
        if self._values > self._most:
            raise Refused(413, f"the JSON has more than {self._most:,} values; send fewer at a time")
        return found.end()


class BoundedRequest(Request):
    """A request whose JSON is counted while it arrives, and is UTF-8."""

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            Refused: It has more values than it may, or nests deeper.
        """
        if not hasattr(self, "_body"):
            gauge = JsonGauge(most=MAX_ASKED if self.url.path == "/search" else MAX_VALUES)
            chunks = []
            async for chunk in self.stream():
                gauge.feed(chunk)
                chunks.append(chunk)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        """What the body says.

        Raises:
            JSONDecodeError: It is no JSON.
        """
        body = await self.body()
        try:
            return json.loads(
                body.decode()
            )  # of bytes Python would guess the encoding, and the gauge has counted UTF-8
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # another encoding, or a number of thousands of digits
            raise json.JSONDecodeError(str(error)[:100], "", 0) from None


def route_for(token: str | None) -> type[APIRoute]:
    """The kind of route that lets nobody but a holder of the token change anything.

    What is no request is a write. It is refused by its headers alone: of a request that is not allowed, nothing is
    read.

    Args:
        token: The writers' token; None lets nobody write.
    """

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            answer = super().get_route_handler()
            is_open = set(self.methods or ()) <= {"GET", "HEAD"} or self.path == "/search"

            async def guarded(request: Request) -> Response:
                if not is_open:
                    _check_writer(request.headers.get("authorization"), token)
                return await answer(BoundedRequest(request.scope, request.receive))

            return guarded

    return GuardedRoute


async def read_search_request(request: Request) -> SearchRequest:
    """A request of JSON or of a form.

    Raises:
        RequestValidationError: It is none.
        HTTPException: It is neither JSON nor a form, or too much of it.
    """
    kind = Message()
    kind["content-type"] = request.headers.get("content-type", "")
    try:
        if kind.get_content_type() == "multipart/form-data":
            if str(kind.get_param("charset", "utf-8")).lower() not in ("utf-8", "utf8", "us-ascii"):
                raise HTTPException(400, "the form cannot be read: send it in UTF-8")
            return await _read_form(request)
        if kind.get_content_type() == "application/json":
            body = await request.body()
            if len(body) <= LARGE:
                return SearchIn.model_validate_json(body).search_request()
            return await run_in_threadpool(_read_large, body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from error
    except ValueError as error:  # of what is too large for pydantic to be asked at once
        raise HTTPException(422, f"the request cannot be read: {str(error)[:100]}") from error
    raise HTTPException(415, "send application/json or multipart/form-data")


def _read_large(body: bytes) -> SearchRequest:
    """A request of JSON with a large image, read in pieces, between which other threads have their turn."""
    values = json.loads(body.decode())
    image = values.pop("image", None) if isinstance(values, dict) else None
    if not isinstance(image, str):  # then something else is wrong with it
        return SearchIn.model_validate_json(body).search_request()
    search_request = SearchIn.model_validate(values).search_request()
    pieces = (image[start : start + LARGE] for start in range(0, len(image), LARGE))
    return replace(search_request, image=b"".join(base64.b64decode(piece, validate=True) for piece in pieces))


async def _read_form(request: Request) -> SearchRequest:
    try:
        form = await request.form(max_files=1, max_fields=30, max_part_size=MAX_CURSOR)
    except Refused:
        raise
    except (MultiPartException, HTTPException, UnicodeError) as error:
        raise HTTPException(400, f"the form cannot be read: {getattr(error, 'detail', error)}") from error
    try:
        values: dict[str, Any] = {name: v for name, v in form.items() if not isinstance(v, UploadFile)}
        if negative_texts := [word for word in form.getlist("negative_texts") if isinstance(word, str)]:
            values["negative_texts"] = negative_texts
        search_request, file = SearchIn.model_validate(values).search_request(), form.get("image")
        return (
            replace(search_request, image=await file.read() or None) if isinstance(file, UploadFile) else search_request
        )
    finally:
        await form.close()


def _check_writer(authorization: str | None, token: str | None) -> None:
    if token is None:
        raise HTTPException(403, "this service is read-only; start it with --token-file to allow writes")
    if not may_write(authorization, token):
        raise HTTPException(401, "writing needs Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"})

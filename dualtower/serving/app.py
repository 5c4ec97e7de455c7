"""The HTTP service: search, items, the page. Routes are thin; the work is the search engine's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib import resources
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BeforeValidator
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from dualtower.data.image_metadata import without_metadata
from dualtower.errors import BrokenImage, ConfigError, CursorError, DataError, DualTowerError, FilterError, UnknownRow
from dualtower.inference.explain import Explanation, draw_explanation
from dualtower.search.engine import SearchEngine
from dualtower.search.ingest.thumbnails import media_type
from dualtower.search.records import StoredRow, stored_attributes
from dualtower.serving.batching import QueueFull
from dualtower.serving.connections import GONE
from dualtower.serving.guards import HAS_GONE, Guard
from dualtower.serving.reading import read_search_request, route_for
from dualtower.serving.schemas import Answer, CatalogOut, ExplanationOut, ItemChange, ItemIn, ItemOut, SearchIn
from dualtower.serving.service import SearchService
from dualtower.serving.writes import check_whole

__all__ = ["create_app"]

MAX_BYTES = 16_000_000
MAX_ITEMS = 200
PUT_OFF = 1.0
"""Seconds until those are answered for whom there is no room; or they would ask again at once."""
PAGE = {"style.css": "text/css; charset=utf-8", "search.js": "text/javascript; charset=utf-8"}
SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": SearchIn.model_json_schema()},
            "multipart/form-data": {"schema": SearchIn.form_schema()},
        },
    }
}
log = logging.getLogger(__name__)

RowId = Annotated[str, BeforeValidator(unquote), Path(max_length=500, description="A slash in it is %2F.")]
Where = Annotated[str, Query(max_length=4000)]
Limit = Annotated[int, Query(ge=1, le=100)]
Cursor = Annotated[str | None, Query(max_length=20_000)]
WRITER = [Depends(HTTPBearer(auto_error=False, description="Token of the writers; checked before all else."))]


class Service(Guard):
    """The guarded application, and the shop behind it.

    Args:
        app: FastAPI's.
        shop: Answers.
        loopback_only: See `Guard`.
    """

    def __init__(self, app: FastAPI, shop: SearchService, *, loopback_only: bool) -> None:
        super().__init__(app, most_bytes=MAX_BYTES, loopback_only=loopback_only, answered=shop.metrics.request)
        self.shop = shop


def create_app(
    load: Callable[[], SearchEngine], *, token: str | None = None, waiting: int = 256, loopback_only: bool = True
) -> Service:
    """Build the service.

    Args:
        load: Opens the catalog and its model; called now, and again on ``POST /reload``.
        token: What writers must send as ``Authorization: Bearer …``; None lets nobody write.
        waiting: Requests that may wait; further ones get 429.
        loopback_only: Answer only to names of this machine.
    """
    shop = SearchService(load, waiting=waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await shop.close()

    app = FastAPI(
        title="dualtower",
        description="Search a catalog by text, by image, or by both.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.router.route_class = route_for(token)
    _add_errors(app)
    _add_search(app, shop)
    _add_items(app, shop)
    _add_page(app, shop)
    return Service(app, shop, loopback_only=loopback_only)


def _add_errors(app: FastAPI) -> None:
    def says(status: int, detail: str, **headers: str) -> JSONResponse:
        return JSONResponse({"detail": detail}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def unusable(_: Request, error: RequestValidationError) -> JSONResponse:
        return says(422, _in_words(error.errors()))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> JSONResponse:
        return says(HAS_GONE, "the client has gone")

    @app.exception_handler(QueueFull)
    async def busy(_: Request, __: QueueFull) -> JSONResponse:
        await asyncio.sleep(PUT_OFF)
        return says(429, "too many requests wait; ask again in a moment", **{"retry-after": "1"})

    @app.exception_handler(DualTowerError)
    async def refused(_: Request, error: DualTowerError) -> JSONResponse:
        if isinstance(error, FilterError | CursorError | DataError | ConfigError):  # what was asked is at fault
            return says(422, error.reason if isinstance(error, BrokenImage) else str(error))
        log.error("%s", error)
        return says(500, "the server failed to answer; its log says why")

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        return says(500, "the server failed to answer; its log says why")


def _add_search(app: FastAPI, shop: SearchService) -> None:
    @app.post("/search", response_model=Answer, openapi_extra=SEARCH_BODY)
    async def search(request: Request) -> Response:
        """Find products by text, by image (JSON with base64, or a multipart form), or by both."""
        search_request = await read_search_request(request)
        page = await shop.answer(search_request, is_moot=lambda: GONE in request.scope)
        if page is None:
            raise ClientDisconnect
        return JSONResponse(page.to_dict())

    @app.get("/items/{row_id:path}/similar", response_model=Answer)
    async def similar(row_id: RowId, where: Where = "", limit: Limit = 10, cursor: Cursor = None) -> Any:
        """Products like one of the catalog."""
        find = partial(shop.engine.similar, row_id, where=where, limit=limit, cursor=cursor)
        page = await shop.lookups.run(find)
        if page is None:
            raise HTTPException(404, "there is no such row")
        return JSONResponse(page.to_dict())

    @app.get("/items/{row_id:path}/explain", response_model=ExplanationOut)
    async def why(row_id: RowId, text: Annotated[str, Query(min_length=1, max_length=500)]) -> Any:
        """Which words and which regions of the image made the score of a text and a row."""
        found = await shop.explain(text, row_id)
        if found is None:
            raise HTTPException(404, "there is no such row, or it has no image")
        image = await run_in_threadpool(_drawn, found)
        words = [{"word": word, "weight": weight} for word, weight in found.words]
        return {"score": found.score, "method": found.method, "words": words, "image": image}


def _add_items(app: FastAPI, shop: SearchService) -> None:
    def found(row_id: str) -> Any:
        rows = shop.engine.store.get([row_id])
        if not rows:
            raise HTTPException(404, "there is no such row")
        return rows[0]

    def shown(row: StoredRow) -> dict[str, Any]:
        return {"id": row.id, "product_id": row.product_id, "row": {"title": row.title, "attributes": row.attributes}}

    @app.get("/items/{row_id:path}/image", response_class=Response)
    def image(row_id: RowId) -> Response:
        """The image of a row."""
        content = shop.engine.store.image(row_id)
        if content is None:
            raise HTTPException(404, "there is no such row, or it has no image")
        kind = media_type(content) or "application/octet-stream"
        shown = without_metadata(content) or content  # earlier versions stored it
        return Response(shown, media_type=kind, headers={"cache-control": "private, max-age=600"})

    @app.put("/items", dependencies=WRITER, responses={401: {}, 403: {}, 413: {}})
    async def write(items: list[ItemIn]) -> dict[str, int]:
        """Add rows, replacing those with the same ids; they can be found when this returns.

        A row is replaced as a whole, by one that has a title and an image where the row has them, and its product_id;
        attributes that are not sent are gone. `PATCH /items/{id}` changes attributes alone.
        """
        if len(items) > MAX_ITEMS:
            raise DataError(f"{len(items)} items in one request; send at most {MAX_ITEMS}")
        await run_in_threadpool(check_whole, shop.engine.store, items)
        store, made = await shop.embed([item.product() for item in items])
        await run_in_threadpool(store.upsert, made)
        await run_in_threadpool(shop.reindex_if_stale)
        return {"written": len(made)}

    @app.patch(
        "/items/{row_id:path}",
        response_model=ItemOut,
        dependencies=WRITER,
        responses={401: {}, 403: {}, 404: {}, 413: {}},
    )
    async def change(row_id: RowId, given: ItemChange) -> Any:
        """Change attributes of a row, such as its price; title, image and vectors stay. Answers with the row."""
        store = shop.engine.store
        try:
            new = stored_attributes(store.info, row_id, given.attributes)
            await run_in_threadpool(store.update_attributes, {row_id: new})
        except UnknownRow:
            raise HTTPException(404, "there is no such row") from None
        return shown(await run_in_threadpool(found, row_id))

    @app.delete("/items/{row_id:path}", dependencies=WRITER, responses={401: {}, 403: {}, 404: {}})
    async def remove(row_id: RowId) -> dict[str, int]:
        """Remove a row."""
        if not await run_in_threadpool(shop.engine.store.delete, [row_id]):
            raise HTTPException(404, "there is no such row")
        return {"removed": 1}

    @app.post("/reload", dependencies=WRITER, responses={401: {}, 403: {}})
    async def reload() -> dict[str, int]:
        """Open catalog and model anew, without a failed request."""
        await run_in_threadpool(shop.reload)
        return {"rows": len(shop.engine.store)}

    # Last: a row's id may hold slashes, and must not swallow the routes above.
    @app.get("/items/{row_id:path}", response_model=ItemOut, responses={404: {}})
    def item(row_id: RowId) -> Any:
        """One row."""
        return shown(found(row_id))


def _add_page(app: FastAPI, shop: SearchService) -> None:
    page = resources.files("dualtower.serving") / "page"
    index = (page / "index.html").read_bytes()
    assets = {name: (page / name).read_bytes() for name in PAGE}

    @app.get("/", include_in_schema=False)
    def start() -> Response:
        return Response(index, media_type="text/html; charset=utf-8")

    @app.get("/page/{name}", include_in_schema=False)
    def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404, "there is no such file")
        return Response(assets[name], media_type=PAGE[name], headers={"cache-control": "no-cache"})

    @app.get("/about", response_model=CatalogOut)
    async def about(where: Where = "") -> Any:
        """What the catalog holds: rows, kinds of vectors, attributes with the most frequent values."""
        store = shop.engine.store
        attributes: dict[str, Any] = {}
        for name, counts in (await shop.lookups.run(partial(store.counts, where))).items():
            if counts.type == "text":
                values = [{"value": value, "count": count} for value, count in counts.values]
                attributes[name] = {"type": "text", "values": values, "approximate": counts.approximate}
            else:
                span = {"low": counts.low, "high": counts.high}
                attributes[name] = {"type": "number", **span, "approximate": counts.approximate}
        info = store.info
        return {
            "card": info.card,
            "rows": await run_in_threadpool(len, store),
            "vector_names": list(info.vector_names),
            "attributes": attributes,
        }

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        """Whether the service can answer."""
        return {"status": "ok", "rows": len(shop.engine.store)}

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(shop.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _drawn(found: Explanation) -> str:
    """As a data URL."""
    draw_explanation(found, height=200).save(buffer := io.BytesIO(), "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _in_words(errors: Any) -> str:
    """What is wrong with each field, without the values that were sent."""
    return "; ".join(f"{'.'.join(str(part) for part in e['loc']) or 'body'}: {e['msg']}" for e in list(errors)[:5])

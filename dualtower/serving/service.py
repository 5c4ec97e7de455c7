"""What the service has open: the catalog, its model, and the threads that answer with them."""

from __future__ import annotations

import copy
import gc
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dualtower.errors import DualTowerError
from dualtower.inference.explain import Explanation, explain
from dualtower.models.dual_tower import DualTower
from dualtower.search.engine import SearchEngine, SearchRequest
from dualtower.search.ingest.embed import embed
from dualtower.search.local.store import LocalStore
from dualtower.search.queries import Page
from dualtower.search.records import CatalogInfo, EmbeddedItem
from dualtower.search.store import Store
from dualtower.serving.batching import Background, Batcher
from dualtower.serving.decoding import Decoder
from dualtower.serving.metrics import Metrics
from dualtower.types import Item

__all__ = ["SearchService"]

EXPLAINED = 16
"""Explanations that may wait; each takes as long as some hundred requests."""
AT_ONCE = 4
"""Items that are embedded together; what else the background has to do waits for so many."""
log = logging.getLogger(__name__)


class SearchService:
    """The search engine that answers now; another can take its place between two batches.

    Args:
        load: Makes a search engine.
        waiting: Requests that may wait.
    """

    def __init__(self, load: Callable[[], SearchEngine], *, waiting: int) -> None:
        self._load, self._tidying = load, threading.Lock()
        self.reload()
        self.batcher: Batcher[SearchRequest, Any] = Batcher(self._answer, waiting=waiting)
        self.background = Background(waiting=waiting)  # of the writers alone
        self.explaining = Background(waiting=EXPLAINED)
        self.lookups = Background(waiting=waiting, low_priority=False)
        self.decoder = Decoder(waiting=waiting)
        self.metrics = Metrics(rows=lambda: len(self.engine.store), waiting=lambda: len(self.batcher))

    @property
    def engine(self) -> SearchEngine:
        """Answers requests, in their thread."""
        return self._opened.engine

    def _answer(self, search_requests: list[SearchRequest]) -> list[Any]:
        self.metrics.batch(len(search_requests))
        return self.engine.find_many(search_requests)

    def reload(self) -> None:
        """Open catalog and model anew; requests that are being answered end with the old ones."""
        engine = self._load()
        self._opened = _Opened(engine, _apart(engine.model), _apart(engine.model))
        # What has been opened stays. Each time the garbage collector looked through it, all answers would wait for a
        # quarter of a second.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        _in_background(partial(self.reindex_if_stale, thorough=True), "cache")

    def reload_in_background(self) -> None:
        """Reload while requests are answered; where that fails, the log says why, and all stays as it was."""
        _in_background(self.reload, "reload")

    async def close(self) -> None:
        """Answer what has been asked, then stop."""
        await self.batcher.close()
        for aside in (self.background, self.explaining, self.lookups, self.decoder):
            aside.close()
        gc.unfreeze()  # the interpreter takes apart only what is not frozen, and libraries complain about the rest

    async def embed(self, items: list[Item]) -> tuple[Store, list[EmbeddedItem]]:
        """Products as items of the store that answers now, made in the background.

        Raises:
            QueueFull: So much waits for the background that it takes no more.
            BrokenImage: An image cannot be read.
        """
        opened, embedded = self._opened, list[EmbeddedItem]()
        for start in range(0, len(items), AT_ONCE):
            some = items[start : start + AT_ONCE]
            embedded += await self.background.run(partial(_items, opened.writing, some, opened.engine.store.info))
        return opened.engine.store, embedded

    async def answer(
        self, search_request: SearchRequest, *, is_moot: Callable[[], bool] = lambda: False
    ) -> Page | None:
        """Answer a request; its image is decoded before it joins others.

        Args:
            search_request: What is asked.
            is_moot: See `Batcher.ask`.

        Raises:
            QueueFull: Too many wait already.
            DualTowerError: What is wrong with the request.
        """
        if isinstance(search_request.image, bytes):
            decode_query_image = partial(self.engine.decode_query_image, for_page=search_request.cursor is not None)
            search_request = replace(
                search_request, image=await self.decoder.decode(search_request.image, decode_query_image)
            )
        page = await self.batcher.ask(search_request, is_moot=is_moot)
        if isinstance(page, DualTowerError):
            raise page
        return page

    async def explain(self, text: str, row_id: str) -> Explanation | None:
        """Say which words and regions made the score of a text and a row; None where it has no image.

        Raises:
            QueueFull: Too many wait already.
            ConfigError: The model has one tower.
        """
        opened = self._opened
        for modality in ("text", "image"):
            opened.explaining.config.require(modality, "a text and an image cannot be compared")

        def work() -> Explanation | None:
            content = opened.engine.store.image(row_id)
            return None if content is None else explain(opened.explaining, text, content)

        return await self.explaining.run(work)

    def reindex_if_stale(self, *, thorough: bool = False) -> None:
        """Build the indexes anew beside the running search, if too much came since they were built.

        Args:
            thorough: Or if they are damaged; their files are read for it.
        """
        store = self.engine.store
        if isinstance(store, LocalStore) and not self._tidying.locked() and store.is_stale(thorough=thorough):
            _in_background(partial(self._rebuild, store), "indexes")

    def _rebuild(self, store: LocalStore) -> None:
        with self._tidying:
            store.rebuild(threads=1)


@dataclass(frozen=True)
class _Opened:
    """A search engine, and its model once more for each of those who compute beside it."""

    engine: SearchEngine
    writing: DualTower
    explaining: DualTower


def _apart(model: DualTower) -> DualTower:
    """The same model with a tokenizer of its own, which bears one caller at a time."""
    apart = copy.copy(model)
    apart.tokenizer = copy.deepcopy(apart.tokenizer)
    return apart


def _in_background(work: Callable[[], None], name: str) -> None:
    """Do some work in a thread of its own; the search goes on without it, also where it fails."""

    def run() -> None:
        try:
            work()
        except DualTowerError as error:
            log.error("%s", error)

    threading.Thread(target=run, daemon=True, name=name).start()


def _items(model: DualTower, items: list[Item], info: CatalogInfo) -> list[EmbeddedItem]:
    return list(embed(model, items, info))

"""What the service has open: the catalogue, its model, and the threads that answer with them."""

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
from dualtower.explain import Explanation, explain
from dualtower.model import DualTower
from dualtower.retrieval.finder import Finder, Question
from dualtower.retrieval.indexing import embed
from dualtower.retrieval.local import LocalStore
from dualtower.retrieval.queries import Page
from dualtower.retrieval.records import CatalogueInfo, Item
from dualtower.retrieval.store import Store
from dualtower.serving.batching import Background, Batcher
from dualtower.serving.decoding import Decoder
from dualtower.serving.metrics import Metrics
from dualtower.types import Product

__all__ = ["Shop"]

EXPLAINED = 16
"""Explanations that may wait; each takes as long as some hundred questions."""
AT_ONCE = 4
"""Items that are embedded together; what else the background has to do waits for so many."""
log = logging.getLogger(__name__)


class Shop:
    """The finder that answers now; another can take its place between two batches.

    Args:
        load: Makes a finder.
        waiting: Questions that may wait.
    """

    def __init__(self, load: Callable[[], Finder], *, waiting: int) -> None:
        self._load, self._tidying = load, threading.Lock()
        self.reload()
        self.batcher: Batcher[Question, Any] = Batcher(self._answer, waiting=waiting)
        self.background = Background(waiting=waiting)  # of the writers alone
        self.explaining = Background(waiting=EXPLAINED)
        self.lookups = Background(waiting=waiting, stands_back=False)
        self.decoder = Decoder(waiting=waiting)
        self.metrics = Metrics(rows=lambda: len(self.finder.store), waiting=lambda: len(self.batcher))

    @property
    def finder(self) -> Finder:
        """Answers questions, in their thread."""
        return self._opened.finder

    def _answer(self, questions: list[Question]) -> list[Any]:
        self.metrics.batch(len(questions))
        return self.finder.find_many(questions)

    def reload(self) -> None:
        """Open catalogue and model anew; questions that are being answered end with the old ones."""
        finder = self._load()
        self._opened = _Opened(finder, _apart(finder.model), _apart(finder.model))
        # What has been opened stays. Each time the garbage collector looked through it, all answers would wait for a
        # quarter of a second.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        _beside(partial(self.tidy, thorough=True), "cache")

    def reload_beside(self) -> None:
        """Reload while questions are answered; where that fails, the log says why, and all stays as it was."""
        _beside(self.reload, "reload")

    async def close(self) -> None:
        """Answer what has been asked, then stop."""
        await self.batcher.close()
        for aside in (self.background, self.explaining, self.lookups, self.decoder):
            aside.close()
        gc.unfreeze()  # the interpreter takes apart only what is not frozen, and libraries complain about the rest

    async def embed(self, products: list[Product]) -> tuple[Store, list[Item]]:
        """Products as items of the store that answers now, made in the background.

        Raises:
            QueueFull: So much waits for the background that it takes no more.
            BrokenImage: A picture cannot be read.
        """
        opened, items = self._opened, list[Item]()
        for start in range(0, len(products), AT_ONCE):
            some = products[start : start + AT_ONCE]
            items += await self.background.run(partial(_items, opened.writing, some, opened.finder.store.info))
        return opened.finder.store, items

    async def answer(self, question: Question, *, is_moot: Callable[[], bool] = lambda: False) -> Page | None:
        """Answer a question; its picture is decoded before it joins others.

        Args:
            question: What is asked.
            is_moot: See `Batcher.ask`.

        Raises:
            QueueFull: Too many wait already.
            DualTowerError: What is wrong with the question.
        """
        if isinstance(question.image, bytes):
            open_picture = partial(self.finder.open_picture, for_page=question.cursor is not None)
            question = replace(question, image=await self.decoder.decode(question.image, open_picture))
        page = await self.batcher.ask(question, is_moot=is_moot)
        if isinstance(page, DualTowerError):
            raise page
        return page

    async def explain(self, text: str, row_id: str) -> Explanation | None:
        """Say which words and regions made the score of a text and a row; None where it has no picture.

        Raises:
            QueueFull: Too many wait already.
            ConfigError: The model has one tower.
        """
        opened = self._opened
        for modality in ("text", "image"):
            opened.explaining.config.require(modality, "a text and an image cannot be compared")

        def work() -> Explanation | None:
            content = opened.finder.store.picture(row_id)
            return None if content is None else explain(opened.explaining, text, content)

        return await self.explaining.run(work)

    def tidy(self, *, thorough: bool = False) -> None:
        """Build the indexes anew beside the running search, if too much came since they were built.

        Args:
            thorough: Or if they are damaged; their files are read for it.
        """
        store = self.finder.store
        if isinstance(store, LocalStore) and not self._tidying.locked() and store.is_stale(thorough=thorough):
            _beside(partial(self._rebuild, store), "indexes")

    def _rebuild(self, store: LocalStore) -> None:
        with self._tidying:
            store.rebuild(threads=1)


@dataclass(frozen=True)
class _Opened:
    """A finder, and its model once more for each of those who compute beside it."""

    finder: Finder
    writing: DualTower
    explaining: DualTower


def _apart(model: DualTower) -> DualTower:
    """The same model with a tokenizer of its own, which bears one caller at a time."""
    apart = copy.copy(model)
    apart.tokenizer = copy.deepcopy(apart.tokenizer)
    return apart


def _beside(work: Callable[[], None], name: str) -> None:
    """Do some work in a thread of its own; the search goes on without it, also where it fails."""

    def run() -> None:
        try:
            work()
        except DualTowerError as error:
            log.error("%s", error)

    threading.Thread(target=run, daemon=True, name=name).start()


def _items(model: DualTower, products: list[Product], info: CatalogueInfo) -> list[Item]:
    return list(embed(model, products, info))

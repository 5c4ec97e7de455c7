"""Answer concurrent questions together: while one batch is computed, the next one gathers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Batcher", "QueueFull"]

LARGEST = 64
"""Questions per batch."""
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class QueueFull(Exception):
    """More questions wait than may."""


class Batcher(Generic[Asked, Answer]):
    """Gathers questions and answers them in one thread, many at a time.

    No clock is involved: a question that finds the thread idle is answered at once, and those that come meanwhile go
    together. Batches grow with the load, and a lone client never waits for company.

    Args:
        answer: ``questions -> answers`` of the same number; runs in a thread of its own.
        waiting: Questions that may wait.
    """

    def __init__(self, answer: Callable[[list[Asked]], Sequence[Answer]], *, waiting: int = 256) -> None:
        self._answer = answer
        self._queue: asyncio.Queue[tuple[Asked, asyncio.Future[Answer]]] = asyncio.Queue(waiting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._task: asyncio.Task[None] | None = None
        self._turn, self._others = asyncio.Lock(), 0

    def __len__(self) -> int:
        """Questions that wait."""
        return self._queue.qsize()

    async def ask(self, question: Asked) -> Answer:
        """Answer one question.

        Raises:
            QueueFull: Too many wait already.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((question, future))
        except asyncio.QueueFull:
            raise QueueFull from None
        return await future

    async def run(self, work: Callable[[], Result]) -> Result:
        """Do other work in the same thread, between two batches: a model and its tokenizer bear one caller at a time.

        A batch waits for one such work at the most, however many are asked for; much work should come in small parts.

        Raises:
            QueueFull: Too many wait already.
        """
        if self._others >= self._queue.maxsize:
            raise QueueFull
        self._others += 1
        try:
            async with self._turn:
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._others -= 1

    async def close(self) -> None:
        """Answer what waits, then stop."""
        while self._task is not None and not self._queue.empty():
            await asyncio.sleep(0.01)
        self._thread.shutdown(wait=True)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < LARGEST and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            asked = [(question, future) for question, future in batch if not future.cancelled()]
            try:
                answers = await loop.run_in_executor(self._thread, self._answer, [question for question, _ in asked])
            except Exception as error:  # the fault of the server, not of one question: everybody learns of it
                for _, future in asked:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(asked, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

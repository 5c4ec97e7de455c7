"""Answer concurrent requests together: while one batch is computed, the next one gathers. The rest is background."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dualtower.threads import background_thread

__all__ = ["Background", "Batcher", "QueueFull"]

LARGEST = 64
"""Requests per batch."""
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class QueueFull(Exception):
    """More waits than may."""


@dataclass(frozen=True)
class _Failed:
    """What stands in place of an answer."""

    error: Exception


class Background:
    """Does what takes longer than a request, one work after the other, in a thread of its own.

    Args:
        waiting: Works that may wait.
        low_priority: Whether the thread computes only what requests leave to it.
    """

    def __init__(self, *, waiting: int = 256, low_priority: bool = True) -> None:
        self._most, self._asked = waiting, 0
        self._thread = background_thread() if low_priority else ThreadPoolExecutor(1, "aside")

    async def run(self, work: Callable[[], Result]) -> Result:
        """Do some work.

        Raises:
            QueueFull: Too much waits already.
        """
        if self._asked >= self._most:
            raise QueueFull
        self._asked += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._asked -= 1

    def close(self) -> None:
        """Stop after what is under way; what still waits is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Batcher(Generic[Asked, Answer]):
    """Gathers requests and answers them in one thread, many at a time.

    No clock is involved: a request that finds the thread idle is answered at once, and those that come meanwhile go
    together. Batches grow with the load, and a lone client never waits for company.

    Args:
        answer: ``requests -> answers`` of the same number; runs in a thread of its own.
        waiting: Requests that may wait.
    """

    def __init__(self, answer: Callable[[list[Asked]], Sequence[Answer]], *, waiting: int = 256) -> None:
        self._answer, self._most = answer, waiting
        self._waiting: deque[tuple[Asked, Callable[[], bool], asyncio.Future[Answer | None]]] = deque()
        self._asked = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def ask(self, search_request: Asked, *, is_moot: Callable[[], bool] = lambda: False) -> Answer | None:
        """Answer one request.

        Args:
            search_request: What is asked.
            is_moot: Asked when the request's turn comes: whether nobody wants the answer any more. It is None then.

        Raises:
            QueueFull: Too many wait already.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        if len(self._waiting) >= self._most:
            raise QueueFull
        future: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((search_request, is_moot, future))
        self._asked.set()
        return await future

    async def close(self) -> None:
        """Answer what waits, then stop."""
        while self._task is not None and self._waiting:
            await asyncio.sleep(0.01)
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)  # behind the batch under way
        self._thread.shutdown(wait=True)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._asked.wait()
            futures, answers = await loop.run_in_executor(self._thread, self._answer_waiting)
            for future, answer in zip(futures, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, _Failed):
                    future.set_exception(answer.error)
                else:
                    future.set_result(answer)
            if not self._waiting:
                self._asked.clear()

    def _answer_waiting(self) -> tuple[list[asyncio.Future[Answer | None]], Sequence[Answer | _Failed | None]]:
        """Answer the requests that wait when the thread gets to them, which may be more than when it was called."""
        moot, asked, futures = list[Any](), list[Asked](), list[Any]()
        while self._waiting and len(asked) < LARGEST:
            search_request, is_moot, future = self._waiting.popleft()
            if is_moot() or future.cancelled():
                moot.append(future)
            else:
                asked.append(search_request)
                futures.append(future)
        answers = self._answers(asked) if asked else []
        return futures + moot, [*answers, *[None] * len(moot)]

    def _answers(self, search_requests: list[Asked]) -> list[Answer | _Failed]:
        """One request's error is one request's answer: what fails is halved until it stands alone."""
        try:
            answers: list[Answer | _Failed] = list(self._answer(search_requests))
            if len(answers) != len(search_requests):
                raise RuntimeError(f"{len(answers)} answers to {len(search_requests)} requests")
            return answers
        except Exception as error:
            if len(search_requests) == 1:
                return [_Failed(error)]
            middle = len(search_requests) // 2
            return self._answers(search_requests[:middle]) + self._answers(search_requests[middle:])

"""Requests that go together: what is asked for while one is under way is asked for in the next one, once.

Ten thousand streams that look at the same thousand executions cost some requests, not ten thousand; a lookup by itself
costs what it cost before.  Whoever asks gets what was there after the call began: nobody is given the answer of a
request that was under way already, so what was subscribed to before is not missed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from itertools import islice
from typing import Generic, TypeVar

from runtape.ports.errors import Transient, Unavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MOST = 100
"""Keys of one request: about as many documents come in a server's first answer."""


class Together(Generic[K, V]):
    """Looks keys up with `fetch`, which is given each key once and leaves out those that are not there.

    What only has to be done, and may be done twice, goes the same way: nothing is there afterwards.
    """

    def __init__(self, fetch: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._fetch = fetch
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """Return what is there under `key`, None when nothing is.  Raises: what the request raises."""
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_seen)
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask(), name="together")
        return await asyncio.shield(answer)  # who leaves takes nothing from the others

    async def _ask(self) -> None:
        try:
            while self._waiting:
                await self._answer({key: self._waiting.pop(key) for key in list(islice(self._waiting, MOST))})
        finally:
            self._asking = None
            for answer in self._waiting.values():
                answer.cancel()
            self._waiting.clear()

    async def _answer(self, asked: "Mapping[K, asyncio.Future[V | None]]") -> None:
        try:
            found = await self._fetch(list(asked))
        except Transient as error:
            self._fail(asked, error)
            if isinstance(error, Unavailable):  # it took its time: those who came meanwhile need not wait as long again
                self._fail(self._waiting, error)
                self._waiting.clear()
        except Exception as error:
            if len(asked) == 1:
                self._fail(asked, error)
                return
            # One of them cannot be read: that is the failure of whoever asked for it.
            for key, answer in asked.items():
                await self._answer({key: answer})
        except BaseException:
            for answer in asked.values():
                answer.cancel()
            raise
        else:
            for key, answer in asked.items():
                answer.set_result(found.get(key))

    def _fail(self, asked: "Mapping[K, asyncio.Future[V | None]]", error: Exception) -> None:
        for answer in asked.values():
            answer.set_exception(error)


def _seen(answer: "asyncio.Future[V | None]") -> None:
    """Take note of a failure that nobody has waited for."""
    if not answer.cancelled():
        answer.exception()

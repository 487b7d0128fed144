"""An event loop with virtual time, for several processes at once that a seed lets run, wait, stop and die.

Theory of operation
===================
Every callback belongs to a `Process`: to the one that it was made in, which its `contextvars` context tells.  Each
process has its own queue, served first in, first out as asyncio promises; which process is served next is drawn from
the seed.  When no process has anything to do, time moves to the next timer, at once.  There is no selector and no
thread, so the order of everything follows from the seed alone.

* A process that is *killed* is never served again: no ``finally`` and no ``except`` of it runs, as after ``kill -9``.
  What it had asked of others goes on its way, because that belongs to the *world*, which never
  stops.
* A process that is *paused* is not served while time goes on; all that it missed comes at once when it is resumed.

Tasks of the dead are kept until the loop is closed: a coroutine that is collected before runs its ``finally``.
"""

import asyncio
import contextvars
import gc
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any


class Process:
    """Something that runs by itself, can be paused, and dies as a whole."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.ready: deque[asyncio.Handle] = deque()
        self.queued = False
        """Whether it is among those that are to be served."""
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)

    def __repr__(self) -> str:
        return self.name


_PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


class Stuck(Exception):
    """Nobody has anything to do and no timer is set, or there is no end to what is to be done."""


class SimulatedLoop(asyncio.AbstractEventLoop):
    """Runs the world and the processes in it until a coroutine is done."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._now_s = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle, Process]] = []
        self._timer_count = 0
        self._runnable: list[Process] = []
        self._world = Process("world")
        self.world_context = self._world.context
        """For callbacks that belong to no process but to what lies between them: networks, servers, time."""
        self._tasks: list[asyncio.Task[Any]] = []
        self._closed = False
        self.steps = 0
        """How many callbacks have run."""
        self.halted = False
        """Set to end the run after the present turn."""
        self.on_error: Callable[[dict[str, Any]], None] = _raise_it

    def process(self, context: contextvars.Context | None) -> Process:
        """Return the process that `context`, or the callback that runs now, belongs to."""
        if context is None:
            return _PROCESS.get(self._world)
        return context.get(_PROCESS, self._world)

    def run(self, main: Coroutine[Any, Any, None], *, limit: int) -> None:
        """Run `main` in the world until it is done, and raise what it raised.

        Raises: Stuck, after `limit` callbacks at the latest.
        """
        with _exactly_ordered():
            events._set_running_loop(self)
            try:
                task = self.create_task(main, context=self._world.context)
                while not task.done() and not self.halted:
                    if self.steps > limit:
                        raise Stuck(f"no end after {limit} steps")
                    self._turn()
            finally:
                events._set_running_loop(None)
        if task.done():
            task.result()

    def _turn(self) -> None:
        if not self._runnable:
            self._advance()
            return
        place = int(self._random.random() * len(self._runnable)) if len(self._runnable) > 1 else 0
        process = self._runnable[place]
        ready = process.ready
        for _ in range(len(ready)):
            if process.paused or not ready:
                break
            handle = ready.popleft()
            if not handle._cancelled:
                self.steps += 1
                handle._run()
        if process.queued and not ready:
            self._leave(process)

    def _leave(self, process: Process) -> None:
        process.queued = False
        self._runnable.remove(process)

    def _join(self, process: Process) -> None:
        if not process.queued and not process.paused:
            process.queued = True
            self._runnable.append(process)

    def _advance(self) -> None:
        """Go to the next moment at which a process has something to do."""
        if not self._timers:
            raise Stuck("nothing is left that could happen")
        self._now_s = self._timers[0][0]
        while self._timers and self._timers[0][0] <= self._now_s:
            _, _, handle, process = heapq.heappop(self._timers)
            if not handle._cancelled:
                self._enqueue(process, handle)

    def _enqueue(self, process: Process, handle: asyncio.Handle) -> None:
        if not process.alive or self._closed:
            return
        process.ready.append(handle)
        self._join(process)

    def kill(self, process: Process) -> None:
        """Let nothing of `process` run any more."""
        process.alive = False
        process.ready.clear()

    def pause(self, process: Process) -> None:
        """Let nothing of `process` run until `resume`."""
        process.paused = True
        if process.queued:
            self._leave(process)

    def resume(self, process: Process) -> None:
        """Let `process` go on."""
        process.paused = False
        if process.ready:
            self._join(process)

    # What asyncio and the product ask of a loop.

    def time(self) -> float:
        return self._now_s

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(self.process(context), handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle, self.process(context)))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def in_world(self, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Call back after `delay_s`, whatever becomes of the process that asks for it."""
        self.call_at(self._now_s + delay_s, callback, *args, context=self._world.context)

    def create_task(
        self,
        coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name or "task", context=context)  # pyright: ignore[reportArgumentType]
        self._tasks.append(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self._closed

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        return

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            self.on_error(context)

    def close(self) -> None:
        """End all that never ended, without a word: what it does on its way out leads nowhere."""
        self._closed = True
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]
                coroutine = task.get_coro()
                with suppress(BaseException):  # "coroutine ignored GeneratorExit", as it waits for what never comes
                    if coroutine is not None:
                        coroutine.close()
        self._tasks.clear()
        self._timers.clear()
        self._runnable.clear()


def _raise_it(context: dict[str, Any]) -> None:
    raise context.get("exception") or RuntimeError(context["message"])


@contextmanager
def _exactly_ordered() -> Generator[None, None, None]:
    """Keep the collector away: when it ends a forgotten coroutine would depend on what ran before in this process."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()

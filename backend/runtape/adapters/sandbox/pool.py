"""Armed boxes in stock.

Theory of operation.  The keeper makes boxes; each arrives as four descriptors and waits here until a run takes it.
The stock is filled up again a moment after a box was taken, so that the making of the next one does not compete with
the program that has just begun; an empty stock is filled at once, and who finds it empty waits in line.  Boxes are
made with the work directory that this installation gives by default; for another size one is made to order.

The lock.  ``<data>/sandbox.lock`` is locked before the keeper starts, and keeper and boxes hold it.  It is free only
when all of them are dead, however they died; so whoever gets it knows that no program of an earlier service runs.

Keeper lost.  Its socket reads end of file, and its boxes die by their death signals.  Those in stock are dropped;
runs are told once the box is seen dead; a new keeper is started behind the lock, which waits for the same.  While no
new one can be had, runs are refused and it is tried on.
"""

import asyncio
import contextlib
import itertools
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from runtape.ports.errors import InfrastructureError, SandboxUnavailable, Transient

from .armed_box import ArmedBox
from .keeper import wire
from .keeper_process import KeeperProcess, lock

log = structlog.get_logger(__name__)

Shape = tuple[int, int]
"""(bytes, inodes) of a work directory."""

_REFILL_DELAY_S: Final = 0.03
_RETRY_DELAY_S: Final = 0.2
_FAILURES_TO_REFUSE: Final = 5
_OPEN_TIMEOUT_S: Final = 10.0
_RESTARTS_TO_REFUSE: Final = 3
_RESTART_DELAYS_S: Final = (0.0, 0.1, 0.5, 2.0, 5.0)

_LOST: Final = wire.Reaped("keeper_lost", 0, 0, 0)


class BoxPool:
    """The stock of one keeper, replaced with it when it dies."""

    def __init__(
        self, data_dir: Path, opening: wire.Opening, shape: Shape, *, size: int, lock_timeout_s: float
    ) -> None:
        self._lock_path = data_dir / "sandbox.lock"
        self._lock_timeout_s = lock_timeout_s
        self._opening = opening
        self._shape = shape
        self._size = size
        self._stock: deque[ArmedBox] = deque()
        self._waiting: defaultdict[Shape, deque[asyncio.Future[ArmedBox]]] = defaultdict(deque)
        self._asked_for: defaultdict[Shape, int] = defaultdict(int)
        self._taken: dict[int, tuple[ArmedBox, Callable[[wire.Reaped], None]]] = {}
        self._orphans: set[ArmedBox] = set()
        """Boxes of a lost keeper whose death is awaited here, as nobody else tells it."""
        self._refill: asyncio.TimerHandle | None = None
        self._failures = 0
        self._keeper: KeeperProcess | None = None
        self._opened: asyncio.Future[wire.Opened] | None = None
        self._restart: asyncio.Task[None] | None = None
        self._refused: InfrastructureError | None = None
        self._closed = False
        self.mode = wire.Opened("none", "")

    # Opening and closing

    async def open(self) -> None:
        """Start the keeper and return when the first box is armed.

        Raises: SandboxUnavailable; Transient, when an earlier service of this data folder still lives.
        """
        await self._start_keeper()
        try:
            await self.ready()
        except Transient as error:
            raise SandboxUnavailable(str(error)) from error

    async def _start_keeper(self) -> None:
        lock_fd = await lock(self._lock_path, self._lock_timeout_s)
        self._opened = asyncio.get_running_loop().create_future()
        self._keeper = KeeperProcess(lock_fd, self._on_message, self._on_lost)
        self._keeper.send("open", *self._opening)
        try:
            self.mode = await asyncio.wait_for(self._opened, _OPEN_TIMEOUT_S)
        except BaseException as error:
            keeper, self._keeper = self._keeper, None
            if keeper is not None:
                await keeper.close()
            if isinstance(error, TimeoutError):
                raise Transient("the sandbox's keeper does not answer") from error
            raise
        self._failures = 0
        self._refused = None
        self._fill()

    async def close(self) -> None:
        """Drop the stock, end the keeper with all its boxes, and refuse who waits.  Idempotent."""
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restart
        if self._refill is not None:
            self._refill.cancel()
        self._drop_stock()
        self._refuse(Transient("the sandbox is closed"))
        if self._keeper is not None:
            await self._keeper.close()
            self._keeper = None

    async def ready(self) -> None:
        """Return when a box is in stock.  Raises: SandboxUnavailable, Transient."""
        if not self._stock:
            self.give_back(await self.take(self._shape, lambda _: None))

    @property
    def armed_limits(self) -> tuple[int, int] | None:
        """(memory, processes) that a box's cgroup is armed with; None where boxes have none."""
        return None if self.mode.cgroups == "none" else (self._opening.memory_bytes, self._opening.processes)

    # Taking

    async def take(self, shape: Shape, on_reaped: Callable[[wire.Reaped], None]) -> ArmedBox:
        """Take a box from the stock, or wait for one.

        `on_reaped` is called when the box was killed and nothing of it is left, until `release` or `give_back`.
        Raises: Transient, SandboxUnavailable.
        """
        if self._refused is not None:
            raise self._refused
        if self._closed:
            raise Transient("the sandbox is closed")
        if shape == self._shape and self._stock:
            box = self._stock.popleft()
            if not self._stock:
                self._fill()
            elif self._refill is None:
                self._refill = asyncio.get_running_loop().call_later(_REFILL_DELAY_S, self._fill)
        else:
            waiter: asyncio.Future[ArmedBox] = asyncio.get_running_loop().create_future()
            self._waiting[shape].append(waiter)
            self._fill()
            try:
                box = await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                    self.give_back(waiter.result())
                raise
        self._taken[box.number] = (box, on_reaped)
        return box

    def give_back(self, box: ArmedBox) -> None:
        """Return a box that was not used."""
        self._taken.pop(box.number, None)
        self._offer(box)

    def release(self, box: ArmedBox) -> None:
        """Close a box whose end is known."""
        self._taken.pop(box.number, None)
        if box in self._orphans:
            self._forget_orphan(box)
        box.close()

    def bound_memory(self, box: ArmedBox, memory_bytes: int) -> None:
        """Have the keeper kill `box` when it holds more; needed where cgroups do not."""
        if self._keeper is not None:
            self._keeper.send("bound", box.number, memory_bytes)

    def bound_cpu(self, box: ArmedBox, cpu_ns: int) -> None:
        """Have the keeper kill `box` when it has used `cpu_ns`, from now on."""
        if self._keeper is not None:
            self._keeper.send("bound_cpu", box.number, cpu_ns)

    # Filling

    def _fill(self) -> None:
        """Ask for as many boxes as are wanted and not on their way."""
        self._refill = None
        if self._keeper is None or self._closed:
            return
        for shape in {self._shape, *self._waiting}:
            wanted = sum(not waiter.done() for waiter in self._waiting[shape])
            if shape == self._shape:
                wanted += self._size - len(self._stock)
            for _ in range(wanted - self._asked_for[shape]):
                self._asked_for[shape] += 1
                self._keeper.send("arm", *shape)

    def _offer(self, box: ArmedBox) -> None:
        waiting = self._waiting[box.shape]
        while waiting:
            waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(box)
                return
        if box.shape == self._shape and not self._closed and self._keeper is not None:
            self._stock.append(box)
        else:
            box.close()

    def _drop_stock(self) -> None:
        while self._stock:
            self._stock.popleft().close()

    def _refuse(self, error: InfrastructureError) -> None:
        for waiting in self._waiting.values():
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_exception(error)
        self._waiting.clear()

    # What the keeper tells

    def _on_message(self, message: tuple[Any, ...], fds: list[int]) -> None:
        kind, *fields = message
        if kind == "armed":
            disk_bytes, inodes, number = fields
            self._asked_for[disk_bytes, inodes] -= 1
            self._failures = 0
            self._offer(ArmedBox(number, (disk_bytes, inodes), fds))
        elif kind == "reaped":
            self._on_reaped(fields[0], wire.Reaped(*fields[1:]))
        elif kind == "unarmed":
            self._on_unarmed((fields[0], fields[1]), fields[2])
        elif kind == "open":
            self._settle_opening(wire.Opened(*fields))
        elif kind == "refused":
            finding, fix = fields
            self._settle_opening(SandboxUnavailable(f"{finding}; to fix it: {fix}"))
        elif kind == "crashed":
            log.error("sandbox.keeper_crashed", traceback=fields[0])
            self._settle_opening(SandboxUnavailable(f"the sandbox's keeper failed: {fields[0].splitlines()[-1]}"))

    def _settle_opening(self, result: wire.Opened | SandboxUnavailable) -> None:
        if self._opened is None or self._opened.done():
            return
        if isinstance(result, wire.Opened):
            self._opened.set_result(result)
        else:
            self._opened.set_exception(result)

    def _on_reaped(self, number: int, reaped: wire.Reaped) -> None:
        if number in self._taken:
            self._taken[number][1](reaped)
            return
        for box in [box for box in self._stock if box.number == number]:
            self._stock.remove(box)
            box.close()
            self._fill()

    def _on_unarmed(self, shape: Shape, what: str) -> None:
        self._asked_for[shape] -= 1
        self._failures += 1
        log.warning("sandbox.box_failed", reason=what, failures=self._failures)
        if self._failures >= _FAILURES_TO_REFUSE and not self._stock:
            self._refuse(Transient(f"no box can be made: {what}", retry_after_s=_RETRY_DELAY_S))
        if self._refill is None:
            self._refill = asyncio.get_running_loop().call_later(_RETRY_DELAY_S, self._fill)

    def _on_lost(self) -> None:
        if self._opened is not None and not self._opened.done():  # whoever starts it deals with it
            self._opened.set_exception(SandboxUnavailable("the sandbox's keeper ended while it started"))
            return
        keeper, self._keeper = self._keeper, None
        if self._closed or keeper is None:
            return
        log.error("sandbox.keeper_lost", pid=keeper.pid)
        self._asked_for.clear()
        self._drop_stock()
        loop = asyncio.get_running_loop()
        for box, on_reaped in self._taken.values():
            box.kill()
            self._orphans.add(box)
            loop.add_reader(box.pidfd, self._on_orphan_dead, box, on_reaped)
        self._restart = loop.create_task(self._replace(keeper))

    def _on_orphan_dead(self, box: ArmedBox, on_reaped: Callable[[wire.Reaped], None]) -> None:
        self._forget_orphan(box)
        on_reaped(_LOST)

    def _forget_orphan(self, box: ArmedBox) -> None:
        self._orphans.discard(box)
        asyncio.get_running_loop().remove_reader(box.pidfd)

    async def _replace(self, lost: KeeperProcess) -> None:
        """Bury the lost keeper and start another; after a few failures refuse who waits, and try on."""
        await lost.close()
        for attempt in itertools.count():
            await asyncio.sleep(_RESTART_DELAYS_S[min(attempt, len(_RESTART_DELAYS_S) - 1)])
            try:
                await self._start_keeper()
            except InfrastructureError as error:
                log.warning("sandbox.keeper_restart_failed", attempt=attempt, reason=str(error))
                if attempt >= _RESTARTS_TO_REFUSE:
                    self._refused = error
                    self._refuse(error)
            else:
                log.info("sandbox.keeper_restarted", attempt=attempt)
                return

"""Armed boxes in stock.

Theory of operation.  The keeper makes boxes; each arrives as four descriptors and waits here until a run takes it.
The stock is filled up again when the run that took a box is over, or a moment later, so that the making of the next one
does not compete with the program that has just begun; an empty stock is filled at once, and who finds it empty waits
in line.  Boxes are made with the work directory that this installation gives by default; for another size one is made
to order.

Interpreters.  There is always a stock of boxes that exec their program, and one of boxes in which the interpreter that
the installation prefers has started, forked from its zygote.  For another interpreter a stock is begun by the first run
that could use it, which itself takes a box of the first kind rather than wait; the stock is given up when nobody has
asked for it for some minutes.  One that cannot be had is left alone for a while, and programs are exec'd.  A parked
interpreter has memory of its own, not shared with its zygote, so fewer are kept.

The lock.  ``<data>/sandbox.lock`` is locked before the keeper starts, and keeper and boxes hold it.  It is free only
when all of them are dead, however they died; so whoever gets it knows that no program of an earlier service runs.

Keeper lost.  Its socket reads end of file, and its boxes die by their death signals.  Those in stock are dropped;
runs are told once the box is seen dead; a new keeper is started behind the lock, which waits for the same.  While no
new one can be had, runs are refused and it is tried on.
"""

import asyncio
import contextlib
import itertools
import math
import select
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from runtape.ports.errors import InfrastructureError, SandboxUnavailable, Transient

from .armed_box import ArmedBox
from .keeper import wire
from .keeper_process import KeeperProcess, lock
from .order import OURS, OURS_FORKED, OURS_GVISOR, ArmedLimits

log = structlog.get_logger(__name__)

_REFILL_DELAY_S: Final = 0.03
_ENDED_DELAY_S: Final = 0.002
"""Time after a run's end in which its result is still on its way."""
_IDLE_STOCK_S: Final = 300.0
_RETRY_DELAY_S: Final = 0.2
_FAILURES_TO_REFUSE: Final = 5
_OPEN_TIMEOUT_S: Final = 10.0
_INTERPRETER_FAILURES: Final = 3
_INTERPRETER_REST_S: Final = 30.0
_RESTARTS_TO_REFUSE: Final = 3
_RESTART_DELAYS_S: Final = (0.0, 0.1, 0.5, 2.0, 5.0)

_LOST: Final = wire.Reaped("keeper_lost", 0, 0, 0)


class InterpreterLost(Exception):
    """No box can be had in which this interpreter has started; one that execs its program can do the same."""


class BoxPool:
    """The stock of one keeper, replaced with it when it dies."""

    def __init__(
        self, data_dir: Path, opening: wire.Opening, standard: wire.Shape, *, size: int, lock_timeout_s: float
    ) -> None:
        """Prepare a pool that keeps `size` boxes of `standard`, and as many that exec their program.

        Of boxes with a parked interpreter it keeps half as many.
        """
        self._lock_path = data_dir / "sandbox.lock"
        self._lock_timeout_s = lock_timeout_s
        self._opening = opening
        self._standard = standard
        self._size = size
        self._parked = frozenset(name for name, _ in opening.parked)
        self._stock: defaultdict[wire.Shape, deque[ArmedBox]] = defaultdict(deque)
        self._waiting: defaultdict[wire.Shape, deque[asyncio.Future[ArmedBox]]] = defaultdict(deque)
        self._asked_for: defaultdict[wire.Shape, int] = defaultdict(int)
        self._kept: dict[wire.Shape, float] = {}
        """Shapes to have in stock, with the loop's time at which that ends."""
        self._warm: set[str] = set()
        """Interpreters that have been had."""
        self._resting: dict[str, float] = {}
        """Interpreters that could not be had, with the loop's time at which to try again."""
        self._failures_of: defaultdict[str, int] = defaultdict(int)
        self._same_loss: defaultdict[str, int] = defaultdict(int)
        """Boxes of an interpreter that were under way when a failure was counted: a zygote takes all of them with it,
        and is lost once."""
        self._taken: dict[int, tuple[ArmedBox, Callable[[wire.Reaped], None]]] = {}
        self._orphans: set[ArmedBox] = set()
        """Boxes of a lost keeper whose death is awaited here, as nobody else tells it."""
        self._refill: asyncio.TimerHandle | None = None
        self._keeper: KeeperProcess | None = None
        self._opened: asyncio.Future[wire.Opened] | None = None
        self._restart: asyncio.Task[None] | None = None
        self._refused: InfrastructureError | None = None
        self._closed = False
        self.mode = wire.Opened("none", False, "", "")

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
        self._warm.clear()
        self._failures_of.clear()
        self._same_loss.clear()
        self._resting.clear()
        self._refused = None
        self._kept = {self._standard._replace(interpreter=""): math.inf}
        if self.mode.native:
            self._kept[self._standard] = math.inf
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
        shape = self._standard._replace(interpreter="")
        if not self._stock[shape]:
            self.give_back(await self.take(shape, lambda _: None))

    async def warmed(self, interpreter: str) -> None:
        """Return when a box in which `interpreter` has started is in stock, or at once when there will be none."""
        if self.shape(interpreter, self._standard.disk_bytes, self._standard.inodes).interpreter == interpreter:
            return
        waiter = asyncio.get_running_loop().create_future()
        with contextlib.suppress(InterpreterLost):
            self._waiting[self._standard._replace(interpreter=interpreter)].append(waiter)
            self._fill()
            self._offer(await waiter)

    @property
    def armed(self) -> ArmedLimits:
        """What boxes are armed with."""
        grouped = self.mode.cgroups != "none"
        ours = OURS_GVISOR if self._opening.own_kernel else OURS if self.mode.native else OURS_FORKED
        return ArmedLimits(grouped, self._opening.memory_bytes, self._opening.processes, ours)

    def shape(self, interpreter: str, disk_bytes: int, inodes: int) -> wire.Shape:
        """Return what box to take for a program that `interpreter` could run.

        Of one that is cold it is a box that execs the program, and the interpreter is warmed for the next.
        """
        shape = wire.Shape(interpreter, disk_bytes, inodes)
        if not interpreter:
            return shape
        now_s = asyncio.get_running_loop().time()
        if not self.mode.native or self._rests(interpreter, now_s):
            return shape._replace(interpreter="")
        standard = self._standard._replace(interpreter=interpreter)
        if self._kept.get(standard) != math.inf:
            self._kept[standard] = now_s + _IDLE_STOCK_S
        if interpreter not in self._warm:
            self._fill()
            return shape._replace(interpreter="")
        return shape

    def _rests(self, interpreter: str, now_s: float) -> bool:
        if self._resting.get(interpreter, 0.0) > now_s:
            return True
        self._resting.pop(interpreter, None)
        return False

    # Taking

    async def take(self, shape: wire.Shape, on_reaped: Callable[[wire.Reaped], None]) -> ArmedBox:
        """Take a box from the stock, or wait for one.

        `on_reaped` is called when the box was killed and nothing of it is left, until `release` or `give_back`.
        Raises: Transient, SandboxUnavailable; InterpreterLost.
        """
        if self._refused is not None:
            raise self._refused
        if self._closed:
            raise Transient("the sandbox is closed")
        stock = self._stock[shape]
        if stock:
            box = stock.popleft()
            if not stock:
                self._fill()
            else:
                self._fill_in(_REFILL_DELAY_S)
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
        if self._refill is not None:
            self._fill_in(_ENDED_DELAY_S)

    def weed(self) -> None:
        """Drop the boxes that have died in stock, of which the keeper may not have told yet."""
        poll = select.poll()
        boxes = {box.pidfd: box for stock in self._stock.values() for box in stock}
        for pidfd in boxes:
            poll.register(pidfd, select.POLLIN)
        for pidfd, _ in poll.poll(0):
            self._stock[boxes[pidfd].shape].remove(boxes[pidfd])
            boxes[pidfd].close()

    def bound_memory(self, box: ArmedBox, memory_bytes: int) -> None:
        """Have the keeper kill `box` when it holds more; needed where cgroups do not."""
        if self._keeper is not None:
            self._keeper.send("bound", box.number, memory_bytes)

    def bound_cpu(self, box: ArmedBox, cpu_ns: int, on_exceeded: Callable[[int, int], None]) -> None:
        """Have `on_exceeded` called once `box` has used `cpu_ns`, with the user and the system time of that.

        Some time later the keeper kills the box, if it lives.
        """
        if self._keeper is not None:
            box.on_over_cpu = on_exceeded
            self._keeper.send("bound_cpu", box.number, cpu_ns)

    def follow(self, box: ArmedBox, on_point: Callable[[int, int, int], None]) -> None:
        """Have the keeper tell now and then (monotonic ns, bytes held, CPU ns used) of `box`."""
        if self._keeper is not None:
            box.on_point = on_point
            self._keeper.send("timeline", box.number)

    # Filling

    def _fill_in(self, delay_s: float) -> None:
        """Fill the stock after `delay_s`, or sooner if that was intended already."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + delay_s
        if self._refill is None or self._refill.when() > due_s:
            if self._refill is not None:
                self._refill.cancel()
            self._refill = loop.call_at(due_s, self._fill)

    def _fill(self) -> None:
        """Ask for as many boxes as are wanted and not on their way; give up a stock that nobody asks for."""
        if self._refill is not None:
            self._refill.cancel()
            self._refill = None
        if self._keeper is None or self._closed:
            return
        now_s = asyncio.get_running_loop().time()
        for shape in [shape for shape, until_s in self._kept.items() if until_s < now_s]:
            del self._kept[shape]
            self._drop(self._stock.pop(shape, deque()))
        for shape in {*self._kept, *self._waiting}:
            if self._rests(shape.interpreter, now_s):
                continue
            wanted = sum(not waiter.done() for waiter in self._waiting.get(shape, ()))
            if shape in self._kept:
                wanted += self._size_of(shape) - len(self._stock[shape])
            for _ in range(wanted - self._asked_for[shape]):
                self._asked_for[shape] += 1
                self._keeper.send("arm", *shape)

    def _size_of(self, shape: wire.Shape) -> int:
        return max(1, self._size // 2) if shape.interpreter in self._parked else self._size

    def _offer(self, box: ArmedBox) -> None:
        waiting = self._waiting[box.shape]
        while waiting:
            waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(box)
                return
        if box.shape in self._kept and not self._closed and self._keeper is not None:
            self._stock[box.shape].append(box)
        else:
            box.close()

    def _drop_stock(self) -> None:
        for stock in self._stock.values():
            self._drop(stock)

    def _drop(self, stock: deque[ArmedBox]) -> None:
        while stock:
            stock.popleft().close()

    def _refuse(self, error: InfrastructureError) -> None:
        for waiting in self._waiting.values():
            self._refuse_waiting(waiting, error)
        self._waiting.clear()

    def _refuse_waiting(self, waiting: deque[asyncio.Future[ArmedBox]], error: Exception) -> None:
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)

    # What the keeper tells

    def _on_message(self, message: tuple[Any, ...], fds: list[int]) -> None:
        kind, *fields = message
        if kind == "armed":
            shape, number = wire.Shape(*fields[:3]), fields[3]
            self._asked_for[shape] -= 1
            self._failures_of[shape.interpreter] = 0
            self._same_loss[shape.interpreter] = max(self._same_loss[shape.interpreter] - 1, 0)
            self._warm.add(shape.interpreter)
            self._offer(ArmedBox(number, shape, fds))
        elif kind == "point":
            box = self._taken_box(fields[0])
            if box is not None and box.on_point is not None:
                box.on_point(*fields[1:])
        elif kind == "reaped":
            self._on_reaped(fields[0], wire.Reaped(*fields[1:]))
        elif kind == "over_cpu":
            box = self._taken_box(fields[0])
            if box is not None and box.on_over_cpu is not None:
                box.on_over_cpu(*fields[1:])
        elif kind == "unarmed":
            self._on_unarmed(wire.Shape(*fields[:3]), fields[3])
        elif kind == "open":
            self._settle_opening(wire.Opened(*fields))
        elif kind == "refused":
            finding, fix = fields
            self._settle_opening(SandboxUnavailable(f"{finding}; to fix it: {fix}"))
        elif kind == "crashed":
            log.error("sandbox.keeper_crashed", traceback=fields[0])
            self._settle_opening(SandboxUnavailable(f"the sandbox's keeper failed: {fields[0].splitlines()[-1]}"))

    def _taken_box(self, number: int) -> ArmedBox | None:
        return self._taken[number][0] if number in self._taken else None

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
        for stock in self._stock.values():
            for box in [box for box in stock if box.number == number]:
                stock.remove(box)
                box.close()
                self._fill()

    def _on_unarmed(self, shape: wire.Shape, what: str) -> None:
        self._asked_for[shape] -= 1
        if self._same_loss[shape.interpreter]:
            self._same_loss[shape.interpreter] -= 1
        else:
            self._failures_of[shape.interpreter] += 1
            if shape.interpreter:
                under_way = (count for each, count in self._asked_for.items() if each.interpreter == shape.interpreter)
                self._same_loss[shape.interpreter] = sum(under_way)
        failures = self._failures_of[shape.interpreter]
        log.warning("sandbox.box_failed", interpreter=shape.interpreter, reason=what, failures=failures)
        if shape.interpreter and failures >= _INTERPRETER_FAILURES:
            self._warm.discard(shape.interpreter)
            self._failures_of[shape.interpreter] = 0
            self._resting[shape.interpreter] = asyncio.get_running_loop().time() + _INTERPRETER_REST_S
            for each in [each for each in self._waiting if each.interpreter == shape.interpreter]:
                self._refuse_waiting(self._waiting.pop(each), InterpreterLost(what))
        elif failures >= _FAILURES_TO_REFUSE and not self._stock[shape]:
            self._refuse(Transient(f"no box can be made: {what}", retry_after_s=_RETRY_DELAY_S))
        if self._refill is None:
            self._fill_in(_RETRY_DELAY_S)

    def _on_lost(self) -> None:
        self._settle_opening(SandboxUnavailable("the sandbox's keeper ended while it started"))
        if self._opened is not None and (self._opened.cancelled() or self._opened.exception() is not None):
            return  # it has never served; whoever starts it deals with it
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

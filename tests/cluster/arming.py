"""Arming a process: it dies or stands still at one of its steps.

Theory of operation
===================
A step is a call of a method of the product's own classes, where it begins or where it has returned.  ``SIGNAL STEP
NTH``, as a line on standard input or in the environment as ``ARMED``, has the calls of that method counted from then
on, and the process sends itself the signal at the NTH of them, from 1: SIGKILL, or SIGSTOP, after which it goes on in
the middle of the step when it is continued.  It says ``armed`` then, and ``woken`` when it goes on.
"""

import asyncio
import itertools
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ARMED = "ARMED"
LINGER_S = 0.6

Given = tuple[Any, ...]


@dataclass(frozen=True)
class Step:
    """A call of `method`, as it begins or, `after` it, as it has returned.

    ``counts`` looks at what the call was given and what it returned, None before it has.  A call of `stalls` does not
    return before the process goes on: so it is sure which of two that go side by side comes first.  One that `lingers`
    lets all else go on for `LINGER_S` before the signal, so that offsets are committed as far as they may be.
    """

    owner: type
    method: str
    after: bool = False
    counts: Callable[[Given, Any], bool] = lambda _given, _answer: True
    stalls: tuple[type, str] | None = None
    lingers: bool = False


def is_some(_: Given, answer: Any) -> bool:
    """Whether the call has found or got something."""
    return bool(answer)


def listen(steps: Mapping[str, Step]) -> None:
    """Arm the process as its environment says, and from now on as standard input does."""
    if words := os.environ.get(ARMED):
        _arm(words, steps)
    threading.Thread(target=_listen, args=(steps,), daemon=True).start()


def _listen(steps: Mapping[str, Step]) -> None:
    """Arm the process as standard input says; returns at its end."""
    rest = b""
    while data := os.read(0, 4096):  # a thread in the midst of `readline` would hold up the end of the process
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            _arm(line.decode(), steps)


def _arm(words: str, steps: Mapping[str, Step]) -> None:
    """Send the process a signal as ``SIGNAL STEP NTH`` says."""
    number, name, nth = words.split()
    step = steps[name]
    numbers = itertools.count(1)
    over = asyncio.Event()
    real = getattr(step.owner, step.method)

    async def passes(given: Given, answer: Any) -> None:
        if step.counts(given, answer) and next(numbers) == int(nth):
            if step.lingers:
                await asyncio.sleep(LINGER_S)
            os.kill(os.getpid(), signal.Signals[number])
            setattr(step.owner, step.method, real)
            over.set()
            print("woken", flush=True)

    async def counted(self: Any, *given: Any, **named: Any) -> Any:
        if not step.after:
            await passes(given, None)
        answer = await real(self, *given, **named)
        if step.after:
            await passes(given, answer)
        return answer

    setattr(step.owner, step.method, counted)
    if step.stalls is not None:
        _stall(*step.stalls, over)
    print("armed", flush=True)


def _stall(owner: type, method: str, over: asyncio.Event) -> None:
    """Hold up the calls of a method until all is `over`."""
    real = getattr(owner, method)

    async def stalled(self: Any, *given: Any, **named: Any) -> Any:
        await over.wait()
        setattr(owner, method, real)
        return await real(self, *given, **named)

    setattr(owner, method, stalled)

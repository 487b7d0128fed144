"""The ports as one process sees them: every call is traced, takes time, may fail, and may be the process's last."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from runtape.domain.execution import Execution
from runtape.domain.saga import Saga
from runtape.ports.errors import Transient
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import Change
from tests.simulation.world import Failing, Life, World

NONE: frozenset[str] = frozenset()


class Remote:
    """A server elsewhere: its plain methods as coroutines.

    A request that was sent takes effect although its sender dies; a sender that dies hears no answer.  Methods
    `at_once` take no time and are not traced; those that are `sure` never fail.
    """

    def __init__(
        self,
        world: World,
        life: Life,
        server: Any,
        name: str,
        at_once: frozenset[str] = NONE,
        sure: frozenset[str] = NONE,
    ) -> None:
        self._world = world
        self._life = life
        self._server = server
        self._name = name
        self._at_once = at_once
        self._sure = sure

    def __getattr__(self, method: str) -> Any:
        effect = getattr(self._server, method)
        if method in self._at_once:
            call = effect
        else:
            label, sure = f"{self._name}.{method}", method in self._sure

            def call(*given: Any, **named: Any) -> Awaitable[Any]:
                return self._call(label, effect, given, named, sure)

        setattr(self, method, call)
        return call

    async def _call(self, label: str, effect: Callable[..., Any], given: Any, named: Any, sure: bool = False) -> Any:
        world, life = self._world, self._life
        answer: asyncio.Future[Any] = world.loop.create_future()
        last = is_last(world, life)
        if life.pauses_at == label and not world.calm:
            await stand_still(life)
        if world.traced:
            world.note(life, f"{label} {brief(given)}")
        if last and world.random.random() < 0.5:
            return await die(life)
        failing = Failing.NOT if sure else world.failing(label)
        world.loop.in_world(world.way_s(), self._arrive, label, effect, given, named, failing, answer)
        if last:
            return await die(life)
        return await answer

    def _arrive(
        self,
        label: str,
        effect: Callable[..., Any],
        given: Any,
        named: Any,
        failing: Failing,
        answer: "asyncio.Future[Any]",
    ) -> None:
        value, error = None, None
        if failing is Failing.BEFORE:
            error = Transient(f"simulated: {label} failed")
        else:
            try:
                value = effect(*given, **named)
            except Exception as raised:
                error = raised
            if failing is Failing.AFTER and error is None:
                error = Transient(f"simulated: {label} was carried out, and failed")
        if isinstance(value, asyncio.Future):
            value.add_done_callback(
                lambda done: self._answer(label, answer, done.result(), None), context=self._world.loop.world_context
            )
            return
        self._world.loop.in_world(self._world.way_s(), self._answer, label, answer, value, error)

    def _answer(self, label: str, answer: "asyncio.Future[Any]", value: Any, error: Exception | None) -> None:
        if answer.done() or not self._life.alive:
            return
        if error is None:
            answer.set_result(value)
            return
        self._world.note(self._life, f"{label} -> {type(error).__name__}")
        answer.set_exception(error)


class Local:
    """An adapter in the process itself: its coroutines, late, failing or never returning."""

    def __init__(self, world: World, life: Life, inner: Any, name: str, at_once: frozenset[str] = NONE) -> None:
        self._world = world
        self._life = life
        self._inner = inner
        self._name = name
        self._at_once = at_once

    def __getattr__(self, method: str) -> Any:
        effect = getattr(self._inner, method)
        if method in self._at_once:
            call = effect
        else:
            label = f"{self._name}.{method}"

            def call(*given: Any, **named: Any) -> Awaitable[Any]:
                return self._call(label, effect, given, named)

        setattr(self, method, call)
        return call

    async def _call(self, label: str, effect: Callable[..., Awaitable[Any]], given: Any, named: Any) -> Any:
        world, life = self._world, self._life
        last = is_last(world, life)
        if life.pauses_at == label and not world.calm:
            await stand_still(life)
        if world.traced:
            world.note(life, f"{label} {brief(given)}")
        if last and world.random.random() < 0.5:
            return await die(life)
        failing = world.failing(label)
        if failing is Failing.BEFORE:
            world.note(life, f"{label} -> Transient")
            raise Transient(f"simulated: {label} failed")
        value = await effect(*given, **named)
        if last:
            return await die(life)
        if failing is Failing.AFTER:
            world.note(life, f"{label} -> Transient, carried out")
            raise Transient(f"simulated: {label} was carried out, and failed")
        return value


def is_last(world: World, life: Life) -> bool:
    """Whether this call is the last of the process; counts it."""
    world.calls += 1
    if life.dies_at_call is None or world.calm:
        return False
    life.dies_at_call -= 1
    return life.dies_at_call == 0


async def stand_still(life: Life) -> None:
    """Stop the process before a call of its own, until somebody lets it go on."""
    life.pauses_at = None
    life.on_pause()
    await asyncio.sleep(0)


async def die(life: Life) -> Any:
    """End the process within a call of its own."""
    life.on_death()
    await asyncio.get_running_loop().create_future()


def brief(given: tuple[Any, ...]) -> str:
    """Return what a trace shows of a call's arguments."""
    return " ".join(_word(each) for each in given)


def _word(given: Any) -> str:
    match given:
        case PodKey():
            return f"{given.execution_id}/{given.attempt}"
        case Change():
            names = ",".join(f"{message.type}/{message.attempt}" for message in given.messages)
            return f"{_word(given.document)}<-{given.expected_version}[{names}]"
        case Execution():
            return f"{given.id}@{given.version}:{given.status}"
        case Saga():
            return f"saga:{given.execution_id}@{given.version}:{given.step}"
        case list() | tuple():
            return f"({' '.join(map(_word, given))})"
        case bytes():
            return f"{len(given)}B"
        case str() | int() | float() | None:
            return str(given)
        case frozenset() | set():
            return f"{{{len(given)}}}"
        case _ if hasattr(given, "type") and hasattr(given, "execution_id"):
            return f"{given.execution_id}:{given.type}/{given.attempt}"
        case _ if hasattr(given, "seq"):
            return f"#{given.seq}"
        case _:
            return type(given).__name__

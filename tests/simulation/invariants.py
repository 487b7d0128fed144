"""What must hold once the faults have ended and every client has seen its end.

The invariants are those of reference list I1 to I19 that apply to a world without a kernel, in the words of the
product: an accepted run is never lost, never ends twice, and never drops or repeats a byte.

=====  ==========================================================================================================
I1     every stored execution has ended with a result, also those whose client never heard of them
I2     `Histories`: one end, which does not change
I3     `Histories`: the history is a path of the declared machine, and only grows
I4     `PodServer`: no attempt starts without a stored lease, nor beside another one; attempts are bounded, and the
       program of a run that is not to be run again begins once
I5     a key stands for one run; another body under it is refused
I6     what was printed is what is stored, what the result tells and what was streamed
I7     `Client`: over all its connections each event and each record once, in order; a late reader gets the same
I8 I9  no pod is left
I10    no place is taken; as many runs as there are places can begin at once, and never more
I11    another user is told that there is nothing
I12    every saga is done, unless its execution ended before it began
I13    the log is read to its end and no outbox holds anything
I14    the events in the log, folded, are the document's history; each is told first in order
I15    a run that is cancelled in quiet ends within five seconds
I18    every message has the correlation of its execution, and says what led to it
I19    `Simulation`: all clients come to their end in bounded time, and most runs do what their program says
I20    whose run failed or ran out of time is told once, what it came to in the end; nobody is told of another end
=====  ==========================================================================================================

I16 (a day's soak) and I17 (waiting times under flood) are measured elsewhere; cgroups, mounts and other kernel parts
of I8 and I9 are the sandbox's tests.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec

from runtape.application.streaming import Cursor, Frame
from runtape.application.submission import IDEMPOTENCY_TTL
from runtape.domain.errors import DomainError, NotFound
from runtape.domain.events import ExecutionEvent, ExecutionRestarted, Message, Priority
from runtape.domain.execution import Execution, OnInterrupt
from runtape.domain.ids import ExecutionId
from runtape.domain.notification import of_end
from runtape.domain.outcome import OutcomeKind, Status
from runtape.domain.saga import SagaStep
from runtape.domain.tape import Record, Stream
from runtape.ports.errors import InfrastructureError
from runtape.ports.pod_runtime import PodKey
from tests.builders import a_principal
from tests.domain.test_execution_machine import TERMINAL
from tests.simulation.clients import NEVER, USERS, Client, Disconnected, Plan, a_submission, request, says
from tests.simulation.site import Service, Site
from tests.simulation.world import Violation

QUIET_S = 400.0
"""The time in which everything is tidied up after the last end: what is left to sweepers may take some minutes."""

AWAY_S = 200.0
CANCEL_S = 5.0
PROMPT_S = 5.0
"""What takes longer in quiet has waited for somebody who only looks from time to time."""

BEGIN_S = 30.0
LOOK_S = 0.25
EXPIRED = IDEMPOTENCY_TTL + timedelta(hours=3)
"""When a key has expired, also one that was used while a clock was an hour ahead."""

STRANGER = a_principal("mallory")


class Checks:
    """The checks of one world at its end."""

    def __init__(self, site: Site, clients: Sequence[Client], services: Callable[[], Sequence[Service]]) -> None:
        self._site = site
        self._world = site.world
        self._clients = clients
        self._services = services

    def _service(self) -> Service:
        services = [service for service in self._services() if service.started]
        return services[int(self._world.random.random() * len(services))]

    async def everything(self) -> None:
        """Raise the first violation."""
        await self._until(self._somebody_is_away, AWAY_S, "I19")
        await self._until(self._all_ended, 1500.0, "I1")
        await self._until(self._is_quiet, QUIET_S, "I13")
        self._site.observe()
        self._keys()
        messages = self._messages()
        self._notified()
        for execution in self._site.executions():
            self._ended_well(execution)
            self._told_in_log(execution, messages[execution.id])
            await self._printed_is_stored(execution)
        for client in self._clients:
            self._did_as_told(client)
            await self._streamed_is_stored(client)
        await self._goes_on_well()
        await self._until(self._is_quiet, QUIET_S, "I13")
        self._site.observe()

    async def _until(self, what_is_left: Callable[[], str | None], patience_s: float, invariant: str) -> None:
        by_s = self._world.loop.time() + patience_s
        while (left := what_is_left()) is not None:
            if self._world.loop.time() > by_s:
                raise Violation(invariant, left)
            await asyncio.sleep(LOOK_S if patience_s < QUIET_S else 4 * LOOK_S)

    # Ended, and tidied up.

    def _somebody_is_away(self) -> str | None:
        services = self._services()
        there = len(services) == self._world.mix.processes and all(
            service.started and not service.life.paused for service in services
        )
        if not there:
            return "a process does not start"
        # Of a client that has given up, to a process that stood still.
        return "a request is not answered" if any(service.requests for service in services) else None

    def _all_ended(self) -> str | None:
        left = [each.id for each in self._site.executions() if each.result is None]
        return f"{', '.join(left)} never ended" if left else None

    def _is_quiet(self) -> str | None:
        site = self._site
        if site.pods.pods:
            return f"pods are left: {list(site.pods.pods)}"
        if (taken := self._places_taken()) is not None:
            return taken
        for saga in site.sagas():
            if saga.step is not SagaStep.DONE:
                return f"the saga of {saga.execution_id} stands at {saga.step}"
        for service in self._services():
            live = service.worker._live  # pyright: ignore[reportPrivateUsage]
            if live:
                return f"{service.life} still records {list(live)}"
            if service.event_log is not None:
                for group in service.event_log._groups.values():  # pyright: ignore[reportPrivateUsage]
                    if group.behind or group.waiting or group.in_flight:
                        return f"{group.name} has not read its log"
        if site.cluster:
            if told := site.documents.unpublished(10):
                return f"an outbox is not empty: {told}"
            if lag := site.broker.lag():
                return f"messages are not acknowledged: {lag}"
        return None

    # The documents.

    def _keys(self) -> None:
        require = self._world.require
        holders: dict[tuple[str, str], ExecutionId] = {}
        for execution in self._site.executions():
            if execution.idempotency is not None:
                key = (execution.user_id, execution.idempotency.key)
                require(key not in holders, "I5", f"{key} stands for {holders.get(key)} and {execution.id}")
                holders[key] = execution.id
        known = {execution.id for execution in self._site.executions()}
        for client in self._clients:
            require(client.id in known, "I1", f"{client.id} was accepted and is gone")

    def _ended_well(self, execution: Execution) -> None:
        require = self._world.require
        sagas = {saga.execution_id for saga in self._site.sagas()}
        require(execution.id in sagas or execution.attempt == 0, "I12", f"{execution.id} has run and has no saga")
        if execution.spec.on_interrupt is OnInterrupt.FAIL:
            # An attempt whose program was never begun leaves nothing that would happen twice.
            begun = [key.attempt for key in self._site.pods.started if key.execution_id == execution.id]
            require(len(begun) <= 1, "I4", f"{execution.id} was run again, against its will: attempts {begun}")
        asked = any(step.type == "execution.cancel_requested" for step in execution.history)
        if execution.status is Status.CANCELLED:
            require(execution.attempt == 0 or asked or _between(execution), "I2", f"{execution.id}: nobody cancelled")

    def _notified(self) -> None:
        told = sorted(self._site.notifications(), key=lambda each: each.id)
        ended = sorted(self._site.executions(), key=lambda each: each.id)
        expected = [each for execution in ended if (each := of_end(execution)) is not None]
        self._world.require(told == expected, "I20", f"told was {told}, and is to be {expected}")

    def _did_as_told(self, client: Client) -> None:
        """Compare the end with what the program says."""
        assert client.id is not None
        execution, mix, plan = self._by_id(client.id), self._world.mix, client.plan
        kind = execution.outcome and execution.outcome.kind
        allowed = {says(plan)}
        if plan.cancels:
            allowed.add(OutcomeKind.CANCELLED)
        if not mix.harmless:
            allowed.add(OutcomeKind.SANDBOX_ERROR)
        self._world.require(kind in allowed, "I19", f"{client.id} ended as {execution.outcome}, told to {allowed}")
        if kind is OutcomeKind.EXITED and execution.outcome:
            code = 3 if "exit 3" in plan.script else 0
            self._world.require(execution.outcome.exit_code == code, "I6", f"{client.id} ended as {execution.outcome}")

    # The log.

    def _messages(self) -> dict[ExecutionId, list[Message]]:
        found: dict[ExecutionId, list[Message]] = defaultdict(list)
        for message in self._site.messages():
            found[message.execution_id].append(message)
        return found

    def _told_in_log(self, execution: Execution, messages: Sequence[Message]) -> None:
        require = self._world.require
        events: dict[int, ExecutionEvent] = {}
        for message in messages:
            require(
                message.correlation is not None and message.correlation == execution.correlation,
                "I18",
                f"{message.id} does not tell its request",
            )
            if isinstance(message, ExecutionEvent) and message.version not in events:
                before = max(events, default=0)
                require(message.version == before + 1, "I14", f"{message.id} was told after version {before}")
                events[message.version] = message
        told = [(event.version, event.type, event.attempt) for event in events.values()]
        happened = [(step.version, step.type, step.attempt) for step in execution.history]
        require(told == happened, "I14", f"{execution.id}: the log has {told}, the document {happened}")

    # The tape.

    async def _printed_is_stored(self, execution: Execution) -> None:
        require, site = self._world.require, self._site
        tape = self._service().ports.tape
        for attempt in range(1, execution.attempt + 1):
            key = PodKey(execution.id, attempt)
            stored = await _whole(tape, key)
            printed = site.pods.printed.get(key, [])
            require(stored == printed[: len(stored)], "I6", f"{key} has stored what was not printed")
            if attempt < execution.attempt:
                continue
            require(execution.last_seq == len(stored), "I6", f"{key} ends at {execution.last_seq}, not {len(stored)}")
            if not (_is_ours(execution) or _between(execution) or _cut_short(execution)):
                require(
                    len(stored) == len(printed), "I6", f"{key} printed {len(printed)} records, stored {len(stored)}"
                )
        user = next(user for user in USERS if user.user_id == execution.user_id)
        result = await self._service().queries.result(user, execution.id)
        key = PodKey(execution.id, execution.attempt)
        for stream, told in ((Stream.STDOUT, result.stdout), (Stream.STDERR, result.stderr)):
            printed = b"".join(record.data for record in await _whole(tape, key) if record.stream is stream)
            require(told == printed.decode(errors="replace"), "I6", f"{key} has another {stream} in its result")
        for artifact in execution.artifacts.kept:
            content = await self._service().ports.blobs.get(artifact.sha256)
            require(content is not None, "I6", f"{key} has lost {artifact.path}")
        try:
            await self._service().queries.result(STRANGER, execution.id)
        except NotFound:
            return
        require(False, "I11", f"{execution.id} was told to a stranger")

    async def _streamed_is_stored(self, client: Client) -> None:
        assert client.id is not None
        require = self._world.require
        execution = next(each for each in self._site.executions() if each.id == client.id)
        frames = [frame for frame in client.frames if frame.cursor is not None]
        name = f"client-{client.plan.number} ({client.id})"
        require(not any(frame.event == "gap" for frame in frames), "I7", f"{name} was told of a gap")
        told = [msgspec.json.decode(frame.body)["event_id"] for frame in frames if frame.event is None]
        require(
            told == [execution.event_id(step.version) for step in execution.history], "I7", f"{name} was told {told}"
        )
        tape = self._service().ports.tape
        for attempt in range(1, execution.attempt + 1):
            seqs = [frame.cursor.seq for frame in frames if _is_output(frame, attempt) and frame.cursor]
            stored = [record.seq for record in await _whole(tape, PodKey(client.id, attempt))]
            require(seqs == stored, "I7", f"{name} was told {seqs} of attempt {attempt}, stored are {stored}")
        self._in_order(name, frames)
        again = await self._read(client.id, Cursor())
        for event in (None, "output", "end"):
            first, second = ([f.body for f in each if f.event == event] for each in (frames, again))
            require(first == second, "I7", f"a later reader of {name} is told something else")
        since = int(self._world.random.random() * len(again))
        cursor = again[since].cursor
        assert cursor is not None
        rest = [frame.cursor for frame in await self._read(client.id, cursor)]
        ends = again[since].event == "end"
        beyond = [frame.cursor for frame in (again[-1:] if ends else again[since + 1 :])]
        require(rest == beyond, "I7", f"{name}, resumed at {cursor}, is told {rest}, not {beyond}")

    def _in_order(self, name: str, frames: Sequence[Frame]) -> None:
        over = 0
        for frame in frames:
            assert frame.cursor is not None
            body = msgspec.json.decode(frame.body)
            if frame.event == "output":
                self._world.require(body["attempt"] > over, "I7", f"{name}: {frame.cursor} comes after its end")
            elif frame.event is None and body["event_type"].replace("_", ".", 1) in (*TERMINAL, "result.stored"):
                over = body["attempt"]
            elif frame.event is None and body["event_type"] == ExecutionRestarted.type.replace(".", "_"):
                over = body["attempt"] - 1

    async def _read(self, execution_id: ExecutionId, cursor: Cursor) -> list[Frame]:
        stream, subscription = self._service().streams.open(execution_id, cursor)
        try:
            found: list[Frame] = []
            async for batch in stream.batches():
                found += [frame for frame in batch if frame.cursor is not None]
            return found
        finally:
            subscription.close()

    # What a quiet service does.

    async def _goes_on_well(self) -> None:
        """Use the service once more, without any fault: nothing may be late, and nothing be in the way."""
        await self._runs_long()
        await self._tells_at_once()
        await self._cancels_at_once()
        await self._places_are_free()
        await self._keys_expire()

    async def _runs_long(self) -> None:
        """Let a run outlast its first lease twice."""
        execution_id = await self._submit(_plan(200, "print a\nsleep 90\nprint b\nexit 7\n"))
        await asyncio.sleep(90.0)
        await self._until(lambda: self._not_ended([execution_id]), 30.0, "I19")
        execution = self._by_id(execution_id)
        well = execution.attempt == 1 and execution.outcome is not None and execution.outcome.exit_code == 7
        self._world.require(well, "I19", f"in quiet, {execution_id} ended as {execution.outcome}")

    async def _tells_at_once(self) -> None:
        """Read short runs, from any moment on: a nudge that is missed shows as a delay."""
        for number in range(5):
            plan = _plan(210 + number, "print 1\nsleep 0.01\nprint 2\n" if number % 2 else "print 1\n")
            execution_id = await self._submit(plan)
            await self._a_moment()
            begun_s = self._world.loop.time()
            frames = await self._read(execution_id, Cursor())
            took_s = self._world.loop.time() - begun_s
            self._world.require(frames[-1].event == "end", "I7", f"the stream of {execution_id} has no end")
            self._world.require(took_s < PROMPT_S, "I7", f"{execution_id} was told of {took_s:.1f} s late")

    async def _cancels_at_once(self) -> None:
        """Cancel runs while they begin."""
        for number in range(5):
            plan = _plan(220 + number, NEVER)
            execution_id = await self._submit(plan)
            await self._a_moment()
            await self._cancel(plan, execution_id)
            await self._until(lambda each=execution_id: self._not_ended([each]), CANCEL_S, "I15")

    async def _a_moment(self) -> None:
        """Wait for about as long as a few messages are on their way."""
        await asyncio.sleep(self._world.random.random() * 20 * self._world.mix.latency_s)

    async def _places_are_free(self) -> None:
        """Let one run more begin than there are places, each of another user, and cancel them."""
        capacity = self._world.mix.capacity.running
        plans = {await self._submit(plan): plan for plan in (_plan(n, NEVER, 200.0) for n in range(capacity + 1))}
        await self._until(lambda: self._fewer_begun(plans, capacity), PROMPT_S, "I10")
        first = next(each for each in plans if each in self._running())
        await self._cancel(plans[first], first)
        await self._until(lambda: self._not_ended([first]), CANCEL_S, "I15")
        rest = {each: plan for each, plan in plans.items() if each != first}
        await self._until(lambda: self._fewer_begun(rest, capacity), PROMPT_S, "I10")
        for execution_id, plan in rest.items():
            await self._cancel(plan, execution_id)
        await self._until(lambda: self._not_ended(list(rest)), CANCEL_S, "I15")
        for execution_id in plans:
            status = self._by_id(execution_id).status
            self._world.require(status is Status.CANCELLED, "I15", f"{execution_id} was cancelled, and is {status}")
        await self._until(self._places_taken, PROMPT_S, "I10")

    async def _keys_expire(self) -> None:
        """Use a key again when it has expired, and once more: it stands for another run then."""
        keyed = [client for client in self._clients if client.plan.key is not None]
        if not keyed:
            return
        for service in self._services():
            service.life.clock.put_right(EXPIRED.total_seconds())
        plan = replace(keyed[0].plan, script="print again\n")
        again = [await self._submit(plan) for _ in range(2)]
        self._world.require(again[0] != keyed[0].id, "I5", f"{plan.key} has expired and still stands for {again[0]}")
        self._world.require(again[0] == again[1], "I5", f"{plan.key} stands for {again}")
        await self._until(lambda: self._not_ended(again), PROMPT_S, "I1")

    async def _submit(self, plan: Plan) -> ExecutionId:
        return await self._ask(lambda service: service.submissions.execute(plan.user, a_submission(plan)))

    async def _cancel(self, plan: Plan, execution_id: ExecutionId) -> None:
        await self._ask(lambda service: service.submissions.cancel(plan.user, execution_id, "over"))

    async def _ask(self, ask: Callable[[Service], Awaitable[Any]]) -> Any:
        try:
            return await request(self._site, self._service(), ask, BEGIN_S)
        except (InfrastructureError, Disconnected, DomainError) as error:
            raise Violation("I19", f"in quiet: {error!r}") from error

    def _by_id(self, execution_id: ExecutionId) -> Execution:
        execution = self._site.execution(execution_id)
        assert execution is not None
        return execution

    def _not_ended(self, wanted: Sequence[ExecutionId]) -> str | None:
        left = [execution_id for execution_id in wanted if self._by_id(execution_id).result is None]
        return f"{', '.join(left)} goes on" if left else None

    def _running(self) -> set[ExecutionId]:
        return {key.execution_id for key, pod in self._site.pods.pods.items() if pod.ended is None}

    def _fewer_begun(self, wanted: Collection[ExecutionId], count: int) -> str | None:
        begun = len(self._running().intersection(wanted))
        return f"{begun} of {count} runs began, although nothing else runs" if begun < count else None

    def _places_taken(self) -> str | None:
        for service in self._services():
            queue: Any = self._site.queue if self._site.cluster else service.ports.queue
            if queue._running or queue._waiting:
                return f"places are taken: {[*queue._running, *queue._waiting]}"
        return None


def _plan(number: int, script: str, wall_s: float = 200.0) -> Plan:
    return Plan(
        number=number,
        user=a_principal(f"user-{number}"),
        script=script,
        key=None,
        cancels=False,
        priority=Priority.NORMAL,
        on_interrupt=OnInterrupt.RESTART,
        begins_s=0.0,
        wall_s=wall_s,
    )


async def _whole(tape: Any, key: PodKey) -> list[Record]:
    found: list[Record] = []
    while page := await tape.read(key, len(found), 1 << 20):
        found += page
    return found


def _is_output(frame: Frame, attempt: int) -> bool:
    return frame.event == "output" and frame.cursor is not None and frame.cursor.attempt == attempt


def _is_ours(execution: Execution) -> bool:
    return execution.outcome is not None and execution.outcome.kind is OutcomeKind.SANDBOX_ERROR


def _cut_short(execution: Execution) -> bool:
    """Whether the attempt was cancelled, and then lost with its worker."""
    return execution.outcome is not None and execution.outcome.message == "cancelled; its worker was lost"


def _between(execution: Execution) -> bool:
    """Whether the execution was cancelled while it waited for another attempt."""
    return execution.history[-3].type == ExecutionRestarted.type

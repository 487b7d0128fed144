"""Planted defects of the protocol: each is a change of the product's own text, made in memory, with what it breaks.

A mutant names a function and a piece of its source that is replaced; a piece that is not there exactly once is an
error, so that no mutant quietly becomes the product.  A `survivor` says why no seed can tell it from the product.
"""

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

APPLICATION = "runtape.application"
EMBEDDED = "runtape.adapters.embedded"
EXECUTION = "runtape.domain.execution"
SAGA = "runtape.domain.saga"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted defect: in `where`, as ``module:function``, `old` becomes `new`."""

    name: str
    breaks: str
    where: str
    old: str
    new: str
    survivor: str | None = None
    only: tuple[str, ...] = ()
    """What the mix of a world must have for it to show at all, where few have: other seeds are passed over."""


MUTANTS = (
    Mutant(
        "acknowledge before handling",
        "A process that dies in between has acknowledged a message that nobody applied.",
        "runtape.runtime.consumer:Consumer._drain",
        """\
                else:
                    failure = PARKED if self._parked and key in self._parked else await self._try(item)
""",
        """\
                else:
                    self._event_log.acknowledge(self._group, item)
                    failure = PARKED if self._parked and key in self._parked else await self._try(item)
""",
    ),
    Mutant(
        "no second try",
        "A message whose handler failed for a moment is acknowledged and forgotten.",
        "runtape.runtime.consumer:Consumer._try",
        """\
                if tries >= most:
""",
        """\
                if transient:
                    return None
                if tries >= most:
""",
    ),
    Mutant(
        "start whatever stands",
        "A command that is delivered again takes the lease of an attempt that is running or over.",
        f"{EXECUTION}:start",
        "execution.status is not Status.QUEUED or attempt != execution.attempt + 1",
        "execution.status.terminal",
    ),
    Mutant(
        "the end of any attempt",
        "The end of a lost attempt, told late, ends the one that runs now.",
        f"{EXECUTION}:finish",
        "not execution.live or attempt != execution.attempt",
        "not execution.live",
    ),
    Mutant(
        "end what has ended",
        "An end that is told twice is recorded twice.",
        f"{EXECUTION}:finish",
        "if not execution.live or attempt != execution.attempt:",
        "if attempt != execution.attempt:",
    ),
    Mutant(
        "restart without limit",
        "A run that our failures follow is run again for ever.",
        f"{EXECUTION}:_may_restart",
        " and execution.attempt - given_back < MAX_ATTEMPTS",
        "",
    ),
    Mutant(
        "restart against its will",
        "A run that must not be run again is.",
        f"{EXECUTION}:_may_restart",
        "not ran or execution.spec.on_interrupt is OnInterrupt.RESTART",
        "True",
    ),
    Mutant(
        "cancel without a kill",
        "A run that is cancelled goes on until a sweep finds it.",
        f"{EXECUTION}:cancel",
        """\
        PodKill(execution_id=execution.id, project_id=execution.project_id, at=at, attempt=execution.attempt),
""",
        "",
    ),
    Mutant(
        "cancelled before it is running",
        "A cancellation that comes before the pod does is forgotten.",
        f"{APPLICATION}.running:Worker._starting",
        "if not await self._may_run(key):",
        "if False:",
        survivor="The cancellation has to fall between two tries to start the pod, and then the worker, which looks "
        "after its pods every ten seconds, kills it as well: this look only makes that sooner.",
    ),
    Mutant(
        "a killed run is cancelled",
        "A program that was killed because its lease or its tape was lost ends as if somebody had cancelled it.",
        f"{EXECUTION}:finish",
        "outcome.kind is OutcomeKind.CANCELLED and not execution.cancel_requested",
        "False",
        survivor="Who kills without being asked has stopped recording, so the end of the pod finds its output missing, "
        "and the attempt is taken for lost for that reason already.",
    ),
    Mutant(
        "the outbox is cleared first",
        "A relay that dies in between has removed what it never published.",
        f"{APPLICATION}.relaying:Relay.publish",
        """\
                await self._publisher.publish(message)
                published.append(message.id)
""",
        """\
                await self._outbox.remove(document, [message.id])
                await self._publisher.publish(message)
""",
    ),
    Mutant(
        "the outbox backwards",
        "The log has an event before the one that led to it.",
        f"{APPLICATION}.relaying:Relay.publish",
        "for message in await self._outbox.read(document) if messages is None else messages:",
        "for message in reversed(await self._outbox.read(document) if messages is None else messages):",
    ),
    Mutant(
        "past what was left",
        "What a document has told is published before what it told earlier, which somebody who died has left behind.",
        f"{APPLICATION}.relaying:RelayingUnitOfWork.commit",
        "None if document in behind else change.messages",
        "change.messages",
    ),
    Mutant(
        "past a failure",
        "A message that could not be published is skipped, and the next one is in the log before it.",
        f"{APPLICATION}.relaying:Relay.publish",
        """\
                await self._publisher.publish(message)
""",
        """\
                try:
                    await self._publisher.publish(message)
                except Transient:
                    continue
""",
    ),
    Mutant(
        "the outbox emptied",
        "What was written while its relay published is removed unpublished.",
        f"{APPLICATION}.relaying:Relay.publish",
        "await self._outbox.remove(document, published)",
        "await self._outbox.remove(document, [each.id for each in await self._outbox.read(document)])",
    ),
    Mutant(
        "no sweep of outboxes",
        "What a process that died has written stays in its outbox.",
        f"{APPLICATION}.relaying:Relay.sweep",
        """\
            left = waiting in self._waited and waiting.document not in self._busy
""",
        """\
            left = False
""",
    ),
    Mutant(
        "effects before the commit",
        "A program starts before the lease that it runs under is durable.",
        f"{APPLICATION}.flow:Flow.perform",
        """\
                if chain.changes:
""",
        """\
                for effect in chain.effects:
                    self._tasks.spawn(effect(), 'effect')
                chain.effects.clear()
                if chain.changes:
""",
    ),
    Mutant(
        "announced before the commit",
        "A reader is told of an event that was never stored.",
        f"{APPLICATION}.flow:Flow.perform",
        """\
                if chain.changes:
""",
        """\
                self._announcer.announce(chain.changes)
                if chain.changes:
""",
    ),
    Mutant(
        "output announced before it is stored",
        "A reader is sent bytes that no tape holds when the process dies.",
        f"{APPLICATION}.running:Worker._record",
        """\
                await persistently(lambda batch=records: self._tape.append(key, batch), "tape.append")
                self._announcer.output(key, records)
""",
        """\
                self._announcer.output(key, records)
                await persistently(lambda batch=records: self._tape.append(key, batch), "tape.append")
""",
    ),
    Mutant(
        "the end before the tape",
        "A run's end is stored while its last output is on its way, and is lost with the process.",
        f"{APPLICATION}.monitoring:PodMonitor._finish",
        "if not await persistently(lambda: self._tape.reached(ended.key",
        "if False and not await persistently(lambda: self._tape.reached(ended.key",
    ),
    Mutant(
        "nobody is told of a bad end",
        "The owner of a run that failed never hears of it.",
        f"{APPLICATION}.storing:ResultProcessor.on_ended",
        "notifications=(told,)",
        "notifications=()",
    ),
    Mutant(
        "a notification is dated when it is written",
        "Who dies between a notification and the result has told of another moment than the one who does both again.",
        "runtape.domain.notification:of_end",
        "created_at=execution.finished_at",
        "created_at=execution.history[-1].at",
    ),
    Mutant(
        "no seal",
        "A recorder that stood still goes on after its attempt was taken for lost, and readers see two tapes.",
        f"{APPLICATION}.monitoring:PodMonitor.expire",
        "(await self._tape.seal(",
        "(await self._tape.summary(",
        # Who has heard of the pod's end waits for its recorder and does not take the attempt for lost: the sweeper
        # has to run apart from the monitors.
        only=("split", "pauses"),
    ),
    Mutant(
        "leases are not extended",
        "A run that lasts longer than its first lease is killed.",
        f"{APPLICATION}.running:Worker.extend_leases",
        """\
            keys = list(self._live)
""",
        """\
            keys = []
""",
    ),
    Mutant(
        "leases are extended in the store alone",
        "The runtime, which is not told, kills what everybody takes for alive.",
        f"{APPLICATION}.running:Worker.extend_leases",
        "await self._pods.extend(key, expires_at)",
        "pass",
    ),
    Mutant(
        "dead by the wall clock",
        "A clock that jumps makes an attempt be taken for dead while it runs.",
        f"{APPLICATION}.sweeping:Sweeper._expire",
        "if now_s - seen[1] < (self._monitor.lease_ttl + LEASE_GRACE).total_seconds():",
        "if False:",
    ),
    Mutant(
        "everybody else is dead",
        "A process that starts takes the attempts of those beside it for lost.",
        f"{APPLICATION}.sweeping:Sweeper.recover",
        "if execution.lease is not None and not alone:",
        "if False:",
    ),
    Mutant(
        "the past is dead enough",
        "Attempts of a process that died are left to a lease that an hour's jump may have written.",
        f"{APPLICATION}.sweeping:Sweeper.sweep",
        "beyond = now + HORIZON",
        "beyond = now + HORIZON * 1000",
    ),
    Mutant(
        "no sweeper",
        "What a lost message or a crash leaves behind stays there.",
        f"{APPLICATION}.sweeping:Sweeper.run",
        "await self.sweep(LONGEST_WAIT_DUE - jump if jump < timedelta() else timedelta())",
        "pass",
    ),
    Mutant(
        "the queue is not rebuilt",
        "After a restart those that wait are in no line, and those that run hold no place.",
        f"{APPLICATION}.sweeping:Sweeper.recover",
        "asked = await self._admission.restore()",
        "asked = {each.execution_id: each.attempt async for each in self._sagas.unfinished()}",
    ),
    Mutant(
        "places are not passed on",
        "The end of a run frees no place for those that wait, until a sweep looks at them.",
        f"{APPLICATION}.admission:Admission._passing_on",
        """\
            await self._queue.release(execution_id)
            await self.admit_waiting()
""",
        """\
            pass
""",
    ),
    Mutant(
        "places that leak",
        "A process that dies after the commit and before the release keeps a place for ever.",
        f"{APPLICATION}.admission:Admission.reconcile",
        "in await self._queue.held(GRANT_S):",
        "in ():",
    ),
    Mutant(
        "out of line",
        "Who has to wait is in no line, until a sweep looks at it.",
        f"{APPLICATION}.admission:Admission.on_requested",
        "effects=(self._enqueueing(entry),)",
        "",
    ),
    Mutant(
        "a pod's command is sent once",
        "A saga whose command to create was lost waits for ever.",
        f"{SAGA}:check",
        "[_command(saga, at)] if deadline.then is Overdue.ASK_AGAIN else []",
        "[]",
    ),
    Mutant(
        "a restart is told once",
        "An attempt that was lost, with the message that said so, has no successor.",
        f"{APPLICATION}.sweeping:Sweeper._request_again",
        "await self._admission.restart(execution.id, execution.attempt + 1)",
        "pass",
    ),
    Mutant(
        "pods are not tidied up",
        "A pod whose removal was lost stays for ever.",
        f"{APPLICATION}.running:Worker.tidy_up",
        "for key in await self._pods.list():",
        "for key in ():",
    ),
    Mutant(
        "read, then subscribe",
        "What happens between reading and subscribing is told a heartbeat late.",
        f"{APPLICATION}.streaming:ExecutionStream.batches",
        """\
                    async for batch in part():
""",
        """\
                    if part == self._follow:
                        while self._subscription.pending() is not None:
                            pass
                    async for batch in part():
""",
    ),
    Mutant(
        "a stream that drops no duplicate",
        "A reader that has caught up is told again what the feed still had.",
        f"{APPLICATION}.streaming:ExecutionStream._forward_output",
        """\
        if (nudge.attempt, nudge.last_seq) <= (self._at.attempt, self._at.seq):
            return True
        if nudge.attempt != self._at.attempt or nudge.first_seq > self._at.seq + 1:
            return False
        skip = self._at.seq + 1 - nudge.first_seq
""",
        """\
        if nudge.attempt != self._at.attempt:
            return False
        skip = 0
""",
    ),
    Mutant(
        "a stream that sees no gap",
        "A nudge that was lost is a hole in the stream.",
        f"{APPLICATION}.streaming:ExecutionStream._forward_output",
        "if nudge.attempt != self._at.attempt or nudge.first_seq > self._at.seq + 1:",
        "if nudge.attempt != self._at.attempt:",
    ),
    Mutant(
        "the end overtakes the output",
        "A stream is told of the end before the records that belong before it.",
        f"{APPLICATION}.streaming:ExecutionStream._precedes",
        "return self._at.attempt == execution.attempt and self._at.seq >= execution.last_seq",
        "return True",
    ),
    Mutant(
        "the cursor forgets the attempt",
        "A reader that resumes in the second attempt is sent the first one again.",
        f"{APPLICATION}.streaming:ExecutionStream._records",
        "range(max(1, self._at.attempt), last_attempt + 1)",
        "range(1, last_attempt + 1)",
    ),
    Mutant(
        "any body under a key",
        "Another request under a key that is in use gets the run of the first.",
        f"{APPLICATION}.submission:Submissions._known",
        "holder.idempotency.body_sha256 != body_sha256",
        "False",
    ),
    Mutant(
        "keys never expire",
        "A key stands for its first run for ever.",
        f"{APPLICATION}.submission:Submissions._known",
        "holder.idempotency.expires_at <= self._clock.now()",
        "False",
    ),
    Mutant(
        "keys are always free",
        "A request that is sent again is another run.",
        f"{APPLICATION}.submission:Submissions._known",
        """\
        if holder is None or holder.idempotency is None:
""",
        """\
        if holder is not None:
            await self._executions.release_idempotency_key(holder)
        if True:
""",
    ),
    Mutant(
        "a write that looks at no version",
        "Of two writers of a document one undoes what the other did.",
        f"{EMBEDDED}.documents:_write_execution",
        "where id = ? and version = ?",
        "where id = ? and ? > 0",
    ),
    Mutant(
        "one message of a commit",
        "Only the first event of a change is in the log.",
        f"{EMBEDDED}.documents:SqliteUnitOfWork.commit",
        "messages = [message for change in merged for message in change.messages]",
        "messages = [message for change in merged for message in change.messages[:1]]",
    ),
    Mutant(
        "offsets ahead of the work",
        "A group's stored offset passes over messages that are still being handled.",
        f"{EMBEDDED}.log:_Group.low_watermark",
        "ahead = set(self.in_flight)",
        "ahead = set()",
        only=("stepwise", "crashes"),  # a fused chain leaves nothing to be handled, and a broker keeps its own offsets
    ),
)


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Change the function while the context lasts.  Raises: LookupError, when the piece is not there exactly once."""
    module_name, _, path = mutant.where.partition(":")
    function: Any = importlib.import_module(module_name)
    for name in path.split("."):
        function = inspect.getattr_static(function, name)
    assert isinstance(function, FunctionType)
    source = inspect.getsource(function)
    if source.count(mutant.old) != 1:
        raise LookupError(f'"{mutant.name}": {mutant.where} has {source.count(mutant.old)} of: {mutant.old}')
    changed = textwrap.dedent(source.replace(mutant.old, mutant.new))
    code = _code_of(compile(changed, f"<mutant {mutant.name}>", "exec"), function.__name__)
    before = function.__code__
    function.__code__ = code
    try:
        yield
    finally:
        function.__code__ = before


def _code_of(module: CodeType, name: str) -> CodeType:
    return next(each for each in module.co_consts if isinstance(each, CodeType) and each.co_name == name)

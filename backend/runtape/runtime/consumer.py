"""The consumer loop: messages of one group from the log to their handlers, in order per execution.

Executions are handled side by side, as many as there are places, the messages of one execution one after another:
the rest of a backlog stays in the log.  The class of a failure decides: transient ones are tried again with growing
pauses, anything else is told and set aside, since the sweeper finds the document again by its ``due_at``.
"""

import asyncio
from collections import deque
from collections.abc import Mapping

import structlog

from runtape.application.flow import Flow, Handler, Tasks
from runtape.domain.ids import ExecutionId
from runtape.ports.errors import Transient
from runtape.ports.log import Delivery, EventLog

log = structlog.get_logger(__name__)

TRIES = 10
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0


class Consumer:
    """Feeds one group's handlers, for `at_once` executions side by side; `run` it as a task."""

    def __init__(
        self,
        *,
        group: str,
        topics: tuple[str, ...],
        handlers: Mapping[str, Handler],
        event_log: EventLog,
        flow: Flow,
        tasks: Tasks,
        at_once: int,
    ) -> None:
        self._group = group
        self._topics = topics
        self._handlers = handlers
        self._event_log = event_log
        self._flow = flow
        self._tasks = tasks
        self._lines: dict[ExecutionId, deque[Delivery]] = {}
        self._places = asyncio.Semaphore(at_once)

    async def run(self) -> None:
        """Handle what the log delivers; runs until cancelled."""
        async for delivery in self._event_log.consume(self._group, self._topics):
            if delivery.message.type not in self._handlers:
                self._event_log.acknowledge(self._group, delivery)
                continue
            execution_id = delivery.message.execution_id
            line = self._lines.get(execution_id)
            if line is not None:
                line.append(delivery)
                continue
            await self._places.acquire()
            self._lines[execution_id] = deque((delivery,))
            self._tasks.spawn(self._drain(execution_id), f"{self._group}.handle")

    async def _drain(self, execution_id: ExecutionId) -> None:
        line = self._lines[execution_id]
        try:
            while line:
                await self._handle(line[0])
                self._event_log.acknowledge(self._group, line.popleft())
        finally:
            del self._lines[execution_id]
            self._places.release()

    async def _handle(self, delivery: Delivery) -> None:
        handler = self._handlers[delivery.message.type]
        pause_s = FIRST_PAUSE_S
        for attempt in range(1, TRIES + 1):
            try:
                return await self._flow.handle(handler, delivery.message)
            except Transient as error:
                log.warning(
                    "message.retried", group=self._group, type=delivery.message.type, tries=attempt, error=str(error)
                )
                await asyncio.sleep(error.retry_after_s or pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except Exception as error:  # the loop's edge: one message must not end the group
                log.error("message.failed", group=self._group, type=delivery.message.type, exc_info=error)
                return
        log.error("message.given_up", group=self._group, type=delivery.message.type)

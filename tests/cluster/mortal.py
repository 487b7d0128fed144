"""A cluster whose workers can be told to die at a step, and that soon notices who is gone."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from pymongo import MongoClient

from runtape.runtime.roles import Role
from tests.cluster import mortal_worker
from tests.cluster.processes import API, Cluster, Process
from tests.e2e.forks import Forked, Forker

PLACES = 4
"""How many runs are carried out at once: few, so that others wait in line."""
HEARTBEAT_S = 1.0
"""A stream looks for itself that often: who died may not have told it."""
HASTE_S = 0.2
DIES_WITHIN_S = 15.0
CONSUMERS = (Role.SAGA_ORCHESTRATOR, Role.K8S_WORKER, Role.RESULT_PROCESSOR)


class MortalWorker(Process):
    """A process of `tests.cluster.mortal_worker`; its command is the role."""

    def _started(self, log: IO[bytes], env: dict[str, str]) -> Forked:
        return Forker.shared(mortal_worker.__name__).start(self._command[0], log, env)


class MortalCluster(Cluster):
    """One process of the API, and two of every worker."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, apis=1, running=PLACES)

    def until_ready(self) -> Self:
        super().until_ready()
        for role in CONSUMERS:
            for worker in self.workers[role]:
                worker.until_said("joined")
        return self

    def api(self, url: str = "") -> Process:
        return self._begin("api", API, url=url, RUNTAPE_STREAMS__HEARTBEAT_S=str(HEARTBEAT_S))

    def worker(self, role: Role) -> Process:
        return self._begin(role, [role], kind=MortalWorker)

    @contextlib.contextmanager
    def hastened(self, where: Mapping[str, Any]) -> Iterator[None]:
        """Let the executions that `where` finds be due for a while, as if their time had passed."""
        over = threading.Event()

        def hasten() -> None:
            with MongoClient[dict[str, Any]](self.mongo.direct_url) as client:
                rows = client[self.database]["executions"]
                while not over.wait(HASTE_S):
                    rows.update_many({**where, "due_us": {"$exists": True}}, {"$set": {"due_us": 1}})

        thread = threading.Thread(target=hasten)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def mend(self) -> None:
        """Start whoever is dead."""
        for process in self.processes():
            if not process.begun:
                process.begin().until_ready()


def arm(worker: Process, step: str, nth: int) -> None:
    """Let a worker die at the `nth` time, from now on, that it comes to `step`."""
    worker.tell(f"{step} {nth}")
    worker.until_said("armed")


def begin_armed(worker: Process, step: str, nth: int) -> None:
    """Start a worker that dies at the `nth` time that it comes to `step`, perhaps before it is ready."""
    worker.begin(**{mortal_worker.DIES_AT: f"{step} {nth}"})


def await_death(worker: Process) -> None:
    """Return once an armed worker has died; one that never comes to its step fails."""
    assert worker.ended(DIES_WITHIN_S) == -signal.SIGKILL

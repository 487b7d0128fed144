"""A cluster whose workers can be told to die or to stand still at a step, and that soon notices who is gone."""

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from pymongo import MongoClient

from runtape.runtime.roles import Role
from runtape.runtime.succession import OWNER_FILE
from tests.cluster import mortal_worker
from tests.cluster.arming import ARMED
from tests.cluster.processes import API, Cluster, Process
from tests.e2e.forks import Forked, Forker

HEARTBEAT_S = 1.0
"""A stream looks for itself that often: who died may not have told it."""
HASTE_S = 0.2
LOOK_S = 0.05
SOON_S = 30.0
"""Work goes on within that time, whoever is gone, and whatever is lost is taken up."""
PATIENCE_S = 60.0
"""How long a test waits for what it prepares."""
OVER = {"due_us": {"$exists": False}}
"""The condition that nothing is left to do of an execution."""
CONSUMERS = (Role.SAGA_ORCHESTRATOR, Role.K8S_WORKER, Role.RESULT_PROCESSOR)


class MortalWorker(Process):
    """A process of `MODULE`; its command is the role."""

    MODULE: ClassVar[str] = mortal_worker.__name__
    armed = False
    """Whether it is to meet its step, or stands there still."""

    def _started(self, log: IO[bytes], env: dict[str, str]) -> Forked:
        return Forker.shared(self.MODULE).start(self._command[0], log, env)

    def arm(self, number: signal.Signals, step: str, nth: int) -> None:
        """Let the worker get the signal at the `nth` time, from now on, that it comes to `step`."""
        self.armed = True
        self.tell(f"{number.name} {step} {nth}")
        self.until_says("armed")

    def begin_armed(self, number: signal.Signals, step: str, nth: int) -> None:
        """Start a worker that gets the signal at the `nth` time that it comes to `step`, perhaps before it is ready."""
        self.armed = True
        self.begin(**{ARMED: f"{number.name} {step} {nth}"})

    def again(self) -> Self:
        """Start a worker that died in its data folder."""
        return self.begin().until_ready()

    def await_death(self) -> None:
        """Return once an armed worker has died; one that never comes to its step fails."""
        assert self.ended(PATIENCE_S) == -signal.SIGKILL
        self.armed = False

    def await_standstill(self) -> None:
        """Return once an armed worker stands still; one that never comes to its step fails."""
        stat = Path(f"/proc/{self.pid}/stat")

        def moves() -> str:
            state = stat.read_text().rpartition(")")[2].split()[0]
            return "" if state == "T" else f"its state is {state}"

        until_none(moves, f"{self.name} stands still")

    def wake(self) -> None:
        """Let a worker that stands still go on."""
        self.resume()
        self.until_says("woken")
        self.armed = False

    @property
    def owners(self) -> list[str]:
        """The names under which the worker holds leases, and those before it whose leases it takes up."""
        return (self.data / OWNER_FILE).read_text().split()


class MortalCluster(Cluster):
    """A cluster with two of every worker."""

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

    def pair(self, role: Role) -> tuple[MortalWorker, MortalWorker]:
        """Return the two workers of a role."""
        one, other = self.workers[role]
        assert isinstance(one, MortalWorker) and isinstance(other, MortalWorker)
        return one, other

    @contextlib.contextmanager
    def database_view(self) -> Iterator[Any]:
        """What the processes have written."""
        with MongoClient[dict[str, Any]](self.mongo.direct_url) as client:
            yield client[self.database]

    @contextlib.contextmanager
    def hastened(self, where: Mapping[str, Any], time: str = "due_us") -> Iterator[None]:
        """Let the executions that `where` finds be due for a while, as if their `time` had passed."""
        with (
            self.database_view() as view,
            repeated(lambda: view.executions.update_many({**where, time: {"$exists": True}}, {"$set": {time: 1}})),
        ):
            yield

    def give_away(self, worker: MortalWorker) -> None:
        """Let the leases of a worker that stands still run out, and return once it has none."""
        where = leased_to(worker)
        with self.hastened(where), self.database_view() as view:
            until_none(lambda: view.executions.count_documents(where), f"the leases of {worker.name} are given away")

    def over(self) -> int:
        """Return how many executions there are whose result is stored."""
        with self.database_view() as view:
            return view.executions.count_documents(OVER)

    def until_over(self, count: int) -> None:
        """Return once there are `count` executions whose result is stored."""
        with self.database_view() as view:

            def left() -> object:
                lacking = count - view.executions.count_documents(OVER)
                groups = view.executions.aggregate(
                    [
                        {"$match": {"due_us": {"$exists": True}}},
                        {"$group": {"_id": {"status": "$status", "owner": "$lease_owner"}, "count": {"$sum": 1}}},
                    ]
                )
                return (lacking, list(groups)) if lacking > 0 else None

            until_none(left, "so many executions are over", SOON_S)

    def settle(self, ids: Collection[str]) -> None:
        """Return once nothing is left to do of these executions, and check that what they told is known, no more."""
        mine, waits = {"_id": {"$in": list(ids)}}, {"told_us": {"$exists": True}}
        with self.database_view() as view:

            def left() -> int:
                sagas = view.sagas.count_documents({**mine, "$or": [{"unfinished": True}, waits]})
                return sagas + view.executions.count_documents({**mine, **waits})

            until_none(left, "all sagas are done, and all is told")
            told = {
                f"{row['_id']}.{number + 1}" for row in view.executions.find(mine) for number in range(row["version"])
            }
            found = {row["_id"] for row in view.events.find({"execution_id": mine["_id"]}, {"_id": 1})}
        known = {each for each in found if re.fullmatch(r"[^.]+\.\d+", each)}
        assert known == told, (told - known, known - told)

    def mend(self) -> None:
        """Replace whoever is dead, or is to meet a step that did not come."""
        for workers in self.workers.values():
            for worker in workers:
                if isinstance(worker, MortalWorker) and worker.armed and worker.begun:
                    worker.kill()
        for process in self.processes():
            if isinstance(process, MortalWorker):
                process.armed = False
            if not process.begun:
                process.begin().until_ready()


def arm(stands: MortalWorker, dies: MortalWorker, step: str, nth: int) -> None:
    """Let each of the two come to the same step."""
    stands.arm(signal.SIGSTOP, step, nth)
    dies.arm(signal.SIGKILL, step, nth)


def met(stands: MortalWorker, dies: MortalWorker) -> None:
    """Return once both have come to their steps."""
    stands.await_standstill()
    dies.await_death()


@contextlib.contextmanager
def standing_still(*processes: Process) -> Iterator[None]:
    """Let processes do nothing for a while."""
    for process in processes:
        process.pause()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@contextlib.contextmanager
def repeated(do: Callable[[], object]) -> Iterator[None]:
    """Do something again and again, in a thread, for a while."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(HASTE_S):
            do()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def leased_to(worker: MortalWorker) -> Mapping[str, Any]:
    """Return the condition that an execution is leased to a worker."""
    return {"lease_owner": {"$in": worker.owners}}


def until_none(left: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    """Return once other processes have `left` nothing to do until `what` is true."""
    until_s = time.monotonic() + within_s
    while found := left():
        assert time.monotonic() < until_s, f"not within {within_s:g} s: {what}; {found}"
        time.sleep(LOOK_S)

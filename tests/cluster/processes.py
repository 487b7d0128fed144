"""A whole cluster on this machine: the four real parts, and processes of the API and of each worker."""

import asyncio
import contextlib
import itertools
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Self
from urllib.parse import urlsplit

from runtape.adapters.kafka import topics
from runtape.runtime.roles import Role
from tests.cli.commands import environment
from tests.e2e.forks import Forked
from tests.e2e.server import ADMIN_PASSWORD, Client
from tests.e2e.stores import MongoView, StoreView
from tests.rig import choice
from tests.rig.part import Part

ROOT = Path(__file__).parents[2]
WORKERS = (Role.SAGA_ORCHESTRATOR, Role.K8S_WORKER, Role.POD_MONITOR, Role.RESULT_PROCESSOR)
PORT = "{port}"
API = (sys.executable, "-P", "-m", "runtape.cli", "up", "--port", PORT)
STOP_S = 20.0
LOOK_S = 0.05

_numbers = itertools.count(1)


class Process:
    """One process of the product; `log` has what it wrote to standard error.

    It listens at `url` as soon as that is set, and at a free port before.
    """

    def __init__(self, name: str, folder: Path, command: Sequence[str], env: Mapping[str, str], url: str = "") -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.data = folder / name
        self._command = command
        self._env = {**env, "RUNTAPE_DATA": str(self.data)}
        self.url = url
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._said: list[str] = []

    def begin(self, **env: str) -> Self:
        """Start the process, in this life with `env` as well; `until_ready` waits for it."""
        self._said = []
        with self.log.open("ab") as log:
            self._process = self._started(log, environment(**self._env, **env))
        return self

    def _started(self, log: IO[bytes], env: dict[str, str]) -> "subprocess.Popen[bytes] | Forked":
        port = str(urlsplit(self.url).port or 0)  # that of its life before, if it had one
        return subprocess.Popen(
            [port if word == PORT else word for word in self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
            cwd=ROOT,
        )

    def until_ready(self) -> Self:
        """Return once the process says that it is ready."""
        self.url = self.until_said(r"ready (http://\S+)")[1]
        return self

    def until_said(self, pattern: str) -> re.Match[str]:
        """Return the match of a line that the process says, or has said in this life."""
        for line in self._said:
            if found := re.match(pattern, line):
                return found
        return self.until_says(pattern)

    def until_says(self, pattern: str) -> re.Match[str]:
        """Return the match of a line that the process says, of those that nobody has read yet."""
        assert self._process is not None and self._process.stdout is not None
        for line in iter(self._process.stdout.readline, b""):
            self._said.append(line.decode())
            if found := re.match(pattern, self._said[-1]):
                return found
        raise AssertionError(f"{self.name} ended and never said {pattern}: {self.log.read_text()[-4000:]}")

    def until_logged(self, text: str, within_s: float) -> None:
        """Return once the process has written `text` to standard error."""
        until_s = time.monotonic() + within_s
        while text not in self.log.read_text():
            assert time.monotonic() < until_s, f"{self.name} has not logged {text}: {self.log.read_text()[-3000:]}"
            time.sleep(LOOK_S)

    def tell(self, line: str) -> None:
        """Send a line to the standard input of a worker of the tests."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    @property
    def begun(self) -> bool:
        """Whether the process was started, and its end was not noticed."""
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End the process as a power switch would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        return self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Let the process stand still."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self.ended(STOP_S)

    def ended(self, within_s: float) -> int:
        """Return the exit code once the process has ended; one that goes on for longer is killed, and that raises."""
        process = self._process
        assert process is not None and process.stdout is not None and process.stdin is not None
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            told = self.log.read_text()[-3000:]
            raise AssertionError(f"{self.name} did not end within {within_s:g} s: {told}") from None
        finally:
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            self._process = None

    def close(self) -> None:
        """Stop the process unless it was stopped before."""
        if self._process is not None:
            self.stop()


class Cluster:
    """The parts with `apis` processes of the API and `each` of every worker, whose pods are simulated.

    `running` is how many runs they carry out at once, and `queued` how many may wait.  It has the parts of `beside`,
    with names of its own there, but for Redis.
    """

    def __init__(
        self,
        folder: Path,
        *,
        apis: int = 2,
        each: int = 2,
        running: int = 32,
        queued: int = 10_000,
        beside: "Cluster | None" = None,
    ) -> None:
        self.redis = choice.a_redis(folder / "redis")
        self.parts: list[Part] = [self.redis]
        if beside is None:
            self._name = ""
            self.mongo, self.kafka = choice.a_mongo(folder / "mongo"), choice.a_kafka(folder / "kafka")
            self.registry = choice.a_registry(folder / "registry")
            self.parts += [self.mongo, self.kafka, self.registry]
        else:
            self._name = "beside-"
            self.mongo, self.kafka, self.registry = beside.mongo, beside.kafka, beside.registry
        number = next(_numbers)
        for part in self.parts:  # servers that are given have all clusters of a run
            part.scope = part.scope and f"{part.scope}-{number}-"
        self._folder = folder
        self._apis = apis
        self._each = each
        self._running = running
        self._queued = queued
        self._asked = 0
        self.keys: dict[str, str] = {}
        """Keys by user; the admin's is `local`."""
        self._numbers: Counter[str] = Counter()
        self.apis: list[Process] = []
        self.workers: dict[Role, list[Process]] = {}

    def begin(self) -> None:
        """Start the parts."""
        for part in self.parts:
            part.start()
        found = asyncio.run(topics.initialise({"bootstrap_servers": self.kafka.bootstrap}, 1, self.prefix))
        assert not found.drift, found.drift

    def until_ready(self) -> Self:
        """Start all processes, and return once each of them is ready."""
        self.apis = [self.api() for _ in range(self._apis)]
        self.workers = {role: [self.worker(role) for _ in range(self._each)] for role in WORKERS}
        for process in self.processes():
            process.until_ready()
        return self

    @property
    def url(self) -> str:
        """One process of the API after another."""
        self._asked += 1
        return self.apis[self._asked % len(self.apis)].url

    @property
    def prefix(self) -> str:
        """What names of topics, groups and subjects begin with: nothing where the servers are its own."""
        scope = (self.kafka.scope or self.registry.scope) + self._name
        return f"{scope}." if scope else ""

    @property
    def database(self) -> str:
        """The database that everything is in."""
        return f"{self.mongo.scope}{self._name}runtape"

    @property
    def store(self) -> StoreView:
        """What the processes have written."""
        return MongoView(self.mongo.direct_url, self.database)

    def client(self, key: str | None = "local") -> Client:
        """Return a client with `key`, by default the admin's; None: without credentials."""
        return Client(self.url, self.keys["local"] if key == "local" else key)

    def client_of(self, process: Process) -> Client:
        """Return a client of one process of the API, with the admin's key."""
        return Client(process.url, self.keys["local"])

    def let(self, name: str) -> None:
        """Let the simulated programs go on that wait for `name`, wherever they run."""
        for worker in self.workers[Role.K8S_WORKER]:
            worker.tell(name)

    def processes(self) -> Iterator[Process]:
        """Yield all processes of the product."""
        yield from self.apis
        for workers in self.workers.values():
            yield from workers

    def api(self, url: str = "") -> Process:
        """Begin another process of the API, at a port of the loopback if one is given."""
        return self._begin("api", API, url=url)

    def worker(self, role: Role) -> Process:
        """Begin another worker."""
        if role is Role.K8S_WORKER:
            return self._begin(role, [sys.executable, "-m", "tests.cluster.simulated_worker"])
        return self._begin(role, [sys.executable, "-m", f"workers.{role}"])

    def _begin(
        self, name: str, command: Sequence[str], kind: type[Process] = Process, url: str = "", **more: str
    ) -> Process:
        self._numbers[name] += 1
        env = {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'backend'}",
            "RUNTAPE_PROFILE": "cluster",
            "RUNTAPE_KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "RUNTAPE_KAFKA__PREFIX": self.prefix,
            "RUNTAPE_REGISTRY__URL": self.registry.url,
            "RUNTAPE_MONGO__URL": self.mongo.direct_url,
            "RUNTAPE_MONGO__DATABASE": self.database,
            "RUNTAPE_REDIS__URL": self.redis.url,
            "RUNTAPE_WORKER__PORT": "0",
            "RUNTAPE_WORKER__DRAIN_S": "5",
            "RUNTAPE_ADMIN_PASSWORD": ADMIN_PASSWORD,
            "RUNTAPE_ADMISSION__RUNNING": str(self._running),
            "RUNTAPE_ADMISSION__QUEUED": str(self._queued),
            "RUNTAPE_RATE_LIMITS__EXECUTIONS_PER_MINUTE": "100000",
            "RUNTAPE_RATE_LIMITS__CALLS_PER_MINUTE": "100000",
            **more,
        }
        return kind(f"{name}-{self._numbers[name]}", self._folder, command, env, url).begin()

    def close(self) -> None:
        """Stop everything."""
        for process in self.processes():
            with contextlib.suppress(AssertionError):
                process.close()
        with contextlib.ExitStack() as stack:  # each, whatever becomes of another
            for part in self.parts:
                stack.callback(part.stop)


class SandboxCluster(Cluster):
    """A cluster whose programs run in local sandboxes: every process is the product's own, as the defaults have it."""

    def worker(self, role: Role) -> Process:
        return self._begin(role, [sys.executable, "-m", f"workers.{role}"])

"""A server process on a free port, and what a client needs to speak to it."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx2

from runtape.adapters.embedded import identity_store
from runtape.adapters.embedded.clock import SystemClock, Uuid7Ids
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.identity_store import SqliteIdentityStore
from runtape.adapters.embedded.passwords import Argon2Hasher
from runtape.application.identity import Identity
from runtape.domain.identity import CredentialKind, Principal, Role, User, scopes_of
from runtape.domain.ids import ProjectId, UserId
from runtape.ports.identity import IdentityStore
from runtape.runtime.providers.embedded import DATABASE_FILE
from tests.cli.commands import environment
from tests.e2e.forks import PYTHONPATH, Forked, Forker
from tests.e2e.sse import EventStream
from tests.e2e.stores import SqliteView, StoreView

ADMIN_PASSWORD = "correct horse battery staple"
STOP_S = 15.0

SIMULATED = "tests.e2e.simulated_server"
SANDBOXED = (sys.executable, "-P", "-m", "runtape.cli", "up", "--port", "0", "--data")


class Server:
    """The process of one server over the folder `data`; `log` has what it wrote to standard error.

    `module` is another one to start than the product's, `env` comes on top of the environment.
    """

    def __init__(
        self,
        data: Path,
        *,
        simulated: bool = False,
        module: str | None = None,
        env: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.data = data
        self.simulated = simulated
        self.log = data.with_name(data.name + ".log")
        self._module = module
        self._env = env or {}
        self._settings = {f"RUNTAPE_{name}".upper(): str(value) for name, value in settings.items()}
        self.url = ""
        self.key = ""
        self.keys: dict[str, str] = {}
        """Keys of other users, by name."""
        self.process: subprocess.Popen[bytes] | Forked | None = None

    def start(self) -> Self:
        """Start the process and return once it says that it is ready."""
        more = {"RUNTAPE_ADMIN_PASSWORD": ADMIN_PASSWORD, "PYTHONPATH": PYTHONPATH, **self._settings, **self._env}
        env = environment(**more)
        with self.log.open("ab") as log:
            if self.simulated:
                self.process = Forker.shared(SIMULATED).start(str(self.data), log, env)
            else:
                command = SANDBOXED if self._module is None else (sys.executable, "-P", "-m", self._module)
                self.process = subprocess.Popen(
                    [*command, str(self.data)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=env,
                    cwd="/",
                )
        self.url = self._told_url(self.process)
        self.key = (self.data / "local.key").read_text().strip()
        return self

    def _told_url(self, process: "subprocess.Popen[bytes] | Forked") -> str:
        assert process.stdout is not None
        said = b""
        for line in iter(process.stdout.readline, b""):
            said += line
            if found := re.match(rb"ready (http://\S+)", line):
                return found[1].decode()
        raise AssertionError(f"the server did not start: {said.decode()}\n{self.log.read_text()[-4000:]}")

    @property
    def store(self) -> StoreView:
        return SqliteView(self.data)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def let(self, name: str) -> None:
        """Let the simulated programs go on that wait for `name`."""
        self.tell(name)

    def tell(self, line: str) -> None:
        """Send a line to a simulated server."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def told(self) -> str:
        """Wait for the next line that a simulated server says, and return it."""
        assert self.process is not None and self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def open_files(self) -> int:
        """Return how many descriptors the process has."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def kill(self) -> None:
        """End the process as a power switch would, and return when it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait(f"after {number.name}")

    def wait(self, since: str = "by itself") -> int:
        """Return the exit code once the process has ended, within `STOP_S`."""
        process = self.process
        assert process is not None and process.stdout is not None and process.stdin is not None
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the server did not end {since} within {STOP_S:g} s") from None
        finally:
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def close(self) -> None:
        """Stop the process unless it was stopped before."""
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def memory_bytes(self) -> int:
        """Return the resident memory of the process."""
        return _kib(self.pid, "VmRSS") << 10

    def peak_memory_bytes(self) -> int:
        """Return the greatest resident memory that the process has had."""
        return _kib(self.pid, "VmHWM") << 10

    def client(self, key: str | None = "local") -> "Client":
        """Return a client with `key`, by default the local one; None: without credentials."""
        return Client(self.url, self.key if key == "local" else key)


def _kib(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


class Client:
    """HTTP with one principal's credentials; paths are below /api/v1."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.headers = headers
        self.http = httpx2.AsyncClient(
            base_url=f"{url}/api/v1", headers=headers, timeout=30, trust_env=False, verify=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def get(self, path: str, **more: Any) -> httpx2.Response:
        return await self.http.get(path, **more)

    async def post(self, path: str, **more: Any) -> httpx2.Response:
        return await self.http.post(path, **more)

    async def execute(self, script: str, lang: str = "python", *, key: str | None = None, **fields: Any) -> str:
        """Submit a run and return its id; it must be accepted."""
        headers = {"idempotency-key": key} if key else {}
        answer = await self.post("/execute", json={"script": script, "lang": lang, **fields}, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["execution_id"]

    async def result(self, execution_id: str) -> dict[str, Any]:
        """Return the result as it stands."""
        answer = await self.get(f"/executions/{execution_id}/result")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ended(self, execution_id: str) -> dict[str, Any]:
        """Wait for the end of a run on its stream, and return its result."""
        async with self.stream(execution_id) as stream:
            frames = await stream.rest()
        assert frames[-1].event == "end", frames[-1]
        return frames[-2].data["result"] if frames[-2].data.get("result") else await self.result(execution_id)

    async def run(self, script: str, lang: str = "python", **fields: Any) -> dict[str, Any]:
        """Submit a run and return its result once it has ended."""
        return await self.ended(await self.execute(script, lang, **fields))

    @contextlib.asynccontextmanager
    async def stream(
        self, execution_id: str, last_event_id: str | None = None, **more: Any
    ) -> AsyncIterator[EventStream]:
        """Open the stream of an execution."""
        headers = dict(self.headers)
        if last_event_id is not None:
            headers["last-event-id"] = last_event_id
        stream = await EventStream.open(self.url, f"/api/v1/events/{execution_id}", headers, **more)
        try:
            yield stream
        finally:
            stream.close()


def seed(data: Path, *users: str) -> dict[str, str]:
    """Make an admin and `users` in a folder that no server has used yet; return a key for each user."""

    async def work() -> dict[str, str]:
        database = Database(data / DATABASE_FILE, identity_store.SCHEMA)
        await database.open()
        try:
            clock, ids, store, hasher = SystemClock(), Uuid7Ids(), SqliteIdentityStore(database), Argon2Hasher()
            identity = Identity(store, hasher, clock, ids)
            await identity.ensure_admin(ADMIN_PASSWORD)
            password_hash = await hasher.hash(ADMIN_PASSWORD)
            return {name: await a_user_with_key(identity, store, name, password_hash, Role.USER) for name in users}
        finally:
            await database.close()

    return asyncio.run(work())


async def a_user_with_key(identity: Identity, store: IdentityStore, name: str, password_hash: str, role: Role) -> str:
    """Make the user unless it is there, and return a new key of it with all that its role may do."""
    user = User(
        id=UserId(f"user-{name}"),
        username=name,
        password_hash=password_hash,
        role=role,
        project_id=ProjectId(f"project-{name}"),
        created_at=datetime.now(UTC),
    )
    if not await store.add_user(user):
        present = await store.user_by_name(name)
        assert present is not None
        user = present
    principal = Principal(
        user_id=user.id,
        username=name,
        role=role,
        project_id=user.project_id,
        scopes=scopes_of(role),
        credential=CredentialKind.SESSION,
        credential_id="seed",
    )
    _, plain = await identity.create_key(principal, "tests", sorted(scopes_of(role)), None)
    return plain

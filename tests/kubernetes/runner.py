"""The runner of pods, built, and run as the first process of a namespace of its own that has no rights."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from runtape.adapters.kubernetes import protocol
from runtape.adapters.kubernetes.protocol import Event, Link, Report, Run
from runtape.adapters.sandbox.keeper.wire import Order
from runtape.domain.tape import Record

CONTAINER = """
cd "$1" && mkdir -p box proc tmp sys runtape && : >report && chmod 666 report
for folder in usr bin sbin lib lib64 etc dev; do
    if [ -L "/$folder" ]; then ln -sfn "$(readlink "/$folder")" "$folder"
    elif [ -d "/$folder" ]; then mkdir -p "$folder" && mount --rbind "/$folder" "$folder"; fi
done
mount --bind "$2" runtape && mount -t tmpfs -o size=64m,mode=777 box box && mount -t proc proc proc && exec chroot . \
    setpriv --bounding-set=-all --inh-caps=-all --no-new-privs /runtape/pod /report
"""
SECOND_NS = 10**9
PATIENCE_S = 20.0
TOKEN = bytes(range(16))


def order(script: str, **changes: Any) -> Order:
    """Return the order of a shell script, with `changes`."""
    plain = Order(
        files=(("main.sh", script.encode()),),
        argv=(b"/bin/sh", b"main.sh"),
        env={b"PATH": b"/usr/bin:/bin"},
        rlimits=(),
        memory_bytes=0,
        processes=0,
        stdin=b"",
    )
    return plain._replace(**changes)


def limits(**changes: Any) -> Run:
    """Return what a program may use, with `changes`; without them more than any here wants."""
    minute_ns = 60 * SECOND_NS
    plain = Run(token=TOKEN, lease_ns=minute_ns, wall_ns=minute_ns, cpu_ns=minute_ns, output_bytes=64 << 20)
    return replace(plain, **changes)


class Attached:
    """One attachment to a container: what was said to it and what it said."""

    def __init__(self, container: "Container", after_seq: int) -> None:
        self._container = container
        self._link = Link(after_seq)
        self._came: list[Event] = []
        container.write(self._link.hello())

    async def next(self) -> Event:
        """Return what the runner says next."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._came:
                self._came.extend(self._link.take(await self._container.read()))
        return self._came.pop(0)

    async def until(self, kind: type[Event]) -> list[Event]:
        """Return what it says up to an event of that kind."""
        found = [await self.next()]
        while not isinstance(found[-1], kind):
            found.append(await self.next())
        return found

    async def records(self, count: int) -> list[Record]:
        """Return so many records, which are the next that come."""
        found: list[Record] = []
        while len(found) < count:
            event = await self.next()
            assert not isinstance(event, Report), event
            if isinstance(event, Record):
                found.append(event)
        return found

    async def outcome(self, acknowledges: bool = True) -> tuple[list[Record], Report]:
        """Return all records and the report, acknowledging as they come."""
        records: list[Record] = []
        while True:
            event = await self.next()
            if isinstance(event, Report):
                return records, event
            if isinstance(event, Record):
                records.append(event)
                if acknowledges:
                    self._container.write(protocol.acknowledge(event.seq))


class Container:
    """A runner in namespaces of its own; `root` is its file system."""

    def __init__(self, process: asyncio.subprocess.Process, root: Path) -> None:
        self.process = process
        self.root = root

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, runtape: Path, root: Path) -> AsyncIterator[Self]:
        """Start one with that folder `/runtape` in the empty folder `root`, and see it dead in the end."""
        command = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
        process = await asyncio.create_subprocess_exec(
            *command, "sh", "-c", CONTAINER, "sh", root, runtape, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            yield cls(process, root)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    def write(self, data: bytes) -> None:
        """Send bytes to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    async def read(self) -> bytes:
        """Return the next bytes that it has written.  Raises: EOFError."""
        assert self.process.stdout is not None
        data = await self.process.stdout.read(1 << 16)
        if not data:
            raise EOFError
        return data

    def attach(self, after_seq: int = 0) -> Attached:
        """Attach, as somebody who has the records up to `after_seq`."""
        return Attached(self, after_seq)

    async def run(self, what: Order, wanted: Run | None = None) -> Attached:
        """Attach and start a program."""
        attached = self.attach()
        await attached.until(protocol.Welcome)
        self.write(protocol.run(what, wanted or limits()))
        return attached

    def reported(self) -> Report:
        """Return the report in the file."""
        return protocol.report_of((self.root / "report").read_text())


def printed(records: Sequence[Record]) -> Mapping[str, bytes]:
    """Return what was printed, by stream, after a look at the numbers."""
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    streams = {record.stream.value for record in records}
    return {stream: b"".join(record.data for record in records if record.stream.value == stream) for stream in streams}

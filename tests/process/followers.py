"""Clients that follow a run to its end over any number of servers, and what such a client must have seen."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.server import Client, Server
from tests.e2e.sse import EventStream, Frame

BROKEN = (OSError, EOFError, asyncio.IncompleteReadError)
TERMINAL = frozenset(f"execution_{status}" for status in ("completed", "failed", "timeout", "cancelled"))


class Place:
    """Where the servers of one data folder can be found, one after another."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._there = asyncio.Event()
        self._there.set()

    def gone(self) -> None:
        self._there.clear()

    def back(self) -> None:
        self._there.set()

    async def client(self) -> Client:
        """Wait until there is a server, and return a client of it."""
        await self._there.wait()
        return self.server.client()


@dataclass
class Follower:
    """Follows one run: submits it until that is answered, then reads its stream and resumes it, to its end."""

    place: Place
    name: str
    script: str
    on_frame: Callable[[Frame], None] = lambda frame: None
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    execution_id: str | None = None
    frames: list[Frame] = field(default_factory=list[Frame])
    resumed: int = 0

    @property
    def last_id(self) -> str | None:
        return self.frames[-1].id if self.frames else None

    async def follow(self) -> None:
        while True:
            async with await self.place.client() as client:
                try:
                    if self.execution_id is None:
                        self.execution_id = await client.execute(self.script, key=self.name, **self.fields)
                    if await self._read(client):
                        return
                except BROKEN:
                    pass
                except Exception as error:  # the HTTP library's own ways to say that the server has gone
                    if type(error).__module__.partition(".")[0] != "httpx2":
                        raise
            # The server has gone in the middle; whoever ended it says when there is another.
            await asyncio.sleep(0)

    async def _read(self, client: Client) -> bool:
        async with client.stream(str(self.execution_id), self.last_id) as stream:
            assert stream.status == 200, await stream.whole()
            self.resumed += self.last_id is not None
            return await self._take(stream)

    async def _take(self, stream: EventStream) -> bool:
        while (frame := await stream.next(60)) is not None:
            if frame.event == "shutdown":
                self.place.gone()
            elif frame.id is not None:
                self.frames.append(frame)
                self.on_frame(frame)
                if frame.event == "end":
                    return True
        return False

    def check(self) -> dict[str, Any]:
        """Check what was seen: every event once, every record of an attempt once; return the result."""
        lifecycle = [frame for frame in self.frames if not frame.event]
        versions = [int(str(frame.id).split(".")[0]) for frame in lifecycle]
        assert versions == list(range(1, len(versions) + 1)), (self.name, versions)
        kinds = [frame.kind for frame in lifecycle]
        assert sum(kind in TERMINAL for kind in kinds) == 1, kinds
        assert kinds[-1] == "result_stored"
        assert [frame.event for frame in self.frames[-2:]] == ["", "end"]
        assert "gap" not in {frame.event for frame in self.frames}
        records = [(frame.data["attempt"], frame.data["seq"]) for frame in self.frames if frame.event == "output"]
        counts = Counter(attempt for attempt, _ in records)
        expected = [(attempt, seq) for attempt in sorted(counts) for seq in range(1, counts[attempt] + 1)]
        assert records == expected, (self.name, records)
        attempts = kinds.count("execution_started")
        assert attempts <= 3
        assert max(counts, default=0) <= attempts
        return lifecycle[-1].data["result"]

    def printed(self, attempt: int) -> bytes:
        """Return what the stream carried of one attempt's standard output."""
        return b"".join(
            frame.output
            for frame in self.frames
            if frame.event == "output" and frame.data["attempt"] == attempt and frame.data["stream"] == "stdout"
        )

"""Clients that follow a run to its end over any number of servers, and write down what they are told."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.server import Client, Server
from tests.e2e.sse import EventStream, Frame
from tests.process.histories import Journal, frame_facts, whole_facts

BROKEN = (OSError, EOFError, asyncio.IncompleteReadError)
TERMINAL = frozenset(f"execution_{status}" for status in ("completed", "failed", "timeout", "cancelled"))
PATIENCE_S = 60.0
UNAVAILABLE = (429, 503)


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
    """Follows one run: submits it until that is answered, then reads its stream and resumes it, to its end.

    With `cut_bytes` each connection is lost after so many bytes; one that brought nothing doubles that for the next.
    """

    place: Place
    name: str
    script: str
    journal: Journal
    on_frame: Callable[[Frame], None] = lambda frame: None
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    cut_bytes: int | None = None
    execution_id: str | None = None
    refused: bool = False
    frames: list[Frame] = field(default_factory=list[Frame])
    resumed: int = 0

    @property
    def last_id(self) -> str | None:
        return self.frames[-1].id if self.frames else None

    async def follow(self) -> None:
        """Return at the end of the run, or when it was refused."""
        while True:
            async with await self.place.client() as client:
                try:
                    if self.execution_id is None and not await self.submit(client):
                        return
                    if await self.read(client):
                        return
                except BROKEN as error:
                    self._broken(error)
                except Exception as error:  # the HTTP library's own ways to say that the server has gone
                    if type(error).__module__.partition(".")[0] != "httpx2":
                        raise
                    self._broken(error)
            # The server has gone in the middle; whoever ended it says when there is another.
            await asyncio.sleep(0)

    def _broken(self, error: Exception) -> None:
        if self.execution_id is None:
            self.journal.note("info", "submit", key=self.name, body=self.body, error=repr(error))
        else:
            self.journal.note("info", "stream", execution_id=self.execution_id, error=repr(error))

    @property
    def body(self) -> str:
        """What stands for the request in the history."""
        return hashlib.sha256(f"{self.script} {self.fields}".encode()).hexdigest()

    async def submit(self, client: Client) -> bool:
        """Submit; return whether it was accepted."""
        self.journal.note("invoke", "submit", key=self.name, body=self.body)
        request = {"script": self.script, "lang": "python", **self.fields}
        answer = await client.post("/execute", json=request, headers={"idempotency-key": self.name})
        told = answer.json()
        self.refused = answer.status_code in UNAVAILABLE
        if self.refused:
            self.journal.note(
                "fail", "submit", key=self.name, body=self.body, status=answer.status_code, code=told["code"]
            )
            return False
        assert answer.status_code == 200, told
        self.execution_id = told["execution_id"]
        self.journal.note("ok", "submit", key=self.name, body=self.body, execution_id=self.execution_id)
        return True

    async def read(self, client: Client) -> bool:
        """Read on from the last frame; return whether the end came."""
        seen = len(self.frames)
        self.journal.note("invoke", "stream", execution_id=self.execution_id, last_id=self.last_id)
        try:
            async with client.stream(str(self.execution_id), self.last_id, cut_after_bytes=self.cut_bytes) as stream:
                if stream.status in UNAVAILABLE:
                    return False
                assert stream.status == 200, await stream.whole()
                self.resumed += self.last_id is not None
                return await self._take(stream)
        finally:
            if self.cut_bytes is not None and len(self.frames) == seen:
                self.cut_bytes *= 2

    async def _take(self, stream: EventStream) -> bool:
        while (frame := await stream.next(PATIENCE_S)) is not None:
            if frame.event == "shutdown":
                self.place.gone()
            elif frame.id is not None:
                self.frames.append(frame)
                self.journal.note("info", "frame", execution_id=self.execution_id, **frame_facts(frame))
                self.on_frame(frame)
                if frame.event == "end":
                    self.journal.note("ok", "stream", execution_id=self.execution_id)
                    return True
        return False

    async def cancel(self, client: Client) -> None:
        """Ask for the end of the run."""
        self.journal.note("invoke", "cancel", execution_id=self.execution_id)
        answer = await client.post(f"/executions/{self.execution_id}/cancel")
        kind = "ok" if answer.status_code == 200 else "fail"
        self.journal.note(
            kind, "cancel", execution_id=self.execution_id, status=answer.status_code, code=answer.json().get("code")
        )

    async def read_whole(self, client: Client) -> list[Frame]:
        """Read the stream as one who comes when all is over, and write it down."""
        async with client.stream(str(self.execution_id)) as stream:
            frames = [frame for frame in await stream.rest() if frame.id is not None]
        self.journal.note("info", "whole", execution_id=self.execution_id, frames=whole_facts(frames))
        return frames

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

"""A server under faults, with the clients that follow its runs and what they wrote down."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.server import Server
from tests.e2e.sse import Frame
from tests.process import histories, invariants
from tests.process.followers import Follower, Place
from tests.process.histories import NEMESIS, Journal
from tests.process.remains import Doomed, Remains, descendants

BEGIN_S = 20.0


@dataclass
class Trial:
    """Runs on `server`, which is started here; `over` ends it and says what does not hold."""

    server: Server
    folder: Path
    temporary: Path
    followers: list[Follower] = field(default_factory=list[Follower])
    following: list["asyncio.Task[None]"] = field(default_factory=list["asyncio.Task[None]"])

    def __post_init__(self) -> None:
        self.nemesis = Journal(self.folder, NEMESIS)
        self._remains = Remains(self.server.data, self.temporary)
        self.place = Place(self.server.start())

    def submit(self, name: str, script: str, *, cut_bytes: int | None = None, **fields: Any) -> Follower:
        """Submit a run and follow it to its end."""
        follower = Follower(self.place, name, script, Journal(self.folder, name), fields=fields, cut_bytes=cut_bytes)
        self.followers.append(follower)
        self.following.append(asyncio.create_task(follower.follow()))
        return follower

    async def until(self, *followers: Follower, frame: Callable[[Frame], bool]) -> None:
        """Return once each of `followers` has got such a frame."""
        moments: list[asyncio.Event] = []

        def watch(follower: Follower) -> None:
            moment = asyncio.Event()
            moments.append(moment)

            def look(new: Frame) -> None:
                if frame(new):
                    moment.set()

            follower.on_frame = look
            for seen in follower.frames:
                look(seen)

        for follower in followers:
            watch(follower)
        async with asyncio.timeout(BEGIN_S):
            for moment in moments:
                await moment.wait()

    async def printed(self, *followers: Follower) -> None:
        """Return once each of `followers` has got output."""
        await self.until(*followers, frame=lambda frame: frame.event == "output")

    async def ended(self, within_s: float) -> None:
        """Return once every follower has got its end, or was refused."""
        async with asyncio.timeout(within_s):
            await asyncio.gather(*self.following)

    async def over(self) -> list[invariants.Violation]:
        """Start the server again in peace, read every stream as a whole, stop it; return what does not hold."""
        await self.stop()
        await asyncio.to_thread(self.server.start)
        async with self.server.client() as client:
            for follower in self.followers:
                if follower.execution_id is not None:
                    await follower.read_whole(client)
        await self.stop()
        stored = invariants.read(self.server.data / "runtape.db")
        return invariants.check(histories.load(self.folder), stored, self._remains.left())

    async def stop(self) -> None:
        """Stop the server, which must leave in peace with everything that it has."""
        doomed = Doomed(descendants(self.server.pid))
        assert await asyncio.to_thread(self.server.stop) == 0
        await asyncio.to_thread(doomed.died)

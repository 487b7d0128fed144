"""Ten thousand streams of one process of the API: `./runtape rig streams`.

Runs are accepted by one process and watched at another, ten streams each.  Programs print when they are told to, so
that a delivery takes from the word to the worker until the frame is with the client: over the tape, the nudge, the
process of the API and the loopback.  Then every connection is cut and comes back with its last id.

The exit code is 1 when a stream has a gap or a duplicate, or when streams take connections to Redis.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from redis import Redis

from runtape.bench.figures import percentile
from runtape.runtime.serving import loop_factory
from tests.cluster.bench import cpu_s
from tests.cluster.plugin import seeded
from tests.cluster.processes import Cluster
from tests.e2e.server import Client

PER_S = 500
AT_ONCE = 5_000
OPENED_AT_ONCE = 200
READY_S = 300.0
QUIET_S = 30.0


class Figures(dict[str, Any]):
    """What was found, told as it is."""

    def __setitem__(self, name: str, value: object) -> None:
        super().__setitem__(name, value)
        _say(f"  {name} {value}")


class Reader(asyncio.Protocol):
    """A client of one stream: when which output came, by what it says."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self.last_id = b""
        self.came_at_s: dict[bytes, list[float]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        again = b"Last-Event-ID: " + self.last_id + b"\r\n" if self.last_id else b""
        self._transport.write(self._request + again + b"\r\n")

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        *frames, self._rest = (self._rest + data).replace(b"\r\n\r\n", b"\n\n").split(b"\n\n")
        for frame in frames:
            _, found, after = frame.partition(b"id: ")
            if found:
                self.last_id = after.split(b"\n", 1)[0]
            if b"event: output" in frame:
                text = frame.partition(b'"text":"')[2].partition(b'\\n"')[0]
                self.came_at_s.setdefault(text, []).append(now_s)

    def has_once(self, *texts: bytes) -> bool:
        """Whether each of these came once, and nothing else."""
        return {text: len(times) for text, times in self.came_at_s.items()} == dict.fromkeys(texts, 1)

    def cut(self) -> None:
        """Lose the connection."""
        if self._transport is not None:
            self._transport.abort()
        self._rest = b""


class Crowd:
    """Streams of one process of the API."""

    def __init__(self, url: str, key: str) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self._head = f"Host: {self._host}\r\nAuthorization: Bearer {key}\r\nAccept: text/event-stream\r\n"
        self.readers: list[Reader] = []

    def add(self, execution_id: str) -> Reader:
        """Return another reader of the execution, which `open` connects."""
        self.readers.append(Reader(f"GET /api/v1/events/{execution_id} HTTP/1.1\r\n{self._head}".encode()))
        return self.readers[-1]

    async def open(self) -> None:
        """Connect all."""
        for start in range(0, len(self.readers), OPENED_AT_ONCE):
            loop = asyncio.get_running_loop()
            some = self.readers[start : start + OPENED_AT_ONCE]
            await asyncio.gather(*(_connect(loop, reader, str(self._host), int(self._port or 0)) for reader in some))

    def cut(self) -> None:
        """Lose all connections."""
        for reader in self.readers:
            reader.cut()

    async def until(self, text: bytes, wait_s: float) -> None:
        """Return once each has had an output that begins with `text`."""
        async with asyncio.timeout(wait_s):
            for reader in self.readers:
                while not any(each.startswith(text) for each in reader.came_at_s):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def _connect(loop: asyncio.AbstractEventLoop, reader: Reader, host: str, port: int) -> None:
    await loop.create_connection(lambda: reader, host, port)


async def measure(cluster: Cluster, executions: int, each: int) -> dict[str, Any]:
    """Return the figures."""
    redis = Redis.from_url(cluster.redis.url)
    accepting, watching = cluster.apis
    api = watching.pid

    def connections() -> int:
        return redis.info("clients")["connected_clients"]  # type: ignore[index]

    _say(f"{executions} runs")
    async with Client(accepting.url, cluster.keys["local"]) as client:
        places = asyncio.Semaphore(16)

        async def begin(number: int) -> str:
            async with places:
                return await client.execute(f"print a\nwait b-{number}\nprint b\nwait c\nprint c\nwait end")

        ids = await asyncio.gather(*(begin(number) for number in range(executions)))
        probe = Crowd(watching.url, cluster.keys["local"])
        for execution_id in ids:
            probe.add(execution_id)
        await probe.open()
        await probe.until(b"a", READY_S)
        probe.cut()

        found = Figures({"executions": executions, "streams": executions * each})
        crowd = Crowd(watching.url, cluster.keys["local"])
        of = [[crowd.add(execution_id) for _ in range(each)] for execution_id in ids]
        before_kib, before = _rss_kib(api), connections()
        _say(f"{executions * each} streams")
        began_s = time.monotonic()
        await crowd.open()
        await crowd.until(b"a", READY_S)
        found["opened_s"] = round(time.monotonic() - began_s, 1)
        found["kib_per_stream"] = round((_rss_kib(api) - before_kib) / len(crowd.readers), 1)
        found["redis_connections"] = [before, connections()]

        _say(f"nothing for {QUIET_S:g} s, but two heartbeats")
        spent_s = cpu_s(api)
        await asyncio.sleep(QUIET_S)
        found["quiet_cpu_share"] = round((cpu_s(api) - spent_s) / QUIET_S, 2)

        _say(f"{PER_S} deliveries a second")
        late_ms: list[float] = []
        sent_s: list[float] = []
        for number in range(executions):
            sent_s.append(time.monotonic())
            cluster.let(f"b-{number}")
            await asyncio.sleep(max(0.0, sent_s[0] + (number + 1) * each / PER_S - time.monotonic()))
        await crowd.until(b"b", QUIET_S)
        for number, readers in enumerate(of):
            late_ms += [1000 * (reader.came_at_s[b"b"][0] - sent_s[number]) for reader in readers]
        found["delivery_ms"] = {
            f"p{share * 100:g}": round(percentile(sorted(late_ms), share), 1) for share in (0.5, 0.95, 0.99)
        }

        _say("every connection is cut and comes back")
        crowd.cut()
        began_s = time.monotonic()
        await crowd.open()
        found["reopened_s"] = round(time.monotonic() - began_s, 1)
        cluster.let("c")
        with contextlib.suppress(TimeoutError):  # the streams that lack it are counted
            await crowd.until(b"c", READY_S)
        found["gaps_or_duplicates"] = sum(not reader.has_once(b"a", b"b", b"c") for reader in crowd.readers)
        crowd.cut()

        _say(f"one frame to {AT_ONCE} streams")
        execution_id = await client.execute("print a\nwait one\nprint b\nwait end")
        many = Crowd(watching.url, cluster.keys["local"])
        for _ in range(AT_ONCE):
            many.add(execution_id)
        await many.open()
        await many.until(b"a", READY_S)
        began_s = time.monotonic()
        cluster.let("one")
        await many.until(b"b", QUIET_S)
        found[f"one_frame_to_{AT_ONCE}_s"] = round(max(each.came_at_s[b"b"][0] for each in many.readers) - began_s, 3)
        many.cut()
    return found


def _rss_kib(pid: int) -> int:
    fields = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("VmRSS"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as text."""
    return "\n".join(f"{name:<26}{value}" for name, value in figures.items())


def wrong(figures: Mapping[str, Any]) -> list[str]:
    """Return, in words, what must not be, whatever the machine."""
    found: list[str] = []
    if streams := figures["gaps_or_duplicates"]:
        found.append(f"{streams} of {figures['streams']} streams have gaps or duplicates")
    before, after = figures["redis_connections"]
    if after > before:
        found.append(f"connections to Redis: {before} before, {after} with {figures['streams']} streams")
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="./runtape rig streams", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--executions", type=int, default=1_000)
    parser.add_argument("--each", type=int, default=10, help="streams of each execution")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="runtape-streams-") as folder:
        cluster = Cluster(Path(folder), apis=2, each=1, running=options.executions + 10)
        try:
            cluster.begin()
            cluster.keys.update(asyncio.run(seeded(cluster)))
            cluster.until_ready()
            with asyncio.Runner(loop_factory=loop_factory()) as runner:  # the faster loop: clients are not measured
                found = runner.run(measure(cluster, options.executions, options.each))
        finally:
            cluster.close()
    print(json.dumps(found) if options.json else table(found))
    findings = wrong(found)
    for each in findings:
        _say(f"FOUND: {each}")
    return 1 if findings else 0

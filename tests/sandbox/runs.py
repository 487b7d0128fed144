"""Running one script in a `LocalSandbox` and looking at all that came of it."""

import asyncio
import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from runtape.adapters.sandbox import LocalSandbox
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, Usage
from runtape.domain.source import Source, SourceFile
from runtape.domain.tape import Record, Stream
from runtape.ports.pod_runtime import PodEnded, PodKey, PodSpec

ENDED_WITHIN_S = 30.0
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Result:
    records: list[Record]
    ended: PodEnded

    @property
    def outcome(self) -> Outcome:
        return self.ended.outcome

    @property
    def usage(self) -> Usage:
        return self.ended.usage

    @property
    def stdout(self) -> bytes:
        return b"".join(record.data for record in self.records if record.stream is Stream.STDOUT)

    @property
    def stderr(self) -> bytes:
        return b"".join(record.data for record in self.records if record.stream is Stream.STDERR)

    @property
    def text(self) -> str:
        """What was printed to stdout, of a program that must have ended well."""
        assert self.outcome.exit_code == 0, (self.outcome, self.stderr.decode(errors="replace"))
        return self.stdout.decode().strip()


@dataclass(frozen=True, slots=True)
class Left:
    """How a program ended, and the files that it left."""

    ended: PodEnded
    files: dict[str, bytes]

    @property
    def left_out(self) -> dict[str, int]:
        return {each.reason: each.count for each in self.ended.left_out}


async def version_of(sandbox: LocalSandbox, lang: str) -> str:
    """Return the version to use: of Python the oldest of 3.11 and up, the system's own where there is one."""
    versions = [each.version for each in await sandbox.runtimes() if each.lang == lang]
    modern = [version for version in versions if lang != "python" or int(version.split(".")[1]) >= 11]
    return (modern or versions)[-1]


async def way_of(sandbox: LocalSandbox) -> str:
    """Return how a Python program comes to its box: "forked", "execd" or "in_python"."""
    if "zygote.py" in (await run(sandbox, "print(open('/proc/self/cmdline').read())")).text:
        return "forked"
    return "execd" if sandbox.native else "in_python"


async def start(
    sandbox: LocalSandbox,
    script: str,
    *,
    lang: str = "python",
    version: str | None = None,
    limits: Limits | None = None,
    stdin: bytes = b"",
    args: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    files: dict[str, bytes] | None = None,
    requirements: tuple[str, ...] = (),
    lease_s: float = 60.0,
    timeline: bool = False,
) -> PodKey:
    """Start a script and return its key."""
    key = PodKey(ExecutionId(f"run-{next(_numbers)}"), 1)
    spec = PodSpec(
        execution_id=key.execution_id,
        lang=lang,
        lang_version=version or await version_of(sandbox, lang),
        source=Source(
            script=script,
            stdin=stdin,
            args=args,
            env=tuple((env or {}).items()),
            files=tuple(SourceFile(path, content) for path, content in (files or {}).items()),
            requirements=requirements,
        ),
        limits=limits or Limits(),
        timeline=timeline,
    )
    await sandbox.start(spec, 1, datetime.now(UTC) + timedelta(seconds=lease_s))
    return key


async def finish(sandbox: LocalSandbox, key: PodKey) -> Result:
    """Return what a started script printed and how it ended, and remove it."""
    async with asyncio.timeout(ENDED_WITHIN_S):
        records = [record async for batch in sandbox.records(key) for record in batch]
        ended = await end_of(sandbox, key)
    await sandbox.remove(key)
    return Result(records, ended)


async def end_of(sandbox: LocalSandbox, key: PodKey) -> PodEnded:
    async for ended in sandbox.watch():
        if ended.key == key:
            return ended
    raise AssertionError("the watch stopped before the pod ended")


async def run(sandbox: LocalSandbox, script: str, **how: object) -> Result:
    """Run a script to its end; `how` as for `start`."""
    return await finish(sandbox, await start(sandbox, script, **how))  # pyright: ignore[reportArgumentType]


async def left_by(sandbox: LocalSandbox, script: str, **how: object) -> Left:
    """Run a script to its end and return what it has left; `how` as for `start`."""
    key = await start(sandbox, script, **how)  # pyright: ignore[reportArgumentType]
    async with asyncio.timeout(ENDED_WITHIN_S):
        ended = await end_of(sandbox, key)
    files = [(file.path, file.content) async for file in sandbox.artifacts(key)]
    assert len(files) == ended.artifacts
    assert files == sorted(files, key=lambda file: file[0].encode())
    await sandbox.remove(key)
    assert [file async for file in sandbox.artifacts(key)] == []
    return Left(ended, dict(files))


async def until_printed(sandbox: LocalSandbox, key: PodKey, text: bytes) -> None:
    """Return when the script has printed `text`."""
    seen = b""
    async with asyncio.timeout(ENDED_WITHIN_S):
        async for batch in sandbox.records(key):
            seen += b"".join(record.data for record in batch)
            if text in seen:
                return
    raise AssertionError(f"{text!r} was not printed, but {seen!r}")


def name_of(pid: int) -> str:
    """Return what a process is called, or nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def descendants(pid: int) -> set[int]:
    """Return all processes below `pid`, as /proc has them now."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        try:
            below = children(waiting.pop())
        except OSError:
            continue
        waiting += below - found
        found |= below
    return found


def children(pid: int) -> set[int]:
    """Return the processes that `pid` has started and that have not been reaped."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}

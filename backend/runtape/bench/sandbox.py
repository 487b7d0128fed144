"""`runtape bench sandbox`: the local sandbox alone, beside a bare exec and what else can run a program confined.

Every round takes all contenders one after another, so that what else goes on at the machine meets all of them; a ratio
is the median over the rounds of (median of the contender / median of the bare interpreter in the same round).
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from runtape.adapters.sandbox import LocalSandbox
from runtape.adapters.sandbox.runtimes import InstalledRuntime, detect
from runtape.bench.errors import BenchError, WrongAnswer
from runtape.bench.figures import percentile, rounded
from runtape.bench.peers import GET_BUBBLEWRAP, GET_GO_JUDGE, GoJudge, bubblewrap
from runtape.bench.procfs import descendants, load_average, machine, proportional_bytes
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.source import Source
from runtape.ports.errors import SandboxUnavailable
from runtape.ports.pod_runtime import PodKey, PodSpec

_LEASE = timedelta(seconds=60)
_IDLE_S = 0.015
"""Pause before a run in which its box is armed and rehearsed, as between the requests of one user."""
_AT_ONCE = 4
_SETTLE_S = 0.5
_GET_OWN_KERNEL = "own kernel: gVisor, as runtape doctor says"


@dataclass(slots=True)
class _Contender:
    """Something that runs one small program to its end; `run` returns what that printed."""

    name: str
    run: Callable[[], Awaitable[bytes]]
    idle_s: float = 0.0
    yardstick: str = "bare python"
    per_round: int = 20
    latencies_s: list[list[float]] = field(default_factory=list[list[float]])
    per_s: list[float] = field(default_factory=list[float])


def main(arguments: Sequence[str]) -> int:
    """Measure and report; return 0 when it was measured, whatever the figures, and 1 when something was wrong."""
    parser = argparse.ArgumentParser(
        prog="runtape bench sandbox", description="Measure the local sandbox beside a bare exec."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="rounds of all contenders (10)")
    parser.add_argument(
        "--go-judge", default=shutil.which("go-judge"), metavar="PATH", help="go-judge, when it is not on PATH"
    )
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="runtape-bench-"))
    try:
        found = asyncio.run(_measure(folder, max(options.rounds, 1), options.go_judge))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found) if options.json else _table(found))
    return 0


async def _measure(folder: Path, rounds: int, go_judge: str | None) -> dict[str, object]:
    installed = {each.runtime.lang: each for each in reversed((await asyncio.to_thread(detect))[0])}
    python = installed.get("python")
    if python is None:
        raise BenchError("no Python that the sandbox could run; install python3")
    facts, load_before = machine(folder), load_average()
    begun_s = time.perf_counter()
    async with LocalSandbox(folder) as sandbox, AsyncExitStack() as stack:
        opened_s = time.perf_counter() - begun_s
        await sandbox.warmed(python.runtime.lang, python.runtime.version)
        warm_s = time.perf_counter() - begun_s
        await asyncio.sleep(_SETTLE_S)
        memory = _memory()
        judge = None
        if go_judge is not None:
            judge = GoJudge(go_judge, python, folder / "go-judge", _AT_ONCE)
            stack.callback(judge.stop)
            await asyncio.to_thread(judge.start)
        own_kernel = await _own_kernel(stack, folder / "gvisor")
        contenders = _contenders(sandbox, python, installed.get("node"), judge, own_kernel)
        for number in range(rounds):
            for each in contenders if number % 2 else reversed(contenders):
                each.latencies_s.append([await _time(each) for _ in range(each.per_round)])
                if each.yardstick == "bare python" and not each.idle_s:
                    each.per_s.append(await _throughput(each))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {
        "machine": {**facts, "load_before": load_before, "load_after": load_average()},
        "rounds": rounds,
        "interpreter": {"path": python.binary, "version": python.runtime.version},
        "opened_ms": rounded(opened_s * 1e3),
        "first_forked_box_ms": rounded(warm_s * 1e3),
        "memory": memory,
        "contenders": {each.name: _figures(each, contenders) for each in contenders},
        "not_here": [
            how
            for how, found in (
                (GET_BUBBLEWRAP, bubblewrap(python)),
                (GET_GO_JUDGE, go_judge),
                (_GET_OWN_KERNEL, own_kernel),
            )
            if found is None
        ],
    }


async def _own_kernel(stack: AsyncExitStack, folder: Path) -> LocalSandbox | None:
    """Open the tier in which each program has a kernel of its own; None where it cannot be had."""
    await asyncio.to_thread(folder.mkdir)
    try:
        return await stack.enter_async_context(LocalSandbox(folder, own_kernel=True))
    except SandboxUnavailable:
        return None


def _contenders(
    sandbox: LocalSandbox,
    python: InstalledRuntime,
    node: InstalledRuntime | None,
    judge: GoJudge | None,
    own_kernel: LocalSandbox | None,
) -> list[_Contender]:
    command = [python.binary, "-I", "-S", "-c", "print(1)"]
    found = [
        _Contender("bare python", lambda: _exec(command)),
        _Contender("armed", lambda: _run(sandbox, python, "print(1)"), idle_s=_IDLE_S),
        _Contender("back to back", lambda: _run(sandbox, python, "print(1)")),
    ]
    if (wrapper := bubblewrap(python)) is not None:
        confined = [*wrapper, *command]
        found.append(_Contender("bubblewrap", lambda: _exec(confined), per_round=10))
    if judge is not None:
        found.append(_Contender("go-judge", lambda: judge.run(command), per_round=10))
    if own_kernel is not None:
        found.append(_Contender("own kernel", lambda: _run(own_kernel, python, "print(1)"), per_round=3))
    if node is not None:
        script = [node.binary, "-e", "console.log(1)"]
        bare = _Contender("bare node", lambda: _exec(script), yardstick="bare node", per_round=5)
        ours = _Contender("node", lambda: _run(sandbox, node, "console.log(1)"), _IDLE_S, "bare node", 5)
        found += [bare, ours]
    return found


_numbers = count()


async def _run(sandbox: LocalSandbox, runtime: InstalledRuntime, script: str) -> bytes:
    key = PodKey(ExecutionId(f"bench-{next(_numbers)}"), 1)
    kind = runtime.runtime
    spec = PodSpec(
        execution_id=key.execution_id,
        lang=kind.lang,
        lang_version=kind.version,
        source=Source(script=script),
        limits=Limits(),
    )
    await sandbox.start(spec, key.attempt, datetime.now(UTC) + _LEASE)
    printed = b"".join([record.data async for batch in sandbox.records(key) for record in batch])
    await sandbox.remove(key)
    return printed


async def _exec(command: list[str]) -> bytes:
    """Run a command by posix_spawn with a pipe, in a thread of its own: the cheapest way there is."""
    return await asyncio.to_thread(_spawn, command)


def _spawn(command: list[str]) -> bytes:
    read_end, write_end = os.pipe()
    pid = os.posix_spawn(command[0], command, {}, file_actions=[(os.POSIX_SPAWN_DUP2, write_end, 1)])
    os.close(write_end)
    printed = b""
    while piece := os.read(read_end, 4096):
        printed += piece
    os.close(read_end)
    os.waitpid(pid, 0)
    return printed


async def _time(contender: _Contender) -> float:
    if contender.idle_s:
        await asyncio.sleep(contender.idle_s)
    begun_s = time.perf_counter()
    printed = await contender.run()
    elapsed_s = time.perf_counter() - begun_s
    if printed != b"1\n":
        raise WrongAnswer(f"{contender.name} printed {printed!r}")
    return elapsed_s


async def _throughput(contender: _Contender) -> float:
    """Return runs per second of some clients at once."""
    turns = iter(range(_AT_ONCE * contender.per_round))

    async def go_on() -> None:
        for _ in turns:
            await contender.run()

    begun_s = time.perf_counter()
    await asyncio.gather(*(go_on() for _ in range(_AT_ONCE)))
    return _AT_ONCE * contender.per_round / (time.perf_counter() - begun_s)


def _memory() -> dict[str, object]:
    """Return what the processes of the sandbox hold while nothing runs, shared pages by their share."""
    held = {pid: proportional_bytes(pid) for pid in descendants(os.getpid())}
    return {"processes": len(held), "mib": rounded(sum(held.values()) / 2**20)}


def _figures(contender: _Contender, all_of_them: Sequence[_Contender]) -> dict[str, object]:
    (yardstick,) = (each for each in all_of_them if each.name == contender.yardstick)
    bare_p50_s = [statistics.median(latencies_s) for latencies_s in yardstick.latencies_s]
    every_s = [seconds for latencies_s in contender.latencies_s for seconds in latencies_s]
    found: dict[str, object] = {
        "runs": len(every_s),
        "p50_ms": rounded(percentile(every_s, 0.5) * 1e3),
        "p95_ms": rounded(percentile(every_s, 0.95) * 1e3),
        "p50_ratio": _ratio([statistics.median(each) for each in contender.latencies_s], bare_p50_s),
        "p95_ratio": _ratio([percentile(each, 0.95) for each in contender.latencies_s], bare_p50_s),
    }
    if contender.per_s:
        found["per_s_at_4"] = rounded(statistics.median(contender.per_s))
        found["throughput_ratio"] = _ratio(contender.per_s, yardstick.per_s)
    return found


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return rounded(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)))


_TARGETS = (
    ("armed", "p50_ratio", "<=", 0.35),
    ("armed", "p95_ratio", "<=", 0.5),
    ("back to back", "throughput_ratio", ">=", 2.0),
    ("node", "p50_ratio", "<=", 1.0),
)


def _table(found: dict[str, object]) -> str:
    facts, contenders, memory = found["machine"], found["contenders"], found["memory"]
    assert isinstance(facts, dict) and isinstance(contenders, dict) and isinstance(memory, dict)
    lines = [
        f"{facts['cores']} cores, {facts['processor']}, kernel {facts['kernel']};"
        f" load {facts['load_before']} before, {facts['load_after']} after",
        f"open after {found['opened_ms']} ms, first forked box after {found['first_forked_box_ms']} ms;"
        f" {memory['mib']} MiB in {memory['processes']} processes",
        "",
        f"{'hello world':<14} {'p50 ms':>8} {'p95 ms':>8} {'p50/bare':>9} {'p95/bare p50':>13} {'4 at once':>10}",
    ]
    for name, row in contenders.items():
        rate = f"{row['throughput_ratio']}x" if "throughput_ratio" in row else ""
        lines.append(
            f"{name:<14} {row['p50_ms']:>8} {row['p95_ms']:>8} {row['p50_ratio']:>9} {row['p95_ratio']:>13} {rate:>10}"
        )
    lines += [f"not here: {what}" for what in (found["not_here"] if isinstance(found["not_here"], list) else [])]
    lines += ["", "targets"]
    for name, figure, sign, bound in _TARGETS:
        if name in contenders:
            value = contenders[name][figure]
            reached = value <= bound if sign == "<=" else value >= bound
            said = "reached" if reached else "NOT reached"
            lines.append(f"  {name + ' ' + figure:<32} {value:>8}   {sign} {bound:<6} {said}")
    return "\n".join(lines)

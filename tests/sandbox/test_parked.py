"""A program whose interpreter was parked in its box behaves as one that starts its own."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from runtape.adapters.sandbox import LocalSandbox, local, runtimes
from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind
from tests.prove.weakened import Weakness, weaken
from tests.sandbox.runs import Result, descendants, run, start, until_printed, version_of

pytestmark = [
    pytest.mark.needs("sandbox"),
    pytest.mark.needs("node"),
    pytest.mark.asyncio(loop_scope="module"),
]
HOW = "console.log(require('fs').readFileSync('/proc/self/cmdline', 'utf8').includes('/runtape/node.js'))"


async def node(sandbox: LocalSandbox, script: str, **how: object) -> Result:
    """Run a script; `how` as for `start`."""
    return await run(sandbox, script, lang="node", **how)


async def is_parked(sandbox: LocalSandbox, **how: object) -> bool:
    """Return whether a program that is run so finds its interpreter started, once that could be in stock."""
    await sandbox.warmed("node", await version_of(sandbox, "node"))
    return {"true": True, "false": False}[(await node(sandbox, HOW, **how)).text]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LocalSandbox, LocalSandbox]]:
    """A sandbox that parks interpreters and one that execs them."""
    folder = tmp_path_factory.mktemp("both")
    async with LocalSandbox(folder / "a") as parking, LocalSandbox(folder / "b", warm=False) as execing:
        assert (await is_parked(parking), await is_parked(execing)) == (True, False)
        yield parking, execing


# The frames below a script's own, and what of stack traces names the interpreter's own files.
FRAMES = re.compile(rb"\n    at .*node:internal.*")
SCRIPTS = {
    "nothing": "",
    "exit code": "process.exit(7)",
    "exit code that is set": "process.exitCode = 3; setTimeout(() => console.log('late'), 1)",
    "uncaught error": "function f() { throw new Error('boom') }\nf()",
    "thrown text": "throw 'words'",
    "syntax error": "let x = ;",
    "rejection": "Promise.reject(new Error('no'))",
    "killed by a signal": "process.kill(process.pid, 'SIGTERM'); setTimeout(() => 0, 5000)",
    "handler": "process.on('exit', (code) => console.log('bye', code));"
    " process.on('beforeExit', () => console.log('before'))",
    "arguments": "console.log(process.argv, process.execArgv, process.argv0, process.execPath)",
    "module": "console.log(require.main === module, module.id, __filename, __dirname, require.main.filename,"
    " module.paths, Object.keys(require.cache), module.children.length, module.parent)",
    "modules and folders": "console.log(require('./helper').kept, require('dep'), require.resolve('./helper'))",
    "import": "import('./other.mjs').then((other) => console.log(other.default, require.main.filename))",
    "environment": "console.log(Object.entries(process.env).sort(), 'A' in process.env)",
    "environment of a child": "process.stdout.write(require('child_process').execFileSync('/usr/bin/env'))",
    "stdin": "process.stdin.setEncoding('utf8').on('data', (text) => process.stdout.write(text.toUpperCase()))",
    "stdin at once": "console.log(require('fs').readFileSync(0, 'utf8'))",
    "lines": "require('readline').createInterface({ input: process.stdin }).on('line', (l) => console.log('>', l))",
    "streams": "console.log(process.stdout.constructor.name, process.stdout.isTTY, process.stdin.isTTY)",
    "order of callbacks": "setTimeout(() => console.log('timeout'), 500);"
    " setImmediate(() => console.log('immediate')); process.nextTick(() => console.log('tick'));"
    " Promise.resolve().then(() => console.log('then')); console.log('now')",
    "globals": "console.log(Object.getOwnPropertyNames(globalThis).filter((n) => !n.startsWith('web')).sort().join())",
    "descriptors": "const fs = require('fs'); const all = fs.readdirSync('/proc/self/fd').flatMap((fd) => {"
    " try { return fs.readlinkSync(`/proc/self/fd/${fd}`).replace(/\\d+/g, '') } catch { return [] } });"
    " console.log(all.filter((path) => path !== '/dev/null').sort().join())",
    "processes": "console.log(require('fs').readdirSync('/proc').filter((name) => /^\\d+$/.test(name)).length)",
    "limits": "console.log(require('fs').readFileSync('/proc/self/limits', 'utf8'))",
    "folder": "console.log(process.cwd(), require('fs').readdirSync('.').sort(), process.umask(), process.getuid())",
    "worker": "const { Worker } = require('worker_threads');"
    " new Worker('console.log(typeof require, process.argv[1])', { eval: true, argv: ['w'] })",
    "child": "require('child_process').fork('./helper.js').on('exit', (code) => console.log('exit', code))",
    "age": "console.log(performance.timeOrigin > 0, Date.now() - performance.timeOrigin >= performance.now() - 1000)",
}
FILES = {
    "helper.js": b"exports.kept = 'helper'; if (require.main === module) console.log('main', process.execArgv)",
    "other.mjs": b"export default 'other'",
    "node_modules/dep/index.js": b"module.exports = 'dep'",
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_parked_interpreter_does_what_one_that_starts_does(
    both: tuple[LocalSandbox, LocalSandbox], name: str
) -> None:
    how = {"stdin": b"one\ntwo\n", "args": ("x", "", "☃"), "env": {"A": "b", "HOME": "/tmp"}, "files": FILES}
    await is_parked(both[0])
    parked, execd = [await node(sandbox, SCRIPTS[name], **how) for sandbox in both]
    assert parked.outcome == execd.outcome
    assert parked.stdout == execd.stdout
    assert FRAMES.sub(b"", parked.stderr) == FRAMES.sub(b"", execd.stderr)
    assert b"/runtape" not in parked.stderr


async def test_project_of_es_modules_is_run_as_such(both: tuple[LocalSandbox, LocalSandbox]) -> None:
    script = "import { readFileSync } from 'fs'; import other from './other.mjs'; console.log(import.meta.url, other)"
    files = {**FILES, "package.json": b'{"type": "module"}'}
    await is_parked(both[0])
    parked, execd = [await node(sandbox, script, files=files) for sandbox in both]
    assert parked.text == execd.text == "file:///box/main.js other"


@pytest.mark.parametrize(
    ("how", "parked"),
    [
        ({"limits": Limits(wall_s=2, cpu_s=3, output_bytes=99)}, True),
        ({"stdin": b"x" * 4096}, True),
        ({"stdin": b"x" * 4097}, False),
        ({"limits": Limits(memory_mb=200)}, False),
        ({"limits": Limits(processes=63)}, False),
        ({"limits": Limits(open_files=100)}, False),
        ({"limits": Limits(cpu_s=11)}, False),
        ({"limits": Limits(disk_mb=10)}, False),
        ({"env": {"NODE_OPTIONS": "--no-warnings"}}, False),
        ({"files": {"big": b"x" * 1_000_000}}, True),
    ],
)
async def test_only_what_a_parked_interpreter_can_still_be_given_is_given_to_one(
    both: tuple[LocalSandbox, LocalSandbox], how: dict[str, object], parked: bool
) -> None:
    assert await is_parked(both[0], **how) is parked


async def test_start_of_a_parked_interpreter_is_no_usage_of_its_program(
    both: tuple[LocalSandbox, LocalSandbox],
) -> None:
    used = []
    for sandbox in both:
        await is_parked(sandbox)
        usages = [(await node(sandbox, "")).usage for _ in range(4)]
        used.append(min(usage.cpu_user_ns + usage.cpu_system_ns for usage in usages))
    assert used[0] < used[1] / 2
    loop = "const end = process.cpuUsage().user + 3e5; while (process.cpuUsage().user < end);"
    busy = (await node(both[0], loop)).usage
    assert 0.25e9 < busy.cpu_user_ns < 0.5e9


@pytest.mark.parametrize(
    ("script", "limits", "kind"),
    [
        ("while (true);", Limits(cpu_s=0.3), OutcomeKind.TIME_LIMIT),
        ("setTimeout(() => 0, 9000)", Limits(wall_s=0.3), OutcomeKind.WALL_LIMIT),
        ("while (true) console.log('x'.repeat(1000))", Limits(output_bytes=10_000), OutcomeKind.OUTPUT_LIMIT),
        ("const all = []; while (true) all.push(Buffer.alloc(1e7, 1))", Limits(), OutcomeKind.MEMORY_LIMIT),
    ],
)
async def test_limits_hold_for_a_parked_interpreter(
    both: tuple[LocalSandbox, LocalSandbox], script: str, limits: Limits, kind: OutcomeKind
) -> None:
    assert await is_parked(both[0], limits=limits if limits.output_bytes > 99 else Limits())
    assert (await node(both[0], script, limits=limits)).outcome.kind is kind


async def test_file_that_does_not_fit_is_told_and_nothing_runs(both: tuple[LocalSandbox, LocalSandbox]) -> None:
    assert await is_parked(both[0])
    files = {f"{number}": bytes(9 << 20) for number in range(8)}
    outcome = (await node(both[0], "console.log('ran')", files=files)).outcome
    assert (outcome.kind, outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "start_failed")
    assert "No space left" in (outcome.message or "")


async def test_cancelled_program_leaves_nothing(both: tuple[LocalSandbox, LocalSandbox]) -> None:
    sandbox = both[0]
    assert await is_parked(sandbox)
    key = await start(
        sandbox,
        "require('child_process').spawn('/bin/sleep', ['987']); console.log('up'); setTimeout(() => 0, 9000)",
        lang="node",
    )
    await until_printed(sandbox, key, b"up")
    assert sleeping()
    await sandbox.kill(key)
    await sandbox.remove(key)
    assert not sleeping()


def sleeping() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if b"987" in cmdline(pid)]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def test_burst_finds_more_programs_than_parked_interpreters(both: tuple[LocalSandbox, LocalSandbox]) -> None:
    results = await asyncio.gather(*(node(both[0], f"console.log({number})") for number in range(24)))
    assert [result.text for result in results] == [str(number) for number in range(24)]


async def test_death_of_a_parked_interpreter_is_never_that_of_a_program(
    both: tuple[LocalSandbox, LocalSandbox],
) -> None:
    """A program that was given to one that is dying has not run, and is told so; then it can be run again."""
    sandbox = both[0]
    assert await is_parked(sandbox)
    await sandbox.warmed("node", await version_of(sandbox, "node"))
    waiting = [pid for pid in descendants(os.getpid()) if b"/runtape/node.js" in cmdline(pid)]
    killed = 0
    for pid in waiting:
        with suppress(ProcessLookupError):  # one that was being made is replaced by what it was made for
            os.kill(pid, signal.SIGKILL)
            killed += 1
    assert killed
    results = await asyncio.gather(*(node(sandbox, f"console.log({number})") for number in range(4)))
    for number, result in enumerate(results):
        if result.outcome.kind is OutcomeKind.EXITED:
            assert result.text == str(number)
        else:
            assert (result.outcome.reason, result.stdout) == ("start_failed", b"")
    assert any(result.outcome.kind is OutcomeKind.EXITED for result in results)


async def test_interpreter_that_cannot_be_parked_leaves_programs_to_start_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, missing = runtimes.detect()
    broken = [replace(each, parked=("/usr/bin/false",)) if each.parked else each for each in found]
    monkeypatch.setattr(local, "detect", lambda: (broken, missing))
    async with LocalSandbox(tmp_path) as sandbox:
        assert not await is_parked(sandbox)


@pytest.mark.needs("patience")
async def test_interpreter_that_is_never_ready_holds_up_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken(Weakness("nursery._MAKING_TIMEOUT_S = 0.3"), monkeypatch, tmp_path)
    found, missing = runtimes.detect()
    slow = [replace(each, parked=("/bin/sleep", "60")) if each.parked else each for each in found]
    monkeypatch.setattr(local, "detect", lambda: (slow, missing))
    async with LocalSandbox(tmp_path / "data") as sandbox:
        assert not await is_parked(sandbox)

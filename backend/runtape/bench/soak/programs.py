"""What the soak runs: good programs whose every byte is known, and hostile ones that must end as they should."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind
from runtape.ports.pod_runtime import Runtime
from runtape.prove.case import Case, Ends
from runtape.prove.cases import FAMILIES
from runtape.prove.ran import Ran
from runtape.prove.runs import Program, last_words

_LIMITS = Limits(wall_s=30.0, cpu_s=20.0)
_PATIENCE = 6.0
"""How many times longer than in a quiet battery a hostile program may take until it is overdue, beside seven others."""
_STDIN = b"21\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A program with what tells whether it went as it had to."""

    name: str
    program: Program
    judge: Callable[[Ran], str]
    """Returns what was wrong; nothing when all was right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Good:
    """A script, and all that must come of it with ``21`` and a line end as its input."""

    lang: str
    name: str
    script: str
    stdout: bytes = b"42\n"
    stderr: bytes = b""
    exit_code: int = 0


_GOOD = (
    _Good(lang="python", name="python", script="print(int(input()) * 2)"),
    _Good(
        lang="python",
        name="python that exits with 3",
        script="import sys\nprint('out', flush=True)\nprint('err', file=sys.stderr)\nsys.exit(3)",
        stdout=b"out\n",
        stderr=b"err\n",
        exit_code=3,
    ),
    _Good(
        lang="python",
        name="python with files, threads and a child",
        script="""
import hashlib, json, os, pathlib, subprocess, threading
pathlib.Path("made").mkdir()
found = []
def work(n):
    pathlib.Path(f"made/{n}").write_bytes(bytes([n]) * 4096)
    found.append(hashlib.sha256(pathlib.Path(f"made/{n}").read_bytes()).hexdigest())
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
child = subprocess.run(["/bin/sh", "-c", "ls made | wc -l"], capture_output=True, text=True)
print(json.dumps({"files": int(child.stdout), "sum": hashlib.sha256("".join(sorted(found)).encode()).hexdigest()}))
""",
        stdout=b'{"files": 4, "sum": "%s"}\n'
        % hashlib.sha256("".join(sorted(hashlib.sha256(bytes([n]) * 4096).hexdigest() for n in range(4))).encode())
        .hexdigest()
        .encode(),
    ),
    _Good(
        lang="python",
        name="python that prints 200 KB",
        script="import os\nfor n in range(50):\n    os.write(1, bytes([65 + n % 26]) * 4000)\n",
        stdout=b"".join(bytes([65 + n % 26]) * 4000 for n in range(50)),
    ),
    _Good(lang="bash", name="bash", script="read n; echo $((n * 2))"),
    _Good(lang="node", name="node", script="console.log(2 * require('fs').readFileSync(0, 'utf8'))"),
    _Good(lang="ruby", name="ruby", script="puts gets.to_i * 2"),
    _Good(lang="perl", name="perl", script='print <STDIN> * 2, "\\n";'),
    _Good(lang="php", name="php", script='<?php echo trim(fgets(STDIN)) * 2, "\\n";'),
    _Good(lang="lua", name="lua", script='print(io.read("n") * 2)'),
    _Good(lang="sqlite", name="sqlite", script="SELECT 21 * 2;"),
    _Good(
        lang="c",
        name="c",
        script='#include <stdio.h>\nint main(void) { int n; scanf("%d", &n); return printf("%d\\n", n * 2) < 0; }',
    ),
)

_HOSTILE = (
    *("A01", "A01b", "A02", "A03", "A03b", "A04", "A05", "A06", "A07", "A08", "A08b", "A10", "A11", "A12"),
    *("A13", "A14", "A15", "A16", "A16b", "A17", "A19"),
)
"""Cases of `prove` that need neither lures nor a companion and hold in every way of making boxes."""

_SIGNAL_STORM = """
import os, signal
import inside

for number in range(1, 65):
    try:
        signal.signal(number, lambda *_: None)
    except (OSError, ValueError):
        pass
for _ in range(3):
    os.fork()
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
while True:
    for number in (10, 12, 14, 17, 18, 23, 34, 64):
        try:
            os.kill(-1, number)
        except OSError:
            pass
"""
_STOPPED = Ends((OutcomeKind.WALL_LIMIT, OutcomeKind.TIME_LIMIT))


def good_programs(runtimes: Iterable[Runtime]) -> list[Tested]:
    """Return the good programs that can be run here, each once; Python's in every version."""
    versions: dict[str, list[str]] = {}
    for runtime in runtimes:
        versions.setdefault(runtime.lang, []).append(runtime.version)
    found: list[Tested] = []
    for good in _GOOD:
        for version in versions.get(good.lang, [])[: None if good.name == "python" else 1]:
            name = f"python {version}" if good.name == "python" else good.name
            program = Program(script=good.script, stdin=_STDIN, limits=_LIMITS, runtime=(good.lang, version))
            found.append(Tested(name=name, program=program, judge=_judge_of(good)))
    return found


def hostile_programs(limits: Limits) -> list[Tested]:
    """Return the hostile programs, each with `limits` but for those that it is about."""
    storm = Program(script=_SIGNAL_STORM, limits=replace(limits, wall_s=0.5, processes=24), due_s=2.0 * _PATIENCE)
    found = [Tested(name="signal storm", program=storm, judge=lambda ran: _wrong(ran, _STOPPED, ()))]
    for case in (each for checks in FAMILIES.values() for each in checks):
        if isinstance(case, Case) and case.id in _HOSTILE:
            program = Program(
                script=case.program,
                limits=replace(limits, **case.limits),
                args=case.args,
                env=case.env,
                stdin=case.stdin,
                files=case.files,
                due_s=case.due_s * _PATIENCE,
            )
            found.append(Tested(name=f"{case.id} {case.title}", program=program, judge=_judge_of_case(case)))
    return found


def plain_program(runtime: Runtime, number: int) -> Tested:
    """Return a program that prints its number."""
    good = _Good(lang=runtime.lang, name="plain", script=f"print({number})", stdout=b"%d\n" % number)
    program = Program(script=good.script, limits=_LIMITS, runtime=(runtime.lang, runtime.version))
    return Tested(name=good.name, program=program, judge=_judge_of(good))


def _judge_of(good: _Good) -> Callable[[Ran], str]:
    def judge(ran: Ran) -> str:
        if ran.outcome is None or (ran.outcome.kind, ran.outcome.exit_code) != (OutcomeKind.EXITED, good.exit_code):
            return f"it ended {_ended(ran)}, and should have exited with {good.exit_code}: {last_words(ran)}"
        if ran.stdout != good.stdout:
            return f"it printed {ran.stdout[:80]!r} ({len(ran.stdout)} bytes), which it should not"
        return f"it printed {ran.stderr[:80]!r} to stderr" if ran.stderr != good.stderr else ""

    return judge


def _judge_of_case(case: Case) -> Callable[[Ran], str]:
    return lambda ran: _wrong(ran, case.ends, case.judge(ran))


def _wrong(ran: Ran, ends: Ends, leaks: Iterable[str]) -> str:
    if found := [*ran.leaks, *leaks]:
        return f"it got what it must not: {found[0]}"
    if ran.outcome is None or not ends.allows(ran.outcome):
        return f"it ended {_ended(ran)}, and should have {ends}: {last_words(ran)}"
    return ""


def _ended(ran: Ran) -> str:
    if ran.outcome is None:
        return f"not at all within {ran.wall_s:.0f} s"
    parts = (ran.outcome.kind, ran.outcome.reason, ran.outcome.message, ran.outcome.exit_code, ran.outcome.signal)
    return " ".join(str(part) for part in parts if part)

"""A flaw of each kind is seen: the cases here are made to have one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind, Usage
from runtape.prove import battery, cases, main, places, runs, traces
from runtape.prove.case import ENDS_BY_ITSELF, Case, Ends, Inside, Layer
from runtape.prove.errors import ProveError
from runtape.prove.ran import Ran
from runtape.prove.runs import Program
from runtape.prove.table import row, summary
from runtape.prove.target import Target
from runtape.prove.traces import LocalTraces
from runtape.prove.verdict import CaseResult, Flaw, Part, Report, Verdict
from runtape.runtime.settings import Settings

pytestmark = pytest.mark.needs("sandbox")

GOOD = Case(
    id="A00",
    title="made for a test",
    tries="nothing",
    holds="nothing",
    layer=Layer.OUTPUT,
    args=("attempt",),
    control=Inside(args=("leak",)),
    program="import inside, sys\ninside.tried()\nif 'leak' in sys.argv: inside.leak('it')\n",
)


async def judge(case: Case, patch: pytest.MonkeyPatch, folder: Path) -> CaseResult:
    patch.setattr(main, "FAMILIES", {"made": [case]})
    report = await main.prove(Target.SANDBOX, Settings(data=folder / "none"), (), lambda *_: None)
    (result,) = [each for each in report.cases if each.id == case.id]
    assert report.held == (result.verdict is not Verdict.FAILED)
    return result


def parts(result: CaseResult) -> set[Part]:
    return {flaw.part for flaw in result.flaws}


async def test_case_without_a_flaw_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = await judge(GOOD, monkeypatch, tmp_path)
    assert (result.verdict, result.flaws, result.outcome) == (Verdict.HELD, (), "exited")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"args": ("leak",)}, Part.CONTAINED),
        ({"judge": lambda _: ["seen from outside"]}, Part.CONTAINED),
        ({"program": f"{GOOD.program}\nimport time\ntime.sleep(9)", "due_s": 0.3}, Part.CONTAINED),
        ({"ends": Ends((OutcomeKind.TIME_LIMIT,))}, Part.ATTRIBUTED),
        ({"ends": Ends((OutcomeKind.EXITED,), exit_code=3)}, Part.ATTRIBUTED),
        ({"control": Inside()}, Part.CONTROL),
        ({"program": GOOD.program.replace("inside.tried()\n", "")}, Part.CONTROL),
    ],
    ids=["leak", "outside", "overdue", "kind", "code", "control", "nothing tried"],
)
async def test_flaw_is_seen(
    change: dict[str, Any], part: Part, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = await judge(replace(GOOD, **change), monkeypatch, tmp_path)
    assert (result.verdict, parts(result)) == (Verdict.FAILED, {part})
    assert result.because


async def test_harm_to_the_neighbour_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(battery, "_NEIGHBOUR", "import inside\nprint('answer', 'another', 4)")
    assert parts(await judge(GOOD, monkeypatch, tmp_path)) == {Part.NEIGHBOURS}


async def test_file_that_is_left_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(traces, "_PUBLIC_FOLDERS", (str(tmp_path),))
    mark = LocalTraces(tmp_path).mark

    def leave(_: Ran) -> list[str]:
        (tmp_path / mark).touch()
        return []

    leaving = replace(GOOD, judge=leave)
    assert parts(await judge(leaving, monkeypatch, tmp_path)) == {Part.CLEANED_UP}


async def test_what_still_runs_is_seen_as_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(traces, "_GRACE_S", 0.05)
    place = places._sandbox(Settings(), tmp_path, tmp_path)
    looking = place.traces
    assert isinstance(looking, LocalTraces)
    async with place.open() as opened:
        before = looking.before()
        running = await opened.start(Program(script=battery._SLEEPER, limits=Limits()))
        assert await running.printed(b"up")
        assert await looking.sees(running.key, running.namespace) == []
        ran = replace(GHOST, namespace=running.namespace, ended_s=traces.boot_clock_s() + 60)
        assert any("process" in what for what in await looking.left(before, [ran]))
        assert looking.group_version in ("", "v1", "v2")
        await running.kill()
        assert await looking.left(before, [ran]) == []
        assert await looking.left_after_closing() != []
    assert await looking.left_after_closing() == []


async def test_kernel_that_answers_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answering = replace(GOOD, program="import inside\ninside.tried()\ninside.reached('SCTP')\n")
    result = await judge(answering, monkeypatch, tmp_path)
    assert (result.verdict, result.because) == (Verdict.KERNEL, "the kernel itself answers to SCTP")


async def test_control_outside_has_the_descriptor_that_it_inherits() -> None:
    script = "import inside, os\ninside.leak(len(os.listdir('/proc/self/fd')))\n"
    program = Program(script=script, limits=Limits())
    without = await runs.run_outside(program)
    assert (await runs.run_outside(program, inherits=True)).leaks == [str(int(without.leaks[0]) + 1)]


def test_unknown_case_is_told() -> None:
    with pytest.raises(ProveError, match='no case "A99"'):
        main.choose(Target.SANDBOX, ("A01", "A99"))


def test_family_and_id_choose() -> None:
    chosen = {check.id for _, check in main.choose(Target.SANDBOX, ("network", "A01"))}
    assert chosen == {"A01"} | {check.id for check in cases.FAMILIES["network"]}


GHOST = Ran(stdout=b"", stderr=b"", outcome=None, usage=Usage(), limits=Limits(), wall_s=0.0)

FAILED = CaseResult(
    id="A28",
    title="system calls",
    family="escape",
    tries="calls",
    holds="refused",
    layer="seccomp filter",
    verdict=Verdict.FAILED,
    flaws=(Flaw(Part.CONTAINED, "bpf answers EFAULT"), Flaw(Part.NEIGHBOURS, "a good program was harmed")),
    because="load the filter",
    outcome="exited",
    took_s=0.123,
)


def test_row_of_a_failure_names_the_layer_and_the_fix() -> None:
    assert row(FAILED, coloured=False).splitlines() == [
        "FAILED  A28    system calls 0.1 s",
        "               contained: bpf answers EFAULT",
        "               neighbours unharmed: a good program was harmed",
        "               layer: seccomp filter",
        "               fix: load the filter",
    ]


def test_what_a_program_said_cannot_write_to_the_terminal() -> None:
    said = replace(FAILED, flaws=(Flaw(Part.CONTAINED, "\x1b]52;c;eA==\a\0"),))
    assert row(said, coloured=False).splitlines()[1] == r"               contained: \x1b]52;c;eA==\x07\x00"


def test_only_a_terminal_gets_colours() -> None:
    assert "\x1b" not in row(FAILED, coloured=False)
    assert row(FAILED, coloured=True).startswith("\x1b[31mFAILED ")


def test_report_counts_and_tells_each_part() -> None:
    held = replace(FAILED, id="A01", verdict=Verdict.HELD, flaws=(), because="")
    host = {"kernel": "6.1", "machine": "x86_64", "user": "root", "memory_limit": "cgroup v2"}
    report = Report(target=Target.SANDBOX, host=host, cases=[held, FAILED], took_s=1.5)
    told = report.as_json()
    assert (told["held"], told["counts"]["failed"]) == (False, 1)
    assert told["cases"][1]["flaws"]["contained"] == ["bpf answers EFAULT"]
    assert told["cases"][1]["flaws"]["cleaned_up"] == []
    assert (told["cases"][0]["fix"], told["cases"][1]["fix"]) == ("", "load the filter")
    assert summary(report).startswith("1 held, 0 held only as far as the kernel, 1 failed, in 2 s (root,")


def test_ends_by_itself_is_exit_code_0() -> None:
    assert str(ENDS_BY_ITSELF) == "exited code 0"

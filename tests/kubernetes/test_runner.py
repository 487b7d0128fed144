"""What the first process of a pod does with one program, whoever attaches to it and however often."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtape.adapters.kubernetes import protocol
from runtape.adapters.kubernetes.building import build
from runtape.adapters.kubernetes.protocol import Files, Point, Started, State, Welcome
from runtape.adapters.sandbox.keeper import wire
from runtape.domain.tape import RECORD_BYTES
from tests.kubernetes.runner import SECOND_NS, TOKEN, Attached, Container, limits, order, printed

pytestmark = pytest.mark.needs("sandbox")


@pytest.fixture(scope="module")
def runtape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtape")
    build(folder)
    return folder


@pytest.fixture
async def container(runtape: Path, tmp_path: Path) -> AsyncIterator[Container]:
    async with Container.opened(runtape, tmp_path) as container:
        yield container


async def test_a_program_prints_and_ends(container: Container) -> None:
    attached = await container.run(order("echo out; echo err >&2; exit 3"))
    records, report = await attached.outcome()
    assert printed(records) == {"stdout": b"out\n", "stderr": b"err\n"}
    assert os.waitstatus_to_exitcode(report.wait_status) == 3
    assert (report.stopped_for, report.failure, report.left_files) == ("", "", False)
    assert (report.output_bytes, report.last_seq, report.truncated) == (8, len(records), False)
    assert report.token == TOKEN.hex()
    assert 0 < report.wall_ns < 10 * SECOND_NS
    assert container.reported() == report
    container.write(protocol.leave())
    assert await container.process.wait() == 0


async def test_it_is_welcome_with_what_it_may_do(container: Container) -> None:
    attached = container.attach()
    assert await attached.next() == Welcome(State.WAITING)
    container.write(protocol.run(order("sleep infinity"), limits()))
    assert await attached.next() == Started()
    assert await container.attach().next() == Welcome(State.RUNNING)


async def test_files_arguments_variables_and_input_arrive(container: Container) -> None:
    stdin = bytes(i * 7 % 256 for i in range(500_000))
    what = order(
        'printf %s "$1$2$GREETING"; cat a/b; cat',
        files=(("main.sh", b'printf %s "$1$2$GREETING"; cat a/b; cat'), ("a/b", b"x" * 100_000)),
        argv=(b"/bin/sh", b"main.sh", b"one", b""),
        env={b"GREETING": b"\xffhello", b"PATH": b"/usr/bin:/bin"},
        stdin=stdin,
    )
    records, _ = await (await container.run(what)).outcome()
    assert printed(records) == {"stdout": b"one\xffhello" + b"x" * 100_000 + stdin}
    assert all(1 <= len(record.data) <= RECORD_BYTES for record in records)


async def test_a_program_without_an_input_reads_nothing(container: Container) -> None:
    records, _ = await (await container.run(order("cat; echo over"))).outcome()
    assert printed(records) == {"stdout": b"over\n"}


async def test_what_cannot_be_started_says_why(container: Container) -> None:
    _, report = await (await container.run(order("", argv=(b"/no/such/program",)))).outcome()
    assert report.failure == "/no/such/program: No such file or directory"


@pytest.mark.parametrize(
    ("script", "more", "reason"),
    [
        ("sleep infinity", {"wall_ns": SECOND_NS // 5}, "wall"),
        ("sleep infinity", {"lease_ns": SECOND_NS // 5}, "lease"),
        ("exec yes", {"output_bytes": 100_000}, "output"),
        ("trap '' TERM INT HUP; setsid sleep infinity & sleep infinity", {"wall_ns": SECOND_NS // 5}, "wall"),
    ],
)
async def test_a_limit_ends_everything(container: Container, script: str, more: dict[str, int], reason: str) -> None:
    _, report = await (await container.run(order(script), limits(**more))).outcome()
    assert report.stopped_for == reason
    assert os.waitstatus_to_exitcode(report.wait_status) == -signal.SIGKILL
    if reason != "lease":  # with that it leaves by itself
        assert _others(container) == []


async def test_output_is_cut_exactly_at_its_limit(container: Container) -> None:
    records, report = await (await container.run(order("exec yes x"), limits(output_bytes=200_001))).outcome()
    assert sum(len(record.data) for record in records) == 200_001 == report.output_bytes
    assert [record.truncated for record in records] == [False] * (len(records) - 1) + [True]
    assert records[-1].data == b""
    assert report.last_seq == records[-1].seq


async def test_who_is_told_to_kill_it_kills_it(container: Container) -> None:
    attached = await container.run(order("echo ready; sleep infinity"))
    await attached.records(1)
    container.write(protocol.kill())
    _, report = await attached.outcome()
    assert report.stopped_for == "cancelled"


async def test_a_lease_is_moved(container: Container) -> None:
    wanted = limits(lease_ns=SECOND_NS // 2, wall_ns=SECOND_NS)
    attached = await container.run(order("sleep infinity"), wanted)
    await attached.until(Started)
    container.write(protocol.lease(60 * SECOND_NS))
    _, report = await attached.outcome()
    assert report.stopped_for == "wall"


async def test_a_lease_is_answered_while_the_program_runs_and_after_its_end(container: Container) -> None:
    attached = await container.run(order("sleep 1"))
    await attached.until(Started)
    for _ in range(2):
        container.write(protocol.lease(60 * SECOND_NS))
        await attached.until(protocol.Extended)
    await attached.outcome()
    container.write(protocol.lease(60 * SECOND_NS))
    await attached.until(protocol.Extended)


async def test_nobody_who_comes_is_left_alone_when_the_lease_is_over(container: Container) -> None:
    await container.run(order("echo over"), limits(lease_ns=SECOND_NS // 2))
    async with asyncio.timeout(10):
        assert await container.process.wait() == 0
    assert container.reported().stopped_for == ""


async def test_processes_that_are_left_behind_end_with_the_first(container: Container) -> None:
    attached = await container.run(order("setsid sleep infinity & echo $!"))
    _, report = await attached.outcome()
    assert os.waitstatus_to_exitcode(report.wait_status) == 0
    assert _others(container) == []


async def test_the_rest_comes_again_to_who_attaches_again(container: Container) -> None:
    script = "i=0; while [ $i -lt 500 ]; do echo line $i; echo $i >&2; i=$((i+1)); done"
    first = await container.run(order(script))
    seen = await first.records(1)
    again = container.attach(after_seq=0)
    records, report = await again.outcome(acknowledges=False)
    assert records[0] == seen[0]
    third, report_again = await container.attach(after_seq=records[-2].seq).outcome()
    assert (third, report_again) == (records[-1:], report)
    assert printed(records)["stdout"] == b"".join(b"line %d\n" % number for number in range(500))


@pytest.mark.parametrize("cut", [1, 4, 6, 500, 16_000, 16_389, 16_390, 20_000, -1])
async def test_a_transfer_that_was_cut_off_is_begun_again(container: Container, cut: int) -> None:
    what = order("wc -c <big; cat", files=(("main.sh", b"wc -c <big; cat"), ("big", b"x" * 40_000)), stdin=b"in\n")
    attached = container.attach()
    await attached.until(Welcome)
    container.write(protocol.run(what, limits())[:cut])
    again = container.attach()
    await again.until(Welcome)
    container.write(protocol.run(what, limits()))
    records, _ = await again.outcome()
    assert printed(records) == {"stdout": b"40000\nin\n"}


async def test_a_program_of_many_bytes_waits_until_they_are_wanted(container: Container) -> None:
    attached = await container.run(order("head -c 20000000 /dev/zero; echo over >&2"))
    some = await attached.records(3)
    assert _others(container) != []
    again = container.attach(after_seq=some[-1].seq)
    records, report = await again.outcome()
    assert sum(len(record.data) for record in some + records) == 20_000_005
    assert printed(some + records)["stderr"] == b"over\n"
    assert report.last_seq == records[-1].seq


async def test_what_is_printed_comes_while_the_program_runs(container: Container) -> None:
    attached = await container.run(order("printf o; sleep infinity"))
    assert [record.data for record in await attached.records(1)] == [b"o"]
    assert _others(container) != []


async def test_files_that_are_left_are_handed_over_as_often_as_one_asks(container: Container) -> None:
    script = (
        "mkdir out/d; echo a >out/a; head -c 100000 /dev/zero >out/d/b; ln -s /etc/passwd out/link; mkfifo out/pipe"
    )
    attached = await container.run(order(script))
    _, report = await attached.outcome()
    assert report.left_files
    found: list[list[bytes]] = []
    for _ in range(2):
        container.write(protocol.collect(wire.collect(10, 1 << 20)))
        found.append([event.message for event in await _until_empty(attached)])
    assert found[0] == found[1]
    assert b"".join(found[0]).count(b"passwd") == 0
    assert len(b"".join(found[0])) > 100_000
    container.write(protocol.collect(wire.collect(10, 1 << 20)))
    assert isinstance(await attached.next(), Files)
    once_more = container.attach(after_seq=report.last_seq)
    await once_more.outcome()
    container.write(protocol.collect(wire.collect(10, 1 << 20)))
    assert [event.message for event in await _until_empty(once_more)] == found[0]


async def test_a_timeline_has_points_while_the_program_runs(container: Container) -> None:
    attached = await container.run(order("sleep 0.5"), limits(timeline=True))
    events = await attached.until(protocol.Report)
    points = [event for event in events if isinstance(event, Point)]
    assert 3 <= len(points) <= 8
    assert points[0].t_ns < SECOND_NS // 10


@pytest.mark.parametrize(
    "attack",
    [
        "kill -9 1; kill -TERM 1; kill -CHLD 1; kill -STOP 1",
        "cat /proc/1/environ /proc/1/mem /proc/1/maps /proc/1/fd/0 && echo read it",
        "echo forged >/proc/1/fd/1 && echo wrote it",
        "echo '{\"version\":1}' >/report; chmod 0 /report",
        "for n in 3 4 5 6 7 8 9; do (echo forged >&$n) 2>/dev/null && echo $n is open; done",
        "prlimit --pid 1 --nofile=1:1 && echo limited it",
        "renice -n 19 -p 1 && echo slowed it; renice -n 19 -u $(id -u) && echo slowed it",
        "taskset -p 1 1 && echo moved it",
    ],
)
async def test_a_program_cannot_reach_its_runner(container: Container, attack: str) -> None:
    attached = await container.run(order(f"{attack}; exit 7"))
    records, report = await attached.outcome()
    out = printed(records).get("stdout", b"")
    assert b"it" not in out.split() and b"open" not in out
    assert report.token == TOKEN.hex()
    assert os.waitstatus_to_exitcode(report.wait_status) == 7
    assert report.stopped_for == ""


async def test_nobody_can_ask_for_the_end_in_the_name_of_kubernetes(container: Container) -> None:
    queue = (
        "import ctypes, struct\n"
        "for code in range(-60, 0):\n"
        "    told = ctypes.create_string_buffer(struct.pack('iiiiii', 15, 0, code, 0, 0, 0), 128)\n"
        "    ctypes.CDLL(None).syscall(129 if struct.calcsize('P') == 8 else 0, 1, 15, told)\n"
    )
    script = "python3 queue.py; sleep 0.2; exit 7"
    _, report = await (
        await container.run(order(script, files=(("main.sh", script.encode()), ("queue.py", queue.encode()))))
    ).outcome()
    assert (report.stopped_for, os.waitstatus_to_exitcode(report.wait_status)) == ("", 7)


async def test_kubernetes_asks_for_the_end(container: Container) -> None:
    attached = await container.run(order("echo ready; sleep infinity"))
    await attached.records(1)
    os.kill(_first(container), signal.SIGTERM)
    _, report = await attached.outcome()
    assert report.stopped_for == "deleted"


async def test_an_input_cannot_be_made_to_grow(container: Container) -> None:
    script = "echo more >>/dev/stdin && echo grown; cat"
    records, _ = await (await container.run(order(script, stdin=b"in\n"))).outcome()
    assert printed(records)["stdout"] == b"in\n"


async def test_a_report_that_the_program_has_written_is_overwritten(container: Container) -> None:
    attached = await container.run(order("head -c 100000 /dev/zero >/report"))
    _, report = await attached.outcome()
    assert container.reported() == report


async def test_a_runner_is_the_first_process_or_none(runtape: Path) -> None:
    process = await asyncio.create_subprocess_exec(runtape / "pod", "/dev/null", stderr=asyncio.subprocess.PIPE)
    _, stderr = await process.communicate()
    assert process.returncode == 64
    assert b"first process" in stderr


async def _until_empty(attached: Attached) -> list[Files]:
    found: list[Files] = []
    while True:
        event = await attached.next()
        assert isinstance(event, Files), event
        if not event.message:
            return found
        found.append(event)


def _first(container: Container) -> int:
    """Return the pid, seen from here, of the runner."""
    parent = container.process.pid
    (child,) = (Path(f"/proc/{parent}/task/{parent}/children").read_text()).split()
    return int(child)


def _others(container: Container) -> list[int]:
    """Return the pids of everything that lives below the runner."""
    runner = _first(container)
    return [int(pid) for pid in Path(f"/proc/{runner}/task/{runner}/children").read_text().split()]

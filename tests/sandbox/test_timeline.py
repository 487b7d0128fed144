"""Memory and CPU time over time, as it is seen in every way of making boxes."""

from itertools import pairwise

import pytest

from runtape.adapters.sandbox import LocalSandbox
from runtape.adapters.sandbox.keeper import timeline
from runtape.adapters.sandbox.keeper.box import Box
from runtape.adapters.sandbox.keeper.wire import Shape
from runtape.adapters.sandbox.timeline import Timeline, joined
from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind, TimelinePoint, Usage
from tests.sandbox.conftest import WAYS
from tests.sandbox.runs import Result, run

GROWING = """
import time
held = []
for turn in range(8):
    held.append(bytearray(b"x") * (8 << 20))
    due_s = time.monotonic() + 0.1
    while time.monotonic() < due_s:
        pass
time.sleep(1)  # long enough for a look at all of it, and out of the way of who looks
print(len(held))
"""


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


def points_of(result: Result) -> list[TimelinePoint]:
    points = result.ended.timeline
    assert points is not None
    assert points[-1].t_ns == result.usage.wall_ns
    assert points[-1].cpu_ns == result.usage.cpu_user_ns + result.usage.cpu_system_ns
    assert all(a.t_ns < b.t_ns and a.cpu_ns <= b.cpu_ns for a, b in pairwise(points))
    return list(points)


@pytest.mark.asyncio(loop_scope="module")
async def test_memory_and_cpu_are_seen_to_grow(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, GROWING, timeline=True)
    assert result.text == "8"
    points = points_of(result)
    assert len(points) >= 4
    # Not the last but one: that look may find the program gone already, and its end not told yet.
    early, most = points[0].memory_bytes, max(point.memory_bytes for point in points)
    assert early < most
    assert most > 40 << 20
    assert max(point.memory_bytes for point in points) <= result.usage.peak_memory_bytes + (8 << 20)
    assert points[len(points) // 2].cpu_ns > 0


@pytest.mark.asyncio(loop_scope="module")
async def test_run_that_does_not_ask_has_none_beside_one_that_does(sandbox: LocalSandbox) -> None:
    assert (await run(sandbox, "print(1)", timeline=True)).ended.timeline is not None
    assert (await run(sandbox, "print(1)")).ended.timeline is None


@pytest.mark.asyncio(loop_scope="module")
async def test_killed_run_tells_its_totals_too(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "held = []\nwhile True:\n    held.append(bytearray(b'x') * (1 << 20))",
                       limits=Limits(memory_mb=64), timeline=True)  # fmt: skip
    assert result.outcome.kind is OutcomeKind.MEMORY_LIMIT
    points_of(result)


@pytest.mark.asyncio(loop_scope="module")
async def test_compiler_and_program_share_one_timeline(sandbox: LocalSandbox) -> None:
    spin = "#include <time.h>\nint main(void) { while (clock() < CLOCKS_PER_SEC * 3 / 10) {} return 0; }\n"
    first = await run(sandbox, spin, lang="c", timeline=True)
    assert first.outcome.exit_code == 0, first.stderr
    points = points_of(first)
    kept = points_of(await run(sandbox, spin, lang="c", timeline=True))
    assert points[-1].cpu_ns > kept[-1].cpu_ns - 100_000_000


def test_any_number_of_looks_leaves_at_most_the_points_that_are_kept_and_evenly_spaced() -> None:
    box = Box(1, Shape("", 0, 0), -1, None)
    gathered = Timeline(0)
    timeline.begin(box)
    now_s, looks = 0.0, 0
    points: tuple[TimelinePoint, ...] = ()
    while now_s < 300.0:
        timeline.passed(box, now_s)
        gathered.add(int(now_s * 1e9), 1, looks)
        looks += 1
        now_s = box.point_due_s
        points = gathered.ended(Usage(wall_ns=int(now_s * 1e9), cpu_user_ns=looks))
        assert len(points) <= timeline.MOST_POINTS
        gaps = {round((b.t_ns - a.t_ns) / 1e8) for a, b in pairwise(points)}
        assert len(gaps) <= 1
    assert looks < 3 * timeline.MOST_POINTS
    assert len(points) > timeline.MOST_POINTS // 2 - 1


def test_cpu_time_never_falls_and_never_exceeds_the_total() -> None:
    gathered = Timeline(1_000)
    for at_ns, cpu_ns in ((900, 5), (2_000, 50), (3_000, 20), (4_000, 900)):
        gathered.add(at_ns, 7, cpu_ns)
    points = gathered.ended(Usage(wall_ns=3_500, cpu_user_ns=60, cpu_system_ns=10))
    assert [(point.t_ns, point.cpu_ns) for point in points] == [
        (0, 5),
        (1_000, 50),
        (2_000, 50),
        (3_000, 70),
        (3_500, 70),
    ]


def test_run_that_was_over_before_the_first_look_tells_its_peak() -> None:
    usage = Usage(wall_ns=5, cpu_user_ns=3, cpu_system_ns=1, peak_memory_bytes=9)
    assert Timeline(0).ended(usage) == (TimelinePoint(5, 9, 4),)


def test_two_boxes_are_joined_in_time_with_what_the_first_has_used() -> None:
    first = [TimelinePoint(n, 1, n) for n in range(150)]
    second = [TimelinePoint(150 + n, 2, n) for n in range(150)]
    points = joined(first, second, 149)
    assert len(points) <= timeline.MOST_POINTS
    assert points[-1] == TimelinePoint(299, 2, 298)
    assert points[0] == TimelinePoint(0, 1, 0)
    assert all(a.t_ns < b.t_ns and a.cpu_ns <= b.cpu_ns for a, b in pairwise(points))

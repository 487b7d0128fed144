"""What may be asked for, and that nothing accepted is lost and nothing refused leaves a trace."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtape.application.submission import ARGUMENT_BYTES, FILES, IDEMPOTENCY_KEY_BYTES, IDEMPOTENCY_TTL, SCRIPT_BYTES
from runtape.domain.errors import (
    AlreadyTerminal,
    DomainError,
    IdempotencyConflict,
    InvalidPath,
    LimitOutOfRange,
    NotFound,
    NotTerminal,
    PackagesDisabled,
    QueueFull,
    RequirementInvalid,
    RuntimeUnknown,
    ScriptTooLarge,
    ValidationFailed,
    VersionUnknown,
)
from runtape.domain.events import Priority
from runtape.domain.execution import Execution, OnInterrupt
from runtape.domain.identity import Role
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import MAXIMUM, LimitPolicy
from runtape.domain.saga import Saga
from runtape.domain.source import PackagePolicy, SourceFile
from runtape.ports.errors import Transient
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import ExecutionFilter
from tests.application.world import ALICE, CAPACITY, World, a_submission, a_world
from tests.builders import EXITED, a_principal
from tests.clocks import CountingIds
from tests.contract.embedded.basic import quick_place

BOB = a_principal("bob")
ADMIN = a_principal("root", Role.ADMIN)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture
async def world(folder: Path) -> AsyncIterator[World]:
    async with a_world(folder) as world:
        await world.start()
        yield world


async def everything(world: World) -> list[str]:
    return [execution.id for execution in await world.stores.executions.list(ExecutionFilter(), 1000, None)]


LONG_NAME = "n" * 200
REFUSALS: list[tuple[dict[str, Any], type[DomainError], str | None]] = [
    ({"lang": "cobol"}, RuntimeUnknown, "lang"),
    ({"lang_version": "2.7"}, VersionUnknown, "lang_version"),
    ({"script": "é" * (SCRIPT_BYTES // 2) + "x"}, ScriptTooLarge, "script"),
    ({"script": "\ud800"}, ValidationFailed, "script"),
    ({"limits": {"wall_s": 1e9}}, LimitOutOfRange, "limits.wall_s"),
    ({"args": ("ok", "a\0b")}, ValidationFailed, "args[1]"),
    ({"args": ("\udfff",)}, ValidationFailed, "args[0]"),
    ({"args": ("x" * ARGUMENT_BYTES,)}, ValidationFailed, "args"),
    ({"args": ("",) * (ARGUMENT_BYTES + 1)}, ValidationFailed, "args"),
    ({"env": {"A": "x" * ARGUMENT_BYTES}}, ValidationFailed, "args"),
    ({"env": {"1A": "x"}}, ValidationFailed, "env"),
    ({"env": {"A=B": "x"}}, ValidationFailed, "env"),
    ({"env": {"": "x"}}, ValidationFailed, "env"),
    ({"env": {"A\n": "x"}}, ValidationFailed, "env"),
    ({"env": {"A": "\0"}}, ValidationFailed, "env.A"),
    ({"files": tuple((f"f{number}", b"") for number in range(FILES + 1))}, ValidationFailed, "files"),
    ({"files": (("a", b""), ("../b", b""))}, InvalidPath, "files[1].path"),
    ({"files": (("main.py", b""),)}, InvalidPath, "files[0].path"),
    ({"files": (("./main.py", b""),)}, InvalidPath, "files[0].path"),
    ({"files": (("main.py/x", b""),)}, InvalidPath, "files[0].path"),
    ({"files": (("a", b""), ("a/b", b""))}, InvalidPath, "files[1].path"),
    ({"files": (("a/b/c", b""), ("a/b", b""))}, InvalidPath, "files[1].path"),
    ({"files": (("a", b""), ("a//.", b""))}, InvalidPath, "files[1].path"),
    ({"idempotency_key": ""}, ValidationFailed, "Idempotency-Key"),
    ({"idempotency_key": "k" * (IDEMPOTENCY_KEY_BYTES + 1)}, ValidationFailed, "Idempotency-Key"),
]


@pytest.mark.parametrize(("changes", "refusal", "field"), REFUSALS)
async def test_what_is_refused_names_its_field_and_leaves_no_trace(
    world: World, changes: dict[str, Any], refusal: type[DomainError], field: str | None
) -> None:
    with pytest.raises(refusal) as error:
        await world.submissions.execute(ALICE, a_submission(**changes))
    assert error.value.field == field
    assert await everything(world) == []
    world.clock.advance(1e6)
    assert await world.stores.blobs.sweep(world.clock.now()) == 0, "no blob was stored"
    assert world.pods.started == []


async def test_what_is_accepted_is_stored_as_it_was_asked_for(world: World) -> None:
    execution_id = await world.submit(
        "print 1",
        lang="bash",
        stdin=b"\0in",
        args=("a", ""),
        env={"A": "1"},
        files=(("./d//x", b"\xff"), ("y", b"")),
        limits={"wall_s": 3, "memory_mb": None},
        priority=Priority.HIGH,
        on_interrupt=OnInterrupt.FAIL,
    )
    execution = await world.get(execution_id)
    assert (execution.project_id, execution.user_id) == (ALICE.project_id, ALICE.user_id)
    assert (execution.spec.lang, execution.spec.lang_version) == ("bash", "5.2")
    assert (execution.spec.limits.wall_s, execution.spec.limits.memory_mb) == (3, 256)
    assert (execution.spec.priority, execution.spec.on_interrupt) == (Priority.HIGH, OnInterrupt.FAIL)
    source = execution.source.inline
    assert source is not None
    assert (source.stdin, source.args, source.env) == (b"\0in", ("a", ""), (("A", "1"),))
    assert source.files == (SourceFile("d/x", b"\xff"), SourceFile("y", b""))


async def test_a_large_source_is_kept_as_a_blob_and_runs_all_the_same(world: World) -> None:
    execution_id = await world.submit("print large\n# " + "x" * 100_000, args=("a",))
    execution = await world.until_stored(execution_id)
    assert execution.source.inline is None
    assert (await world.printed(execution_id)).startswith(b"large\n")


async def test_a_full_queue_refuses_and_a_known_key_is_answered_even_then(folder: Path) -> None:
    capacity = replace(CAPACITY, running=1, queued=1, queued_per_project=1)
    async with a_world(folder, capacity=capacity) as world:
        await world.start()
        first = await world.submit("wait go", idempotency_key="k")
        await world.submit("wait go")
        await world.until_quiet()
        with pytest.raises(QueueFull) as refusal:
            await world.submit("# " + "x" * 9000)
        assert refusal.value.retry_after_s > 0
        assert len(await everything(world)) == 2
        assert await world.submit("wait go", idempotency_key="k") == first
        world.clock.advance(1e6)
        assert await world.stores.blobs.sweep(world.clock.now()) == 0


class TestIdempotency:
    async def test_the_same_request_gives_the_same_execution(self, world: World) -> None:
        ids = {await world.submit(idempotency_key="k") for _ in range(3)}
        assert [*ids] == await everything(world)

    async def test_simultaneous_ones_give_one_execution_and_one_run(self, world: World) -> None:
        ids = await asyncio.gather(*(world.submit(idempotency_key="k") for _ in range(20)))
        assert len(set(ids)) == 1
        assert await everything(world) == [ids[0]]
        await world.until_stored(ids[0])
        await world.until_quiet()
        assert world.pods.started == [PodKey(ids[0], 1)]
        await assert_all_places_are_free(world)

    async def test_another_body_is_refused_also_at_the_same_moment(self, world: World) -> None:
        answers = await asyncio.gather(
            *(world.submit(idempotency_key="k", body_sha256=f"b{n % 2}") for n in range(6)), return_exceptions=True
        )
        accepted = [answer for answer in answers if isinstance(answer, str)]
        refused = [answer for answer in answers if isinstance(answer, IdempotencyConflict)]
        assert (len(accepted), len(refused), len(set(accepted))) == (3, 3, 1)

    async def test_keys_are_each_users_own(self, world: World) -> None:
        first = await world.submit(idempotency_key="k")
        assert await world.submissions.execute(BOB, a_submission(idempotency_key="k", body_sha256="other")) != first

    async def test_after_a_day_the_key_is_free(self, world: World) -> None:
        first = await world.submit(idempotency_key="k")
        await world.until_stored(first)
        world.clock.advance(IDEMPOTENCY_TTL.total_seconds() - 1)
        assert await world.submit(idempotency_key="k") == first
        world.clock.advance(1)
        ids = await asyncio.gather(*(world.submit(idempotency_key="k", body_sha256="other") for _ in range(8)))
        assert len(set(ids)) == 1
        assert ids[0] != first
        assert len(await everything(world)) == 2

    async def test_a_store_that_fails_in_between_does_not_block_the_key(self, folder: Path) -> None:
        failing = [True]

        class Failing:
            def __init__(self, inner: Any) -> None:
                self._inner = inner

            async def commit(self, *arguments: Any) -> None:
                if failing.pop() if failing else False:
                    raise Transient("disk full")
                await self._inner.commit(*arguments)

        async with a_world(folder, wrap=lambda s: replace(s, unit_of_work=Failing(s.unit_of_work))) as world:
            await world.start()
            with pytest.raises(Transient):
                await world.submit(idempotency_key="k")
            assert await everything(world) == []
            await world.until_stored(await world.submit(idempotency_key="k"))
            await assert_all_places_are_free(world)

    async def test_a_retry_has_keys_too(self, world: World) -> None:
        first = await world.submit()
        await world.until_stored(first)
        again = {await world.submissions.retry(ALICE, first, "k") for _ in range(3)}
        assert len(again) == 1
        with pytest.raises(ValidationFailed):
            await world.submissions.retry(ALICE, first, "")


async def assert_all_places_are_free(world: World) -> None:
    ids = [await world.submit("wait end") for _ in range(CAPACITY.running)]
    for each in ids:
        await world.until_status(each, "running")


class TestRetry:
    async def test_it_runs_the_same_again_as_a_new_execution(self, world: World) -> None:
        first = await world.submit("print x\nexit 3", limits={"wall_s": 2}, priority=Priority.LOW)
        with pytest.raises(NotTerminal):
            await world.submissions.retry(ALICE, await world.submit("wait long"), None)
        earlier = await world.until_stored(first)
        execution = await world.until_stored(await world.submissions.retry(ALICE, first, None))
        assert execution.retry_of == first
        assert (execution.spec, execution.source) == (earlier.spec, earlier.source)
        assert execution.outcome == earlier.outcome

    async def test_limits_beyond_a_maximum_that_was_lowered_are_refused_and_leave_no_trace(self, folder: Path) -> None:
        ids = CountingIds()
        async with a_world(folder, ids=ids) as world:
            await world.start()
            long = await world.submit("print x", limits={"wall_s": 200})
            short = await world.submit("print x", limits={"wall_s": 20})
            await world.until_stored(long)
            await world.until_stored(short)
        lowered = LimitPolicy(maximum=replace(MAXIMUM, wall_s=20.0))
        async with a_world(folder, limits=lowered, ids=ids) as world:
            await world.start()
            before = await everything(world)
            with pytest.raises(LimitOutOfRange, match="submit its script again") as refusal:
                await world.submissions.retry(ALICE, long, "a key")
            assert refusal.value.field == "limits.wall_s"
            assert await everything(world) == before
            await world.until_stored(await world.submissions.retry(ALICE, short, "a key"))

    async def test_what_is_foreign_does_not_exist(self, world: World) -> None:
        first = await world.submit()
        await world.until_stored(first)
        for call in (
            world.submissions.retry(BOB, first, None),
            world.submissions.cancel(BOB, first, None),
            world.submissions.delete(BOB, first),
            world.queries.execution(BOB, first),
            world.queries.result(BOB, first),
        ):
            with pytest.raises(NotFound):
                await call
        assert (await world.queries.execution(ADMIN, first)).id == first


class TestCancel:
    async def test_a_waiting_one_ends_at_once_and_leaves_the_line(self, folder: Path) -> None:
        async with a_world(folder, capacity=replace(CAPACITY, running=1)) as world:
            await world.start()
            first, second = await world.submit("wait go"), await world.submit()
            execution = await world.submissions.cancel(ALICE, second, None)
            assert execution.status == "cancelled"
            await world.until_stored(second)
            await world.until_quiet()
            assert await world.queue.front(5) == []
            world.pods.let("go")
            await world.until_stored(first)
            assert [key.execution_id for key in world.pods.started] == [first]

    async def test_a_running_one_ends_with_what_it_printed(self, world: World) -> None:
        execution_id = await world.submit("print before\nwait never")
        await world.until_started(PodKey(execution_id, 1))
        await asyncio.gather(*(world.submissions.cancel(ALICE, execution_id, "why") for _ in range(5)))
        execution = await world.until_stored(execution_id)
        assert execution.status == "cancelled"
        assert await world.printed(execution_id) == b"before\n"
        assert [step.type for step in execution.history].count("execution.cancel_requested") == 1
        with pytest.raises(AlreadyTerminal):
            await world.submissions.cancel(ALICE, execution_id, None)

    async def test_a_cancellation_that_comes_before_the_program_is_there_is_not_lost(self, world: World) -> None:
        """Cancelled in the moment of its start: the kill may find no pod yet."""
        for _ in range(20):
            execution_id = await world.submit("wait never")
            await world.submissions.cancel(ALICE, execution_id, None)
            assert (await world.until_stored(execution_id)).status == "cancelled"
        await world.until_quiet()
        assert await world.pods.list() == []

    async def test_what_is_deleted_meanwhile_is_not_found(self, world: World) -> None:
        with pytest.raises(NotFound):
            await world.submissions.cancel(ALICE, ExecutionId("nobody"), None)


class TestDelete:
    async def test_only_what_has_ended_can_be_deleted(self, world: World) -> None:
        execution_id = await world.submit("wait go")
        with pytest.raises(NotTerminal):
            await world.submissions.delete(ALICE, execution_id)
        world.pods.let("go")
        await world.until_stored(execution_id)
        await world.submissions.delete(ALICE, execution_id)
        with pytest.raises(NotFound):
            await world.queries.execution(ALICE, execution_id)
        await world.until_stored(await world.submit())


async def test_two_users_submitting_at_once_share_the_places(folder: Path) -> None:
    """A flood of one project does not keep the other out: its first run starts before the flood is over."""
    capacity = replace(CAPACITY, running=2)
    async with a_world(folder, capacity=capacity) as world:
        await world.start()
        flood = [await world.submit("wait go") for _ in range(20)]
        light = await world.submissions.execute(BOB, a_submission("print light"))
        await world.until_status(flood[1], "running")
        await world.until_quiet()
        world.pods.end(PodKey(flood[0], 1), EXITED)
        await world.until_stored(light)
        begun = [(await world.get(each)).attempt for each in flood]
        assert sum(begun) <= 3


async def test_no_place_is_lost_when_acceptances_and_ends_cross(folder: Path) -> None:
    """Each end grants a place while others are between their offer and their commit."""
    capacity = replace(CAPACITY, running=2, queued=500, queued_per_project=500)
    for fused in (True, False):
        with quick_place() as place:
            async with a_world(place, fused=fused, capacity=capacity) as world:
                await world.start()
                ids = await asyncio.gather(*(world.submit(f"print {number}") for number in range(200)))
                for each in ids:
                    await world.until_stored(each)
                assert len(world.pods.started) == len(set(world.pods.started)) == 200
                await world.until_quiet()
                assert await world.queue.front(1) == []


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "stepwise"])
async def test_a_place_that_falls_free_before_the_saga_is_stored_is_not_lost(folder: Path, fused: bool) -> None:
    """The only place is granted while an acceptance is between its offer and its commit."""
    offered, gate = asyncio.Event(), asyncio.Event()

    class Gated:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        async def commit(self, changes: Any, handled_by: Any = frozenset()) -> None:
            if any(isinstance(change.document, Saga) and change.document.execution_id == second for change in changes):
                offered.set()
                await gate.wait()
            await self._inner.commit(changes, handled_by)

    second = "id-000002"
    capacity = replace(CAPACITY, running=1)
    async with a_world(
        folder, fused=fused, capacity=capacity, wrap=lambda s: replace(s, unit_of_work=Gated(s.unit_of_work))
    ) as world:
        await world.start()
        first = await world.submit("wait go")
        await world.until_started(PodKey(first, 1))
        submitting = asyncio.ensure_future(world.submit("print 2"))
        await offered.wait()
        world.pods.let("go")
        await world.until_stored(first)
        for _ in range(50):
            await world.stores.blobs.ready()
        gate.set()
        assert await submitting == second
        await world.until_stored(ExecutionId(second))


async def test_never_more_run_at_once_than_the_capacity(folder: Path) -> None:
    capacity = replace(CAPACITY, running=3)
    async with a_world(folder, capacity=capacity) as world:
        await world.start()
        ids = await asyncio.gather(*(world.submit(f"wait go{number % 5}") for number in range(30)))

        async def running() -> int:
            states: list[Execution] = [await world.get(each) for each in ids]
            return sum(state.live for state in states)

        for number in range(5):
            await world.until_quiet()
            assert await running() == 3
            world.pods.let(f"go{number}")
            assert await running() <= 3
        for each in ids:
            await world.until_stored(each)


# Packages

HEADER = '# /// script\n# dependencies = ["Six>=1"]\n# ///\nimport six\n'


async def required(world: World, **changes: Any) -> tuple[str, ...]:
    """Return the requirements that an accepted submission is stored with."""
    accepted = await world.submissions.execute(ALICE, replace(a_submission(), **changes))
    execution = await world.stores.executions.get(accepted)
    assert execution is not None and execution.source.inline is not None
    return execution.source.inline.requirements


async def test_requirements_are_stored_in_one_spelling(world: World) -> None:
    assert await required(world, requirements=("Six", "a_b")) == ("a-b", "six")
    assert await required(world, script=HEADER) == ("six>=1",)
    assert await required(world) == ()


async def test_requirements_of_the_request_win_over_those_of_the_script(world: World) -> None:
    assert await required(world, script=HEADER, requirements=("other",)) == ("other",)
    assert await required(world, script=HEADER, requirements=()) == ()
    assert await required(world, script="# /// script\n# not read\npass", requirements=()) == ()


async def test_header_means_nothing_in_another_language(world: World) -> None:
    assert await required(world, script=HEADER, lang="bash") == ()


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"lang": "bash", "requirements": ("six",)}, ValidationFailed, "requirements"),
        ({"requirements": ("six", "six @ file:///x")}, RequirementInvalid, "requirements[1]"),
        ({"script": "# /// script\npass"}, ValidationFailed, "script"),
        ({"script": HEADER.replace("Six>=1", "./x")}, RequirementInvalid, "script"),
        ({"script": "# /// script\n# requires-python = '>=4'\n# ///\n"}, VersionUnknown, "script"),
        (
            {"script": "# /// script\n# requires-python = '>=4'\n# ///\n", "lang_version": "3.11"},
            VersionUnknown,
            "script",
        ),
    ],
)
async def test_requirements_that_cannot_be_had_are_refused_without_a_trace(
    world: World, changes: dict[str, Any], error: type[DomainError], field: str
) -> None:
    with pytest.raises(error) as refused:
        await required(world, **changes)
    assert refused.value.field == field
    assert await everything(world) == []


async def test_packages_that_are_switched_off_are_refused_by_name(folder: Path) -> None:
    async with a_world(folder, packages=PackagePolicy(enabled=False)) as world:
        await world.start()
        for changes, field in (({"requirements": ("six",)}, "requirements"), ({"script": HEADER}, "script")):
            with pytest.raises(PackagesDisabled, match=r"packages\.enabled") as refused:
                await required(world, **changes)
            assert refused.value.field == field
        assert await required(world, script=HEADER, requirements=()) == ()
        assert await required(world, script="# /// script\n# requires-python = '>=3'\n# ///\n") == ()


async def test_retry_runs_with_the_same_requirements_or_not_at_all(folder: Path) -> None:
    async with a_world(folder) as world:
        await world.start()
        first = await world.submissions.execute(ALICE, replace(a_submission(), requirements=("six",)))
        await world.until_stored(first)
        second = await world.submissions.retry(ALICE, first, None)
        execution = await world.stores.executions.get(second)
        assert execution is not None and execution.source.inline is not None
        assert execution.source.inline.requirements == ("six",)
        await world.until_stored(second)
    async with a_world(folder, packages=PackagePolicy(enabled=False), owner="worker-2") as world:
        await world.start()
        with pytest.raises(PackagesDisabled):
            await world.submissions.retry(ALICE, first, None)

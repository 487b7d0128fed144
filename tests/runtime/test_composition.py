"""What the process is put together from: the object graph, the roles and their subscriptions."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Any, cast

import pytest
from dishka import Provider, Scope, make_async_container
from dishka.exceptions import GraphMissingFactoryError

from runtape.adapters.simulated import SimulatedPodRuntime
from runtape.application.queries import Queries
from runtape.application.retention import Retention, RetentionRule
from runtape.application.submission import Submissions
from runtape.domain.events import MESSAGE_TYPES
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId
from runtape.ports.pod_runtime import PodRuntime
from runtape.ports.stores import ExecutionStore
from runtape.runtime import roles
from runtape.runtime.providers.application import ApplicationProvider
from runtape.runtime.providers.cluster import ClusterProvider
from runtape.runtime.providers.embedded import EmbeddedProvider
from runtape.runtime.providers.sandbox import LocalSandboxProvider
from runtape.runtime.providers.simulated import SimulatedPodsProvider
from runtape.runtime.roles import Role
from runtape.runtime.service import CONTROL_PLANE, Service, SettingsProvider
from runtape.runtime.settings import FlowSettings, RetentionSettings, Settings
from tests.application.world import ALICE, a_submission
from tests.contract.embedded.basic import quick_place

UNHANDLED = {"execution.cancel_requested"}
"""Told to streams, and nothing more follows from it: its command ``pod.kill`` was committed beside it."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


class Anything:
    """Stands for a part that is passed on and not used."""

    def __getattr__(self, name: str) -> Any:
        return name

    def __getitem__(self, name: str) -> Any:
        return name


def the_parts() -> dict[Role, roles.RoleParts]:
    anything = cast(Any, Anything())
    return roles.parts(
        admission_service=anything,
        worker=anything,
        monitor=anything,
        results=anything,
        sweeper=anything,
        retention=anything,
        events=anything,
        replays=anything,
    )


class TestGraph:
    @pytest.mark.parametrize("pods", [SimulatedPodsProvider(), LocalSandboxProvider()], ids=["simulated", "sandbox"])
    def test_every_profile_is_complete(self, pods: Provider, folder: Path) -> None:
        make_async_container(*CONTROL_PLANE, pods, SettingsProvider(Settings(data=folder)))

    @pytest.mark.parametrize("missing", [EmbeddedProvider, ApplicationProvider, SimulatedPodsProvider])
    def test_a_profile_that_lacks_a_provider_is_refused_at_once(self, missing: type, folder: Path) -> None:
        providers = [*CONTROL_PLANE, SimulatedPodsProvider(), SettingsProvider(Settings(data=folder))]
        with pytest.raises(GraphMissingFactoryError):
            make_async_container(
                *(each for each in providers if not isinstance(each, missing)), _needing(Submissions, Queries)
            )

    async def test_everything_that_is_provided_can_be_had_once_and_is_the_same(self, folder: Path) -> None:
        container = make_async_container(
            *CONTROL_PLANE, SimulatedPodsProvider(), SettingsProvider(Settings(data=folder))
        )
        try:
            keys = [key for key in container.registry.factories if isinstance(key.type_hint, type)]
            assert len(keys) > 30
            for key in keys:
                first: object = await container.get(key.type_hint)
                assert await container.get(key.type_hint) is first
        finally:
            await container.close()


@pytest.mark.parametrize("profile", [EmbeddedProvider, ClusterProvider])
def test_whatever_has_a_setting_for_its_age_is_pruned_by_it(profile: type[Provider], folder: Path) -> None:
    (make,) = [each.source for each in profile().factories if each.provides.type_hint is Retention]
    days = {name: float(number) for number, name in enumerate(RetentionSettings.model_fields, 1)}
    parts: dict[str, Any] = dict.fromkeys(signature(make).parameters, Anything())
    parts["settings"] = Settings(data=folder, retention=RetentionSettings(**days))
    rules: Sequence[RetentionRule] = make(**parts)._rules
    kept = {f"{rule.name}_days": rule.keep and rule.keep / timedelta(days=1) for rule in rules}
    assert {name: kept.get(name) for name in days} == days


def _needing(*services: type) -> Provider:
    """Return a provider that has a need, so that the graph is checked although nothing else asks."""
    provider = Provider(scope=Scope.APP)

    class Needy:
        def __init__(self, submissions: Submissions, queries: Queries) -> None: ...

    provider.provide(Needy)
    return provider


class TestRoles:
    def test_every_role_has_its_parts_and_a_group_of_its_own(self) -> None:
        parts = the_parts()
        assert set(parts) == set(Role)
        groups = [part.group for part in parts.values()]
        assert len(set(groups)) == len(groups)

    def test_every_message_is_handled_by_somebody_or_listed_as_not(self) -> None:
        handled = {name for part in the_parts().values() for name in part.handlers}
        assert handled | UNHANDLED == set(MESSAGE_TYPES)
        assert not handled & UNHANDLED

    def test_a_role_subscribes_to_the_topics_of_what_it_handles_and_no_others(self) -> None:
        for part in the_parts().values():
            assert {MESSAGE_TYPES[name].topic for name in part.handlers} == set(part.topics), part.group

    def test_a_fused_chain_calls_every_handler_of_every_role(self) -> None:
        parts = the_parts()
        by_type = roles.subscriptions(list(parts.values()))
        assert {name: {each.group for each in found} for name, found in by_type.items()} == {
            name: {part.group for part in parts.values() if name in part.handlers}
            for name in set(MESSAGE_TYPES) - UNHANDLED
        }

    def test_each_end_is_stored_before_its_saga_is_told(self) -> None:
        by_type = roles.subscriptions(list(the_parts().values()))
        groups = [each.group for each in by_type["execution.completed"]]
        assert groups == ["result-processor", "saga-orchestrator"]


@asynccontextmanager
async def a_service(folder: Path, *, fused: bool = True) -> AsyncIterator[Service]:
    service = Service(Settings(data=folder, flow=FlowSettings(fused=fused)), SimulatedPodsProvider())
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def stored(service: Service, execution_id: ExecutionId) -> Execution:
    executions = await service.container.get(ExecutionStore)
    async with asyncio.timeout(20):
        while True:
            execution = await executions.get(execution_id)
            assert execution is not None
            if execution.result is not None:
                return execution
            await executions.due(execution.created_at, 1)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "stepwise"])
class TestService:
    async def test_it_runs_what_is_submitted_and_is_idle_again(self, folder: Path, fused: bool) -> None:
        async with a_service(folder, fused=fused) as service:
            assert await service.idle()
            submissions = await service.container.get(Submissions)
            ids = [await submissions.execute(ALICE, a_submission(f"print {number}")) for number in range(5)]
            assert [(await stored(service, each)).status for each in ids] == ["completed"] * 5
            assert await service.idle()

    async def test_what_it_stops_in_the_middle_of_is_taken_up_by_the_next(self, folder: Path, fused: bool) -> None:
        async with a_service(folder, fused=fused) as service:
            submissions = await service.container.get(Submissions)
            executions = await service.container.get(ExecutionStore)
            ids = [await submissions.execute(ALICE, a_submission("print a\nwait go")) for _ in range(40)]
            assert not await service.idle()
            pods = await service.container.get(PodRuntime)
            async with asyncio.timeout(20):
                while not await pods.list():
                    await executions.due((await executions.get(ids[0])).created_at, 1)  # type: ignore[union-attr]
        async with a_service(folder, fused=fused) as service:
            pods = await service.container.get(PodRuntime)
            assert isinstance(pods, SimulatedPodRuntime)
            pods.let("go")
            for each in ids:
                execution = await stored(service, each)
                assert (execution.status, execution.outcome and execution.outcome.exit_code) == ("completed", 0)
                assert execution.attempt <= 2
            assert len(pods.started) == len(set(pods.started)) == 40
            assert await service.idle()

    async def test_stopping_twice_or_before_starting_is_nothing(self, folder: Path, fused: bool) -> None:
        async with a_service(folder, fused=fused) as service:
            pass
        never = Service(Settings(data=folder), SimulatedPodsProvider())
        await never.stop()
        assert service is not never

"""What an installation can run is told with what the place where programs run lets them have."""

from types import SimpleNamespace

import httpx2
import pytest
from dishka import Provider, Scope, make_async_container
from dishka.integrations.fastapi import setup_dishka
from fastapi import FastAPI

from runtape.api.routers import catalog
from runtape.application.runtimes import RuntimeCatalogue
from runtape.domain.limits import LimitPolicy
from runtape.domain.source import PackagePolicy
from runtape.ports.room import NoRooms, Room, Rooms


class SomeRooms:
    async def room(self) -> Room:
        return Room(cpu=2.0, memory_mb=1016, programs=12)


@pytest.mark.parametrize(
    ("rooms", "told", "age_s"),
    [
        (NoRooms(), None, 300),
        (SomeRooms(), {"cpu": 2.0, "memory_mb": 1016, "disk_mb": None, "programs": 12}, 30),
    ],
)
async def test_limits_tell_what_a_cluster_lets_a_program_have(rooms: Rooms, told: object, age_s: int) -> None:
    provider = Provider(scope=Scope.APP)
    provider.provide(lambda: LimitPolicy(), provides=LimitPolicy)
    provider.provide(lambda: PackagePolicy(enabled=False), provides=PackagePolicy)
    provider.provide(lambda: SimpleNamespace(all=dict), provides=RuntimeCatalogue)
    provider.provide(lambda: rooms, provides=Rooms)
    app = FastAPI()
    app.include_router(catalog.router)
    container = make_async_container(provider)
    setup_dishka(container, app)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        answer = await client.get("/k8s-limits")
    await container.close()
    assert answer.json()["cluster"] == told
    assert answer.json()["maximum"]["memory_mb"] == 4096
    assert answer.headers["cache-control"] == f"public, max-age={age_s}"

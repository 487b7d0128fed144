"""Readiness: what is told of parts that answer, that are gone, and that runs are accepted without."""

import httpx2
import pytest

from runtape.api.health import HealthRoutes
from runtape.application.health import Health, Probe
from runtape.ports.errors import Transient
from tests.clocks import ManualClock


async def good() -> None: ...


async def gone() -> None:
    raise Transient("it is away")


@pytest.mark.parametrize(
    ("store", "log", "outlasted", "answer"),
    [
        (good, good, set[str](), (200, "ready")),
        (good, good, {"log"}, (200, "ready")),
        (good, gone, {"log"}, (200, "degraded")),
        (good, gone, set[str](), (503, "not_ready")),
        (gone, good, {"log"}, (503, "not_ready")),
        (gone, gone, {"log"}, (503, "not_ready")),
    ],
)
async def test_it_is_ready_without_what_runs_are_accepted_without(
    store: Probe, log: Probe, outlasted: set[str], answer: tuple[int, str]
) -> None:
    probes: dict[str, Probe] = {"store": store, "log": log}
    health = Health({name: probe for name, probe in probes.items() if name not in outlasted}, 0.0, "secret")
    for name in outlasted:
        health.outlast(name, probes[name])
    health.accepting = True
    routes = HealthRoutes(health, ManualClock())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=routes.ready), base_url="http://test") as client:
        found = await client.get("/api/v1/health/ready")
    assert (found.status_code, found.json()["status"]) == answer
    told = {name: "ok" if probe is good else "it is away" for name, probe in probes.items()}
    assert found.json()["parts"] == {**told, "service": "ok"}

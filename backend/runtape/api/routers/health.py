"""Liveness and readiness."""

from typing import Annotated

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Query, Response

from runtape.api.models import Health, Readiness
from runtape.api.problems import documented
from runtape.application.health import Health as HealthService
from runtape.ports.clock import Clock

router = APIRouter(prefix="/health", route_class=DishkaRoute, tags=["health"])


@router.get("/live", response_model=Health, responses=documented("validation_failed"))
async def live(
    clock: FromDishka[Clock],
    health: FromDishka[HealthService],
    challenge: Annotated[
        str | None,
        Query(
            min_length=16,
            max_length=128,
            description="random text: `instance_proof` is its HMAC-SHA256 under the `instance` of `server.json`",
            examples=["5f0c3a9be1d24c67a8f1b2d3c4e5f607"],
        ),
    ] = None,
) -> Health:
    """Answer while the process can answer at all, and prove which process it is to whoever may know."""
    uptime_s = round(clock.monotonic_s() - health.started_s, 3)
    proof = health.prove(challenge) if challenge is not None else None
    return Health(status="ok", uptime_s=uptime_s, instance_proof=proof)


@router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not ready"}})
async def ready(response: Response, health: FromDishka[HealthService]) -> Readiness:
    """Answer 200 when store, log and sandbox answer, 503 with what is wrong otherwise."""
    parts = await health.parts()
    good = all(state == "ok" for state in parts.values())
    response.status_code = 200 if good else 503
    return Readiness(status="ready" if good else "not_ready", parts=parts)

"""Liveness and readiness."""

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Response

from runtape.api.models import Health, Readiness
from runtape.application.health import Health as HealthService
from runtape.ports.clock import Clock

router = APIRouter(prefix="/health", route_class=DishkaRoute, tags=["health"])


@router.get("/live", response_model=Health)
async def live(clock: FromDishka[Clock], health: FromDishka[HealthService]) -> Health:
    """Answer while the process can answer at all."""
    return Health(status="ok", uptime_s=round(clock.monotonic_s() - health.started_s, 3))


@router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not ready"}})
async def ready(response: Response, health: FromDishka[HealthService]) -> Readiness:
    """Answer 200 when store, log and sandbox answer, 503 with what is wrong otherwise."""
    parts = await health.parts()
    good = all(state == "ok" for state in parts.values())
    response.status_code = 200 if good else 503
    return Readiness(status="ready" if good else "not_ready", parts=parts)

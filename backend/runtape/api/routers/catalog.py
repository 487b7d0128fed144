"""What this installation can run, within which limits."""

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Response

from runtape.api.models import ExampleScripts, LimitsAnswer, LimitsOverview, RoomAnswer, RuntimeAnswer
from runtape.application.runtimes import RuntimeCatalogue
from runtape.application.submission import FILES, SCRIPT_BYTES
from runtape.domain.limits import LimitPolicy
from runtape.domain.source import PackagePolicy
from runtape.ports.room import Rooms

router = APIRouter(route_class=DishkaRoute, tags=["catalog"])

BODY_BYTES = 10 << 20


@router.get("/example-scripts", response_model=ExampleScripts)
async def example_scripts(response: Response, catalogue: FromDishka[RuntimeCatalogue]) -> ExampleScripts:
    """Give a short script for each language that can be run here."""
    response.headers["cache-control"] = "public, max-age=600"
    return ExampleScripts(scripts={lang: runtimes[0].example for lang, runtimes in catalogue.all().items()})


@router.get("/k8s-limits", response_model=LimitsOverview)
async def limits(
    response: Response,
    policy: FromDishka[LimitPolicy],
    packages: FromDishka[PackagePolicy],
    catalogue: FromDishka[RuntimeCatalogue],
    rooms: FromDishka[Rooms],
) -> LimitsOverview:
    """Give the default and greatest limits of a run, and the runtimes, of the active profile.

    Where programs run in pods, `cluster` tells what the cluster lets one have at most.
    """
    room = await rooms.room()
    response.headers["cache-control"] = f"public, max-age={300 if room is None else 30}"
    return LimitsOverview(
        default=LimitsAnswer.model_validate(policy.default),
        maximum=LimitsAnswer.model_validate(policy.maximum),
        script_bytes=SCRIPT_BYTES,
        body_bytes=BODY_BYTES,
        files=FILES,
        supported_runtimes={
            lang: RuntimeAnswer(
                versions=[runtime.version for runtime in runtimes],
                file_name=runtimes[0].file_name,
                packages=packages.enabled and runtimes[0].packages,
            )
            for lang, runtimes in catalogue.all().items()
        },
        cluster=None if room is None else RoomAnswer.model_validate(room),
    )

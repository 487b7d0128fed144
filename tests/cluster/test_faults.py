"""Parts and processes that die or stand still while runs go on: none is lost, none ends twice, no byte is missing."""

import asyncio
import time

import pytest

from runtape.runtime.roles import Role
from tests.cluster.processes import WORKERS, Cluster
from tests.cluster.survival import survived
from tests.e2e.server import ADMIN_PASSWORD, Client

pytestmark = [pytest.mark.needs("kafka", "mongo", "redis", "registry", "alone", "own"), pytest.mark.timeout(240)]

LOGIN = {"username": "admin", "password": ADMIN_PASSWORD}


@pytest.mark.parametrize("part", ["redis", "mongo", "kafka", "registry"])
@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_part_that_is_gone_for_a_while(cluster: Cluster, clients: list[Client], part: str, how: str) -> None:
    broken = getattr(cluster, part)
    mend = broken.start if how == "kill" else broken.resume
    await survived(clients, f"{part}-{how}", getattr(broken, how), mend)


async def test_a_redis_that_forgets_everything(cluster: Cluster, clients: list[Client]) -> None:
    await survived(clients, "forgets", cluster.redis.flush)


async def test_a_key_stands_for_its_run_whatever_redis_remembers(cluster: Cluster, clients: list[Client]) -> None:
    async def asked(client: Client) -> list[str]:
        return await asyncio.gather(*(client.execute("print(1)", key=f"key-{number}") for number in range(20)))

    first = await asked(clients[0])
    assert len({*first}) == 20
    assert await asked(clients[1]) == first
    cluster.redis.flush()
    assert await asked(clients[0]) == first
    cluster.redis.kill()
    try:
        assert await asked(clients[1]) == first
    finally:
        cluster.redis.start()
    for execution_id in first:
        assert (await clients[0].ended(execution_id))["stdout"] == "1\n"


async def test_each_process_counts_for_itself_while_redis_is_gone(cluster: Cluster, clients: list[Client]) -> None:
    cluster.redis.kill()
    try:
        for client in clients:
            began_s = time.monotonic()
            codes = [(await client.post("/auth/login", data=LOGIN)).status_code for _ in range(30)]
            assert {*codes} == {200, 429}
            came_back = (time.monotonic() - began_s) / (60 / 20)
            assert 20 <= codes.count(200) <= 20 + came_back + 1
    finally:
        cluster.redis.start()


@pytest.mark.parametrize("role", WORKERS)
async def test_a_worker_that_dies_and_comes_again(cluster: Cluster, clients: list[Client], role: Role) -> None:
    worker = cluster.workers[role][0]
    await survived(clients, f"{role}-dies", worker.kill, lambda: worker.begin().until_ready())


@pytest.mark.parametrize("role", WORKERS)
async def test_a_worker_that_stands_still_for_a_while(cluster: Cluster, clients: list[Client], role: Role) -> None:
    worker = cluster.workers[role][0]
    await survived(clients, f"{role}-stands", worker.pause, worker.resume)


async def test_the_processes_of_the_api_die_one_after_the_other(cluster: Cluster, clients: list[Client]) -> None:
    def die() -> None:
        for process in cluster.apis:
            process.kill()
            process.begin().until_ready()

    await survived(clients, "api-dies", die)


async def test_every_process_is_replaced_while_runs_go_on(cluster: Cluster, clients: list[Client]) -> None:
    def replace(number: int) -> None:
        processes = [cluster.apis[number], *(cluster.workers[role][number] for role in WORKERS)]
        for process in processes:
            assert process.stop() == 0
            process.begin()
        for process in processes:
            process.until_ready()

    found = await survived(clients, "replaced", lambda: replace(0), lambda: replace(1))
    attempts = {attempt for each in found for attempt, _ in each.records}
    assert attempts == {1}, "who is asked to go lets what it runs come to its end"

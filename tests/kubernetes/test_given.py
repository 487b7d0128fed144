"""A cluster that is given is used as it is, in namespaces of the run's own, and another is not started."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client, watch

from tests.cli.commands import environment
from tests.rig.given import VARIABLES
from tests.rig.kubernetes.cluster import Kubernetes

PROJECT = Path(__file__).parents[2]
OF_A_RUN = re.compile(r"t[0-9a-f]{8}-")
OVER_ANY = "tests/kubernetes/test_watching.py::test_changes_come_by_the_watch_alone"
OVER_OUR_OWN = "tests/kubernetes/test_room.py::TestOnACluster"

pytestmark = [
    pytest.mark.needs("kubernetes", "own"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest.fixture
async def seen(api: client.CoreV1Api) -> AsyncIterator[asyncio.Queue[tuple[str, str]]]:
    """What becomes of namespaces that belong to runs of the tests, as the cluster tells it."""
    found: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def look() -> None:
        async with watch.Watch().stream(api.list_namespace) as changes:
            async for change in changes:
                name: Any = change["object"].metadata.name
                if OF_A_RUN.match(name):
                    found.put_nowait((change["type"], name))

    looking = asyncio.create_task(look())
    yield found
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_tests_run_over_the_cluster_that_a_variable_names(
    kubernetes: Kubernetes, seen: asyncio.Queue[tuple[str, str]]
) -> None:
    given = {VARIABLES["kubernetes"]: str(kubernetes.kubeconfig), "RUNTAPE_REQUIRE": "kubernetes"}
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", OVER_ANY, OVER_OUR_OWN]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=PROJECT,
        env=environment(**given),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    assert re.search(r"^=* ?1 passed, 3 skipped in ", said.splitlines()[-1]), said
    assert f"3 skipped, given servers are not killed ({VARIABLES['kubernetes']})" in said
    made = await seen.get()
    assert made[0] == "ADDED"
    while (change := await seen.get()) != ("DELETED", made[1]):
        assert change == ("MODIFIED", made[1]), "one test has one namespace"
    assert kubernetes.answers()

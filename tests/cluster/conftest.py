"""Clients at each process of the cluster's API."""

from collections.abc import AsyncIterator

import pytest

from tests.cluster.processes import Cluster
from tests.e2e.server import Client


@pytest.fixture
async def clients(cluster: Cluster) -> AsyncIterator[list[Client]]:
    """The admin, at each process of the API."""
    clients = [cluster.client_of(process) for process in cluster.apis]
    yield clients
    for each in clients:
        await each.http.aclose()

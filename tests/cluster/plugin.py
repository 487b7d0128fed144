"""One cluster of each kind for all tests over it; `pytest_plugins` of tests/conftest.py names this module."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TypeVar

import pytest

from runtape.adapters.embedded.clock import SystemClock, Uuid7Ids
from runtape.adapters.embedded.passwords import Argon2Hasher
from runtape.adapters.mongo.connection import connect, open_store
from runtape.adapters.mongo.identity import MongoIdentityStore
from runtape.adapters.mongo.indexes import make_indexes
from runtape.application.identity import Identity
from runtape.domain.identity import Role
from tests.cluster.processes import Cluster, SandboxCluster
from tests.e2e.server import ADMIN_PASSWORD, a_user_with_key

C = TypeVar("C", bound=Cluster)

ADMIN = "admin"
OTHER, WATCHED = "other", "watched"
"""Users of the end-to-end suite beside the admin."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(Cluster(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def narrow(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with one place and room for four who wait, which the whole session shares."""
    folder = tmp_path_factory.mktemp("narrow")
    with running(Cluster(folder, each=1, running=1, queued=4, beside=cluster)) as narrow:
        yield narrow


@pytest.fixture(scope="session")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    """A cluster whose programs run in local sandboxes, which the whole session shares."""
    with running(SandboxCluster(tmp_path_factory.mktemp("boxed"), running=4)) as cluster:
        yield cluster


@contextlib.contextmanager
def running(cluster: C) -> Iterator[C]:
    """Start the parts, the users and the processes of a cluster; stop all of it at the end."""
    try:
        cluster.begin()
        cluster.keys.update(asyncio.run(seeded(cluster)))
        yield cluster.until_ready()
    finally:
        cluster.close()


async def seeded(cluster: Cluster) -> dict[str, str]:
    """Return a key for each of the users that the tests know, which it makes."""
    connection = connect(cluster.mongo.direct_url)
    store = await open_store(connection, cluster.database)
    await make_indexes(store)
    identities = MongoIdentityStore(store)
    hasher = Argon2Hasher()
    identity = Identity(identities, hasher, SystemClock(), Uuid7Ids())
    await identity.ensure_admin(ADMIN_PASSWORD)
    admin = await identities.user_by_name(ADMIN)
    assert admin is not None
    password_hash = await hasher.hash(ADMIN_PASSWORD)
    found = {"local": await a_user_with_key(identity, identities, ADMIN, password_hash, Role.ADMIN)}
    for name in (OTHER, WATCHED):
        found[name] = await a_user_with_key(identity, identities, name, password_hash, Role.USER)
    await connection.close()
    return found

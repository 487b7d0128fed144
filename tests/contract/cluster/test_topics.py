"""The topics of the product on a real broker: made once, grown, never shrunk, and told where they differ."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from runtape.adapters.kafka.topics import DAY_MS, TOPICS, check, initialise
from runtape.domain.events import EXECUTION_EVENTS, POD_COMMANDS
from runtape.ports.errors import Permanent, Transient
from tests.rig.kafka import Kafka
from tests.rig.part import free_port

pytestmark = pytest.mark.needs("kafka")
_numbers = count(1)


@pytest.fixture
def prefix(kafka_part: Kafka) -> str:
    return f"{kafka_part.scope}topics{next(_numbers)}."


@pytest.fixture
def connection(kafka_part: Kafka) -> dict[str, Any]:
    return {"bootstrap_servers": kafka_part.bootstrap}


@pytest.fixture
async def admin(connection: dict[str, Any]) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**connection)
    await admin.start()
    yield admin
    await admin.close()


async def test_they_are_made_once_and_then_are_as_they_are_to_be(connection: dict[str, Any], prefix: str) -> None:
    before = await check(connection, prefix)
    assert [(each.topic, each.finding) for each in before.drift] == [(prefix + t.name, "is not there") for t in TOPICS]
    first = await initialise(connection, 1, prefix)
    assert sorted(first.made) == sorted(prefix + topic.name for topic in TOPICS)
    assert first.drift == []
    assert await initialise(connection, 1, prefix) == await check(connection, prefix)
    assert (await check(connection, prefix)).drift == []


async def test_partitions_are_added_and_never_removed(
    connection: dict[str, Any], admin: AIOKafkaAdminClient, prefix: str
) -> None:
    await admin.create_topics([NewTopic(prefix + EXECUTION_EVENTS, 2, 1), NewTopic(prefix + POD_COMMANDS, 12, 1)])
    found = await initialise(connection, 1, prefix)
    assert f"{prefix}{EXECUTION_EVENTS}: 10 more partitions" in found.made
    await admin.create_partitions({prefix + POD_COMMANDS: NewPartitions(14)})
    async with asyncio.timeout(10):  # a broker hears of what was made a little later
        while True:
            shrunk = [each for each in (await check(connection, prefix)).drift if "14 partitions" in each.finding]
            if shrunk:
                break
            await asyncio.sleep(0.05)
    assert [(each.topic, each.finding) for each in shrunk] == [(prefix + POD_COMMANDS, "14 partitions instead of 12")]
    assert "cannot shrink" in shrunk[0].fix
    assert f"{prefix}{POD_COMMANDS}" not in " ".join((await initialise(connection, 1, prefix)).made)


async def test_settings_that_differ_are_told_and_left(
    connection: dict[str, Any], admin: AIOKafkaAdminClient, prefix: str
) -> None:
    await initialise(connection, 1, prefix)
    name = prefix + EXECUTION_EVENTS
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": "1000"})])
    async with asyncio.timeout(10):
        drifts = (await initialise(connection, 1, prefix)).drift
        while not drifts:
            await asyncio.sleep(0.05)
            drifts = (await initialise(connection, 1, prefix)).drift
    (drift,) = drifts
    assert (drift.topic, drift.finding) == (name, f"retention.ms is 1000 instead of {30 * DAY_MS}")


async def test_what_the_cluster_cannot_hold_is_refused_by_name(connection: dict[str, Any], prefix: str) -> None:
    with pytest.raises(Permanent, match=prefix):
        await initialise(connection, 3, prefix)


async def test_a_broker_that_is_not_there_is_told_as_such() -> None:
    with pytest.raises(Transient, match="Kafka does not answer"):
        await check({"bootstrap_servers": f"127.0.0.1:{free_port()}"})

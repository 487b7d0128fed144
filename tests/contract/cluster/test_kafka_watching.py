"""What can be watched from outside: how far a group is behind, and copies of dead letters."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from runtape.adapters.kafka import log as kafka_log
from runtape.adapters.kafka.codec import AvroCodec
from runtape.adapters.kafka.dead_letters import KafkaDeadLetterTopic
from runtape.adapters.kafka.log import KafkaEventLog
from runtape.adapters.kafka.producer import Producer
from runtape.domain.dead_letter import DEFAULT_POLICY, Failure, FailureKind, RawMessage, bury
from runtape.domain.events import POD_COMMANDS
from runtape.domain.ids import DeadLetterId
from runtape.ports.log import Delivery
from tests.adapters.fixed_schemas import FixedSchemas
from tests.clocks import START
from tests.contract.suites.log import commands
from tests.rig.kafka import Kafka

Lag = Callable[[], list[tuple[int | float, dict[str, object]]]]
pytestmark = pytest.mark.needs("kafka")
CODEC = AvroCodec(FixedSchemas())


@pytest.fixture
def prefix(kafka_part: Kafka) -> str:
    return f"{kafka_part.scope}watching."


@pytest.fixture
async def connection(kafka_part: Kafka, prefix: str) -> AsyncIterator[dict[str, Any]]:
    connection: dict[str, Any] = {"bootstrap_servers": kafka_part.bootstrap}
    admin = AIOKafkaAdminClient(**connection)
    await admin.start()
    names = [prefix + POD_COMMANDS, f"{prefix}{POD_COMMANDS}.dlq"]
    await admin.create_topics([NewTopic(name, 1, 1) for name in names])
    yield connection
    await admin.delete_topics(names)
    await admin.close()


@pytest.fixture
async def producer(connection: dict[str, Any], prefix: str) -> AsyncIterator[Producer]:
    producer = Producer(connection, CODEC, prefix)
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture
def lag(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lag]:
    """What the logs that are made afterwards tell of their groups' lag: each value with what it is about."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(kafka_log, "get_meter", provider.get_meter)

    def lag() -> list[tuple[int | float, dict[str, object]]]:
        data = reader.get_metrics_data()
        if data is None:
            return []
        (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
        assert metric.name == "runtape.consumer.lag"
        points = metric.data.data_points
        return [(each.value, dict(each.attributes or {})) for each in points if isinstance(each, NumberDataPoint)]

    yield lag
    provider.shutdown()


async def test_the_lag_is_what_the_group_has_not_done(
    connection: dict[str, Any], producer: Producer, prefix: str, lag: Lag
) -> None:
    for message in commands("a", 3):
        await producer.publish(message)
    log = KafkaEventLog(connection, CODEC, producer, prefix)
    deliveries = log.consume("group", (POD_COMMANDS,))
    found = [await anext(deliveries) for _ in range(3)]
    about = {"group": "group", "topic": POD_COMMANDS, "partition": 0}
    assert lag() == [(3, about)]
    log.acknowledge("group", found[1])
    assert lag() == [(3, about)], "the first is not done"
    log.acknowledge("group", found[0])
    assert lag() == [(1, about)]
    log.acknowledge("group", found[2])
    assert lag() == [(0, about)]
    await deliveries.aclose()
    assert lag() == []


async def test_a_topic_that_is_made_again_after_the_group_has_let_it_go(
    connection: dict[str, Any], producer: Producer, prefix: str, lag: Lag
) -> None:
    log = KafkaEventLog(connection, CODEC, producer, prefix)
    deliveries = log.consume("group", (POD_COMMANDS,))
    first, second = commands("a", 2)
    await producer.publish(first)
    log.acknowledge("group", await anext(deliveries))
    admin = AIOKafkaAdminClient(**connection)
    await admin.start()
    async with asyncio.timeout(40):
        await admin.delete_topics([prefix + POD_COMMANDS])
        while lag():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await admin.create_topics([NewTopic(prefix + POD_COMMANDS, 1, 1)])
        await producer.publish(second)
        again = await anext(deliveries)
    await admin.close()
    assert isinstance(again, Delivery)
    assert again.message == second
    await deliveries.aclose()


async def test_a_dead_letter_is_copied_with_its_bytes_and_its_cause(
    connection: dict[str, Any], producer: Producer, prefix: str
) -> None:
    raw = RawMessage(
        topic=POD_COMMANDS, partition=7, offset=42, key="k", type="pod.create", body=b"\0\xff", headers={"x": "y"}
    )
    failure = Failure(kind=FailureKind.POISON, cause="no such schema")
    letter = replace(bury(raw, None, "k8s-worker", failure, DEFAULT_POLICY, START), id=DeadLetterId("3"))
    await KafkaDeadLetterTopic(producer).copy(letter)
    async with AIOKafkaConsumer(f"{prefix}{POD_COMMANDS}.dlq", auto_offset_reset="earliest", **connection) as consumer:
        copy = await consumer.getone()
    assert (copy.key, copy.value) == (b"k", b"\0\xff")
    told = {name: value.decode() for name, value in copy.headers}
    assert told == {
        "x": "y",
        "type": "pod.create",
        "letter": "3",
        "group": "k8s-worker",
        "failure": "poison",
        "cause": "no such schema",
        "stack_digest": "",
        "attempts": "0",
        "original_topic": POD_COMMANDS,
        "original_partition": "7",
        "original_offset": "42",
    }

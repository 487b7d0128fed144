"""Messages that come again, come from nowhere, or are gone, while runs go on.

The first test delivers all that there is once more, so it comes before the others have left much behind.
"""

import asyncio
import io
import itertools
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import fastavro
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from runtape.adapters.kafka import topics
from runtape.application import admission, running, storing
from runtape.domain.events import EXECUTION_EVENTS, POD_COMMANDS
from runtape.runtime.roles import Role
from tests.cluster.processes import Cluster
from tests.cluster.survival import survived
from tests.e2e.server import Client

pytestmark = [pytest.mark.needs("kafka", "mongo", "redis", "registry", "alone", "own"), pytest.mark.timeout(240)]

TOPICS = (EXECUTION_EVENTS, POD_COMMANDS)
PLACES = [
    TopicPartition(each.name, number)
    for each in topics.TOPICS
    if each.name in TOPICS
    for number in range(each.partitions)
]
GROUPS = {
    Role.SAGA_ORCHESTRATOR: admission.GROUP,
    Role.K8S_WORKER: running.GROUP,
    Role.RESULT_PROCESSOR: storing.GROUP,
}


Records = Sequence["ConsumerRecord[bytes, bytes]"]


def run(work: Coroutine[Any, Any, object]) -> None:
    """Carry out `work` on a loop of this thread's own."""
    asyncio.run(work)


async def all_records(bootstrap: str) -> Records:
    """Return what the topics hold."""
    found: list[ConsumerRecord[bytes, bytes]] = []
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        consumer.assign(PLACES)
        ends = await consumer.end_offsets(PLACES)
        await consumer.seek_to_beginning(*PLACES)
        left = {place for place in PLACES if ends[place] > 0}
        while left:
            for place, records in (await consumer.getmany(timeout_ms=1000)).items():
                found += records
                if records[-1].offset + 1 >= ends[place]:
                    left.discard(place)
    return found


async def deliver_again(bootstrap: str, groups: Sequence[str]) -> None:
    """Set the offsets of groups that have no members to the beginning."""
    for group in groups:
        async with AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False) as consumer:
            consumer.assign(PLACES)
            await consumer.commit(dict.fromkeys(PLACES, 0))
            assert {await consumer.committed(place) for place in PLACES} == {0}


async def test_everything_is_delivered_again(cluster: Cluster, clients: list[Client]) -> None:
    def again() -> None:
        for role in GROUPS:
            for worker in cluster.workers[role]:
                worker.stop()
        run(deliver_again(cluster.kafka.bootstrap, list(GROUPS.values())))

    def begin() -> None:
        workers = [worker.begin() for role in GROUPS for worker in cluster.workers[role]]
        for worker in workers:
            worker.until_ready()

    await survived(clients, "redelivery", again, begin)


async def test_every_message_of_some_runs_comes_a_hundred_times(cluster: Cluster, clients: list[Client]) -> None:
    async def duplicate() -> None:
        records = sorted(await all_records(cluster.kafka.bootstrap), key=lambda record: record.timestamp)
        last = set(list(dict.fromkeys(record.key for record in reversed(records)))[:8])
        chosen = [record for record in records if record.key in last]
        assert len(chosen) > len(last)
        async with AIOKafkaProducer(bootstrap_servers=cluster.kafka.bootstrap, linger_ms=5) as producer:
            sent = [
                await producer.send(
                    record.topic, record.value, key=record.key, headers=list(record.headers), partition=record.partition
                )
                for record in chosen
                for _ in range(100)
            ]
            await asyncio.gather(*sent)

    await survived(clients, "duplicates", lambda: run(duplicate()))


async def test_rotten_bytes_are_set_aside(cluster: Cluster, clients: list[Client]) -> None:
    bodies = [b"", b"\0", b"\1\0\0\0\1x", b"\0\0\0\0\1", b"\0\x7f\xff\xff\xffx", b"{}", b"\xff" * 5000]
    types = [b"execution.completed", b"pod.create", b"", b"no.such.type"]
    cases = list(itertools.product(bodies, types, TOPICS))

    async def rot() -> None:
        async with AIOKafkaProducer(bootstrap_servers=cluster.kafka.bootstrap) as producer:
            for number, (body, type_name, topic) in enumerate(cases):
                await producer.send_and_wait(
                    topic, body, key=f"rotten-{number}".encode(), headers=[("type", type_name)]
                )

    await survived(clients, "rotten", lambda: run(rot()))
    # Each group of a topic has its own letter: three read the one, one the other.
    await letters(clients[0], [f"rotten-{number}" for number in range(len(cases))])


async def test_a_schema_that_does_not_fit_is_refused_and_its_messages_are_set_aside(
    cluster: Cluster, clients: list[Client]
) -> None:
    foreign = {"type": "record", "name": "PodCreate", "fields": [{"name": "mood", "type": "string"}]}
    text = Schema(str(foreign).replace("'", '"'), "AVRO")
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(foreign), {"mood": "happy"})

    async def write(schema_id: int) -> None:
        body = b"\0" + schema_id.to_bytes(4, "big") + out.getvalue()
        async with AIOKafkaProducer(bootstrap_servers=cluster.kafka.bootstrap) as producer:
            await producer.send_and_wait(POD_COMMANDS, body, key=b"foreign", headers=[("type", b"pod.create")])

    def register() -> None:
        with SchemaRegistryClient({"url": cluster.registry.url}) as registry:
            with pytest.raises(SchemaRegistryError) as refused:
                registry.register_schema("runtape.PodCreate", text)
            assert refused.value.http_status_code == 409
            run(write(registry.register_schema("somebody.else", text)))

    await survived(clients, "foreign", register)
    await letters(clients[0], ["foreign"])


async def letters(client: Client, keys: Sequence[str]) -> None:
    """Wait until there is an open dead letter of each of the keys, and discard them."""
    async with asyncio.timeout(30):
        for key in keys:
            while True:
                answer = await client.get("/admin/dlq/messages", params={"key": key})
                if found := answer.json()["messages"]:
                    break
                await asyncio.sleep(0.1)
            assert {each["failure"] for each in found} == {"poison"}, found


async def test_a_store_that_takes_two_seconds(cluster: Cluster, clients: list[Client]) -> None:
    def slow() -> None:
        for _ in range(5):
            cluster.mongo.pause()
            time.sleep(2.0)
            cluster.mongo.resume()
            time.sleep(0.2)

    await survived(clients, "slow", slow)


async def test_members_that_come_and_go(cluster: Cluster, clients: list[Client]) -> None:
    def storm() -> None:
        for _ in range(3):
            more = [cluster.worker(role) for role in GROUPS]
            for worker in more:
                worker.until_ready()
            for worker in more:
                worker.kill()

    await survived(clients, "storm", storm)


async def test_a_topic_that_was_deleted(cluster: Cluster, clients: list[Client]) -> None:
    async def delete() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka.bootstrap)
        await admin.start()
        await admin.delete_topics([POD_COMMANDS])
        await admin.close()

    made: list[str] = []

    async def make() -> None:
        made.extend((await topics.initialise({"bootstrap_servers": cluster.kafka.bootstrap}, 1)).made)

    await survived(clients, "deleted", lambda: run(delete()), lambda: run(make()))
    assert made == [POD_COMMANDS]

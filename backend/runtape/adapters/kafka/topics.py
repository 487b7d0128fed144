"""The topics of the product: one table, made and compared with what a broker has."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from runtape.adapters.kafka.connection import unreachable
from runtape.domain.events import EXECUTION_EVENTS, POD_COMMANDS
from runtape.ports.errors import Permanent, Transient

DAY_MS = 24 * 3600 * 1000
LOOKS = 100
LOOK_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic as it is to be.

    Messages of one key are in one partition and in order; so many of a group's members share the work as there are
    partitions.  More can be made later, fewer never.
    """

    name: str
    partitions: int
    retention_ms: int
    key: str = "execution id"
    cleanup: str = "delete"

    @property
    def settings(self) -> Mapping[str, str]:
        return {"retention.ms": str(self.retention_ms), "cleanup.policy": self.cleanup}


def dead_letter_topic(topic: str) -> str:
    """Return the topic that dead letters of `topic` are copied to."""
    return f"{topic}.dlq"


TOPICS: Sequence[Topic] = (
    Topic(name=EXECUTION_EVENTS, partitions=12, retention_ms=30 * DAY_MS),
    Topic(name=POD_COMMANDS, partitions=12, retention_ms=7 * DAY_MS),
    Topic(name=dead_letter_topic(EXECUTION_EVENTS), partitions=3, retention_ms=90 * DAY_MS),
    Topic(name=dead_letter_topic(POD_COMMANDS), partitions=3, retention_ms=90 * DAY_MS),
)


@dataclass(frozen=True, slots=True)
class Drift:
    """One way in which a topic is not as the table says; `fix` is what would make it so."""

    topic: str
    finding: str
    fix: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What was made, and what differs from the table."""

    made: tuple[str, ...]
    drift: Sequence[Drift]


async def initialise(connection: Mapping[str, Any], replication: int, prefix: str = "") -> Findings:
    """Make what is missing, and tell what differs, which is left as it is.

    Partitions are added where there are too few; where there are more than the table says that is told, for messages
    of a key would change their partition with fewer.  Returns once every broker that is asked knows the topics.
    Raises: Permanent, naming the topic that cannot be made; Transient.
    """
    return await _with_admin(connection, lambda admin: _initialise(admin, replication, _prefixed(prefix)))


async def check(connection: Mapping[str, Any], prefix: str = "") -> Findings:
    """Tell what differs from the table, and change nothing.  Raises: Transient."""
    return await _with_admin(connection, lambda admin: _check(admin, _prefixed(prefix)))


def _prefixed(prefix: str) -> Sequence[Topic]:
    return [replace(topic, name=prefix + topic.name) for topic in TOPICS]


async def _with_admin(
    connection: Mapping[str, Any], work: Callable[[AIOKafkaAdminClient], Awaitable[Findings]]
) -> Findings:
    admin = AIOKafkaAdminClient(**connection)
    try:
        await admin.start()
        return await work(admin)
    except KafkaError as error:
        raise await unreachable(connection, error) from error
    finally:
        await admin.close()


async def _check(admin: AIOKafkaAdminClient, topics: Sequence[Topic]) -> Findings:
    present = await _present(admin, [topic.name for topic in topics])
    drift: list[Drift] = []
    for topic in topics:
        partitions = present.get(topic.name)
        if partitions is None:
            drift.append(Drift(topic.name, "is not there", "runtape topics init"))
            continue
        if partitions < topic.partitions:
            finding = f"{partitions} partitions instead of {topic.partitions}"
            drift.append(Drift(topic.name, finding, "runtape topics init"))
        drift += _surplus(topic, partitions)
        drift += await _settings_drift(admin, topic)
    return Findings((), drift)


def _surplus(topic: Topic, partitions: int) -> list[Drift]:
    if partitions <= topic.partitions:
        return []
    finding = f"{partitions} partitions instead of {topic.partitions}"
    return [Drift(topic.name, finding, "none: a topic cannot shrink without moving its keys")]


async def _initialise(admin: AIOKafkaAdminClient, replication: int, topics: Sequence[Topic]) -> Findings:
    made: list[str] = []
    present = await _present(admin, [topic.name for topic in topics])
    missing = [topic for topic in topics if topic.name not in present]
    if missing:
        new = [
            NewTopic(topic.name, topic.partitions, replication, topic_configs=dict(topic.settings)) for topic in missing
        ]
        answer: Any = await admin.create_topics(new)
        for name, code, message in answer.topic_errors:
            if code == TopicAlreadyExistsError.errno:
                continue
            if code:
                raise Permanent(f"topic {name} cannot be made: {message or for_code(code).__name__}")
            made.append(name)
        present = await _until_told(admin, dict.fromkeys((topic.name for topic in topics), 1))
    for topic in topics:
        lacking = topic.partitions - present[topic.name]
        if lacking > 0:
            await admin.create_partitions({topic.name: NewPartitions(topic.partitions)})
            made.append(f"{topic.name}: {lacking} more partitions")
    await _until_told(admin, {topic.name: topic.partitions for topic in topics})
    return Findings(tuple(made), (await _check(admin, topics)).drift)


async def _present(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    """Return how many partitions each of the topics has that are there."""
    found = await admin.describe_topics(names)
    return {topic["topic"]: len(topic["partitions"]) for topic in found if not topic["error_code"]}


async def _until_told(admin: AIOKafkaAdminClient, partitions: Mapping[str, int]) -> dict[str, int]:
    """Wait until so many partitions of each topic are told of, and return how many each has.

    A broker hears of what was made a little later.  Raises: Transient.
    """
    for _ in range(LOOKS):
        present = await _present(admin, list(partitions))
        if all(present.get(name, 0) >= wanted for name, wanted in partitions.items()):
            return present
        await asyncio.sleep(LOOK_AGAIN_S)
    raise Transient("the brokers do not tell of topics that were made")


async def _settings_drift(admin: AIOKafkaAdminClient, topic: Topic) -> list[Drift]:
    answers: Any = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name)])
    found = {entry[0]: entry[1] for answer in answers for resource in answer.resources for entry in resource[4]}
    return [
        Drift(topic.name, f"{name} is {found.get(name)} instead of {wanted}", f"kafka-configs --alter {name}={wanted}")
        for name, wanted in topic.settings.items()
        if found.get(name) != wanted
    ]

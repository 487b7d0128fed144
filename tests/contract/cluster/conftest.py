"""Real parts for the contracts of the cluster's adapters; the tests of one process share them."""

from collections.abc import Iterator

import pytest

from tests.rig import choice
from tests.rig.kafka import Kafka
from tests.rig.mongo import Mongo
from tests.rig.redis import Redis
from tests.rig.registry import Registry


@pytest.fixture(scope="session")
def redis_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    part = choice.a_redis(tmp_path_factory.mktemp("redis")).start()
    yield part
    part.stop()


@pytest.fixture(scope="session")
def mongo_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongo]:
    part = choice.a_mongo(tmp_path_factory.mktemp("mongo")).start()
    yield part
    part.stop()


@pytest.fixture(scope="session")
def kafka_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    part = choice.a_kafka(tmp_path_factory.mktemp("kafka")).start()
    yield part
    part.stop()


@pytest.fixture(scope="session")
def registry_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    part = choice.a_registry(tmp_path_factory.mktemp("registry")).start()
    yield part
    part.stop()

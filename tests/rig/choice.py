"""Which servers the tests use: those that are given, else containers where Docker is, else the rig's own."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from tests.rig import contained
from tests.rig.contained import ContainedKafka, ContainedMongo, ContainedRedis, ContainedRegistry
from tests.rig.given import GivenKafka, GivenKubernetes, GivenMongo, GivenRedis, GivenRegistry, addresses
from tests.rig.kafka import Kafka
from tests.rig.kubernetes.cluster import Kubernetes
from tests.rig.mongo import Mongo
from tests.rig.part import Part
from tests.rig.redis import Redis
from tests.rig.registry import Registry

P = TypeVar("P", bound=Part)


class Source(StrEnum):
    """Where a part comes from."""

    GIVEN = "given"
    DOCKER = "docker"
    UNPACKED = "unpacked"


def source(name: str) -> Source:
    """Return where the part `name` comes from."""
    return Source.GIVEN if name in addresses() else source_of_ours()


def source_of_ours() -> Source:
    """Return where parts come from that are nobody else's."""
    return Source.UNPACKED if contained.missing() else Source.DOCKER


def _ours(folder: Path, kept: str, in_docker: Callable[[Path, str], P], unpacked: Callable[[Path], P]) -> P:
    return in_docker(folder, kept) if source_of_ours() is Source.DOCKER else unpacked(folder)


def our_kafka(folder: Path, kept: str = "") -> Kafka:
    """Return a Kafka of the tests' own, with its data in `folder` or in a container, which has the name `kept`."""
    return _ours(folder, kept, ContainedKafka, Kafka)


def our_registry(folder: Path, kept: str = "") -> Registry:
    """Return a registry of the tests' own, with its data in `folder` or in a container, which has the name `kept`."""
    return _ours(folder, kept, ContainedRegistry, Registry)


def our_mongo(folder: Path, kept: str = "") -> Mongo:
    """Return a MongoDB of the tests' own, with its data in `folder` or in a container, which has the name `kept`."""
    return _ours(folder, kept, ContainedMongo, Mongo)


def our_redis(folder: Path, kept: str = "") -> Redis:
    """Return a Redis of the tests' own, in a container, which has the name `kept`, or not."""
    return _ours(folder, kept, ContainedRedis, Redis)


def a_kafka(folder: Path) -> Kafka:
    """Return the Kafka that is given, else one of the tests' own."""
    address = addresses().get("kafka")
    return our_kafka(folder) if address is None else GivenKafka(address)


def a_registry(folder: Path) -> Registry:
    """Return the registry that is given, else one of the tests' own."""
    address = addresses().get("registry")
    return our_registry(folder) if address is None else GivenRegistry(address)


def a_mongo(folder: Path) -> Mongo:
    """Return the MongoDB that is given, else one of the tests' own."""
    address = addresses().get("mongo")
    return our_mongo(folder) if address is None else GivenMongo(address)


def a_redis(folder: Path) -> Redis:
    """Return the Redis that is given, else one of the tests' own."""
    address = addresses().get("redis")
    return our_redis(folder) if address is None else GivenRedis(address)


def a_kubernetes(folder: Path) -> Kubernetes | GivenKubernetes:
    """Return the Kubernetes that is given, else one of the tests' own with its data in `folder`."""
    address = addresses().get("kubernetes")
    return Kubernetes(folder) if address is None else GivenKubernetes(address)

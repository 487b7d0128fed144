"""Servers that are there already, given by address: used as they are, neither started nor stopped, and never killed.

Others may use them too, and earlier runs may have left something: topics, subjects and databases of this run have
names of its own (`Part.scope`), the database in Redis is one that was empty, and what was made is removed at the end.
"""

import asyncio
import os
import secrets
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit, urlunsplit

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.schema_registry import SchemaRegistryClient
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from redis import Redis as Client
from redis.exceptions import RedisError

from tests.rig.kafka import Kafka
from tests.rig.mongo import Mongo
from tests.rig.part import Part
from tests.rig.redis import Redis
from tests.rig.registry import Registry

VARIABLES = {
    "kafka": "RUNTAPE_TEST_KAFKA",
    "registry": "RUNTAPE_TEST_REGISTRY",
    "mongo": "RUNTAPE_TEST_MONGO",
    "redis": "RUNTAPE_TEST_REDIS",
    "kubernetes": "RUNTAPE_TEST_KUBECONFIG",
}
"""Where each part is given: Kafka as host:port, Kubernetes as the path of a kubeconfig, the others as URLs."""

NOT_KILLED = "given servers are not killed"
ANSWER_S = 5.0

_CLAIM = "if redis.call('DBSIZE') > 0 then return 0 end redis.call('SET', KEYS[1], ARGV[1]) return 1"
_run = f"t{secrets.token_hex(4)}"


class NotOurs(Exception):
    """Something was to be done to a server that is not the tests' own."""


def addresses() -> dict[str, str]:
    """Return the addresses that are given, by part."""
    return {name: os.environ[variable] for name, variable in VARIABLES.items() if os.environ.get(variable)}


class Given(Part):
    """A server of somebody else's at `address`."""

    def __init__(self, address: str) -> None:
        super().__init__(Path(os.devnull))
        self.address = address
        self.scope = _run

    def start(self) -> Self:
        """Return when it answers.  Raises: AssertionError."""
        assert self.answers(), f"the {type(self).__name__.removeprefix('Given')} that is given does not answer"
        return self

    def stop(self) -> None:
        """Remove what this run has made there."""
        self.tidy()

    @abstractmethod
    def tidy(self) -> None:
        """Remove what has names of this run."""

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        raise NotOurs("given servers are not started")

    def kill(self) -> NoReturn:
        raise NotOurs(NOT_KILLED)

    def pause(self) -> NoReturn:
        raise NotOurs(NOT_KILLED)

    def resume(self) -> NoReturn:
        raise NotOurs(NOT_KILLED)


class GivenKafka(Given, Kafka):
    """Brokers; topics of this run have names that begin with `scope`."""

    @property
    def bootstrap(self) -> str:
        return self.address

    def answers(self) -> bool:
        return self._topics() is not None

    def _topics(self) -> list[str] | None:
        # Its own log would tell standard error of every try.
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        try:
            return list(admin.list_topics(timeout=ANSWER_S).topics)
        except KafkaException:
            return None

    def tidy(self) -> None:
        ours = [name for name in self._topics() or () if name.startswith(self.scope)]
        if ours:
            admin = AdminClient({"bootstrap.servers": self.address})  # it is to live until they are removed
            for removed in admin.delete_topics(ours).values():
                removed.result(ANSWER_S)


class GivenRegistry(Given, Registry):
    """A registry; subjects of this run have names that begin with `scope`."""

    @property
    def url(self) -> str:
        return self.address

    def _client(self) -> SchemaRegistryClient:
        return SchemaRegistryClient({"url": self.address, "timeout": ANSWER_S})

    def answers(self) -> bool:
        with self._client() as client:
            try:
                client.get_subjects()
            except Exception:  # of the HTTP client that it happens to use
                return False
        return True

    def tidy(self) -> None:
        with self._client() as client:
            for subject in client.get_subjects():
                if subject.startswith(self.scope):
                    client.delete_subject(subject)


class GivenMongo(Given, Mongo):
    """A deployment; databases of this run have names that begin with `scope`."""

    @property
    def url(self) -> str:
        return self.address

    @property
    def direct_url(self) -> str:
        return self.address

    def _client(self) -> "MongoClient[dict[str, Any]]":
        return MongoClient(self.address, serverSelectionTimeoutMS=int(ANSWER_S * 1000))

    def answers(self) -> bool:
        with self._client() as client:
            try:
                client.admin.command("ping")
            except PyMongoError:
                return False
        return True

    def tidy(self) -> None:
        with self._client() as client:
            for name in client.list_database_names():
                if name.startswith(self.scope):
                    client.drop_database(name)


class GivenRedis(Given, Redis):
    """A server, in whose first empty database this run is alone; the address's own number is not looked at.

    Channels know no databases: who publishes or listens says `scope` there.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._number: int | None = None

    @property
    def url(self) -> str:
        assert self._number is not None, "it was not started"
        return self._url_of(self._number)

    def _url_of(self, number: int) -> str:
        return urlunsplit(urlsplit(self.address)._replace(path=f"/{number}"))

    def start(self) -> Self:
        super().start()
        with Client.from_url(self.address) as client:
            databases: Any = client.config_get("databases")
        for number in range(int(databases["databases"])):
            with Client.from_url(self._url_of(number)) as client:
                if client.eval(_CLAIM, 1, "tests", self.scope):
                    self._number = number
                    return self
        raise AssertionError("no database of the Redis that is given is empty; FLUSHDB removes what a run has left")

    def flush(self) -> NoReturn:
        raise NotOurs("given servers are not emptied")

    def answers(self) -> bool:
        with Client.from_url(self.address, socket_timeout=ANSWER_S) as client:
            try:
                return bool(client.ping())
            except RedisError:
                return False

    def tidy(self) -> None:
        if self._number is not None:
            with Client.from_url(self.url) as client:
                client.flushdb()
            self._number = None


class GivenKubernetes(Given):
    """A cluster; namespaces of this run have names that begin with `scope`, and go with all that is in them."""

    @property
    def kubeconfig(self) -> Path:
        """The file that says how to reach it."""
        return Path(self.address)

    def answers(self) -> bool:
        return self._namespaces() is not None

    def _namespaces(self, remove: str | None = None) -> list[str] | None:
        """Return their names, and remove those that begin with `remove`; None: it does not answer."""
        import aiohttp  # they take half a second, and most tests do without
        from kubernetes_asyncio import client, config

        async def asked() -> list[str]:
            await config.load_kube_config(self.address)
            async with client.ApiClient() as connection:
                core = client.CoreV1Api(connection)
                listed = await core.list_namespace(_request_timeout=ANSWER_S)
                names = [each.metadata.name for each in listed.items]
                for name in names:
                    if remove is not None and name.startswith(remove):
                        await core.delete_namespace(name, _request_timeout=ANSWER_S)
                return names

        with ThreadPoolExecutor(1) as thread:  # who asks may be in a loop of their own
            try:
                return thread.submit(asyncio.run, asked()).result()
            except (OSError, TimeoutError, config.ConfigException, client.ApiException, aiohttp.ClientError):
                return None

    def tidy(self) -> None:
        self._namespaces(remove=self.scope)


_KINDS: Mapping[str, Callable[[str], Given]] = {
    "kafka": GivenKafka,
    "registry": GivenRegistry,
    "mongo": GivenMongo,
    "redis": GivenRedis,
    "kubernetes": GivenKubernetes,
}


def parts() -> dict[str, Given]:
    """Return the parts that are given, by name."""
    return {name: _KINDS[name](address) for name, address in addresses().items()}

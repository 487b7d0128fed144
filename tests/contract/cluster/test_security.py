"""TLS and credentials to each part: what is right gets through, what is wrong is told soon, with its reason.

MongoDB's engine here knows neither TLS nor users, and the registry's users need a service of their own: TLS is ended in
front of them, and what the client sends there is looked at.
"""

import asyncio
import gc
import json
import logging
import socket
import subprocess
import sys
import traceback
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from cryptography.x509 import DNSName

from runtape.adapters.kafka import topics
from runtape.adapters.kafka.codec import AvroCodec
from runtape.adapters.kafka.log import KafkaEventLog
from runtape.adapters.kafka.producer import Producer
from runtape.adapters.kafka.registry import SchemaRegistryManager
from runtape.adapters.mongo import connection as mongo
from runtape.adapters.redis import connection as redis
from runtape.adapters.redis.rate_limiter import RedisRateLimiter
from runtape.domain.events import POD_COMMANDS
from runtape.ports.errors import Permanent, Transient
from runtape.ports.log import Delivery
from runtape.runtime.parts import KafkaSettings, MongoSettings, RedisSettings, RegistrySettings
from tests.adapters.fixed_schemas import FixedSchemas
from tests.cli.commands import environment, runtape
from tests.contract.suites.log import commands
from tests.contract.test_rate_limiter import TEN_A_MINUTE
from tests.rig.certificates import Authority
from tests.rig.kafka import SecureKafka
from tests.rig.mongo import Mongo
from tests.rig.part import free_port
from tests.rig.redis import Redis, SecureRedis
from tests.rig.registry import Registry
from tests.rig.terminator import Terminator

ROOT = Path(__file__).parents[3]
USER, SECRET, WRONG = "runtape", "hunter2", "swordfish7"
TOLD_S = 30.0
"""Within so long a failure is told."""
UNKNOWN = "certificate verify failed: unable to get local issuer certificate"
CODEC = AvroCodec(FixedSchemas())
pytestmark = [pytest.mark.needs("own"), pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect connections whose TLS was not shut down when their loop was closed, so that no other test meets them."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("strange-certificates"), "strange")


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[SecureKafka]:
    part = SecureKafka(tmp_path_factory.mktemp("secure-kafka"), authority, USER, SECRET).start()
    yield part
    part.stop()


USERS = {USER: f"on >{SECRET} ~* &* +@all", "reader": f"on >{SECRET} ~* &* +ping +hello"}


@pytest.fixture(scope="session")
def secure_redis(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[SecureRedis]:
    part = SecureRedis(tmp_path_factory.mktemp("secure-redis"), authority, authority.pair("redis"), USERS).start()
    yield part
    part.stop()


async def failure(work: Callable[[], Awaitable[object]], caplog: pytest.LogCaptureFixture | None = None) -> Transient:
    """Return how `work` fails, which is soon and leaks nothing, neither in its causes nor in what drivers log."""
    async with asyncio.timeout(TOLD_S):
        with pytest.raises(Transient) as found:
            await work()
    told = "".join(traceback.format_exception(found.value)) + (caplog.text if caplog else "")
    assert SECRET not in told and WRONG not in told
    # Not the error itself, whose frames hold what drivers leave to the collector.
    return Transient(str(found.value), retry_after_s=found.value.retry_after_s)


# Kafka


def kafka_settings(part: SecureKafka, listener: str, **more: object) -> dict[str, Any]:
    return KafkaSettings.model_validate({"bootstrap": part.bootstrap_of(listener), **more}).connection()


def with_user(authority: Authority, **more: object) -> dict[str, object]:
    return {"security_protocol": "SASL_SSL", "ca_file": authority.file, "username": USER, "password": SECRET, **more}


def with_certificate(authority: Authority, of: Authority) -> dict[str, object]:
    pair = of.pair("client")
    files = {"certificate_file": pair.certificate, "key_file": pair.key}
    return {"security_protocol": "SSL", "ca_file": authority.file, **files}


async def goes_round(connection: dict[str, Any], prefix: str) -> None:
    """Make the topics, publish a message and receive it."""
    assert (await topics.initialise(connection, 1, prefix)).drift == []
    publisher = Producer(connection, CODEC, prefix)
    await publisher.start()
    (message,) = commands("e")
    deliveries = KafkaEventLog(connection, CODEC, publisher, prefix).consume("g", [POD_COMMANDS])
    async with asyncio.timeout(30), aclosing(deliveries):
        await publisher.publish(message)
        delivery = await anext(deliveries)
        assert isinstance(delivery, Delivery) and delivery.message == message
    await publisher.stop()


@pytest.mark.needs("kafka-unpacked")
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"])
async def test_a_message_goes_round_with_a_user_through_tls(
    secure_kafka: SecureKafka, authority: Authority, mechanism: str
) -> None:
    settings = with_user(authority, mechanism=mechanism)
    await goes_round(kafka_settings(secure_kafka, "SASL", **settings), f"{mechanism}.")


@pytest.mark.needs("kafka-unpacked")
async def test_a_message_goes_round_with_a_certificate(secure_kafka: SecureKafka, authority: Authority) -> None:
    await goes_round(kafka_settings(secure_kafka, "MUTUAL", **with_certificate(authority, authority)), "mutual.")


@pytest.mark.needs("kafka-unpacked")
async def test_a_message_goes_round_with_a_user_alone(secure_kafka: SecureKafka) -> None:
    settings = {"security_protocol": "SASL_PLAINTEXT", "username": USER, "password": SECRET}
    await goes_round(kafka_settings(secure_kafka, "OPEN", **settings), "open.")


UNTRUSTED = "shows a certificate that is not trusted: "


@pytest.mark.needs("kafka-unpacked")
@pytest.mark.parametrize(
    ("listener", "settings", "told", "waits"),
    [
        ("SASL", {"password": WRONG}, "refuses the user runtape (SCRAM-SHA-512): ", True),
        ("SASL", {"password": WRONG, "mechanism": "PLAIN"}, "refuses the user runtape (PLAIN): ", True),
        ("SASL", {"username": "nobody"}, "refuses the user nobody (SCRAM-SHA-512): ", True),
        ("SASL", {"ca_file": "strange"}, f"{UNTRUSTED}unable to get local issuer certificate", True),
        ("SASL", {"ca_file": None}, f"{UNTRUSTED}unable to get local issuer certificate", True),
        ("EXPIRED", {"security_protocol": "SSL"}, f"{UNTRUSTED}certificate has expired", True),
        ("FOREIGN", {"security_protocol": "SSL"}, f"{UNTRUSTED}IP address mismatch", True),
        ("SASL", {"security_protocol": "SASL_PLAINTEXT"}, "closes the connection unanswered", False),
        ("SASL", {"security_protocol": "PLAINTEXT"}, "closes the connection unanswered", False),
        ("OPEN", {}, "closes the connection unanswered", False),
        ("MUTUAL", {"security_protocol": "SSL"}, "agree on TLS: ", True),
    ],
)
async def test_kafka_tells_what_is_wrong(
    secure_kafka: SecureKafka,
    authority: Authority,
    stranger: Authority,
    caplog: pytest.LogCaptureFixture,
    listener: str,
    settings: Mapping[str, object],
    told: str,
    waits: bool,
) -> None:
    given = with_user(authority, **settings)
    if given["ca_file"] == "strange":
        given["ca_file"] = stranger.file
    caplog.set_level(logging.INFO)
    connection = kafka_settings(secure_kafka, listener, **given)
    error = await failure(lambda: Producer(connection, CODEC).start(), caplog)
    assert str(error).startswith(f"Kafka does not answer: {secure_kafka.bootstrap_of(listener)} ")
    assert told in str(error)
    assert (error.retry_after_s is not None) == waits


@pytest.mark.needs("kafka-unpacked")
async def test_a_certificate_of_another_authority_is_refused(
    secure_kafka: SecureKafka, authority: Authority, stranger: Authority
) -> None:
    connection = kafka_settings(secure_kafka, "MUTUAL", **with_certificate(authority, stranger))
    error = await failure(lambda: Producer(connection, CODEC).start())
    assert "do not agree on TLS: " in str(error)


@pytest.mark.needs("kafka-unpacked")
async def test_consumers_and_the_command_line_tell_it_as_well(
    secure_kafka: SecureKafka, authority: Authority, tmp_path: Path
) -> None:
    connection = kafka_settings(secure_kafka, "SASL", **with_user(authority, password=WRONG))
    log = KafkaEventLog(connection, CODEC, Producer(connection, CODEC)).consume("g", [POD_COMMANDS])
    for work in (lambda: anext(log), lambda: topics.check(connection)):
        assert "refuses the user runtape (SCRAM-SHA-512)" in str(await failure(work))
    env = {
        "RUNTAPE_DATA": str(tmp_path),
        "RUNTAPE_KAFKA__BOOTSTRAP": secure_kafka.bootstrap_of("SASL"),
        "RUNTAPE_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "RUNTAPE_KAFKA__USERNAME": USER,
        "RUNTAPE_KAFKA__PASSWORD": WRONG,
        "RUNTAPE_KAFKA__CA_FILE": str(authority.file),
    }
    done = await asyncio.to_thread(runtape, "topics", "check", env=env)
    assert done.returncode == 1
    assert b"error: Kafka does not answer: " in done.stderr and b"refuses the user runtape" in done.stderr
    assert WRONG.encode() not in done.stdout + done.stderr


# Redis


def redis_client(url: str, **more: object) -> Any:
    settings = RedisSettings.model_validate({"url": url, **more})
    return redis.connect(url, **settings.options())


async def limited(client: Any) -> None:
    try:
        assert (await RedisRateLimiter(client).take("a", TEN_A_MINUTE)).limit == 10
    finally:
        await client.aclose()


@pytest.mark.needs("redis-unpacked")
async def test_the_limiter_asks_through_tls_as_its_user(secure_redis: SecureRedis, authority: Authority) -> None:
    await limited(redis_client(secure_redis.url, ca_file=authority.file, username=USER, password=SECRET))
    in_the_url = secure_redis.url.replace("//", f"//{USER}:{SECRET}@")
    await limited(redis_client(in_the_url, ca_file=authority.file))


@pytest.mark.needs("redis-unpacked")
@pytest.mark.parametrize(
    ("settings", "told", "waits"),
    [
        ({"password": WRONG}, "Redis refuses the user: invalid username-password pair", True),
        ({"username": "reader"}, "Redis refuses the user: ", True),
        ({"username": None, "password": None}, "Redis refuses the user: ", True),
        ({"ca_file": "strange"}, "self-signed certificate in certificate chain", False),
        ({"ca_file": None}, "self-signed certificate in certificate chain", False),
    ],
)
async def test_redis_tells_what_is_wrong(
    secure_redis: SecureRedis,
    authority: Authority,
    stranger: Authority,
    caplog: pytest.LogCaptureFixture,
    settings: Mapping[str, object],
    told: str,
    waits: bool,
) -> None:
    given = {"ca_file": authority.file, "username": USER, "password": SECRET, **settings}
    if given["ca_file"] == "strange":
        given["ca_file"] = stranger.file
    caplog.set_level(logging.DEBUG)
    error = await failure(lambda: limited(redis_client(secure_redis.url, **given)), caplog)
    assert told in str(error)
    assert (error.retry_after_s is not None) == waits


@pytest.mark.needs("redis-unpacked")
async def test_redis_without_tls_is_told(secure_redis: SecureRedis) -> None:
    url = secure_redis.url.replace("rediss", "redis")
    error = await failure(lambda: limited(redis_client(url, password=SECRET)))
    assert str(error).startswith("Redis does not answer: ConnectionError")


@pytest.mark.needs("redis-unpacked")
async def test_redis_takes_certificates_of_its_authority_alone(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    part = SecureRedis(tmp_path, authority, authority.pair("redis"), USERS, mutual=True).start()
    given = {"ca_file": authority.file, "username": USER, "password": SECRET}

    def client(of: Authority) -> Any:
        pair = of.pair("client")
        return redis_client(part.url, **given, certificate_file=pair.certificate, key_file=pair.key)

    await limited(client(authority))
    for wrong in (lambda: redis_client(part.url, **given), lambda: client(stranger)):
        assert "Redis does not answer" in str(await failure(lambda wrong=wrong: limited(wrong())))
    part.stop()


@pytest.mark.needs("redis-unpacked")
async def test_redis_whose_certificate_is_over_or_for_another_name_is_not_trusted(
    tmp_path: Path, authority: Authority
) -> None:
    pairs = {
        "certificate has expired": authority.pair("old", expired=True),
        "IP address mismatch": authority.pair("foreign", (DNSName("elsewhere.example"),)),
    }
    target = Redis(tmp_path).start()
    for told, pair in pairs.items():
        with Terminator(target.port, pair) as front:
            url = f"rediss://127.0.0.1:{front.port}"
            error = await failure(lambda url=url: limited(redis_client(url, ca_file=authority.file)))
            assert told in str(error)
    target.stop()


class ForgetfulRedis(Redis):
    """One that does not know the greeting of its clients, as before Redis 6."""

    def command(self) -> Any:
        words, env = super().command()
        return [*words, "--requirepass", SECRET, "--rename-command", "HELLO", "other"], env

    def answers(self) -> bool:
        with closing(socket.socket()) as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.mark.needs("redis-unpacked")
async def test_a_redis_that_repeats_the_greeting_leaks_no_password(tmp_path: Path) -> None:
    part = ForgetfulRedis(tmp_path).start()
    error = await failure(lambda: limited(redis_client(part.url, password=SECRET)))
    assert "older than Redis 6" in str(error)
    part.stop()


# MongoDB


async def asked(url: str, **more: object) -> None:
    settings = MongoSettings.model_validate({"url": url, **more})
    client = mongo.connect(url, **settings.options())
    try:
        with mongo.transient():
            await client["runtape"]["things"].find_one({})
    finally:
        await client.close()


@pytest.mark.needs("mongo")
async def test_mongodb_answers_through_tls_and_what_is_wrong_is_told(
    mongo_part: Mongo, authority: Authority, stranger: Authority
) -> None:
    options = "?directConnection=true&retryWrites=false"
    mine, theirs = authority.pair("client").both, stranger.pair("client").both
    with (
        Terminator(mongo_part.port, authority.pair("mongo")) as front,
        Terminator(mongo_part.port, authority.pair("mongo-mutual"), clients=authority) as mutual,
        Terminator(mongo_part.port, authority.pair("mongo-old", expired=True)) as old,
        Terminator(mongo_part.port, authority.pair("foreign", (DNSName("elsewhere.example"),))) as foreign,
    ):

        def at(part: Terminator) -> str:
            return f"mongodb://127.0.0.1:{part.port}/{options}"

        await asked(at(front), ca_file=authority.file)
        await asked(at(mutual), ca_file=authority.file, certificate_key_file=mine)
        wrong: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            (UNKNOWN, lambda: asked(at(front), ca_file=stranger.file)),
            (UNKNOWN, lambda: asked(f"{at(front)}&tls=true")),
            ("certificate has expired", lambda: asked(at(old), ca_file=authority.file)),
            ("IP address mismatch", lambda: asked(at(foreign), ca_file=authority.file)),
            ("", lambda: asked(at(front))),
            ("", lambda: asked(at(mutual), ca_file=authority.file)),
            ("", lambda: asked(at(mutual), ca_file=authority.file, certificate_key_file=theirs)),
        ]
        for (told, _), error in zip(wrong, await asyncio.gather(*(failure(work) for _, work in wrong)), strict=True):
            assert str(error).startswith("MongoDB does not answer: ServerSelectionTimeoutError: ")
            assert told in str(error) and "Topology" not in str(error) and "timeouts" not in str(error)


@pytest.mark.needs("mongo")
async def test_mongodb_is_sent_the_credentials_through_tls(mongo_part: Mongo, authority: Authority) -> None:
    with (
        Terminator(mongo_part.port, authority.pair("mongo")) as front,
        Terminator(mongo_part.port, authority.pair("mongo-2")) as other,
    ):
        place = "?authMechanism=PLAIN&authSource=$external&directConnection=true"
        in_the_url = f"mongodb://{USER}:{SECRET}@127.0.0.1:{front.port}/{place}"
        in_settings = f"mongodb://127.0.0.1:{other.port}/{place}"
        # The engine does not know this mechanism and leaves the client waiting.
        await asyncio.gather(
            failure(lambda: asked(in_the_url, ca_file=authority.file)),
            failure(lambda: asked(in_settings, ca_file=authority.file, username=USER, password=SECRET)),
        )
        assert f"\0{USER}\0{SECRET}".encode() in front.received
        assert f"\0{USER}\0{SECRET}".encode() in other.received


@pytest.mark.needs("mongo")
async def test_mongodb_tells_that_it_does_not_know_the_user_and_is_sent_no_password(
    mongo_part: Mongo, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Terminator(mongo_part.port, authority.pair("mongo")) as front:
        url = f"mongodb://{USER}:{SECRET}@127.0.0.1:{front.port}/?directConnection=true"
        error = await failure(lambda: asked(url, ca_file=authority.file), caplog)
        assert str(error) == "MongoDB refuses the user: AuthenticationFailed"
        assert error.retry_after_s is not None
        assert f"n={USER},r=".encode() in front.received or b"saslStart" in front.received
        assert SECRET.encode() not in front.received


async def test_a_url_that_mongodb_cannot_use_is_told_without_a_piece_of_it() -> None:
    with pytest.raises(Permanent, match=r"mongo\.url cannot be used") as found:
        mongo.connect(f"mongodb://{USER}:{SECRET}:{SECRET}@127.0.0.1")
    assert SECRET not in "".join(traceback.format_exception(found.value))


# The schema registry


async def registered(url: str, **more: object) -> None:
    settings = RegistrySettings.model_validate({"url": url, **more})
    with closing(SchemaRegistryManager(settings.connection(), "secure.")) as manager:
        await manager.register()


@pytest.mark.needs("registry")
async def test_the_registry_is_reached_through_tls_and_what_is_wrong_is_told(
    registry_part: Registry, authority: Authority, stranger: Authority
) -> None:
    pair = authority.pair("client")
    user = {"username": USER, "password": SECRET}
    path = registry_part.url.partition(str(registry_part.port))[2]
    with (
        Terminator(registry_part.port, authority.pair("registry"), basic=f"{USER}:{SECRET}") as front,
        Terminator(registry_part.port, authority.pair("registry-mutual"), clients=authority) as mutual,
        Terminator(registry_part.port, authority.pair("registry-old", expired=True)) as old,
    ):

        def at(part: Terminator) -> str:
            return f"https://127.0.0.1:{part.port}{path}"

        files = {"ca_file": authority.file}
        await registered(at(front), **files, **user)
        await registered(at(mutual), **files, certificate_file=pair.certificate, key_file=pair.key)
        wrong: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("refuses the user: it answers 401", lambda: registered(at(front), **files, username=USER, password=WRONG)),
            ("refuses the user: it answers 401", lambda: registered(at(front), **files)),
            (UNKNOWN, lambda: registered(at(front), ca_file=stranger.file, **user)),
            (UNKNOWN, lambda: registered(at(front), **user)),
            ("certificate has expired", lambda: registered(at(old), **files)),
            ("does not answer", lambda: registered(at(mutual), **files)),
            ("does not answer", lambda: registered(at(front).replace("https", "http"))),
        ]
        for (told, _), error in zip(wrong, await asyncio.gather(*(failure(work) for _, work in wrong)), strict=True):
            assert str(error).startswith("the registry ") and told in str(error)
            assert (error.retry_after_s is not None) == ("refuses" in told)


# Processes


class Waiting:
    """A worker that cannot get through to a part; it is killed when it is left, and has told all then."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._port = free_port()
        own = {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'backend'}",
            "RUNTAPE_DATA": str(folder),
            "RUNTAPE_WORKER__PORT": str(self._port),
            "RUNTAPE_LOG_LEVEL": "debug",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.pod_monitor"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(**own, **env),
            cwd=ROOT,
        )
        self.told: list[str] = []

    def until_waiting(self) -> str:
        """Return what it waits for, as its log says."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.told.append(line.decode())
            if b"start.waiting" in line:
                return json.loads(line)["error"]
        raise AssertionError(f"the process has ended: {''.join(self.told)}")

    def ready(self) -> tuple[int, str]:
        """Return status and body of the question for readiness."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/health/ready", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        rest, _ = self._process.communicate()
        self.told.append(rest.decode())


def the_parts(**urls: str) -> dict[str, str]:
    """Return settings of a cluster whose parts are nowhere, with passwords, but for `urls`."""
    nowhere = f"127.0.0.1:{free_port()}"
    found = {
        "KAFKA__BOOTSTRAP": nowhere,
        "KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA__USERNAME": USER,
        "KAFKA__PASSWORD": WRONG,
        "REGISTRY__URL": f"http://{nowhere}",
        "REGISTRY__USERNAME": USER,
        "REGISTRY__PASSWORD": SECRET,
        "MONGO__URL": f"mongodb://{USER}:{SECRET}@{nowhere}",
        "REDIS__URL": f"redis://{USER}:{SECRET}@{nowhere}",
        **urls,
    }
    return {f"RUNTAPE_{name}": value for name, value in found.items()}


@pytest.mark.timeout(120)
def test_a_process_says_why_it_is_not_ready_and_no_password(tmp_path: Path) -> None:
    with Waiting(tmp_path, the_parts()) as process:
        waits_for = process.until_waiting()
        status, body = process.ready()
    assert waits_for.startswith("MongoDB does not answer: ServerSelectionTimeoutError: 127.0.0.1:")
    assert status == 503
    assert json.loads(body) == {"status": "not_ready", "parts": {"service": waits_for}}
    told = "".join([*process.told, body])
    assert SECRET not in told and WRONG not in told


@pytest.mark.needs("kafka-unpacked", "mongo", "registry")
@pytest.mark.timeout(120)
def test_a_process_with_a_wrong_password_says_whose(
    tmp_path: Path, secure_kafka: SecureKafka, mongo_part: Mongo, registry_part: Registry
) -> None:
    urls = {
        "KAFKA__BOOTSTRAP": secure_kafka.bootstrap_of("OPEN"),
        "MONGO__URL": mongo_part.url,
        "REGISTRY__URL": registry_part.url,
    }
    with Waiting(tmp_path, the_parts(**urls)) as process:
        waits_for = process.until_waiting()
        _, body = process.ready()
    assert f"{secure_kafka.bootstrap_of('OPEN')} refuses the user runtape (SCRAM-SHA-512)" in waits_for
    assert json.loads(body)["parts"]["service"] == waits_for
    told = "".join([*process.told, body])
    assert SECRET not in told and WRONG not in told

"""Publishing to Kafka: idempotent, and acknowledged by all replicas that are in sync.

Until the schemas are registered and a broker was reached nothing is published and everything else goes on: what is to
be told stays in the outboxes of its documents.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from runtape.adapters.kafka.codec import AvroCodec
from runtape.adapters.kafka.connection import unreachable
from runtape.adapters.kafka.headers import REPLAYED_BY, Headers, of_message
from runtape.domain.events import Message
from runtape.domain.replay import ReplaySessionId
from runtape.ports.errors import InfrastructureError, Transient, Unavailable

TIMEOUT_MS = 10_000
READY_S = 2.0


class Producer:
    """`Publisher` over a Kafka cluster; it publishes once `start` has succeeded, `stop` sends what is left."""

    def __init__(self, connection: Mapping[str, Any], codec: AvroCodec, prefix: str = "") -> None:
        self._connection = connection
        self._codec = codec
        self._prefix = prefix
        self._producer: AIOKafkaProducer | None = None
        self._registered = False
        self._lacks = "the registry was not reached yet"

    async def start(self) -> None:
        """Register the schemas and connect, unless that is done; one try at a time.

        Raises: Permanent, when the registry refuses a schema; Transient.
        """
        try:
            if not self._registered:
                await self._codec.register()
                self._registered = True
                self._lacks = "Kafka was not reached yet"
            if self._producer is None:
                self._producer = await self._connected()
        except InfrastructureError as error:
            self._lacks = str(error)
            raise

    async def _connected(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            request_timeout_ms=TIMEOUT_MS,
            **self._connection,
        )
        try:
            await producer.start()
        except BaseException as error:
            await producer.stop()
            if isinstance(error, KafkaError):
                raise await unreachable(self._connection, error) from error
            raise
        return producer

    async def stop(self) -> None:
        """Send what is left and close the connection."""
        if self._producer is not None:
            await self._producer.stop()

    async def ready(self) -> None:
        """Return when messages can be published.  Raises: Unavailable, saying what is missing."""
        producer = self._started()
        try:
            await asyncio.wait_for(producer.client.fetch_all_metadata(), READY_S)
        except (KafkaError, TimeoutError) as error:
            raise Unavailable("Kafka does not answer") from error

    def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise Unavailable(self._lacks)
        return self._producer

    async def publish(self, message: Message) -> None:
        await self._send(message, of_message(message))

    async def publish_again(self, message: Message, session_id: ReplaySessionId) -> None:
        """Append `message` with the mark of the session; return once that is durable.  Raises: Transient."""
        await self._send(message, [*of_message(message), (REPLAYED_BY, session_id.encode())])

    async def _send(self, message: Message, headers: Headers) -> None:
        self._started()  # nothing can be encoded before
        await self.send(message.topic, message.execution_id.encode(), self._codec.encode(message), headers)

    async def send(self, topic: str, key: bytes, body: bytes, headers: Headers) -> None:
        """Append `body` to `topic` under `key`; return once that is durable.  Raises: Transient."""
        producer = self._started()
        try:
            async with asyncio.timeout(TIMEOUT_MS / 1000):
                await producer.send_and_wait(self._prefix + topic, body, key=key, headers=list(headers))
        except (KafkaError, TimeoutError) as error:
            raise Transient(f"Kafka has not taken a message of {topic}: {type(error).__name__}") from error

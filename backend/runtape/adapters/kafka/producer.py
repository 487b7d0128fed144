"""Publishing to Kafka: idempotent, and acknowledged by all replicas that are in sync."""

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
from runtape.ports.errors import Transient

TIMEOUT_MS = 10_000


class Producer:
    """`Publisher` over a Kafka cluster; `start` comes first, `stop` sends what is left."""

    def __init__(self, connection: Mapping[str, Any], codec: AvroCodec, prefix: str = "") -> None:
        self._connection = connection
        self._codec = codec
        self._prefix = prefix
        self._producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            request_timeout_ms=TIMEOUT_MS,
            **connection,
        )

    async def start(self) -> None:
        """Connect.  Raises: Transient."""
        try:
            await self._producer.start()
        except KafkaError as error:
            await self._producer.stop()
            raise await unreachable(self._connection, error) from error

    async def stop(self) -> None:
        """Send what is left and close the connection."""
        await self._producer.stop()

    async def publish(self, message: Message) -> None:
        await self._send(message, of_message(message))

    async def publish_again(self, message: Message, session_id: ReplaySessionId) -> None:
        """Append `message` with the mark of the session; return once that is durable.  Raises: Transient."""
        await self._send(message, [*of_message(message), (REPLAYED_BY, session_id.encode())])

    async def _send(self, message: Message, headers: Headers) -> None:
        await self.send(message.topic, message.execution_id.encode(), self._codec.encode(message), headers)

    async def send(self, topic: str, key: bytes, body: bytes, headers: Headers) -> None:
        """Append `body` to `topic` under `key`; return once that is durable.  Raises: Transient."""
        try:
            async with asyncio.timeout(TIMEOUT_MS / 1000):
                await self._producer.send_and_wait(self._prefix + topic, body, key=key, headers=list(headers))
        except (KafkaError, TimeoutError) as error:
            raise Transient(f"Kafka has not taken a message of {topic}: {type(error).__name__}") from error

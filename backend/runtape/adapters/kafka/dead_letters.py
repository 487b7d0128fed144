"""The topics of dead letters: the original bytes, for who watches Kafka and not the API."""

from runtape.adapters.kafka.headers import TYPE
from runtape.adapters.kafka.producer import Producer
from runtape.adapters.kafka.topics import dead_letter_topic
from runtape.domain.dead_letter import DeadLetter

CAUSE_CHARACTERS = 1_000


class KafkaDeadLetterTopic:
    """`DeadLetterTopic` over ``<topic>.dlq``, which has a message for each letter under the letter's key.

    The store of the letters is what decides about them; a copy stays as it is, whatever becomes of its letter.  A
    letter whose writing was broken off may be there twice, with the same ``letter``.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def copy(self, letter: DeadLetter) -> None:
        message = letter.message
        about = {
            TYPE: message.type,
            "letter": letter.id,
            "group": letter.group,
            "failure": letter.failure,
            "cause": letter.cause[:CAUSE_CHARACTERS],
            "stack_digest": letter.stack_digest or "",
            "attempts": letter.attempts,
            "original_topic": message.topic,
            "original_partition": message.partition,
            "original_offset": message.offset,
        }
        headers = [(name, str(value).encode(errors="replace")) for name, value in {**message.headers, **about}.items()]
        await self._producer.send(dead_letter_topic(message.topic), message.key.encode(), message.body, headers)
